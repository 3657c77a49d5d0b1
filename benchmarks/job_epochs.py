"""Epochs as a job's Worker trains them, beside the same epochs by the ordinary loop: steps in a second of CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plan_engines import BATCH, Task, one_thread, tasks
from benchmarks.results import Result
from benchmarks.scale import Scale
from benchmarks.timing import in_turns
from grid_jupyter.client.demo import digits
from grid_jupyter.plans.models import loss_plan
from grid_jupyter.plans.plan import Plan
from grid_jupyter.plans.torch_engine import TorchEngine
from grid_jupyter.wire.jobs import Arguments, Part
from grid_jupyter.worker.training import Rows, Training

MEANING = """\
An epoch is what a job does with its data once: rows in a shuffled order, in batches of 64, forward, loss, gradient \
and update of each, and the mean of the losses; with one thread, in this process, as the Worker of a job does it from \
a plan of forward and loss. The *ordinary loop* draws an order as well, indexes the rows, and does not look at its \
losses. Rates are steps in a second of CPU. The networks are those of `plan_engines`, and the digits with a network \
of 64-64-10: by SGD, momentum and Adam, with accuracy, and with the 64 pixels as columns of a table. What a job costs \
besides, its messages and its weights, is in `federated_jobs`."""

ENOUGH = 0.9
Loss = Callable[[Tensor, Tensor], Tensor]


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    with one_thread():
        found = [_task(task, scale) for task in tasks()[: scale(7, 2)]]
        return found + [_digits(name, given, scale) for name, given in _digits_cases().items()]


def _task(task: Task, scale: Scale) -> Result:
    torch.manual_seed(0)
    model = task.model()
    batches = [task.rows() for _ in range(max(2, task.steps // 4))]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return _compare(
        task.name, model, task.loss, x, y, Arguments(numbers={"lr": 0.05}, batch_size=BATCH), task.least, scale
    )


def _digits_cases() -> dict[str, dict[str, Any]]:
    return {
        "digits, SGD": {"numbers": {"lr": 0.1}},
        "digits, momentum": {"numbers": {"lr": 0.1, "momentum": 0.9}},
        "digits, Adam": {"numbers": {"lr": 0.01}, "optimizer": "adam"},
        "digits, SGD, accuracy told": {"numbers": {"lr": 0.1}, "metrics": ("accuracy",)},
        "digits, SGD, of 64 columns": {"numbers": {"lr": 0.1}},
    }


def _digits(name: str, given: dict[str, Any], scale: Scale) -> Result:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x, y = digits(["all"]).shards["all"]
    loss = nn.functional.cross_entropy
    return _compare(
        name, model, loss, x, y, Arguments(**given, batch_size=BATCH), ENOUGH, scale, columns="columns" in name
    )


def _compare(
    name: str, model: nn.Module, loss: Loss, x: Tensor, y: Tensor, arguments: Arguments, least: float, scale: Scale,
    columns: bool = False,
) -> Result:  # fmt: skip
    plan = loss_plan(model, loss, inputs=(x[:4], y[:4]), metrics=arguments.metrics)
    rows = {"x": Rows(list(x.unbind(1)) if columns else [x], columns, x.dtype), "y": Rows([y], False, y.dtype)}
    job = _job(plan, rows, arguments)
    kind = torch.optim.Adam if arguments.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(model.parameters(), **arguments.numbers)  # type: ignore[arg-type]
    shuffle = torch.Generator().manual_seed(0)

    def ordinary() -> None:
        for batch in torch.randperm(len(x), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            loss(model(x[batch]), y[batch]).backward()
            optimizer.step()

    took = in_turns({"ordinary": ordinary, "job": lambda: job.epoch(1)}, scale(15, 1))
    steps = -(-len(x) // BATCH)
    return Result(
        what=f"{name}: epochs of a job",
        value=steps / took["job"].cpu_each("here"),
        unit="steps/CPU s",
        baseline=steps / took["ordinary"].cpu_each("here"),
        against="the ordinary loop",
        ratio_at_least=least,
    )


def _job(plan: Plan, rows: dict[str, Rows], arguments: Arguments) -> Training:
    """A training as worker/jobs.py begins it."""
    document = plan.document
    inputs = (*document.inputs_of("param"), *document.inputs_of("buffer"))
    started = [*plan.params.values(), *plan.buffers.values()]
    parts = [
        Part(name=one.name, dtype=one.spec.dtype, shape=tuple(value.shape))
        for one, value in zip(inputs, started, strict=True)
    ]
    wanted = {"loss", "buffer", *(["metric"] if arguments.metrics else [])}
    program = TorchEngine().load(document, wanted=wanted.__contains__)
    job = Training(document, program.run, parts, rows, arguments)
    with torch.no_grad():
        for part, value in zip(job.weights.parts, started, strict=True):
            part.copy_(value)
    job.reset()
    return job
