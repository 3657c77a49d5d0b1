"""The way from a Node to a Worker on another machine: frames as they are, bytes where a descriptor would be passed.

`Stream` is what both ends speak over (wire/relay.py); `NearEnd` is the Node's, and looks like the channel of a Worker
next door. Knows no torch, and not who runs the other end.
"""

from __future__ import annotations

import asyncio
import collections
import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grid_jupyter.errors import GridError, InvalidMessageError, LimitExceededError
from grid_jupyter.wire import frames, relay
from grid_jupyter.wire.limits import MAX_FRAME_BYTES
from grid_jupyter.worker.channel import Frame, close_all
from grid_jupyter.worker.memory import fill, memory_file
from grid_jupyter.worker.process import Arrived, HungUp

PIECE_BYTES = 1 << 20
"""Bytes of a file that are sent at a time."""
_BEHIND_BYTES = 1 << 20
"""Bytes that wait to be sent before whoever sends more is told to wait."""


class Stream:
    """Messages of wire/relay.py, each with its payload, over a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> tuple[relay.Relay, bytes]:
        """The next message. Raises EOFError, OSError when the other end is gone, GridError for what is none."""
        prefix = await self._reader.readexactly(relay.PREFIX.size)  # IncompleteReadError is an EOFError
        header, payload = relay.PREFIX.unpack(prefix)
        if header > relay.MAX_RELAYED_HEADER_BYTES or payload > MAX_FRAME_BYTES:
            raise LimitExceededError("a message between a Node and the machine of a Worker is too long")
        message = frames.decode(await self._reader.readexactly(header), relay.relay_decoder)
        return message, await self._reader.readexactly(payload) if payload else b""

    def send(self, message: relay.Relay, payload: Frame = b"") -> None:
        """Send one message after the others."""
        header = frames.encode(message)
        self._writer.write(b"".join((relay.PREFIX.pack(len(header), len(payload)), header, payload)))

    @property
    def unsent(self) -> int:
        """Bytes that wait to be sent."""
        return self._writer.transport.get_write_buffer_size()

    @property
    def is_behind(self) -> bool:
        """Whether whoever sends should wait for `drained`."""
        return self.unsent > _BEHIND_BYTES

    async def drained(self) -> None:
        """Wait until there is room for more. Raises OSError when the other end is gone."""
        await self._writer.drain()

    def close(self) -> None:
        """Close the connection, when what was sent is on its way."""
        self._writer.close()


@dataclass
class Coming:
    """A file that comes in."""

    descriptor: int
    missing: int
    handed: bool = False

    def take(self, data: bytes) -> None:
        """Append bytes. Raises InvalidMessageError, LimitExceededError."""
        if len(data) > self.missing:
            raise InvalidMessageError("a file came with more bytes than it said")
        fill(self.descriptor, memoryview(data))
        self.missing -= len(data)


class Digests:
    """What files that never change hold, by sha256; each is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    async def of(self, descriptor: int) -> str:
        """The digest of a file."""
        found = os.fstat(descriptor)
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in self._known:
            self._known[key] = await asyncio.to_thread(_digest, descriptor)
        return self._known[key]


def _digest(descriptor: int) -> str:
    made, at = hashlib.sha256(), 0
    while data := os.pread(descriptor, PIECE_BYTES, at):
        made.update(data)
        at += len(data)
    return made.hexdigest()


