"""The safetensors header: both ways with the safetensors library, and nothing but two errors for what is hostile."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load, save

from grid_jupyter.errors import InvalidDataError, LimitExceededError
from grid_jupyter.wire import safetensors
from grid_jupyter.wire.dtypes import ITEM_BYTES, TO_SAFETENSORS, nbytes
from grid_jupyter.wire.limits import MAX_BLOB_HEADER_BYTES, MAX_COLUMNS, MAX_NAME_CHARS, MAX_RANK
from grid_jupyter.wire.safetensors import BlobTensor, build_header, parse_header, read_header

REFUSALS = (InvalidDataError, LimitExceededError)

dtypes = st.sampled_from(sorted(TO_SAFETENSORS))
numpy_dtypes = st.sampled_from(sorted(set(TO_SAFETENSORS) - {"bfloat16"}))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def header_of(entries: Any, data_bytes: int = 0) -> tuple[bytes, bytes, int]:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)), text, 8 + len(text) + data_bytes


def parse(entries: Any, data_bytes: int = 0) -> tuple[BlobTensor, ...]:
    return parse_header(*header_of(entries, data_bytes))


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# ------------------------------------------------------------------ with the library


@given(st.dictionaries(names, st.tuples(numpy_dtypes, shapes), min_size=1, max_size=6))
def test_a_file_of_the_library_reads_as_the_library_reads_it(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    arrays = {
        name: numpy.arange(numpy.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for name, (dtype, shape) in tensors.items()
    }
    data = save(arrays, {"format": "np"})
    found, start = read_header(io.BytesIO(data))
    assert start == 8 + struct.unpack("<Q", data[:8])[0]
    assert {tensor.name for tensor in found} == set(arrays)
    for tensor in found:
        array = arrays[tensor.name]
        assert (tensor.dtype, tensor.shape) == (array.dtype.name, array.shape)
        assert data[tensor.begin : tensor.end] == array.tobytes()


@given(st.lists(st.tuples(names, numpy_dtypes, shapes), max_size=6, unique_by=lambda t: t[0]), st.integers(0, 900))
def test_a_file_of_ours_reads_in_the_library_and_lies_aligned(
    tensors: list[tuple[str, str, tuple[int, ...]]], min_bytes: int
) -> None:
    header = build_header(tensors, {"made": "here – ü"}, min_bytes=min_bytes)
    total = len(header) + sum(nbytes(dtype, shape) for _, dtype, shape in tensors)
    assert len(header) % 8 == 0
    assert len(header) >= min_bytes
    found = parse_header(header[:8], header[8:], total)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in found] == tensors
    data = bytearray(header).ljust(total, b"\0")
    for number, tensor in enumerate(found):
        assert tensor.begin % ITEM_BYTES[tensor.dtype] == 0
        data[tensor.begin : tensor.end] = bytes([number % 2]) * (tensor.end - tensor.begin)
    loaded = load(bytes(data))
    assert loaded.keys() == {name for name, _, _ in tensors}
    for number, (name, dtype, shape) in enumerate(tensors):
        assert (loaded[name].dtype.name, loaded[name].shape) == (dtype, shape)
        assert loaded[name].tobytes() == bytes([number % 2]) * nbytes(dtype, shape)


def test_metadata_of_ours_reads_in_the_library(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    path.write_bytes(build_header([("x", "bfloat16", (3,))], {"a": "b"}) + bytes(6))
    with safe_open(path, "np") as file:
        assert file.metadata() == {"a": "b"}
        assert file.get_slice("x").get_dtype() == "BF16"


def test_reading_a_header_needs_no_array_library() -> None:
    script = (
        "import grid_jupyter.wire.safetensors, sys; assert not {'numpy', 'torch', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_file_without_tensors_is_a_file() -> None:
    assert parse({}) == ()
    assert load(build_header([])) == {}


# ------------------------------------------------------------------ what a header may lie about


@pytest.mark.parametrize(
    ("entries", "data_bytes", "text"),
    [
        pytest.param({"x": entry(offsets=(0, 4))}, 4, "needs 8 bytes", id="a range shorter than the shape"),
        pytest.param({"x": entry(offsets=(8, 0))}, 8, "needs 8 bytes", id="a range that runs backwards"),
        pytest.param({"x": entry(offsets=(-8, 0))}, 8, "needs 8 bytes", id="a negative offset"),
        pytest.param({"x": entry(offsets=(0, 8, 16))}, 8, "no list", id="three offsets"),
        pytest.param({"x": entry(offsets=(False, 8))}, 8, "needs 8 bytes", id="a bool for an offset"),
        pytest.param({"x": entry(shape=(True, 2))}, 8, "no size", id="a bool for a dimension"),
        pytest.param({"x": entry(shape=(-2,))}, 8, "no size", id="a negative dimension"),
        pytest.param({"x": entry(shape=("2",))}, 8, "no size", id="a text for a dimension"),
        pytest.param({"x": {**entry(), "shape": 2}}, 8, "no list", id="a number for a shape"),
        pytest.param({"x": entry("F8_E4M3")}, 8, "dtype other than", id="a dtype off the list"),
        pytest.param({"x": {**entry(), "dtype": ["F32"]}}, 8, "dtype other than", id="a list for a dtype"),
        pytest.param({"x": {**entry(), "more": 1}}, 8, "nothing else", id="a field too many"),
        pytest.param({"x": {"dtype": "F32"}}, 8, "nothing else", id="fields that are missing"),
        pytest.param({"x": 1}, 8, "nothing else", id="a number for a tensor"),
        pytest.param({"": entry()}, 8, "cannot be named", id="an empty name"),
        pytest.param({"x": entry(), "y": entry()}, 8, "overlaps", id="two tensors in one place"),
        pytest.param({"x": entry(), "y": entry(offsets=(12, 20))}, 20, "gap", id="a gap between tensors"),
        pytest.param({"x": entry(offsets=(4, 12))}, 12, "gap", id="a gap before the first tensor"),
        pytest.param({"x": entry()}, 12, "end at byte", id="bytes that belong to no tensor"),
        pytest.param({"x": entry()}, 4, "end at byte", id="a tensor beyond the end of the file"),
        pytest.param({"__metadata__": {"a": 1}}, 0, "metadata", id="a number in the metadata"),
        pytest.param({"__metadata__": ["a"]}, 0, "metadata", id="a list for metadata"),
        pytest.param(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0, "Unicode", id="a surrogate"),
        pytest.param(b'{"x":1,"x":2}', 0, "twice", id="one name twice"),
        pytest.param(b'{"x":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0, "twice", id="fields"),
        pytest.param(b'{"x":1.5}', 0, "not an integer", id="a fraction"),
        pytest.param(b'{"x":NaN}', 0, "not an integer", id="a NaN"),
        pytest.param(b'{"x":' + b"9" * 5000 + b"}", 0, "beyond 64 bits", id="a number of 5000 digits"),
        pytest.param(b'{"x":' + b"[" * 100_000, 0, "nests too deeply", id="deep nesting"),
        pytest.param(b'{"x":"' + b"\xff" + b'"}', 0, "well-formed", id="bytes that are not UTF-8"),
        pytest.param(b"{", 0, "well-formed", id="half a header"),
        pytest.param(b" {}", 0, "begin with", id="a space before the header"),
        pytest.param(b"[]", 0, "begin with", id="a list for a header"),
        pytest.param(b"", 0, "begin with", id="an empty header"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(entries: Any, data_bytes: int, text: str) -> None:
    with pytest.raises(InvalidDataError, match=text):
        parse(entries, data_bytes)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        pytest.param({"x": entry(shape=(0,) * (MAX_RANK + 1), offsets=(0, 0))}, "dimensions", id="rank"),
        pytest.param({"x": entry(shape=(0, 1 << 62, 1 << 62), offsets=(0, 0))}, "64 bits", id="strides that overflow"),
        pytest.param({"x" * (MAX_NAME_CHARS + 1): entry()}, "characters", id="name"),
        pytest.param({str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(MAX_COLUMNS + 1)}, "10000", id="count"),
        pytest.param(b'{"x":[' + b"[]," * 1_000_000 + b"[]]}", "objects and lists", id="JSON that swells in memory"),
    ],
)
def test_a_header_over_a_limit_is_refused_by_the_limits_name(entries: Any, text: str) -> None:
    with pytest.raises(LimitExceededError, match=text):
        parse(entries)


def test_a_header_length_over_the_limit_is_refused_before_the_header_is_read() -> None:
    class Watched(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1) -> bytes:
            self.asked += size or 0
            return super().read(size)

    file = Watched(struct.pack("<Q", MAX_BLOB_HEADER_BYTES + 1) + bytes(MAX_BLOB_HEADER_BYTES + 1))
    with pytest.raises(LimitExceededError, match=str(MAX_BLOB_HEADER_BYTES)):
        read_header(file)
    assert file.asked == 8


@pytest.mark.parametrize("data", [b"", b"1234567", struct.pack("<Q", 3) + b"{}"])
def test_a_file_that_ends_too_soon_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidDataError):
        read_header(io.BytesIO(data))


def test_what_the_library_refuses_we_refuse_to_write() -> None:
    with pytest.raises(InvalidDataError, match="two tensors"):
        build_header([("x", "int8", ()), ("x", "int8", ())])
    with pytest.raises(InvalidDataError, match="does not travel"):
        build_header([("x", "complex64", ())])
    with pytest.raises(InvalidDataError, match="cannot be named"):
        build_header([("__metadata__", "int8", ())])
    with pytest.raises(InvalidDataError, match="no size"):
        build_header([("x", "int8", (-1,))])
    with pytest.raises(LimitExceededError, match="limit of 10000"):
        build_header([(str(i), "int8", ()) for i in range(MAX_COLUMNS + 1)])


# ------------------------------------------------------------------ fuzz

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
entries_nearly_right = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*safetensors.SAFETENSORS, "F4"]) | json_values,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    },
    optional={"extra": json_values},
)
headers = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), entries_nearly_right | json_values, max_size=4)


def accepted_or_refused(prefix: bytes, header: bytes, file_bytes: int) -> None:
    try:
        tensors = parse_header(prefix, header, file_bytes)
    except REFUSALS:
        return
    assert sum(tensor.end - tensor.begin for tensor in tensors) == file_bytes - 8 - len(header)
    for tensor in tensors:
        assert 8 + len(header) <= tensor.begin <= tensor.end <= file_bytes
        assert tensor.end - tensor.begin == nbytes(tensor.dtype, tensor.shape)


@settings(max_examples=400)
@given(headers, st.integers(0, 64))
def test_a_header_of_wrong_json_is_refused_by_one_of_two_errors(entries: Any, data_bytes: int) -> None:
    accepted_or_refused(*header_of(entries, data_bytes))


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 100))
def test_bytes_that_are_no_header_are_refused_by_one_of_two_errors(data: bytes, file_bytes: int) -> None:
    accepted_or_refused(data[:8], data[8:], file_bytes)
    accepted_or_refused(struct.pack("<Q", len(data)), data, 8 + len(data))


@settings(max_examples=300)
@given(st.data())
def test_a_header_with_flipped_bytes_is_refused_by_one_of_two_errors_or_harmless(data: st.DataObject) -> None:
    file = bytearray(save({"x": numpy.ones((2, 3), "float32"), "y": numpy.zeros(4, "bool")}, {"a": "b"}))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 29))] = data.draw(st.integers(0, 255))
    accepted_or_refused(bytes(file[:8]), bytes(file[8 : 8 + int.from_bytes(file[:8], "little")]), len(file))
