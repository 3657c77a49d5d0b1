"""The weighted mean of any number of reports, folded as they arrive in the memory of one model."""

from __future__ import annotations

import math
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.aggregation.form import CHUNK, Form, Report, Tensors, flattened
from grid_jupyter.aggregation.scaled import LONGEST, add_scaled, as_it_is
from grid_jupyter.errors import InvalidDataError


class Fold:
    """A sum that grows by one report at a time (McMahan et al. 2017, algorithm 1; LEAF):

        mean[p] = sum_i n_i * w_i[p] / sum_i n_i

    Holds one copy of the model beside the report that is being added: two in all, whatever the number of reports,
    and one chunk. Sums are kept in each tensor's dtype, those of float16 in float32, those of integers in float64;
    `wide` keeps all in float64, which costs a copy of the model more and four times the time. The same reports in
    the same order give the same bits on the same machine; elsewhere the last bit may be rounded otherwise.
    """

    def __init__(self, form: Form, *, wide: bool = False) -> None:
        self.form = form
        self.count = 0
        """Reports that were added."""
        self.total = 0.0
        """Sum of their weights."""
        self._sums: list[NDArray[Any]] = [
            numpy.zeros(math.prod(shape), _dtype_of_sum(dtype, wide)) for _, dtype, shape in form.parts
        ]
        self._scratch: dict[numpy.dtype[Any], NDArray[Any]] = {}

    def add(self, tensors: Report, weight: float = 1.0, *, minus: Tensors | None = None) -> None:
        """Add `weight * tensors`, or `weight * (tensors - minus)`.

        Values are not looked at (`Form.check_values` does that). Raises InvalidDataError for another form, or a
        weight that is not a positive number; nothing was added then.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise InvalidDataError(f"a report counts by a positive number of rows, and here is {weight!r}")
        self.form.check(tensors)
        if minus is not None:
            self.form.check(minus)
        for (name, _, _), total in zip(self.form.parts, self._sums, strict=True):
            flat = flattened(tensors[name])
            origin = None if minus is None else minus[name].reshape(-1)
            scratch = self._scratch_for(total)
            scale = total.dtype.type(weight)
            step = LONGEST if origin is None and as_it_is(flat, total.dtype) else CHUNK
            for start in range(0, total.size, step):
                sums, part = total[start : start + step], flat[start : start + step]
                beside = scratch[: sums.size]
                if origin is not None:
                    part = numpy.subtract(part, origin[start : start + step], beside, dtype=total.dtype)
                add_scaled(sums, scale, part, beside)
        self.count += 1
        self.total += weight

    def mean(self, over: float | None = None) -> dict[str, NDArray[Any]]:
        """The sum divided by the sum of the weights, or by `over`, each tensor in the dtype of the model; integers
        are rounded to the nearest. The fold hands its memory over and is empty afterwards.

        Raises InvalidDataError where nothing was added.
        """
        divisor = self.total if over is None else over
        if not self.count:
            raise InvalidDataError("no report was added: there is no mean of nothing")
        found = {}
        for (name, dtype, shape), total in zip(self.form.parts, self._sums, strict=True):
            numpy.divide(total, total.dtype.type(divisor), total)
            if dtype.kind != "f":
                total = whole(total, dtype)
            found[name] = total.astype(dtype, copy=False).reshape(shape)
        self._sums = [numpy.zeros_like(total) for total in self._sums]
        self.count, self.total = 0, 0.0
        return found

    def _scratch_for(self, total: NDArray[Any]) -> NDArray[Any]:
        found = self._scratch.get(total.dtype)
        if found is None or found.size < min(total.size, CHUNK):
            found = self._scratch[total.dtype] = numpy.empty(min(total.size, CHUNK), total.dtype)
        return found


def whole(values: NDArray[Any], dtype: numpy.dtype[Any]) -> NDArray[Any]:
    """float64 values as the nearest integers of a dtype, in place: what lies beyond its range stays at its end."""
    limits = numpy.iinfo(dtype)
    most = float(limits.max)
    if most > limits.max:  # 2**63 - 1 is no float64
        most = math.nextafter(most, 0.0)
    return numpy.clip(numpy.rint(values, values), float(limits.min), most, out=values)


def _dtype_of_sum(dtype: numpy.dtype[Any], wide: bool) -> numpy.dtype[Any]:
    if wide or dtype.kind != "f":
        return numpy.dtype(numpy.float64)
    return numpy.promote_types(dtype, numpy.float32)
