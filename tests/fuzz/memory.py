"""Operands in guarded memory: what a kernel reads or writes outside of them is a crash, or is noticed."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import torch

from grid_jupyter.ops.raw import DTYPES
from grid_jupyter.wire.dtypes import ITEM_BYTES

from .calls import Tensor
from .dice import Dice

_PAGE = mmap.PAGESIZE
_SLOT = 2 * _PAGE
_M_PERTURB, _M_MMAP_THRESHOLD = -6, -3
_libc = ctypes.CDLL(None, use_errno=True)
_MAX_ELEMENTS = 1 << 18
_POOL = 4096  # elements drawn of one kind


def perturb(byte: int) -> None:
    """From here on fresh memory of this process holds `byte ^ 0xff`, freed memory `byte` (glibc only)."""
    _libc.mallopt(_M_PERTURB, byte)


def no_mapped_blocks() -> None:
    """Large blocks come from the heap too: the kernel's own pages would be zeros, which hide what was not written."""
    _libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)


class Held:
    """The storage of one operand, and what was in it."""

    __slots__ = ("_all", "_before", "_begin", "_data", "_start", "base")

    def __init__(self, base: torch.Tensor, data: bytes, whole: Any, start: int, begin: int, before: bytes) -> None:
        self.base = base
        self._data = data
        self._all = whole  # the memory that the operand lies in, of which it has the bytes from `begin` on
        self._start = start
        self._begin = begin
        self._before = before

    def untouched(self) -> bool:
        """Whether the operand and what lies beside it are as they were."""
        return bool(self._all[self._start : self._start + len(self._before)] == self._before)

    def changed(self) -> bool:
        """Whether the operand itself is another."""
        return bool(self._all[self._begin : self._begin + len(self._data)] != self._data)

    def trespassed(self) -> bool:
        """Whether somebody wrote beside the operand."""
        now = self._all[self._start : self._start + len(self._before)]
        first = self._begin - self._start
        last = first + len(self._data)
        return bool(now[:first] != self._before[:first] or now[last:] != self._before[last:])


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
        self._used = 0
        self._margin = b""

    def reset(self, byte: int) -> None:
        """All slots are free again; from here on their margins are filled with `byte`."""
        self._used = 0
        self._margin = bytes([byte]) * _SLOT

    def place(self, data: bytes, dtype: torch.dtype, at_end: bool) -> Held:
        """A flat tensor of these bytes at one edge of a slot, or in ordinary memory where none is free."""
        size = len(data)
        if not 0 < size <= _SLOT or self._used >= self._slots:
            own = bytearray(data)
            base = torch.frombuffer(own, dtype=dtype) if own else torch.zeros(0, dtype=dtype)
            return Held(base, data, own, 0, 0, data)
        start = _PAGE + self._used * (_SLOT + _PAGE)
        self._used += 1
        if at_end:
            begin = start + _SLOT - size
            before = self._margin[size:] + data
        else:
            begin = start
            before = data + self._margin[size:]
        self._map[start : start + _SLOT] = before
        return Held(
            torch.frombuffer(self._view[begin : begin + size], dtype=dtype), data, self._map, start, begin, before
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


class Contents:
    """What operands are filled with: pieces of pools, which are drawn once for each dtype and kind of content."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator()
        self._seed = seed
        self._pools: dict[tuple[Any, ...], bytes] = {}
        self._ranges: dict[tuple[Any, ...], bytes] = {}

    def of(self, operand: Tensor, dice: Dice) -> bytes:
        """The bytes of an operand's storage. Raises ValueError for one that is too large to try."""
        count = extent(operand)
        if not 0 < count <= _MAX_ELEMENTS:
            if count > 0:
                raise ValueError("too large to try")
            return b""
        size, fill = ITEM_BYTES[operand.dtype], operand.fill
        first = 0
        if operand.values:
            pool = self._range(operand.dtype, operand.values)
        elif fill == "range":
            pool = self._range(operand.dtype, (), operand.low, operand.high)
        elif fill == "mixed":
            return self._mixed(operand.dtype, count, size, dice)
        else:
            pool = self._pool(operand.dtype, fill)
        if fill != "rising" and not operand.values:
            first = dice.randrange(_POOL) * size
        found = pool[first : first + count * size]
        missing = count * size - len(found)
        return found if not missing else (found + pool * (missing // len(pool) + 1))[: count * size]

    def _mixed(self, dtype: str, count: int, size: int, dice: Dice) -> bytes:
        """Ordinary numbers, and one that is not."""
        plain = bytearray(self.of(Tensor(dtype, (count,)), dice))
        edges = self._pool(dtype, "edges")
        where, which = dice.randrange(count) * size, dice.randrange(len(edges) // size) * size
        plain[where : where + size] = edges[which : which + size]
        return bytes(plain)

    def _pool(self, dtype: str, fill: str) -> bytes:
        found = self._pools.get((dtype, fill))
        if found is None:
            # drawn anew wherever it is needed first, so that a call is the same whatever came before it
            self._generator.manual_seed(self._seed)
            found = self._pools[dtype, fill] = _bytes(_drawn(DTYPES[dtype], fill, self._generator))
        return found

    def _range(self, dtype: str, values: tuple[Any, ...], low: float = 0, high: float = 0) -> bytes:
        key = (dtype, repr(values), low, high)  # in a key True would be 1
        found = self._ranges.get(key)
        if found is None:
            if len(self._ranges) > 1000:
                self._ranges.clear()
            kind = DTYPES[dtype]
            if values:
                made = torch.tensor(values, dtype=kind)
            else:
                self._generator.manual_seed(self._seed)
                made = torch.rand(_POOL, generator=self._generator) * (high - low + (not kind.is_floating_point)) + low
                made = _cast(made, kind)
            found = self._ranges[key] = _bytes(made)
        return found


def _bytes(of: torch.Tensor) -> bytes:
    return bytes(of.contiguous().view(torch.uint8).numpy())


def _drawn(dtype: torch.dtype, fill: str, g: torch.Generator) -> torch.Tensor:
    edges = _edges(dtype)
    if fill == "edges":
        return edges
    if fill in _EDGES:
        return edges[_EDGES.index(fill) % len(edges)].expand(_POOL)
    if fill == "extreme":
        return edges[torch.randint(len(edges), (_POOL,), generator=g)]
    if fill == "rising":
        return _cast(torch.arange(_POOL).double(), dtype)
    return _plain(dtype, _POOL, g)


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
