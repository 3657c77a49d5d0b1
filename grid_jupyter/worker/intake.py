"""Large tensors on their way in: a Worker reads them from pipes into memory of its own, between the frames.

Memory of its own has large pages, which shared memory has not, and making the small ones takes longer than the bytes.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket

from grid_jupyter.errors import GridError, InvalidMessageError
from grid_jupyter.link.room import Pages, fresh

_PIECE = 1 << 20


class _Coming:
    """One tensor: its memory, and how much of it is there."""

    def __init__(self, pipe: int, nbytes: int) -> None:
        self.pipe = pipe
        try:
            self.memory = fresh(nbytes)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError from None
            raise
        self.left = memoryview(self.memory)
        self._pages = Pages(self.memory)

    def take(self) -> None:
        """Take what has come, at most one piece."""
        piece = self.left[:_PIECE]
        self._pages.make(len(self.memory) - len(self.left) + len(piece))
        try:
            self.left = self.left[os.readv(self.pipe, [piece]) :]
        except BlockingIOError:
            pass


class Intake:
    """What comes to this Worker, by the numbers that its Node gave. An end of a pipe whose other one is closed ends
    what came through it: its Node has no more use for it."""

    def __init__(self) -> None:
        self._coming: dict[int, _Coming] = {}

    @property
    def is_open(self) -> bool:
        """Whether anything comes in, or was taken in and may be asked for."""
        return bool(self._coming)

    def begin(self, number: int, nbytes: int, pipe: int) -> None:
        """Take in so many bytes; the pipe, which must not block, is ours from here on. Raises MemoryError."""
        try:
            if number in self._coming or nbytes < 1:
                raise InvalidMessageError("what comes in has a number of its own, and bytes")
            try:
                self._coming[number] = _Coming(pipe, nbytes)
            except MemoryError:
                self._drop_ended()
                self._coming[number] = _Coming(pipe, nbytes)
        except (GridError, MemoryError, OSError):
            os.close(pipe)
            raise

    def serve_until(self, sock: socket.socket) -> None:
        """Take in what comes, until there is something on this socket, which goes before."""
        while self._coming:
            waiting = select.poll()
            waiting.register(sock, select.POLLIN)
            pipes = {one.pipe: (number, one) for number, one in self._coming.items()}
            for pipe, (_, one) in pipes.items():
                waiting.register(pipe, select.POLLIN if one.left else 0)  # its end is told in any case
            found = dict(waiting.poll())
            if sock.fileno() in found:
                return
            for pipe, events in found.items():
                number, one = pipes[pipe]
                if events & select.POLLIN:
                    one.take()
                else:
                    del self._coming[number]
                    os.close(pipe)

    def _drop_ended(self) -> None:
        """What will not be whole needs no memory; this is seen late where frames follow one another."""
        waiting = select.poll()
        for one in self._coming.values():
            waiting.register(one.pipe, 0)
        ended = {pipe for pipe, _ in waiting.poll(0)}
        for number, one in list(self._coming.items()):
            if one.pipe in ended:
                del self._coming[number]
                os.close(one.pipe)

    def whole(self, number: int) -> mmap.mmap:
        """The memory of a tensor of which all is here or in its pipe. Raises InvalidMessageError."""
        found = self._coming.get(number)
        if found is None:
            raise InvalidMessageError("this tensor did not come")
        before = -1
        while found.left and len(found.left) != before:
            before = len(found.left)
            found.take()
        if found.left:
            raise InvalidMessageError("a tensor came without all of its bytes")
        return found.memory
