"""Bulk bytes of one session, beside its stream: large values on their way out, large tensors on their way in.

Bytes lie in memory files, or go through a pipe to the Worker, and are never kept in this process. A transfer that was
cut goes on from where it was, for as long as its bytes are kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

from grid_jupyter.errors import (
    Conflict,
    GridError,
    InvalidMessageError,
    LimitExceededError,
    ObjectNotFoundError,
    SessionLostError,
    StorageFullError,
)
from grid_jupyter.wire.dtypes import ITEM_BYTES, nbytes
from grid_jupyter.wire.limits import MAX_RANK

MAX_WAITING = 16
"""Large released values of one session that wait for their download."""
UNFETCHED_S = 600.0
"""How long a released value waits for its download, and for one that was cut to go on."""
FETCHED_S = 60.0
"""How long it is kept once it was sent to its end: the last bytes may have been lost on the way."""
UNFINISHED_S = 60.0
"""How long an upload that was cut is kept for the rest of it."""
MAX_ARRIVED = 256
"""Ids of uploads that are remembered as complete, for clients to whom the answer was lost."""
FILL_S = 0.001
"""How often it is looked whether a value that is being filled has more."""
MAX_COMING = 64
"""Uploads of one session that are not complete."""
_PIPE_BYTES = 1 << 20
"""Of a pipe; a kernel that does not give as many gives fewer."""
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ, which Python 3.10 has not
_LARGE = 4 << 20
"""Bytes of a file whose end is left to a thread."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

Use = Literal["value", "round", "moved"]
"""What an upload is: a tensor of the client's, weights of a job's round, or a value from another session, which has a
lineage: neither of the last two is ever taken for the client's own."""


