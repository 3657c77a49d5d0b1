"""A compiled recording is the ordinary one bit for bit, also in lineage, gradients, versions and failures.

Each test drives two executors by the same commands, one of which never compiles, and compares all that they hold.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grid_jupyter.ops.raw import to_bytes
from grid_jupyter.wire import commands as c
from grid_jupyter.wire import frames
from grid_jupyter.worker import course
from grid_jupyter.worker.executor import Executor
from grid_jupyter.worker.halves import SIZED
from grid_jupyter.worker.traced import DIFFERENTIATED

R, D, NONE, ON = "r", "d", ["c", None], ["c", True]
_OPERATIONS: dict[str, list[Any]] = {
    "add.Tensor": [R, R], "sub.Tensor": [R, R], "mul.Tensor": [R, R], "mul.Scalar": [R, D], "neg.default": [R],
    "relu.default": [R], "tanh.default": [R], "sigmoid.default": [R], "exp.default": [R], "t.default": [R],
    "mm.default": [R, R], "addmm.default": [R, R, R], "sum.default": [R], "sum.dim_IntList": [R, D, ["c", True]],
    "mean.default": [R], "detach.default": [R], "clone.default": [R], "alias.default": [R], "view.default": [R, D],
    "_log_softmax.default": [R, D, ["c", False]], "nll_loss_forward.default": [R, R, NONE, D, D],
    "mse_loss.default": [R, R], "zeros_like.default": [R], "add_.Tensor": [R, R], "mul_.Tensor": [R, R],
    "copy_.default": [R, R], "zero_.default": [R], "t_.default": [R], "index.Tensor": [R, ["L", [R]]],
    "index_put_.default": [R, ["L", [R]], R, ON], "rand_like.default": [R], "nonzero.default": [R],
    "_foreach_add_.List": [["L", [R, R]], ["L", [R, R]]], "_foreach_mul_.Scalar": [["L", [R, R]], D],
    "select.int": [R, D, D], "embedding.default": [R, R], "max.dim": [R, D], "cat.default": [["L", [R, R]], D],
}  # fmt: skip
_NAMES = list(_OPERATIONS)


class Twin:
    """One of the two executors; ids are chosen in the same order in both."""

    def __init__(self) -> None:
        self.executor = Executor()
        self.feed(*[[c.DEFINE, n, f"aten.{name}", args, []] for n, (name, args) in enumerate(_OPERATIONS.items())])

    def feed(self, *batch: Any) -> None:
        self.executor.feed(frames.encode(list(batch)))

    def put(self, identity: int, tensor: torch.Tensor, sources: int = 0, **options: Any) -> None:
        self.executor.put(identity, tensor.clone(memory_format=torch.preserve_format), sources, **options)

    @property
    def is_compiled(self) -> bool:
        recordings = self.executor.verbs[c.RUN].__self__  # type: ignore[attr-defined]
        return bool(recordings._held[1].course.is_compiled)

    def state(self) -> dict[str, Any]:
        """All that can be seen from outside or decides on later commands, in a form that can be compared."""
        executor = self.executor
        boxes: dict[int, int] = {}
        shown: dict[str, Any] = {"grad mode": executor.grad_mode, "earlier": [repr(one) for one in executor.earlier()]}
        for identity, value in executor.values.items():
            box = executor.boxes[identity]
            kind = boxes.setdefault(id(box), len(boxes))
            shown[f"{identity}"] = (*_shown(value), box.sources, box.frozen, box.hidden, kind)
            if isinstance(value, torch.Tensor):
                held = executor.gradients.held(value)
                gradient = value.grad if value.is_leaf else None
                shown[f"gradient of {identity}"] = (
                    _shown(gradient),
                    None if held is None else (held.box.sources, boxes.setdefault(id(held.box), len(boxes))),
                    held is None or held.gradient is gradient or not value.is_leaf,
                )
        return shown


def _shown(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, torch.Tensor):
        return (None if value is None else tuple(value)[:2],)
    return (
        bytes(to_bytes(value.detach())), tuple(value.shape), value.stride(), value.dtype, value.requires_grad,
        value.is_leaf,
    )  # fmt: skip


class Twins:
    """Both, fed alike. `same` compares them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.fast, self.plain = Twin(), Twin()

    def feed(self, *batch: Any) -> None:
        if any(command[0] == c.RECORD for command in batch):
            self.fast.feed(*batch)
            with self._patch.context() as patch:
                patch.setattr(course, "CAN_COMPILE", False)
                self.plain.feed(*batch)
            return
        self.fast.feed(*batch)
        self.plain.feed(*batch)

    def put(self, identity: int, tensor: torch.Tensor, sources: int = 0, **options: Any) -> None:
        self.fast.put(identity, tensor, sources, **options)
        self.plain.put(identity, tensor, sources, **options)

    def run(self, ids: list[int], outs: list[int], times: int = 1) -> None:
        for _ in range(times):
            self.feed([c.RUN, 1, ids, outs, []])
            self.same()

    def same(self) -> None:
        assert self.fast.state() == self.plain.state()


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> Twins:
    made = Twins(monkeypatch)
    assert not made.plain.executor.values
    return made


