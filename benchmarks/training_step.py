"""Training steps of small networks on a Node: the unchanged loop, the same loop recorded, and local torch."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import grid_jupyter as sy
from benchmarks.grid import Grid, Server
from benchmarks.results import Result, milliseconds
from benchmarks.scale import Scale
from benchmarks.timing import Timings, in_turns
from grid_jupyter.client.node import NodeClient
from grid_jupyter.tensors.modules import send_module
from grid_jupyter.tensors.remote import send
from grid_jupyter.tensors.session import Session

MEANING = """\
One step is zero_grad, forward, cross entropy, backward and the optimiser, on a batch of 64 that is there already; \
the loss is read after every 50th step, or after each. *Unchanged* is the loop as one writes it for local torch: each \
operation is a command that the client describes. *Recorded* is the same function under `sy.recording`: one command a \
step, and no Python of the model or the optimiser runs anywhere, which brings it near to local torch even where the \
network is small; the Worker compiles it, so that its kernels run without autograd around them (decision 0014). A \
loop that reads its loss in each step asks for it as soon as it is made (decision 0012) and waits for less than a \
round trip; the read of a recorded step, which is made at its end, waits for all of one. Local torch and the Worker \
use the same number of threads. Workers keep freed memory, which local torch gives back to the kernel and takes \
again; that alone makes a step of the convolutional network cheaper there. Client, Node and Worker share the cores of \
one machine, where they would have two machines in earnest: on busy cores three processes wait more often than one \
does, so that the CPU times below, of all processes together, tell more than the wall times. Workers compute on the \
CPU."""

BATCH = 64
READ_EVERY = 50
_REST_S = 4.0
Step = Callable[[], torch.Tensor]
Optimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Task:
    """A network and how it is trained; the targets are the most that a step may take, in local torch's time."""

    name: str
    model: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    optimizer: Optimizer
    steps: int
    unchanged: float | None
    recorded: float | None
    read_each: float | None


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # as a Node gives to each of its Workers
    try:
        with Grid() as grid:
            node = grid.node("Bob")
            grid.account(node, "Ana", "User")
            with NodeClient(None, node.address, user="Ana", credentials=grid.credentials) as client:
                if not scale.quick:
                    _wait_for_rest(node, client.session)
                return [result for task in _tasks(scale) for result in _compare(task, scale, node, client.session)]
    finally:
        torch.set_num_threads(threads)


def _wait_for_rest(node: Server, session: Session) -> None:
    """The first session wakes the fork server, which loads what only jobs need as soon as nobody asks it anything."""
    send(torch.ones(1), session).get()
    used, since = node.below_cpu_s(), time.monotonic()
    while time.monotonic() - since < _REST_S:
        time.sleep(0.1)
        now = node.below_cpu_s()
        if now - used > 0.02:
            used, since = now, time.monotonic()


def _tasks(scale: Scale) -> list[Task]:
    steps, few = scale(100, 4), scale(50, 4)
    return [
        Task("MLP, SGD", _mlp, (784,), _sgd, steps, 1.6, 0.95, 3.0),
        Task("MLP, Adam", _mlp, (784,), _adam, steps, 1.9, None, 3.0),
        Task("MLP, fused Adam", _mlp, (784,), _fused_adam, steps, 1.9, 0.95, 3.0),
        Task("CNN, SGD", _cnn, (1, 28, 28), _sgd, few, 1.25, 1.05, None),
    ]


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


def _fused_adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)


def _compare(task: Task, scale: Scale, node: Server, session: Session) -> list[Result]:
    inputs, classes = torch.randn(BATCH, *task.shape), torch.randint(0, 10, (BATCH,))

    def remote() -> Step:
        return _step(send_module(task.model(), session), send(inputs, session), send(classes, session), task.optimizer)

    steps: dict[str, Step] = {"local": _step(task.model(), inputs, classes, task.optimizer), "unchanged": remote()}
    if task.recorded is not None:
        steps["recorded"] = sy.recording(remote())
        for _ in range(4):
            steps["recorded"]()
    works: dict[str, Callable[[], object]] = {
        **{name: _loop(step, task.steps, READ_EVERY) for name, step in steps.items()},
        **{f"{name}, read": _loop(step, task.steps, 1) for name, step in steps.items()},
    }
    took = in_turns(works, scale(15, 1), {"node": node.cpu_s, "workers": node.below_cpu_s})
    results = []
    for how, target in (("unchanged", task.unchanged), ("recorded", task.recorded)):
        if how in steps:
            results.append(_time(f"{task.name}: {how}", took[how], took["local"], task.steps, target))
            each = task.read_each if how == "unchanged" else None
            results.append(
                _time(
                    f"{task.name}: {how}, .item() each step",
                    took[f"{how}, read"],
                    took["local, read"],
                    task.steps,
                    each,
                )
            )
            results.append(_cpu(f"{task.name}: {how}, CPU of all processes", took[how], took["local"], task.steps))
    return results


def _loop(step: Step, steps: int, every: int) -> Callable[[], object]:
    def loop() -> None:
        for number in range(1, steps + 1):
            loss = step()
            if number % every == 0 or number == steps:
                loss.item()

    return loop


def _time(what: str, took: Timings, local: Timings, steps: int, target: float | None) -> Result:
    found = milliseconds(what, took, local, "local torch", each=steps)
    return found if target is None else dataclasses.replace(found, at_most=target * found.baseline)


def _cpu(what: str, took: Timings, local: Timings, steps: int) -> Result:
    return Result(
        what=what,
        value=sum(took.cpu_each(process) for process in ("here", "node", "workers")) / steps * 1e3,
        unit="ms",
        baseline=local.cpu_each("here") / steps * 1e3,
        against="local torch",
    )


def _step(model: torch.nn.Module, inputs: torch.Tensor, classes: torch.Tensor, optimizer: Optimizer) -> Step:
    updating = optimizer(model)

    def step() -> torch.Tensor:
        updating.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), classes)
        loss.backward()
        updating.step()
        return loss.detach()

    return step
