"""What a set of named tensors must look like, and what a report is refused for. Knows nothing of how it is folded."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.errors import InvalidDataError

Tensor = NDArray[Any]
Tensors = Mapping[str, Tensor]

CHUNK = 1 << 18
"""Elements that are worked on at a time: what is kept between two passes stays in a core's cache (1 MiB of float32)."""
_SHOWN = 80


class Packed(ABC):
    """A tensor whose values are made when they are read, a chunk at a time: `part[a:b]` is good until the next."""

    def __init__(self, dtype: numpy.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape, self.size = dtype, shape, math.prod(shape)
        self._scratch: Tensor = numpy.empty(0, dtype)

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(self.size)
        if self._scratch.size < stop - start:
            self._scratch = numpy.empty(stop - start, self.dtype)
        out = self._scratch[: stop - start]
        with numpy.errstate(all="ignore"):  # what overflows is infinite, and refused for that
            self.fill(out, start)
        return out

    @abstractmethod
    def fill(self, out: Tensor, start: int) -> None:
        """Write the values from `start` on, in C order, as many as there is room for."""


Readable = Tensor | Packed
Report = Mapping[str, Readable]
"""The tensors of a report, some of which may be packed."""


@dataclass(frozen=True)
class Form:
    """Names, dtypes and shapes, in the order of the model's."""

    parts: tuple[tuple[str, numpy.dtype[Any], tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Tensors) -> Form:
        """The form of these tensors. Raises InvalidDataError for none at all, or a dtype that has no mean."""
        if not tensors:
            raise InvalidDataError("a model without tensors cannot be trained")
        for name, tensor in tensors.items():
            if tensor.dtype.kind not in "fiu":
                raise InvalidDataError(f"{_said(name)} is of {tensor.dtype}; only floats and integers have a mean")
        return cls(tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(name for name, _, _ in self.parts)

    @cached_property
    def places(self) -> frozenset[str]:
        """The same, to look whether a name is among them."""
        return frozenset(self.names)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in self.parts)

    def check(self, tensors: Report) -> None:
        """Refuse other names, dtypes or shapes. Raises InvalidDataError naming the first that differs."""
        for name, dtype, shape in self.parts:
            found = tensors.get(name)
            if found is None:
                raise InvalidDataError(f"the report has no tensor {_said(name)}, which the model has")
            if found.shape != shape:
                raise InvalidDataError(f"{_said(name)} is of shape {found.shape} in the report; the model's is {shape}")
            if found.dtype != dtype:
                raise InvalidDataError(f"{_said(name)} is of {found.dtype} in the report; the model's is {dtype}")
        if len(tensors) > len(self.parts):
            extra = next(name for name in tensors if name not in self.places)
            raise InvalidDataError(f"the report has a tensor {_said(extra)}, which the model has not")

    def check_values(self, tensors: Report, *, origin: Tensors | None = None, max_norm: float | None = None) -> float:
        """Refuse NaN, infinities, and what lies farther than `max_norm` from `origin` (from 0, where that is None):

            sqrt(sum over all coordinates of (report - origin)^2) <= max_norm

        Integers (counters of a model) have no part in the norm, which is returned. One pass, in memory of one chunk.
        Raises InvalidDataError, which says neither values nor the norm.
        """
        squares = 0.0
        for name, dtype, _ in self.parts:
            if dtype.kind != "f":
                continue
            for part, start in chunks(tensors[name], None if origin is None or max_norm is None else origin[name]):
                with numpy.errstate(all="ignore"):
                    moved = part if start is None else part - start
                    square = float(numpy.dot(moved, moved))
                if not math.isfinite(square):
                    if not numpy.isfinite(part).all():
                        raise InvalidDataError(
                            f"{_said(name)} has NaN or infinite values in the report; train anew from the model as it "
                            "came, perhaps in smaller steps"
                        )
                    with numpy.errstate(all="ignore"):
                        square = float(numpy.sum(numpy.square(moved, dtype=numpy.float64)))
                squares += square
        if max_norm is not None and not squares <= max_norm * max_norm:
            raise InvalidDataError(
                f"the report changes the model by more than the bound {max_norm:g} on its norm; scale it down"
            )
        return math.sqrt(squares)


def flattened(tensor: Readable) -> Readable:
    """Its values in C order, to be read by slices."""
    return tensor if isinstance(tensor, Packed) else tensor.reshape(-1)


def chunks(tensor: Readable, other: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Flat pieces of a tensor, each with the piece of the other at the same place."""
    flat = flattened(tensor)
    beside = None if other is None else other.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK], None if beside is None else beside[start : start + CHUNK]


def _said(name: str) -> str:
    return repr(name[:_SHOWN])
