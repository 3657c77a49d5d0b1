"""torch's operators in their other forms, in place and with `out=`, on a real Node: the same results and gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from both_ways import both
from node_world import GridProcess
from opinfo.compare import Differs, flat, same_result
from opinfo.samples import OPERATORS, calls, dtype_of
from test_opinfo import documented
from test_torch_unchanged import as_many_threads_as_a_worker  # noqa: F401
from torch import nn

from grid_jupyter import NodeClient, VirtualWorker, send
from grid_jupyter.errors import GridError, OperationNotAllowedError

X = torch.linspace(-2, 2, 12).reshape(3, 4)
EVERY = 5
"""One of so many operators is tried with `out=`."""
RANDOM = frozenset(
    {
        "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial",
        "nn.functional.alpha_dropout", "nn.functional.dropout", "nn.functional.feature_alpha_dropout.with_train",
        "nn.functional.rrelu", "normal", "normal.in_place", "uniform",
    }
)  # fmt: skip
"""What these give is another draw."""
RESIZING = frozenset({"addbmm", "empty", "eye", "full", "ones", "randint", "randn", "zeros"})
"""torch resizes what these write to, or would."""
OF_OTHERS = frozenset(
    {
        "linalg.cholesky", "linalg.det", "linalg.eigvalsh", "linalg.inv", "linalg.ldl_factor", "linalg.lu_factor",
        "linalg.matrix_rank", "linalg.matrix_rank.hermitian", "linalg.slogdet", "linalg.solve", "linalg.solve_ex",
        "linalg.svdvals", "logdet", "lu", "msort", "nn.functional.logsigmoid", "normal.number_mean",
    }
)  # fmt: skip
"""With `out=` torch has these write to empty tensors of its own, on this side, or gives a subclass a new result."""


@pytest.fixture(scope="module")
def client(bob: GridProcess) -> Iterator[NodeClient]:
    with bob.client() as made:
        yield made


@pytest.fixture(scope="module")
def worker() -> VirtualWorker:
    return VirtualWorker(id="bob")


def attempt(lines: Callable[[], Any]) -> Any:
    """What the lines give, or the error that they end with."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return lines()
        except (RuntimeError, TypeError, IndexError, GridError) as error:
            return error


def differences(names: list[str], client: NodeClient, one: Callable[[Any, Any], tuple[int, str]]) -> tuple[int, Any]:
    """How many samples of these operators gave a result, and which operators did not do as they do locally."""
    compared, wrong = 0, {}
    for name in names:
        info = OPERATORS[name]
        dtype = dtype_of(info)
        if dtype is None:
            continue
        for call in calls(info, dtype, client.receive, False, 2):
            try:
                same = one(info, call)
            except Differs as error:
                wrong[name] = str(error)
                break
            compared += same[0]
            if same[1]:
                wrong[name] = same[1]
                break
    return compared, wrong


def _short(outcome: Any) -> str:
    return f"{type(outcome).__name__}: {outcome}"[:200] if isinstance(outcome, Exception) else "a result"


def same_outcome(here: Any, there: Any) -> tuple[int, str]:
    if isinstance(here, Exception) or isinstance(there, Exception):
        both_fail = isinstance(here, Exception) and isinstance(there, Exception)
        return 0, "" if both_fail else f"{_short(here)} here, {_short(there)} there"
    same_result(here, there)
    return 1, ""


def test_every_operator_in_place_does_as_it_does_locally(client: NodeClient):
    def one(info: Any, call: Any) -> tuple[int, str]:
        def changed(given: Any) -> Any:
            (first, *rest), keywords = given
            copy = first.clone()
            info.inplace_variant(copy, *rest, **keywords)
            return copy

        return same_outcome(attempt(lambda: changed(call.local)), attempt(lambda: changed(call.remote)))

    left_out = documented() | RANDOM | RESIZING
    names = [name for name in sorted(OPERATORS) if OPERATORS[name].inplace_variant and name not in left_out]
    compared, wrong = differences(names, client, one)
    assert wrong == {}
    assert compared > 240


def test_operators_write_their_results_to_out(client: NodeClient):
    def one(info: Any, call: Any) -> tuple[int, str]:
        made = attempt(lambda: info.op(*call.local[0], **call.local[1]))
        if isinstance(made, Exception) or not all(isinstance(part, torch.Tensor) for part in flat(made)):
            return 0, ""

        def written(given: Any, copy: Callable[[torch.Tensor], Any]) -> Any:
            outs = tuple(copy(torch.zeros(part.shape, dtype=part.dtype)) for part in flat(made))
            info.op(*given[0], **given[1], out=outs[0] if isinstance(made, torch.Tensor) else outs)
            return outs

        here = attempt(lambda: written(call.local, lambda zeros: zeros))
        return same_outcome(here, attempt(lambda: written(call.remote, client.receive)))

    left_out = documented() | RANDOM | RESIZING | OF_OTHERS
    names = [name for name in sorted(OPERATORS) if OPERATORS[name].supports_out and name not in left_out]
    compared, wrong = differences(names[::EVERY], client, one)
    assert wrong == {}
    assert compared > 100


# ------------------------------------------------------------------ gradients, and what people write


def changes_that_autograd_follows(where: Any) -> Any:
    x = where.tensor(X).requires_grad_()
    found = x * 2
    found.sin_()
    found[1:].mul_(3).atan2_(where.tensor(X[1:] + 3))
    found.t()[0].remainder_(2)
    found.tril_()
    found.pow(2).sum().backward()
    return [found, x.grad]


