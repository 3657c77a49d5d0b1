"""Attacks on the lineage of values: every way found so far to make private bytes look as if they came from nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch

from grid_jupyter.errors import GetNotPermittedError, GridError, InvalidMessageError, LimitExceededError
from grid_jupyter.ops.allowed import ALLOWED
from grid_jupyter.ops.kernels import kernel, overload
from grid_jupyter.wire import commands as c
from grid_jupyter.wire import frames
from grid_jupyter.worker.executor import Broken, Executor
from grid_jupyter.worker.session import bits

SECRET = torch.tensor([3.25, -7.5, 11.0])
NONE = ["c", None]
ON = ["c", True]


class Session:
    """An executor driven by hand-written commands. Values of a data set derive from source 0."""

    def __init__(self) -> None:
        self.executor = Executor()
        self._ids = iter(range(100, 10_000))
        self._templates = iter(range(10_000))

    def feed(self, *batch: Any) -> None:
        self.executor.feed(frames.encode(list(batch)))

    def new_id(self) -> int:
        return next(self._ids)

    def public(self, *values: Any, **options: Any) -> int:
        return self._put(torch.tensor(*values, **options), 0)

    def private(self, tensor: torch.Tensor = SECRET, source: int = 0) -> int:
        return self._put(tensor.clone(), 1 << source)

    def published(self, tensor: torch.Tensor = SECRET) -> int:
        """A data set as a session maps it: nobody writes to it."""
        identity = self.new_id()
        self.executor.put(identity, tensor.clone(), 1, frozen=True)
        return identity

    def _put(self, tensor: torch.Tensor, sources: int) -> int:
        identity = self.new_id()
        self.executor.put(identity, tensor, sources)
        return identity

    def leaf(self, *values: Any) -> int:
        identity = self.public(*values)
        self.feed([c.REQUIRE_GRAD, identity, True])
        return identity

    def op(self, name: str, args: list[Any], *operands: Any, out: Any = None, kwargs: Any = ()) -> Any:
        template, result = next(self._templates), self.new_id() if out is None else out
        full = name if name.count(".") == 2 else f"aten.{name}"
        self.feed([c.DEFINE, template, full, args, list(kwargs)], [template, result, *operands])
        return result

    def mul(self, a: int, b: int) -> int:
        return int(self.op("mul.Tensor", ["r", "r"], a, b))

    def add(self, a: int, b: int) -> int:
        return int(self.op("add.Tensor", ["r", "r"], a, b))

    def sum(self, a: int) -> int:
        return int(self.op("sum.default", ["r"], a))

    def write(self, target: int, value: int) -> None:
        """target += value, in place."""
        self.op("add_.Tensor", ["r", "r"], target, value, out=0)

    def backward(self, loss: int, seed: int = 0, create: bool = False) -> None:
        self.feed([c.BACKWARD, loss, seed, create, create])

    def grad_of(self, identity: int) -> int:
        result = self.new_id()
        self.feed([c.GRAD_OF, result, identity])
        return result

    def sources(self, identity: int) -> int:
        return self.executor.lineage((identity,))

    def value(self, identity: int) -> torch.Tensor:
        found = self.executor.read(identity)
        assert not isinstance(found, Broken), found
        return found.tensor

    def is_safe(self, identity: int) -> bool:
        """Whether a stranger who reads this value learns nothing of the secret: it is marked, or free of it."""
        found = self.executor.read(identity)
        if found.sources:
            return True
        if isinstance(found, Broken):
            return True
        shown = {round(abs(float(x)), 3) for x in found.tensor.double().flatten()}
        offsets = (0.0, 1.0, 2.0, 4.0)
        secrets = {round(abs(float(s) + k), 3) for s in SECRET for k in offsets}
        return not shown & secrets


@pytest.fixture
def s() -> Session:
    return Session()


# ------------------------------------------------------------------ the plain rules


def test_a_result_derives_from_all_arguments(s: Session):
    both = s.add(s.private(), s.private(source=3))
    assert s.sources(both) == 0b1001


def test_writing_a_private_value_into_a_public_one_marks_every_view_of_it(s: Session):
    base = s.public([0.0, 0.0, 0.0])
    view = s.op("slice.Tensor", ["r", "d", "d", "d"], base, 0, 0, 2)
    again = s.op("view.default", ["r", "d"], base, [3, 1])
    s.write(view, s.op("slice.Tensor", ["r", "d", "d", "d"], s.private(), 0, 0, 2))
    assert s.sources(base) == s.sources(view) == s.sources(again) == 1


@pytest.mark.parametrize("how", ["_unsafe_view", "unsafe_split", "alias", "detach", "expand", "unbind", "view.dtype"])
def test_no_alias_escapes_its_storage(s: Session, how: str):
    base = s.public([0.0, 0.0, 0.0])
    alias = s.new_id()
    {
        "_unsafe_view": lambda: s.op("_unsafe_view.default", ["r", "d"], base, [3], out=alias),
        "unsafe_split": lambda: s.op("unsafe_split.Tensor", ["r", "d"], base, 3, out=[alias]),
        "alias": lambda: s.op("alias.default", ["r"], base, out=alias),
        "detach": lambda: s.op("detach.default", ["r"], base, out=alias),
        "expand": lambda: s.op("expand.default", ["r", "d"], base, [1, 3], out=alias),
        "unbind": lambda: s.op("unbind.int", ["r"], base, out=[alias, s.new_id(), s.new_id()]),
        "view.dtype": lambda: s.op("view.dtype", ["r", ["t", "int32"]], base, out=alias),
    }[how]()
    s.write(base, s.private())
    assert s.is_safe(alias)


def test_an_out_form_is_a_write(s: Session):
    out = s.public([0.0, 0.0, 0.0])
    s.op("maximum.out", ["r", "r"], s.private(), s.public([-99.0] * 3), out, out=0, kwargs=[["out", "r"]])
    assert s.value(out).tolist() == SECRET.tolist()
    assert s.sources(out) == 1


def test_a_list_in_place_form_is_a_write(s: Session):
    targets = [s.public([0.0] * 3), s.public([0.0] * 3)]
    refs = ["L", ["r", "r"]]
    s.op("_foreach_add_.List", [refs, refs], *targets, s.public([0.0] * 3), s.private(), out=0)
    assert s.sources(targets[1]) == 1


@pytest.mark.parametrize("name", ["native_batch_norm.default", "_native_batch_norm_legit.default"])
def test_the_statistics_of_a_batch_norm_derive_from_its_input(s: Session, name: str):
    mean, var = s.public([0.0]), s.public([1.0])
    x = s.private(SECRET.reshape(3, 1))
    outs = [s.new_id() for _ in range(3)]
    s.op(name, ["r", NONE, NONE, "r", "r", ON, "d", "d"], x, mean, var, 1.0, 1e-5, out=outs)
    assert s.value(mean).item() == pytest.approx(SECRET.mean().item())
    assert all(s.sources(identity) == 1 for identity in (mean, var, *outs))


@pytest.mark.parametrize("name", ["where.self", "index.Tensor", "gather.default", "masked_fill.Scalar"])
def test_choosing_by_private_positions_makes_the_choice_private(s: Session, name: str):
    positive = s.op("gt.Scalar", ["r", "d"], s.private(), 0)
    ones, twos = s.public([1.0] * 3), s.public([2.0] * 3)
    positions = s.op("_to_copy.default", ["r"], positive, kwargs=[["dtype", ["t", "int64"]]])
    chosen = {
        "where.self": lambda: s.op(name, ["r", "r", "r"], positive, ones, twos),
        "index.Tensor": lambda: s.op(name, ["r", ["L", ["r"]]], ones, positions),
        "gather.default": lambda: s.op(name, ["r", "d", "r"], ones, 0, positions),
        "masked_fill.Scalar": lambda: s.op(name, ["r", "r", "d"], ones, positive, 2),
    }[name]()
    assert s.sources(chosen) == 1


def test_published_data_is_never_written_to(s: Session):
    data = s.published()
    view = s.op("slice.Tensor", ["r", "d", "d", "d"], data, 0, 0, 2)
    before = s.value(data).clone()
    s.op("zero_.default", ["r"], view, out=0)
    s.op("_foreach_zero_.default", [["L", ["r"]]], data, out=0)
    s.op("maximum.out", ["r", "r"], data, data, data, out=0, kwargs=[["out", "r"]])
    assert torch.equal(s.value(data), before)
    [earlier] = s.executor.earlier()
    assert earlier.error.code == "operation-not-allowed"


def test_published_data_is_no_gradient_that_backward_adds_to(s: Session):
    data, leaf = s.published(), s.leaf([1.0, 1.0, 1.0])
    s.feed([c.SET_GRAD, leaf, data])
    s.backward(s.sum(leaf))
    assert torch.equal(s.value(data), SECRET)


# ------------------------------------------------------------------ autograd


def test_a_gradient_derives_from_the_loss(s: Session):
    leaf = s.leaf([1.0, 1.0, 1.0])
    s.backward(s.sum(s.mul(leaf, s.private())))
    assert s.sources(s.grad_of(leaf)) == 1


def test_a_gradient_that_is_summed_over_two_losses_derives_from_both(s: Session):
    leaf = s.leaf([1.0, 1.0, 1.0])
    s.backward(s.sum(s.mul(leaf, s.private())))
    s.backward(s.sum(s.mul(leaf, s.private(source=1))))
    assert s.sources(s.grad_of(leaf)) == 0b11


def test_a_leaf_known_by_another_id_keeps_the_lineage_of_its_gradient(s: Session):
    first = s.public([1.0, 1.0, 1.0])
    second = s.op("mul_.Scalar", ["r", "d"], first, 1.0)  # the same tensor object under a further id
    s.feed([c.REQUIRE_GRAD, first, True], [c.FREE, first])
    s.backward(s.sum(s.mul(second, s.private())))
    assert s.is_safe(s.grad_of(second))


def test_an_id_that_is_used_again_does_not_inherit_a_harmless_gradient(s: Session):
    harmless, guilty = s.leaf([1.0, 1.0, 1.0]), s.leaf([1.0, 1.0, 1.0])
    s.backward(s.sum(harmless))
    s.backward(s.sum(s.mul(guilty, s.private())))
    s.feed([c.GRAD_MODE, False])
    s.op("mul_.Scalar", ["r", "d"], guilty, 1.0, out=harmless)
    assert s.is_safe(s.grad_of(harmless))


def test_a_backward_pass_that_fails_half_way_still_marks_what_it_reached(s: Session):
    reached, other = s.leaf([1.0, 1.0, 1.0]), s.leaf([1.0, 1.0, 1.0])
    saved = s.public([1.0, 1.0, 1.0])
    breaks = s.mul(other, saved)
    s.op("mul_.Scalar", ["r", "d"], saved, 2.0, out=0)  # autograd will find that it changed, and raise
    s.backward(s.sum(s.add(breaks, s.mul(reached, s.private()))))
    assert s.is_safe(s.grad_of(reached))
    s.backward(s.sum(reached))  # adds to what is there already
    assert s.is_safe(s.grad_of(reached))


def test_a_gradient_kept_with_its_graph_is_marked_anew(s: Session):
    leaf = s.leaf([1.0, 1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells, once in a process, of a cycle that this makes
        s.backward(s.sum(leaf), create=True)
        s.backward(s.sum(s.mul(leaf, s.private())), create=True)
    assert s.is_safe(s.grad_of(leaf))


def test_a_gradient_does_not_share_the_storage_of_the_seed(s: Session):
    leaf, seed = s.leaf([[1.0], [1.0], [1.0]]), s.public([1.0, 1.0, 1.0])
    s.backward(s.op("view.default", ["r", "d"], leaf, [3]), seed)
    gradient = s.grad_of(leaf)
    s.write(seed, s.private())
    assert s.is_safe(gradient)


def test_what_autograd_grad_returns_does_not_share_the_storage_of_the_seed(s: Session):
    leaf, seed, result = s.leaf([[1.0], [1.0], [1.0]]), s.public([1.0, 1.0, 1.0]), s.new_id()
    view = s.op("view.default", ["r", "d"], leaf, [3])
    s.feed([c.GRADIENTS, [result], [view], [seed], [leaf], False, False])
    s.write(seed, s.private())
    assert s.is_safe(result)


def test_gradients_of_two_leaves_do_not_share_a_storage(s: Session):
    a, b = s.leaf([[1.0], [1.0], [1.0]]), s.leaf([[1.0, 1.0, 1.0]])
    y = s.add(s.op("view.default", ["r", "d"], a, [3]), s.op("view.default", ["r", "d"], b, [3]))
    s.backward(s.sum(s.mul(y, y)))
    of_a, of_b = s.grad_of(a), s.grad_of(b)
    s.write(of_a, s.op("view.default", ["r", "d"], s.private(), [3, 1]))
    assert s.is_safe(of_b)


def test_a_gradient_that_was_assigned_is_marked_when_backward_adds_to_it(s: Session):
    leaf, given = s.leaf([1.0, 1.0, 1.0]), s.public([0.0, 0.0, 0.0])
    s.feed([c.SET_GRAD, leaf, given])
    s.backward(s.sum(s.mul(leaf, s.private())))
    assert s.is_safe(given)
    assert s.is_safe(s.grad_of(leaf))


def test_a_gradient_can_be_swapped_without_losing_where_it_came_from(s: Session):
    a, b = s.leaf([1.0, 1.0, 1.0]), s.leaf([1.0, 1.0, 1.0])
    s.backward(s.sum(s.mul(a, s.private())))
    s.feed([c.SET_GRAD, b, s.grad_of(a)], [c.SET_GRAD, a, 0])
    assert s.sources(s.grad_of(b)) == 1
    s.backward(s.sum(a))
    assert s.sources(s.grad_of(a)) == 0, "a fresh gradient of a public loss is public"


def test_the_gradient_of_an_inner_value_is_marked(s: Session):
    inner = s.op("mul.Scalar", ["r", "d"], s.leaf([1.0, 1.0, 1.0]), 2.0)
    s.feed([c.RETAIN_GRAD, inner])
    s.backward(s.sum(s.mul(inner, s.private())))
    assert s.is_safe(s.grad_of(inner))


def _written_behind_autograds_back(s: Session, how: str) -> tuple[int, int]:
    """A public value that a graph saves, and the graph's loss; then the value is overwritten with a secret."""
    leaf, saved = s.leaf([1.0, 1.0, 1.0]), s.public([0.0, 0.0, 0.0])
    alias = s.new_id()
    if how == "_unsafe_view":
        s.op("_unsafe_view.default", ["r", "d"], saved, [3], out=alias)
    elif how == "unsafe_split":
        s.op("unsafe_split.Tensor", ["r", "d"], saved, 3, out=[alias])
    loss = s.sum(s.mul(leaf, saved))
    rows = s.private(torch.stack([SECRET, SECRET]))
    if how in ("_unsafe_view", "unsafe_split"):
        s.write(alias, s.private())
    elif how == "rrelu_with_noise":
        s.op(
            "rrelu_with_noise.default", ["r", "r", "d", "d", ON],
            s.op("neg.default", ["r"], s.op("abs.default", ["r"], s.private())), saved, 0.1, 0.3, out=s.new_id(),
        )  # fmt: skip
    elif how == "_fused_sgd_":
        one = ["L", ["r"]]
        options = [[n, "d"] for n in ("weight_decay", "momentum", "lr", "dampening")]
        flags = [["nesterov", ["c", False]], ["maximize", ON], ["is_first_step", ON]]
        s.op(
            "_fused_sgd_.default", [one, one, ["L", []]], saved, s.private(), 0.0, 0.0, 1.0, 0.0,
            out=0, kwargs=[*options, *flags],
        )  # fmt: skip
    else:
        var, outs = s.public([1.0] * 3), [s.new_id() for _ in range(3)]
        s.op(f"{how}.default", ["r", NONE, NONE, "r", "r", ON, "d", "d"], rows, saved, var, 1.0, 1e-5, out=outs)
    return leaf, loss


