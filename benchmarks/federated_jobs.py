"""Federated training by jobs that stay warm on ten Nodes, beside the same loop in one process, and beside Flower."""

from __future__ import annotations

import dataclasses
import time

import psutil
import torch

from benchmarks import flower
from benchmarks.federated_problem import BATCH, LR, NODES, SEED, Case, accuracy, large, plain_rounds, small
from benchmarks.grid import Grid, Server
from benchmarks.results import Result, rate
from benchmarks.scale import Scale
from benchmarks.timing import Timings
from grid_jupyter.client.fits import Fit
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.sandbox import PrivateGridNetwork
from grid_jupyter.wire.messages import JobPolicy

MEANING = """\
`grid.train` over ten Nodes, each with its Worker, on one machine. Every Node holds a tenth of the rows, its owner's \
policy lets the job run; each round, all of them get the weights of the moment, train one epoch of SGD in batches of \
32, and send back what came out, which is folded by rows. *Small*: four fifths of scikit-learn's digits, 64-64-10, 50 \
rounds. *Large*: 512-2048-2048-10 (5.3 million parameters, 21 MB each way for each Node), one step a round, 10 rounds. \
The plain loop does the same sums, in the same order of rows, in one process with one thread, shard after shard, so \
the accuracy must be the same. What comes before the first round has ended (submission, the owners' policies, the \
start of ten Workers) is not in the rounds, and has a line of its own. CPU is that of all processes together: client, \
Nodes and Workers; on two cores they share what would be twenty-one machines. Where Flower is installed beside the \
grid (`benchmarks/flower.sh` does that), the same trainings run on it, too, over gRPC: `start_server`, \
and `start_client` in ten processes that stay, each with one thread; its newer deployment was not measured. The memory \
of a page that processes share is divided among them."""

AGAINST = "the plain loop in one process"


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    count = scale(NODES, 2)
    try:
        with Grid() as grid:
            nodes = {f"node{number}": grid.node(f"node{number}", "--warm") for number in range(count)}
            for name, node in nodes.items():
                grid.account(node, name, "Owner")
                grid.account(node, "Ann", "User")
            figures = [
                *_compare(scale, nodes, small(count), scale(50, 2), scale(3, 1)),
                *_compare(scale, nodes, large(count), scale(10, 1), scale(2, 1)),
            ]
    finally:
        torch.set_num_threads(threads)
    return figures


class _Watch:
    """Called behind each round: reads clocks behind the first one, which is there to warm up, and behind the last."""

    def __init__(self, nodes: dict[str, Server], rounds: int) -> None:
        self.began = time.perf_counter()
        self.first_s = 0.0
        """From the call of `train` to the end of its first round."""
        self.wall_s = 0.0
        """Of the `rounds` behind that."""
        self.cpu_s: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        """Bytes, by whose they are; what processes share is shared out among them."""
        self._nodes = nodes
        self._rounds = rounds
        self._at: tuple[float, dict[str, float]] = 0.0, {}

    def __call__(self, fit: Fit) -> None:
        now, done = time.perf_counter(), len(fit.records)
        if done == 1:
            self.first_s = now - self.began
            self._at = 0.0, self._cpu()
            self._at = time.perf_counter(), self._cpu()
        elif done == self._rounds + 1:
            cpu = self._cpu()
            self.wall_s = now - self._at[0]
            self.cpu_s = {kind: used - self._at[1][kind] for kind, used in cpu.items()}
            self.memory = {
                "the client": _memory(psutil.Process()),
                "a Node with its Workers": max(
                    sum(map(_memory, [psutil.Process(node.process.pid), *node.below()]))
                    for node in self._nodes.values()
                ),
            }

    def _cpu(self) -> dict[str, float]:
        here = time.process_time()  # first: to look at the others costs time here
        return {
            "client": here,
            "Nodes": sum(node.cpu_s() for node in self._nodes.values()),
            "Workers": sum(node.below_cpu_s() for node in self._nodes.values()),
        }


def _memory(process: psutil.Process) -> int:
    """Bytes of a process, each page divided by how many share it."""
    return int(process.memory_full_info().pss)


