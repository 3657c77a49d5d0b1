"""Reports of devices as a Node takes them: files that are checked, synced, counted and folded in its Worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy
import psutil
import torch
from safetensors.numpy import save

from benchmarks.results import Result
from grid_jupyter.client.tensor_files import write_arrays
from grid_jupyter.cycles.service import Cycles
from grid_jupyter.plans.models import training_plan
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.wire.training import Authenticate, CycleRequest, HostTraining

_MIB = 1 << 20
_TICK_S = 0.001
_EXTRA = 25
"""MiB that the fold may take, at most, whatever the number of reports."""


def through_a_node(size: int, count: int) -> list[Result]:
    """Figures of so many reports of so many float32 weights, one after the other."""
    with tempfile.TemporaryDirectory(prefix="grid-benchmark-", dir=Path.cwd()) as folder:  # on a disk, not in memory
        return asyncio.run(_run(Path(folder), size, count))


async def _run(state: Path, size: int, count: int) -> list[Result]:
    random = numpy.random.default_rng(0)
    model = {name: value.detach().numpy() for name, value in _network().state_dict().items()}
    model["big"] = random.standard_normal(size).astype(numpy.float32)
    reports = [write_arrays({**model, "big": random.standard_normal(size).astype(numpy.float32)}) for _ in range(4)]
    database = Database(sqlite_url(state / "grid.db"))
    cycles = Cycles(database, BlobStore(state / "training"))
    await cycles.start()
    try:
        await _host(cycles, save(model), count + 1)
        places = [await _place(cycles) for _ in range(count + 1)]
        await _report(cycles, places[0], reports[0])
        worker = _worker()
        before, faults = _private(worker), _faults(worker)
        stalls: list[float] = []
        ticking = asyncio.create_task(_tick(stalls))
        took, wrote, most = [], [], before
        for number, place in enumerate(places[1:]):
            data = reports[number % len(reports)]
            began = time.perf_counter()
            await _report(cycles, place, data)
            took.append(time.perf_counter() - began)
            wrote.append(await asyncio.to_thread(_timed, lambda data=data: _write(state, data)))  # type: ignore[misc]
            most = max(most, _private(worker))
        ended = _faults(worker)
        await cycles.cycle("m", None, after=0, wait_s=60)
        ticking.cancel()
    finally:
        await cycles.stop()
        database.close()
    against = "writing and syncing the same bytes"
    return [
        Result(
            what="a report, until it is acknowledged", value=statistics.median(took) * 1e3, best=min(took) * 1e3,
            unit="ms", baseline=statistics.median(wrote) * 1e3, baseline_best=min(wrote) * 1e3, against=against,
        ),
        Result(
            what=f"memory of the Worker, more after {count} reports than after one", value=(most - before) / _MIB,
            unit="MiB", baseline=len(reports[0]) / _MIB, against="the model", at_most=_EXTRA,
        ),
        Result(what="page faults of the Worker, a report", value=(ended - faults) / count, unit="",
               baseline=len(reports[0]) / 4096, against="pages of a report"),
        Result(what="the event loop's longest stall", value=max(stalls) * 1e3, unit="ms", baseline=_TICK_S * 1e3,
               against="the tick", at_most=50),
    ]  # fmt: skip


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


async def _host(cycles: Cycles, model: bytes, count: int) -> None:
    example = torch.zeros(4, 3), torch.zeros(4, 1)
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    plan = training_plan(network, torch.nn.functional.mse_loss, optimizer, inputs=example)
    with cycles.blobs.begin(secrets.token_hex(16)) as upload:
        upload.write(model)
        blob = upload.commit()
    body = HostTraining(
        model=secrets.token_hex(16),
        plans={"training_plan": msgspec.Raw(json.dumps(json.loads(plan.to_bytes())).encode())},
        client_config={"name": "m", "version": "1"},
        server_config={"max_diffs": count, "num_cycles": 1},
    )
    await cycles.host("Ann", body, blob)


async def _place(cycles: Cycles) -> tuple[str, str]:
    worker = (await cycles.authenticate(Authenticate(model_name="m")))["worker_id"]
    answer = await cycles.request(CycleRequest(worker_id=worker, model="m"))
    return worker, answer["request_key"]


async def _report(cycles: Cycles, place: tuple[str, str], data: bytes) -> None:
    arriving = await cycles.begin_report(*place)
    upload = await asyncio.to_thread(cycles.blobs.begin, secrets.token_hex(16))
    for start in range(0, len(data), _MIB):  # as its door does
        await asyncio.to_thread(upload.write, data[start : start + _MIB])
    await cycles.finish_report(arriving, upload, 37)


async def _tick(stalls: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_TICK_S)
        stalls.append(time.perf_counter() - began - _TICK_S)


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _write(state: Path, data: bytes) -> None:
    path = state / "written"
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(state, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    path.unlink()


def _worker() -> psutil.Process:
    """The Worker that folds: the fork server's only child."""
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "grid_jupyter.worker.foldserver" in one.cmdline() and not one.name().startswith("bwrap"):
                found = [child for child in one.children() if "bwrap" not in child.name()]
                if found:
                    return found[0]
    raise RuntimeError("there is no Worker that folds")


def _private(process: psutil.Process) -> int:
    told = Path(f"/proc/{process.pid}/status").read_text()
    return int(told.partition("RssAnon:")[2].split()[0]) << 10


def _faults(process: psutil.Process) -> int:
    """Minor page faults so far (proc(5), field 10 of stat)."""
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[7])
