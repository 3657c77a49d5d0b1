"""Recordings in the Worker: a run is what the stream would be, in lineage and failures; forged ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grid_jupyter.errors import InvalidMessageError, LimitExceededError, ObjectNotFoundError, OperationNotAllowedError
from grid_jupyter.wire import commands as c
from grid_jupyter.wire import frames
from grid_jupyter.wire.limits import MAX_INLINE_BYTES
from grid_jupyter.worker.executor import Broken, Executor, Read
from grid_jupyter.worker.halves import SIZED

ADD, NEG, ADD_, MUL, UNKNOWN = range(5)
X, SECRET, PUBLISHED, OUT, OTHER = 100, 101, 102, 200, 201


@pytest.fixture
def executor() -> Executor:
    """A session that has a value of its own, one that derives from data set 0, and data set 1 itself."""
    made = Executor()
    feed(
        made,
        [c.DEFINE, ADD, "aten.add.Tensor", ["r", "r"], []],
        [c.DEFINE, NEG, "aten.neg.default", ["r"], []],
        [c.DEFINE, ADD_, "aten.add_.Tensor", ["r", "r"], []],
        [c.DEFINE, MUL, "aten.mul.Scalar", ["r", "d"], []],
        [c.DEFINE, UNKNOWN, "aten.set_.source_Tensor", ["r", "r"], []],
    )
    made.put(X, torch.tensor([1.0, 2.0]))
    made.put(SECRET, torch.tensor([3.0, 4.0]), 1)
    made.put(PUBLISHED, torch.tensor([5.0, 6.0]), 2, frozen=True)
    return made


def feed(executor: Executor, *batch: Any) -> None:
    executor.feed(frames.encode(list(batch)))


def found(executor: Executor, identity: int = OUT) -> tuple[list[float], int]:
    read = executor.read(identity)
    assert isinstance(read, Read), read
    return read.tensor.tolist(), read.sources


def broken(executor: Executor, identity: int = OUT) -> Broken:
    read = executor.read(identity)
    assert isinstance(read, Broken), read
    return read


def test_a_run_computes_on_what_it_is_given_and_on_what_was_captured(executor: Executor):
    feed(executor, [c.RECORD, 1, [X], 1, [[ADD, 3, 1, 2], [MUL, 4, 3, 10]], [4]])
    executor.put(300, torch.ones(2))
    feed(executor, [c.RUN, 1, [300], [OUT], []], [c.RUN, 1, [X], [OTHER], []])
    assert found(executor) == ([20, 30], 0)
    assert found(executor, OTHER) == ([20, 40], 0)


def test_results_derive_from_what_they_were_computed_from_at_each_run(executor: Executor):
    feed(
        executor,
        [c.RECORD, 1, [], 2, [[NEG, 3, 1], [NEG, 4, 2], [ADD, 5, 3, 4]], [3, 5]],
        [c.RUN, 1, [X, SECRET], [OUT, OTHER], []],
    )
    assert found(executor) == ([-1, -2], 0)
    assert found(executor, OTHER) == ([-4, -6], 1)
    feed(executor, [c.RUN, 1, [PUBLISHED, SECRET], [OUT, OTHER], []])
    assert found(executor) == ([-5, -6], 2)
    assert found(executor, OTHER) == ([-8, -10], 3)


def test_what_a_run_writes_into_derives_from_it_in_all_its_views(executor: Executor):
    executor.put(300, torch.zeros(2))
    feed(
        executor,
        [c.DEFINE, 9, "aten.slice.Tensor", ["r", "d", "d", "d"], []],
        [9, 301, 300, 0, 0, 1],
        [c.RECORD, 1, [300], 1, [[ADD_, 0, 1, 2]], []],
        [c.RUN, 1, [SECRET], [], []],
    )
    assert found(executor, 300) == ([3, 4], 1)
    assert found(executor, 301) == ([3], 1)


def test_published_data_is_not_changed_by_a_run(executor: Executor):
    feed(executor, [c.RECORD, 1, [], 2, [[ADD_, 0, 1, 2]], []], [c.RUN, 1, [PUBLISHED, X], [], []])
    [told] = executor.earlier()
    assert isinstance(told.error, OperationNotAllowedError)
    assert found(executor, PUBLISHED) == ([5, 6], 2)


def test_sizes_that_depend_on_values_stay_closed_in_runs(executor: Executor):
    feed(
        executor,
        [c.DEFINE, 9, "aten.nonzero.default", ["r"], []],
        [c.RECORD, 1, [], 1, [[9, 2, 1]], [2]],
        [c.RUN, 1, [SECRET], [OUT], []],
    )
    assert found(executor)[1] == 1
    executor.closed = 1
    feed(executor, [c.RUN, 1, [SECRET], [OTHER], []])
    assert found(executor, OTHER)[1] == 1 | SIZED
    assert executor.boxes[OTHER].hidden


def test_gradients_of_a_run_derive_from_its_loss(executor: Executor):
    feed(
        executor,
        [c.DEFINE, 9, "aten.sum.default", ["r"], []],
        [c.DEFINE, 10, "aten.mul.Tensor", ["r", "r"], []],
        [c.REQUIRE_GRAD, X, True],
        [c.RECORD, 1, [X], 1, [[10, 3, 1, 2], [9, 4, 3], [c.BACKWARD, 4, 0, False, False, 0], [c.GRAD_OF, 5, 1]], [5]],
        [c.RUN, 1, [SECRET], [OUT], []],
        [c.GRAD_OF, OTHER, X],
    )
    assert found(executor) == ([3, 4], 1)
    assert found(executor, OTHER) == ([3, 4], 1)


def test_published_data_given_to_a_run_gets_no_gradient_flag_of_others(executor: Executor):
    shared = executor.values[PUBLISHED]
    feed(executor, [c.RECORD, 1, [], 1, [[c.REQUIRE_GRAD, 1, True]], []], [c.RUN, 1, [PUBLISHED], [], []])
    assert not shared.requires_grad
    assert executor.values[PUBLISHED].requires_grad
    assert executor.boxes[PUBLISHED].frozen


def test_a_failure_spoils_what_depends_on_it_and_the_rest_goes_on(executor: Executor):
    executor.put(300, torch.ones(3))
    body = [[ADD, 3, 1, 2], [NEG, 4, 3], [NEG, 5, 1]]
    feed(executor, [c.RECORD, 1, [], 2, body, [4, 5]], [c.RUN, 1, [X, 300], [OUT, OTHER], []])
    assert broken(executor).error.code == "remote-operation"
    assert found(executor, OTHER) == ([-1, -2], 0)
    feed(executor, [c.RUN, 1, [X, X], [OUT, OTHER], []])
    assert found(executor) == ([-2, -4], 0)


def test_a_failure_of_private_origin_says_no_more_than_its_class(executor: Executor):
    executor.put(300, torch.ones(3), 1)
    feed(executor, [c.RECORD, 1, [], 2, [[ADD, 3, 1, 2]], [3]], [c.RUN, 1, [X, 300], [OUT], []])
    told = broken(executor)
    assert told.sources == 1
    assert str(told.error) == "aten.add.Tensor failed with RuntimeError"


def test_a_value_that_is_gone_is_told_by_the_operation_that_takes_it(executor: Executor):
    feed(executor, [c.RECORD, 1, [X], 1, [[ADD, 3, 1, 2]], [3]], [c.FREE, X], [c.RUN, 1, [SECRET], [OUT], []])
    assert isinstance(broken(executor).error, ObjectNotFoundError)


def test_an_operation_off_the_list_is_refused_at_each_run(executor: Executor):
    feed(executor, [c.RECORD, 1, [], 2, [[UNKNOWN, 3, 1, 2]], [3]], [c.RUN, 1, [X, X], [OUT], []])
    assert isinstance(broken(executor).error, OperationNotAllowedError)


def test_grad_mode_is_afterwards_what_it_was(executor: Executor):
    feed(executor, [c.REQUIRE_GRAD, X, True], [c.RECORD, 1, [X], 0, [[c.GRAD_MODE, False], [NEG, 2, 1]], [2]])
    feed(executor, [c.RUN, 1, [], [OUT], []], [NEG, OTHER, X])
    assert not executor.values[OUT].requires_grad
    assert executor.values[OTHER].requires_grad


def test_runs_take_their_seeds_in_order(executor: Executor):
    feed(
        executor,
        [c.DEFINE, 9, "aten.rand_like.default", ["r"], []],
        [c.RECORD, 1, [X], 0, [[c.SEED], [9, 2, 1], [c.SEED], [9, 3, 1]], [2, 3]],
        [c.RUN, 1, [], [300, 301], [7, 8]],
        [c.RUN, 1, [], [302, 303], [8, 7]],
    )
    values = [found(executor, identity)[0] for identity in (300, 301, 302, 303)]
    assert values[0] == values[3] != values[1] == values[2]


def test_values_in_between_are_let_go_as_soon_as_nothing_needs_them(executor: Executor):
    alive: list[int] = []
    feed(executor, [c.RECORD, 1, [], 1, [[NEG, 2, 1], [NEG, 3, 2], [NEG, 4, 3], [c.SEED], [NEG, 5, 4]], [5]])
    executor.verbs[c.RUN].__self__._stage.seed = lambda seed: alive.append(len(executor.values))  # type: ignore[attr-defined]
    feed(executor, [c.RUN, 1, [X], [OUT], [0]])
    assert alive == [2]  # the argument and the latest result
    assert found(executor) == ([1, 2], 0)


def test_a_forgotten_recording_cannot_be_run(executor: Executor):
    feed(executor, [c.RECORD, 1, [], 0, [], []], [c.RUN, 1, [], [], []], [c.FORGET, 1], [c.FORGET, 1])
    with pytest.raises(InvalidMessageError, match="never defined"):
        feed(executor, [c.RUN, 1, [], [], []])


FORGED: dict[str, list[Any]] = {
    "a number that is a word": [c.RECORD, "1", [], 0, [], []],
    "a number that is taken": [c.RECORD, 7, [], 0, [], []],
    "a slot that nothing fills": [c.RECORD, 1, [X], 0, [[NEG, 2, 3]], []],
    "a slot of its own result": [c.RECORD, 1, [X], 0, [[NEG, 2, 2]], []],
    "slot 0": [c.RECORD, 1, [X], 0, [[NEG, 2, 0]], []],
    "a negative slot": [c.RECORD, 1, [X], 0, [[NEG, 2, -1]], []],
    "an id in place of a slot": [c.RECORD, 1, [X], 0, [[NEG, 2, SECRET]], []],
    "a result in the place of a captured value": [c.RECORD, 1, [X], 0, [[NEG, 1, 1]], []],
    "a result in the place of an input": [c.RECORD, 1, [X], 1, [[NEG, 2, 1]], []],
    "a result that is a word": [c.RECORD, 1, [X], 0, [[NEG, "2", 1]], []],
    "a result that is a dictionary": [c.RECORD, 1, [X], 0, [[NEG, {}, 1]], []],
    "results that are no numbers": [c.RECORD, 1, [X], 0, [[NEG, [2, None], 1]], []],
    "an operand that is a list": [c.RECORD, 1, [X], 0, [[NEG, 2, [1]]], []],
    "an operand that is true": [c.RECORD, 1, [X], 0, [[NEG, 2, True]], []],
    "outs of nothing": [c.RECORD, 1, [X], 0, [], [5]],
    "outs that are no list": [c.RECORD, 1, [X], 0, [], 1],
    "outs that are no numbers": [c.RECORD, 1, [X], 0, [], [None]],
    "captured values that are no list": [c.RECORD, 1, X, 0, [], []],
    "captured values that are lists": [c.RECORD, 1, [[X]], 0, [], []],
    "inputs without number": [c.RECORD, 1, [], None, [], []],
    "inputs without end": [c.RECORD, 1, [], 1 << 60, [], []],
    "fewer inputs than none": [c.RECORD, 1, [], -1, [], []],
    "a body that is no list": [c.RECORD, 1, [], 0, 5, []],
    "a body of numbers": [c.RECORD, 1, [], 0, [5], []],
    "a body of bytes": [c.RECORD, 1, [], 0, [b"\x00"], []],
    "a command without code": [c.RECORD, 1, [], 0, [[]], []],
    "a command that is a word": [c.RECORD, 1, [], 0, [["os.system", "id"]], []],
    "an unknown command": [c.RECORD, 1, [], 0, [[-99]], []],
    "a template that was never defined": [c.RECORD, 1, [X], 0, [[999, 2, 1]], []],
    "a template in a recording": [c.RECORD, 1, [], 0, [[c.DEFINE, 50, "aten.neg.default", ["r"], []]], []],
    "too few operands": [c.RECORD, 1, [X], 0, [[ADD, 2, 1]], []],
    "too many operands": [c.RECORD, 1, [X], 0, [[NEG, 2, 1, 1]], []],
    "a verb without operands": [c.RECORD, 1, [X], 0, [[c.BACKWARD]], []],
    "freeing": [c.RECORD, 1, [X], 0, [[c.FREE, 1]], []],
    "clearing": [c.RECORD, 1, [], 0, [[c.CLEAR]], []],
    "a recording in a recording": [c.RECORD, 1, [], 0, [[c.RECORD, 2, [], 0, [], []]], []],
    "a run in a recording": [c.RECORD, 1, [], 0, [[c.RUN, 7, [], [], []]], []],
    "a run of itself": [c.RECORD, 1, [], 0, [[c.RUN, 1, [], [], []]], []],
    "forgetting in a recording": [c.RECORD, 1, [], 0, [[c.FORGET, 7]], []],
    "a constant of another size": [c.RECORD, 1, [], 0, [[c.PUT, 1, "float32", [2], bytes(4)]], []],
    "a constant of a negative size": [c.RECORD, 1, [], 0, [[c.PUT, 1, "float32", [-1], b""]], []],
    "a constant of an unknown type": [c.RECORD, 1, [], 0, [[c.PUT, 1, "object", [], bytes(8)]], []],
    "too few words": [c.RECORD, 1, [], 0, []],
    "a run of nothing": [c.RUN, 99, [], [], []],
    "a run by a word": [c.RUN, "7", [], [], []],
    "a run with too many ids": [c.RUN, 7, [X], [], []],
    "a run with too many results": [c.RUN, 7, [], [5], []],
    "a run with seeds that nothing takes": [c.RUN, 7, [], [], [1]],
    "a run with ids that are no list": [c.RUN, 7, None, [], []],
    "a run on lists": [c.RUN, 8, [[X]], [OUT], []],
    "a run into lists": [c.RUN, 8, [X], [[OUT]], []],
    "a run with too few ids": [c.RUN, 8, [], [OUT], []],
    "a run with a seed that is a word": [c.RUN, 9, [], [], ["x"]],
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_recording_is_refused_and_changes_nothing(executor: Executor, name: str):
    feed(
        executor,
        [c.RECORD, 7, [], 0, [], []],
        [c.RECORD, 8, [], 1, [[NEG, 2, 1]], [2]],
        [c.RECORD, 9, [], 0, [[c.SEED]], []],
    )
    before = dict(executor.values)
    with pytest.raises(InvalidMessageError):
        feed(executor, FORGED[name])
    assert executor.values == before
    feed(executor, [c.RUN, 8, [X], [OUT], []])
    assert found(executor) == ([-1, -2], 0)


def test_numbers_of_recorded_commands_are_checked_as_in_the_stream(executor: Executor):
    feed(executor, [c.RECORD, 1, [X], 0, [[MUL, 2, 1, "x"]], [2]], [c.RUN, 1, [], [OUT], []], [MUL, OTHER, X, "x"])
    assert broken(executor).error.code == broken(executor, OTHER).error.code == "invalid-message"


def test_recordings_are_limited_in_number_and_size(executor: Executor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("grid_jupyter.worker.recordings.MAX_RECORDINGS", 3)
    monkeypatch.setattr("grid_jupyter.worker.recordings.MAX_RECORDED_COMMANDS", 10)
    feed(executor, [c.RECORD, 1, [X], 0, [[NEG, 2 + n, 1] for n in range(8)], []])
    with pytest.raises(LimitExceededError, match="10 commands in all"):
        feed(executor, [c.RECORD, 2, [X], 0, [[NEG, 2 + n, 1] for n in range(3)], []])
    feed(executor, *[[c.RECORD, number, [], 0, [], []] for number in (2, 3)])
    with pytest.raises(LimitExceededError, match="3 recordings"):
        feed(executor, [c.RECORD, 4, [], 0, [], []])
    feed(executor, [c.FORGET, 1], [c.RECORD, 4, [], 0, [], []])
    with pytest.raises(LimitExceededError, match="bytes"):
        feed(executor, [c.FORGET, 2], [c.RECORD, 5, [], 0, [[c.PUT, 1, "uint8", [1], bytes(MAX_INLINE_BYTES + 1)]], []])
