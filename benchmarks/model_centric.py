"""Model-centric training with devices that are processes of their own, beside the same loop in one process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import psutil
import torch

from benchmarks.federated_problem import BATCH, LR, NODES, Case, accuracy, large, plain_rounds, small
from benchmarks.grid import Grid, Server
from benchmarks.results import Result, rate
from benchmarks.scale import Scale
from benchmarks.timing import Timings
from grid_jupyter.client.model_centric import ModelCentricFLClient
from grid_jupyter.link.http import call
from grid_jupyter.plans.models import training_plan

MEANING = """\
Ten devices (`jupyter grid device`, ONNX Runtime, no torch), each a process with a tenth of the rows, train a model \
that one Node hosts: each round they get a place and the model, train one epoch of SGD in batches of 32, and report, \
which asks for the next place (a small model comes with it, a large one is fetched); the Node syncs every report to \
the disk before it acknowledges it, folds it, and syncs the checkpoint. *Small*: four fifths of scikit-learn's digits, \
64-64-10, 50 rounds. *Large*: 512-2048-2048-10 (5.3 million parameters, 21 MB each way for each device), one step a \
round, 10 rounds. The plain loop does the same sums, in the same order of rows, in one process with one thread, and \
keeps nothing on a disk, so the accuracy must be the same. What comes before the first round has ended is the start of \
the Node and of ten devices, and hosting. CPU is that of all processes together. The devices measure no loss beside \
their training (`--no-metrics`), as the loop does not. The disk is the one where the Node has its state: as many files \
of the model's size as a round has, one after the other, each synced. The Node's memory is that of its own pages and \
those in memory files, looked at twenty times a second, with its Worker and the fork server; at rest is before the \
first device came."""

