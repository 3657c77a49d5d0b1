"""Frames and file descriptors over one unix socket between a Node and a Worker. Knows no torch.

On the socket: length (4 bytes, big-endian), number of descriptors (1 byte), then the frame. Descriptors
are sent with those five bytes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Sequence

from grid_jupyter.errors import LimitExceededError
from grid_jupyter.wire.limits import MAX_FRAME_BYTES

_PREFIX = struct.Struct(">IB")
_MAX_DESCRIPTORS = 4


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _checked(length: int) -> int:
    if length > MAX_FRAME_BYTES:
        raise LimitExceededError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return length


class Channel:
    """The blocking end, for Workers and their fork server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def receive(self) -> tuple[bytearray, list[int]]:
        """The next frame and its descriptors. Raises EOFError when the other side is gone."""
        prefix, descriptors = b"", []
        while len(prefix) < _PREFIX.size:
            part, received, _, _ = socket.recv_fds(self.sock, _PREFIX.size - len(prefix), _MAX_DESCRIPTORS)
            if not part:
                raise EOFError
            prefix += part
            descriptors += received
        length, _ = _PREFIX.unpack(prefix)
        frame = bytearray(_checked(length))
        view = memoryview(frame)
        while view:
            count = self.sock.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return frame, descriptors

    def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one frame; descriptors stay open here."""
        prefix = _PREFIX.pack(_checked(len(frame)), len(descriptors))
        if descriptors:
            socket.send_fds(self.sock, [prefix], list(descriptors))
            self.sock.sendall(frame)
        else:
            self.sock.sendall(prefix + frame)  # one call: the Node wakes up once


class AsyncChannel:
    """The Node's end: the same frames, without blocking the event loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()

    async def receive(self) -> tuple[bytearray, list[int]]:
        """The next frame and its descriptors. Raises EOFError when the other side is gone."""
        prefix, descriptors = b"", []
        while len(prefix) < _PREFIX.size:
            try:
                part, received, _, _ = socket.recv_fds(self.sock, _PREFIX.size - len(prefix), _MAX_DESCRIPTORS)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
                continue
            except OSError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            prefix += part
            descriptors += received
        length, _ = _PREFIX.unpack(prefix)
        frame = bytearray(_checked(length))
        view = memoryview(frame)
        while view:
            try:
                count = await self._loop.sock_recv_into(self.sock, view)
            except OSError as error:
                raise EOFError from error
            if not count:
                raise EOFError
            view = view[count:]
        return frame, descriptors

    async def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one frame; waits while the Worker is behind. Raises EOFError when it is gone."""
        async with self._sending:
            try:
                prefix = _PREFIX.pack(_checked(len(frame)), len(descriptors))
                if descriptors:
                    await self._send_descriptors(prefix, descriptors)
                    await self._loop.sock_sendall(self.sock, frame)
                else:
                    await self._loop.sock_sendall(self.sock, prefix + frame)
            except OSError as error:
                raise EOFError from error

    async def _send_descriptors(self, prefix: bytes, descriptors: Sequence[int]) -> None:
        while True:
            try:
                sent = socket.send_fds(self.sock, [prefix], list(descriptors))
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
                continue
            await self._loop.sock_sendall(self.sock, prefix[sent:])
            return

    async def _ready(self, add: object, remove: object) -> None:
        waiting = self._loop.create_future()
        descriptor = self.sock.fileno()

        def wake() -> None:
            if not waiting.done():
                waiting.set_result(None)

        add(descriptor, wake)  # type: ignore[operator]
        try:
            await waiting
        finally:
            remove(descriptor)  # type: ignore[operator]

    def close(self) -> None:
        """Close this end; the Worker sees the end of its input and leaves."""
        self.sock.close()


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody will use."""
    for descriptor in descriptors:
        os.close(descriptor)
