"""Sizes and numbers of a plan as expressions in the batch size B: read, evaluated, and fitted to what was observed.

An expression is an integer, a float, the text "B", or (operator, left, right) with one of `+ - * / // %`. `/` gives
a float, `//` and `%` take integers and round down. There is no other name and no other operator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Union

from grid_jupyter.errors import PlanInvalidError

Expression = Union[int, float, str, tuple[str, "Expression", "Expression"]]
BATCH = "B"
OPERATORS = ("%", "*", "+", "-", "/", "//")
MAX_DEPTH = 12
"""Operators inside operators."""
MAX_NUMBER = 1 << 48
"""Largest magnitude of an integer, given or computed."""


def read_expression(raw: object, depth: int = 0) -> Expression:
    """An expression from its JSON form; raises PlanInvalidError for anything else."""
    if raw == BATCH and isinstance(raw, str):
        return BATCH
    if type(raw) is int and abs(raw) <= MAX_NUMBER:
        return raw
    if type(raw) is float and math.isfinite(raw):
        return raw
    if isinstance(raw, list) and len(raw) == 3 and isinstance(raw[0], str) and raw[0] in OPERATORS:
        if depth == MAX_DEPTH:
            raise PlanInvalidError(f"a size of the plan nests deeper than the limit of {MAX_DEPTH}")
        return raw[0], read_expression(raw[1], depth + 1), read_expression(raw[2], depth + 1)
    raise PlanInvalidError("a size of the plan is no number and no expression in the batch size")


def evaluate(expression: Expression, batch: int) -> int | float:
    """The number that an expression is for a batch of this size.

    Raises PlanInvalidError where it divides by zero, is not finite or leaves the range of integers.
    """
    if not isinstance(expression, tuple):
        return batch if isinstance(expression, str) else expression
    operator, left, right = expression[0], evaluate(expression[1], batch), evaluate(expression[2], batch)
    value: int | float
    if operator == "+":
        value = left + right
    elif operator == "-":
        value = left - right
    elif operator == "*":
        value = left * right
    elif right == 0:
        raise PlanInvalidError(f"a size of the plan divides by zero for a batch of {batch}")
    elif operator == "/":
        value = left / right
    elif isinstance(left, float) or isinstance(right, float):
        raise PlanInvalidError(f"a size of the plan uses {operator} on something that is no integer")
    else:
        value = left // right if operator == "//" else left % right
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) > MAX_NUMBER):
        raise PlanInvalidError(f"a size of the plan is out of range for a batch of {batch}")
    return value


def size_of(expression: Expression, batch: int) -> int:
    """An expression that must be a length: an integer from 0 on. Raises PlanInvalidError otherwise."""
    value = evaluate(expression, batch)
    if not isinstance(value, int) or value < 0:
        raise PlanInvalidError(f"a size of the plan is no length for a batch of {batch}")
    return value


def has_batch(expression: Expression) -> bool:
    """Whether an expression depends on the batch size."""
    return expression == BATCH or (isinstance(expression, tuple) and any(map(has_batch, expression[1:])))


def expression_text(expression: Expression) -> str:
    """An expression as a person reads it, such as `(36 * B)`."""
    if isinstance(expression, tuple):
        return f"({expression_text(expression[1])} {expression[0]} {expression_text(expression[2])})"
    return str(expression)


def fit(values: Sequence[int | float], batches: Sequence[int]) -> Expression | None:
    """The expression that has these values at these batch sizes (three or more), or None.

    Integers are fitted exactly by k·B + c and k·B² + c·B; floats by a·x + b and 1/(a·x + b) with x = B or 1/B, to
    1e-9 of their magnitude, which are the forms that means and batch norm's n/(n-1) take.
    """
    if all(value == values[0] and type(value) is type(values[0]) for value in values):
        return values[0]
    if all(type(value) is int for value in values):
        return _fit_integers([int(value) for value in values], batches)
    return _fit_floats([float(value) for value in values], [float(batch) for batch in batches])


def _fit_integers(values: Sequence[int], batches: Sequence[int]) -> Expression | None:
    slope, offset = _line([Fraction(batch) for batch in batches], [Fraction(value) for value in values])
    if slope is not None and offset is not None and slope.denominator == offset.denominator == 1:
        return _affine(int(slope), int(offset), BATCH)
    scaled = [Fraction(value, batch) for value, batch in zip(values, batches, strict=True)]
    slope, offset = _line([Fraction(batch) for batch in batches], scaled)
    if slope is not None and offset is not None and slope.denominator == offset.denominator == 1:
        return "*", BATCH, _affine(int(slope), int(offset), BATCH)
    return None


def _line(xs: Sequence[Fraction], ys: Sequence[Fraction]) -> tuple[Fraction | None, Fraction | None]:
    slope = (ys[1] - ys[0]) / (xs[1] - xs[0])
    offset = ys[0] - slope * xs[0]
    fits = all(slope * x + offset == y for x, y in zip(xs, ys, strict=True))
    return (slope, offset) if fits else (None, None)


def _fit_floats(values: Sequence[float], batches: Sequence[float]) -> Expression | None:
    inverse: Expression = ("/", 1.0, BATCH)
    for x, xs in ((BATCH, batches), (inverse, [1 / batch for batch in batches])):
        if line := _close_line(xs, values):
            return _affine(*line, x)
        if all(values) and (line := _close_line(xs, [1 / value for value in values])):
            return "/", 1.0, _affine(*line, x)
    return None


def _close_line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float] | None:
    slope = (ys[1] - ys[0]) / (xs[1] - xs[0])
    offset = ys[0] - slope * xs[0]
    if any(abs(slope * x + offset - y) > 1e-9 * abs(y) for x, y in zip(xs, ys, strict=True)):
        return None
    offset = 0.0 if abs(offset) < 1e-9 * max(map(abs, ys)) else offset
    return _rounded(slope), _rounded(offset)


def _rounded(value: float) -> float:
    """What rounding left of a whole number goes, so that 1/(B - 1) is written as that."""
    return float(round(value)) if abs(value - round(value)) < 1e-9 * abs(round(value)) else value


def _affine(slope: float, offset: float, x: Expression) -> Expression:
    scaled: Expression = x if slope == 1 else ("*", slope, x)
    return scaled if offset == 0 else ("+", scaled, offset)
