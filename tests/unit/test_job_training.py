"""What a job's Worker does in its epochs: the ordinary loop's steps, the same bits each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from plan_models import made
from torch import Tensor, nn

from grid_jupyter.errors import RemoteOperationError
from grid_jupyter.plans.models import loss_plan
from grid_jupyter.plans.torch_engine import TorchEngine
from grid_jupyter.wire.jobs import Arguments, Part
from grid_jupyter.worker import training as training_module
from grid_jupyter.worker.jobs import meaning
from grid_jupyter.worker.training import Rows, Training
from grid_jupyter.worker.updates import update_of

ROWS, BATCH = 50, 16


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job(model: nn.Module, loss: Any, x: Tensor, y: Tensor, columns: bool = False, **options: Any) -> Training:
    """A training as a Worker has it, begun."""
    plan = loss_plan(model, loss, inputs=(x[:6], y[:6]))
    started = [*plan.params.values(), *plan.buffers.values()]
    named = (*plan.document.inputs_of("param"), *plan.document.inputs_of("buffer"))
    parts = [
        Part(name=one.name, dtype=one.spec.dtype, shape=tuple(value.shape))
        for one, value in zip(named, started, strict=True)
    ]
    arguments = Arguments(**{"numbers": {"lr": 0.05}, "batch_size": BATCH, "shuffle": False, **options})
    rows = {"x": Rows(list(x.unbind(1)) if columns else [x], columns, x.dtype), "y": Rows([y], False, y.dtype)}
    made_here = Training(plan.document, TorchEngine().load(plan.document).run, parts, rows, arguments)
    with torch.no_grad():
        for part, value in zip(made_here.weights.parts, started, strict=True):
            part.copy_(value)
    made_here.reset()
    return made_here


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())


def halves(seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, :1] > 0).float()


@pytest.mark.parametrize("name", ["logreg", "batch-norm-cnn", "lstm", "gru"])
def test_epochs_are_those_of_the_ordinary_loop_with_a_smaller_batch_at_the_end(name: str):
    model, loss, rows = made(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, y = rows(ROWS)
    ours = job(model, loss, x, y, numbers={"lr": 0.05, "momentum": 0.9})
    told = [ours.epoch(number)["loss"] for number in (1, 2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for mean in told:
        total = 0.0
        for begin in range(0, ROWS, BATCH):
            optimizer.zero_grad()
            value = loss(model(x[begin : begin + BATCH]), y[begin : begin + BATCH])
            value.backward()
            optimizer.step()
            total += value.item() * len(y[begin : begin + BATCH])
        assert mean == pytest.approx(total / ROWS, abs=2e-6)
    for part, value in zip(ours.weights.parts, [*model.parameters(), *model.buffers()], strict=True):
        torch.testing.assert_close(part.detach(), value.detach(), rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    flats = []
    for seed in (3, 3, 4):
        ours = job(linear(), nn.BCELoss(), *halves(), shuffle=True, seed=seed, optimizer="adam")
        ours.epoch(1)
        flats.append(ours.weights.flat.clone())
    assert torch.equal(flats[0], flats[1])
    assert not torch.equal(flats[0], flats[2])


UPDATES: list[tuple[str, dict[str, float]]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "weight_decay": 0.01}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": 1.0, "weight_decay": 0.01}),
    ("adam", {"lr": 0.01}),
    ("adam", {"lr": 0.01, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1}),
    ("adamw", {"lr": 0.01}),
    ("adamw", {"lr": 0.01, "weight_decay": 0.0}),
]


def of_torch(kind: str, params: list[Tensor], numbers: dict[str, float]) -> torch.optim.Optimizer:
    options: dict[str, Any] = {key: value for key, value in numbers.items() if key not in ("beta1", "beta2")}
    if kind == "sgd":
        return torch.optim.SGD(params, **{**options, "nesterov": bool(numbers.get("nesterov"))})
    betas = numbers.get("beta1", 0.9), numbers.get("beta2", 0.999)
    return (torch.optim.Adam if kind == "adam" else torch.optim.AdamW)(params, betas=betas, **options)


@pytest.mark.parametrize(("kind", "numbers"), UPDATES)
def test_parameters_move_to_the_bit_as_by_torch_and_go_on_from_what_was_kept(kind: str, numbers: dict[str, float]):
    torch.manual_seed(0)
    arguments = Arguments(optimizer=kind, numbers=numbers)
    ours = [torch.randn(30, 50), torch.randn(7), torch.randn(())]
    theirs = [one.clone() for one in ours]
    optimizer, update = of_torch(kind, theirs, numbers), update_of(ours, arguments)
    for step in range(6):
        grads = [torch.randn_like(one) for one in ours]
        update.move(grads)
        for other, grad in zip(theirs, grads, strict=True):
            other.grad = grad.clone()
        optimizer.step()
        assert all(map(torch.equal, ours, theirs)), step
        if step == 2:
            state, update = update.state(), update_of(ours, arguments)
            update.restore(state)


class Partly(nn.Module):
    """Has parameters that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = nn.Linear(4, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.used(x))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_what_the_loss_does_not_use_stays_as_it_is_also_where_weights_decay(kind: str):
    """In the plan that is captured it is a buffer; in one that a stranger wrote it may be a parameter."""
    numbers = {"lr": 0.1, "weight_decay": 0.1} | ({"momentum": 0.9} if kind == "sgd" else {})
    model, (x, y) = Partly(), halves()
    plan = loss_plan(model, nn.BCELoss(), inputs=(x[:6], y[:6]))
    assert [one.name for one in plan.document.inputs_of("buffer")] == ["unused.weight", "unused.bias"]
    inputs = tuple(replace(one, role="param") if one.role == "buffer" else one for one in plan.document.inputs)
    for document in (plan.document, replace(plan.document, inputs=inputs)):
        model = Partly()
        started = [dict(model.named_parameters())[one.name] for one in document.inputs_of("param", "buffer")]
        parts = [
            Part(name=one.name, dtype=one.spec.dtype, shape=tuple(value.shape))
            for one, value in zip(document.inputs_of("param", "buffer"), started, strict=True)
        ]
        arguments = Arguments(optimizer=kind, numbers=numbers, batch_size=BATCH, shuffle=False, proximal=0.5)
        rows = {"x": Rows([x], False, x.dtype), "y": Rows([y], False, y.dtype)}
        ours = Training(document, TorchEngine().load(document).run, parts, rows, arguments)
        with torch.no_grad():
            for part, value in zip(ours.weights.parts, started, strict=True):
                part.copy_(value)
        ours.reset()
        ours.epoch(1)
        start = [one.detach().clone() for one in model.parameters()]
        optimizer = of_torch(kind, list(model.parameters()), numbers)
        for begin in range(0, ROWS, BATCH):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy(model(x[begin : begin + BATCH]), y[begin : begin + BATCH])
            loss.backward()
            for one, before in zip(model.parameters(), start, strict=True):
                if one.grad is not None:
                    one.grad.add_(one.detach() - before, alpha=0.5)
            optimizer.step()
        for part, named in zip(ours.weights.parts, started, strict=True):
            torch.testing.assert_close(part.detach(), named.detach(), rtol=0, atol=1e-6)
        assert ours.weights.parts[2].equal(Partly().unused.weight)


def test_columns_are_put_side_by_side_once_or_where_they_are_many_for_each_batch(monkeypatch: pytest.MonkeyPatch):
    x, y = halves()
    flats = []
    for at_once, columns in ((1 << 20, False), (1 << 20, True), (0, True)):
        monkeypatch.setattr(training_module, "_BESIDE_BYTES", at_once)
        ours = job(linear(), nn.BCELoss(), x, y, columns=columns, shuffle=True)
        ours.epoch(1)
        flats.append(ours.weights.flat.clone())
    assert torch.equal(flats[0], flats[1])
    assert torch.equal(flats[0], flats[2])


def test_outputs_that_are_no_probabilities_end_with_what_to_do_about_it():
    model = nn.Linear(4, 1)
    nn.init.constant_(model.bias, 0.5)
    x, y = halves()
    x[:6] = 0  # the rows that the plan is made from
    ours = job(model, nn.BCELoss(), x * 100, y)
    with pytest.raises(RuntimeError) as failed:
        ours.epoch(1)
    told = meaning(failed.value, 1 << 30)
    assert isinstance(told, RemoteOperationError)
    assert "BCEWithLogitsLoss" in str(told)