@pytest.mark.parametrize(
    "how",
    [
        "_unsafe_view",
        "unsafe_split",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "rrelu_with_noise",
        "_fused_sgd_",
    ],
)
def test_a_graph_does_not_take_in_what_was_written_after_it_was_made(s: Session, how: str):
    leaf, loss = _written_behind_autograds_back(s, how)
    s.backward(loss)
    assert s.is_safe(s.grad_of(leaf))


def test_batch_norm_still_trains(s: Session):
    weight, bias = s.leaf([1.0, 1.0]), s.leaf([0.0, 0.0])
    mean, var, outs = s.public([0.0, 0.0]), s.public([1.0, 1.0]), [s.new_id() for _ in range(3)]
    x = torch.tensor([[1.0, 5.0], [2.0, 9.0], [4.0, 1.0]])
    layer = torch.nn.BatchNorm1d(2)
    expected = layer(x)
    (expected**2).sum().backward()
    args = ["r", "r", "r", "r", "r", ON, "d", "d"]
    for _ in range(2):  # a second pass before backward, as a model that is applied twice makes it
        s.op("native_batch_norm.default", args, s._put(x, 0), weight, bias, mean, var, 0.1, 1e-5, out=outs)
    s.backward(s.sum(s.mul(outs[0], outs[0])))
    assert torch.allclose(s.value(outs[0]), expected)
    assert torch.allclose(s.value(s.grad_of(bias)), layer.bias.grad)
    layer(x)
    assert torch.allclose(s.value(mean), layer.running_mean)


