"""Mock rows: random ones of every form, and which ones fit a data set."""

from __future__ import annotations

import io
from typing import Any

import numpy
import pandas
import pytest
import torch

from grid_jupyter.client.mock import mock_file
from grid_jupyter.client.tables import read_frame, write_frame
from grid_jupyter.errors import BadRequest, InvalidDataError, LimitExceededError
from grid_jupyter.ops.raw import DTYPES, from_bytes
from grid_jupyter.wire.limits import MAX_MOCK_BYTES
from grid_jupyter.wire.messages import ColumnInfo, TensorInfo
from grid_jupyter.wire.mock import check_mock, check_mock_bytes
from grid_jupyter.wire.safetensors import read_header


def tensors(data: bytes) -> dict[str, torch.Tensor]:
    return {
        one.name: from_bytes(bytearray(data[one.begin : one.end]), one.dtype, one.shape)
        for one in read_header(io.BytesIO(data))[0]
    }


def info(name: str, dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=shape)


EVERY_DTYPE = pandas.DataFrame(
    {
        "bool": [True, False],
        "uint16": numpy.array([60_000, 1], "uint16"),
        "uint64": numpy.array([7, 1 << 40], "uint64"),
        "float16": numpy.array([1.5, 2.5], "float16"),
        "Int64": pandas.array([1, None], "Int64"),
        "UInt8": pandas.array([200, None], "UInt8"),
        "boolean": pandas.array([True, None], "boolean"),
        "Float32": pandas.array([1e9, None], "Float32"),
        "date": pandas.to_datetime(["1871-01-01", None]),
        "zone": pandas.to_datetime(["2024-01-01", None]).tz_localize("Europe/Berlin"),
        "duration": pandas.to_timedelta([1, None], unit="s"),
        "object": numpy.array(["secret", None], object),
        "string": pandas.array(["secret", None], "string"),
        "category": pandas.Categorical(["secret", "word"]),
        "ordered": pandas.Categorical([31_337, 41_337], ordered=True),
        "floats": pandas.Categorical([0.5, 77.25]),
        "booleans": pandas.Categorical([True, False]),
        "dates": pandas.Categorical(pandas.to_datetime(["1871-01-01", "1999-01-01"])),
    }
)


def test_random_rows_of_a_table_have_its_columns_and_dtypes_and_nothing_of_its_values(tmp_path: Any):
    spec = write_frame(EVERY_DTYPE, tmp_path / "data")
    data, columns = mock_file(50, "table", spec.columns, spec.tensors)
    made = tensors(data)
    check_mock("table", spec.columns, spec.tensors, columns, read_header(io.BytesIO(data))[0])
    frame = read_frame(columns, lambda name: made[name].numpy())
    assert len(frame) == 50
    assert list(frame.columns) == list(EVERY_DTYPE.columns)
    for name in EVERY_DTYPE:
        kind = frame[name].dtype
        if isinstance(kind, pandas.CategoricalDtype):
            assert kind.categories.dtype == EVERY_DTYPE[name].dtype.categories.dtype
            assert kind.ordered == EVERY_DTYPE[name].dtype.ordered
        else:
            assert kind == EVERY_DTYPE[name].dtype
    for word in (b"secret", b"word", b"1337", b"77.25"):
        assert word not in data
    others = EVERY_DTYPE.iloc[::-1].assign(object="other", float16=numpy.array([9, 9], "float16"))
    again = write_frame(others, tmp_path / "other")
    assert mock_file(50, "table", again.columns, again.tensors)[0] == data, "other values, the same form: the same rows"
    assert write_frame(frame, tmp_path / "back").columns == spec.columns, "they can be published as data"


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_random_rows_of_a_tensor_have_its_dtype_and_trailing_shape_and_not_its_length(dtype: str):
    if DTYPES[dtype].is_complex:
        pytest.skip("complex tensors are not published")
    made = tensors(mock_file(4, "tensor", (), [info("data", dtype, 1000, 3, 2)])[0])["data"]
    assert (made.shape, made.dtype) == ((4, 3, 2), DTYPES[dtype])
    same = tensors(mock_file(4, "tensor", (), [info("data", dtype, 17, 3, 2)])[0])["data"]
    assert same.equal(made)
    assert len(set(made.flatten().tolist())) > 1


