"""Copies of objects on the disk: how many bytes of them there may be, and which go first. Fetches nothing."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from pathlib import Path

from grid_jupyter.store.blobs import new_temporary


class Cache:
    """The copies of all directories of one Node. One that is larger than the limit stays until the next one comes."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes."""
        self.limit = limit
        self._copies: OrderedDict[Path, int] = OrderedDict()  # bytes of each; what was used last is last
        self._used = 0
        self._pins: Counter[Path] = Counter()
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes of the copies that there are."""
        return self._used

    def add(self, path: Path, nbytes: int) -> None:
        """There is a copy at this path; others make room for it."""
        with self._lock:
            self._used -= self._copies.pop(path, 0)
        self.make_room(nbytes)
        with self._lock:
            self._used += nbytes - self._copies.pop(path, 0)
            self._copies[path] = nbytes

    def touch(self, path: Path) -> None:
        """A copy is used."""
        with self._lock:
            if path in self._copies:
                self._copies.move_to_end(path)

    def forget(self, path: Path) -> None:
        """It was deleted, and needs to stay no more."""
        with self._lock:
            self._used -= self._copies.pop(path, 0)
            self._pins.pop(path, None)

    def pin(self, path: Path) -> None:
        """It stays, here or once it is here, until it was unpinned as often."""
        with self._lock:
            self._pins[path] += 1

    def unpin(self, path: Path) -> None:
        """See `pin`."""
        with self._lock:
            self._pins[path] -= 1
            if self._pins[path] <= 0:
                del self._pins[path]

    def make_room(self, nbytes: int) -> None:
        """Remove copies until so many bytes fit; first those that were not used for the longest time."""
        going = []
        with self._lock:
            for path in list(self._copies):
                if self._used + nbytes <= self.limit:
                    break
                if path in self._pins:
                    continue
                self._used -= self._copies.pop(path)
                doomed = path.with_name(new_temporary())
                try:
                    path.rename(doomed)  # quick, and under the lock: nobody has fetched it again meanwhile
                except FileNotFoundError:
                    continue  # somebody else has removed it
                going.append(doomed)
        for path in going:
            path.unlink(missing_ok=True)
