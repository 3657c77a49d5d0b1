"""Plans that train: twenty steps are those of eager PyTorch, whatever the batch size; what is captured is named."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from planinfo.layers import entries
from planinfo.trial import AGREES, REFUSED, trial
from torch import Tensor, nn
from unit.plan_models import CASES, made

from grid_jupyter.errors import NotCapturableError, PlanInvalidError
from grid_jupyter.plans import composites
from grid_jupyter.plans.check import Limits, check
from grid_jupyter.plans.derived import DerivedTraining, derive_step
from grid_jupyter.plans.engine import Feed
from grid_jupyter.plans.models import inference_plan, loss_plan, training_plan
from grid_jupyter.plans.optimisers import SGD, Adam, optimiser_of
from grid_jupyter.plans.plan import Plan
from grid_jupyter.plans.reader import read_plan
from grid_jupyter.plans.torch_engine import TorchEngine

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for one another cost small tensors more than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def step_of(name: str, optimiser: str) -> Plan:
    model, loss, rows = made(name)
    without_dropout(model)
    return training_plan(model, loss, OPTIMISERS[optimiser](model.parameters()), inputs=rows(6))


@functools.cache
def loss_of(name: str) -> Plan:
    model, loss, rows = made(name)
    return loss_plan(without_dropout(model), loss, inputs=rows(6))


SIZES = [16] * 9 + [2] + [16] * 10


def without_dropout(model: nn.Module) -> nn.Module:
    """Eager torch draws other random numbers than a plan is given, so the two can be compared without them alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((float((a[name].double() - b[name].double()).abs().max()) for name in a), default=0.0)


def eager(name: str, optimiser: str, steps: list[tuple[Tensor, Tensor]]) -> tuple[nn.Module, list[float]]:
    model, loss, _ = made(name)
    without_dropout(model).train()
    optimizer = OPTIMISERS[optimiser](model.parameters())
    losses = []
    for x, y in steps:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return model, losses


