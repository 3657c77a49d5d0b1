"""Large bodies come in and go out as they are, whatever the connection does."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from flows.certificates import Authority
from tornado.netutil import bind_sockets
from tornado.web import stream_request_body

from grid_jupyter.server import node_streams
from grid_jupyter.server.door import application, http_server

MB = 1 << 20


def bytes_of(seed: int, size: int) -> bytes:
    return numpy.random.default_rng(seed).bytes(size)


@stream_request_body
class Large(node_streams.BulkDoor):
    """Takes bodies, and gives a file."""

    open_to_all = frozenset({"GET", "POST"})
    file: Path
    told: list[tuple[int, str]]
    """Bytes that came with each request, and their hash."""
    ended: asyncio.Event

    async def prepare(self) -> None:
        self._hash, self._parts = hashlib.sha256(), 0
        if self.request.method == "POST":
            self.take(64 * MB)

    async def data_received(self, chunk: bytes | memoryview) -> None:
        await asyncio.to_thread(self._hash.update, chunk)
        self._parts += len(chunk)

    async def post(self) -> None:
        self.reply({"sha256": self._hash.hexdigest()})

    async def get(self) -> None:
        await self.send_blob(os.open(self.file, os.O_RDONLY), self.file.stat().st_size)

    def on_finish(self) -> None:
        self.told.append((self._parts, self._hash.hexdigest()))
        self.ended.set()


@asynccontextmanager
async def served(folder: Path, size: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, Any]]:
    """A port, and the class of its door, whose file has so many bytes."""

    class Own(Large):
        file, told, ended = folder / "large", [], asyncio.Event()

    Own.file.write_bytes(bytes_of(1, size))
    server = http_server(application([("/.*", Own)], None), tls)  # type: ignore[arg-type]
    (listening,) = bind_sockets(0, "127.0.0.1")
    server.add_sockets([listening])
    try:
        yield listening.getsockname()[1], Own
    finally:
        server.stop()
        await server.close_all_connections()


async def answered(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 200"), head
    length = next(line for line in head.split("\r\n") if line.lower().startswith("content-length"))
    return await reader.readexactly(int(length.partition(":")[2]))


def asked(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("length", [MB - 1, MB, 3 * MB + 7, 3 * MB + (256 << 10), 5 * MB + (300 << 10)])
@pytest.mark.parametrize("piece", [40_000, 64 * MB])
def test_a_body_comes_as_it_was_sent_and_its_connection_goes_on(tmp_path: Path, length: int, piece: int):
    body, small = bytes_of(length, length), b"small"

    async def work() -> None:
        async with served(tmp_path, 2 * MB) as (port, door):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=8 * MB)
            data = asked(body) + asked(small) + asked(body) + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"  # none waits
            for start in range(0, len(data), piece):
                writer.write(data[start : start + piece])
                await writer.drain()
            for sent in (body, small, body):
                assert hashlib.sha256(sent).hexdigest().encode() in await answered(reader)
            assert await answered(reader) == door.file.read_bytes()
            writer.close()
            await writer.wait_closed()

    asyncio.run(asyncio.wait_for(work(), 30))


def test_the_memory_that_a_body_came_in_is_free_when_it_is_here(tmp_path: Path):
    body = bytes_of(5, MB)

    async def work() -> None:
        async with served(tmp_path, 0) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            used = []
            for _ in range(32):
                writer.write(asked(body))
                await answered(reader)
                used.append(psutil.Process().memory_info().rss)
            writer.close()
            await writer.wait_closed()
            assert used[-1] - used[7] < 8 * MB

    gc.collect()
    gc.disable()
    try:
        asyncio.run(asyncio.wait_for(work(), 30))
    finally:
        gc.enable()


def test_what_came_over_a_connection_that_was_cut_is_there_to_the_last_byte(tmp_path: Path):
    body = bytes_of(3, 2 * MB + 12_345)

    async def work() -> None:
        async with served(tmp_path, 0) as (port, door):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (9 * MB) + body)
            writer.close()
            await writer.wait_closed()
            await door.ended.wait()
            assert door.told == [(len(body), hashlib.sha256(body).hexdigest())]

    asyncio.run(asyncio.wait_for(work(), 30))


def test_both_ways_are_the_same_over_tls(tmp_path: Path):
    authority = Authority(tmp_path, "ours")
    here, there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    here.load_cert_chain(authority.cert, authority.key)
    there.check_hostname, there.verify_mode = False, ssl.CERT_NONE
    body = bytes_of(4, 3 * MB + (256 << 10) + 9)

    async def work() -> None:
        async with served(tmp_path, 5 * MB, here) as (port, door):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=there, limit=8 * MB)
            for _ in range(2):
                writer.write(asked(body))
                assert hashlib.sha256(body).hexdigest().encode() in await answered(reader)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await answered(reader) == door.file.read_bytes()
            writer.close()

    asyncio.run(asyncio.wait_for(work(), 30))
