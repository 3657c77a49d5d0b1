"""What each operation of a plan gives for arguments of known dtype and shape, and refuses; knows no torch.

Every rule takes the operation's arguments with values as `Value`s, numbers and sizes computed, and returns what the
results are. A rule raises PlanInvalidError for arguments that the operation is not for: engines trust what passed,
because kernels that are handed something else may crash or read outside their memory. `plans/windows.py` has the
rules of products, windows and norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from grid_jupyter.plans.shapes import (
    FLOATS,
    Operand,
    Results,
    Value,
    at_dim,
    at_dims,
    broadcast,
    is_floating,
    is_index,
    need,
    one,
    reduced,
    replaced,
    result_dtype,
)

# ------------------------------------------------------------------ element by element


def same(x: Value) -> Results:
    need(x.dtype != "bool", "this operation is not for bool")
    return (x,)


def floating(x: Value, *_numbers: object) -> Results:
    is_floating(x)
    return (x,)


def arithmetic(a: Operand, b: Operand) -> Results:
    dtype = result_dtype((a, b))
    need(isinstance(a, Value) or isinstance(b, Value), "an operation on two numbers")
    need(dtype != "bool", "arithmetic on bool")
    return one(dtype, broadcast((a, b)))


def real_arithmetic(a: Operand, b: Operand) -> Results:
    (result,) = arithmetic(a, b)
    # Integer division faults the processor for some values; nothing that trains needs it.
    is_floating(result)
    return (result,)


def clamp(x: Value, low: float | None, high: float | None) -> Results:
    bounds = [bound for bound in (low, high) if bound is not None]
    need(bool(bounds) and x.dtype != "bool", "clamp needs a bound and no bool")
    return one(result_dtype((x, *bounds)), x.shape)


def comparison(a: Operand, b: Operand) -> Results:
    need(isinstance(a, Value) or isinstance(b, Value), "an operation on two numbers")
    return one("bool", broadcast((a, b)))


def truth(x: Value) -> Results:
    return one("bool", x.shape)


def bits(*operands: Value) -> Results:
    dtype = result_dtype(operands)
    need(dtype not in FLOATS, "bits of a floating dtype")
    return one(dtype, broadcast(operands))


def where(condition: Value, a: Operand, b: Operand) -> Results:
    need(condition.dtype == "bool", "the condition of where is not bool")
    return one(result_dtype((a, b)), broadcast((condition, a, b)))


def cast(x: Value, dtype: str) -> Results:
    return one(dtype, x.shape)


# ------------------------------------------------------------------ along dimensions


def summed(x: Value, dims: Sequence[int], keep: bool) -> Results:
    return one(x.dtype if x.dtype in FLOATS else "int64", reduced(x, dims, keep))


def mean(x: Value, dims: Sequence[int], keep: bool) -> Results:
    is_floating(x, "mean")
    return one(x.dtype, reduced(x, dims, keep))


def extremum(x: Value, dims: Sequence[int], keep: bool) -> Results:
    need(all(x.shape[d] for d in at_dims(x, dims)), "the extremum of nothing")
    return one(x.dtype, reduced(x, dims, keep))


def any_of(x: Value, dims: Sequence[int], keep: bool) -> Results:
    return one("bool", reduced(x, dims, keep))


def position(x: Value, dim: int, keep: bool) -> Results:
    need(x.shape[at_dim(x, dim)] > 0 and x.dtype != "bool", "the position of an extremum of nothing, or of bool")
    return one("int64", reduced(x, [dim], keep))


def cumsum(x: Value, dim: int) -> Results:
    at_dim(x, dim)
    return one(x.dtype if x.dtype in FLOATS else "int64", x.shape)


# ------------------------------------------------------------------ shape and place


def reshape(x: Value, shape: Sequence[int]) -> Results:
    result = Value(x.dtype, tuple(shape))
    need(
        all(n >= 0 for n in shape) and result.elements == x.elements, f"{x.shape} cannot take the shape {tuple(shape)}"
    )
    return (result,)


def permute(x: Value, dims: Sequence[int]) -> Results:
    need(sorted(dims) == list(range(len(x.shape))), "permute names each dimension once")
    return one(x.dtype, (x.shape[d] for d in dims))


def expand(x: Value, shape: Sequence[int]) -> Results:
    need(broadcast((x, Value(x.dtype, tuple(shape)))) == tuple(shape), f"{x.shape} does not expand to {tuple(shape)}")
    return one(x.dtype, shape)


def cat(parts: Sequence[Value], dim: int) -> Results:
    need(len(parts) > 0, "cat of nothing")
    first = parts[0]
    at_dim(first, dim)
    for part in parts:
        fits = part.dtype == first.dtype and len(part.shape) == len(first.shape)
        need(fits and replaced(part, dim, 0) == replaced(first, dim, 0), "cat of values that do not go together")
    return one(first.dtype, replaced(first, dim, sum(part.shape[dim] for part in parts)))


def sliced(x: Value, dim: int, start: int, end: int, step: int) -> Results:
    length = x.shape[at_dim(x, dim)]
    need(0 <= start <= end <= length and step >= 1, f"a slice from {start} to {end} of {length}")
    return one(x.dtype, replaced(x, dim, -(-(end - start) // step)))


def select(x: Value, dim: int, index: int) -> Results:
    need(0 <= index < x.shape[at_dim(x, dim)], f"index {index} of a dimension of {x.shape[dim]}")
    return one(x.dtype, (*x.shape[:dim], *x.shape[dim + 1 :]))


def split(x: Value, lengths: Sequence[int], dim: int) -> Results:
    at_dim(x, dim)
    need(all(n >= 0 for n in lengths) and sum(lengths) == x.shape[dim], "split into other than the whole")
    return tuple(Value(x.dtype, replaced(x, dim, length)) for length in lengths)


def pad(x: Value, amounts: Sequence[int], _value: float) -> Results:
    """`amounts`: before and after, the last dimension first; what is negative cuts."""
    need(len(amounts) % 2 == 0 and len(amounts) <= 2 * len(x.shape), "pad takes two numbers a dimension")
    shape = list(x.shape)
    for k in range(len(amounts) // 2):
        shape[-1 - k] += amounts[2 * k] + amounts[2 * k + 1]
        cut = max(0, -amounts[2 * k]) + max(0, -amounts[2 * k + 1])
        need(cut <= x.shape[-1 - k], "pad cuts more than there is")
    return one(x.dtype, shape)


def flip(x: Value, dims: Sequence[int]) -> Results:
    at_dims(x, dims)
    return (x,)


def triangle(x: Value, _diagonal: int) -> Results:
    need(len(x.shape) >= 2, "the triangle of something that is no matrix")
    return (x,)


def index_select(x: Value, dim: int, indices: Value) -> Results:
    is_index(indices)
    need(len(indices.shape) == 1, "index_select takes one dimension of indices")
    return one(x.dtype, replaced(x, at_dim(x, dim), indices.shape[0]))


def index_add(x: Value, dim: int, indices: Value, source: Value) -> Results:
    (expected,) = index_select(x, dim, indices)
    need(source == expected and x.dtype != "bool", "index_add of something that does not fit")
    return (x,)


def gather(x: Value, dim: int, indices: Value) -> Results:
    is_index(indices)
    at_dim(x, dim)
    need(len(indices.shape) == len(x.shape), "gather with indices of another rank")
    need(all(n <= m for d, (n, m) in enumerate(zip(indices.shape, x.shape, strict=True)) if d != dim),
         "gather with more indices than there are rows")  # fmt: skip
    return one(x.dtype, indices.shape)


def scatter(x: Value, dim: int, indices: Value, source: Operand) -> Results:
    gather(x, dim, indices)
    if isinstance(source, Value):
        need(source == Value(x.dtype, indices.shape), "scatter of something that does not fit its indices")
    return (x,)


# ------------------------------------------------------------------ from nothing


def full(shape: Sequence[int], value: float, dtype: str) -> Results:
    need(math.isfinite(value) or dtype in FLOATS, "an infinite number of a dtype that has none")
    return one(dtype, shape)


def arange(start: float, end: float, step: float, dtype: str) -> Results:
    need(all(map(math.isfinite, (start, end, step))) and step != 0, "arange without a finite start, end and step")
    need(dtype != "bool", "arange of bool")
    return one(dtype, (max(0, math.ceil((end - start) / step)),))
