"""What mock rows must have in common with the data set that they stand for: all but their number and their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from grid_jupyter.errors import InvalidDataError, LimitExceededError
from grid_jupyter.wire.limits import MAX_MOCK_BYTES
from grid_jupyter.wire.messages import ColumnInfo

_CODES = ("int32", "int64")


class Form(Protocol):
    """A tensor by its form alone."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def dtype(self) -> str:
        """Our name of its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths; the first one counts rows."""


def check_mock(
    kind: str,
    columns: Sequence[ColumnInfo],
    tensors: Iterable[Form],
    mock_columns: Sequence[ColumnInfo],
    mock_tensors: Iterable[Form],
) -> None:
    """Raises InvalidDataError, which names the first tensor or column that differs."""
    if tuple(columns) != tuple(mock_columns):
        raise InvalidDataError(
            f"mock rows have the same columns as the data, in the same order: {_differs(columns, mock_columns)}"
        )
    mock = tuple(mock_tensors)
    wanted, given = _forms(kind, tensors), _forms(kind, mock)
    for name in [*wanted, *given]:
        if wanted.get(name) != given.get(name):
            raise InvalidDataError(
                f"mock rows have the same tensors as the data, of the same dtype, and of the same shape but for the "
                f"number of rows: {name[:40]!r} differs"
            )
    lengths = {tensor.shape[:1] for tensor in mock if kind == "table" and not tensor.name.startswith("vocab/")}
    if len(lengths) > 1:
        raise InvalidDataError("the columns of the mock rows are not of one length")


def check_mock_bytes(nbytes: int) -> None:
    """Raises LimitExceededError."""
    if nbytes > MAX_MOCK_BYTES:
        raise LimitExceededError(f"mock rows of {nbytes} bytes are over the limit of {MAX_MOCK_BYTES}; give fewer rows")


def _forms(kind: str, tensors: Iterable[Form]) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Dtype, number of dimensions and trailing shape by name. How wide the codes of a table are depends on its number
    of rows, and does not count."""
    found = {tensor.name: (tensor.dtype, len(tensor.shape), tensor.shape[1:]) for tensor in tensors}
    if kind != "table":
        return found
    for name, (dtype, rank, rest) in found.items():
        if dtype in _CODES and f"vocab/{name.removeprefix('col/')}" in found:
            found[name] = ("codes", rank, rest)
    return found


def _differs(columns: Sequence[ColumnInfo], mock: Sequence[ColumnInfo]) -> str:
    for wanted, given in zip(columns, mock, strict=False):
        if wanted.name != given.name:
            return f"the data has {wanted.name[:40]!r} where the mock rows have {given.name[:40]!r}"
        if wanted != given:
            return f"{wanted.name[:40]!r} is {wanted.dtype[:40]} in the data and {given.dtype[:40]} in the mock rows"
    return f"the data has {len(columns)} of them, the mock rows have {len(mock)}"
