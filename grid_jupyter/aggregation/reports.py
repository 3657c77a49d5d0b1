"""Reports as files: mapped, read as hostile, checked against their model, folded, and made into its next checkpoint.

Files are descriptors, so that whoever folds needs no way to any other file. What is read of them is mapped; memory is
the sums of one model, and a chunk, whatever the number of reports.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import numpy

from grid_jupyter.aggregation.averaging import Averaging, Files
from grid_jupyter.aggregation.diffs import FORMS, unpacked
from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import Form, Readable, Report, Tensor, chunks
from grid_jupyter.errors import InvalidDataError, LimitExceededError
from grid_jupyter.wire.safetensors import PREFIX_BYTES, BlobTensor, build_header, header_length, parse_header

_DTYPES = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64"})
"""What a model's tensors may be: differences of them are of the same dtype."""
_SHARE = float(1 << 20)
"""Reports as large as the largest that is taken whose sum is still finite."""
_SMALL = 1 << 18
"""Bytes of a file that costs more to map than to read."""
_HEADER_BYTES = 1 << 20
"""What a report's header may be longer than three of the model's, which has as many tensors or a third of them."""


class Folding:
    """The reports of one cycle, folded in the order in which they come."""

    def __init__(self, form: Form, averaging: Averaging) -> None:
        self.form = form
        self._averaging = averaging
        self._fold: Fold | None = None
        self._kept: list[Report] = []
        self._longest = (
            3 * len(build_header([(name, dtype.name, shape) for name, dtype, shape in form.parts])) + _HEADER_BYTES
        )
        self.count = 0
        """Reports that are folded, or kept for the end."""

    def check(
        self, report: int, *, samples: int = 1, max_norm: float | None = None, accepted: Collection[str] = FORMS
    ) -> None:
        """Refuse a report that is not of the model's form, or packed as none of `accepted`; has NaN or infinities, is
        over the bound on its norm, or so large that with its samples a sum of some would overflow. What is packed
        counts as what it unpacks to. Nothing that is folded changes.

        Raises BadRequest, InvalidDataError, LimitExceededError.
        """
        tensors = unpacked(mapped(report, self._longest, reads=True), self.form, accepted)
        self.form.check(tensors)
        norm = self.form.check_values(tensors, max_norm=max_norm)
        times = samples if self._averaging.strategy.weighted else 1
        for name, tensor in tensors.items():
            if tensor.dtype.kind == "f" and 2 * norm * times > _most(tensor.dtype):  # else no value of it is so large
                _check_sum(name, tensor, times)

    def fold(self, report: int, samples: int, staleness: int = 0) -> None:
        """Take in the next report, which was checked. Where it raises, half of it may be in the sums."""
        tensors = unpacked(mapped(report, self._longest, reads=not self._averaging.keeps), self.form)
        if self._averaging.keeps:
            self._kept.append(tensors)
        else:
            if self._fold is None:
                self._fold = Fold(self.form)
            self._fold.add(tensors, self._averaging.weight(samples, staleness))
        self.count += 1

    def checkpoint(self, model: int, state: Mapping[str, int], files: Files) -> None:
        """Write the model after this cycle, and what the strategy keeps; the fold is empty afterwards.

        new[p] = model[p] - sum_i n_i * diff_i[p] / sum_i n_i        (LEAF; diff = original - trained), or the
        strategy's step by it. Raises InvalidDataError where nothing was folded.
        """
        fold, kept, count = self._fold, self._kept, self.count
        self._fold, self._kept, self.count = None, [], 0
        if fold is not None:
            change = fold.mean(self._averaging.over(count))
        elif kept:
            change = self._averaging.strategy.combine(self.form, kept)
        else:
            raise InvalidDataError("no report was folded: there is no mean of nothing")
        slots = {slot: mapped(descriptor) for slot, descriptor in state.items()}
        self._averaging.write(self.form, change, mapped(model), slots, files)


def form_of(model: int) -> Form:
    """The form of a model, whose values are not read. Raises InvalidDataError for tensors that no difference could be
    reported of."""
    return Form.of(mapped(model))


def mapped(descriptor: int, longest_header: int | None = None, *, reads: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, read-only; the file is mapped as long as one of them lives. With `reads` a
    small one is read in place of that, which takes less time.

    Raises InvalidDataError, LimitExceededError.
    """
    size = os.fstat(descriptor).st_size
    whole = os.pread(descriptor, size, 0) if reads and size <= _SMALL else b""
    prefix = whole[:PREFIX_BYTES] or os.pread(descriptor, PREFIX_BYTES, 0)
    length = header_length(prefix, size)
    if longest_header is not None and length > longest_header:
        raise LimitExceededError(f"the report's header of {length} bytes is over the limit of {longest_header} here")
    header = whole[PREFIX_BYTES : PREFIX_BYTES + length] or os.pread(descriptor, length, PREFIX_BYTES)
    tensors = parse_header(prefix, header, size)
    for one in tensors:
        if one.dtype not in _DTYPES:
            raise InvalidDataError(
                f"the tensor {one.name[:80]!r} is of {one.dtype}; what devices train is of {', '.join(sorted(_DTYPES))}"
            )
    data = whole or mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    return {one.name: _view(data, one) for one in tensors}


def _view(data: mmap.mmap | bytes, one: BlobTensor) -> Tensor:
    count = (one.end - one.begin) // numpy.dtype(one.dtype).itemsize
    return numpy.frombuffer(data, dtype=one.dtype, count=count, offset=one.begin).reshape(one.shape)


def _check_sum(name: str, tensor: Readable, samples: int) -> None:
    """The checkpoint would be infinite for good; integers are summed in float64, where no report is so large."""
    most = _most(tensor.dtype)
    for part, _ in chunks(tensor):
        if part.size and max(-float(part.min()), float(part.max())) > most / samples:
            raise InvalidDataError(
                f"{name[:80]!r} has values in the report that are too large for a mean: times the number of samples "
                "they would overflow its sum; train with a smaller learning rate"
            )


@lru_cache
def _most(dtype: numpy.dtype[Any]) -> float:
    """The largest value of which `_SHARE` can be summed."""
    return float(numpy.finfo(numpy.promote_types(dtype, numpy.float32)).max) / _SHARE
