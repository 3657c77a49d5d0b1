"""How a value was computed, as owners are told: from what the Worker was told to do, true also of hostile commands."""

from __future__ import annotations

from typing import Any

import pytest

from grid_jupyter.wire import commands as c
from grid_jupyter.wire import frames, worker
from grid_jupyter.worker import ancestry
from grid_jupyter.worker.ancestry import Log, explain
from grid_jupyter.worker.templates import Box, Template

DATA, MORE, OUT = 100, 101, 999
FORMS: dict[str, tuple[str, list[Any]]] = {
    "add": ("aten.add.Tensor", ["r", "r"]),
    "add_": ("aten.add_.Tensor", ["r", "r"]),
    "mul": ("aten.mul.Tensor", ["r", "d"]),
    "matmul": ("aten.mm.default", ["r", "r"]),
    "mean": ("aten.mean.default", ["r"]),
    "select": ("aten.select.int", ["r", "d", "d"]),
    "slice": ("aten.slice.Tensor", ["r", "d", "d", "d"]),
    "index": ("aten.index.Tensor", ["r", ["L", ["r"]]]),
    "gt": ("aten.gt.Scalar", ["r", "d"]),
    "view": ("aten.view.default", ["r", "d"]),
    "t": ("aten.t.default", ["r"]),
    "sort": ("aten.sort.default", ["r"]),
}
NUMBERS = {name: number for number, name in enumerate(FORMS)}


class Told:
    """A session's log, written by hand. Data set 0 has 10 rows of 3; data set 1 has 5 rows."""

    def __init__(self, *, define: bool = True) -> None:
        self.log = Log()
        self.boxes: dict[int, Box] = {}
        self.templates = {NUMBERS[name]: Template(*form, []) for name, form in FORMS.items()}
        if define:
            self.feed(*([c.DEFINE, NUMBERS[name], *form, []] for name, form in FORMS.items()))
        self.load(0, DATA, (10, 3))
        self.load(1, MORE, (5,))

    def load(self, source: int, value: int, shape: tuple[int, ...]) -> None:
        part = worker.Mapped(value=value, dtype="float32", shape=shape, begin=0, end=4, name="data")
        self.log.add(worker.Load(source=source, tensors=(part,)))

    def feed(self, *batch: Any) -> Told:
        self.log.add(bytes(frames.encode(list(batch))))
        return self

    def op(self, name: str, out: Any, *operands: Any) -> Told:
        return self.feed([NUMBERS[name], out, *operands])

    def put(self, value: int, dtype: str, shape: list[int], data: bytes) -> Told:
        return self.feed([c.PUT, value, dtype, shape, data])

    def explain(self, value: int = OUT) -> worker.Explained:
        return explain(self.log, value, self.templates, self.boxes)

    def text(self, value: int = OUT) -> str:
        return "\n".join(f"{step.name} = {step.text}" for step in self.explain(value).steps)

    def rows(self, value: int = OUT) -> dict[int, int]:
        return {bound.source: bound.at_most for bound in self.explain(value).rows}


def test_operations_and_sources_are_told_in_order_and_others_are_not():
    told = Told().op("mul", 1, DATA, 2.5).op("mul", 2, MORE, 3).op("mean", OUT, 1)
    assert told.text() == "%1 = float32 [10, 3]\n%2 = mul(%1, 2.5)\n%3 = mean(%2)"
    found = told.explain()
    assert [step.source for step in found.steps] == [0, -1, -1]
    assert (found.result, found.cut, found.left_out, found.operations) == ("%3", False, 0, {"mul": 1, "mean": 1})


def test_what_the_asker_sent_is_marked():
    told = Told().put(1, "float32", [3, 2], b"\0" * 24).op("matmul", OUT, DATA, 1)
    assert "a tensor that the asker sent, float32 [3, 2]" in told.text()
    told.log.add(worker.Receive(value=2, dtype="float32", shape=(100_000,)))
    assert "a tensor that the asker sent, float32 [100000]" in told.op("mul", 3, 2, 1).text(3)


def test_an_id_that_is_used_again_is_another_value():
    told = Told().op("mean", 1, DATA).op("mul", OUT, 1, 2)
    told.op("select", 1, MORE, 0, 3)
    assert "mean" in told.text()
    assert told.rows() == {0: 10}
    told.op("mul", OUT, 1, 2)
    assert "mean" not in told.text()
    assert told.rows() == {1: 1}


def test_a_name_that_is_used_again_does_not_dress_an_operation_as_another():
    told = Told().op("select", OUT, DATA, 0, 3)
    told.feed([c.DEFINE, NUMBERS["select"], "aten.mean.default", ["r"], []])
    assert "select" in told.text()
    hidden = Told(define=False).op("select", OUT, DATA, 0, 3)
    hidden.feed([c.DEFINE, NUMBERS["select"], "aten.mean.default", ["r"], []])
    assert "name is no longer known" in hidden.text()


def test_names_from_before_the_log_are_known():
    assert "mean(%1)" in Told(define=False).op("mean", OUT, DATA).text()


def test_what_was_written_in_place_is_part_of_the_story_through_every_view():
    told = Told().put(1, "float32", [4], b"\0" * 16).op("view", 2, 1, [2, 2])
    told.op("add_", -7, 1, MORE).op("mean", OUT, 2)
    text = told.text()
    assert "add_" in text
    assert "as changed by" in text
    assert told.rows() == {1: 5}


def test_what_was_written_later_is_not():
    told = Told().put(1, "float32", [4], b"\0" * 16).op("mean", OUT, 1).op("add_", -7, 1, MORE)
    assert told.rows() == {}


