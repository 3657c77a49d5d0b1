"""Reports of devices are folded on a Dask cluster as they are here: the same checkpoints, bit for bit."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy
from cycle_world import MODEL, world
from dask_world import DaskCluster
from safetensors.numpy import save

from grid_jupyter.aggregation.diffs import FORMS, packed
from grid_jupyter.cycles.fold_worker import FoldWorker, fold_workers
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.dask_pool import DaskPool

RANDOM = numpy.random.default_rng(0)
LARGE = {**MODEL, "big": RANDOM.standard_normal((700, 2000)).astype(numpy.float32)}
DIFFS = [
    packed({name: RANDOM.standard_normal(one.shape).astype(numpy.float32) for name, one in LARGE.items()}, kind, RANDOM)
    for kind in FORMS
]


async def train(state: Path, folds: FoldWorker, strategy: Any, kill: Any = lambda: None) -> list[str]:
    """Two cycles of four reports of 5.6 MB and less; the digests of their checkpoints."""
    digests = []
    async with world(state, folds=folds) as here:
        await here.host(model=LARGE, min_diffs=4, max_diffs=4, num_cycles=2, strategy=strategy)
        for cycle in range(2):
            for number, arrays in enumerate(DIFFS):
                await here.report(await here.accepted(), save(arrays), number + 1)
                if (cycle, number) == (1, 2):
                    kill()
            assert (await here.stands(after=cycle))["completed"] == cycle + 1
            data = (await here.checkpoint())["big"].tobytes()
            digests.append(hashlib.sha256(data).hexdigest())
    return digests


def test_a_dask_cluster_comes_to_the_same_checkpoints_though_its_worker_is_killed(cluster: DaskCluster, tmp_path: Path):
    limits = WorkerLimits(memory_bytes=1 << 30, operation_s=60.0, threads=1)
    killed = []

    def kill() -> None:
        for found in cluster.grid_workers().values():
            for one in found:
                os.kill(one.pid, signal.SIGKILL)
                killed.append(one.pid)

    async def work() -> None:
        pool = DaskPool(limits, cluster.address)
        await pool.probe()
        try:
            for strategy in ("FedAvg", "FedAdam", "Median"):
                states = [tmp_path / f"{place}-{strategy}" for place in ("here", "there")]
                for state in states:
                    await asyncio.to_thread(state.mkdir)
                here = await train(states[0], FoldWorker(fold_workers()), strategy)
                there = await train(states[1], FoldWorker(pool, far=True), strategy, kill)
                assert there == here, strategy
        finally:
            await pool.stop()

    asyncio.run(work())
    assert len(killed) == 3
