"""Operations on remote tensors beside the same on local ones: small additions, reads, training steps, many sessions."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from websockets.sync.client import ClientConnection, connect

from benchmarks.grid import Grid, Server
from benchmarks.results import Result
from benchmarks.scale import Scale
from benchmarks.sessions import Order, adds
from benchmarks.timing import Timings, in_turns
from grid_jupyter.client.node import NodeClient
from grid_jupyter.tensors.modules import send_module
from grid_jupyter.tensors.remote import send
from grid_jupyter.tensors.session import Session

MEANING = """\
Operations are streamed: the client sends them without waiting, in frames of up to 256, and only reading a value \
waits for the Node. So a chain of operations runs as fast as the slowest of client, Node and Worker, which is much \
slower than local torch for tiny tensors and nearly as fast for work worth sending away; a program that reads after \
every operation runs at the speed of round trips instead. Local torch and a Node's Worker use the same number of \
threads here, but client, Node and Worker share the cores of one machine, where they would have two machines in \
earnest."""

STREAMED = 2000
BATCH = 64
Step = Callable[[], torch.Tensor]


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # as a Node gives to each of its Workers
    try:
        with Grid() as grid:
            node, baseline = grid.node("Bob"), grid.baseline()
            token = grid.account(node, "Ana", "User")
            with NodeClient(None, node.address, user="Ana", credentials=grid.credentials) as client:
                results = [
                    *_additions(scale, node, client.session),
                    *_round_trips(scale, baseline, client.session),
                    *_training(scale, node, client.session),
                ]
            return [*results, *_sessions(scale, node, token)]
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------ small additions


def _additions(scale: Scale, node: Server, session: Session) -> list[Result]:
    local = torch.ones(5)
    remote = send(local, session)
    count = scale(STREAMED, 200)
    took = in_turns(
        {"local": lambda: adds(local, count).tolist(), "remote": lambda: adds(remote, count).tolist()},
        scale(40, 2),
        {"node": node.cpu_s, "workers": node.below_cpu_s},
    )
    what = f"{count:,} additions of 5 elements and one read"
    here = took["local"].cpu_each("here") / count
    return [
        _rate(what, count, took["remote"], "op/s", took["local"], "local torch"),
        *(
            Result(
                what=f"CPU of one such addition, {name}",
                value=took["remote"].cpu_each(process) / count * 1e6,
                unit="µs",
                baseline=here * 1e6,
                against="local torch, the whole of it",
            )
            for process, name in (("here", "client"), ("node", "Node"), ("workers", "Worker"))
        ),
    ]  # fmt: skip


def _rate(what: str, count: int, took: Timings, unit: str, base: Timings, against: str) -> Result:
    return Result(
        what=what,
        value=count / took.median,
        best=count / took.best,
        unit=unit,
        baseline=count / base.median,
        baseline_best=count / base.best,
        against=against,
    )


# ------------------------------------------------------------------ round trips


def _round_trips(scale: Scale, baseline: Server, session: Session) -> list[Result]:
    x = send(torch.ones(5), session)
    count = scale(200, 20)

    def replies() -> None:
        y = x
        for _ in range(count):
            y = y + x
            y.tolist()

    def reads() -> None:
        for _ in range(count):
            x.tolist()

    with _echo(baseline) as echo:

        def echoes() -> None:
            for _ in range(count):
                echo.send(b"." * 40)
                echo.recv()

        took = in_turns({"replies": replies, "reads": reads, "echoes": echoes}, scale(25, 2))
    one = {name: dataclasses.replace(t, walls=[wall / count * 1e3 for wall in t.walls]) for name, t in took.items()}
    return [
        _rate("additions with a read after each", count, took["replies"], "op/s", took["echoes"], _ECHO),
        Result(
            what="a read of 5 elements, there and back",
            value=one["reads"].median,
            best=one["reads"].best,
            unit="ms",
            baseline=one["echoes"].median,
            baseline_best=one["echoes"].best,
            against=_ECHO,
        ),
    ]


_ECHO = "WebSocket echo by tornado"


def _echo(baseline: Server) -> ClientConnection:
    return connect(f"{baseline.address.replace('http', 'ws', 1)}/echo", compression=None, proxy=None)


# ------------------------------------------------------------------ training steps


def _training(scale: Scale, node: Server, session: Session) -> list[Result]:
    results: list[Result] = []
    for name, make, shape, optimizer, steps in (
        ("MLP 784-128-10, SGD", _mlp, (784,), _sgd, scale(60, 2)),
        ("MLP 784-128-10, Adam", _mlp, (784,), _adam, scale(60, 2)),
        ("CNN of 2 convolutions, SGD", _cnn, (1, 28, 28), _sgd, scale(15, 2)),
    ):
        results += _steps(name, make, shape, optimizer, steps, scale(7, 1), node, session)
    return results


def _mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


def _cnn() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(400, 10),
    )  # fmt: skip


def _sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def _adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def _steps(
    name: str,
    make: Callable[[], torch.nn.Module],
    shape: tuple[int, ...],
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
    steps: int,
    runs: int,
    node: Server,
    session: Session,
) -> list[Result]:
    """Steps a second, once with the loss read after the last step only, and once after each."""
    inputs, classes = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    local = _step(make(), inputs, classes, optimizer)
    remote = _step(send_module(make(), session), send(inputs, session), send(classes, session), optimizer)

    def at_the_end(step: Step) -> Callable[[], object]:
        return lambda: [step() for _ in range(steps)][-1].item()

    def after_each(step: Step) -> Callable[[], object]:
        return lambda: [step().item() for _ in range(steps)]

    took = in_turns(
        {
            "local": at_the_end(local),
            "remote": at_the_end(remote),
            "local, read": after_each(local),
            "remote, read": after_each(remote),
        },
        runs,
        {"workers": node.below_cpu_s},
    )
    return [
        _rate(name, steps, took["remote"], "step/s", took["local"], "local torch"),
        _rate(f"{name}, .item() each step", steps, took["remote, read"], "step/s", took["local, read"], "local torch"),
        *(
            Result(
                what=f"{name}: CPU of one step, {who}",
                value=took["remote"].cpu_each(process) / steps * 1e3,
                unit="ms",
                baseline=took["local"].cpu_each("here") / steps * 1e3,
                against="local torch, the whole of it",
            )
            for process, who in (("here", "client"), ("workers", "Worker"))
        ),
    ]  # fmt: skip


def _step(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    classes: torch.Tensor,
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
) -> Step:
    updating = optimizer(model)

    def step() -> torch.Tensor:
        updating.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), classes)
        loss.backward()
        updating.step()
        return loss.detach()

    return step


# ------------------------------------------------------------------ sessions at once


def _sessions(scale: Scale, node: Server, token: str) -> list[Result]:
    many = scale(10, 2)
    order = Order(node.address, token, (1, many), scale(20_000, 200), scale(5, 1))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sessions"],
        input=json.dumps(dataclasses.asdict(order)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    walls = {int(count): walls for count, walls in json.loads(done.stdout).items()}
    total = {count: [count * order.adds / wall for wall in walls[count]] for count in walls}
    return [
        Result(
            what=f"{many} sessions at once, each {order.adds:,} additions: all of them together",
            value=statistics.median(total[many]),
            best=max(total[many]),
            unit="op/s",
            baseline=statistics.median(total[1]),
            baseline_best=max(total[1]),
            against="one session alone",
        )
    ]
