"""ONNX Runtime computes plans as torch does, each operation and whole trainings, and refuses what it must."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plan_models import made

from grid_jupyter.errors import DependencyError, PlanInvalidError
from grid_jupyter.plans.check import Limits, infer
from grid_jupyter.plans.document import Document, Input, Node, Output, Ref, Spec
from grid_jupyter.plans.engine import Engine, Training
from grid_jupyter.plans.installed import engine
from grid_jupyter.plans.models import training_plan
from grid_jupyter.plans.onnx_engine import OnnxEngine
from grid_jupyter.plans.onnx_writer import CONVERSIONS
from grid_jupyter.plans.operations import OPERATIONS
from grid_jupyter.plans.shapes import Value
from grid_jupyter.plans.torch_engine import TorchEngine

PACKAGE = Path(__file__).parents[2] / "grid_jupyter"
ONNX = OnnxEngine(threads=1)
Sample = tuple[str, tuple[np.ndarray[Any, Any], ...], tuple[Any, ...]]


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def whole(high: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(high).integers(0, high, shape)


X = normal(3, 4)
Y = normal(4, seed=1)
AWAY = np.array([-5.5, -2.0, -1e-6, 0.0, 1e-6, 0.3, 2.5, 3.5, 40.0], np.float32)
POSITIVE = np.abs(normal(7)) + 1e-3
COUNTS = whole(9, 3, 4) - 4
TRUE = normal(3, 4, seed=5) > 0
IMAGES = normal(2, 4, 7, 8)
TIED = np.maximum(np.round(normal(2, 3, 9, 8)), 0)
x, y, z = Ref(0), Ref(1), Ref(2)


def samples() -> Iterator[Sample]:
    """Each operation of a plan at least once, with the arguments that engines could take differently."""
    for name in ["neg", "abs", "sign", "relu"]:
        yield name, (X,), (x,)
        yield name, (COUNTS,), (x,)
        yield name, (COUNTS.astype(np.int8),), (x,)
    for name in ["floor", "ceil", "round", "trunc"]:
        yield name, (AWAY,), (x,)
        yield name, (COUNTS,), (x,)
    for name in ["exp", "expm1", "sigmoid", "tanh", "erf", "sin", "cos"]:
        yield name, (AWAY[:-1],), (x,)
    for name in ["log", "log1p", "sqrt", "rsqrt", "reciprocal"]:
        yield name, (POSITIVE,), (x,)
    yield "log1p", (np.array([1e-8, -1e-6, 0.0, 1e5, np.inf], np.float32),), (x,)
    yield "expm1", (np.array([1e-8, -1e-6, 0.0, 30.0, -60.0], np.float32),), (x,)
    yield "leaky_relu", (X,), (x, 0.1)
    yield "gelu", (X,), (x, False)
    yield "gelu", (X,), (x, True)
    for name in ["add", "sub", "mul"]:
        yield name, (X, Y), (x, y)
        yield name, (COUNTS, X), (x, y)
        yield name, (COUNTS.astype(np.uint8), COUNTS.astype(np.uint8)), (x, y)
        yield name, (X,), (2.5, x)
        yield name, (COUNTS,), (x, 3)
        yield name, (COUNTS.astype(np.int32),), (x, 0.5)
    for name in ["maximum", "minimum"]:
        yield name, (X, Y), (x, y)
        yield name, (COUNTS, X), (x, y)
    yield "div", (X, Y), (x, y)
    yield "div", (Y,), (1.0, x)
    yield "pow", (POSITIVE,), (x, 2.5)
    yield "pow", (X,), (x, 2)
    yield "pow", (Y,), (0.9, x)
    for name in ["fmod", "remainder"]:
        yield name, (X * 5, Y), (x, y)
        yield name, (X * 5,), (x, -1.5)
    for low, high in ((-0.5, 0.5), (None, 0.1), (0.1, None), (float("-inf"), 0.3)):
        yield "clamp", (X,), (x, low, high)
    yield "clamp", (COUNTS,), (x, -1, 2)
    for name in ["eq", "ne", "lt", "le", "gt", "ge"]:
        yield name, (COUNTS, COUNTS.T.copy().reshape(3, 4)), (x, y)
        yield name, (COUNTS,), (x, 1)
        yield name, (COUNTS,), (x, 0.5)
        yield name, (TRUE, ~TRUE), (x, y)
        yield name, (COUNTS.astype(np.float32), COUNTS), (x, y)
    for name in ["logical_and", "logical_or", "bitwise_and", "bitwise_or"]:
        yield name, (TRUE, TRUE[:, ::-1].copy()), (x, y)
    yield "logical_and", (X, COUNTS), (x, y)
    yield "logical_not", (COUNTS,), (x,)
    yield "bitwise_and", (COUNTS, COUNTS + 1), (x, y)
    yield "bitwise_not", (COUNTS,), (x,)
    yield "bitwise_not", (TRUE,), (x,)
    yield "where", (TRUE, X, Y), (x, y, z)
    yield "where", (TRUE, X), (x, 0.0, y)
    yield "where", (TRUE, COUNTS), (x, y, 7)
    for dtype in ["bool", "uint8", "int32", "int64", "float64"]:
        yield "cast", (np.abs(X) * 9,), (x, dtype)

    yield "mm", (normal(3, 5), normal(5, 2)), (x, y)
    yield "bmm", (normal(4, 3, 5), normal(4, 5, 2)), (x, y)
    yield "addmm", (normal(2), normal(3, 5), normal(5, 2)), (x, y, z)
    yield from convolutions()
    yield from poolings()
    yield from recurrent_layers()
    yield from losses()
    yield "embedding", (normal(6, 3), whole(6, 2, 4)), (x, y)
    yield "embedding_backward", (normal(2, 4, 3), whole(6, 2, 4)), (x, y, 6, -1)
    yield "embedding_backward", (normal(2, 4, 3), whole(6, 2, 4)), (x, y, 6, 2)
    for name in ["softmax", "log_softmax"]:
        yield name, (X,), (x, 1)
        yield name, (X,), (x, 0)
    yield "layer_norm", (X, Y, Y), (x, 1, y, z, 1e-5)
    yield "layer_norm", (X,), (x, 2, None, None, 1e-3)
    channel, spread = normal(4), np.abs(normal(4)) + 0.1
    for training in (True, False):
        yield "batch_norm", (IMAGES, channel, spread), (x, y, y, y, z, training, 0.1, 1e-5)
    yield "batch_norm", (X,), (x, None, None, None, None, True, 0.1, 1e-5)

    for name in ["sum", "amax", "amin"]:
        for data in (X, COUNTS):
            yield name, (data,), (x, (1,), True)
            yield name, (data,), (x, (0, 1), False)
    yield "sum", (TRUE,), (x, (0,), False)
    yield "sum", (COUNTS,), (x, (), False)
    yield "mean", (IMAGES,), (x, (0, 2, 3), True)
    yield "any", (COUNTS > 3,), (x, (1,), False)
    yield "any", (X,), (x, (), True)
    yield "any", (COUNTS,), (x, (0, 1), True)
    for name in ["argmax", "argmin"]:
        yield name, (np.round(X),), (x, 1, False)
        yield name, (X,), (x, 0, True)
    yield "cumsum", (X,), (x, 1)
    yield "cumsum", (TRUE,), (x, 0)

    yield "reshape", (X,), (x, (2, 6))
    yield "permute", (IMAGES,), (x, (2, 0, 3, 1))
    yield "expand", (Y,), (x, (3, 2, 4))
    yield "cat", (X, normal(3, 2)), ((x, y), 1)
    yield "slice", (IMAGES,), (x, 3, 1, 7, 3)
    yield "select", (IMAGES,), (x, 2, 5)
    yield "split", (IMAGES,), (x, (3, 1), 1)
    yield "pad", (IMAGES,), (x, (1, 2, 0, 3), 0.5)
    yield "pad", (IMAGES,), (x, (-1, 2, 3, -2), 0.0)
    yield "flip", (IMAGES,), (x, (1, 3))
    for name in ["tril", "triu"]:
        yield name, (normal(4, 4),), (x, 1)
        yield name, (normal(4, 4) > 0,), (x, -1)

    where = np.array([2, 0, 2, 1])
    yield "index_select", (normal(3, 5), where), (x, 0, y)
    yield "index_add", (normal(3, 5), where, normal(4, 5)), (x, 0, y, z)
    yield "index_add", (normal(5, 3), where, normal(5, 4)), (x, 1, y, z)
    yield "gather", (X, whole(4, 3, 2)), (x, 1, y)
    yield "scatter", (X, np.array([[0, 3], [1, 2], [3, 0]]), normal(3, 2)), (x, 1, y, z)
    yield "scatter", (X, np.array([[0, 3], [1, 2], [3, 0]])), (x, 1, y, 9.0)
    yield "scatter_add", (X, np.array([[0, 0], [1, 2], [3, 3]]), normal(3, 2)), (x, 1, y, z)
    yield "full", (), ((2, 3), 1.5, "float32")
    yield "full", (), ((20, 30), float("-inf"), "float32")
    yield "full", (), ((), 3, "int64")
    yield "arange", (), (0, 7, 2, "int64")
    yield "arange", (), (0.0, 1.0, 0.25, "float32")


def convolutions() -> Iterator[Sample]:
    """stride, padding, dilation, transposed, output padding, groups; each with its gradients."""
    images, lines = IMAGES, normal(2, 4, 9)
    for data, weight, *how in [
        (images, (6, 4, 3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 1),
        (images, (6, 4, 3, 3), (2, 2), (1, 0), (1, 1), False, (0, 0), 1),
        (images, (6, 4, 2, 3), (2, 3), (0, 1), (2, 1), False, (0, 0), 1),
        (images, (4, 1, 3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 4),
        (images, (6, 2, 3, 3), (2, 1), (1, 1), (1, 2), False, (0, 0), 2),
        (images, (5, 4, 1, 1), (2, 2), (0, 0), (1, 1), False, (0, 0), 1),
        (images, (4, 3, 3, 3), (2, 2), (1, 1), (1, 1), True, (1, 0), 1),
        (images, (4, 3, 3, 2), (1, 2), (0, 1), (2, 1), True, (0, 0), 2),
        (lines, (6, 4, 3), (1,), (1,), (1,), False, (0,), 1),
        (lines, (6, 2, 3), (2,), (0,), (2,), False, (0,), 2),
    ]:
        kernel = normal(*weight, seed=3)
        channels = weight[1] * how[-1] if how[3] else weight[0]
        yield "convolution", (data, kernel, normal(channels)), (x, y, z, *how)
        yield "convolution", (data, kernel), (x, y, None, *how)
        result = run(TorchEngine(), "convolution", (data, kernel), (x, y, None, *how))[0]
        gradient = normal(*result.shape, seed=4)
        for wanted in ((True, True, True), (False, True, False), (True, False, True)):
            yield "convolution_backward", (gradient, data, kernel), (x, y, z, *how, wanted)


def recurrent_layers() -> Iterator[Sample]:
    """Forwards and backwards in time, with biases and without, one step and several."""
    for name, gates, states in [("lstm", 4, 2), ("gru", 3, 1), ("rnn", 1, 1)]:
        for steps, reverse in [(1, False), (5, False), (5, True)]:
            given = (normal(steps, 2, 3), *(normal(2, 4, seed=k) for k in range(states)))
            weights = (normal(gates * 4, 3), normal(gates * 4, 4))
            biases = (normal(gates * 4), normal(gates * 4, seed=1))
            refs = tuple(map(Ref, range(states + 5)))
            more = [(True,), (False,)] if name == "rnn" else [()]
            for one in more:
                yield name, (*given, *weights, *biases), (*refs, *one, reverse)
                yield name, (*given, *weights), (*refs[:-2], None, None, *one, reverse)


def losses() -> Iterator[Sample]:
    """As they are, their mean, their sum; with weights; certain and wrong, classes that do not count."""
    sure = np.array([[0.0, 1.0, 0.3, 0.9], [1.0, 0.0, 0.5, 1e-8]], np.float32)
    right = np.array([[0.0, 0.0, 1.0, 0.25], [1.0, 1.0, 0.0, 1.0]], np.float32)
    logits, weight = np.array([[90.0, -90.0, 0.3, -2.0], [0.0, 1e-4, -5.0, 7.0]], np.float32), np.abs(normal(4))
    scores, classes = normal(5, 3), np.array([0, 2, 1, 2, 0])
    for reduction in (0, 1, 2):
        yield "mse_loss", (X, normal(3, 4, seed=2)), (x, y, reduction)
        yield "binary_cross_entropy", (sure, right), (x, y, None, reduction)
        yield "binary_cross_entropy", (sure, right, weight), (x, y, z, reduction)
        yield "binary_cross_entropy_with_logits", (logits, right), (x, y, None, None, reduction)
        yield "binary_cross_entropy_with_logits", (logits, right, weight), (x, y, None, z, reduction)
        yield "binary_cross_entropy_with_logits", (logits, right, weight), (x, y, z, z, reduction)
        yield "nll_loss", (scores, classes), (x, y, None, reduction, -100)
        yield "nll_loss", (scores, classes), (x, y, None, reduction, 2)
        yield "nll_loss", (scores, classes, normal(3)), (x, y, z, reduction, 0)
        yield "nll_loss", (normal(3), np.array(1)), (x, y, None, reduction, -100)


def poolings() -> Iterator[Sample]:
    """Windows beside each other and over each other, with a rest and rounded up; with their gradients."""
    for kernel, stride, padding, dilation, ceil in [
        ((2, 2), (2, 2), (0, 0), (1, 1), False),
        ((3, 2), (3, 2), (0, 0), (1, 1), False),
        ((1, 3), (1, 3), (0, 0), (1, 1), False),
        ((2, 2), (2, 2), (0, 0), (1, 1), True),
        ((3, 3), (2, 2), (1, 1), (1, 1), False),
        ((3, 3), (2, 2), (1, 1), (1, 1), True),
        ((2, 3), (1, 2), (0, 1), (2, 1), False),
    ]:
        how = (kernel, stride, padding, dilation, ceil)
        yield "max_pool2d", (TIED,), (x, *how)
        largest, places = run(TorchEngine(), "max_pool2d", (TIED,), (x, *how))
        yield "max_pool2d_backward", (normal(*largest.shape), TIED, places), (x, y, *how, z)
        if dilation == (1, 1):
            for include, divisor in ((True, None), (False, None), (True, 5)):
                average = (kernel, stride, padding, ceil, include, divisor)
                yield "avg_pool2d", (TIED,), (x, *average)
                yield "avg_pool2d_backward", (normal(*largest.shape), TIED), (x, y, *average)


def document(name: str, arrays: tuple[np.ndarray[Any, Any], ...], arguments: tuple[Any, ...]) -> Document:
    """A function plan that is this operation and nothing else."""
    values = [Value(array.dtype.name, array.shape) for array in arrays]
    inputs = [Input(f"{k}", "arg", Spec(*value)) for k, value in enumerate(values)]
    nodes = []
    if name == "max_pool2d_backward":  # which takes its positions from its own pooling only
        pooled = infer("max_pool2d", arguments[1:-1], values, 1)[1]
        nodes.append(Node("max_pool2d", arguments[1:-1], tuple(Spec(*value) for value in pooled)))
        values += pooled
        arguments = (*arguments[:-1], Ref(len(values) - 1))
    results = infer(name, arguments, values, 1)[1]
    nodes.append(Node(name, arguments, tuple(Spec(*value) for value in results)))
    given = [Output(f"{k}", "result", Ref(len(values) + k)) for k in range(len(results))]
    return Document("function", tuple(inputs), tuple(nodes), tuple(given))


def run(where: Engine[Any], name: str, arrays: Any, arguments: Any) -> list[np.ndarray[Any, Any]]:
    program = where.load(document(name, arrays, arguments))
    return [np.asarray(value) for value in program.run([program.native(array) for array in arrays])]


def test_every_operation_of_a_plan_has_a_form_in_onnx_and_is_tried():
    assert set(CONVERSIONS) == set(OPERATIONS) == {name for name, _, _ in samples()}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_an_operation_gives_in_onnx_what_it_gives_in_torch(name: str):
    for sample in samples():
        if sample[0] == name:
            found, expected = run(ONNX, *sample), run(TorchEngine(), *sample)
            for one, other in zip(found, expected, strict=True):
                assert (one.dtype, one.shape) == (other.dtype, other.shape), sample
                np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6, err_msg=str(sample))


# ------------------------------------------------------------------ trainings


def numbers(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def training(plan: Any, where: Engine[Any]) -> Training[Any]:
    program = where.load(plan.document)
    return Training(
        program,
        *(
            {name: program.native(array) for name, array in numbers(tensors).items()}
            for tensors in (plan.params, plan.buffers, plan.optimiser_state, plan.hyper)
        ),
        seed=7,
    )


def momentum(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


LOOPS = [("logreg", "SGD"), ("mlp", "Adam"), ("cnn", "SGD"), ("lstm", "momentum")]


@pytest.mark.parametrize(("name", "optimizer"), LOOPS)
def test_twenty_steps_in_onnx_are_those_of_the_ordinary_loop(name: str, optimizer: str):
    model, loss, rows = made(name)
    updating = {
        "SGD": lambda: torch.optim.SGD(model.parameters(), lr=0.05),
        "momentum": lambda: momentum(model),
        "Adam": lambda: torch.optim.Adam(model.parameters(), lr=1e-3),
    }[optimizer]()
    ours = training(training_plan(model, loss, updating, inputs=rows(5)), ONNX)
    for _ in range(20):
        inputs, targets = rows(8)
        found = ours.step({"x": inputs.numpy()}, {"y": targets.numpy()}, 8)
        updating.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        updating.step()
        assert float(found["loss"]) == pytest.approx(value.item(), abs=1e-5 if optimizer == "Adam" else 2e-6)
    if optimizer != "Adam":  # which makes a whole step of a gradient that is zero but for rounding
        for key, parameter in model.named_parameters():
            np.testing.assert_allclose(ours.params[key], parameter.detach().numpy(), rtol=0, atol=1e-6)


# ------------------------------------------------------------------ refusals


def sums(shape: tuple[Any, ...] = ("B", 3), declared: tuple[Any, ...] = ("B",)) -> Document:
    return Document(
        "function", (Input("a", "arg", Spec("float32", shape)),),
        (Node("sum", (Ref(0), (1,), False), (Spec("float32", declared),)),), (Output("0", "result", Ref(1)),),
        batch=(1, 64),
    )  # fmt: skip


def test_a_plan_that_lies_about_its_shapes_never_reaches_the_runtime():
    with pytest.raises(PlanInvalidError, match="says that this gives"):
        ONNX.load(sums(declared=("B", 3)))
    with pytest.raises(PlanInvalidError, match="takes more memory than the limit"):
        ONNX.load(sums(), Limits(memory_bytes=8))


def test_values_of_another_dtype_shape_or_batch_are_refused_by_name():
    program = ONNX.load(sums(), Limits(memory_bytes=300))
    with pytest.raises(PlanInvalidError, match=r"arg a is float64\[2, 3\]; the plan takes float32\[2, 3\]"):
        program.run([np.zeros((2, 3))])
    with pytest.raises(PlanInvalidError, match=r"takes float32\[2, 3\]"):
        program.run([np.zeros((2, 4), np.float32)])
    with pytest.raises(PlanInvalidError, match="batches of 1 to 64"):
        program.run([np.zeros((65, 3), np.float32)])
    with pytest.raises(PlanInvalidError, match="more memory"):
        program.run([np.zeros((64, 3), np.float32)])
    assert program.run([np.ones((2, 3), np.float32)])[0].tolist() == [3, 3]


def test_a_run_that_fails_over_a_value_tells_nobody_the_value(capfd: pytest.CaptureFixture[str]):
    program = ONNX.load(document("embedding", (normal(6, 3), whole(6, 4)), (x, y)))
    with pytest.raises(PlanInvalidError) as told:
        program.run([normal(6, 3), np.array([1, 2, 987654, 0])])
    assert "987654" not in str(told.value)
    assert told.value.__suppress_context__
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_outputs_that_are_not_wanted_are_not_computed():
    model, loss, rows = made("logreg")
    plan = training_plan(model, loss, momentum(model), inputs=rows(4))
    program = ONNX.load(plan.document, wanted=lambda role: role == "loss")
    given = {"param": plan.params, "state": plan.optimiser_state, "hyper": plan.hyper}
    inputs, targets = rows(4)
    given |= {"x": {"x": inputs}, "y": {"y": targets}}
    results = program.run([program.native(given[one.role][one.name].detach().numpy()) for one in program.inputs])
    roles = [output.role for output in plan.document.outputs]
    assert [role for role, result in zip(roles, results, strict=True) if result is not None] == ["loss"]


def test_onnx_is_written_here_and_nothing_else_is_handed_to_the_runtime():
    made_at = [
        (path.name, line.strip())
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"InferenceSession\(|onnx\.load|load_model", line)
    ]
    assert len(made_at) == 1
    assert made_at[0][0] == "onnx_engine.py"
    calls = re.findall(r"self\._session\((.*)\), limits", (PACKAGE / "plans" / "onnx_engine.py").read_text())
    assert calls == ["to_onnx(document, wanted)", "onnx_steps.steps_to_onnx(document)"]


def test_an_engine_is_chosen_by_name_or_by_what_is_installed():
    assert engine().name == "torch"
    assert engine("onnx").name == "onnx"
    with pytest.raises(ValueError, match="there is no engine tensorflow"):
        engine("tensorflow")
    with pytest.raises(DependencyError, match="onnxruntime-gpu"):
        engine("onnx", device="cuda")


@pytest.mark.parametrize("dtype", ["bool", "float16", "float64", "int8", "int32", "uint8"])
def test_with_other_dtypes_an_operation_gives_what_the_plan_says_or_is_refused(dtype: str):
    ran = 0
    for name, arrays, arguments in samples():
        with np.errstate(all="ignore"):  # infinite numbers among the samples
            given = tuple(array.astype(dtype) if array.dtype.kind == "f" else array for array in arrays)
        try:
            plan = document(name, given, arguments)
            program = ONNX.load(plan)
        except PlanInvalidError:
            continue
        for output, value in zip(plan.outputs, program.run(given), strict=True):
            spec = plan.specs[output.value]
            assert (value.dtype.name, value.shape) == (spec.dtype, spec.shape), (name, arguments)
        ran += 1
    assert ran > 40


def test_what_onnx_cannot_say_is_refused_by_name():
    with pytest.raises(PlanInvalidError, match="eps"):
        ONNX.load(document("layer_norm", (X,), (x, 1, None, None, float("inf"))))
    wide = (normal(1, 1, 1, 1), normal(1, 1, 40, 40), normal(1, 1, 40, 40))
    how = ((1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False))
    with pytest.raises(PlanInvalidError, match=r"a kernel of \[40, 40\]"):
        ONNX.load(document("convolution_backward", wide, (x, y, z, *how)))
    with pytest.raises(PlanInvalidError, match="bfloat16"):
        ONNX.load(document("cast", (X,), (x, "bfloat16")))


def test_whoever_uses_it_tells_its_makers_nothing(tmp_path: Path):
    uses = "from grid_jupyter.plans.onnx_engine import onnxruntime; onnxruntime.SessionOptions()"
    fresh = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", uses], env=fresh, cwd=tmp_path, check=True)
    assert list(tmp_path.rglob("*")) == []  # it keeps a number of the machine there, and what it has not sent yet
