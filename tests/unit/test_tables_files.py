"""Files on their way to a Node: CSV, Parquet, NPZ and safetensors, whatever their size, damaged or not."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from safetensors.numpy import load_file, save_file

from grid_jupyter.client import sources
from grid_jupyter.client.arrays import ArraysSpec
from grid_jupyter.client.tables import TableSpec, read_frame, write_file
from grid_jupyter.errors import InvalidDataError, LimitExceededError
from grid_jupyter.wire.limits import MAX_BLOB_HEADER_BYTES
from grid_jupyter.wire.safetensors import build_header

REFUSALS = (InvalidDataError, LimitExceededError)


def table_of(source: Path) -> pandas.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        spec = write_file(source, Path(folder) / "table")
        assert isinstance(spec, TableSpec)
        frame = read_frame(spec.columns, load_file(Path(folder) / "table").__getitem__)
        assert len(frame) == spec.rows
        return frame


def arrays_of(source: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        spec = write_file(source, Path(folder) / "arrays")
        assert isinstance(spec, ArraysSpec)
        found: dict[str, Any] = load_file(Path(folder) / "arrays")
        assert list(found) == sorted(found, key=list(found).index)
        assert {tensor.name for tensor in spec.tensors} == set(found)
        assert (Path(folder) / "arrays").stat().st_size == spec.nbytes
        assert [path.name for path in Path(folder).iterdir()] == ["arrays"]
        return {tensor.name: found[tensor.name] for tensor in spec.tensors}


def refused(source: Path, text: str, error: type[Exception] = InvalidDataError) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(error, match=text):
            write_file(source, Path(folder) / "out")
        assert not list(Path(folder).iterdir())


@pytest.fixture(params=[1 << 20, 1, 7], ids=["one piece", "pieces of one row", "pieces of a few rows"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECE_CELLS", request.param)


@pytest.mark.parametrize("name", ["data.xlsx", "data", "data.npy"])
def test_another_kind_of_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    refused(tmp_path / name, "CSV, Parquet, NPZ and safetensors")


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz", "safetensors"])
def test_a_file_that_is_not_there_is_told_as_open_tells_it(ending: str, tmp_path: Path) -> None:
    refused(tmp_path / f"none.{ending}", "No such file", FileNotFoundError)


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz", "safetensors"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", bytes(range(256)) * 40])
def test_bytes_that_are_no_such_file_are_refused(ending: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"data.{ending}"
    path.write_bytes(data)
    with pytest.raises(REFUSALS):
        write_file(path, tmp_path / "out")


# ------------------------------------------------------------------ CSV

CSV = """\
whole,part,flag,word,empty,mostly,when
1,0.1,True,one,,1,2020-01-01
2,,False,"two, three",,,2020-01-02
3,1e300,True,NA,,3,
-4,inf,True,"say ""hi""\nthere",,4,2020-01-04
"""


@pytest.mark.usefixtures("_pieces")
def test_a_csv_file_is_what_pandas_reads(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    for text in (CSV, CSV.replace("\n", "\r\n"), "\ufeff" + CSV):
        path.write_bytes(text.encode())
        assert_frame_equal(table_of(path), pandas.read_csv(path))


@pytest.mark.usefixtures("_pieces")
def test_a_column_of_a_csv_file_has_one_dtype_from_its_first_row_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    rows = ["1,1,True,True,1,,5", "2,2.5,,1,2,1,18446744073709551615", ",x,False,False,3,,0.5"]
    path.write_text("\n".join(["a,b,c,d,e,f,g", *rows]))
    frame = table_of(path)
    default = pandas.Series(["x"]).dtype
    assert list(frame.dtypes) == ["float64", default, "boolean", default, "int64", "float64", "float64"]
    assert frame["b"].tolist() == ["1", "2.5", "x"]
    assert frame["c"].tolist() == [True, pandas.NA, False]
    assert frame["d"].tolist() == ["True", "1", "False"]


def test_a_csv_file_without_rows_is_a_table_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("a,b\n")
    assert_frame_equal(table_of(path), pandas.DataFrame({"a": ["x"], "b": ["y"]}).iloc[:0])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"a,b\n1,2\n3,4,5\n", "line 3", id="a row too long"),
        pytest.param(b"a,b\n1,2,3\n4,5,6\n", "line 2", id="all rows too long"),
        pytest.param(b"a,a\n1,2\n", "two columns", id="one name twice"),
        pytest.param(b"a\n\xe9\n", "UTF-8", id="another encoding"),
        pytest.param(b"a\n18446744073709551615\n", "beyond int64", id="integers beyond int64"),
        pytest.param(b'a\n"x\n', "cannot be parsed", id="a quote that does not end"),
    ],
)
def test_a_csv_file_that_cannot_be_a_table_is_refused(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(data)
    refused(tmp_path / "data.csv", text)


@pytest.mark.parametrize("after", ["a\n1\n2\n3\n", "a\n1\n", "a\nx\ny\n", "b\n1\n2\n", "a,b\n1,2\n1,2\n", ""])
def test_a_csv_file_that_changes_while_it_is_read_is_refused(after: str, tmp_path: Path) -> None:
    from grid_jupyter.client import tables

    path = tmp_path / "data.csv"
    path.write_text("a\n1\n2\n")
    source = sources.csv_source(path)
    path.write_text(after)
    with pytest.raises(InvalidDataError):
        tables.write_source(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ Parquet


@pytest.fixture
def frame() -> pandas.DataFrame:
    count = 50
    numbers = numpy.arange(count)
    return pandas.DataFrame(
        {
            "int8": numbers.astype("int8"),
            "uint16": numbers.astype("uint16"),
            "float32": numpy.where(numbers % 3, numbers, numpy.nan).astype("float32"),
            "bool": numbers % 2 == 0,
            "Int64": pandas.array([n if n % 2 else None for n in numbers], dtype="Int64"),
            "UInt8": pandas.array(numbers, dtype="UInt8"),
            "Float64": pandas.array([n if n % 2 else None for n in numbers], dtype="Float64"),
            "boolean": pandas.array([True if n % 2 else None for n in numbers], dtype="boolean"),
            "default": [f"text {n % 7}" if n % 3 else None for n in numbers],
            "string": pandas.array([f"text {n % 7}" if n % 3 else None for n in numbers], dtype="string"),
            "category": pandas.Categorical(
                [f"kind {n % 3}" for n in numbers], categories=[f"kind {n}" for n in range(5)]
            ),
            "ordered": pandas.Categorical([f"kind {n % 3}" for n in numbers], ordered=True),
            "date": pandas.to_datetime(numbers, unit="D"),
            "seconds": pandas.Series(numbers.astype("M8[ms]")),
            "zoned": pandas.to_datetime(numbers, unit="h").tz_localize("UTC").tz_convert("Europe/Berlin"),
            "duration": pandas.to_timedelta(numbers, unit="min"),
        }
    )


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("group", [1000, 20])
def test_a_parquet_file_is_what_pandas_wrote(frame: pandas.DataFrame, group: int, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    frame.to_parquet(path, row_group_size=group)
    assert_frame_equal(table_of(path), frame)


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_integers_and_bools_with_missing_values_become_nullable(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "data.parquet", a=[1, None], b=[2**53 + 1, None], c=[True, None], d=[1, 2], e=[True, False]
    )
    expected = pandas.DataFrame(
        {
            "a": pandas.array([1, None], dtype="Int64"),
            "b": pandas.array([2**53 + 1, None], dtype="Int64"),
            "c": pandas.array([True, None], dtype="boolean"),
            "d": [1, 2],
            "e": [True, False],
        }
    )
    assert_frame_equal(table_of(path), expected)


def test_without_statistics_values_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), path, write_statistics=False)
    assert_frame_equal(table_of(path), pandas.DataFrame({"a": pandas.array([1, 2], dtype="Int64")}))


def test_dates_of_a_parquet_file_are_dates(tmp_path: Path) -> None:
    days = pyarrow.array([0, None, 18262], pyarrow.date32())
    frame = table_of(parquet(tmp_path / "data.parquet", day=days))
    assert frame["day"].dtype == "datetime64[ms]"
    assert frame["day"].tolist() == [pandas.Timestamp("1970-01-01"), pandas.NaT, pandas.Timestamp("2020-01-01")]


@pytest.mark.parametrize("ordered", [False, True])
def test_categories_that_grow_are_joined_and_ordered_ones_only_if_one_order_fits(ordered: bool, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"

    def write(*dictionaries: list[str]) -> None:
        kind = pyarrow.dictionary(pyarrow.int32(), pyarrow.string(), ordered=ordered)
        with pyarrow.parquet.ParquetWriter(path, pyarrow.schema([("c", kind)])) as writer:
            for words in dictionaries:
                codes = pyarrow.array(range(len(words)), pyarrow.int32())
                array = pyarrow.DictionaryArray.from_arrays(codes, pyarrow.array(words), ordered=ordered)
                writer.write_table(pyarrow.table({"c": array}))

    write(["a", "b"], ["a", "b", "c"], ["a", "c"])
    joined = pandas.Categorical([*"ab", *"abc", *"ac"], categories=[*"abc"], ordered=ordered)
    assert_frame_equal(table_of(path), pandas.DataFrame({"c": joined}))
    write(["a", "b"], ["b", "a"])
    if ordered:
        refused(path, "more than one way")
    else:
        assert table_of(path)["c"].tolist() == [*"abba"]


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(pyarrow.array([[1], [2]]), id="lists"),
        pytest.param(pyarrow.array([{"a": 1}]), id="structs"),
        pytest.param(pyarrow.array([b"x"]), id="bytes"),
        pytest.param(pyarrow.array([None]), id="nothing but nulls"),
        pytest.param(pyarrow.array([1], pyarrow.time32("s")), id="times of day"),
        pytest.param(pyarrow.array([1]).cast(pyarrow.decimal128(20)), id="decimals"),
    ],
)
def test_parquet_types_that_cannot_be_published_are_refused_by_name(array: Any, tmp_path: Path) -> None:
    refused(
        parquet(tmp_path / "data.parquet", fine=pyarrow.array([1] * len(array)), bad=array), "'bad' is of Parquet type"
    )


def test_a_parquet_file_with_an_unnamed_index_is_refused_with_the_remedy(tmp_path: Path) -> None:
    pandas.DataFrame({"a": [1, 2]}, index=[3, 4]).to_parquet(tmp_path / "data.parquet")
    refused(tmp_path / "data.parquet", "index=False")


def test_a_parquet_file_cut_short_or_scribbled_over_is_refused(frame: pandas.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    frame.to_parquet(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(path, "damaged")
    path.write_bytes(data[:100] + bytes(600) + data[700:])
    refused(path, "damaged")


# ------------------------------------------------------------------ NPZ


@pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])
def test_the_arrays_of_an_npz_file_keep_names_order_shapes_and_values(
    save: Callable[..., None], tmp_path: Path
) -> None:
    arrays: dict[str, Any] = {
        "z": numpy.arange(6, dtype="float32").reshape(2, 3),
        "a/b": numpy.array(2.5),
        "none": numpy.empty((0, 3), "int8"),
        "bools": numpy.array([True, False]),
        "half": numpy.array([0.5, numpy.nan], "float16"),
        "turned": numpy.arange(24, dtype="int64").reshape(2, 3, 4).transpose(2, 0, 1),
        "swapped": numpy.array([1, -2], ">i4"),
        "swapped and turned": numpy.asfortranarray(numpy.arange(12, dtype=">i2").reshape(3, 4)),
        "empty and turned": numpy.asfortranarray(numpy.empty((3, 0))),
    }
    save(tmp_path / "data.npz", **arrays)
    found = arrays_of(tmp_path / "data.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        numpy.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("block", [8, 64, 200, 1000])
def test_an_array_that_lies_column_by_column_is_turned_block_by_block(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grid_jupyter.client.arrays.TURN_BYTES", block)
    monkeypatch.setattr("grid_jupyter.client.arrays._RUNS", 4)
    array = numpy.arange(7 * 5 * 3, dtype="float64").reshape(5, 3, 7).T
    assert array.flags.f_contiguous
    numpy.savez(tmp_path / "data.npz", x=array)
    numpy.testing.assert_array_equal(arrays_of(tmp_path / "data.npz")["x"], array)


def test_unsigned_integers_of_an_npz_file_are_widened(tmp_path: Path) -> None:
    numpy.savez(
        tmp_path / "data.npz",
        a=numpy.array([2**16 - 1], "u2"),
        b=numpy.array([2**32 - 1], "u4"),
        c=numpy.array([5], "u8"),
    )
    found = arrays_of(tmp_path / "data.npz")
    assert {name: (str(array.dtype), int(array[0])) for name, array in found.items()} == {
        "a": ("int32", 2**16 - 1), "b": ("int64", 2**32 - 1), "c": ("int64", 5)
    }  # fmt: skip


def npy(array: Any = None, **header: Any) -> bytes:
    out = io.BytesIO()
    if header:
        full = {"descr": "<f8", "fortran_order": False, "shape": (1,), **header}
        numpy.lib.format.write_array_header_1_0(out, full)
        out.write(bytes(8))
    else:
        numpy.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def npz(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name if "." in name else f"{name}.npy", data)
    return path


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        pytest.param(npy(numpy.array([[1], None], dtype=object)), "dtype object", id="objects"),
        pytest.param(npy(numpy.array(["a"])), "dtype str", id="texts"),
        pytest.param(npy(numpy.array([1j])), "dtype complex128", id="complex numbers"),
        pytest.param(npy(numpy.array(["2020"], "M8[D]")), "dtype datetime64", id="dates"),
        pytest.param(npy(numpy.zeros(1, "i4,f4")), "dtype void", id="records"),
        pytest.param(npy(numpy.array([2**64 - 1], "u8")), "beyond int64", id="integers beyond int64"),
        pytest.param(npy(numpy.array([2], "u1").view(bool)), "other bytes", id="bools beyond 0 and 1"),
        pytest.param(npy(shape=(2,)), "shorter or longer", id="a shape too long"),
        pytest.param(npy(shape=()) + b"x", "shorter or longer", id="a shape too short"),
        pytest.param(npy(shape=(-1,)), "shorter or longer", id="a negative shape"),
        pytest.param(npy(shape=(1 << 70,)), "shorter or longer", id="a shape beyond everything"),
        pytest.param(npy(descr="|O"), "dtype object", id="objects without any pickle"),
        pytest.param(b"\x93NUMPY\x01\x00\x10\x00{'descr': (        ", "no readable header", id="half a header"),
        pytest.param(b"\x93NUMPY\x03\x00\x10\x00", "no readable header", id="another version"),
        pytest.param(b"no array", "no readable header", id="no array at all"),
        pytest.param(b"", "no readable header", id="nothing"),
    ],
)
def test_an_array_that_cannot_be_published_is_refused_by_name(entry: bytes, text: str, tmp_path: Path) -> None:
    refused(npz(tmp_path / "data.npz", fine=npy(numpy.ones(1)), bad=entry), f"'bad'.*{text}")


def test_an_npz_file_with_other_things_or_nothing_in_it_is_refused(tmp_path: Path) -> None:
    refused(npz(tmp_path / "data.npz", **{"readme.txt": b"hello"}), "no array")
    refused(npz(tmp_path / "data.npz"), "nothing to publish")


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_an_npz_file_with_flipped_bytes_is_refused_or_read_and_nothing_else_happens(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        save = data.draw(st.sampled_from([numpy.savez, numpy.savez_compressed]))
        save(path, a=numpy.arange(3.0), b=numpy.asfortranarray(numpy.ones((2, 2), bool)))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            write_file(path, Path(folder) / "out")
        except REFUSALS:
            assert not (Path(folder) / "out").exists()


# ------------------------------------------------------------------ safetensors


def test_a_safetensors_file_is_copied_without_its_metadata(tmp_path: Path) -> None:
    arrays = {"w": numpy.arange(6.0).reshape(2, 3), "flags": numpy.array([True, False]), "one": numpy.array(1, "int8")}
    save_file(arrays, tmp_path / "data.safetensors", {"note": "secret"})
    found = arrays_of(tmp_path / "data.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        numpy.testing.assert_array_equal(found[name], array)
    write_file(tmp_path / "data.safetensors", tmp_path / "out")
    assert b"secret" not in (tmp_path / "out").read_bytes()


def test_bfloat16_is_copied_byte_by_byte(tmp_path: Path) -> None:
    (tmp_path / "data.safetensors").write_bytes(build_header([("x", "bfloat16", (2,))]) + b"\x80\x3f\x00\x40")
    write_file(tmp_path / "data.safetensors", tmp_path / "out")
    assert (tmp_path / "out").read_bytes().endswith(b"\x80\x3f\x00\x40")


def test_a_safetensors_file_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.safetensors"
    header = build_header([("x", "bool", (2,))])
    path.write_bytes(header + b"\1\2")
    refused(path, "'x' is of bools, but holds other bytes")
    path.write_bytes(header + b"\1")
    refused(path, "end at byte")
    path.write_bytes(build_header([]))
    refused(path, "nothing to publish")
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused(path, "it ends before its header")
    path.write_bytes(struct.pack("<Q", MAX_BLOB_HEADER_BYTES + 1))
    os.truncate(path, 2 * MAX_BLOB_HEADER_BYTES)
    refused(path, "over the limit", LimitExceededError)


# ------------------------------------------------------------------ memory

MAKE = {
    "csv": """
