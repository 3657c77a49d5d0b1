"""Bytes that are in memory until they are written to a file, together with others."""

from __future__ import annotations

import os


class Held:
    """At most so many bytes of one upload."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = b""

    def takes(self, nbytes: int) -> bool:
        """Whether so many more fit."""
        return len(self._data) + nbytes <= self._most

    def add(self, data: memoryview) -> None:
        """Append bytes, which are copied."""
        self._data += data

    def write_to(self, descriptor: int) -> None:
        """Write all of them. Raises OSError."""
        write_all(descriptor, memoryview(self._data))

    def file(self) -> int:
        """A file of memory that has them, to be read from its start; the caller closes it."""
        descriptor = os.memfd_create("upload", os.MFD_CLOEXEC)
        try:
            self.write_to(descriptor)
            os.lseek(descriptor, 0, os.SEEK_SET)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of the bytes. Raises OSError."""
    while data:
        data = data[os.write(descriptor, data) :]
