"""Rounds of jobs that stay warm on ten Nodes, beside the same loop in one process."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch

from benchmarks.grid import Grid, Server
from benchmarks.results import Result, rate
from benchmarks.scale import Scale
from benchmarks.timing import in_turns
from grid_jupyter.client.demo import digits
from grid_jupyter.client.jobs import Job
from grid_jupyter.client.node import NodeClient
from grid_jupyter.wire.messages import JobPolicy

MEANING = """\
Ten Nodes hold a tenth of the digits each (the large network: random rows). A job of many rounds is submitted to each \
and runs by its owner's policy; each round, all of them get the weights of the moment, train one epoch in batches of \
32, and send back what came out, which is averaged. The plain loop does the same sums in one process, one shard after \
the other. CPU is that of all processes together: client, Nodes and Workers; on two cores they share what would be \
twenty machines."""

BATCH = 32
LR = 0.1
Shards = dict[str, tuple[torch.Tensor, torch.Tensor]]
Model = Callable[[], torch.nn.Module]


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = [f"node{number}" for number in range(scale(10, 2))]
    try:
        with Grid() as grid:
            nodes = {name: grid.node(name, "--warm", "--spare-workers", "1") for name in names}
            for name, node in nodes.items():
                grid.account(node, name, "Owner")
                grid.account(node, "Ann", "User")
            small = _compare(scale, nodes, digits(names).shards, _small, "64-64-10", scale(50, 2), scale(3, 1))
            shards = {name: (torch.randn(64, 1024), torch.randint(0, 10, (64,))) for name in names}
            large = _compare(scale, nodes, shards, _large, "5.3M parameters", scale(10, 1), 1)
            return [*small, *large]
    finally:
        torch.set_num_threads(threads)


def _small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


def _large() -> torch.nn.Module:
    torch.manual_seed(0)
    wide = 2048
    return torch.nn.Sequential(
        torch.nn.Linear(1024, wide), torch.nn.ReLU(), torch.nn.Linear(wide, 1536), torch.nn.ReLU(),
        torch.nn.Linear(1536, 10),
    )  # fmt: skip


def _compare(
    scale: Scale, nodes: dict[str, Server], shards: Shards, model: Model, named: str, rounds: int, times: int
) -> list[Result]:
    clients = {name: NodeClient(None, node.address, user="Ann") for name, node in nodes.items()}
    trained: dict[str, torch.nn.Module] = {}
    try:
        jobs = {
            name: _submit(node, name, clients[name], shards[name], model(), (times + 2) * rounds)
            for name, node in nodes.items()
        }
        rows = {name: len(shards[name][0]) for name in nodes}
        _rounds(jobs, rows, model(), 1)  # Workers are there now, and torch has warmed up

        def federated() -> None:
            trained["jobs"] = _rounds(jobs, rows, model(), rounds)

        def plain() -> None:
            trained["plain"] = _plain(shards, model(), rounds)

        took = in_turns(
            {"jobs": federated, "plain": plain},
            times,
            {
                "nodes": lambda: sum(node.cpu_s() for node in nodes.values()),
                "workers": lambda: sum(node.below_cpu_s() for node in nodes.values()),
            },
        )
        for job in jobs.values():
            job.cancel()
    finally:
        for client in clients.values():
            client.close()
    cpu = {process: took["jobs"].cpu_each(process) / rounds * 1e3 for process in ("here", "nodes", "workers")}
    against, plain_cpu = "the plain loop in one process", took["plain"].cpu_each("here") / rounds * 1e3
    of = f"{len(nodes)} Nodes, {named}"
    small = model is _small and not scale.quick
    figures = [
        dataclasses.replace(
            rate(f"rounds: {of}", rounds, took["jobs"], "round/s", took["plain"], against),
            ratio_at_least=0.5 if small else None,
            at_least=None if small or scale.quick else 2.0,
        ),
        Result(
            what=f"CPU of one round, all processes: {of}", value=sum(cpu.values()), unit="ms", baseline=plain_cpu,
            against=against, at_most=50.0 if small else None,
        ),
    ]  # fmt: skip
    figures += [
        Result(
            what=f"CPU of one round, {who}: {of}", value=cpu[process], unit="ms", baseline=plain_cpu, against=against
        )
        for process, who in (("here", "the client"), ("nodes", "the Nodes"), ("workers", "the Workers"))
    ]
    return figures


def _submit(
    node: Server, owner: str, client: NodeClient, shard: tuple[torch.Tensor, torch.Tensor], model: torch.nn.Module,
    rounds: int,
) -> Job:  # fmt: skip
    with NodeClient(None, node.address, user=owner) as publisher:
        x, y = (publisher.publish(part, jobs=JobPolicy(automatic=("Ann",))) for part in shard)
        data = {
            "x": next(one for one in client.search() if one._ref.dataset.id == x._ref.dataset.id),
            "y": next(one for one in client.search() if one._ref.dataset.id == y._ref.dataset.id),
        }
    job = client.submit(
        model, loss=torch.nn.CrossEntropyLoss(), data=data, batch_size=BATCH, rounds=rounds, metrics=(),
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
    )  # fmt: skip
    assert job.wait(60.0, until=frozenset({"running"})).info.state == "running", job
    return job


def _rounds(jobs: dict[str, Job], rows: dict[str, int], model: torch.nn.Module, rounds: int) -> torch.nn.Module:
    """Federated averaging by jobs."""
    total = sum(rows.values())
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for _ in range(rounds):
        for job in jobs.values():
            job.begin_round(weights)
        mean = {name: torch.zeros_like(value) for name, value in weights.items()}
        for name, job in jobs.items():
            for part, value in job.end_round().weights.items():
                mean[part].add_(value, alpha=rows[name] / total)
        weights = mean
    model.load_state_dict(weights)
    return model


def _plain(shards: Shards, model: torch.nn.Module, rounds: int) -> torch.nn.Module:
    """Federated averaging by SGD, as plain torch code: shard after shard."""
    shuffle = torch.Generator().manual_seed(0)
    total = sum(len(classes) for _, classes in shards.values())
    for _ in range(rounds):
        mean = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        for inputs, classes in shards.values():
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=LR)
            for batch in torch.randperm(len(inputs), generator=shuffle).split(BATCH):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(local(inputs[batch]), classes[batch]).backward()
                optimizer.step()
            for name, value in local.state_dict().items():
                mean[name].add_(value, alpha=len(classes) / total)
        model.load_state_dict(mean)
    return model