def test_every_allowed_operation_that_writes_shows_autograd_a_new_version():
    """A floor under the attacks above: a small call of each in-place kernel of one tensor."""
    for name in sorted(ALLOWED):
        facts = kernel(name)
        if not name.split(".")[1].endswith("_") or facts.mutates != {0} or name.startswith("aten._foreach"):
            continue
        s = Session()
        target = s.public([0.25, 0.5, 0.75])
        required = [a for a in overload(name)._schema.arguments if not a.has_default_value()][1:]
        if any(str(a.type) != "Tensor" for a in required) or name.startswith("aten._fused"):
            continue
        version = s.value(target)._version
        operands = [s.public([0.5, 0.25, 1.0]) for _ in required]
        s.op(name, ["r"] * (1 + len(required)), target, *operands, out=0)
        if not s.executor.earlier():
            assert s.value(target)._version > version, name


# ------------------------------------------------------------------ failures, and what they tell


def _out_of_range_if_large(s: Session, value: float) -> int:
    """Positions that fit a table of three unless the private value is over 0.5."""
    large = s.op("gt.Scalar", ["r", "d"], s.private(torch.tensor([value])), 0.5)
    return int(s.op("mul.Tensor", ["r", "r"], large, s.public([5])))


@pytest.mark.parametrize("value", [0.2, 0.8])
def test_that_a_private_operation_failed_is_as_private_as_its_result(s: Session, value: float):
    index = _out_of_range_if_large(s, value)
    chosen = s.op("index_select.default", ["r", "d", "r"], s.public([0.0] * 3), 0, index)
    derived = s.op("neg.default", ["r"], chosen)
    for identity in (chosen, derived):
        assert isinstance(s.executor.read(identity), Broken) == (value > 0.5)
        assert s.sources(identity) == 1
        layouts = s.executor.layouts((identity,))
        assert isinstance(layouts, Broken) == (value > 0.5)