def _compare(scale: Scale, nodes: dict[str, Server], case: Case, rounds: int, times: int) -> list[Result]:
    _publish(nodes, case)
    watches: list[_Watch] = []
    plain = Timings(cpu={"here": 0.0})
    clients = [NodeClient(None, node.address, user="Ann") for node in nodes.values()]
    try:
        grid = PrivateGridNetwork(*clients)
        for turn in range(times + 1):
            watches.append(_Watch(nodes, rounds))
            fit = _train(grid, case, rounds, watches[-1])
            model = _plain(case, rounds, plain if turn else Timings(cpu={"here": 0.0}))  # the first warms up
    finally:
        for client in clients:
            client.close()
    begun, watches = watches[0].first_s, watches[1:]
    jobs = Timings([watch.wall_s for watch in watches])
    of = f"{len(nodes)} Nodes, {case.shown}"
    targets = not scale.quick
    is_small = case.name == "small"
    plain_cpu = plain.cpu_each("here") / rounds * 1e3
    cpu = {kind: sum(watch.cpu_s[kind] for watch in watches) / len(watches) / rounds * 1e3 for kind in watches[0].cpu_s}
    figures = [
        dataclasses.replace(
            rate(f"rounds: {of}", rounds, jobs, "round/s", plain, AGAINST),
            ratio_at_least=0.5 if is_small and targets else None,
            at_least=2.0 if targets and not is_small else None,
        ),
        Result(
            what=f"CPU of one round, all processes: {of}", value=sum(cpu.values()), unit="ms", baseline=plain_cpu,
            against=AGAINST, at_most=50.0 if is_small and targets else None,
        ),
    ]  # fmt: skip
    figures += [
        Result(what=f"CPU of one round, the {kind}: {of}", value=used, unit="ms", baseline=plain_cpu, against=AGAINST)
        for kind, used in cpu.items()
    ]
    figures.append(_accuracy(f"accuracy on held-out rows: {of}", accuracy(fit.model, case.held_out), model, case))
    figures.append(
        Result(
            what=f"before the first round has ended: {of}", value=begun, unit="s",
            baseline=plain.median / rounds, against=f"a round of {AGAINST}",
        )
    )  # fmt: skip
    weights_mb = sum(one.numel() * one.element_size() for one in model.parameters()) / 1e6
    figures += [
        Result(
            what=f"memory of {who}: {of}", value=max(watch.memory[who] for watch in watches) / 1e6, unit="MB",
            baseline=weights_mb, against="the model",
        )
        for who in watches[0].memory
    ]  # fmt: skip
    return figures + _flower(case, rounds, len(nodes), plain, plain_cpu, model)


def _accuracy(what: str, found: float, model: torch.nn.Module, case: Case) -> Result:
    return Result(what=what, value=found, unit="", baseline=accuracy(model, case.held_out), against=AGAINST)


def _flower(
    case: Case, rounds: int, clients: int, plain: Timings, plain_cpu: float, model: torch.nn.Module
) -> list[Result]:
    """The same training on Flower, if it is installed."""
    if not flower.is_installed():
        return []
    told = flower.train(case.name, rounds, clients)
    of = f"{clients} clients, {case.shown}"
    return [
        rate(f"Flower {told.version}, rounds: {of}", rounds, Timings([told.wall_s]), "round/s", plain, AGAINST),
        Result(
            what=f"Flower, CPU of one round, all processes: {of}", value=told.cpu_s / rounds * 1e3, unit="ms",
            baseline=plain_cpu, against=AGAINST,
        ),
        _accuracy(f"Flower, accuracy on held-out rows: {of}", told.accuracy, model, case),
        Result(
            what=f"Flower, before the first round has ended: {of}", value=told.first_s, unit="s",
            baseline=plain.median / rounds, against=f"a round of {AGAINST}",
        ),
        *(
            Result(
                what=f"Flower, memory of {who}: {of}", value=used / 1e6, unit="MB",
                baseline=sum(one.numel() * one.element_size() for one in model.parameters()) / 1e6,
                against="the model",
            )
            for who, used in (("the server", told.server_bytes), ("a client", told.client_bytes))
        ),
    ]  # fmt: skip


def _publish(nodes: dict[str, Server], case: Case) -> None:
    """Each owner's shard, on which Ann's jobs run unasked."""
    for (name, node), shard in zip(nodes.items(), case.shards, strict=True):
        with NodeClient(None, node.address, user=name) as owner:
            for part, tag in zip(shard, ("#X", "#Y"), strict=True):
                owner.publish(part, tags=[f"#{case.name}", tag], jobs=JobPolicy(automatic=("Ann",)))


def _train(grid: PrivateGridNetwork, case: Case, rounds: int, watch: _Watch) -> Fit:
    """One round to warm up, and `rounds` more."""
    network = case.network()
    return grid.train(
        network,
        torch.nn.functional.cross_entropy,
        data=grid.search(f"#{case.name}", "#X"),
        rounds=rounds + 1,
        optimizer=torch.optim.SGD(network.parameters(), lr=LR),
        batch_size=BATCH,
        seed=SEED,
        after_round=watch,
    )


def _plain(case: Case, rounds: int, took: Timings) -> torch.nn.Module:
    """The same, in this process."""
    model = case.network()
    plain_rounds(model, case.shards, 1)
    used, began = time.process_time(), time.perf_counter()
    plain_rounds(model, case.shards, rounds, first=2)
    took.walls.append(time.perf_counter() - began)
    took.cpu["here"] += time.process_time() - used
    return model
