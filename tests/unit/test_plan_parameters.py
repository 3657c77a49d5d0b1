"""Which parameters a plan trains: those that eager torch moves; and gradients that forward and loss do not have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grid_jupyter.client.submitting import check_moves
from grid_jupyter.errors import BadRequest, NotCapturableError
from grid_jupyter.plans.derived import DerivedTraining, derive_step
from grid_jupyter.plans.engine import Training
from grid_jupyter.plans.models import loss_plan, training_plan
from grid_jupyter.plans.optimisers import SGD, optimiser_of
from grid_jupyter.plans.torch_engine import TorchEngine

ROWS = 8
X = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(ROWS) % 3
LOSS = nn.CrossEntropyLoss()
STEPS = 3
OPTIMISERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1),
}


class Model(nn.Module):
    """Two layers, the first of which may be kept from gradients, and one that nothing uses."""

    def __init__(self, first: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.unused = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(2, 2)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.first(self.a, x)))


def without_gradient(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def frozen() -> Model:
    model = Model()
    model.a.requires_grad_(False)
    return model


MODELS: dict[str, Callable[[], Model]] = {
    "a layer that nothing uses": Model,
    "a layer that is frozen": frozen,
    "a layer behind detach()": lambda: Model(lambda layer, x: layer(x).detach()),
    "a layer in no_grad()": lambda: Model(without_gradient),
}


def eager(model: nn.Module, params: Iterable[Tensor], optimiser: str) -> dict[str, Tensor]:
    optimizer = OPTIMISERS[optimiser](params)
    for _ in range(STEPS):
        optimizer.zero_grad()
        LOSS(model(X), Y).backward()
        optimizer.step()
    return {name: one.detach() for name, one in model.named_parameters()}


def same(training: Any, expected: dict[str, Tensor]) -> None:
    for _ in range(STEPS):
        training.step({"x": X}, {"y": Y}, ROWS)
    found = {**training.params, **training.buffers}
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("name", "optimiser"), [*((name, "sgd") for name in MODELS), (next(iter(MODELS)), "adamw")])
def test_a_plan_moves_the_parameters_that_eager_torch_moves_and_no_others(name: str, optimiser: str):
    model = MODELS[name]()
    rule = optimiser_of(OPTIMISERS[optimiser](model.parameters()))
    step = training_plan(model, LOSS, rule, inputs=(X[:5], Y[:5]))
    forward = loss_plan(model, LOSS, inputs=(X[:5], Y[:5]))
    still = copy.deepcopy(model)
    expected = eager(model, model.parameters(), optimiser)
    same(step.training(), expected)
    same(DerivedTraining(forward.document, rule, forward.params, forward.buffers), expected)
    whole = TorchEngine().load(derive_step(forward.document, rule))
    same(Training(whole, forward.params, forward.buffers, rule.init(forward.params), step.hyper), expected)
    assert expected["unused.weight"].equal(still.unused.weight)


def test_a_training_step_moves_what_its_optimiser_has():
    model = Model()
    optimizer = OPTIMISERS["sgd"](model.b.parameters())
    step = training_plan(model, LOSS, optimizer, inputs=(X, Y))
    same(step.training(), eager(model, model.b.parameters(), "sgd"))
    assert set(step.params) == {"b.weight", "b.bias"}
    settings = OPTIMISERS["sgd"]([torch.zeros(1)])
    assert len(training_plan(model, LOSS, settings, inputs=(X, Y)).params) == 4


def test_a_job_whose_optimiser_lacks_what_would_be_trained_is_refused_with_what_to_do():
    model = Model()
    trained = set(loss_plan(model, LOSS, inputs=(X, Y)).params)
    with pytest.raises(BadRequest, match=r"does not have a.bias and 1 more.*requires_grad_\(False\)"):
        check_moves(torch.optim.SGD(model.b.parameters(), lr=0.1), model, trained)
    model.a.requires_grad_(False)
    trained = set(loss_plan(model, LOSS, inputs=(X, Y)).params)
    check_moves(torch.optim.SGD(model.b.parameters(), lr=0.1), model, trained)
    check_moves(SGD(lr=0.1), model, trained)


def test_gradients_that_a_model_stops_or_changes_on_their_way_are_named():
    straight_through = Model(lambda layer, x: layer(x) + (torch.sign(layer(x)) - layer(x)).detach())
    with pytest.raises(NotCapturableError, match=r"gradient of a\.\w+ is not that of forward and loss.*training_plan"):
        loss_plan(straight_through, LOSS, inputs=(X, Y))
    step = training_plan(straight_through, LOSS, SGD(lr=0.1, momentum=0.9, weight_decay=0.1), inputs=(X, Y))
    same(step.training(), eager(straight_through, straight_through.parameters(), "sgd"))

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 5 * gradient

    with pytest.raises(NotCapturableError, match=r"autograd\.Function"):
        loss_plan(Model(lambda layer, x: Doubled.apply(layer(x))), LOSS, inputs=(X, Y))


def test_a_model_with_nothing_to_train_is_refused():
    for model in (
        Model(lambda layer, x: layer(x)).requires_grad_(False),
        nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)),
    ):
        target = (
            nn.CrossEntropyLoss() if isinstance(model, Model) else lambda scores, y: (scores.argmax(1) == y).sum() * 1.0
        )
        with pytest.raises(NotCapturableError, match="nothing to train"):
            loss_plan(model, target, inputs=(X, Y))