class Outgoing:
    """A released value that waits for its download, or is on its way."""

    def __init__(self, descriptor: int, now: float, job: str = "") -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.job = job  # the file is one that we made, and this job's Worker has it as well
        self.senders = 0
        self.sent = False  # to its end, at least once
        self.dropped = False
        self.touched = now

    def filled(self) -> int:
        """Bytes that its Worker has written so far."""
        return filled(self.descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """A part of it, never empty before the end: its length is sealed."""
        return os.pread(self.descriptor, length, offset)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Read a part of it into a buffer; how many bytes."""
        return os.preadv(self.descriptor, [buffer], offset)

    def drop(self) -> None:
        """Forget it, as soon as nobody sends it."""
        self.dropped = True
        if not self.senders and self.descriptor >= 0:
            _close(self.descriptor, self.size)
            self.descriptor = -1


class Incoming:
    """A tensor that comes in piece by piece, over one connection at a time: `turn` says which one counts.

    Its bytes go to a memory file, or after `into_pipe` to who reads from that.
    """

    def __init__(
        self,
        number: int,
        dtype: str,
        shape: tuple[int, ...],
        size: int,
        now: float,
        job: str = "",
        descriptor: int | None = None,
        use: Use = "value",
    ) -> None:
        self.number = number
        self.use = use
        self.is_piped = False
        self.dtype = dtype
        self.shape = shape
        self.size = size
        self.offset = 0  # bytes that are here
        self.turn = 0
        self.writing = False
        self.touched = now
        self.job = job  # the only one that it may go to
        if descriptor is None:
            descriptor = os.memfd_create("upload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.descriptor = descriptor

    def into_pipe(self) -> int:
        """Let what comes go into a pipe, before anything has; its other end, which the caller closes. Neither blocks.
        Raises Conflict."""
        if self.descriptor < 0:
            raise Conflict("this upload was given up")
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # more than one user may have
            fcntl.fcntl(writer, _F_SETPIPE_SZ, _PIPE_BYTES)
        os.close(self.descriptor)
        self.descriptor, self.is_piped = writer, True
        return reader

    def begin_turn(self) -> int:
        """Whoever wrote until now writes no more; the number of the new turn."""
        self.turn += 1
        self.writing = True
        return self.turn

    def end_turn(self, turn: int, now: float) -> None:
        """The connection of this turn is done, or gone."""
        if turn == self.turn:
            self.writing = False
            self.touched = now

    def write(self, turn: int, data: memoryview) -> None:
        """Append bytes to the memory file. Raises Conflict for a turn that is over, InvalidMessageError for too many
        bytes, StorageFullError."""
        self._check(turn, len(data))
        rest = data
        try:
            while rest:
                count = os.pwrite(self.descriptor, rest, self.offset)  # the file's position may be its Worker's, too
                self.offset += count
                rest = rest[count:]
        except OSError:
            raise StorageFullError("this Node has no memory left for the tensor; try again later") from None

    def pass_on(self, turn: int, data: memoryview) -> int:
        """Put bytes into the pipe, as many as it takes; how many. Raises BlockingIOError where that is none, and as
        `write`; OSError when nobody reads any more."""
        self._check(turn, len(data))
        count = os.write(self.descriptor, data)
        self.offset += count
        return count

    def splice(self, turn: int, connection: int, most: int) -> int:
        """Let bytes go from a connection into the pipe, without touching them; how many, 0 at the end of the
        connection. Raises BlockingIOError where nothing came or the pipe is full, and as `pass_on`."""
        self._check(turn, most)
        count = os.splice(connection, self.descriptor, most, flags=os.SPLICE_F_NONBLOCK)
        self.offset += count
        return count

    def _check(self, turn: int, count: int) -> None:
        if turn != self.turn or self.descriptor < 0:
            raise Conflict("this upload goes on elsewhere, or was given up")
        if count > self.size - self.offset:
            raise InvalidMessageError(f"the tensor has {self.size} bytes, and more came")

    def seal(self) -> None:
        """Nothing more comes: whoever maps the file can rely on its length. Raises InvalidMessageError if bytes are
        missing."""
        if self.descriptor < 0 or self.offset != self.size:
            raise InvalidMessageError("the upload ended early; send the rest")
        if not self.is_piped and fcntl.fcntl(self.descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)

    def drop(self) -> None:
        """Give it up."""
        if self.descriptor >= 0:
            _close(self.descriptor, 0 if self.is_piped else self.offset)
            self.descriptor = -1


class Bulk:
    """What one session has on its way; together no larger than its memory, each way."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._outgoing: dict[str, Outgoing] = {}
        self._leaving: set[Outgoing] = set()  # dropped, and still being sent
        self._incoming: dict[int, Incoming] = {}
        self._arrived: dict[int, int] = {}  # sizes, by id
        self._closed = False
        self._numbers = itertools.count(1)
        self._spare: Outgoing | None = None
        """The file of a round that is over, for the next one: fresh memory costs more than the bytes that come."""

    # -------------------------------------------------------------- out

    def keep(self, descriptor: int, size: int, job: str = "") -> str:
        """Take a released value from its Worker; the ticket for its download. With `job` the file is ours: what comes
        in for that job's next round may be written into it, once this was fetched.

        Raises LimitExceededError, GridError for a file that could still change its length.
        """
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        if seals & _SEALS != _SEALS or os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            raise GridError("the Worker answered a read with something else")
        self.sweep()
        for ticket, waiting in list(self._outgoing.items()):
            if waiting.sent and not waiting.senders and not self._fits(size):
                self.forget(ticket)
        if len(self._outgoing) >= MAX_WAITING or not self._fits(size):
            os.close(descriptor)
            raise LimitExceededError("too many large values wait for their download; fetch one after the other")
        ticket = secrets.token_urlsafe(16)
        self._outgoing[ticket] = Outgoing(descriptor, self._clock(), job)
        return ticket

    def _fits(self, size: int) -> bool:
        return size + sum(one.size for one in (*self._outgoing.values(), *self._leaving)) <= self._limit

    @contextlib.contextmanager
    def sending(self, ticket: str) -> Iterator[Outgoing]:
        """A released value, for as long as it is sent. Raises ObjectNotFoundError."""
        found = self._outgoing.get(ticket)
        if found is None:
            raise ObjectNotFoundError("there is no such value to download, or it was fetched already")
        found.senders += 1
        try:
            yield found
        finally:
            found.senders -= 1
            found.touched = self._clock()
            if found.dropped:
                self._leaving.discard(found)
                self._let_go(found)

    def forget(self, ticket: str) -> None:
        """The client has the value, or does not want it."""
        found = self._outgoing.pop(ticket, None)
        if found is not None:
            found.dropped = True
            if found.senders:
                self._leaving.add(found)
            else:
                self._let_go(found)

    def _let_go(self, found: Outgoing) -> None:
        if found.senders:
            return
        if not found.job or self._closed:
            found.drop()
            return
        self._drop_spare()
        self._spare = found

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.drop()

    # -------------------------------------------------------------- in

    def begin(
        self, value: int, dtype: str, shape: tuple[int, ...], size: int, job: str = "", *, use: Use = "value"
    ) -> Incoming:
        """Make room for a large tensor of this form; one that was begun under the same id is given up. With `job` it
        can go to that job's Worker alone.

        Raises InvalidMessageError, LimitExceededError.
        """
        if dtype not in ITEM_BYTES or len(shape) > MAX_RANK or any(length < 0 for length in shape):
            raise InvalidMessageError("a tensor needs a known dtype and a shape of non-negative integers")
        if nbytes(dtype, shape) != size:
            raise InvalidMessageError(f"a tensor of {dtype} {shape} has {nbytes(dtype, shape)} bytes, not {size}")
        self.sweep()
        self.give_up(value)
        self._arrived.pop(value, None)
        if size + sum(one.size for one in self._incoming.values()) > self._limit:
            raise LimitExceededError(f"a tensor of {size} bytes is over the session's memory of {self._limit} bytes")
        if len(self._incoming) >= MAX_COMING:
            raise LimitExceededError(f"{MAX_COMING} uploads of this session are not complete; end them first")
        spare, number = self._spare, next(self._numbers)
        if spare is not None and (spare.job, spare.size) == (job, size) and _is_as_made(spare.descriptor):
            self._spare = None
            made = Incoming(number, dtype, shape, size, self._clock(), job, spare.descriptor, use)
        else:
            self._drop_spare()
            made = Incoming(number, dtype, shape, size, self._clock(), job, use=use)
        self._incoming[value] = made
        return made

    def progress(self, value: int) -> tuple[int, bool]:
        """Bytes of an upload that are here, and whether it is complete. Whoever still sends is cut off, so that the
        number holds. Raises ObjectNotFoundError."""
        if value in self._arrived:
            return self._arrived[value], True
        found = self._at(value)
        found.end_turn(found.begin_turn(), self._clock())
        return found.offset, False

    def resume(self, value: int, offset: int, use: Use = "value") -> Incoming:
        """An upload of this use that goes on from a byte. Raises ObjectNotFoundError, Conflict if it stands at another
        one."""
        found = self._at(value)
        if found.use != use:
            raise _no_upload()
        if offset != found.offset:
            raise Conflict(f"this upload stands at byte {found.offset}, not {offset}")
        return found

    def _at(self, value: int) -> Incoming:
        self.sweep()
        found = self._incoming.get(value)
        if found is None:
            raise _no_upload()
        return found

    def arrived(self, value: int, incoming: Incoming) -> None:
        """The Worker has it."""
        if self._incoming.get(value) is incoming:
            self.give_up(value)
            self._arrived[value] = incoming.size
            while len(self._arrived) > MAX_ARRIVED:
                self._arrived.pop(next(iter(self._arrived)))

    def claim(self, value: int) -> Incoming:
        """Take the weights of a round that are whole, their length sealed; whoever takes them drops them. Raises
        ObjectNotFoundError, InvalidMessageError."""
        found = self._at(value)
        if found.use != "round":
            raise InvalidMessageError("this upload is a tensor of the session's")
        found.seal()
        del self._incoming[value]
        return found

    def give_up(self, value: int, incoming: Incoming | None = None) -> None:
        """Forget an upload, whoever is sending it; with `incoming`, that one alone."""
        found = self._incoming.get(value)
        if found is not None and incoming in (None, found):
            del self._incoming[value]
            found.drop()

    # -------------------------------------------------------------- both

    def sweep(self) -> None:
        """Forget what nobody came back for."""
        now = self._clock()
        if self._spare is not None and now - self._spare.touched > FETCHED_S:
            self._drop_spare()
        for ticket, out in list(self._outgoing.items()):
            if not out.senders and now - out.touched > (FETCHED_S if out.sent else UNFETCHED_S):
                self.forget(ticket)
        for value, coming in list(self._incoming.items()):
            if not coming.writing and now - coming.touched > UNFINISHED_S:
                self.give_up(value)

    def close(self) -> None:
        """The session ends."""
        self._closed = True
        for ticket in list(self._outgoing):
            self.forget(ticket)
        for value in list(self._incoming):
            self.give_up(value)
        self._drop_spare()


def _no_upload() -> ObjectNotFoundError:
    return ObjectNotFoundError("there is no such upload here, or no longer; send it from the start")


def _is_as_made(descriptor: int) -> bool:
    """Whether the Worker that has it too has sealed nothing more of it."""
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == _SEALS


def _close(descriptor: int, size: int) -> None:
    """Close a file of memory: who closes it last frees it, which takes 0.2 s a GiB. The event loop does not wait."""
    if size < _LARGE:
        os.close(descriptor)
    else:
        threading.Thread(target=os.close, args=(descriptor,), daemon=True).start()


def is_same(one: int, other: int) -> bool:
    """Whether two descriptors are of the same file."""
    return os.path.sameopenfile(one, other)


def filled(descriptor: int) -> int:
    """Bytes of a value that its Worker has written so far: Worker and Node share the file's position."""
    return os.lseek(descriptor, 0, os.SEEK_CUR)


async def wait_until_filled(descriptor: int, size: int, gone: asyncio.Future[None]) -> None:
    """Wait for the whole of a value. Raises SessionLostError if its session ends first."""
    while filled(descriptor) < size:
        if gone.done():
            raise SessionLostError("the session ended")
        await asyncio.sleep(FILL_S)
