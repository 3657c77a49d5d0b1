"""From the reports of a cycle to its checkpoint: how much each counts, and the strategy's step.

With diffs d_i = original - trained, mean change of the model -mean(d), the strategies are those of jobs
(grid_jupyter.aggregation). Checkpoints and the strategy's state are written a piece at a time, so that nothing is in
memory but the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from grid_jupyter.aggregation.form import CHUNK, Form, Tensors
from grid_jupyter.aggregation.strategies import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedProx,
    FedYogi,
    Krum,
    Median,
    Strategy,
    TrimmedMean,
)
from grid_jupyter.errors import InvalidDataError
from grid_jupyter.wire.safetensors import build_header, parse_header

Array = NDArray[Any]
Part = tuple[str, numpy.dtype[Any], tuple[int, ...]]
MODEL = ""
"""The name of a checkpoint's own file; others are slots of its strategy, such as "momentum"."""
STRATEGIES: Mapping[str, type[Strategy]] = {
    kind.__name__: kind
    for kind in (FedAvg, FedAvgM, FedProx, FedAdagrad, FedYogi, FedAdam, Median, TrimmedMean, Krum, FedBuff)
}
"""What cycles can be averaged by."""


class File(Protocol):
    """Takes bytes one after the other."""

    def write(self, data: bytes | memoryview, /) -> None:
        """Append."""


class Files(Protocol):
    """Where a checkpoint, and what its strategy keeps for the next one, are written."""

    def begin(self, name: str, nbytes: int, /) -> File:
        """A file of so many bytes."""


@dataclass(frozen=True)
class Averaging:
    """How a training makes one model of a cycle's reports. `buffers` are tensors that no gradient trains."""

    strategy: Strategy = field(default_factory=FedAvg)
    buffers: frozenset[str] = frozenset()

    @property
    def keeps(self) -> bool:
        """Reports are not folded as they come: all of them are needed at the end."""
        return self.strategy.keeps

    def weight(self, samples: int, staleness: int) -> float:
        """By how much a report counts."""
        if isinstance(self.strategy, FedBuff):
            return self.strategy.discount(staleness)
        return float(samples) if self.strategy.weighted else 1.0

    def over(self, count: int) -> float | None:
        """What a sum of reports is divided by; None: the sum of their weights."""
        return float(count) if self.strategy.asynchronous else None

    def write(self, form: Form, change: Tensors, model: Tensors, state: Mapping[str, Tensors], files: Files) -> None:
        """Write the model after a cycle whose diffs come to `change`, and the strategy's state.

        A value that would leave the range of its dtype stays at its end: a checkpoint has neither NaN nor infinities.
        """
        found = _Files(files)
        for part in _in_order(form.parts):
            for start in range(0, max(1, change[part[0]].size), CHUNK):
                new, slots = self._step(part, start, change, model, state)
                found.file(MODEL, form.parts).write(_bytes(new))
                for slot, values in slots.items():
                    found.file(slot, self._trained(form.parts)).write(_bytes(values))

    def _trained(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """What the server's step is made on, as its state has it: at least in float32."""
        return tuple((name, _wide(dtype), shape) for name, dtype, shape in _in_order(parts) if self._steps(name, dtype))

    def _steps(self, name: str, dtype: numpy.dtype[Any]) -> bool:
        plain = self.strategy.keeps or self.strategy.takes_mean
        return not plain and dtype.kind == "f" and name not in self.buffers

    def _step(
        self, part: Part, start: int, change: Tensors, model: Tensors, state: Mapping[str, Tensors]
    ) -> tuple[Array, dict[str, Array]]:
        """A piece of one tensor after the step, and what the strategy keeps of it."""
        name, dtype, _ = part
        piece = slice(start, start + CHUNK)
        before, moved = model[name].reshape(-1)[piece], change[name].reshape(-1)[piece]
        with numpy.errstate(over="ignore"):
            if not self._steps(name, dtype):
                return _within(dtype, before, moved), {}
            wide = _wide(dtype)
            known = {slot: {name: tensors[name].reshape(-1)[piece]} for slot, tensors in state.items()}
            delta = numpy.negative(moved, dtype=wide)
            new, kept = self.strategy.step({name: before.astype(wide, copy=False)}, known, {name: delta})
            return _clipped(new[name], dtype), {slot: _clipped(one[name], wide) for slot, one in kept.items()}


class _Files:
    """Files that are being written: the model's, and one for each slot."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._open: dict[str, File] = {}

    def file(self, name: str, parts: tuple[Part, ...]) -> File:
        found = self._open.get(name)
        if found is None:
            header = build_header([(name, dtype.name, shape) for name, dtype, shape in parts])
            found = self._open[name] = self._files.begin(name, len(header) + Form(parts).nbytes)
            found.write(header)
        return found


def _in_order(parts: tuple[Part, ...]) -> Iterator[Part]:
    """As their bytes lie in a file."""
    header = build_header([(name, dtype.name, shape) for name, dtype, shape in parts])
    length = len(header) + sum(dtype.itemsize * int(numpy.prod(shape, dtype=numpy.int64)) for _, dtype, shape in parts)
    named = {part[0]: part for part in parts}
    for place in sorted(parse_header(header[:8], header[8:], length), key=lambda one: one.begin):
        yield named[place.name]


def _wide(dtype: numpy.dtype[Any]) -> numpy.dtype[Any]:
    return numpy.promote_types(dtype, numpy.float32)


def _within(dtype: numpy.dtype[Any], before: Array, moved: Array) -> Array:
    """before - moved, within what the dtype holds."""
    if dtype.kind == "f":
        return _clipped(numpy.subtract(before, moved), dtype)
    if dtype.itemsize < 8:
        limits = numpy.iinfo(dtype)
        wide = numpy.subtract(before, moved, dtype=numpy.int64)
        return numpy.clip(wide, limits.min, limits.max).astype(dtype)
    new = numpy.subtract(before, moved)
    wrapped = ((before ^ moved) & (before ^ new)) < 0  # signs differ, and the result has not before's
    if wrapped.any():
        limits = numpy.iinfo(dtype)
        new[wrapped] = numpy.where(before[wrapped] < 0, limits.min, limits.max)
    return new


def _clipped(values: Array, dtype: numpy.dtype[Any]) -> Array:
    most = float(numpy.finfo(dtype).max)
    if values.size and not max(-float(values.min()), float(values.max())) <= most:
        if numpy.isnan(values).any():
            raise InvalidDataError("the strategy's step came to NaN")
        values = numpy.clip(values, -most, most)
    return values.astype(dtype, copy=False)


def _bytes(values: Array) -> memoryview:
    return numpy.ascontiguousarray(values).reshape(-1).view(numpy.uint8).data
