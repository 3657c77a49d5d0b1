"""Tensors without their numbers: how dtypes promote, how shapes broadcast, what operations on them cost; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Union

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.wire.dtypes import ITEM_BYTES

MAX_RANK = 8
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")


class Value(NamedTuple):
    """A tensor without its numbers."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]


Operand = Union[Value, int, float]
Results = tuple[Value, ...]


def need(condition: bool, text: str) -> None:
    """Raises PlanInvalidError with this text where the condition does not hold."""
    if not condition:
        raise PlanInvalidError(text)


# ------------------------------------------------------------------ work


def elements(_arguments: Sequence[Any], results: Results) -> int:
    """One step for each element of the results."""
    return sum(result.elements for result in results)


def argument_elements(arguments: Sequence[Any], _results: Results) -> int:
    """One step for each element of the first argument."""
    return int(arguments[0].elements)


def product_work(arguments: Sequence[Any], results: Results) -> int:
    """Of a matrix product: 2·m·k·n."""
    return 2 * results[0].elements * int(arguments[0].shape[-1])


def addmm_work(arguments: Sequence[Any], results: Results) -> int:
    """As product_work, behind the bias."""
    return product_work(arguments[1:], results)


def convolution_work(arguments: Sequence[Any], results: Results) -> int:
    """2 · pixels that are computed (read, where transposed) · weights of one of them."""
    x, weight, transposed = arguments[0], arguments[1], arguments[6]
    return int(2 * (x if transposed else results[0]).elements * math.prod(weight.shape[1:]))


def convolution_backward_work(arguments: Sequence[Any], _results: Results) -> int:
    """As convolution_work, once for each gradient that is wanted."""
    gradient, x, weight, transposed, wanted = *arguments[:3], arguments[6], arguments[9]
    each = 2 * (x if transposed else gradient).elements * math.prod(weight.shape[1:])
    return int(each * (wanted[0] + wanted[1]) + gradient.elements)


def pool_work(arguments: Sequence[Any], results: Results) -> int:
    """One step for each element of a window; also of the gradients, whose first argument has the windows."""
    backward = isinstance(arguments[1], Value)
    windows, kernel = (arguments[0], arguments[2]) if backward else (results[0], arguments[1])
    return int(windows.elements * math.prod(kernel))


# ------------------------------------------------------------------ dtypes


def _category(dtype: str) -> int:
    return 0 if dtype == "bool" else 1 if dtype in INTEGERS else 2


def promote(a: str, b: str) -> str:
    """torch's dtype for two tensors of these dtypes, both with or both without dimensions."""
    if a == b:
        return a
    if _category(a) != _category(b):
        return a if _category(a) > _category(b) else b
    if {a, b} == {"float16", "bfloat16"}:
        return "float32"
    if "uint8" in (a, b):
        other = b if a == "uint8" else a
        return "int16" if other == "int8" else other
    return max(a, b, key=ITEM_BYTES.__getitem__)


def result_dtype(operands: Iterable[Operand]) -> str:
    """torch's dtype for an operation on these: tensors with dimensions first, then those without, then numbers."""
    ranks: list[str | None] = [None, None, None]
    for operand in operands:
        if isinstance(operand, Value):
            rank, dtype = (0 if operand.shape else 1), operand.dtype
        else:
            rank = 2
            dtype = "float32" if isinstance(operand, float) else "int64"
        before = ranks[rank]
        ranks[rank] = dtype if before is None else promote(before, dtype)
    found: str | None = None
    for dtype_or_none in reversed(ranks):  # numbers first; each rank above counts unless of a lower category
        if dtype_or_none is None:
            continue
        lower = found is not None and _category(dtype_or_none) < _category(found)
        found = promote(dtype_or_none, found) if lower and found else dtype_or_none
    need(found is not None, "an operation of the plan has no operands")
    return found or ""


def is_floating(value: Value, what: str = "this operation") -> None:
    need(value.dtype in FLOATS, f"{what} is for floating dtypes, not {value.dtype}")


def is_index(value: Value) -> None:
    need(value.dtype == "int64", f"indices are int64, not {value.dtype}")


# ------------------------------------------------------------------ shapes


def broadcast(operands: Iterable[Operand]) -> tuple[int, ...]:
    """The common shape of operands; numbers have none."""
    found: tuple[int, ...] = ()
    for operand in operands:
        if not isinstance(operand, Value):
            continue
        shape = operand.shape
        rank = max(len(found), len(shape))
        a, b = (1,) * (rank - len(found)) + found, (1,) * (rank - len(shape)) + shape
        need(all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True)), f"shapes {a} and {b} do not go together")
        found = tuple(n if m == 1 else m for m, n in zip(a, b, strict=True))
    return found


def one(dtype: str, shape: Iterable[int]) -> Results:
    return (Value(dtype, tuple(shape)),)


def at_dim(value: Value, dim: int) -> int:
    need(0 <= dim < len(value.shape), f"dimension {dim} of a value with {len(value.shape)} dimensions")
    return dim


def at_dims(value: Value, dims: Sequence[int]) -> set[int]:
    need(len(set(dims)) == len(dims), "a dimension is named twice")
    return {at_dim(value, dim) for dim in dims}


def reduced(x: Value, dims: Sequence[int], keep: bool) -> list[int]:
    gone = at_dims(x, dims)
    return [1 if d in gone else n for d, n in enumerate(x.shape) if keep or d not in gone]


def replaced(x: Value, dim: int, length: int) -> tuple[int, ...]:
    return (*x.shape[:dim], length, *x.shape[dim + 1 :])