AGAINST = "the plain loop in one process"
_LOOK_S = 0.05
_WAIT_S = 40
_START_S = 120.0


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    count = scale(NODES, 2)
    try:
        return [
            *_compare(scale, small(count), scale(50, 2), scale(3, 1)),
            *_compare(scale, large(count), scale(10, 1), scale(2, 1)),
        ]
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Run:
    """What one training told."""

    first_s: float = 0.0
    """From the start of the Node to the end of the first round."""
    wall_s: float = 0.0
    """Of the rounds behind that."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    grown: int = 0
    """Bytes that the Node and its Worker had at most, more than before the first device came."""
    accuracy: float = 0.0


def _compare(scale: Scale, case: Case, rounds: int, times: int) -> list[Result]:
    plain, disk = Timings(cpu={"here": 0.0}), Timings()
    runs: list[_Run] = []
    for _ in range(times):
        model = _plain(case, rounds, plain)
        with tempfile.TemporaryDirectory(prefix="grid-benchmark-") as folder:
            _write(Path(folder), case, rounds, disk)
        runs.append(_train(case, rounds))
    of = f"{len(case.shards)} devices, {case.shown}"
    targets, is_small = not scale.quick, case.name == "small"
    plain_ms = plain.cpu_each("here") / rounds * 1e3
    cpu = {who: sum(one.cpu_s[who] for one in runs) / len(runs) / rounds * 1e3 for who in runs[0].cpu_s}
    took = Timings([one.wall_s for one in runs])
    slower, of_slower = (disk, "writing and syncing its reports and checkpoint") if (
        not is_small and disk.median > plain.median
    ) else (plain, AGAINST)  # fmt: skip
    nbytes = sum(one.numel() * one.element_size() for one in model.parameters())
    return [
        dataclasses.replace(
            rate(f"rounds: {of}", rounds, took, "round/s", slower, of_slower),
            ratio_at_least=(0.4 if is_small else 0.6) if targets else None,
        ),
        *(
            []
            if slower is plain
            else [rate(f"rounds, beside the loop: {of}", rounds, took, "round/s", plain, AGAINST)]
        ),
        Result(
            what=f"CPU of one round, all processes: {of}", value=sum(cpu.values()), unit="ms", baseline=plain_ms,
            against=AGAINST, at_most=80.0 if is_small and targets else None,
        ),
        *(
            Result(what=f"CPU of one round, {who}: {of}", value=used, unit="ms", baseline=plain_ms, against=AGAINST)
            for who, used in cpu.items()
        ),
        Result(
            what=f"accuracy on held-out rows: {of}", value=runs[-1].accuracy, unit="",
            baseline=accuracy(model, case.held_out), against=AGAINST,
        ),
        Result(
            what=f"before the first round has ended: {of}", value=min(one.first_s for one in runs), unit="s",
            baseline=plain.median / rounds, against=f"a round of {AGAINST}",
            at_most=5.0 if is_small and targets else None,
        ),
        Result(
            what=f"memory of the Node, more than at rest: {of}", value=max(one.grown for one in runs) / 1e6, unit="MB",
            baseline=nbytes / 1e6, against="the model", ratio_at_most=None if is_small or not targets else 6.0,
        ),
    ]  # fmt: skip


def _plain(case: Case, rounds: int, took: Timings) -> torch.nn.Module:
    """The same, in this process; the first round warms up."""
    model = case.network()
    plain_rounds(model, case.shards, 1, order=_order)
    used, began = time.process_time(), time.perf_counter()
    plain_rounds(model, case.shards, rounds, first=2, order=_order)
    took.walls.append(time.perf_counter() - began)
    took.cpu["here"] += time.process_time() - used
    return model


def _order(count: int, cycle: int) -> torch.Tensor:
    """The order of rows that a device has in a cycle (client/device.py): so the sums are the same everywhere."""
    random = numpy.random.Generator(numpy.random.Philox([0, cycle]))
    random.integers(1 << 62)  # the seed of the plan's noise
    return torch.from_numpy(random.permutation(count))


def _write(folder: Path, case: Case, rounds: int, took: Timings) -> None:
    """The bytes that the Node keeps: of each round, a report of each device, and the checkpoint."""
    data = numpy.random.default_rng(0).bytes(4 * sum(one.numel() for one in case.network().parameters()))
    began = time.perf_counter()
    for number in range(rounds * (len(case.shards) + 1)):
        path = folder / str(number)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    took.walls.append(time.perf_counter() - began)


def _train(case: Case, rounds: int) -> _Run:
    """One round to warm up, and `rounds` more."""
    found, began = _Run(), time.perf_counter()
    with Grid() as grid:
        node = grid.node("alice")
        token = grid.account(node, "Olga", "Owner")
        client = ModelCentricFLClient("benchmark", node.address, user="Olga")
        _host(client, case, rounds + 1)
        rest = _memory(node)
        path = f"/model-centric/cycle?name={case.name}&wait_s={_WAIT_S}&after="
        with _devices(node, case, grid.home) as processes, _Highest(node) as highest:
            _until(client, path, token, 1)
            found.first_s = time.perf_counter() - began
            before, began = _cpu(node, processes), time.perf_counter()
            _until(client, path, token, rounds + 1)
            found.wall_s = time.perf_counter() - began
            found.cpu_s = {who: used - before[who] for who, used in _cpu(node, processes).items()}
        found.grown = highest.bytes - rest
        model = case.network()
        model.load_state_dict({name: torch.from_numpy(one) for name, one in client.retrieve(case.name).items()})
        found.accuracy = accuracy(model, case.held_out)
    return found


def _host(client: ModelCentricFLClient, case: Case, cycles: int) -> None:
    network, count = case.network(), len(case.shards)
    inputs, classes = case.shards[0]
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    example = inputs[:BATCH], classes[:BATCH]
    plan = training_plan(network, torch.nn.functional.cross_entropy, optimizer, inputs=example)
    client.host(
        network,
        {"training_plan": plan},
        client_config={"name": case.name, "version": "1", "batch_size": BATCH, "lr": LR},
        server_config={"min_diffs": count, "max_diffs": count, "num_cycles": cycles},
    )


def _until(client: ModelCentricFLClient, path: str, token: str, completed: int) -> None:
    """Wait until so many cycles are complete: one request that the Node answers then. Raises RuntimeError."""
    deadline = time.monotonic() + _START_S
    while call(client.address, "GET", f"{path}{completed - 1}", token=token)["completed"] < completed:
        if time.monotonic() > deadline:
            raise RuntimeError("the devices did not come so far")


@contextmanager
def _devices(node: Server, case: Case, folder: Path) -> Iterator[list[psutil.Process]]:
    """Processes of `jupyter grid device`, each with its own rows; they end when training is over."""
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "device", node.address, "--model", case.name]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, (inputs, classes) in enumerate(case.shards):
            path = folder / f"{case.name}-{number}.npz"
            numpy.savez(path, x=inputs.numpy(), y=classes.numpy())
            started.append(subprocess.Popen([*command, "--data", str(path), "--no-metrics"], stdout=subprocess.DEVNULL))
        yield [psutil.Process(one.pid) for one in started]
    finally:
        for one in started:
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


def _cpu(node: Server, devices: list[psutil.Process]) -> dict[str, float]:
    times = [one.cpu_times() for one in devices]
    return {
        "the devices": sum(one.user + one.system for one in times),
        "the Node": node.cpu_s(),
        "its Worker": node.below_cpu_s(),
    }


def _memory(node: Server) -> int:
    """Bytes that are the Node's own, or in memory files; what it maps of files, the kernel may drop."""
    total = 0
    for one in [psutil.Process(node.process.pid), *node.below()]:
        try:
            told = Path(f"/proc/{one.pid}/status").read_text()
        except OSError:
            continue  # it has ended
        for name in ("RssAnon:", "RssShmem:"):
            found = told.partition(name)[2].split()
            total += int(found[0]) << 10 if found else 0
    return total


class _Highest:
    """Looks at a Node's memory until the `with` block ends."""

    def __init__(self, node: Server) -> None:
        self.bytes = 0
        self._node, self._ended = node, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Highest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self.bytes = max(self.bytes, _memory(self._node))
