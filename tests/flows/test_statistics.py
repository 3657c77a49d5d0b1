"""Statistics of published tables: computed by a guest, read by who may read, and the same numbers as pandas'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from node_world import GridProcess

from grid_jupyter import NodeClient
from grid_jupyter.errors import GetNotPermittedError, InvalidDataError, ObjectNotFoundError
from grid_jupyter.tensors.session import Session
from grid_jupyter.wire.messages import DatasetInfo

Connect = Callable[..., NodeClient]
_RANDOM = np.random.default_rng(5)
PEOPLE = pd.DataFrame(
    {
        "age": [31, 45, 62, 70, 18, 66, 81, 55],
        "weight": [70.5, np.nan, 81.25, 60.0, 55.5, np.nan, 77.0, 90.125],
        "height": _RANDOM.normal(170, 10, 8).astype("float32"),
        "visits": pd.array([1, None, 3, 3, None, 8, 2, 0], dtype="Int64"),
        "smoker": [True, False, False, True, False, False, True, False],
        "ward": ["north", "south", None, "north", "east", "south", "north", "east"],
        "blood": pd.Categorical(["A", "B", "A", "0", None, "A", "B", "A"]),
        "born": pd.to_datetime(
            ["1993-02-01", "1979-05-06", None, "1954-01-02", "2006-12-24", "1958-03-03", "1943-07-08", "1969-09-09"]
        ),
        "nothing": [np.nan] * 8,
    }
)
NUMBERS = ["age", "weight", "height", "visits", "smoker", "nothing"]


@pytest.fixture(scope="module")
def people(bob: GridProcess) -> Iterator[DatasetInfo]:
    """Published by Bob, who alone reads it."""
    with bob.client() as client:
        made = client.publish(PEOPLE, tags=["#patients"], user="Bob").dataset
        yield made
        client.unpublish(made, user="Bob")


@pytest.fixture
def table(bob: GridProcess, connect: Connect, people: DatasetInfo) -> Any:
    """A guest's pointer to it."""
    [found] = [one for one in connect(bob).search("#patients") if one.dataset.id == people.id]
    return found


def same(found: Any, expected: Any) -> None:
    """Equal up to rounding, and to which of its dtypes pandas would take for numbers with gaps."""
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_index_type=False, rtol=1e-6)
    else:
        pd.testing.assert_series_equal(found, expected, check_dtype=False, check_index_type=False, rtol=1e-6)


STATISTICS: dict[str, Callable[[Any], Any]] = {
    "mean": lambda t: t.mean(),
    "std": lambda t: t.std(),
    "var of the population": lambda t: t.var(ddof=0),
    "sum": lambda t: t.sum(),
    "min": lambda t: t.min(),
    "max": lambda t: t.max(),
    "median": lambda t: t.median(),
    "quantile": lambda t: t.quantile(0.9),
    "corr": lambda t: t.corr(),
}


def of_pandas(how: str, frame: pd.DataFrame) -> Any:
    return STATISTICS[how](frame[[name for name in NUMBERS if name in frame.columns]].astype(float))


@pytest.mark.parametrize("how", STATISTICS)
def test_each_statistic_is_computed_by_a_guest_and_is_pandas_own_for_a_reader(table: Any, how: str):
    result = STATISTICS[how](table)
    with pytest.raises(GetNotPermittedError):
        result.get()
    same(result.get(user="Bob"), of_pandas(how, PEOPLE))


