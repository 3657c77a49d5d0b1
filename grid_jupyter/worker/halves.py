"""The memory of values whose size tells of private data, kept apart from the memory that a session can feel out.

How much memory is left can be found out by filling it. So once a session computes with sizes that its caller may
not know, its memory is two halves: one for values of such sizes, one for all others, and what is free of the second
does not depend on how much of the first is taken.
"""

from __future__ import annotations

import ctypes
import os
import resource

from grid_jupyter.errors import OperationNotAllowedError
from grid_jupyter.wire.limits import MAX_DATASETS_OPEN
from grid_jupyter.worker.memory import Shared, data_bytes

SIZED = 1 << MAX_DATASETS_OPEN
"""The bit of a lineage, above those of all data sets, that says: sizes depend on what the caller may not read."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # mallopt's numbers
_MAP_FROM = {False: 128 << 10, True: 256}
"""Bytes from which malloc maps memory for a value alone, which goes back as it came; by kind of work."""
_PAGE = resource.getpagesize()


class Halves:
    """Enforces the halves by moving the process's own limit, whenever work changes from one kind to the other."""

    def __init__(self, memory_bytes: int = 0, *, on_gpu: bool = False) -> None:
        """`memory_bytes` is what the limit of the process lets the session take; 0: there is none."""
        self.on_gpu = on_gpu
        self.split = False
        self.hidden = False  # whether what runs now may take of the hidden half alone
        self._half = memory_bytes // 2
        self._taken = 0  # bytes that the hidden half has
        self._before = 0
        self._ceiling = 0
        self._offset = 0
        self._statm = -1
        self._malloc: ctypes.CDLL

    def enter(self, hidden: bool) -> None:
        """From here on work is of this kind. Raises OperationNotAllowedError on a GPU, whose memory has no halves."""
        if hidden and self.on_gpu:
            raise OperationNotAllowedError(
                "what is as large as private values say is not computed on a GPU, where how much memory is free would "
                "tell how large it is; who may read the data can compute it, or ask for a Node with --device cpu"
            )
        if hidden is self.hidden or not self._half:
            return
        if not self.split:
            self._begin()
        now = self._data_bytes()
        if hidden:
            self._before = now
            self._limit(now - self._taken + self._half)
        else:
            self._taken += now - self._before
            self._limit(self._ceiling - self._half + self._taken - Shared.total)
        self.hidden = hidden
        self._malloc.mallopt(_M_MMAP_THRESHOLD, _MAP_FROM[hidden])
        self._malloc.mallopt(_M_TOP_PAD, 0 if hidden else _MAP_FROM[False])

    def _begin(self) -> None:
        self.split = True
        self._ceiling = resource.getrlimit(resource.RLIMIT_DATA)[1]
        # hidden values should leave few holes in the heap, which others would fill, nor teach malloc what to map
        self._malloc = ctypes.CDLL(None)
        self._malloc.mallopt(_M_ARENA_MAX, 1)
        self._malloc.mallopt(_M_TRIM_THRESHOLD, _MAP_FROM[False])  # undoes keep_freed_memory()
        self._malloc.malloc_trim(0)
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._offset = data_bytes() - self._data_bytes()

    def _data_bytes(self) -> int:
        return int(os.pread(self._statm, 256, 0).split()[5]) * _PAGE + self._offset

    def _limit(self, soft: int) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (max(0, min(soft, self._ceiling)), self._ceiling))