def activations_in_place(where: Any) -> Any:
    found = []
    for layer in (
        nn.ReLU(True), nn.ReLU6(True), nn.ELU(inplace=True), nn.SELU(True), nn.CELU(inplace=True), nn.SiLU(True),
        nn.Mish(True), nn.Hardswish(True), nn.Hardsigmoid(True), nn.Hardtanh(inplace=True), nn.LeakyReLU(0.1, True),
        nn.Threshold(0.1, 2.0, True),
    ):  # fmt: skip
        x = where.tensor(X).requires_grad_()
        layer(x * 1.5).pow(2).sum().backward()
        found.append(x.grad)
    return found


def whole_numbers(where: Any) -> Any:
    x = where.tensor(torch.arange(12))
    x //= 2
    x %= 4
    x |= 8
    x ^= 1
    x &= 13
    x <<= 2
    x >>= 1
    return [x, x << 1, where.tensor(torch.zeros(12, 20)).scatter_(1, x[:, None] % 20, 1.0)]


def diagonals(where: Any) -> Any:
    found = [where.tensor(torch.zeros(shape)) for shape in ((3, 3), (2, 5), (5, 2), (3, 3, 3))]
    turned = where.tensor(torch.ones(4, 6)).t()
    return [one.fill_diagonal_(7.0) for one in (*found, turned)]


def tensors_to_write_to(where: Any) -> Any:
    x, total, places = where.tensor(X), where.tensor(torch.zeros(3)), where.tensor(torch.zeros(3, dtype=torch.int64))
    assert torch.sum(x, 1, out=total) is total
    largest = torch.max(x, 1, out=(where.tensor(torch.zeros(3)), places))
    numbers = torch.arange(0, 6, out=where.tensor(torch.zeros(6, dtype=torch.int64)))
    return [total, *largest, places, numbers, nn.init.eye_(where.tensor(torch.ones(2, 3)))]


def gradients_of_what_is_written(where: Any) -> Any:
    found = []
    for change in (
        torch.Tensor.atan2_, torch.Tensor.remainder_, torch.Tensor.fmod_, torch.Tensor.xlogy_, torch.Tensor.clamp_max_,
    ):  # fmt: skip
        x, w = where.tensor(X.abs() + 0.5), where.tensor(X.flip(0).abs() + 0.3).requires_grad_()
        change(x, w).pow(2).sum().backward()
        found += [x, w.grad]
    return found


def sums_in_the_dtype_of_out(where: Any) -> Any:
    found = []
    for of in (torch.float16, torch.bfloat16, torch.float32, torch.int32):
        x = where.tensor(torch.tensor([300.0, 400.0, 1.0]).to(of))
        for out in (torch.float32, torch.float64):
            one, many = (where.tensor(torch.zeros(shape, dtype=out)) for shape in ((), (3,)))
            found += [torch.sum(x, (0,), out=one).clone(), torch.prod(x, 0, out=one).clone()]
            found += [torch.cumsum(x, 0, out=many).clone(), torch.cumprod(x, 0, out=many)]
            found += [torch.mean(x, (0,), out=one)] if of.is_floating_point else []
    return found


def lists_that_name_a_tensor_twice(where: Any) -> Any:
    x, y = where.tensor(X), where.tensor(X)
    torch._foreach_neg_([x, y, x])
    torch._foreach_neg_([y[0], y])
    return [x, y]


@pytest.mark.parametrize(
    "lines",
    [
        changes_that_autograd_follows, whole_numbers, diagonals, tensors_to_write_to, gradients_of_what_is_written,
        sums_in_the_dtype_of_out, lists_that_name_a_tensor_twice,
    ],
    ids=lambda lines: lines.__name__,
)  # fmt: skip
def test_tensors_are_changed_as_they_are_locally(worker: VirtualWorker, lines: Callable[[Any], Any]):
    both(worker, lines)


def test_activations_in_place_have_the_gradients_that_they_have_locally(worker: VirtualWorker):
    both(worker, activations_in_place, tolerance=1e-6)  # torch's formulas for some go by the result in place


def test_random_numbers_are_drawn_in_place(worker: VirtualWorker):
    x: Any = send(torch.zeros(200), worker)
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        found.append([x.clone().random_(5).get(), x.clone().random_().get(), x.clone().bernoulli_(x + 0.5).get()])
    below, any_number, coins = found[0]
    assert all(one.equal(other) for one, other in zip(*found, strict=True))
    assert set(below.tolist()) == {0, 1, 2, 3, 4}
    assert 2**20 < any_number.max() <= 2**24
    assert 50 < coins.sum() < 150


def test_what_cannot_be_written_is_refused_as_torch_does(worker: VirtualWorker):
    x: Any = send(torch.ones(3), worker)
    for lines, error, words in (
        (lambda: x.clone().requires_grad_().sin_(), RuntimeError, "a leaf that requires grad"),
        (lambda: send(torch.arange(3), worker).sin_(), RuntimeError, "can't be cast"),
        (lambda: x.atan2_(send(torch.ones(2, 3), worker)), RuntimeError, "not resized"),
        (lambda: torch.add(x, 1, out=send(torch.zeros(0), worker)), RuntimeError, "not resized"),
        (lambda: torch.add(x, 1, out=torch.zeros(3)), RuntimeError, "a local tensor cannot be changed"),
        (lambda: torch.add(x.clone().requires_grad_(), 1, out=x), RuntimeError, "no gradient goes through out="),
        (lambda: x.resize_(4), OperationNotAllowedError, "own storage"),
    ):
        with pytest.raises(error, match=words):
            lines()
    assert x.tolist() == [1, 1, 1]