def compared(name: str, optimiser: str, derived: bool) -> tuple[float, float, float]:
    """How far parameters, buffers and losses are from eager ones after the steps."""
    _, _, rows = made(name)
    steps = [rows(size) for size in SIZES]
    training: Any
    if derived:
        plan = loss_of(name)
        rule = optimiser_of(OPTIMISERS[optimiser]([torch.zeros(1)]))
        training = DerivedTraining(plan.document, rule, plan.params, plan.buffers)
    else:
        training = step_of(name, optimiser).training()
    losses = [float(training.step({"x": x}, {"y": y}, len(x))["loss"]) for x, y in steps]
    expected, eager_losses = eager(name, optimiser, steps)
    of_params = apart(training.params, {k: v.detach() for k, v in expected.named_parameters()})
    of_buffers = apart(training.buffers, dict(expected.named_buffers()))
    return of_params, of_buffers, max(abs(a - b) for a, b in zip(losses, eager_losses, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_those_of_eager_torch(name: str):
    params, buffers, losses = compared(name, "sgd", derived=False)
    assert params < 1e-6
    assert buffers < 1e-6
    assert losses < 2e-6


@pytest.mark.parametrize("optimiser", ["momentum", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("name", ["logreg", "regression"])
def test_every_optimiser_moves_as_torchs_own(name: str, optimiser: str):
    params, _, losses = compared(name, optimiser, derived=False)
    # Adam turns a gradient that is zero but for rounding into a step of lr
    assert params < (1e-6 if "ada" not in optimiser else 1e-4)
    assert losses < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_steps_that_are_derived_from_forward_and_loss_are_those_of_eager_torch(name: str):
    params, buffers, losses = compared(name, "momentum", derived=True)
    assert params < 1e-6
    assert buffers < 1e-6
    assert losses < 2e-6


class Recurrent(nn.Module):
    """Every kind of recurrent layer: both directions, several layers with dropout between, with biases and without."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, bidirectional=True, dropout=drop, batch_first=True)
        self.gru, self.relu = nn.GRU(8, 4, bias=False), nn.RNN(4, 5, nonlinearity="relu", bidirectional=True)
        self.last = nn.RNN(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gru(self.lstm(x)[0].transpose(0, 1))[0]
        return self.last(self.relu(h)[0])[1][0]


LOSSES: dict[str, tuple[Any, Callable[[int], Tensor]]] = {
    "mse": (nn.MSELoss(), lambda b: torch.randn(b, 2)),
    "mse, summed": (nn.MSELoss(reduction="sum"), lambda b: torch.randn(b, 2)),
    "bce": (lambda o, y: nn.functional.binary_cross_entropy(o.sigmoid(), y, y + 0.5), lambda b: torch.rand(b, 2)),
    "bce with logits": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 0.5])), lambda b: torch.rand(b, 2)),
    "nll": (nn.CrossEntropyLoss(torch.tensor([0.3, 1.0]), ignore_index=1), lambda b: torch.arange(b) % 2),
    "nll, smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), lambda b: torch.arange(b) % 2),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_layers_and_losses_that_stay_whole_are_one_operation_and_learn_as_eager_ones(loss: str):
    torch.manual_seed(0)
    model, (function, targets) = Recurrent(), LOSSES[loss]
    steps = [(torch.randn(b, 5, 3), targets(b)) for b in (6, 6, 4, 1, 6)]
    plan = loss_plan(model, function, inputs=steps[0], metrics=())
    kinds = [node.operation for node in plan.document.nodes]
    assert [kinds.count(kind) for kind in ("lstm", "gru", "rnn")] == [4, 1, 3]
    assert len(kinds) < 50
    rule = SGD(lr=0.05, momentum=0.9)
    training, optimizer = DerivedTraining(plan.document, rule, plan.params, {}), rule.build(model.parameters())
    for x, y in steps:
        optimizer.zero_grad()
        value = function(model(x), y)
        value.backward()
        optimizer.step()
        assert float(training.step({"x": x}, {"y": y}, len(x))["loss"]) == pytest.approx(value.item(), abs=2e-6)
    assert apart(training.params, {k: v.detach() for k, v in model.named_parameters()}) < 1e-6


def test_torch_is_as_always_in_other_threads_while_a_model_is_traced():
    model, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    grads: list[Tensor] = []

    def learn() -> None:
        model(x)[0].sum().backward()
        grads.append(model.weight_hh_l0.grad.clone())  # type: ignore[union-attr]

    learn()
    model.zero_grad()
    with composites.in_place(whole=True):
        thread = threading.Thread(target=learn)
        thread.start()
        thread.join()
    assert torch.equal(*grads)


def normed() -> tuple[nn.Module, Any, Callable[[int], tuple[Tensor, Tensor]]]:
    """Every layer that forward plans have as one operation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 12),
        nn.BatchNorm1d(12),
        nn.GELU(),
        nn.LayerNorm(12),
        nn.GELU("tanh"),
        nn.Dropout(0.3),
        nn.Linear(12, 3),
    )
    return model, nn.CrossEntropyLoss(), lambda b: (torch.randn(b, 8), torch.randint(3, (b,)))


def recurrent() -> tuple[nn.Module, Any, Callable[[int], tuple[Tensor, Tensor]]]:
    """Every recurrent layer, and a loss, that forward plans have as one operation; dropout between them."""
    torch.manual_seed(0)
    return Recurrent(drop=0.3), nn.BCEWithLogitsLoss(), lambda b: (torch.randn(b, 2, 3), torch.rand(b, 2))


@pytest.mark.parametrize(
    "make", [normed, recurrent, functools.partial(made, "batch-norm-cnn")], ids=["normed", "recurrent", "cnn"]
)
def test_a_derived_step_as_a_plan_is_the_step_that_is_captured(make: Any):
    model, loss, rows = make()
    rule = SGD(lr=0.05, momentum=0.9)
    whole = training_plan(model, loss, rule, inputs=rows(6))
    derived = derive_step(loss_plan(model, loss, inputs=rows(6)).document, rule)
    x, y = rows(9)
    results = []
    for document in (whole.document, derived):
        program = TorchEngine().load(document)
        given = {"param": whole.params, "buffer": whole.buffers, "state": whole.optimiser_state,
                 "x": {"x": x}, "y": {"y": y}, "hyper": whole.hyper}  # fmt: skip
        values = program.run(Feed(program, seed=3).values(given, 9))
        results.append({(one.role, one.name): value for one, value in zip(document.outputs, values, strict=True)})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.01)])