class NearEnd:
    """The Node's end of the way to one Worker. `limit` is what one file from there may have, in bytes.

    `told` hears once why the Worker ended, before `hung_up` is called.
    """

    passes_pipes = False

    def __init__(
        self,
        stream: Stream,
        digests: Digests,
        limit: int,
        told: Callable[[str], None],
        arrived: Arrived,
        hung_up: HungUp,
        place: str,
    ) -> None:
        self._stream = stream
        self._digests = digests
        self._limit = limit
        self._told = told
        self._arrived = arrived
        self._hung_up = hung_up
        self._place = place
        self._open = True
        self._sent = 0  # files
        self._wanted: asyncio.Future[bool] | None = None
        self._waiting: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        self._emptied: asyncio.Future[None] | None = None
        self._coming: dict[int, Coming] = {}
        self._tasks = {asyncio.create_task(self._read())}

    # -------------------------------------------------------------- out

    def send(self, frame: Frame, descriptors: Sequence[int] = ()) -> asyncio.Future[None] | None:
        """As AsyncChannel.send: what a descriptor holds goes there as it is now."""
        if not self._open:
            raise EOFError
        if self._emptied is None and not descriptors and not self._stream.is_behind:
            self._stream.send(relay.Relayed(), frame)
            return None
        self._waiting.append((bytes(frame), [os.dup(descriptor) for descriptor in descriptors]))
        if self._emptied is None:
            self._emptied = asyncio.get_running_loop().create_future()
            self._tasks.add(asyncio.create_task(self._send_waiting()))
        return self._emptied

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                frame, descriptors = self._waiting.popleft()
                try:
                    numbers = tuple([await self._send_file(descriptor) for descriptor in descriptors])
                finally:
                    close_all(descriptors)
                self._stream.send(relay.Relayed(files=numbers), frame)
                await self._stream.drained()
        except OSError:
            self._end(self._lost())
        finally:
            self._stop_waiting()

    async def _send_file(self, descriptor: int) -> int:
        """What may only be read never changes (a data set's file); the rest is a value of this session alone."""
        self._sent += 1
        number, size = self._sent, os.fstat(descriptor).st_size
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            self._wanted = asyncio.get_running_loop().create_future()
            self._stream.send(relay.File(number=number, size=size, digest=await self._digests.of(descriptor)))
            if not await self._wanted:
                return number
        else:
            self._stream.send(relay.File(number=number, size=size))
        for at in range(0, size, PIECE_BYTES):
            data = await asyncio.to_thread(os.pread, descriptor, min(PIECE_BYTES, size - at), at)
            self._stream.send(relay.Piece(number=number), data)
            await self._stream.drained()
        return number

    def _stop_waiting(self) -> None:
        while self._waiting:
            close_all(self._waiting.popleft()[1])
        emptied, self._emptied = self._emptied, None
        if emptied is not None and not emptied.done():
            emptied.set_result(None)

    # -------------------------------------------------------------- in

    async def _read(self) -> None:
        reason = self._lost()
        try:
            while True:
                message, payload = await self._stream.receive()
                if isinstance(message, relay.Ended):
                    reason = message.reason
                    break
                self._take(message, payload)
        except (EOFError, OSError):
            pass
        except GridError as error:
            reason = f"the machine of its Worker, {self._place}, does not keep to the protocol: {error}"
        self._end(reason)

    def _lost(self) -> str:
        return f"the Dask worker {self._place} that its Worker ran on is gone"

    def _take(self, message: relay.Relay, payload: bytes) -> None:
        if isinstance(message, relay.Relayed):
            if len(set(message.files)) != len(message.files) or not self._coming.keys() >= set(message.files):
                raise InvalidMessageError("a frame names files that did not come")
            self._arrived(memoryview(payload), [self._hand(number) for number in message.files])
        elif isinstance(message, relay.File):
            if not 0 < message.size <= self._limit or message.number in self._coming:
                raise LimitExceededError(f"a value of {message.size} bytes is over the session's memory")
            self._coming[message.number] = Coming(memory_file(message.size), message.size)
        elif isinstance(message, relay.Piece):
            coming = self._coming.get(message.number)
            if coming is None:
                raise InvalidMessageError("this file did not come")
            coming.take(payload)
            self._forget(message.number, coming)
        elif isinstance(message, relay.Wanted):
            if self._wanted is None or self._wanted.done():
                raise InvalidMessageError("nothing was offered")
            self._wanted.set_result(message.wanted)
        else:
            raise InvalidMessageError("a Worker arrives once")

    def _hand(self, number: int) -> int:
        """A descriptor of a file, which shares its position: that tells how much of it is there."""
        coming = self._coming[number]
        handed = os.dup(coming.descriptor)
        coming.handed = True
        self._forget(number, coming)
        return handed

    def _forget(self, number: int, coming: Coming) -> None:
        if coming.handed and not coming.missing:
            os.close(self._coming.pop(number).descriptor)

    # -------------------------------------------------------------- the end

    def _end(self, reason: str) -> None:
        if self._open:
            self.close()
            self._told(reason)
            self._hung_up()

    def close(self) -> None:
        """Close this end, without a word to whoever opened it. The far one ends its Worker."""
        if not self._open:
            return
        self._open = False
        self._stream.close()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._stop_waiting()
        close_all(coming.descriptor for coming in self._coming.values())
        self._coming.clear()
