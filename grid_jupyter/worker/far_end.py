"""The far end of the way to a Worker on another machine than its Node: between a connection and the Worker's socket.

Files that never change are kept in memory once for all Workers of a Node that use them. Knows no torch.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import os
import socket

import psutil

from grid_jupyter.errors import GridError, InvalidMessageError, LimitExceededError
from grid_jupyter.wire import relay
from grid_jupyter.worker.channel import AsyncChannel, close_all
from grid_jupyter.worker.memory import memory_file
from grid_jupyter.worker.relay import PIECE_BYTES, Coming, Stream

_FILLING_S = 0.001
"""How often it is looked whether a value that its Worker fills has more."""
_LAST_WORDS_S = 10.0
_UNSENT_BYTES = 64 << 20
"""What a Worker may say that its Node has not taken yet."""
_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Kept:
    """One file that never changes, while somebody here uses it."""

    def __init__(self) -> None:
        self.users = 0
        self.whole = False
        self.descriptor = -1
        self.turn = asyncio.Lock()  # whoever has it brings the bytes; others wait for those

    def reader(self) -> int:
        """A descriptor that cannot be written through."""
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)


class KeptFiles:
    """All of one Node's, by digest."""

    def __init__(self) -> None:
        self._files: dict[str, Kept] = {}

    def use(self, digest: str) -> Kept:
        """The file, to be given back by `leave`."""
        found = self._files.setdefault(digest, Kept())
        found.users += 1
        return found

    def leave(self, digest: str) -> None:
        """One user less; nothing is kept for nobody."""
        found = self._files[digest]
        found.users -= 1
        if not found.users:
            del self._files[digest]
            if found.descriptor >= 0:
                os.close(found.descriptor)