@pytest.mark.parametrize("value", [0.2, 0.8])
def test_a_private_operation_without_result_does_not_tell_in_the_next_read(s: Session, value: float):
    index = _out_of_range_if_large(s, value)
    target = s.public([0.0] * 3)
    s.op("index_add_.default", ["r", "d", "r", "r"], target, 0, index, s.public([1.0]), out=0)
    assert not isinstance(s.executor.read(s.public([1.0])), Broken)
    assert [fault.sources for fault in s.executor.earlier()] == ([1] if value > 0.5 else [])


def test_a_backward_pass_that_failed_is_as_private_as_its_loss(s: Session):
    leaf = s.leaf([1.0, 1.0, 1.0])
    loss = s.sum(s.mul(leaf, s.private()))
    s.feed([c.BACKWARD, loss, 0, False, False], [c.FREE, leaf])
    s.backward(loss)
    [earlier] = s.executor.earlier()
    assert earlier.sources == 1


@pytest.mark.parametrize(
    ("name", "args", "operands"),
    [
        ("index_select.default", ["r", "d", "r"], (0, "index")),
        ("gather.default", ["r", "d", "r"], (0, "index")),
        ("index.Tensor", ["r", ["L", ["r"]]], ("index",)),
        ("linalg_cholesky_ex.default", ["r", "d", ["c", True]], (0,)),
    ],
)
def test_texts_of_private_failures_hold_no_value(s: Session, name: str, args: list[Any], operands: tuple[Any, ...]):
    index = s.private(torch.tensor([47_311]))
    result = s.op(name, args, s.private(), *[index if part == "index" else part for part in operands])
    found = s.executor.read(result)
    assert isinstance(found, Broken)
    assert not any(text in str(found.error) for text in ("47311", "3.25", "7.5", "11."))


