"""Memory of a Worker: its limit, and files of memory that large tensors come and go in."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
from pathlib import Path

from grid_jupyter.errors import LimitExceededError

_PIECE = 1 << 20
_MAP_FROM = 8 << 20
_MAP_FROM_OF_STEPS = 32 << 20  # the most that glibc takes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def limit_memory(nbytes: int) -> None:
    """Let this process use so much more private memory than it does now; what is over it fails as MemoryError."""
    ceiling = data_bytes() + nbytes
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))


def keep_freed_memory(*, of_steps: bool = False) -> None:
    """Let malloc keep what training steps free and take again: from the kernel they would get it zeroed each time.

    By default glibc returns freed memory at once when it is above some megabytes, which costs a convolutional
    network a fifth of its time in page faults. What is larger than `_MAP_FROM` still goes back at once: in the heap
    it would leave holes, which count as taken. With `of_steps` that is only what is larger than `_MAP_FROM_OF_STEPS`:
    a job's steps take the same sizes again and again, which fit into the holes of the step before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        map_from = _MAP_FROM_OF_STEPS if of_steps else _MAP_FROM
        mallopt(_M_MMAP_THRESHOLD, map_from)
        mallopt(_M_TRIM_THRESHOLD, 8 * map_from)


class Shared(mmap.mmap):
    """A file of memory as this process's own: nothing is copied, and nobody else writes to it.

    The kernel counts shared memory towards no limit of a process, so the limit for the rest is lower while this
    lives. Raises MemoryError where it would not fit.
    """

    total = 0
    """Bytes of all that live."""
    _counted = 0

    def __new__(cls, descriptor: int) -> Shared:
        """Map the whole of a file whose length is sealed: one that shrank would be a crash at the next touch."""
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise ValueError("the file's length is not sealed")
        size = os.fstat(descriptor).st_size
        limit, ceiling = resource.getrlimit(resource.RLIMIT_DATA)
        if limit != resource.RLIM_INFINITY:
            if data_bytes() + size > limit:
                raise MemoryError
            resource.setrlimit(resource.RLIMIT_DATA, (limit - size, ceiling))
        made = super().__new__(cls, descriptor, size)
        if limit != resource.RLIM_INFINITY:
            made._counted = size
            Shared.total += size
        return made

    def __del__(self) -> None:
        if self._counted:
            Shared.total -= self._counted
            limit, ceiling = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (limit + self._counted, ceiling))


def memory_file(size: int) -> int:
    """A descriptor of memory of a length that never changes, to be filled; the caller closes it."""
    made = os.memfd_create("value", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(made, size)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
    return made


def fill(descriptor: int, data: memoryview) -> None:
    """Write a value into its memory, in order: the file's position tells whoever shares it how far that is.

    Raises LimitExceededError where the machine has no memory left.
    """
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written : written + _PIECE])
    except OSError:
        raise LimitExceededError("there is no memory left for a value that is to be fetched") from None


def data_bytes() -> int:
    """Private writable memory of this process, which RLIMIT_DATA counts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0
