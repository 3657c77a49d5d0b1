"""Mock rows: rows of a data set's form that stand for its data where plans are written; made, and fetched again.

Random ones are made of names, dtypes and trailing shapes alone: nothing here sees the data.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from grid_jupyter.errors import BadRequest, InvalidDataError, ResponseSignatureError
from grid_jupyter.link.http import fetch
from grid_jupyter.ops.raw import DTYPES, NAMES, from_bytes, to_bytes
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.wire.dtypes import ITEM_BYTES
from grid_jupyter.wire.messages import ColumnInfo, DatasetInfo
from grid_jupyter.wire.mock import Form, check_mock_bytes
from grid_jupyter.wire.safetensors import PREFIX_BYTES, build_header, parse_header, read_header

WORDS = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
"""Texts of random mock rows."""
_YEARS_S = 10 * 365 * 86_400
"""Dates of random mock rows are of the ten years from 1970 on, durations are up to that long; in seconds."""
_MISSING = 8
"""One in so many entries is missing, in columns that have a mask."""


def mock_file(
    mock: Any, kind: str, columns: Sequence[ColumnInfo], tensors: Iterable[Form]
) -> tuple[bytes, tuple[ColumnInfo, ...]]:
    """Mock rows as the bytes of a safetensors file, and its columns: what the owner gave, or for a number that many
    random rows for the form that `kind`, `columns` and `tensors` tell.

    Raises BadRequest for a number below 1, InvalidDataError for what is no data, LimitExceededError for too much.
    """
    if isinstance(mock, int) and not isinstance(mock, bool):
        return _random_file(mock, kind, columns, tensors)
    if isinstance(mock, PrivateTensor):
        raise InvalidDataError("mock rows are for everybody, and this tensor is private; .unwrap() it if that is meant")
    if isinstance(mock, (torch.Tensor, numpy.ndarray)):
        return _file({"data": _tensor(mock)}), ()
    if isinstance(mock, dict):
        return _file({str(name): _tensor(value) for name, value in mock.items()}), ()
    return _table_or_file(mock)


def mock_tensors(place: Any, dataset: DatasetInfo, user: str | None = None) -> dict[str, torch.Tensor]:
    """The mock rows of a version of a data set, as the tensors of its file. `user` presents the stored credential of
    that user.

    Raises ObjectNotFoundError where there are none, or nothing that the caller may compute on.
    """
    where = f"/data-centric/datasets/{dataset.id}/{dataset.version}/mock"
    _, data = fetch(place.address, where, token=place._token_of(user))
    found = {
        tensor.name: from_bytes(data[tensor.begin : tensor.end], tensor.dtype, tensor.shape)
        for tensor in read_header(io.BytesIO(data))[0]
    }
    if not {tensor.name for tensor in dataset.tensors} <= set(found):
        raise ResponseSignatureError("the mock rows lack a part of the data set; its owner can give others")
    return found


def mock_rows(place: Any, dataset: DatasetInfo, user: str | None = None) -> Any:
    """As `mock_tensors`; those of a table as a DataFrame."""
    found = mock_tensors(place, dataset, user)
    if dataset.kind != "table":
        return found
    from grid_jupyter.client.tables import read_frame

    def numbers(name: str) -> Any:
        if name not in found:
            raise ResponseSignatureError("the mock rows lack a part of the data set; its owner can give others")
        return found[name].numpy()

    return read_frame(dataset.columns, numbers)


# ------------------------------------------------------------------ given by the owner


def _table_or_file(mock: Any) -> tuple[bytes, tuple[ColumnInfo, ...]]:
    import pandas

    from grid_jupyter.client.tables import TableSpec, write_file, write_frame

    with tempfile.TemporaryDirectory(prefix="grid-mock-") as folder:
        path = Path(folder) / "mock.safetensors"
        if isinstance(mock, pandas.DataFrame):
            spec: Any = write_frame(mock, path)
        elif isinstance(mock, (str, Path)):
            spec = write_file(Path(mock), path)
        else:
            raise InvalidDataError(
                f"a {type(mock).__name__} cannot be mock rows: give a tensor, an array, a pandas DataFrame, a dict of "
                f"tensors, the path of a file, or the number of random rows"
            )
        check_mock_bytes(path.stat().st_size)
        return path.read_bytes(), spec.columns if isinstance(spec, TableSpec) else ()


def _tensor(value: Any) -> torch.Tensor:
    try:
        made = torch.from_numpy(numpy.ascontiguousarray(value)) if isinstance(value, numpy.ndarray) else value
    except TypeError:
        made = None
    if not isinstance(made, torch.Tensor) or made.dtype not in NAMES or made.is_complex():
        shown = str(value.dtype) if isinstance(value, (numpy.ndarray, torch.Tensor)) else type(value).__name__
        raise InvalidDataError(f"{shown[:40]} cannot be mock rows; convert it to the dtype of the data")
    return made.reshape(value.shape).detach().cpu()


def _file(tensors: dict[str, torch.Tensor]) -> bytes:
    header = build_header([(name, NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()])
    total = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    check_mock_bytes(total)
    whole = bytearray(total)
    whole[: len(header)] = header
    for place in parse_header(header[:PREFIX_BYTES], header[PREFIX_BYTES:], total):
        whole[place.begin : place.end] = bytes(to_bytes(tensors[place.name]))
    return bytes(whole)


# ------------------------------------------------------------------ random rows


def _random_file(
    count: int, kind: str, columns: Sequence[ColumnInfo], tensors: Iterable[Form]
) -> tuple[bytes, tuple[ColumnInfo, ...]]:
    if count < 1:
        raise BadRequest("mock= takes rows, or the number of random rows to make: at least 1")
    forms = [] if kind == "table" else [(t.name, t.dtype, (count, *t.shape[1:]) if t.shape else ()) for t in tensors]
    check_mock_bytes(
        sum(ITEM_BYTES[dtype] * math.prod(shape) for _, dtype, shape in forms) + count * len(columns)
    )  # before anything is made
    # the same rows for the same form, so that publishing once more is the same data set
    said = json.dumps([kind, count, forms, [(column.name, column.dtype) for column in columns]])
    dice = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(said.encode()).digest()[:7], "little"))
    if kind != "table":
        return _file({name: _random(dtype, shape, dice) for name, dtype, shape in forms}), ()
    made: dict[str, torch.Tensor] = {}
    for index, column in enumerate(columns):
        made |= _random_column(index, column, count, dice)
    return _file(made), tuple(columns)


def _random(dtype: str, shape: tuple[int, ...], dice: torch.Generator) -> torch.Tensor:
    """Standard normal numbers, whole numbers from 0 to 9, or booleans."""
    if DTYPES[dtype].is_floating_point:
        return torch.randn(shape, generator=dice).to(DTYPES[dtype])
    return torch.randint(2 if dtype == "bool" else 10, shape, generator=dice).to(DTYPES[dtype])


def _random_column(index: int, column: ColumnInfo, count: int, dice: torch.Generator) -> dict[str, torch.Tensor]:
    from grid_jupyter.client.columns import TICKS, parse_dtype, tensor_names

    encoding = parse_dtype(column.dtype)
    names = tensor_names(index)
    if encoding.has_vocabulary:
        words = _entries(encoding)
        codes = torch.randint(len(words), (count,), generator=dice, dtype=torch.int32)
        letters = numpy.frombuffer(json.dumps(words).encode(), "uint8").copy()
        return {names[0]: codes, names[2]: torch.from_numpy(letters)}
    if encoding.unit:
        values = torch.randint(_YEARS_S, (count,), generator=dice) * int(TICKS[encoding.unit])
    else:
        values = _random(encoding.stored, (count,), dice)
    if not encoding.has_mask:
        return {names[0]: values}
    missing = torch.randint(_MISSING, (count,), generator=dice) == 0
    return {names[0]: values.masked_fill(missing, 0), names[1]: missing}


def _entries(encoding: Any) -> list[Any]:
    """What the codes of a column stand for, as its vocabulary has them."""
    from grid_jupyter.client.columns import NULLABLE, TICKS

    of = encoding.categories
    if of is None or of.kind == "text":
        return list(WORDS)
    if of.unit:
        return [day * 86_400 * int(TICKS[of.unit]) for day in range(10)]
    plain = NULLABLE.get(of.text, of.text)
    return [False, True] if plain == "bool" else [float(n) if plain.startswith("float") else n for n in range(10)]
