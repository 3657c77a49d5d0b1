"""Large bodies straight between connection and file: in through one buffer, out from the mapped file itself.

tornado's own way copies what comes in four times, and what goes out twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from grid_jupyter.server.detached import writable
from grid_jupyter.server.pace import Pace

TURN = 4 << 20
"""Bytes that one connection is given before another one has its turn."""
_WAKE = 256 << 10
"""Bytes that have come in, at least, when this process wakes up for them."""


def take_parts(connection: Any, size: int, pace: Pace, give_up: Callable[[], None]) -> None:
    """Let the body of this request come to its door in parts of `size` bytes, all in the same buffer: a part is good
    until the door's `data_received` is done with it. Where the connection is cut, or the body comes slower than `pace`
    has it, the last part is what came; then `give_up` is to answer."""

    async def hand_over(delegate: Any, part: memoryview) -> None:
        waiting = None if connection._write_finished else delegate.data_received(part)
        if waiting is not None:
            await waiting

    async def read(length: int, delegate: Any) -> None:
        # of pages that are taken when bytes come, not when somebody says that they will
        buffer = memoryview(mmap.mmap(-1, min(size, length), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        stream, loop = connection.stream, asyncio.get_running_loop()
        part, filled, came = buffer[:0], 0, 0
        coming: asyncio.Future[int] = loop.create_future()
        ending: asyncio.Task[None] | None = None
        looking: asyncio.TimerHandle

        async def end(last: bytes) -> None:
            await hand_over(delegate, memoryview(last))
            give_up()

        def look() -> None:
            nonlocal ending, looking
            now = time.monotonic()
            # `coming` may be done, and nobody have heard of it: then its bytes are where those of `_rest` would come
            if pace.is_waiting and not coming.done() and pace.is_too_slow(came + _unread(stream), now):
                count = _rest(stream, part[filled:])  # of which nobody was woken
                # a copy: the stream writes there what comes until the connection is closed
                ending = asyncio.create_task(end(bytes(part[: filled + count])))
            else:
                looking = loop.call_later(max(pace.left_s(now), pace.window_s / 10), look)

        looking = loop.call_later(pace.window_s, look)
        try:
            with _woken_seldom(stream) as wake:
                while length:
                    part, filled = buffer[:length], 0
                    length -= len(part)
                    wake(_WAKE if length >= _WAKE else 1)  # so much comes in any case, however much of it is here
                    while filled < len(part):
                        pace.wait(time.monotonic())
                        coming = asyncio.ensure_future(stream.read_into(part[filled:], partial=True))
                        count = await coming
                        pace.work(time.monotonic())
                        if ending is not None:
                            raise StreamClosedError
                        filled, came = filled + count, came + count
                    await hand_over(delegate, part)
        except StreamClosedError:
            await (hand_over(delegate, part[:filled]) if ending is None else ending)
            raise
        finally:
            looking.cancel()
            part = memoryview(b"")  # `look` knows itself, and would keep the buffer until garbage is collected

    connection._read_fixed_body = read


def _unread(stream: IOStream) -> int:
    """Bytes that are here, and nobody has read."""
    if isinstance(stream, SSLIOStream):
        return 0
    (count,) = struct.unpack("i", fcntl.ioctl(stream.fileno(), termios.FIONREAD, bytes(4)))
    return int(count)


def _rest(stream: IOStream, room: memoryview) -> int:
    """Read them, past the stream, which is not used any more; how many they are."""
    if isinstance(stream, SSLIOStream):
        return 0
    try:
        return stream.socket.recv_into(room)
    except OSError:
        return 0


@contextlib.contextmanager
def _woken_seldom(stream: IOStream) -> Iterator[Callable[[int], None]]:
    """Says how many bytes are there, at least, when a connection counts as readable, until the `with` block ends."""
    now = 1

    def wake(count: int) -> None:
        nonlocal now
        if count != now and not stream.closed() and not isinstance(stream, SSLIOStream):  # which holds some by itself
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            now = count

    try:
        yield wake
    finally:
        wake(1)


async def send_mapped(stream: IOStream, data: mmap.mmap, part: int, stall_s: float) -> None:
    """Send a file that is mapped, on a connection on which nothing else waits to be sent.

    Raises StreamClosedError for a reader who left, or did not take `part` bytes in `stall_s`.
    """
    if stream.closed():
        raise StreamClosedError
    whole, gone = memoryview(data), asyncio.get_running_loop().create_future()
    own = os.dup(stream.socket.fileno())  # tornado may close its own, and then that number is another connection's
    try:
        sent, counted, until = 0, 0, time.monotonic() + stall_s
        while sent < len(whole):
            piece = whole[sent : sent + TURN]
            count = await asyncio.to_thread(_push, os.dup(own), piece)
            sent += count
            if sent - counted >= part:
                counted, until = sent, time.monotonic() + stall_s
            if count < len(piece) and not await writable(own, gone, max(0.0, until - time.monotonic())):
                raise StreamClosedError
    except OSError:
        raise StreamClosedError from None
    finally:
        os.close(own)


def _push(descriptor: int, data: memoryview) -> int:
    """Send as much as is taken at once; how much. Closes the descriptor: its caller may be gone by then."""
    sent = 0
    try:
        while sent < len(data):
            sent += os.write(descriptor, data[sent:])
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    return sent