def op(name: str) -> int:
    return _NAMES.index(name)


# ------------------------------------------------------------------ a training step

W, B, X, Y, OUT = 10, 11, 12, 13, 50
_STEP = [
    [c.SET_GRAD, 1, 0],
    [c.SET_GRAD, 2, 0],
    [op("t.default"), 20, 1],
    [op("addmm.default"), 21, 2, 3, 20],
    [op("_log_softmax.default"), 22, 21, 1],
    [op("nll_loss_forward.default"), [23, 24], 22, 4, 1, -100],
    [c.BACKWARD, 23, 0, False, False, -5],
    [c.GRAD_OF, 25, 1],
    [c.GRAD_OF, 26, 2],
    [c.GRAD_MODE, False],
    [op("mul.Scalar"), 27, 25, -0.5],
    [op("add_.Tensor"), -6, 1, 27],
    [op("add_.Tensor"), -7, 2, 26],
    [c.GRAD_MODE, True],
    [op("detach.default"), 28, 23],
]
"""Slots 1, 2: captured weights; 3, 4: inputs and targets; 28: the loss."""


def trained(twins: Twins, times: int = 5, body: list[Any] | None = None, outs: tuple[int, ...] = (28,)) -> None:
    """A step that ran some times; by then it is compiled."""
    drawn = torch.Generator().manual_seed(1)
    twins.put(W, torch.randn(3, 5, generator=drawn))
    twins.put(B, torch.randn(3, generator=drawn))
    twins.put(X, torch.randn(4, 5, generator=drawn), 1)
    twins.put(Y, torch.tensor([0, 2, 1, 1]), 2)
    twins.feed([c.REQUIRE_GRAD, W, True], [c.REQUIRE_GRAD, B, True])
    twins.feed([c.RECORD, 1, [W, B], 2, _STEP if body is None else body, list(outs)])
    twins.run([X, Y], [OUT + n for n in range(len(outs))], times)


def test_a_training_step_is_compiled_and_nothing_shows_it(twins: Twins):
    trained(twins, 12)
    assert twins.fast.is_compiled
    assert not twins.plain.is_compiled
    assert twins.fast.executor.boxes[OUT].sources == 3
    assert twins.fast.executor.boxes[W].sources == 3
    twins.feed([c.GRAD_OF, 60, W], [c.GRAD_OF, 61, B], [op("add_.Tensor"), 0, 60, X])
    twins.same()


def test_gradients_that_are_returned_are_those_of_the_parameters(twins: Twins):
    trained(twins, 8, outs=(28, 25, 26))
    assert twins.fast.is_compiled
    executor = twins.fast.executor
    assert executor.values[OUT + 1] is executor.values[W].grad
    twins.feed([op("add_.Tensor"), 0, OUT + 1, OUT + 1])
    twins.run([X, Y], [OUT, OUT + 1, OUT + 2], 2)


def _other_shape(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(2, 5), 1)
    twins.put(71, torch.tensor([0, 1]), 2)
    return [70, 71]


def _other_stride(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(5, 4).t(), 1)
    return [70, Y]


def _other_type(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(4, 5, dtype=torch.float64), 1)
    return [70, Y]


def _other_lineage(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(4, 5), 4)
    return [70, Y]


def _no_lineage(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(4, 5))
    return [70, Y]


