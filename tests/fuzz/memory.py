"""Operands in guarded memory: what a kernel reads or writes outside of them is a crash, or is noticed."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import torch

from grid_jupyter.ops.raw import DTYPES

from .calls import Tensor

_PAGE = mmap.PAGESIZE
_SLOT = 2 * _PAGE
_M_PERTURB, _M_MMAP_THRESHOLD = -6, -3
_libc = ctypes.CDLL(None, use_errno=True)
_MAX_ELEMENTS = 1 << 18


def perturb(byte: int) -> None:
    """From here on fresh memory of this process holds `byte ^ 0xff`, freed memory `byte` (glibc only)."""
    _libc.mallopt(_M_PERTURB, byte)


def no_mapped_blocks() -> None:
    """Large blocks come from the heap too: the kernel's own pages would be zeros, which hide what was not written."""
    _libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)


class Arena:
    """Slots of memory between pages that cannot be touched."""

    def __init__(self, slots: int = 48) -> None:
        self._map = mmap.mmap(-1, slots * (_SLOT + _PAGE) + _PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for slot in range(slots + 1):
            if _libc.mprotect(ctypes.c_void_p(base + slot * (_SLOT + _PAGE)), _PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._view = memoryview(self._map)
        self._slots = slots
        self._used: list[tuple[int, int, int]] = []
        self._margin = b""

    def reset(self, byte: int) -> None:
        """All slots are free again; their margins hold `byte` from here on."""
        self._used.clear()
        self._margin = bytes([byte]) * _SLOT

    def place(self, data: bytes, dtype: str, at_end: bool) -> torch.Tensor:
        """A flat tensor of these bytes at one edge of a slot, or in ordinary memory where none is free."""
        if not 0 < len(data) <= _SLOT or len(self._used) >= self._slots:
            return (
                torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]) if data else torch.zeros(0, dtype=DTYPES[dtype])
            )
        start = _PAGE + len(self._used) * (_SLOT + _PAGE)
        begin = start + (_SLOT - len(data) if at_end else 0)
        end = begin + len(data)
        self._view[start : start + _SLOT] = self._margin
        self._view[begin:end] = data
        self._used.append((start, begin, end))
        return torch.frombuffer(self._view[begin:end], dtype=DTYPES[dtype])

    def trespassed(self) -> bool:
        """Whether somebody wrote beside an operand."""
        return any(
            self._map[start:begin] != self._margin[: begin - start]
            or self._map[end : start + _SLOT] != self._margin[: start + _SLOT - end]
            for start, begin, end in self._used
        )


def extent(of: Tensor) -> int:
    """Elements of the storage under an operand."""
    if 0 in of.shape:
        return 0
    if of.stride is None:
        count = 1
        for length in of.shape:
            count *= length
        return count + of.offset
    return of.offset + 1 + sum((n - 1) * step for n, step in zip(of.shape, of.stride, strict=True))


def content(of: Tensor, generator: torch.Generator) -> bytes:
    """The bytes of an operand's storage. Raises ValueError for one that is too large to try."""
    count = extent(of)
    if count > _MAX_ELEMENTS:
        raise ValueError("too large to try")
    made = _drawn(of, count, generator)
    return bytes(made.contiguous().view(torch.uint8).numpy()) if count else b""


def _drawn(of: Tensor, count: int, g: torch.Generator) -> torch.Tensor:
    dtype = DTYPES[of.dtype]
    if of.values:
        repeated = [of.values[i % len(of.values)] for i in range(count)]
        return torch.tensor(repeated, dtype=dtype)
    if of.fill == "range":
        return _cast(
            torch.rand(count, generator=g) * (of.high - of.low + (not dtype.is_floating_point)) + of.low, dtype
        )
    if of.fill in _EDGES or of.fill == "mixed":
        edges = _edges(dtype)
        if of.fill == "mixed":
            made = _plain(dtype, count, g)
            if count:
                where = int(torch.randint(count, (), generator=g))
                made[where] = edges[int(torch.randint(len(edges), (), generator=g))]
            return made
        return edges[_EDGES.index(of.fill) % len(edges)].expand(count).clone()
    if of.fill == "extreme":
        edges = _edges(dtype)
        return edges[torch.randint(len(edges), (count,), generator=g)]
    if of.fill == "rising":
        return _cast(torch.arange(count).double(), dtype)
    return _plain(dtype, count, g)


_EDGES = ("nan", "inf", "-inf", "huge", "-huge", "zero", "one", "minus one", "large", "-large")


def _edges(dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.tensor([False, True])
    if dtype.is_floating_point or dtype.is_complex:
        real: Any = torch.finfo(dtype)
        values = [float("nan"), float("inf"), -float("inf"), real.max, real.min, 0.0, 1.0, -1.0, 1e9, -1e9]
        return torch.tensor([max(min(v, real.max), real.min) if abs(v) == 1e9 else v for v in values], dtype=dtype)
    whole = torch.iinfo(dtype)
    wide = min(whole.max, 1 << 33)
    values = [
        whole.max,
        whole.min,
        whole.max // 2,
        whole.max,
        whole.min,
        0,
        1,
        max(-1, whole.min),
        wide,
        max(-wide, whole.min),
    ]
    return torch.tensor(values, dtype=dtype)


def _plain(dtype: torch.dtype, count: int, g: torch.Generator) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.rand(count, generator=g) > 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(count, generator=g, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    return torch.randint(0, 4, (count,), generator=g).to(dtype)


def _cast(made: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return made > 0.5 if dtype == torch.bool else made.to(dtype)
