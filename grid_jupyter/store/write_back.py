"""What is written to a file goes to the disk while more of it comes, so that little is left for whoever syncs it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

EACH = 4 << 20
"""Bytes for which the disk is bothered."""
_WRITE = 2  # SYNC_FILE_RANGE_WRITE, linux/fs.h


def begin_write_back(descriptor: int, start: int, nbytes: int) -> None:
    """Let the disk begin with these bytes of a file, without waiting for it. A wish: no more than after a write is
    anything on the disk for sure, and what goes wrong is told by fsync."""
    ask = _system_call()
    if ask is not None:
        ask(descriptor, start, nbytes, _WRITE)


@functools.cache
def _system_call() -> Callable[[int, int, int, int], int] | None:
    found = getattr(ctypes.CDLL(None), "sync_file_range", None)  # other systems have none
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found