def _lineage_of_a_parameter(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(3, 5), 8)
    twins.feed([c.GRAD_MODE, False], [op("add_.Tensor"), 0, W, 70], [c.GRAD_MODE, True])
    return [X, Y]


def _frozen_parameter(twins: Twins) -> list[int]:
    twins.feed([c.REQUIRE_GRAD, W, False])
    return [X, Y]


def _learning_input(twins: Twins) -> list[int]:
    twins.feed([c.REQUIRE_GRAD, X, True])
    return [X, Y]


def _no_gradients(twins: Twins) -> list[int]:
    twins.feed([c.GRAD_MODE, False])
    return [X, Y]


def _target_out_of_range(twins: Twins) -> list[int]:
    twins.put(71, torch.tensor([0, 1, 2, 7]), 2)
    return [X, 71]


def _input_with_graph(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(4, 5), 1)
    twins.feed([c.REQUIRE_GRAD, 70, True], [op("neg.default"), 72, 70])
    return [72, Y]


def _input_is_gone(twins: Twins) -> list[int]:
    twins.feed([c.FREE, X])
    return [X, Y]


def _parameter_is_gone(twins: Twins) -> list[int]:
    twins.feed([c.FREE, B])
    return [X, Y]


def _input_failed(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(7))
    twins.feed([op("add.Tensor"), 72, X, 70])
    return [72, Y]


def _parameter_in_another_shape(twins: Twins) -> list[int]:
    twins.feed([c.GRAD_MODE, False], [op("t_.default"), 0, W], [c.GRAD_MODE, True])
    return [X, Y]


def _gradient_left_over(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(3, 5), 8)
    twins.feed([c.SET_GRAD, W, 70])
    return [X, Y]


def _no_numbers_at_all(twins: Twins) -> list[int]:
    twins.put(70, torch.tensor([float("nan"), float("inf"), -0.0, 0.0, 1e-42]).expand(4, 5).clone(), 1)
    return [70, Y]


def _hidden_size(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(4, 5), 1 | SIZED)
    return [70, Y]


def _view_of_a_table(twins: Twins) -> list[int]:
    twins.put(70, torch.ones(2, 4, 5), 1, frozen=True)
    twins.feed([op("select.int"), 72, 70, 0, 1])
    return [72, Y]


def _another_leaf(twins: Twins) -> list[int]:
    twins.put(75, torch.ones(3), 8)
    twins.feed([c.REQUIRE_GRAD, 75, True], [op("sum.default"), 76, 75], [c.BACKWARD, 76, 0, False, False, 0])
    return [X, Y]