def test_texts_of_public_failures_say_what_is_wrong(s: Session):
    found = s.executor.read(s.op("index_select.default", ["r", "d", "r"], s.public([1.0]), 0, s.public([7])))
    assert isinstance(found, Broken)
    assert "index out of range" in str(found.error)
    assert found.sources == 0


def test_how_much_randomness_a_private_value_took_does_not_show_in_the_next_draw():
    def next_draw(value: float) -> float:
        s = Session()
        s.feed([c.SEED, 7])
        noise = s.public([0.0])
        s.op(  # draws a number for negative elements alone
            "rrelu_with_noise.default", ["r", "r", "d", "d", ON], s.private(torch.tensor([value])), noise, 0.1, 0.3
        )
        return float(s.value(s.op("rand_like.default", ["r"], s.public([0.0]))))

    assert len({next_draw(-1.0) for _ in range(5)} | {next_draw(1.0) for _ in range(5)}) == 10


@pytest.mark.parametrize(
    ("name", "args", "count"),
    [
        ("nonzero.default", ["r"], 1),
        ("masked_select.default", ["r", "mask"], 1),
        ("index.Tensor", ["r", ["L", ["mask"]]], 1),
        ("bincount.default", ["positions"], 1),
        ("_unique2.default", ["r", ["c", True], ["c", False], ["c", False]], 3),
        ("unique_consecutive.default", ["r", ["c", False], ["c", False]], 3),
        ("linalg_lstsq.default", ["column", "column"], 4),
    ],
)
def test_what_has_a_private_size_and_all_that_is_made_of_it_lives_in_a_memory_of_its_own(
    s: Session, name: str, args: list[Any], count: int
):
    """How much memory they take could be found out by filling up the rest of it (test_hidden_sizes.py)."""
    secret = s.private()
    mask = s.op("gt.Scalar", ["r", "d"], secret, 0)
    given = {
        "r": secret,
        "mask": mask,
        "positions": s.op("_to_copy.default", ["r"], mask, kwargs=[["dtype", ["t", "int64"]]]),
        "column": s.op("view.default", ["r", "d"], secret, [3, 1]),
    }
    flat = [part for arg in args for part in (arg[1] if arg[0] == "L" else [arg]) if isinstance(part, str)]
    shaped = structure_of(args)
    for closed in (0b1, 0):
        s.executor.closed = closed
        outs = [s.new_id() for _ in range(count)]
        s.op(name, shaped, *[given[part] for part in flat], out=outs if count > 1 else outs[0])
        found = s.executor.read(outs[0])
        assert bits(found.sources) == (0,)
        assert s.executor.boxes[outs[0]].hidden == bool(closed)
        further = s.op("neg.default", ["r"], outs[0])
        assert s.executor.boxes[further].hidden == bool(closed)
    s.executor.closed = 0b1
    s.op("nonzero.default", ["r"], s.public([1.0, 0.0]), out=(public := s.new_id()))
    assert s.value(public).tolist() == [[0]]


