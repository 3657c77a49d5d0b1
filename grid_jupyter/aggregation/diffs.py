"""The forms in which a diff travels: as it is, in half precision, in bytes with scales, or its largest values alone.

A packed diff has the model's names. Beside the values of a tensor `w` there may be `w.scale`, which they are
multiplied by, and `w.index`, which says where they belong; everywhere else the tensor is 0. Which is which follows
from the model that the diff is of. docs/protocol-model-centric.md has the rules for clients of other languages.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.aggregation.form import CHUNK, Form, Packed, Readable, Tensor, Tensors, flattened
from grid_jupyter.errors import BadRequest, InvalidDataError

FORMS = ("float32", "float16", "int8", "topk")
"""What a diff may come as. `float32`: each tensor in the model's own dtype, which is float32 for most."""
KEEP = 0.05
"""The part of a tensor's values that `topk` sends, unless somebody says otherwise."""
_SCALE, _INDEX = ".scale", ".index"
_VALUES = ("float16", "int8")
_SMALLER = frozenset(map(numpy.dtype, _VALUES))
_SHOWN = 80
_EXPONENT = numpy.int16(0x7C00)
_WITHOUT_COPIES_OF_THE_SIGN = numpy.int32(~0x70000000)


# ------------------------------------------------------------------ unpacking, of what may be anything


def unpacked(arrays: Tensors, form: Form, accepted: Collection[str] = FORMS) -> dict[str, Readable]:
    """The tensors of a diff in the model's shapes and dtypes, whatever the form that it came in. Nothing is copied:
    packed tensors are unpacked a chunk at a time, when they are read.

    Raises BadRequest for a form that is not accepted, with the list of those that are; InvalidDataError for scales
    that are no finite numbers from 0 up, and places that do not rise, or lie outside. What else is wrong with the
    tensors, `Form.check` tells.
    """
    rest = dict(arrays)
    found: dict[str, Readable] = {}
    used: set[str] = set()
    for name, dtype, shape in form.parts:
        values = rest.pop(name, None)
        if values is None:
            continue
        scale, index = (None if name + end in form.places else rest.pop(name + end, None) for end in (_SCALE, _INDEX))
        found[name] = values
        if dtype.kind != "f" or (scale is None and index is None and values.dtype not in _SMALLER):
            found.update({name + end: one for end, one in ((_SCALE, scale), (_INDEX, index)) if one is not None})
        elif index is not None:
            used.add("topk")
            found[name] = _Sparse(name, dtype, shape, values, scale, index)
        elif values.dtype != dtype or scale is not None:
            used.add(values.dtype.name if values.dtype.name in _VALUES else "int8")
            found[name] = _Scaled(name, dtype, shape, values, scale)
    for kind in sorted(used) or ["float32"]:
        if kind not in accepted:
            raise BadRequest(f"a diff as {kind} is not taken in this training; it takes {', '.join(accepted)}")
    return {**found, **rest}


