"""Files that are of no more use, kept for a while to be written again: their pages and their blocks are there already.

To write and sync a file that is made anew takes a disk two to three times as long.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import threading
import time
from pathlib import Path

LEAST = 1 << 20
"""Bytes of a file that is worth it."""
MOST = 1 << 30
"""Bytes of all of them."""
FREE = 8 * MOST
"""What must be free on the disk besides."""
SPARE_S = 60.0
"""How long one is kept that nothing is written to."""


class Spares:
    """Spare files of a directory, under names that a sweep removes. `made` has the names that it leaves alone."""

    def __init__(self, directory: Path, made: set[str]) -> None:
        self._directory, self._made = directory, made
        self._files: dict[str, tuple[int, float]] = {}
        """Length, and since when, by name."""
        self._lock = threading.Lock()

    def keep(self, path: Path) -> bool:
        """Take a file, whose name is free afterwards; False where it is not worth it, and the caller's as before."""
        with self._lock:
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                return False
            if size < LEAST:
                return False
            disk = os.statvfs(self._directory)
            if disk.f_bavail * disk.f_frsize < FREE or self._nbytes() + size > MOST:
                return False
            name = f"{secrets.token_hex(8)}-{secrets.token_hex(8)}.part"
            self._made.add(name)
            path.rename(self._directory / name)
            self._files[name] = size, time.monotonic()
            return True

    def take(self, nbytes: int, path: Path, *, leave: int = 0) -> int:
        """A descriptor of one of this length, which is at `path` from now on and holds anything; -1 where none is, or
        not more than `leave` are.

        What somebody still reads is never written to: a backup, a Worker, a download.
        """
        with self._lock:
            fitting = [name for name, (size, _) in self._files.items() if size == nbytes]
            if len(fitting) <= leave:
                return -1
            name = fitting[0]
            del self._files[name]
            self._made.discard(name)
            try:
                (self._directory / name).rename(path)
            except FileNotFoundError:  # a sweep found it too old
                return -1
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.fcntl(
                descriptor, fcntl.F_SETSIG, signal.SIGURG
            )  # who opens it just now: SIGIO would end this process
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # for who has it open alone
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return -1
        return descriptor

    def drop(self, rested_s: float = 0.0) -> None:
        """Remove those that were kept for so long."""
        until = time.monotonic() - rested_s
        with self._lock:
            names = [name for name, (_, since) in self._files.items() if since <= until]
            for name in names:
                del self._files[name]
        for name in names:  # nobody who keeps or takes one waits for this: a gigabyte takes the disk a while
            (self._directory / name).unlink(missing_ok=True)
            self._made.discard(name)

    def nbytes(self) -> int:
        """Bytes of all of them."""
        with self._lock:
            return self._nbytes()

    def _nbytes(self) -> int:
        return sum(size for size, _ in self._files.values())