def test_a_training_goes_on_from_its_state_as_if_it_had_not_stopped(rule: Any):
    plan, (_, _, rows) = loss_of("mlp"), made("mlp")
    steps = [rows(16) for _ in range(6)]
    whole = DerivedTraining(plan.document, rule, plan.params, plan.buffers)
    first = DerivedTraining(plan.document, rule, plan.params, plan.buffers)
    for x, y in steps[:3]:
        whole.step({"x": x}, {"y": y}, 16)
        first.step({"x": x}, {"y": y}, 16)
    second = DerivedTraining(plan.document, rule, first.params, first.buffers, first.state)
    for x, y in steps[3:]:
        whole.step({"x": x}, {"y": y}, 16)
        second.step({"x": x}, {"y": y}, 16)
    assert apart(whole.params, second.params) == 0


def test_inference_is_the_models_own_in_evaluation_mode():
    for name in ("batch-norm-cnn", "transformer"):
        model, _, rows = made(name)
        plan = inference_plan(model, inputs=rows(4)[0])
        x = rows(10)[0]
        model.eval()
        torch.testing.assert_close(plan(x), model(x).detach(), rtol=1e-4, atol=1e-6)
        assert not plan.document.inputs_of("noise")


def test_capture_leaves_the_model_as_it_was():
    model, loss, rows = made("batch-norm-cnn")
    model.eval()
    model[1].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training_plan(model, loss, SGD(), inputs=rows(6))
    assert apart(before, model.state_dict()) == 0
    assert [module.training for module in model.modules()].count(True) == 1
    assert torch.nn.functional.linear.__module__ != "grid_jupyter.plans.composites"


def test_noise_is_an_input_and_the_same_seed_gives_the_same_steps():
    model, loss, rows = made("batch-norm-cnn")
    plan = training_plan(model, loss, SGD(0.1), inputs=rows(6))
    assert len(plan.document.inputs_of("noise")) == 1
    x, y = rows(8)
    told = []
    for seed in (1, 1, 2):
        training = plan.training(seed=seed)
        told.append([float(training.step({"x": x}, {"y": y}, 8)["loss"]) for _ in range(3)])
    assert told[0] == told[1] != told[2]


def test_a_plan_that_was_sent_runs_as_the_one_that_was_made():
    document = step_of("lstm", "sgd").document
    again = read_plan(document.to_bytes())
    assert again == document
    for size in (1, 2, 3, 64, 500):
        assert check(again, size).memory_bytes > 0


def test_batch_norm_needs_two_rows_and_the_plan_says_so():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    loss = nn.CrossEntropyLoss()
    plan = training_plan(model, loss, SGD(), inputs=(torch.randn(6, 3), torch.randint(2, (6,))))
    assert plan.document.batch[0] == 2
    assert loss_plan(model, loss, inputs=(torch.randn(6, 3), torch.randint(2, (6,)))).document.batch[0] == 2


