"""What notebooks show of searches, data sets, jobs and trainings: tables of text, whatever others wrote."""

from __future__ import annotations

import html
import random
import re
import time
from typing import Any

import pytest

from grid_jupyter.client.jobs import Job
from grid_jupyter.client.listings import SHOWN, Datasets, FoundAt, JobList, Stands
from grid_jupyter.client.pointers import pointer
from grid_jupyter.client.requests import Request, Requests
from grid_jupyter.client.texts import LINES, changes
from grid_jupyter.wire.jobs import Arguments, JobInfo, LogLine
from grid_jupyter.wire.messages import ColumnInfo, DatasetInfo, TensorInfo
from grid_jupyter.wire.requests import RequestedData, RequestInfo

HOSTILE = "<img src=x onerror='window.stolen=1'></script><b data-commandlinker-command='x'>\u202eevil"
WORDS = [HOSTILE, "x" * 10_000, "</script><script>alert(1)</script>", '"><svg onload=alert(1)>', "a\x00\u2028b"]
TAGS = {"b", "bdi", "code", "div", "i", "pre", "table", "td", "th", "tr"}
"""Elements of ours."""


class Place:
    """Where pointers point to."""

    id = HOSTILE


def dataset(word: str, kind: str) -> DatasetInfo:
    columns = (ColumnInfo(name=word, dtype="float64"),) if kind == "table" else ()
    shape = (12, 3) if kind == "tensor" else (12,)
    name = {"table": "col/0", "tensor": "data"}.get(kind, word)
    return DatasetInfo(
        id=7, version=1, kind=kind, name=word, tags=(word, "#ages"), description=word, owner=word,
        tensors=(TensorInfo(name=name, dtype="float64", shape=shape),), columns=columns,
    )  # fmt: skip


def job(word: str) -> Job:
    info = JobInfo(
        id="0" * 16, state="held", change=1, by=word, reason=word, said=word, node=word, plan="0" * 64, binding="",
        kind="forward", arguments=Arguments(), model=(), model_bytes=0, data={}, device="", device_fraction=0.0,
        owners=(word,), rows=1, created=0.0, began=None, ended=None, expires=None, rounds_done=0, progress=None,
        history=None, log=(LogLine(at=0.0, text=word),),
    )  # fmt: skip
    place: Any = Place()
    return Job(place, info)


def requests(word: str) -> Requests:
    data = (RequestedData(dataset=1, version=1, owner=word),)
    info = RequestInfo(
        id=1, kind="job", asker=word, reason=word, state="waiting", review=False, created=0.0, expires=0.0, data=data,
        decisions=(), dialogue=(), shown={"plan": word, "computed": [word]},
    )  # fmt: skip
    place: Any = Place()
    return Requests([Request(place, info)], "requests")


def everything(word: str) -> dict[str, Any]:
    place: Any = Place()
    found = [pointer(place, dataset(word, kind)) for kind in ("tensor", "table", "arrays")]
    return {
        "a tensor": found[0],
        "a table": found[1],
        "arrays": found[2],
        "a search": Datasets(found),
        "a search over Nodes": FoundAt({word: found}),
        "data sets": Datasets([dataset(word, "table")]),
        "a job": job(word),
        "jobs": JobList([job(word)]),
        "a training": Stands({"name": word, word: 1}),
        "requests": requests(word),
    }


@pytest.mark.parametrize("word", WORDS, ids=["markup", "long", "script", "attribute", "control"])
@pytest.mark.parametrize("what", list(everything("")))
def test_what_others_wrote_is_text(what: str, word: str) -> None:
    shown = everything(word)[what]._repr_html_()
    assert {one.lower() for one in re.findall(r"<\s*/?\s*([\w-]+)", shown)} <= TAGS
    assert set(re.findall(r"<[\w-]+ ([\w-]+)", shown)) <= {"style"}
    assert not {"\u202e", "\u2028", "\x00"} & set(shown)
    assert len(shown) < 10_000
    assert html.escape(word[:5]) in shown or not word[:5].isprintable()


def test_long_lists_are_cut_and_counted_and_empty_ones_say_so() -> None:
    many = Datasets([dataset("ages", "tensor")] * (SHOWN + 5))
    shown = many._repr_html_()
    assert (shown.count("<tr>"), "and 5 more" in shown) == (SHOWN + 1, True)
    assert "float64 12 × 3" in shown
    assert Datasets()._repr_html_() == "<i>no data set</i>"
    assert JobList()._repr_html_() == "<i>no job</i>"


def test_they_are_the_lists_and_dictionaries_that_they_were() -> None:
    assert (Datasets([1, 2]) == [1, 2], repr(Datasets([1, 2]))) == (True, "[1, 2]")
    assert (FoundAt({"Bob": [1]}) == {"Bob": [1]}, repr(FoundAt({"Bob": [1]}))) == (True, "{'Bob': [1]}")


def test_what_is_new_in_a_plan_tells_both_and_no_more_than_needed() -> None:
    dice = random.Random(4)  # noqa: S311 - examples, no secrets
    for _ in range(300):
        before, after = ([dice.choice("abc") for _ in range(dice.randrange(9))] for _ in range(2))
        found = list(changes(before, after))
        assert [one[2:] for one in found if one[0] != "+"] == before
        assert [one[2:] for one in found if one[0] != "-"] == after
    assert list(changes(list("abcd"), list("xbcad"))) == ["- a", "+ x", "  b", "  c", "+ a", "  d"]
    assert list(changes(["a"], ["a"])) == ["  a"]


def test_long_plans_of_lines_that_are_alike_are_compared_in_seconds() -> None:
    before, after = (
        [f"  %{k} = aten.{name}.Tensor(%{k - 1}, %{k - 2}) float32[128, 64]" for k in range(LINES)]
        for name in ("add", "mul")
    )
    began = time.process_time()
    assert len(list(changes(before, after))) == 2 * LINES
    assert time.process_time() - began < 15