def test_gradients_derive_from_every_backward_pass_so_far():
    told = Told().put(1, "float32", [3], b"\0" * 12).op("add", 2, DATA, 1).op("mean", 3, 2)
    told.feed([c.BACKWARD, 3, 0, False, False, -5]).feed([c.GRAD_OF, OUT, 1])
    assert "backward(" in told.text()
    assert told.rows() == {0: 10}


def test_recordings_are_told_by_their_operations():
    body = [[NUMBERS["mul"], 3, 2, 2.0], [NUMBERS["mean"], 4, 3]]
    told = Told().feed([c.RECORD, 7, [DATA], 1, body, [4]]).feed([c.RUN, 7, [MORE], [OUT], []])
    assert told.text() == "%1 = float32 [5]\n%2 = mul(%1, 2)\n%3 = mean(%2)"
    again = Told().feed([c.RUN, 7, [MORE], [OUT], []])
    assert "commands are no longer known" in again.text()


def test_results_of_several_are_told():
    assert "sort(%1)" in Told().op("sort", [1, OUT], MORE).text()


# ------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("operations", "rows"),
    [
        ([("mean", OUT, DATA)], 10),
        ([("select", OUT, DATA, 0, 3)], 1),
        ([("select", OUT, DATA, 1, 2)], 10),
        ([("select", OUT, DATA, -2, 2)], 10),
        ([("slice", OUT, DATA, 0, 2, 5)], 3),
        ([("slice", OUT, DATA, 0, -2, 9223372036854775807)], 2),
        ([("slice", 1, DATA, 0, 0, 6), ("slice", OUT, 1, 0, 4, 100)], 2),
        ([("slice", 1, DATA, 0, 0, 6), ("mul", 2, 1, 3), ("select", OUT, 2, 0, 0)], 1),
        ([("slice", 1, DATA, 1, 0, 1), ("select", OUT, 1, 0, 0)], 1),
        ([("select", 1, DATA, 0, 3), ("select", 2, DATA, 0, 4), ("add", OUT, 1, 2)], 2),
        ([("select", 1, DATA, 0, 3), ("add", OUT, 1, 1)], 1),
        ([("select", 1, DATA, 0, 3), ("add", OUT, 1, DATA)], 10),
        ([("t", 1, DATA), ("select", OUT, 1, 0, 0)], 10),
        ([("view", 1, DATA, [30]), ("select", OUT, 1, 0, 0)], 10),
        ([("gt", 1, DATA, 0.5), ("index", OUT, DATA, 1)], 10),
        ([("add", 1, DATA, DATA), ("select", OUT, 1, 0, 0)], 10),
    ],
)
def test_choosing_rows_counts_and_never_for_fewer_than_it_rests_on(operations: list[tuple[Any, ...]], rows: int):
    told = Told()
    for operation in operations:
        told.op(*operation)
    assert told.rows() == {0: rows}


def test_an_index_of_the_asker_counts_by_its_length_and_a_mask_by_what_it_chooses():
    told = Told().put(1, "int64", [2], b"\0" * 16).op("index", OUT, DATA, 1)
    assert told.rows() == {0: 2}
    mask = Told().put(1, "bool", [10], b"\0\1\1\0\0\0\1\0\0\0").op("index", OUT, DATA, 1)
    assert mask.rows() == {0: 3}
    changed = Told().put(1, "int64", [2], b"\0" * 16).op("add_", -1, 1, 1).op("index", OUT, DATA, 1)
    assert changed.rows() == {0: 10}


# ------------------------------------------------------------------ limits


def test_the_log_is_cut_at_its_limit_and_says_so():
    told = Told().op("mean", 1, DATA)
    told.boxes[1] = Box(0b11)
    for _ in range(3):
        told.feed([c.PUT, 5, "uint8", [1 << 20], b"\0" * (1 << 20)])
    found = told.op("mul", OUT, 1, 2).explain()
    assert found.cut
    assert "from before what is known" in told.text()
    assert [bound.source for bound in found.rows] == [0, 1]  # its lineage is known all the same


def test_only_the_nearest_operations_are_shown_and_all_sources():
    told = Told().op("mul", 1, DATA, 1)
    told.feed(*([NUMBERS["mul"], n + 1, n, 1] for n in range(1, 1000)))
    found = told.explain(1000)
    assert len(found.steps) == ancestry.MAX_LINES + 1
    assert found.left_out == 1000 - ancestry.MAX_LINES
    assert found.operations == {"mul": 1000}
    assert found.steps[0].source == 0


def test_more_commands_than_are_followed_are_cut_and_what_follows_is_true(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ancestry, "MAX_FOLLOWED", 20)
    told = Told().op("select", 1, DATA, 0, 0)
    for n in range(1, 40):
        told.op("mul", n + 1, n, 1)
    found = told.explain(40)
    assert found.cut
    assert "from before what is known" in found.steps[0].text


@pytest.mark.parametrize(
    "command",
    [
        [], ["x"], [10**9, 1], [0], [0, "x", "y"], [3, [OUT], {"a": 1}], [c.DEFINE], [c.DEFINE, 0, 7, 7, 7],
        [c.DEFINE, 0, "aten.system", ["r"], []], [c.RECORD, 1, "x", "y", "z", 0], [c.RUN, 1], [c.RUN, [], {}, 0, 0],
        [c.PUT, OUT], [c.PUT, [1], 2, 3, 4], [c.BACKWARD, "x"], [c.GRAD_OF], [c.GRADIENTS, 1], [-99, 1], [c.FREE, "x"],
        [c.DEFINE, NUMBERS["mean"], "aten.mean.default", [["L", [["L", ["r"]]]]], []],
    ],
)  # fmt: skip
def test_what_is_not_of_the_protocol_s_form_is_passed_over(command: list[Any]):
    told = Told().op("mean", OUT, DATA).feed(command)
    assert "mean(%1)" in told.text()