def test_a_batch_that_does_not_fit_is_refused_with_both_shapes():
    training = step_of("mlp", "sgd").training()
    with pytest.raises(PlanInvalidError, match=r"x x is float32\[4, 5\]; the plan takes float32\[4, 784\]"):
        training.step({"x": torch.randn(4, 5)}, {"y": torch.zeros(4, dtype=torch.int64)}, 4)
    with pytest.raises(PlanInvalidError, match="y y is float32"):
        training.step({"x": torch.randn(4, 784)}, {"y": torch.zeros(4)}, 4)
    with pytest.raises(PlanInvalidError, match="batches of 1 to 4096"):
        training.step({"x": torch.zeros(5000, 784)}, {"y": torch.zeros(5000, dtype=torch.int64)}, 5000)


def test_an_engine_keeps_to_the_limits_that_it_was_given():
    with pytest.raises(PlanInvalidError, match="memory"):
        TorchEngine().load(step_of("mlp", "sgd").document, Limits(memory_bytes=1 << 20))


def test_several_inputs_are_named_by_their_places():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.left(left) + self.right(right)

    model, a, b, y = Two(), torch.randn(5, 3), torch.randn(5, 4), torch.randn(5, 2)
    for given, names in (((a, b), ["x.0", "x.1"]), ({"right": b, "left": a}, ["x.left", "x.right"])):
        plan = loss_plan(model, nn.MSELoss(), inputs=(given, y))
        assert [one.name for one in plan.document.inputs_of("x")] == names
        assert plan(a, b, y).item() == pytest.approx(nn.MSELoss()(model(a, b), y).item(), rel=1e-5)


# ------------------------------------------------------------------ what cannot be captured


def test_what_cannot_be_captured_is_named():
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output.sort(0).values - y).square().mean()

    with pytest.raises(NotCapturableError, match="sort"):
        loss_plan(nn.Linear(3, 1), loss, inputs=(torch.randn(5, 3), torch.randn(5, 1)))
    with pytest.raises(NotCapturableError, match="mask"):
        loss_plan(nn.Linear(3, 1), lambda o, y: o[y > 0].mean(), inputs=(torch.randn(5, 3), torch.randn(5, 1)))
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(4, 2, 3), torch.tensor([4, 2]))
    with pytest.raises(NotCapturableError, match="packed sequences"):
        inference_plan(Packed(packed), inputs=torch.randn(2, 3))
    with pytest.raises(NotCapturableError, match="RMSprop"):
        optimiser_of(torch.optim.RMSprop(nn.Linear(2, 2).parameters()))
    with pytest.raises(NotCapturableError, match="scalar"):
        loss_plan(nn.Linear(3, 1), lambda o, y: o, inputs=(torch.randn(5, 3), torch.randn(5, 1)))


class Packed(nn.Module):
    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.packed, self.layer = packed, nn.LSTM(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.packed)[0].data + x.sum()


def test_a_function_that_counts_rows_is_refused():
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] > 6 else x

    class Cubes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.shape[0] ** 3

    for model in (Counts(), Cubes()):
        with pytest.raises(NotCapturableError, match="batch"):
            inference_plan(model, inputs=torch.randn(4, 3))


def test_a_capture_that_is_wrong_is_never_given_to_anybody(monkeypatch: pytest.MonkeyPatch):
    from grid_jupyter.plans import torch_kernels

    monkeypatch.setitem(torch_kernels.KERNELS, "relu", torch_kernels.KERNELS["neg"])
    model, loss, rows = made("mlp")
    with pytest.raises(NotCapturableError, match="differs from torch's"):
        training_plan(model, loss, SGD(), inputs=rows(6))


@pytest.mark.parametrize("name", ["Conv2d reflect", "GroupNorm", "KLDivLoss", "roll", "index by a constant", "RMSNorm"])
def test_layers_of_the_sweep_agree(name: str):
    assert trial(name, entries()[name]).outcome == AGREES


@pytest.mark.parametrize("name", ["Conv3d", "AdaptiveAvgPool2d, not dividing", "topk"])
def test_layers_of_the_sweep_are_refused_with_a_reason(name: str):
    verdict = trial(name, entries()[name])
    assert verdict.outcome == REFUSED
    assert "plan" in verdict.reason