line = ",".join(["0.123456789012"] * 9 + ["word"]) + "\\n"
with open(path, "w") as file:
    file.write(",".join("abcdefghij") + "\\n")
    for _ in range(MB * 9):
        file.write(line * 1000)
""",
    "parquet": """
import pyarrow.parquet
columns = {str(i): numpy.random.default_rng(i).random(MB * 16384) for i in range(7)}
columns["t"] = numpy.array(["word", "other"])[numpy.arange(MB * 16384) % 2]
pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=1 << 30)
""",
    "npz": """
numpy.savez_compressed(path, x=numpy.zeros((MB * 128, 1024)), y=numpy.asfortranarray(numpy.zeros((MB * 128, 16))))
""",
    "turned.npz": """
numpy.savez(path, x=numpy.zeros((1024, MB * 128)).T)
""",
    "safetensors": """
import safetensors.numpy
safetensors.numpy.save_file({"x": numpy.zeros((MB, 1 << 20), "uint8"), "b": numpy.zeros((MB, 1), bool)}, path)
""",
}
PUBLISH = """
import pathlib, resource, sys
from grid_jupyter.client.tables import write_file

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

small, large, out = map(pathlib.Path, sys.argv[1:])
write_file(small, out)
before = peak()
write_file(large, out)
print(peak() - before)
"""


@pytest.mark.parametrize("ending", MAKE)
def test_memory_does_not_grow_with_the_file(ending: str, tmp_path: Path) -> None:
    """The large file holds 160 MiB of values and may cost 40 MiB more than one that fills a piece or two."""
    for name, megabytes in (("small", 30), ("large", 160)):
        script = f"import numpy, sys; path = sys.argv[1]; MB = {megabytes}\n{MAKE[ending]}"
        subprocess.run([sys.executable, "-c", script, tmp_path / f"{name}.{ending}"], check=True)
    command = [
        sys.executable,
        "-c",
        PUBLISH,
        *(tmp_path / name for name in (f"small.{ending}", f"large.{ending}", "out")),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (tmp_path / "out").stat().st_size > 100 << 20
    assert int(done.stdout) < 40
