"""Answers on a connection that was taken from tornado: what a door says after it has read its body by itself."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from grid_jupyter.node.bulk import FILL_S, Outgoing

_Watch = Callable[[int, Callable[[asyncio.Future[None]], None], asyncio.Future[None]], None]
LINGER_S = 2.0
"""How long a refused upload may go on, so that its sender gets to read why."""
_CHUNK = 1 << 20


async def answer(stream: IOStream, status: int, said: dict[str, str] | dict[str, bool]) -> None:
    """Answer with JSON, and close. Nothing is raised: whoever asked may have left."""
    try:
        await stream.write(in_json(status, said))
        if status != HTTPStatus.OK:  # closed at once, the rest of the body on its way would take the answer along
            stream.socket.shutdown(socket.SHUT_WR)
            rest = asyncio.ensure_future(_drop(stream))
            await asyncio.wait({rest}, timeout=LINGER_S)
            rest.cancel()
    except (StreamClosedError, OSError):
        pass
    finally:
        stream.close()


def in_json(status: int, said: dict[str, str] | dict[str, bool]) -> bytes:
    """An answer after which the connection is closed, with its head."""
    body = msgspec.json.encode(said)
    asked = "WWW-Authenticate: Bearer\r\n" if status == HTTPStatus.UNAUTHORIZED else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n{asked}Content-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n"
    )
    return head.encode() + body


def take_over(stream: Any) -> tuple[bytes, IOStream]:
    """The same connection, which tornado reads nothing of until it is asked to; and what it has read already.

    Raises StreamClosedError.
    """
    size: int = stream._read_buffer_size
    read: bytes = stream.read_bytes(size).result() if size else b""
    if stream.closed():
        raise StreamClosedError
    made = IOStream(stream.socket.dup())
    stream.close()
    return read, made


async def send_file(
    stream: IOStream, head: str, file: Outgoing, offset: int, gone: asyncio.Future[None], stall_s: float
) -> bool:
    """Send a head, and a file from some byte on, as fast as it is filled; close. Whether all of it went.

    It ends early when `gone` is done, or for `stall_s` seconds nothing is taken or filled.
    """
    if stream.closed():
        return False
    buffer = memoryview(bytearray(min(_CHUNK, file.size)))
    # a descriptor of our own: tornado closes its own when the other side leaves, and then that number is another
    # connection's, which the event loop must not take for this one
    own = os.dup(stream.socket.fileno())
    try:
        await stream.write(head.encode())
        while offset < file.size and not gone.done():
            ready = await _filled(file, offset, gone, stall_s)
            sent = await _send_part(stream, own, file, offset, buffer[: ready - offset], gone, stall_s)
            if not sent:
                return False
            offset += sent
        return offset == file.size
    except (StreamClosedError, OSError):
        return False  # who asked has left
    finally:
        os.close(own)
        stream.close()


async def _filled(file: Outgoing, offset: int, gone: asyncio.Future[None], stall_s: float) -> int:
    """Bytes that are there, once they are more than `offset`."""
    patience = time.monotonic() + stall_s
    while True:
        ready = file.filled()
        if ready > offset or gone.done() or time.monotonic() > patience:
            return ready
        await asyncio.sleep(FILL_S)


async def _send_part(
    stream: IOStream,
    own: int,
    file: Outgoing,
    offset: int,
    buffer: memoryview,
    gone: asyncio.Future[None],
    stall_s: float,
) -> int:
    """Send some bytes of a file, at most as many as the buffer has; how many: none when nobody takes them."""
    if isinstance(stream, SSLIOStream):
        part = file.read(offset, len(buffer))
        work: asyncio.Future[None] = asyncio.ensure_future(stream.write(part))
        await asyncio.wait({work, gone}, timeout=stall_s, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.add_done_callback(lambda done: done.cancelled() or done.exception())
            return 0
        work.result()
        return len(part)
    # by way of a buffer that stays in the processor's cache: os.sendfile would save this copy, and hands over single
    # pages, with which both ends take longer than with the copy
    length, sent = file.read_into(buffer, offset), 0
    while sent < length and not gone.done():
        try:
            sent += os.write(own, buffer[sent:length])
        except BlockingIOError:
            if not await writable(own, gone, stall_s):
                return 0
        else:
            await asyncio.sleep(0)  # others have their turn
    return sent


async def writable(own: int, gone: asyncio.Future[None], stall_s: float | None) -> bool:
    """Wait until a connection or pipe takes more, or nobody reads it any more; whether that is so."""
    loop = asyncio.get_running_loop()
    return await _watched(own, loop.add_writer, loop.remove_writer, gone, stall_s)


async def readable(own: int, gone: asyncio.Future[None], stall_s: float | None) -> bool:
    """Wait until something comes by a connection, or its end; whether it does."""
    loop = asyncio.get_running_loop()
    return await _watched(own, loop.add_reader, loop.remove_reader, gone, stall_s)


async def _watched(
    own: int, watch: _Watch, leave: Callable[[int], object], gone: asyncio.Future[None], stall_s: float | None
) -> bool:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    watch(own, _wake, ready)
    try:
        await asyncio.wait({ready, gone}, timeout=stall_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leave(own)
    return ready.done()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


async def _drop(stream: IOStream) -> None:
    buffer = bytearray(_CHUNK)
    try:
        while True:
            await stream.read_into(buffer, partial=True)
            await asyncio.sleep(0)
    except StreamClosedError:
        return
