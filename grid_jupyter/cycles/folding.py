"""Reports on their way into a checkpoint: read as hostile, checked, folded in their order. Blocks; runs in a thread.

One model of memory for the sums beside the report that is being read, whatever the number of reports. Files are
mapped, and what was read of them is given back.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy

from grid_jupyter.aggregation.diffs import FORMS, unpacked
from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import Form, Readable, Tensor, chunks
from grid_jupyter.cycles.averaging import Averaging, Made
from grid_jupyter.errors import InvalidDataError
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.wire.safetensors import BlobTensor, read_header

_DTYPES = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64"})
"""What a model's tensors may be: differences of them are of the same dtype."""


_SHARE = float(1 << 20)
"""Reports as large as the largest that is taken whose sum is still finite."""


class Folding:
    """The reports of one cycle. One thread at a time; `fold` is called with the numbers 1, 2, 3 … in turn."""

    def __init__(self, form: Form, averaging: Averaging) -> None:
        self._form = form
        self._averaging = averaging
        self._fold: Fold | None = None
        self._kept: list[Path] = []
        self.count = 0
        """Reports that are folded, or kept for the end."""

    def fold(self, path: Path, samples: int, staleness: int) -> None:
        """Take in the next report."""
        if self._averaging.keeps:
            self._kept.append(path)
        else:
            if self._fold is None:
                self._fold = Fold(self._form)
            with mapped(path) as tensors:
                self._fold.add(unpacked(tensors, self._form), self._averaging.weight(samples, staleness))
        self.count += 1

    def checkpoint(self, model: Path, state: Mapping[str, Path], blobs: BlobStore, name: str) -> Made:
        """Write the model after this cycle, durably, and the strategy's state; the fold is empty afterwards.

        new[p] = model[p] − Σ nᵢ·diffᵢ[p] / Σ nᵢ        (LEAF; diff = original − trained), or the strategy's step by it
        """
        with ExitStack() as stack:
            if self._fold is not None:
                change = self._fold.mean(self._averaging.over(self.count))
            elif self._kept:
                kept = [unpacked(stack.enter_context(mapped(path)), self._form) for path in self._kept]
                change = self._averaging.strategy.combine(self._form, kept)
            else:
                raise InvalidDataError("no report was folded: there is no mean of nothing")
            self._fold, self._kept, self.count = None, [], 0
            before = stack.enter_context(mapped(model))
            slots = {slot: stack.enter_context(mapped(path)) for slot, path in state.items()}
            return self._averaging.write(self._form, change, before, slots, blobs, name)


def form_of(path: Path) -> Form:
    """The form of a model, whose values are not read. Raises InvalidDataError for tensors that no difference could be
    reported of."""
    with path.open("rb") as file:
        tensors, _ = read_header(file)
    _check_dtypes(tensors)
    with mapped(path) as found:
        return Form.of(found)


def check(path: Path, form: Form, max_norm: float | None, samples: int = 1, accepted: Collection[str] = FORMS) -> None:
    """Refuse a report that is not of the model's form, or packed as none of `accepted`; has NaN or infinities, is over
    the bound on its norm, or so large that with its samples a sum of some would overflow. What is packed counts as
    what it unpacks to.

    Raises BadRequest, InvalidDataError, LimitExceededError.
    """
    with mapped(path) as arrays:
        tensors = unpacked(arrays, form, accepted)
        form.check(tensors)
        form.check_values(tensors, max_norm=max_norm)
        for name, tensor in tensors.items():
            if tensor.dtype.kind == "f":
                _check_sum(name, tensor, samples)


def _check_sum(name: str, tensor: Readable, samples: int) -> None:
    """The checkpoint would be infinite for good; integers are summed in float64, where no report is so large."""
    most = float(numpy.finfo(numpy.promote_types(tensor.dtype, numpy.float32)).max) / _SHARE
    for part, _ in chunks(tensor):
        if part.size and max(-float(part.min()), float(part.max())) > most / samples:
            raise InvalidDataError(
                f"{name[:80]!r} has values in the report that are too large for a mean: times the number of samples "
                "they would overflow its sum; train with a smaller learning rate"
            )


@contextmanager
def mapped(path: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a safetensors file, read-only, as long as the context lasts."""
    with path.open("rb") as file:
        tensors, _ = read_header(file)
        _check_dtypes(tensors)
        # Not closed here: it ends with the last view of it, also where an error keeps one for a while.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    yield {one.name: _view(data, one) for one in tensors}


def _view(data: mmap.mmap, one: BlobTensor) -> Tensor:
    count = (one.end - one.begin) // numpy.dtype(one.dtype).itemsize
    return numpy.frombuffer(data, dtype=one.dtype, count=count, offset=one.begin).reshape(one.shape)


def _check_dtypes(tensors: tuple[BlobTensor, ...]) -> None:
    for one in tensors:
        if one.dtype not in _DTYPES:
            raise InvalidDataError(
                f"the tensor {one.name[:80]!r} is of {one.dtype}; what devices train is of {', '.join(sorted(_DTYPES))}"
            )