CHANGES: dict[str, Callable[[Twins], list[int]]] = {
    name.strip("_").replace("_", " "): change for name, change in list(globals().items())
    if name.startswith("_") and getattr(change, "__annotations__", {}).get("return") == "list[int]"
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_between_runs_counts(twins: Twins, name: str):
    trained(twins)
    assert twins.fast.is_compiled
    ids = CHANGES[name](twins)
    twins.same()
    twins.run(ids, [OUT], 6)
    twins.feed([c.GRAD_MODE, True])
    twins.run([X, Y], [OUT], 5)


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_before_it_is_compiled_counts(twins: Twins, name: str):
    for watched in (1, 2, 3):
        fresh = Twins(twins._patch)
        trained(fresh, watched)
        fresh.run(CHANGES[name](fresh), [OUT], 3)
        fresh.feed([c.GRAD_MODE, True])
        fresh.run([X, Y], [OUT], 5)


def test_gradients_that_nobody_clears_are_added_up(twins: Twins):
    trained(twins, 3, body=_STEP[2:])
    for _ in range(6):
        twins.feed([c.SET_GRAD, W, 0], [c.SET_GRAD, B, 0])
        twins.run([X, Y], [OUT])
    assert twins.fast.is_compiled
    twins.run([X, Y], [OUT], 2)  # now they are there


def test_one_value_given_twice_and_views_of_one_storage_count(twins: Twins):
    body = [[op("add_.Tensor"), 0, 1, 2], [op("mul.Tensor"), 5, 1, 2]]
    twins.put(X, torch.tensor([1.0, 2.0, 3.0]))
    twins.put(Y, torch.tensor([5.0, 7.0, 11.0]))
    twins.feed([c.RECORD, 1, [], 2, body, [5]])
    twins.run([X, Y], [OUT], 6)
    assert twins.fast.is_compiled
    twins.feed([op("alias.default"), 70, X])
    twins.run([X, X], [OUT], 2)
    twins.run([X, 70], [OUT], 2)
    twins.run([X, Y], [OUT], 2)


def test_published_data_is_never_written_to(twins: Twins):
    twins.put(X, torch.ones(3))
    twins.put(Y, torch.ones(3), 1, frozen=True)
    twins.feed([c.RECORD, 1, [], 2, [[op("add_.Tensor"), 0, 1, 2], [op("neg.default"), 5, 1]], [5]])
    twins.run([X, Y], [OUT], 6)
    assert twins.fast.is_compiled
    twins.run([Y, X], [OUT], 5)
    assert twins.fast.executor.values[Y].tolist() == [1, 1, 1]
    for twin in (twins.fast, twins.plain):
        twin.feed([c.FORGET, 1])
    twins.feed([c.RECORD, 1, [], 2, [[op("add_.Tensor"), 0, 1, 2], [op("neg.default"), 5, 1]], [5]])
    twins.run([Y, X], [OUT], 6)
    assert not twins.fast.is_compiled
    assert twins.fast.executor.values[Y].tolist() == [1, 1, 1]


def test_a_graph_from_before_a_run_takes_nothing_in_that_it_wrote(twins: Twins):
    trained(twins)
    twins.feed([op("mul.Tensor"), 80, W, W], [op("sum.default"), 81, 80])
    twins.run([X, Y], [OUT])
    twins.feed([c.BACKWARD, 81, 0, False, False, -9])
    assert "backward failed" in str(twins.fast.executor._errors)
    twins.same()


def test_writing_between_forward_and_backward_fails_as_ever(twins: Twins):
    body = list(_STEP)
    body.insert(6, [op("zero_.default"), -8, 3])
    trained(twins, 7, body=body)
    assert not twins.fast.is_compiled


def test_a_view_of_what_has_a_gradient_cannot_be_written_to(twins: Twins):
    twins.put(W, torch.ones(2, 3))
    twins.feed([op("select.int"), X, W, 0, 0])
    twins.put(Y, torch.ones(3))
    twins.feed([c.RECORD, 1, [], 2, [[op("add_.Tensor"), 0, 1, 2], [op("neg.default"), 5, 2]], [5]])
    twins.run([X, Y], [OUT], 6)
    assert twins.fast.is_compiled
    twins.feed([c.REQUIRE_GRAD, W, True])
    twins.run([X, Y], [OUT], 5)


@pytest.mark.parametrize("first", [0, 1])
def test_a_failure_after_something_was_changed_leaves_it_so(twins: Twins, first: int):
    """An index that is out of range fails late: what was written stays, and what follows goes on."""
    body = [
        [op("mul.Scalar"), 5, 2, 2.0],
        [op("zeros_like.default"), 6, 2],
        [op("add_.Tensor"), 0, 6, 2],
        [op("add_.Tensor"), 0, 1, 5],
        [op("index.Tensor"), 7, 1, 3],
        [op("index_put_.default"), -3, 1, 3, 2],
        [op("add.Tensor"), 8, 6, 5],
        [op("neg.default"), 9, 7],
    ][first:]
    if first:
        body[1:1] = [[op("neg.default"), 5, 2]]
    body = [command for command in body if command[0] != op("index.Tensor")]
    body = [command for command in body if command[1] != 9]
    twins.put(W, torch.zeros(3))
    twins.put(X, torch.tensor([1.0, 2.0, 3.0]), 1)
    twins.put(Y, torch.tensor([0, 2, 1]))
    twins.feed([c.RECORD, 1, [W], 2, body, [8, 6]])
    twins.run([X, Y], [OUT, OUT + 1], 6)
    assert twins.fast.is_compiled
    twins.put(71, torch.tensor([0, 1, 9]))
    twins.run([X, 71], [OUT, OUT + 1], 3)
    twins.run([X, Y], [OUT, OUT + 1], 2)


def test_constants_are_fresh_at_each_run(twins: Twins):
    ones = to_bytes(torch.ones(3))
    body = [[c.PUT, 3, "float32", [3], bytes(ones)], [op("add_.Tensor"), 0, 3, 1], [op("clone.default"), 4, 3]]
    twins.put(X, torch.tensor([1.0, 2.0, 3.0]), 1)
    twins.feed([c.RECORD, 1, [], 1, body, [4, 3]])
    twins.run([X], [OUT, OUT + 1], 8)
    assert twins.fast.is_compiled
    assert twins.fast.executor.values[OUT].tolist() == [2, 3, 4]


@pytest.mark.filterwarnings("ignore")  # torch's own, on create_graph
@pytest.mark.parametrize(
    "body",
    [
        [[op("rand_like.default"), 5, 1]],
        [[op("nonzero.default"), 5, 1]],
        [[op("alias.default"), 5, 1]],
        [[op("mul.Tensor"), 6, 2, 2], [op("sum.default"), 5, 6]],
        [[op("mul.Tensor"), 6, 2, 2], [op("sum.default"), 7, 6], [c.BACKWARD, 7, 0, False, True, 0],
         [op("neg.default"), 5, 1]],
        [[op("max.dim"), [6, 7], 2, 0], [c.BACKWARD, 6, 0, False, False, 0], [op("neg.default"), 5, 1]],
        [[c.REQUIRE_GRAD, 1, True], [op("neg.default"), 6, 1], [op("detach.default"), 5, 6]],
        [[c.GRADIENTS, [5], [2], [0], [2], False, False, True, False]],
    ],
    ids=["random", "sized by values", "shows an argument", "has a graph", "double backward", "not on the list",
         "wants gradients", "autograd.grad"],
)  # fmt: skip
def test_what_cannot_be_told_to_be_the_same_is_not_compiled(twins: Twins, body: list[Any]):
    twins.put(X, torch.ones(()), 1)
    twins.put(W, torch.ones(()))
    twins.feed([c.REQUIRE_GRAD, W, True], [c.RECORD, 1, [X, W], 0, body, [5]])
    for _ in range(7):
        twins.feed([c.SEED, 5], [c.RUN, 1, [], [OUT], []])
        twins.same()
    assert not twins.fast.is_compiled


def test_a_compiled_recording_keeps_nothing_alive(twins: Twins):
    trained(twins, 7)
    executor = twins.fast.executor
    alive = [weakref.ref(executor.values[identity]) for identity in (W, B, X, Y, OUT)]
    alive.append(weakref.ref(executor.values[W].grad))
    twins.feed([c.FREE, W, B, X, Y, OUT])
    gc.collect()
    assert [one() for one in alive] == [None] * len(alive)


def test_every_operation_that_is_compiled_before_a_backward_pass_is_one_of_ours():
    from grid_jupyter.ops.allowed import ALLOWED

    assert sorted(DIFFERENTIATED - set(ALLOWED)) == []


# ------------------------------------------------------------------ random programs

_FORWARD = [
    name
    for name in _NAMES
    if f"aten.{name}" in DIFFERENTIATED and name not in ("nll_loss_forward.default", "addmm.default", "select.int")
]
_numbers = st.lists(st.integers(0, 30), min_size=4, max_size=4)
_forward = st.tuples(st.sampled_from(_FORWARD), _numbers)
_other = st.tuples(st.sampled_from([*_NAMES, "clear", "grad of", "grad of", "mode", "constant"]), _numbers)
_update = st.tuples(
    st.sampled_from(
        ["add_.Tensor", "mul_.Tensor", "mul.Scalar", "index_put_.default", "clear", "grad of", "add.Tensor"]
    ),
    _numbers,
)
_learning = st.tuples(
    st.lists(_forward, max_size=6),
    st.sampled_from([[("backward", [0])], []]),
    st.lists(_update, max_size=6),
    st.lists(_other, max_size=3),
).map(lambda parts: [("clear", [0]), ("clear", [1]), *parts[0], *parts[1], ("mode", [0]), *parts[2], *parts[3]])
_program = st.one_of(_learning, _learning, _learning, st.lists(_other, min_size=1, max_size=8))
_between = st.tuples(
    st.sampled_from(
        ["nothing", "nothing", "write", "swap", "clear", "left over", "lineage", "frozen", "too far", "twice"]
    ),
    st.integers(0, 3),
)


def _body(program: list[Any]) -> tuple[list[Any], list[int]]:
    """Commands on slots 1, 2 (captured leaves), 3, 4 (captured), 5, 6 (inputs; 6 are indices), and what they give."""
    body: list[Any] = []
    slots, fresh, indices = [1, 2, 3, 4, 5], iter(range(20, 90)), [6]
    for what, numbers in program:
        pick = [slots[-1 - number % len(slots)] for number in numbers]
        if what == "backward":
            loss = next(fresh)
            body += [[op("sum.default"), loss, slots[-1]], [c.BACKWARD, loss, 0, False, False, -1]]
        elif what == "clear":
            body.append([c.SET_GRAD, 1 + numbers[0] % 2, 0])
        elif what == "grad of":
            slots.append(next(fresh))
            body.append([c.GRAD_OF, slots[-1], 1 + numbers[0] % 2])
        elif what == "mode":
            body.append([c.GRAD_MODE, bool(numbers[0] % 2)])
        elif what == "constant":
            slots.append(next(fresh))
            body.append([c.PUT, slots[-1], "float32", [2, 2], bytes(to_bytes(torch.ones(2, 2)))])
        else:
            command: list[Any] = [op(what), 0]
            wanted = iter(pick * 2)
            for position, argument in enumerate(_OPERATIONS[what]):
                if argument == R:
                    by_index = position == 1 and what == "embedding.default"
                    command.append(indices[0] if by_index else next(wanted))
                elif argument == D:
                    command.append([2, 2] if what == "view.default" else 0 if "dim" in what or "int" in what else 1)
                elif isinstance(argument, list) and argument[0] == "L":
                    command += indices if "index" in what else [next(wanted) for _ in argument[1]]
            if not what.split(".")[0].endswith("_"):
                count = 2 if what in ("max.dim", "nll_loss_forward.default") else 1
                made = [next(fresh) for _ in range(count)]
                command[1] = made if count > 1 else made[0]
                slots += made
            body.append(command)
    if program[-1][1][0] % 4:  # mostly what may leave without its graph
        body.append([c.GRAD_MODE, False])
        for slot in slots[-2:]:
            slots.append(next(fresh))
            body.append([op("clone.default"), slots[-1], slot])
        return body, slots[-2:]
    return body, slots[5:][-3:]


def _disturb(twins: Twins, how: str, number: int) -> list[int]:
    inputs = [14, 15]
    target = [10, 11, 12, 13][number]
    if how == "write":
        twins.feed([c.GRAD_MODE, False], [op("mul_.Tensor"), 0, target, 13], [c.GRAD_MODE, True])
    elif how == "swap":
        inputs = [15, 14]
    elif how == "clear":
        twins.feed([c.SET_GRAD, 10, 0], [c.SET_GRAD, 11, 0])
    elif how == "left over":
        twins.feed([op("clone.default"), 99, 14], [c.SET_GRAD, 10 + number % 2, 99])
    elif how == "lineage":
        twins.put(98, torch.full((2, 2), 0.5), 1 << number)
        inputs = [98, 15]
    elif how == "frozen":
        twins.feed([c.REQUIRE_GRAD, 10, False])
    elif how == "too far":
        twins.put(97, torch.tensor([0, 5]))
        inputs = [14, 97]
    elif how == "twice":
        inputs = [14, 14]
    return inputs


@settings(max_examples=250, deadline=None, derandomize=True)
@given(_program, st.lists(_between, min_size=2, max_size=4))
@pytest.mark.filterwarnings("ignore")
def test_any_program_does_the_same_whether_compiled_or_not(program: list[Any], between: list[Any]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.randbits", lambda count: 7)
        twins = Twins(patch)
        drawn = torch.Generator().manual_seed(3)
        for identity, sources in ((10, 0), (11, 0), (12, 0), (13, 1), (14, 2)):
            twins.put(identity, torch.randn(2, 2, generator=drawn), sources)
        twins.put(15, torch.tensor([1, 0]))
        twins.feed([c.REQUIRE_GRAD, 10, True], [c.REQUIRE_GRAD, 11, True])
        body, outs = _body(program)
        twins.feed([c.RECORD, 1, [10, 11, 12, 13], 2, body, outs])
        ids = list(range(50, 50 + len(outs)))
        for how, number in (("nothing", 0),) * 5 + tuple(between) + (("nothing", 0),):
            given_ids = _disturb(twins, how, number)
            for twin in (twins.fast, twins.plain):
                twin.feed([c.SEED, 4], [c.RUN, 1, given_ids, ids, []])
            twins.same()


# ------------------------------------------------------------------ what a client made up could gain by it


def test_a_gradient_named_twice_is_as_private_as_what_was_added_to_it_when_a_run_fails(twins):
    body = [
        [c.SET_GRAD, 1, 0], [op("mul.Tensor"), 19, 1, 5], [op("sum.default"), 20, 19],
        [c.BACKWARD, 20, 0, False, False, -5], [c.GRAD_OF, 25, 1], [c.GRAD_OF, 26, 1], [c.SET_GRAD, 1, 0],
        [c.GRAD_MODE, False], [op("add_.Tensor"), -6, 26, 3], [op("embedding.default"), 30, 2, 4],
        [op("neg.default"), 27, 26],
    ]  # fmt: skip
    twins.put(11, torch.ones(3))
    twins.put(12, torch.ones(3, 2))
    twins.put(13, torch.tensor([41.0, 42.0, 43.0]), 1)
    twins.put(14, torch.tensor([0, 1, 2]))
    twins.put(15, torch.tensor([0, 1, 9]))
    twins.put(16, torch.zeros(3))
    twins.feed([c.REQUIRE_GRAD, 11, True])
    twins.feed([c.RECORD, 1, [11, 12], 3, body, [27, 26, 30]])
    twins.run([13, 14, 16], [50, 51, 52], times=6)
    assert twins.fast.is_compiled
    twins.run([13, 15, 16], [50, 51, 52])
    assert twins.fast.executor.boxes[51].sources == 1


@pytest.mark.parametrize("index", [[0, 1, 1], [0, 1, 9]])
def test_an_input_that_is_anothers_gradient_becomes_as_private_as_the_pass_back_beside_it(twins, index):
    body = [
        [c.SET_GRAD, 1, 0], [op("embedding.default"), 20, 1, 3], [op("sum.default"), 21, 20],
        [c.BACKWARD, 21, 0, False, False, -5], [op("neg.default"), 22, 2],
    ]  # fmt: skip
    twins.put(11, torch.ones(3, 2))
    twins.put(12, torch.ones(2))
    twins.put(13, torch.ones(2))
    twins.put(14, torch.tensor([0, 1, 2]), 1)
    twins.put(15, torch.tensor(index), 1)
    twins.feed([c.REQUIRE_GRAD, 11, True], [c.REQUIRE_GRAD, 13, True])
    twins.feed([c.RECORD, 1, [11], 2, body, [22]])
    twins.run([12, 14], [50], times=6)
    assert twins.fast.is_compiled
    twins.feed([c.SET_GRAD, 13, 0])
    twins.feed([c.GRAD_MODE, True], [op("sum.default"), 60, 13], [c.BACKWARD, 60, 0, False, False, -9])
    twins.feed([c.GRAD_OF, 61, 13])
    twins.run([61, 15], [50])
    assert twins.fast.executor.boxes[50].sources == 1


def test_a_slot_that_is_filled_twice_is_never_compiled(twins):
    body = [
        [op("neg.default"), 20, 3], [op("add_.Tensor"), -6, 1, 3], [op("embedding.default"), 30, 2, 4],
        [op("exp.default"), 22, 20], [op("neg.default"), 20, 22],
    ]  # fmt: skip
    twins.put(11, torch.zeros(3))
    twins.put(12, torch.ones(3, 2))
    twins.put(13, torch.ones(3))
    twins.put(14, torch.tensor([0, 1, 2]), 1)
    twins.put(15, torch.tensor([0, 1, 9]), 1)
    twins.feed([c.RECORD, 1, [11, 12], 2, body, [22, 20]])
    twins.run([13, 14], [50, 51], times=6)
    assert not twins.fast.is_compiled
    twins.run([13, 15], [50, 51])


def test_one_id_for_two_results_is_never_compiled(twins):
    twins.put(11, torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    twins.feed([c.RECORD, 1, [], 1, [[op("max.dim"), [20, 20], 1, 0], [op("neg.default"), 21, 20]], [21]])
    twins.run([11], [50], times=6)
    assert not twins.fast.is_compiled
