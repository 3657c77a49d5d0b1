"""The Worker in which reports are checked and folded: whatever ends it, the checkpoint is the same, bit for bit."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from cycle_world import MODEL, World, diff, world
from numpy.typing import NDArray
from safetensors.numpy import save

from grid_jupyter.cycles.fold_worker import FoldWorker
from grid_jupyter.errors import InvalidDataError, LimitExceededError, NodeUnavailableError
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.pool import WorkerPool
from grid_jupyter.worker.process import WorkerProcess, here

REPORTS = [(diff(0.1, 1e-7, 3e4), 3), (diff(-0.7, 1 / 3, 1e-3), 7), (diff(2.5, -1e5, 0.3), 1000)]
STRATEGIES = (None, {"name": "FedAdam"}, "Median")


def workers() -> list[psutil.Process]:
    """Workers that fold, below this process."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if "grid_jupyter.worker.foldserver" in one.cmdline() and not one.name().startswith("bwrap"):
                found += [child for child in one.children() if child.status() != psutil.STATUS_ZOMBIE]
        except psutil.Error:
            continue
    return [one for one in found if "bwrap" not in one.name()]


async def train(state: Path, at: Callable[[str], None], strategy: Any) -> str:
    """One cycle of three reports; the digest of its checkpoint."""
    async with world(state, at=at) as made:
        await made.host(max_diffs=3, min_diffs=3, num_cycles=1, **({} if strategy is None else {"strategy": strategy}))
        places = [await made.accepted() for _ in REPORTS]
        for place, (data, samples) in zip(places, REPORTS, strict=True):
            await made.report(place, data, samples)
        assert (await made.stands(after=0))["completed"] == 1
        return hashlib.sha256((await made.checkpoint())["w"].tobytes()).hexdigest()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_worker_killed_at_any_point_loses_nothing(tmp_path: Path, strategy: Any):
    passed: Counter[str] = Counter()
    (tmp_path / "whole").mkdir()
    whole = asyncio.run(train(tmp_path / "whole", lambda point: passed.update([point]), strategy))
    points = ["report-arrived", "report-counted", "report-folded", "closing"]
    assert passed.keys() >= set(points)
    for number, point in enumerate(points):
        left = [2 if point != "closing" else 1]

        def kill(found: str, point: str = point, left: list[int] = left) -> None:
            if found == point:
                left[0] -= 1
                if not left[0]:
                    killed = workers()
                    assert killed
                    for one in killed:
                        os.kill(one.pid, signal.SIGKILL)

        (tmp_path / str(number)).mkdir()
        assert asyncio.run(train(tmp_path / str(number), kill, strategy)) == whole, point
        assert left[0] <= 0


def test_a_report_that_ends_the_process_that_reads_it_is_refused_and_does_not_count(tmp_path: Path):
    """The Workers of this pool are processes that end at once."""
    program = (
        "import sys; from grid_jupyter.worker.forking import serve_forks; "
        "serve_forks(int(sys.argv[1]), lambda limits: None, lambda sock, limits: sock.recv(1))"
    )
    limits = WorkerLimits(memory_bytes=0, operation_s=0, threads=1)

    async def work() -> None:
        pool = WorkerPool(limits, lambda number, sock: WorkerProcess(number, here(sock)), 0, program=("-c", program))
        async with world(tmp_path, folds=FoldWorker(pool)) as made:
            await made.host(max_diffs=1)
            place = await made.accepted()
            with pytest.raises(InvalidDataError, match="ends the process that reads it"):
                await made.report(place, diff(1, 1, 1))
            assert (await made.stands())["reports"] == 0

    asyncio.run(work())


def test_where_no_worker_can_be_started_a_report_is_refused_for_now(tmp_path: Path):
    limits = WorkerLimits(memory_bytes=0, operation_s=0, threads=1)

    async def work() -> None:
        pool = WorkerPool(limits, lambda number, sock: WorkerProcess(number, here(sock)), 0, program=("-c", "1"))
        async with world(tmp_path, folds=FoldWorker(pool)) as made:
            await made.host(max_diffs=1)
            with pytest.raises(NodeUnavailableError, match="cannot start Workers"):
                await made.report(await made.accepted(), diff(1, 1, 1))

    asyncio.run(work())


def test_a_worker_that_nobody_asks_is_let_go_and_what_was_folded_is_folded_again(tmp_path: Path):
    from grid_jupyter.cycles.fold_worker import fold_workers

    async def work() -> None:
        async with world(tmp_path, folds=FoldWorker(fold_workers(), idle_s=0.05)) as made:
            await made.host(max_diffs=2)
            await made.report(await made.accepted(), diff(1, 1, 1))
            deadline = time.monotonic() + 20
            while workers():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await made.report(await made.accepted(), diff(3, 3, 3))
            await made.stands(after=0)
            numpy.testing.assert_allclose((await made.checkpoint())["w"], MODEL["w"] - 2)

    asyncio.run(work())


# ------------------------------------------------------------------ memory and stalls


def private_bytes(process: psutil.Process) -> int:
    """Memory that is this process's own: files that it maps are not in it."""
    told = Path(f"/proc/{process.pid}/status").read_text()
    return int(told.partition("RssAnon:")[2].split()[0]) << 10


def test_folding_takes_the_memory_of_two_models_however_many_reports_come_and_never_stalls_the_loop(tmp_path: Path):
    rng, size = numpy.random.default_rng(0), 1_200_000
    model = {**MODEL, "big": rng.standard_normal(size).astype(numpy.float32)}
    bigs: list[NDArray[Any]] = [rng.standard_normal(size).astype(numpy.float32) for _ in range(2)]
    reports = [save({"w": MODEL["w"], "big": big}) for big in bigs]
    # a header that is as long as the whole report: a second of work for whoever reads it
    entries = {f"t{n}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n in range(60_000)}
    header = json.dumps(entries).encode()
    hostile = struct.pack("<Q", len(header)) + header + bytes(4 * len(entries))
    hostile = hostile[: len(reports[0])]

    async def work(made: World) -> None:
        await made.host(model=model, max_diffs=12)
        places = [await made.accepted() for _ in range(12)]
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                began = time.thread_time()
                await asyncio.sleep(0.001)
                longest = max(longest, time.thread_time() - began)

        await made.report(places[0], reports[0], 1)
        (process,) = workers()
        before = private_bytes(process)
        watching = asyncio.create_task(watch())
        most = 0
        for k, place in enumerate(places[1:], 1):
            await made.report(place, reports[k % 2], k + 1)
            most = max(most, private_bytes(process) if k < 11 else 0)
            if k == 5:
                with pytest.raises(LimitExceededError, match="header"):
                    await made.report(places[11], hostile)
        await made.stands(after=0)
        watching.cancel()
        assert most - before < 25e6, (before, most)
        assert longest < 0.05, longest
        weights = numpy.arange(1.0, 13.0)
        mean = sum(w * bigs[k % 2].astype(numpy.float64) for k, w in enumerate(weights)) / weights.sum()
        numpy.testing.assert_allclose((await made.checkpoint())["big"], model["big"] - mean, atol=1e-5)

    async def whole() -> None:
        async with world(tmp_path) as made:
            await work(made)

    asyncio.run(whole())