def test_random_rows_of_arrays_go_by_name_and_leave_a_scalar_one():
    made = tensors(mock_file(5, "arrays", (), [info("X", "float32", 9, 2), info("n", "int64")])[0])
    assert {name: tuple(one.shape) for name, one in made.items()} == {"X": (5, 2), "n": ()}


@pytest.mark.parametrize(
    ("mock", "error"),
    [
        (0, BadRequest),
        (-1, BadRequest),
        (10**9, LimitExceededError),
        (True, InvalidDataError),
        (2.5, InvalidDataError),
        ([1, 2], InvalidDataError),
        (numpy.array(["a"]), InvalidDataError),
        (numpy.array([object()]), InvalidDataError),
        (torch.zeros(2, dtype=torch.complex64), InvalidDataError),
        ({"X": 3}, InvalidDataError),
        (torch.zeros(MAX_MOCK_BYTES // 4), LimitExceededError),
    ],
)
def test_what_are_no_mock_rows_is_refused_before_anything_is_sent(mock: Any, error: type[Exception]):
    with pytest.raises(error):
        mock_file(mock, "tensor", (), [info("data", "float32", 3, 2)])


def test_mock_rows_fit_but_for_their_number_and_the_width_of_codes_and_vocabularies():
    columns = (ColumnInfo(name="w", dtype="string"),)
    data = [info("col/0", "int64", 9), info("vocab/0", "uint8", 3)]
    check_mock("table", columns, data, columns, [info("col/0", "int32", 2), info("vocab/0", "uint8", 50)])
    check_mock("tensor", (), [info("data", "float32", 9, 2)], (), [info("data", "float32", 0, 2)])
    check_mock_bytes(MAX_MOCK_BYTES)


AGE, NAME = ColumnInfo(name="age", dtype="Int64"), ColumnInfo(name="name", dtype="string")


@pytest.mark.parametrize(
    ("kind", "columns", "data", "mock_columns", "mock"),
    [
        ("tensor", (), [info("data", "float32", 9, 2)], (), [info("data", "float64", 9, 2)]),
        ("tensor", (), [info("data", "float32", 9, 2)], (), [info("data", "float32", 9, 3)]),
        ("tensor", (), [info("data", "float32", 9, 2)], (), [info("data", "float32", 9)]),
        ("tensor", (), [info("data", "float32", 9)], (), [info("data", "float32")]),
        ("tensor", (), [info("data", "float32")], (), [info("data", "float32", 1)]),
        ("tensor", (), [info("data", "float32", 9)], (), []),
        ("arrays", (), [info("X", "float32", 9)], (), [info("X", "float32", 9), info("Y", "float32", 9)]),
        ("arrays", (), [info("X", "float32", 9)], (), [info("Z", "float32", 9)]),
        ("arrays", (), [info("X", "float32", 9)], (AGE,), [info("X", "float32", 9)]),
        ("table", (AGE,), [info("col/0", "int64", 9), info("mask/0", "bool", 9)], (NAME,), []),
        ("table", (AGE, NAME), [], (NAME, AGE), []),
        ("table", (AGE, NAME), [], (AGE,), []),
        (
            "table", (AGE,), [info("col/0", "int64", 9), info("mask/0", "bool", 9)],
            (AGE,), [info("col/0", "int64", 3), info("mask/0", "bool", 4)],
        ),
        (
            "table", (AGE,), [info("col/0", "int64", 9), info("mask/0", "bool", 9)],
            (AGE,), [info("col/0", "int64", 3)],
        ),
        (
            "table", (AGE,), [info("col/0", "int64", 9), info("mask/0", "bool", 9)],
            (AGE,), [info("col/0", "int32", 3), info("mask/0", "bool", 3)],
        ),
    ],
)  # fmt: skip
def test_mock_rows_of_another_form_are_refused(kind: str, columns: Any, data: Any, mock_columns: Any, mock: Any):
    with pytest.raises(InvalidDataError, match=r"same|length"):
        check_mock(kind, columns, data, mock_columns, mock)
    check_mock(kind, columns, data, columns, data)


def test_mock_rows_over_the_limit_are_refused():
    with pytest.raises(LimitExceededError, match=str(MAX_MOCK_BYTES)):
        check_mock_bytes(MAX_MOCK_BYTES + 1)
