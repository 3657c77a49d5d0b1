"""Memory that large values come into: huge pages where they are at hand, and one room for many downloads."""

from __future__ import annotations

import contextlib
import mmap
import sys
import time
from collections.abc import Callable

_HUGE = 2 << 20
"""Bytes of a huge page; where it has another size, nothing is lost."""
_MOST_S, _GRACE_S = 0.008, 0.03
"""What a huge page may take on average, and how much they may be over that together: four times as much as the small
ones in its place. In memory that is in pieces they are searched for; in a virtual machine, those that it never used
take about 5 ms, once."""


def fresh(size: int) -> mmap.mmap:
    """New memory that is not filled with zeros before somebody touches it. Raises OSError where there is none."""
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            made.madvise(mmap.MADV_HUGEPAGE)
    return made


class Pages:
    """Makes the huge pages of fresh memory, piece by piece as it is filled from its begin.

    A page fault costs more than the bytes that come into a small page, so that they are most of what receiving a
    large value takes; a huge page is one fault instead of 512.
    """

    def __init__(self, memory: mmap.mmap | None = None, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock` is the processor's time of this thread: others may use the processor meanwhile."""
        self._memory = memory
        self._clock = clock
        self._made = 0
        self._left_s = _GRACE_S

    def make(self, end: int) -> None:
        """Make those up to a byte, of which none may be filled yet that `make` did not make before."""
        while self._memory is not None and self._made < min(end, len(self._memory)):
            began = self._clock()
            self._memory[self._made] = 0
            self._made += _HUGE
            self._left_s += _MOST_S - (self._clock() - began)
            if self._left_s < 0 and hasattr(mmap, "MADV_NOHUGEPAGE"):
                self._memory.madvise(mmap.MADV_NOHUGEPAGE)
                self._memory = None


class Room:
    """Memory for one download after another: as long as nobody holds what came before, it is used again, for fresh
    memory costs as much as the bytes that come into it."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def take(self, size: int) -> tuple[memoryview, Pages]:
        """Memory for so many bytes, which hold anything, and its pages that are to be made."""
        if not size:
            return memoryview(bytearray()), Pages()
        # views of it, and tensors that share it, hold references; one is ours, one is that of the call
        free = self._memory is not None and len(self._memory) == size and sys.getrefcount(self._memory) == 2
        if free and self._memory is not None:
            return memoryview(self._memory), Pages()
        self._memory = fresh(size)
        return memoryview(self._memory), Pages(self._memory)
