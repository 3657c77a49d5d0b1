"""What data looks like before it is published, for its owner's eyes alone: its form and its first rows. Knows no torch.

The JupyterLab panel shows it: of a file by a process beside the Jupyter server, of variables by the owner's kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from grid_jupyter.errors import InvalidDataError
from grid_jupyter.wire.messages import Message
from grid_jupyter.wire.owner import FORMATS

ROWS = 12
"""Rows that are shown."""
CSV_ROWS = 1_000
"""Rows of a CSV file that are read: how many there are would take reading all of it."""
COLUMNS = 200
"""Columns, or arrays, that are shown."""
CELL_CHARS = 60
"""Characters of one value that are shown."""
VARIABLES = 500
"""Variables that are listed."""


class Preview(Message, frozen=True):
    """Data as its owner sees it before it is published. Texts are cut; None stands for a missing value."""

    kind: str  # "table", "tensor" or "arrays"
    rows: int | None  # of a table; None where only the first ones were read
    count: int  # of all columns, or arrays
    parts: tuple[tuple[str, str, str], ...]  # name, dtype, shape of columns or arrays
    first: tuple[tuple[str | None, ...], ...]  # rows of a table
    nbytes: int  # of the file; 0 for a variable


class Variable(Message, frozen=True):
    """A variable that can be published."""

    name: str
    kind: str  # of what type it is
    shape: tuple[int, ...]


def of_file(path: Path) -> Preview:
    """Of a CSV, Parquet, NPZ or safetensors file. Raises InvalidDataError, LimitExceededError, OSError."""
    ending, nbytes = path.suffix.lower(), path.stat().st_size
    if ending in (".npz", ".safetensors"):
        from grid_jupyter.client.arrays import forms_of

        forms = forms_of(path)
        parts = tuple((name, dtype, _times(shape)) for name, dtype, shape in forms[:COLUMNS])
        return Preview(kind="arrays", rows=None, count=len(forms), parts=parts, first=(), nbytes=nbytes)
    if ending not in FORMATS:
        raise InvalidDataError(
            f"a file that ends in {ending[:20]!r} cannot be published; CSV, Parquet, NPZ and safetensors files can"
        )
    from grid_jupyter.client.sources import csv_source, parquet_source

    if ending != ".csv":
        return _of_table(parquet_source(path), nbytes)
    source = csv_source(path, CSV_ROWS)
    return _of_table(source, nbytes, whole=source.rows < CSV_ROWS)


def of_value(value: Any) -> Preview:
    """Of a DataFrame or a tensor. Raises InvalidDataError."""
    if isinstance(value, _known("pandas", "DataFrame")):
        from grid_jupyter.client.sources import frame_source

        return _of_table(frame_source(value), 0)
    if isinstance(value, _tensors()):
        part = ("data", str(value.dtype).removeprefix("torch."), _times(tuple(value.shape)))
        return Preview(kind="tensor", rows=None, count=1, parts=(part,), first=(), nbytes=0)
    raise InvalidDataError(f"a {type(value).__name__} cannot be published; a pandas DataFrame or a tensor can")


def variables(namespace: Mapping[str, Any]) -> Shown:
    """The variables of a notebook that can be published, for the panel: a list of Variable as JSON."""
    kinds = (*_known("pandas", "DataFrame"), *_tensors())
    found = (
        Variable(name=name, kind=type(value).__name__, shape=tuple(map(int, value.shape)))
        for name, value in sorted(namespace.items(), key=lambda item: item[0])
        if not name.startswith("_") and name.isidentifier() and isinstance(value, kinds) and not _is_pointer(value)
    )
    return Shown([_as_json(one) for one in islice(found, VARIABLES)])


def variable(value: Any) -> Shown:
    """A preview of a variable, for the panel: a Preview as JSON. Raises InvalidDataError."""
    return Shown(_as_json(of_value(value)))


class Shown:
    """Something that a notebook shows as JSON."""

    def __init__(self, told: Any) -> None:
        self._told = told

    def _repr_json_(self) -> Any:
        return self._told


def _of_table(source: Any, nbytes: int, *, whole: bool = True) -> Preview:
    shown: Sequence[Any] = [series.iloc[:ROWS] for series in next(source.pieces, [])[:COLUMNS]]
    rows = zip(*([_text(value) for value in series] for series in shown), strict=True)
    return Preview(
        kind="table",
        rows=source.rows if whole else None,
        count=len(source.columns),
        parts=tuple((column.name, column.dtype, "") for column in source.columns[:COLUMNS]),
        first=tuple(rows),
        nbytes=nbytes,
    )


def _text(value: Any) -> str | None:
    import pandas

    if not isinstance(value, str) and pandas.api.types.is_scalar(value) and pandas.isna(value):
        return None
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= CELL_CHARS else f"{text[:CELL_CHARS]}…"


def _times(shape: Sequence[int]) -> str:
    return " × ".join(f"{length:,}" for length in shape)


def _as_json(told: Message) -> Any:
    import msgspec

    return msgspec.to_builtins(told)


def _known(module: str, name: str) -> tuple[type[Any], ...]:
    """A type of a module, if anybody imported that: else nothing can be of it."""
    found = sys.modules.get(module)
    return () if found is None else (getattr(found, name),)


def _tensors() -> tuple[type[Any], ...]:
    return (*_known("torch", "Tensor"), *_known("grid_jupyter.tensors.private", "PrivateTensor"))


def _is_pointer(value: Any) -> bool:
    return isinstance(value, _known("grid_jupyter.tensors.remote", "RemoteTensor"))
