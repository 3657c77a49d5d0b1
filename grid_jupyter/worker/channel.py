"""Frames and file descriptors over one unix socket between a Node and a Worker. Knows no torch.

On the socket: length (4 bytes, big-endian), number of descriptors (1 byte), then the frame. Descriptors
are sent with those five bytes.
"""

from __future__ import annotations

import asyncio
import collections
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence

from grid_jupyter.errors import GridError, InvalidMessageError, LimitExceededError
from grid_jupyter.wire.limits import MAX_FRAME_BYTES

_PREFIX = struct.Struct(">IB")
_MAX_DESCRIPTORS = 4
_MAX_UNCLAIMED = 64
_PART = 64 << 10
"""Bytes that are taken from the socket at a time."""
_HELD_S = 0.001
_DESCRIPTOR = struct.Struct("@i")
_ROOM = socket.CMSG_LEN(_MAX_DESCRIPTORS * _DESCRIPTOR.size)

Frame = bytes | bytearray | memoryview


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _prefix(frame: Frame, descriptors: Sequence[int]) -> bytes:
    return _PREFIX.pack(_checked(len(frame)), len(descriptors))


def _checked(length: int) -> int:
    if length > MAX_FRAME_BYTES:
        raise LimitExceededError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return length


def _receive(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """What has come, and its descriptors: as socket.recv_fds, which takes longer where there are none."""
    data, beside, _, _ = sock.recvmsg(_PART, _ROOM, flags)
    found: list[int] = []
    for level, kind, content in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(content) - len(content) % _DESCRIPTOR.size
            found += [descriptor for (descriptor,) in _DESCRIPTOR.iter_unpack(content[:whole])]
    return data, found


class _Inbox:
    """Cuts what came from the socket into frames, and gives each the descriptors that came with it."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0  # of the next frame
        self._parts: list[bytes] = []  # of a frame that is not whole yet: put together once, not with each part
        self._missing = 0
        self.descriptors: collections.deque[int] = collections.deque()

    def take(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Something came. Raises InvalidMessageError for descriptors that no frame speaks of."""
        self.descriptors.extend(descriptors)
        if len(self.descriptors) > _MAX_UNCLAIMED:
            raise InvalidMessageError("descriptors came without frames")
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing <= 0:
            rest = self._data[self._at :]
            self._data = b"".join((rest, *self._parts)) if rest or len(self._parts) > 1 else data
            self._at = self._missing = 0
            self._parts.clear()

    def next(self) -> tuple[memoryview, list[int]] | None:
        """The next whole frame. Raises LimitExceededError, InvalidMessageError."""
        begin, have = self._at + _PREFIX.size, len(self._data)
        if self._missing > 0 or have < begin:
            return None
        length, count = _PREFIX.unpack_from(self._data, self._at)
        end = begin + _checked(length)
        if have < end:
            self._missing = end - have
            return None
        if count > len(self.descriptors):
            raise InvalidMessageError("a frame came without its descriptors")
        self._at = end
        return memoryview(self._data)[begin:end], [self.descriptors.popleft() for _ in range(count)]


class Channel:
    """The blocking end, for Workers and their fork server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._inbox = _Inbox()
        self._held = bytearray()
        self._held_since = 0.0

    def receive(self) -> tuple[memoryview, list[int]]:
        """The next frame and its descriptors. Raises EOFError when the other side is gone."""
        while True:
            found = self.received()
            if found is not None:
                return found
            try:
                data, descriptors = _receive(self.sock, socket.MSG_DONTWAIT if self._held else 0)
            except BlockingIOError:
                self._send_held()
                continue
            if not data:
                raise EOFError
            self._inbox.take(data, descriptors)

    def received(self) -> tuple[memoryview, list[int]] | None:
        """The next frame if it has come together with others before."""
        return self._inbox.next()

    def send(self, frame: Frame, descriptors: Sequence[int] = ()) -> None:
        """Send one frame; descriptors stay open here."""
        if self._held:
            self._send_held()
        data = _prefix(frame, descriptors) + frame  # one call: the Node wakes up once
        if descriptors:
            data = data[socket.send_fds(self.sock, [data], list(descriptors)) :]
        if data:
            self.sock.sendall(data)

    def send_soon(self, frame: Frame) -> None:
        """Send one frame together with those that follow at once: at the latest when this end waits for something to
        come, or gets to this again after a millisecond."""
        late = bool(self._held) and time.monotonic() - self._held_since > _HELD_S
        if not self._held:
            self._held_since = time.monotonic()
        self._held += _prefix(frame, ())
        self._held += frame
        if late or len(self._held) > _PART:
            self._send_held()

    def _send_held(self) -> None:
        held, self._held = self._held, bytearray()
        self.sock.sendall(held)

    def close(self) -> None:
        """Close this end, and what came for frames that were not received yet: a fork must not keep it."""
        self.sock.close()
        close_all(self._inbox.descriptors)


class AsyncChannel:
    """The Node's end: hands every frame to `arrived` as soon as it is there, and calls `ended` once at the end.

    One reader stays with the event loop, and what can be sent at once is: a frame costs one system call.
    """

    passes_pipes = True

    def __init__(
        self,
        sock: socket.socket,
        arrived: Callable[[memoryview, list[int]], None],
        ended: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._arrived = arrived
        self._ended: Callable[[], None] | None = ended
        self._inbox = _Inbox()
        self._outbox: collections.deque[tuple[memoryview, list[int]]] = collections.deque()
        self._emptied: asyncio.Future[None] | None = None  # done when the other side has taken all that waits
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    # -------------------------------------------------------------- in

    def _readable(self) -> None:
        try:
            data, descriptors = _receive(self.sock)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end()
            return
        if not data:
            self._end()
            return
        try:
            self._inbox.take(data, descriptors)
            while self._ended is not None:
                found = self._inbox.next()
                if found is None:
                    return
                self._arrived(*found)
        except GridError:  # a Worker that does not keep to the protocol is as good as gone
            self._end()

    # -------------------------------------------------------------- out

    def send(self, frame: Frame, descriptors: Sequence[int] = ()) -> asyncio.Future[None] | None:
        """Send one frame in order. None if it is on its way; else wait for what is returned before sending more:
        the Worker is behind. Raises EOFError when it is gone."""
        if self._ended is None:
            raise EOFError
        prefix = _prefix(frame, descriptors)
        if self._outbox:
            self._queue(memoryview(prefix + frame), [os.dup(descriptor) for descriptor in descriptors])
            return self._emptied
        data = memoryview(prefix + frame)
        try:
            sent = socket.send_fds(self.sock, [data], list(descriptors)) if descriptors else self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise EOFError from error
        if sent == len(data):
            return None
        self._queue(data[sent:], [] if sent else [os.dup(descriptor) for descriptor in descriptors])
        return self._emptied

    def _queue(self, data: memoryview, descriptors: list[int]) -> None:
        self._outbox.append((data, descriptors))
        if self._emptied is None:
            self._emptied = self._loop.create_future()
            self._loop.add_writer(self.sock.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            while self._outbox:
                data, descriptors = self._outbox[0]
                sent = socket.send_fds(self.sock, [data], descriptors) if descriptors else self.sock.send(data)
                close_all(descriptors)
                if sent < len(data):
                    self._outbox[0] = (data[sent:], [])
                else:
                    self._outbox.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end()
            return
        self._stop_writing()

    def _stop_writing(self) -> None:
        emptied, self._emptied = self._emptied, None
        if emptied is not None:
            self._loop.remove_writer(self.sock.fileno())
            if not emptied.done():
                emptied.set_result(None)

    # -------------------------------------------------------------- the end

    def _end(self) -> None:
        ended = self._ended
        self._release()
        if ended is not None:
            ended()

    def _release(self) -> None:
        if self._ended is None:
            return
        self._ended = None
        self._loop.remove_reader(self.sock.fileno())
        while self._outbox:
            close_all(self._outbox.popleft()[1])
        self._stop_writing()
        close_all(self._inbox.descriptors)
        self._inbox.descriptors.clear()

    def close(self) -> None:
        """Close this end, without a call of `ended`; the Worker sees the end of its input and leaves."""
        self._release()
        self.sock.close()


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody will use."""
    for descriptor in descriptors:
        os.close(descriptor)