def structure_of(args: list[Any]) -> list[Any]:
    """The arguments' structure with every named value as what the protocol calls it."""
    return [["L", ["r"] * len(arg[1])] if arg[0] == "L" else "r" if isinstance(arg, str) else arg for arg in args]


def test_choosing_rows_by_number_needs_no_leave_to_read(s: Session):
    s.executor.closed = 0b1
    chosen = s.op("index.Tensor", ["r", ["L", ["r"]]], s.private(), s.public([0, 2]))
    assert s.value(chosen).tolist() == [3.25, 11.0]


def test_randomness_of_public_values_follows_the_seed(s: Session):
    draws = []
    for _ in range(2):
        s.feed([c.SEED, 7])
        draws.append(s.value(s.op("rand_like.default", ["r"], s.public([0.0] * 4))).tolist())
    assert draws[0] == draws[1]


# ------------------------------------------------------------------ uninitialised memory

_FRESH_MEMORY = """
import torch
from grid_jupyter.ops.kernels import kernel
fresh = torch.empty(1 << 16, dtype=torch.uint8)  # smaller pieces come from what was freed, unmarked
assert (fresh == 0x5A).all(), "this C library does not mark fresh memory"
T = torch.rand
def marked(name, *args, **kwargs):
    found = kernel(f"aten.{name}").run(*args, **kwargs)
    outs = [t for t in (found if isinstance(found, (tuple, list)) else [found]) if isinstance(t, torch.Tensor)]
    for number, out in enumerate(outs):
        flat = out.detach().clone().reshape(-1)
        count = int((flat.view(torch.uint8) == 0x5A).sum()) if flat.numel() else 0
        if count > 8 + flat.numel() * flat.element_size() // 20:
            print(name, number, count)
marked("empty_like.default", T(500))
marked("new_empty.default", T(2), [500])
marked("new_empty_strided.default", T(2), [20, 20], [40, 2])
h = 50
marked("mkldnn_rnn_layer.default", T(40, 7, 30), T(4 * h, 30), T(4 * h, h), T(4 * h), T(4 * h), T(1, 7, h), T(1, 7, h),
       False, [], 2, h, 1, True, False, False, True)
marked("_ctc_loss.Tensor", T(50, 16, 20).log_softmax(2), torch.randint(1, 20, (16, 30)), torch.randint(20, 50, (16,)),
       torch.randint(2, 12, (16,)))
for mode in (0, 1, 2):
    marked("_embedding_bag.default", T(100, 40), torch.arange(100), torch.arange(0, 100, 2), False, mode, False, None,
           False, -1)
marked("native_dropout.default", T(500), 0.5, False)
marked("_linalg_svd.default", T(40, 30), True, False)
marked("linalg_lstsq.default", torch.zeros(50, 30), T(50, 2), driver="gelsy")
marked("_scaled_dot_product_flash_attention_for_cpu.default", T(1, 2, 60, 16), T(1, 2, 70, 16), T(1, 2, 70, 16), 0.0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="MALLOC_PERTURB_ is glibc's")
def test_no_result_shows_memory_that_was_never_written():
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}  # fresh memory reads 0x5A, freed memory 0xA5
    done = subprocess.run(
        [sys.executable, "-c", _FRESH_MEMORY], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_memory_of_freed_secrets_comes_back_as_zeros(s: Session):
    for _ in range(20):
        secret = s.private(torch.full((10_000,), 7.25))
        s.feed([c.FREE, secret])
        for made in (
            s.op("empty_like.default", ["r"], s.public([0.0] * 10_000)),
            s.op("new_empty.default", ["r", "d"], s.public([0.0]), [10_000]),
            s.op("new_empty_strided.default", ["r", "d", "d"], s.public([0.0]), [100, 100], [100, 1]),
        ):
            assert not s.value(made).any()
            s.feed([c.FREE, made])


# ------------------------------------------------------------------ forged streams


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        [None],
        [1.5],
        [-99],
        [7, 1, 2],
        [c.DEFINE],
        [c.DEFINE, -1, "aten.add.Tensor", [], []],
        [c.DEFINE, 1 << 70 >> 8, 5, [], []],
        [c.DEFINE, 0, "aten.add.Tensor", "rr", []],
        [c.DEFINE, 0, "aten.add.Tensor", ["r"] * 99, []],
        [c.DEFINE, 0, "aten.add.Tensor", [["x", 1]], []],
        [c.DEFINE, 0, "aten.add.Tensor", [["L", [["L", [["L", []]]]]]], []],
        [c.DEFINE, 0, "aten.add.Tensor", ["r", "r"], [["self", "r", "r"]]],
        [c.DEFINE, 0, "aten.add.Tensor", ["r", "r"], [["__class__", "r"]]],
        [c.DEFINE, 0, "aten.add.Tensor", ["r", ["t", ["float32"]]], []],
        [c.DEFINE, 0, "aten.add.Tensor", ["r", ["m", "__dict__"]], []],
        [c.PUT, 5, "float32", [2], b"1234"],
        [c.PUT, 5, "float32", [-1], b""],
        [c.PUT, 5, "float32", [0, 1 << 62, 1 << 62], b""],
        [c.PUT, 5, "object", [1], b"12345678"],
        [c.PUT, 5, ["float32"], [1], b"1234"],
        [c.PUT, 5, "float32", "x", b"1234"],
        [c.PUT, 5, "float32", [1], "abcd"],
        [c.PUT, [5], "float32", [1], b"1234"],
        [c.PUT, "5", "float32", [1], b"1234"],
        [c.PUT, 5],
        [c.FREE, [1]],
        [c.FREE, {"a": 1}],
        [c.SEED, "x"],
        [c.SEED, (1 << 64) - 1],
        [c.SEED, None],
        [c.SEED],
        [c.REQUIRE_GRAD, [1], True],
        [c.BACKWARD, [1], 0, False, False],
        [c.BACKWARD, 1, 0],
        [c.GRAD_OF, [1], 1],
        [c.SET_GRAD, {}, 1],
        [c.GRADIENTS, 1, 2, 3, 4, 5, 6],
        [c.GRADIENTS, [1], [[2]], [3], [4], False, False],
    ],
)
def test_a_forged_command_is_refused_or_does_nothing(s: Session, command: list[Any]):
    try:
        s.feed(command)
    except InvalidMessageError:
        pass  # any other exception would end the Worker without a word
    assert torch.is_grad_enabled()
    assert set(s.executor.values) <= {1, 5}
    assert s.value(s.op("neg.default", ["r"], s.public([1.0]))).item() == -1.0


@pytest.mark.parametrize("out", ["x", 1.5, [None], [[1]], ["x"], {"a": 1}])
def test_results_go_to_ids_that_are_integers(s: Session, out: Any):
    with pytest.raises(InvalidMessageError, match=r"integers|wrong arguments"):
        s.op("neg.default", ["r"], s.public([1.0]), out=out)


@pytest.mark.parametrize(
    "operand", ["cuda", "meta", b"x", None, True, {"a": 1}, ["cuda"], [[1]], (1 << 64) - 1, float("nan")]
)
def test_a_slot_for_numbers_takes_nothing_else(s: Session, operand: Any):
    result = s.op("sum.dim_IntList", ["r", "d"], s.public([[1.0]]), operand)
    assert isinstance(s.executor.read(result), Broken)


@pytest.mark.parametrize("device", ["meta", "cuda", "mkldnn", "xla"])
def test_a_tensor_cannot_be_moved_off_the_processor(s: Session, device: str):
    for item in ("d", ["c", device]):
        operands = (device,) if item == "d" else ()
        made = s.op("_to_copy.default", ["r"], s.public([1.0]), *operands, kwargs=[["device", item]])
        found = s.executor.read(made)
        assert isinstance(found, Broken) or found.tensor.device.type == "cpu"


@pytest.mark.parametrize(
    "name",
    [
        "aten.set_.source_Tensor", "aten.set_.source_Storage", "aten.as_strided.default", "aten.as_strided_.default",
        "aten.from_file.default", "aten.resize_.default", "aten.resize_as_.default", "aten._reshape_alias.default",
        "aten.empty_strided.default", "aten.empty.memory_format", "aten._local_scalar_dense.default",
        "aten.item.default", "aten.equal.default", "aten.is_nonzero.default", "aten.data.default",
        "aten.set_data.default", "aten._sparse_coo_tensor_unsafe.default", "aten.to_sparse.default",
        "aten.convolution_backward.default", "aten._embedding_bag_backward.default", "aten.record_stream.default",
        "aten.__and__.Tensor", "aten.__class__.default", "aten.__init__.default", "aten._ops.default",
        "os.system", "os.system.default", "builtins.eval.default", "torch.load", "prim.device.default",
        "profiler._record_function_enter.default", "aten", "aten.", "aten..", "aten.add", "aten.add.Tensor.x",
        "aten.add.tensor", "ATEN.add.Tensor", "aten.add.Tensor\x00", "", "../aten.add.Tensor", "quantized.add.default",
        "inductor._reinterpret_tensor.default", "aten.add.__class__",
    ],
)  # fmt: skip
def test_an_operation_off_the_list_never_reaches_torch(s: Session, name: str):
    template, result = 0, s.new_id()
    s.feed([c.DEFINE, template, name, ["r", "r"], []], [template, result, s.private(), s.private()])
    found = s.executor.read(result)
    assert isinstance(found, Broken)
    assert found.error.code == "operation-not-allowed"
    with pytest.raises(GridError):
        kernel(name)


def test_sparse_gradients_are_not_made(s: Session):
    weight = s.leaf([[1.0], [2.0]])
    made = s.op("embedding.default", ["r", "r", "d", ["c", False], ON], weight, s.public([0]), -1)
    assert isinstance(s.executor.read(made), Broken)


def test_a_template_can_be_defined_anew_between_uses(s: Session):
    a, b = s.public([1.0]), s.public([2.0])
    first, second = s.new_id(), s.new_id()
    s.feed(
        [c.DEFINE, 1, "aten.add.Tensor", ["r", "r"], []], [1, first, a, b],
        [c.DEFINE, 1, "aten.mul.Tensor", ["r", "r"], []], [1, second, a, b],
    )  # fmt: skip
    assert (s.value(first).item(), s.value(second).item()) == (3.0, 2.0)


def test_a_command_of_the_wrong_length_is_refused(s: Session):
    a = s.public([1.0])
    s.feed([c.DEFINE, 1, "aten.add.Tensor", ["r", "r"], []])
    for command in ([1], [1, 5], [1, 5, a], [1, 5, a, a, a]):
        with pytest.raises(InvalidMessageError, match=r"wrong length|wrong arguments"):
            s.feed(command)


def test_a_stream_ends_with_the_first_forged_command_and_leaves_autograd_as_it_was(s: Session):
    with pytest.raises(InvalidMessageError):
        s.feed([c.GRAD_MODE, False], [-99])
    assert torch.is_grad_enabled()


def test_a_stream_is_a_list_of_commands():
    executor = Executor()
    for hostile in (
        b"",
        b"\x80",
        b"\xc1",
        frames.encode({"a": 1}),
        frames.encode([1]),
        b"\xdd\xff\xff\xff\xff",  # a list of 4 billion commands
        b"\x91\xdd\xff\xff\xff\xff\x01",
        b"\x91\x91\xc6\xff\xff\xff\xff",  # 4 GB of bytes
        b"\x91" * 100_000,
        b"\x91\x92\xfe" + b"\x91" * 100_000 + b"\x01",
    ):
        with pytest.raises(InvalidMessageError):
            executor.feed(hostile)


def test_a_session_holds_a_limited_number_of_values(s: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("grid_jupyter.worker.executor.MAX_VALUES", 100)
    with pytest.raises(LimitExceededError, match="100 values"):
        s.feed(*[[c.PUT, 10_000 + number, "float32", [], bytes(4)] for number in range(101)])


def test_poison_keeps_its_code_when_it_is_read(s: Session):
    gone = s.op("neg.default", ["r"], 99_999)
    found = s.executor.read(gone)
    assert isinstance(found, Broken)
    assert found.error.code == "object-not-found"
    assert not isinstance(found.error, GetNotPermittedError)


def test_a_list_in_place_of_a_tensor_is_refused_before_torch_prints_what_is_in_it(s: Session):
    failed = s.op("sqrt.default", [["L", ["r"]]], s.public([1.5]))
    found = s.executor.read(failed)
    assert isinstance(found, Broken)
    assert found.error.code == "operation-not-allowed"
    assert "1.5" not in str(found.error)