@pytest.mark.parametrize("how", STATISTICS)
def test_statistics_of_some_rows_need_nobody_to_know_how_many(table: Any, how: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(Session, "sizes", lambda self, identities: asked.append(identities))
    result = STATISTICS[how](table[table["age"] > 40])
    assert asked == []
    same(result.get(user="Bob"), of_pandas(how, PEOPLE[PEOPLE["age"] > 40]))


@pytest.mark.parametrize("rows", [99, 80])
@pytest.mark.parametrize("how", [how for how in STATISTICS if how != "corr"])
def test_none_and_one_row_have_the_statistics_that_pandas_says(table: Any, how: str, rows: int):
    result = STATISTICS[how](table[table["age"] > rows])
    same(result.get(user="Bob"), of_pandas(how, PEOPLE[PEOPLE["age"] > rows]))


def test_describe_is_pandas_own(table: Any):
    names = ["age", "weight", "height", "nothing"]
    summary = table[names].describe()
    with pytest.raises(GetNotPermittedError):
        summary.get()
    same(summary.get(user="Bob"), PEOPLE[names].describe())
    same(summary["weight"].get(user="Bob"), PEOPLE["weight"].describe())


def test_describe_tells_times_as_times(table: Any):
    found = table.describe().get(user="Bob")
    expected = PEOPLE.describe()
    assert list(found.columns) == list(expected.columns) == ["age", "weight", "height", "visits", "born", "nothing"]
    assert list(found.index) == list(expected.index)
    for row in found.index:
        if row in ("count", "std"):
            assert found["born"][row] == expected["born"][row] or np.isnan(found["born"][row])
        else:
            assert abs(found["born"][row] - expected["born"][row]) <= pd.Timedelta("1us")


def test_count_counts_what_is_there_of_every_column(table: Any):
    same(table.count().get(user="Bob"), PEOPLE.count())
    over = table[table["smoker"]]
    same(over.count().get(user="Bob"), PEOPLE[PEOPLE["smoker"]].count())


def test_sums_of_whole_numbers_are_whole(table: Any):
    sums = table[["age", "smoker"]].sum().get(user="Bob")
    assert sums.dtype == "int64"
    assert sums.to_dict() == {"age": 428, "smoker": 3}


@pytest.mark.parametrize("name", ["ward", "blood", "smoker", "age", "visits", "born"])
def test_values_are_counted_with_their_words(table: Any, name: str):
    counts = table.value_counts(name)
    with pytest.raises(GetNotPermittedError):
        counts.get()
    found, expected = counts.get(user="Bob"), PEOPLE[name].value_counts()
    assert {key: int(n) for key, n in found.items()} == {key: int(n) for key, n in expected.items()}
    assert found.tolist() == expected.tolist()
    assert (found.name, found.index.name) == ("count", name)


@pytest.mark.parametrize("name", ["ward", "smoker"])
@pytest.mark.parametrize("how", ["mean", "sum", "count"])
def test_groups_are_those_of_pandas(table: Any, name: str, how: str):
    columns = [one for one in ("age", "weight", "visits", "smoker") if one != name]
    result = getattr(table[[*columns, name]].groupby(name), how)()
    with pytest.raises(GetNotPermittedError):
        result.get()
    frame = PEOPLE[[*columns, name]].astype(dict.fromkeys(columns, float))
    same(result.get(user="Bob"), getattr(frame.groupby(name), how)())


def test_a_column_of_chosen_rows_is_a_tensor_to_compute_with(table: Any):
    heavy = table[table["age"] > 60]["height"]
    assert heavy.mean().get(user="Bob").unwrap().item() == pytest.approx(PEOPLE[PEOPLE["age"] > 60]["height"].mean())
    twice = table[table["age"] > 60][["age", "height"]][table[table["age"] > 60]["age"] < 80]
    assert twice.get(user="Bob").equals(PEOPLE.query("60 < age < 80")[["age", "height"]])
    with pytest.raises(GetNotPermittedError):
        len(heavy)
    with pytest.raises(GetNotPermittedError):
        twice.get()


def test_columns_make_a_matrix(table: Any):
    matrix = table.to_tensor(["age", "weight"])
    assert (tuple(matrix.shape), matrix.dtype) == ((8, 2), torch.float64)
    np.testing.assert_array_equal(matrix.get(user="Bob").unwrap(), PEOPLE[["age", "weight"]])
    assert table.to_tensor().shape == (8, 6)


def test_some_columns_come_as_they_were_published(table: Any):
    part = table[["ward", "age"]]
    assert part.get(user="Bob").equals(PEOPLE[["ward", "age"]])
    assert "ward, age" in repr(part)
    assert part.columns == ["ward", "age"]


@pytest.mark.parametrize(
    ("attempt", "error", "text"),
    [
        (lambda t: t["wat"], ObjectNotFoundError, "no column 'wat'"),
        (lambda t: t[["age", "wat"]], ObjectNotFoundError, "no column 'wat'"),
        (lambda t: t[["age"]]["ward"], ObjectNotFoundError, "no 'ward'"),
        (lambda t: t[t["age"]], InvalidDataError, "by a mask of booleans"),
        (lambda t: t[3], InvalidDataError, "by name"),
        (lambda t: t.quantile(2), InvalidDataError, "between 0 and 1"),
        (lambda t: t[["ward"]].mean(), InvalidDataError, "no columns of numbers"),
        (lambda t: t[["ward"]].describe(), InvalidDataError, "value_counts"),
        (lambda t: t[["ward"]].groupby("ward").mean(), InvalidDataError, "no other columns"),
        (lambda t: t.mean()["ward"], ObjectNotFoundError, "there are: age"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(
    table: Any, attempt: Callable[[Any], Any], error: type[Exception], text: str
):
    with pytest.raises(error, match=text):
        attempt(table)


def test_one_statistic_of_one_column_is_a_pointer(table: Any):
    assert table.mean()["age"].get(user="Bob").unwrap().item() == PEOPLE["age"].mean()
    assert table.groupby("smoker").mean()["age"].sum().get(user="Bob").unwrap().item() == pytest.approx(
        PEOPLE.groupby("smoker")["age"].mean().sum()
    )
