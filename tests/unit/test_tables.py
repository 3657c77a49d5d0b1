"""DataFrames into a file and back: exact for everything supported, a clear refusal for everything else."""

from __future__ import annotations

import datetime
import decimal
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pandas.testing import assert_frame_equal
from safetensors.numpy import load_file

from grid_jupyter.client import tables
from grid_jupyter.client.columns import ColumnPlan, column_values, describe_dtype, parse_dtype
from grid_jupyter.client.series import categories
from grid_jupyter.client.tables import TableSpec, read_frame, write_frame
from grid_jupyter.errors import InvalidDataError, LimitExceededError, StorageFullError
from grid_jupyter.wire.limits import MAX_NAME_CHARS
from grid_jupyter.wire.messages import ColumnInfo

# ------------------------------------------------------------------ there and back

UNITS = ["s", "ms", "us", "ns"]
ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "UTC+01:00", "UTC-03:30"]
TEXT_DTYPES = ["string[python]", "string[pyarrow]"] + (
    ["str", pandas.StringDtype("python", na_value=numpy.nan), pandas.StringDtype("pyarrow", na_value=numpy.nan)]
    if int(pandas.__version__.split(".")[0]) >= 3
    else ["string[pyarrow_numpy]"]
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
plain_numbers = st.sampled_from(["bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32)), "int64", "uint64"])


def plain_elements(dtype: str) -> Any:
    kind = numpy.dtype(dtype)
    return st.integers(0, 2**63 - 1) if dtype == "uint64" else arrays.from_dtype(kind)


@st.composite
def plain_columns(draw: st.DrawFn, rows: int) -> Any:
    dtype = draw(plain_numbers | st.sampled_from(["float16", "float32", "float64"]))
    return pandas.Series(draw(arrays.arrays(dtype, rows, elements=plain_elements(dtype))))


@st.composite
def nullable_columns(draw: st.DrawFn, rows: int) -> Any:
    dtype = draw(plain_numbers | st.sampled_from(["float32", "float64"]))
    values = draw(arrays.arrays(dtype, rows, elements=plain_elements(dtype)))
    mask = draw(arrays.arrays(bool, rows))
    kind: Any = {"b": pandas.arrays.BooleanArray, "f": pandas.arrays.FloatingArray}.get(
        values.dtype.kind, pandas.arrays.IntegerArray
    )
    return pandas.Series(kind(values, mask))


def times(values: list[int | None], word: str, unit: str, zone: str | None) -> Any:
    filled = [numpy.iinfo("int64").min if value is None else value for value in values]
    series = pandas.Series(numpy.array(filled, dtype="int64").view(f"{word}[{unit}]"))
    return series if zone is None else series.dt.tz_localize("UTC").dt.tz_convert(parse_zone(zone))


def parse_zone(zone: str) -> Any:
    return pandas.DatetimeTZDtype("ns", zone).tz


@st.composite
def time_columns(draw: st.DrawFn, rows: int, missing: bool = True) -> Any:
    word = draw(st.sampled_from(["datetime64", "timedelta64"]))
    unit, zone = draw(st.sampled_from(UNITS)), draw(st.none() | st.sampled_from(ZONES))
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    years = (-290, 290) if unit == "ns" or zone else (-1900, 8000)
    one = st.integers(*(year * 365 * 86400 * scale for year in years))
    values = draw(st.lists(one | st.none() if missing else one, min_size=rows, max_size=rows, unique=not missing))
    return times(values, word, unit, None if word == "timedelta64" else zone)


@st.composite
def text_columns(draw: st.DrawFn, rows: int) -> Any:
    values = draw(st.lists(texts | st.none(), min_size=rows, max_size=rows))
    dtype = draw(st.sampled_from([None, *TEXT_DTYPES]))
    if dtype is not None:
        return pandas.Series(values, dtype=dtype)
    missing = draw(st.sampled_from([None, numpy.nan]))
    return pandas.Series([missing if value is None else value for value in values], dtype=object)


@st.composite
def category_columns(draw: st.DrawFn, rows: int) -> Any:
    known = draw(
        st.lists(texts, unique=True, max_size=4)
        | st.lists(texts, unique=True, max_size=4).map(lambda found: pandas.Index(found, dtype="string"))
        | st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=4).map(
            lambda n: pandas.Index(n, dtype="int64")
        )
        | st.lists(st.integers(0, 2**16 - 1), unique=True, max_size=4).map(lambda n: pandas.Index(n, dtype="uint16"))
        | st.lists(st.integers(0, 99), unique=True, max_size=4).map(lambda n: pandas.Index(n, dtype="Int32"))
        | st.lists(st.floats(allow_nan=False), unique=True, max_size=4)
        | st.lists(st.booleans(), unique=True, max_size=2)
        | time_columns(3, missing=False).map(pandas.Index)
    )
    codes = draw(st.lists(st.integers(-1, len(known) - 1), min_size=rows, max_size=rows))
    return pandas.Series(pandas.Categorical.from_codes(codes, known, ordered=draw(st.booleans())))


@st.composite
def frames(draw: st.DrawFn) -> pandas.DataFrame:
    rows = draw(st.integers(0, 6))
    kinds = [plain_columns, nullable_columns, time_columns, text_columns, category_columns]
    columns = draw(st.lists(st.sampled_from(kinds).flatmap(lambda kind: kind(rows)), min_size=1, max_size=5))
    names = draw(st.lists(texts, min_size=len(columns), max_size=len(columns), unique=True))
    return pandas.DataFrame(dict(zip(names, columns, strict=True)))


def there_and_back(frame: pandas.DataFrame) -> tuple[TableSpec, pandas.DataFrame]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        spec = write_frame(frame, path)
        assert path.stat().st_size == spec.nbytes
        found = load_file(path)
        assert {t.name: (t.dtype, t.shape) for t in spec.tensors} == {
            n: (a.dtype.name, a.shape) for n, a in found.items()
        }
        return spec, read_frame(spec.columns, found.__getitem__)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames())
def test_a_frame_comes_back_exactly(frame: pandas.DataFrame) -> None:
    spec, back = there_and_back(frame)
    assert_frame_equal(frame, back)
    assert [column.name for column in spec.columns] == list(frame.columns)
    assert spec.rows == len(frame)


@given(st.integers(1, 40), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_a_frame_of_many_pieces_comes_back_exactly(rows: int, cells: int) -> None:
    frame = pandas.DataFrame(
        {
            "n": range(rows),
            "text": [f"t{i % 5}" if i % 3 else None for i in range(rows)],
            "kind": pandas.Categorical([f"k{i % 4}" for i in range(rows)], categories=[f"k{i}" for i in range(9)]),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grid_jupyter.client.sources.PIECE_CELLS", cells)
        assert_frame_equal(frame, there_and_back(frame)[1])


def test_the_description_of_a_table_tells_no_category_and_no_row() -> None:
    frame = pandas.DataFrame(
        {
            "diagnosis": pandas.Categorical(["secret-a", "secret-b", None], ordered=True),
            "name": ["secret-c", None, "secret-d"],
            "born": pandas.to_datetime(["1987-06-05", None, "1999-01-02"]),
        }
    )
    spec, _ = there_and_back(frame)
    assert "secret" not in repr(spec)
    assert "1987" not in repr(spec)
    assert spec.columns[0] == ColumnInfo(name="diagnosis", dtype="category[ordered]")


def test_values_under_a_mask_are_zero(tmp_path: Path) -> None:
    hidden = pandas.arrays.IntegerArray(numpy.array([7, 8]), numpy.array([False, True]))
    path = tmp_path / "table"
    write_frame(pandas.DataFrame({"x": hidden, "t": times([5, None], "datetime64", "ns", None)}), path)
    found = load_file(path)
    assert found["col/0"].tolist() == [7, 0]
    assert found["col/1"].tolist() == [5, 0]
    assert found["mask/1"].tolist() == [False, True]


def test_the_vocabulary_is_a_json_list_and_codes_count_in_it(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_frame(pandas.DataFrame({"x": ["b", None, "ä", "b"]}), path)
    found = load_file(path)
    assert found["col/0"].tolist() == [0, -1, 1, 0]
    assert json.loads(found["vocab/0"].tobytes())[:2] == ["b", "ä"]


def test_categories_are_told_as_pandas_has_them(tmp_path: Path) -> None:
    dates = pandas.to_datetime(["2020-01-02", "2021-03-04"])
    frame = pandas.DataFrame(
        {
            "text": pandas.Series(["b", None], dtype=object),
            "date": pandas.Categorical(dates),
            "number": pandas.Categorical([0.5, numpy.inf]),
            "none": [1, 2],
        }
    )
    columns = write_frame(frame, tmp_path / "table").columns
    found = load_file(tmp_path / "table")
    assert categories(columns[0], found["vocab/0"]) == ["b"]
    assert categories(columns[1], found["vocab/1"]) == list(dates)
    assert categories(columns[2], found["vocab/2"]) == [0.5, numpy.inf]
    with pytest.raises(InvalidDataError, match="'none' do not hold int64"):
        categories(columns[3], found["vocab/2"])
    with pytest.raises(InvalidDataError, match="'date' do not hold"):
        categories(columns[1], found["vocab/0"])
    with pytest.raises(InvalidDataError, match="no JSON list"):
        categories(columns[0], found["col/3"])


def test_a_long_vocabulary_is_written_whole() -> None:
    frame = pandas.DataFrame({"x": [f"text {i}" for i in range(25_000)]})
    assert_frame_equal(frame, there_and_back(frame)[1])


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    write_frame(pandas.DataFrame({"x": [1]}), tmp_path / "table")
    assert (tmp_path / "table").stat().st_mode & 0o777 == 0o600


# ------------------------------------------------------------------ names and indexes


def test_names_that_are_no_texts_become_texts() -> None:
    spec, back = there_and_back(pandas.DataFrame({0: [1], "x": [2], None: [3]}))
    assert list(back.columns) == ["0", "x", "None"]
    assert [column.name for column in spec.columns] == ["0", "x", "None"]


def test_a_named_index_becomes_the_first_columns() -> None:
    frame = pandas.DataFrame({"x": [1.0, 2.0]}, index=pandas.Index(["a", "b"], name="who"))
    assert_frame_equal(there_and_back(frame)[1], frame.reset_index())
    levels = pandas.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["who", "when"])
    frame = pandas.DataFrame({"x": [1.0, 2.0]}, index=levels)
    assert_frame_equal(there_and_back(frame)[1], frame.reset_index())


@pytest.mark.parametrize("index", [pandas.RangeIndex(5, 11, 2), pandas.RangeIndex(3)])
def test_row_numbers_are_left_out(index: pandas.RangeIndex) -> None:
    frame = pandas.DataFrame({"x": [1, 2, 3]}, index=index)
    assert_frame_equal(there_and_back(frame)[1], frame.reset_index(drop=True))


def test_a_table_without_rows_keeps_its_dtypes_and_categories() -> None:
    frame = pandas.DataFrame({"x": [1], "c": pandas.Categorical(["a"]), "t": ["x"], "d": [pandas.Timestamp(0)]}).iloc[
        :0
    ]
    assert_frame_equal(there_and_back(frame)[1], frame)


LONE_SURROGATE = pandas.Index(["\ud800"], dtype=object)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        pytest.param(pandas.DataFrame(), "nothing to publish", id="no columns"),
        pytest.param(pandas.DataFrame([[1, 2]], columns=["a", "a"]), "two columns", id="one name twice"),
        pytest.param(pandas.DataFrame([[1, 2]], columns=["1", 1]), "two columns", id="names with one text"),
        pytest.param(pandas.DataFrame({"a": [1]}).rename_axis("a"), "two columns", id="index named so"),
        pytest.param(pandas.DataFrame({"a": [1, 2]}, index=[3, 4]), "reset_index", id="an unnamed index"),
        pytest.param(pandas.DataFrame({("a", "b"): [1]}), "several", id="names of several levels"),
        pytest.param(pandas.DataFrame([[1]], columns=LONE_SURROGATE), "Unicode", id="half a character in a name"),
        pytest.param(pandas.DataFrame({"a": LONE_SURROGATE}), "Unicode", id="half a character"),
        pytest.param(pandas.DataFrame({"a": ["x", 1]}), "'a' holds other", id="texts and numbers"),
        pytest.param(pandas.DataFrame({"a": [True, None]}), "'a' holds other", id="bools and None"),
        pytest.param(pandas.DataFrame({"a": [b"x"]}), "'a' holds other", id="bytes"),
        pytest.param(pandas.DataFrame({"a": [[1], [2]]}), "'a' holds other", id="lists"),
        pytest.param(pandas.DataFrame({"a": [decimal.Decimal(1)]}), "'a' holds other", id="decimals"),
        pytest.param(pandas.DataFrame({"a": [datetime.date(2020, 1, 1)]}), "'a' holds other", id="date objects"),
        pytest.param(pandas.DataFrame({"a": ["x", pandas.NA]}, dtype=object), "'a' holds", id="NA object"),
        pytest.param(pandas.DataFrame({"a": numpy.array([2**63], "uint64")}), "beyond int64", id="uint64"),
        pytest.param(pandas.DataFrame({"a": pandas.array([2**63], "UInt64")}), "beyond int64", id="UInt64"),
        pytest.param(pandas.DataFrame({"a": [1j]}), "imaginary", id="complex numbers"),
        pytest.param(pandas.DataFrame({"a": pandas.arrays.SparseArray([0, 1])}), "to_dense", id="sparse"),
        pytest.param(pandas.DataFrame({"a": pandas.period_range("2020", periods=1)}), "to_timestamp", id="periods"),
        pytest.param(pandas.DataFrame({"a": pandas.interval_range(0, 1)}), "astype", id="intervals"),
        pytest.param(pandas.DataFrame({"a": pandas.cut([1, 2], 2)}), "astype", id="categories that are intervals"),
        pytest.param(pandas.DataFrame({"a": pandas.array([1], "int64[pyarrow]")}), "numpy_nullable", id="arrow dtypes"),
        pytest.param(pandas.DataFrame({"a": pandas.Categorical(["a", 1])}), "'a' holds other", id="mixed categories"),
    ],
)  # fmt: skip
def test_what_cannot_be_published_is_refused_with_a_remedy(frame: pandas.DataFrame, text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match=text):
        write_frame(frame, tmp_path / "table")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_dates_from_the_year_1_to_9999_come_back_and_others_are_refused(unit: str, zone: str | None) -> None:
    scale = {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    seconds = (-9_214_560_000, 253_402_300_800 - 86_400) if zone else (-62_135_596_800, 253_402_300_800)
    first, last = seconds[0] * scale, seconds[1] * scale - 1
    frame = pandas.DataFrame({"x": times([first, last, None], "datetime64", unit, zone)})
    assert_frame_equal(there_and_back(frame)[1], frame)
    for tick in (first - 1, last + 1, 2**63 - 1, -(2**63) + 1):
        dtype = f"datetime64[{unit}, {zone}]" if zone else f"datetime64[{unit}]"
        tensors = {"col/0": numpy.array([tick]), "mask/0": numpy.array([False])}
        with pytest.raises(InvalidDataError, match="do not hold"):
            read_frame([ColumnInfo(name="x", dtype=dtype)], tensors.__getitem__)
    series = pandas.Series(numpy.array([253_402_300_800 * scale]).view(f"datetime64[{unit}]"))
    for column in (series, series.astype("category")):
        with pytest.raises(InvalidDataError, match="or after 9999"):
            there_and_back(pandas.DataFrame({"x": column}))


def test_too_long_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LimitExceededError, match=str(MAX_NAME_CHARS)):
        write_frame(pandas.DataFrame({"x" * (MAX_NAME_CHARS + 1): [1]}), tmp_path / "table")


def test_more_different_texts_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_VOCABULARY_BYTES", 1000)
    with pytest.raises(LimitExceededError, match="'ids'"):
        write_frame(pandas.DataFrame({"few": ["a"] * 99, "ids": [str(i) for i in range(99)]}), tmp_path / "table")
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(b"old")
    script = (
        "import pandas, pathlib, resource, signal, sys; from grid_jupyter.client.tables import write_frame\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "write_frame(pandas.DataFrame({'x': range(10_000)}), pathlib.Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "table"], capture_output=True, text=True)
    assert f"{StorageFullError.__name__}: there is no room left" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    assert (tmp_path / "table").read_bytes() == b"old"


# ------------------------------------------------------------------ dtype texts and plans


@pytest.mark.parametrize(
    "text",
    ["", "int", "complex64", "datetime64", "datetime64[ns, Nowhere/Land]", "datetime64[ns, dateutil//etc/passwd]",
     "datetime64[ns, ../../etc/passwd]", "timedelta64[ns, UTC]", "category[category]", "category[]", "Sparse[int]",
     "category[float16]", "category[" * 5000, "string[pyarrow_numpy]", "M8[ns]", "int64[pyarrow]"],
)  # fmt: skip
def test_a_dtype_that_is_none_of_ours_is_refused(text: str) -> None:
    with pytest.raises(InvalidDataError):
        parse_dtype(text)


def test_byte_orders_are_made_native() -> None:
    assert describe_dtype(numpy.dtype(">i4")) == "int32"
    back = there_and_back(pandas.DataFrame({"x": numpy.array([1, -2], ">i4")}))[1]
    assert_frame_equal(back, pandas.DataFrame({"x": numpy.array([1, -2], "int32")}))


def test_a_plan_says_how_computations_see_a_column() -> None:
    dtypes = [
        "float32",
        "uint16",
        "Int64",
        "boolean",
        "datetime64[ns, UTC]",
        "timedelta64[ms]",
        "category[int64]",
        "str",
    ]
    columns = [ColumnInfo(name=str(i), dtype=dtype) for i, dtype in enumerate(dtypes)]
    names = {f"{word}/{i}" for word in ("col", "mask", "vocab") for i in range(len(columns))}
    plans = [column_values(columns, i, names) for i in range(len(columns))]
    assert plans == [
        ColumnPlan("col/0"),
        ColumnPlan("col/1"),
        ColumnPlan("col/2", mask="mask/2"),
        ColumnPlan("col/3", mask="mask/3"),
        ColumnPlan("col/4", mask="mask/4", scale=1e9),
        ColumnPlan("col/5", mask="mask/5", scale=1e3),
        ColumnPlan("col/6", categories="vocab/6"),
        ColumnPlan("col/7", categories="vocab/7"),
    ]
    assert [plan.as_float for plan in plans] == [False, False, True, True, True, True, False, False]


@settings(max_examples=50, deadline=None)
@given(time_columns(4))
def test_a_plan_for_times_gives_seconds_since_1970(series: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = write_frame(pandas.DataFrame({"x": series}), Path(folder) / "table")
        found = load_file(Path(folder) / "table")
    plan = column_values(spec.columns, 0, found)
    assert plan.mask is not None
    seconds = numpy.where(found[plan.mask], numpy.nan, found[plan.values].astype("float64") / plan.scale)
    for value, second in zip(series, seconds, strict=True):
        if value is pandas.NaT:
            assert numpy.isnan(second)
        else:
            exact = value.timestamp() if isinstance(value, pandas.Timestamp) else value.total_seconds()
            assert second == pytest.approx(exact, rel=1e-15, abs=1e-6)


def test_a_plan_for_a_column_whose_tensors_are_not_there_is_refused() -> None:
    with pytest.raises(InvalidDataError, match="lacks tensors"):
        column_values([ColumnInfo(name="x", dtype="Int64")], 0, {"col/0"})


# ------------------------------------------------------------------ a Node that lies to its reader

some_dtypes = st.sampled_from(
    ["int8", "uint16", "uint64", "float16", "Int8", "UInt16", "boolean", "Float32", "datetime64[ns]",
     "datetime64[s, UTC]", "datetime64[s, Europe/Berlin]", "timedelta64[s]",
     "object", "str", "string", "category", "category[ordered]",
     "category[bool]", "category[UInt16]", "category[float32]", "category[datetime64[ms, Asia/Tokyo], ordered]"]
)  # fmt: skip
some_arrays = arrays.arrays(
    st.sampled_from(["int8", "uint8", "int32", "int64", "bool", "float32", ">i8"]),
    arrays.array_shapes(min_dims=0, max_dims=2),
)
some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
some_vocabularies = (
    some_json | st.lists(texts) | st.lists(st.integers()) | st.lists(st.integers(-300, 300)) | st.lists(st.booleans())
).map(lambda found: numpy.frombuffer(json.dumps(found).encode(), "uint8"))  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_tensors_that_do_not_fit_are_refused_and_nothing_else_happens(data: st.DataObject) -> None:
    columns = data.draw(
        st.lists(st.builds(ColumnInfo, name=texts, dtype=some_dtypes | st.text(max_size=9)), min_size=1, max_size=2)
    )

    def read(name: str) -> Any:
        if name.startswith("vocab"):
            return data.draw(some_vocabularies | st.just(numpy.frombuffer(b"[" * 100_000, "uint8")) | some_arrays)
        likely = arrays.arrays("bool" if name.startswith("mask") else st.sampled_from(["int32", "int64", "int8"]), 2)
        return data.draw(likely | some_arrays)

    try:
        frame = read_frame(columns, read)
    except InvalidDataError:
        return
    assert list(frame.columns) == [column.name for column in columns]
    repr(frame)