class FarEnd:
    """One Worker on this machine, as the pool here holds it, and as a Node elsewhere uses it. `lost` is done, with the
    reason in words, when it is gone."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._silent = asyncio.Event()
        self._channel = AsyncChannel(sock, self._said, self._silent.set)
        self._stream: Stream | None = None
        self._sent = 0  # files
        self._waiting: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        self._sending: asyncio.Task[None] | None = None
        self._filling: set[asyncio.Task[None]] = set()
        self._coming: dict[int, Coming] = {}
        self._bringing: dict[int, Kept] = {}
        self._ready: dict[int, int] = {}  # descriptors of whole files that no frame has named yet
        self._used: list[str] = []
        self._left = False  # the Node
        self._faulty = ""

    def end(self, reason: str) -> None:
        """The Worker is gone."""
        if not self.lost.done():
            self.lost.set_result(reason)

    async def close(self) -> None:
        """Let the Worker leave."""
        self.end("the session was closed")
        self._channel.close()
        self._silent.set()

    # -------------------------------------------------------------- the way between

    async def serve(self, stream: Stream, kept: KeptFiles) -> str:
        """Pass frames and files both ways until one side is gone; why the Worker ended, or that its Node left."""
        self._stream = stream
        reading = asyncio.create_task(self._read(stream, kept))
        silent = asyncio.create_task(self._silent.wait())
        try:
            await asyncio.wait([reading, silent], return_when=asyncio.FIRST_COMPLETED)
            if self._left:
                return "its Node closed the session"
            if not self._faulty:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self.lost), _LAST_WORDS_S)
                self.end("its Worker ended")
            if self._sending is not None:  # what it said last
                await asyncio.wait([self._sending], timeout=_LAST_WORDS_S)
            reason = self._faulty or self.lost.result()
            stream.send(relay.Ended(reason=reason))
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(stream.drained(), _LAST_WORDS_S)
            return reason
        finally:
            for task in (reading, silent, *self._filling, *([self._sending] if self._sending else [])):
                task.cancel()
            stream.close()
            self._let_go(kept)

    def _let_go(self, kept: KeptFiles) -> None:
        for one in self._bringing.values():
            one.turn.release()  # another one brings it
        for digest in self._used:
            kept.leave(digest)
        close_all(coming.descriptor for coming in self._coming.values())
        close_all(self._ready.values())
        for _, descriptors in self._waiting:
            close_all(descriptors)

    # -------------------------------------------------------------- to the Worker

    async def _read(self, stream: Stream, kept: KeptFiles) -> None:
        try:
            while True:
                try:
                    message, payload = await stream.receive()
                except (EOFError, OSError):
                    self._left = True
                    return
                if isinstance(message, relay.Relayed):
                    descriptors = [self._take(number) for number in message.files]
                    try:
                        behind = self._channel.send(payload, descriptors)
                    finally:
                        close_all(descriptors)
                    if behind is not None:
                        await behind
                elif isinstance(message, relay.File):
                    await self._begin(stream, kept, message)
                elif isinstance(message, relay.Piece):
                    self._piece(message.number, payload)
                else:
                    raise InvalidMessageError("a Node sends frames and files")
        except EOFError:
            return  # the Worker is gone, which is told on its own
        except (GridError, OSError) as error:
            self._faulty = str(error)

    async def _begin(self, stream: Stream, kept: KeptFiles, message: relay.File) -> None:
        if message.size > psutil.virtual_memory().available:
            raise LimitExceededError(
                f"the Dask worker has no memory for a file of {message.size >> 20} MB: use one with more memory"
            )
        if not message.digest:
            self._coming[message.number] = Coming(memory_file(message.size), message.size)
            return
        self._used.append(message.digest)
        found = kept.use(message.digest)
        await found.turn.acquire()
        stream.send(relay.Wanted(number=message.number, wanted=not found.whole))
        if found.whole:
            found.turn.release()
            self._ready[message.number] = found.reader()
            return
        self._bringing[message.number] = found
        if found.descriptor >= 0:  # whoever began to bring it is gone
            os.close(found.descriptor)
        found.descriptor = os.memfd_create("data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._coming[message.number] = Coming(os.dup(found.descriptor), message.size)

    def _piece(self, number: int, data: bytes) -> None:
        coming = self._coming.get(number)
        if coming is None:
            raise InvalidMessageError("this file did not come")
        coming.take(data)

    def _take(self, number: int) -> int:
        """A whole file, which the Worker is given."""
        if number in self._ready:
            return self._ready.pop(number)
        coming = self._coming.pop(number, None)
        if coming is None or coming.missing:
            raise InvalidMessageError("a frame came without its files")
        brought = self._bringing.pop(number, None)
        if brought is None:
            return coming.descriptor
        os.close(coming.descriptor)
        fcntl.fcntl(brought.descriptor, fcntl.F_ADD_SEALS, _FIXED | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        brought.whole = True
        brought.turn.release()
        return brought.reader()

    # -------------------------------------------------------------- from the Worker

    def _said(self, frame: memoryview, descriptors: list[int]) -> None:
        """A frame of the Worker, which may be anything."""
        if self._stream is None or self._stream.unsent > _UNSENT_BYTES:
            close_all(descriptors)
            raise LimitExceededError("a Worker says more than its Node takes")  # its channel is closed for that
        if self._sending is None and not descriptors:
            self._stream.send(relay.Relayed(), frame)
            return
        self._waiting.append((bytes(frame), descriptors))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_waiting(self._stream))

    async def _send_waiting(self, stream: Stream) -> None:
        try:
            while self._waiting:
                frame, descriptors = self._waiting.popleft()
                numbers = tuple([await self._send_file(stream, descriptor) for descriptor in descriptors])
                stream.send(relay.Relayed(files=numbers), frame)
            self._sending = None
        except OSError:
            self._left = True
            self._silent.set()
        except GridError as error:
            self._faulty = str(error)
            self._silent.set()

    async def _send_file(self, stream: Stream, descriptor: int) -> int:
        """Send a file of the Worker's: at once if it is whole, else as it is filled. Raises InvalidMessageError,
        OSError."""
        self._sent += 1
        number, size = self._sent, os.fstat(descriptor).st_size
        if not _is_fixed(descriptor):
            os.close(descriptor)
            raise InvalidMessageError("its Worker handed over something else than a value")
        stream.send(relay.File(number=number, size=size))
        sending = self._fill(stream, descriptor, number, size)
        if os.lseek(descriptor, 0, os.SEEK_CUR) == size:
            await sending
        else:
            task = asyncio.create_task(sending)
            self._filling.add(task)
            task.add_done_callback(self._filling.discard)
        return number

    async def _fill(self, stream: Stream, descriptor: int, number: int, size: int) -> None:
        at = 0
        try:
            while at < size:
                ready = min(os.lseek(descriptor, 0, os.SEEK_CUR), size)
                if ready <= at:
                    await asyncio.sleep(_FILLING_S)
                    continue
                data = os.pread(descriptor, min(PIECE_BYTES, ready - at), at)
                stream.send(relay.Piece(number=number), data)
                at += len(data)
                await stream.drained()
        except OSError:
            self._left = True
            self._silent.set()
        finally:
            os.close(descriptor)


def _is_fixed(descriptor: int) -> bool:
    """Whether this is memory whose length cannot change."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _FIXED == _FIXED
    except OSError:
        return False