class _Scaled(Packed):
    """Values of all places, of a smaller dtype, times one scale or one for each row."""

    def __init__(
        self, name: str, dtype: numpy.dtype[Any], shape: tuple[int, ...], values: Tensor, scale: Tensor | None
    ) -> None:
        super().__init__(dtype, shape)
        if values.shape != shape:
            raise InvalidDataError(f"{_said(name)} is of shape {values.shape} in the report; the model's is {shape}")
        if values.dtype.name not in _VALUES:
            raise InvalidDataError(f"{_said(name)} is of {values.dtype} with a scale; only float16 and int8 have one")
        if scale is None and values.dtype.kind != "f":
            raise InvalidDataError(f"{_said(name)} is of int8 and has no scale: send {_said(name + _SCALE)} with it")
        self._values = values.reshape(-1)
        self._scales = _scales(name, scale, shape)
        self._width = max(1, self.size // len(self._scales))

    def fill(self, out: Tensor, start: int) -> None:
        """Values from `start` on."""
        at, stop, width = start, start + out.size, self._width
        while at < stop:
            row, within = divmod(at, width)
            if within or stop - at < width:  # part of a row
                end = min(stop, (row + 1) * width)
                scale: Any = self._scales[row]
            else:
                end = at + (stop - at) // width * width
                scale = self._scales[row : row + (end - at) // width, None]
            values, part = self._values[at:end], out[at - start : end - start]
            if values.dtype == numpy.float16:
                values = _singles(values)
            if numpy.ndim(scale):
                values, part = values.reshape(-1, width), part.reshape(-1, width)
            numpy.multiply(values, scale, part, dtype=_wide(self.dtype), casting="same_kind")
            at = end


class _Sparse(Packed):
    """Values of some places; all others are 0."""

    def __init__(
        self,
        name: str,
        dtype: numpy.dtype[Any],
        shape: tuple[int, ...],
        values: Tensor,
        scale: Tensor | None,
        index: Tensor,
    ) -> None:
        super().__init__(dtype, shape)
        if index.dtype.name not in ("int32", "int64") or index.ndim != 1 or values.shape != index.shape:
            raise InvalidDataError(
                f"{_said(name + _INDEX)} has the places of the values of {_said(name)}, one int32 or int64 for each"
            )
        if values.dtype.name not in (*_VALUES, "float32", dtype.name):
            raise InvalidDataError(f"{_said(name)} is of {values.dtype}; the values of topk are float32, float16, int8")
        if index.size > self.size or self.size - 1 > numpy.iinfo(index.dtype).max:
            raise InvalidDataError(f"{_said(name)} has more values, or places, than its {index.dtype} can name")
        _check_places(name, index, self.size)
        self._values, self._index = values, index
        self._scale = _scales(name, scale, ())[0]

    def fill(self, out: Tensor, start: int) -> None:
        """Values from `start` on."""
        out.fill(0)
        # NumPy's searchsorted copies all of an array that is not aligned, and where a file has it, its sender chooses
        first = bisect_left(self._index, start)
        last = bisect_left(self._index, start + out.size, first)
        places = self._index[first:last] - self._index.dtype.type(start)
        out[places] = numpy.multiply(self._values[first:last], self._scale, dtype=_wide(self.dtype))


def _singles(halves: Tensor) -> Tensor:
    """float16 as float32, in whole-number arithmetic, which is several times faster than NumPy's own.

    The bits of a half, moved to where a single has them, are 2^-112 of its value, numbers below the normal ones too.
    """
    bits = halves.view(numpy.int16)
    if (bits & _EXPONENT == _EXPONENT).any():  # infinite, or no number: refused when it is checked
        return halves.astype(numpy.float32)
    moved = numpy.left_shift(bits, 13, dtype=numpy.int32)
    moved &= _WITHOUT_COPIES_OF_THE_SIGN
    singles = moved.view(numpy.float32)
    singles *= numpy.float32(2.0**112)
    return singles


def _wide(dtype: numpy.dtype[Any]) -> numpy.dtype[Any]:
    """What values times scales are computed in."""
    return numpy.promote_types(dtype, numpy.float32)


def _scales(name: str, scale: Tensor | None, shape: tuple[int, ...]) -> NDArray[Any]:
    """One float32, or one for each row. What it is multiplied with has at most 8 or 16 bits."""
    if scale is None:
        return numpy.ones(1, numpy.float32)
    if scale.dtype != numpy.float32 or scale.shape not in ((), (1,), shape[:1]):
        raise InvalidDataError(f"{_said(name + _SCALE)} is one float32, or one for each row of {_said(name)}")
    found = scale.reshape(-1)
    for start in range(0, found.size, CHUNK):
        part = found[start : start + CHUNK]
        if not (numpy.isfinite(part).all() and (part >= 0).all()):
            raise InvalidDataError(f"{_said(name + _SCALE)} has values that are negative, infinite or no numbers")
    return found if found.size else numpy.ones(1, numpy.float32)


def _check_places(name: str, index: Tensor, size: int) -> None:
    if not index.size:
        return
    for start in range(0, index.size - 1, CHUNK):
        part = index[start : start + CHUNK + 1]
        if not (part[1:] > part[:-1]).all():
            raise InvalidDataError(f"{_said(name + _INDEX)} does not rise: each place is named once, in order")
    if index[0] < 0 or index[-1] >= size:
        raise InvalidDataError(f"{_said(name + _INDEX)} names places that {_said(name)} has not")


# ------------------------------------------------------------------ packing


def packed(
    diff: Tensors, kind: str, random: numpy.random.Generator | None = None, *, keep: float = KEEP
) -> dict[str, Tensor]:
    """A diff in one of FORMS, as the tensors of a file. Integers stay what they are.

    float16     w = value * scale, one scale: a power of two, so that small values keep their precision
    int8        w = value * scale, one scale for each row; rounded up or down by chance (`random`), so that the mean
                of many reports is not pulled either way
    topk        of each tensor the part `keep` with the largest magnitudes, in float16

    Raises BadRequest for another form, InvalidDataError for a diff that is not finite.
    """
    if kind not in FORMS:
        raise BadRequest(f"a diff travels as {', '.join(FORMS)}, not as {kind!r}")
    if kind == "float32":
        return dict(diff)
    found: dict[str, Tensor] = {}
    for name, tensor in diff.items():
        if tensor.dtype.kind != "f":
            found[name] = tensor
            continue
        if not numpy.isfinite(tensor).all():
            raise InvalidDataError(f"{_said(name)} is not finite any more: train with a smaller learning rate")
        if kind == "float16":
            found[name], found[name + _SCALE] = _halves(tensor)
        elif kind == "int8":
            found[name], found[name + _SCALE] = _bytes(tensor, random or numpy.random.default_rng())
        else:
            index = _largest(tensor, keep)
            found[name + _INDEX] = index
            found[name], found[name + _SCALE] = _halves(tensor.reshape(-1)[index])
    return found


def restored(arrays: Tensors, diff: Tensors) -> dict[str, Tensor]:
    """What the Node makes of a packed diff: whole arrays. `diff` is what was packed."""
    found = {}
    for name, tensor in unpacked(arrays, Form.of(diff)).items():
        flat = flattened(tensor)
        if not isinstance(flat, Packed):
            found[name] = flat.reshape(tensor.shape)
            continue
        whole = numpy.empty(flat.size, flat.dtype)
        for start in range(0, flat.size, CHUNK):
            flat.fill(whole[start : start + CHUNK], start)
        found[name] = whole.reshape(tensor.shape)
    return found


def _halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    most = float(numpy.abs(tensor).max()) if tensor.size else 0.0
    exponent = math.frexp(most)[1]  # most < 2 ** exponent
    scale = numpy.float32(2.0 ** min(max(exponent - 15, -126), 127)) if most else numpy.float32(1)
    return (tensor / scale).astype(numpy.float16), numpy.asarray(scale)


def _bytes(tensor: Tensor, random: numpy.random.Generator) -> tuple[Tensor, Tensor]:
    rows = tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 and tensor.size else tensor.reshape(1, -1)
    most = numpy.abs(rows).max(axis=1, initial=0)
    scales = numpy.maximum(most / 127, numpy.finfo(numpy.float32).tiny).astype(numpy.float32)
    values = numpy.floor(rows / scales[:, None] + random.random(rows.shape, numpy.float32))
    return numpy.clip(values, -127, 127).astype(numpy.int8).reshape(tensor.shape), scales


def _largest(tensor: Tensor, keep: float) -> Tensor:
    size = tensor.size
    count = min(size, max(1, math.ceil(size * keep)))
    sizes = numpy.abs(tensor.reshape(-1))
    chosen = numpy.argpartition(sizes, size - count)[size - count :] if count < size else numpy.arange(size)
    return numpy.sort(chosen).astype(numpy.int32 if size < 1 << 31 else numpy.int64)


def _said(name: str) -> str:
    return repr(name[:_SHOWN])
