"""Many steps in one run of ONNX Runtime come to the same bits as one after the other, and refuse the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from grid_jupyter.client.device import _Plan, _train, _values
from grid_jupyter.errors import GridError, InvalidDataError, PlanInvalidError
from grid_jupyter.plans.check import Limits, check
from grid_jupyter.plans.engine import Program, Training
from grid_jupyter.plans.models import training_plan
from grid_jupyter.plans.onnx_engine import OnnxEngine, OnnxSteps
from grid_jupyter.plans.plan import Plan

ENGINE = OnnxEngine(threads=1)
Rows = dict[str, dict[str, Any]]
OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "one frozen": lambda model: torch.optim.SGD(list(model.parameters())[2:], lr=0.1),
}


def plan_of(model: nn.Module, optimiser: str = "sgd") -> Plan:
    """A step on rows of 6 numbers and one of 3 classes."""
    example = torch.randn(4, 6), torch.randint(3, (4,))
    return training_plan(model, nn.functional.cross_entropy, OPTIMISERS[optimiser](model), inputs=example)


@functools.cache
def known(optimiser: str, norm: bool) -> tuple[nn.Module, Plan, Program[Any], OnnxSteps]:
    model = network(norm=norm)
    plan = plan_of(model, optimiser)
    return model, plan, ENGINE.load(plan.document), ENGINE.load_steps(plan.document)


def network(*, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    between: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *between, nn.ReLU(), nn.Linear(8, 3))


def rows_of(plan: Plan, count: int) -> Rows:
    random = numpy.random.default_rng(count)
    made: dict[str, Any] = {"x": random.standard_normal((count, 6), numpy.float32), "y": random.integers(3, size=count)}
    return {role: {one.name: made[role] for one in plan.document.inputs_of(role)} for role in ("x", "y")}


def begun(plan: Plan, model: nn.Module) -> dict[str, dict[str, Any]]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    return _values(plan.document, arrays, {"lr": 0.1})


def one_after_the_other(step: Program[Any], values: dict[str, dict[str, Any]], rows: Rows, batches: list[Any]) -> Any:
    training = Training(step, *(values[role] for role in ("param", "buffer", "state", "hyper")))
    told = []
    for batch in batches:
        x, y = ({name: array[batch] for name, array in rows[role].items()} for role in ("x", "y"))
        told.append({name: float(value) for name, value in training.step(x, y, len(batch)).items()})
    return training, told


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        numpy.testing.assert_array_equal(array, right[name])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("count", "size"), [(12, 4), (13, 5), (3, 8)])
def test_many_steps_come_to_the_bits_of_one_after_the_other(optimiser: str, norm: bool, count: int, size: int):
    model, plan, step, steps = known(optimiser, norm)
    rows, order = rows_of(plan, 20), numpy.random.default_rng(1).permutation(20)[:count]
    training, told = one_after_the_other(
        step, begun(plan, model), rows, [order[at : at + size] for at in range(0, count, size)]
    )
    found = steps.run({**begun(plan, model), **rows}, order, size)
    for role, expected in (("param", training.params), ("buffer", training.buffers), ("state", training.state)):
        same({**begun(plan, model)[role], **found.get(role, {})}, dict(expected))
    for role in ("loss", "metric"):
        for name, values in found.get(role, {}).items():
            assert values.tolist() == [one[name] for one in told]


@pytest.mark.parametrize(
    ("config", "epochs", "batches"),
    [
        ({}, 1, [20]),
        ({"batch_size": 6}, 1, [6, 6, 6, 2]),
        ({"batch_size": 6, "max_updates": 2}, 3, [6, 6]),
        ({"batch_size": 8, "max_updates": 4}, 2, [8, 8, 4, 8]),
        ({"batch_size": 1, "max_updates": 19}, 1, [1] * 19),  # more than one run has
        ({"batch_size": 7, "proximal_mu": 0.5, "lr": 0.1}, 1, [7, 7, 6]),
    ],
)
def test_a_device_takes_the_steps_that_its_configuration_says(config: dict[str, Any], epochs: int, batches: list[int]):
    model, plan, step, _ = known("momentum", False)
    rows, values = rows_of(plan, 20), begun(plan, model)
    random = numpy.random.default_rng(5)
    samples, steps, told = _train(_Plan(ENGINE, plan.document), values, rows, config, epochs, random)

    random, left, orders = numpy.random.default_rng(5), list(batches), []
    random.integers(1 << 62)
    for _ in range(epochs):
        order, at = random.permutation(20), 0
        while left and at < 20:
            orders.append(order[at : at + left[0]])
            at += left.pop(0)
    training, each = one_after_the_other(step, begun(plan, model), rows, orders)
    assert (samples, steps) == (len(set(numpy.concatenate(orders).tolist())), len(batches))
    if "proximal_mu" in config:  # pulled back to where it began
        assert not numpy.array_equal(values["param"]["0.weight"], training.params["0.weight"])
        return
    same(values["param"], dict(training.params))
    assert told == {name: sum(one[name] for one in each) / steps for name in each[0]}


def test_a_last_batch_that_is_too_small_for_the_plan_is_left_out():
    model = network(norm=True)  # of one row there is no variance
    plan = plan_of(model)
    least = plan.document.batch[0]
    assert least == 2
    for count, size, steps in ((9, 4, 2), (10, 4, 3), (8, 4, 2)):
        made = _train(
            _Plan(ENGINE, plan.document), begun(plan, model), rows_of(plan, count), {"batch_size": size}, 1,
            numpy.random.default_rng(0),
        )  # fmt: skip
        assert made[1] == steps
    for count, size in ((1, 4), (9, 1)):
        with pytest.raises(InvalidDataError, match="fewer than the 2"):
            _train(
                _Plan(ENGINE, plan.document), begun(plan, model), rows_of(plan, count), {"batch_size": size}, 1,
                numpy.random.default_rng(0),
            )  # fmt: skip


def test_what_one_step_refuses_many_refuse_in_the_same_words():
    model, plan, _, steps = known("sgd", False)
    rows, order = rows_of(plan, 20), numpy.arange(20)
    (y,) = rows["y"]
    values = begun(plan, model)
    for wrong in (
        {**values, **rows, "param": {**values["param"], "0.bias": numpy.zeros(9, numpy.float32)}},
        {**values, **rows, "y": {y: rows["y"][y].astype(numpy.int32)}},
    ):
        with pytest.raises(PlanInvalidError, match="the plan takes"):
            steps.run(wrong, order, 6)
    with pytest.raises(PlanInvalidError, match="an index among the data"):
        steps.run({**values, **rows, "y": {y: rows["y"][y] + 900}}, order, 6)
    tight = ENGINE.load_steps(plan.document, Limits(memory_bytes=check(plan.document, 2).memory_bytes))
    assert tight.run({**values, **rows}, order, 2)
    with pytest.raises(GridError):
        tight.run({**values, **rows}, order, 20)


def test_noise_is_drawn_and_large_models_are_trained_a_step_at_a_time(monkeypatch: pytest.MonkeyPatch):
    noisy = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert _Plan(ENGINE, plan_of(noisy).document).steps is None
    _, plan, *_ = known("momentum", False)
    nbytes = 2 * 4 * (6 * 8 + 8 + 8 * 3 + 3)  # the model's, and the momentum's
    for most, together in ((nbytes, True), (nbytes - 1, False)):
        monkeypatch.setattr("grid_jupyter.client.device._SMALL", most)
        assert (_Plan(ENGINE, plan.document).steps is not None) == together
