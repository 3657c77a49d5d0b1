"""`<base_url>/grid/public/…`: the Node's public door behind the Jupyter server's port, where only one port is open.

It asks for nothing of Jupyter's: the Node checks credentials of the grid, here as at its own port. What passes is in
passing.py; here is how: from one connection to the other, one piece at a time, so that no body is ever held in the
memory of the Jupyter server, and whoever is slow slows down nobody but himself.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from jupyter_server.auth.decorator import allow_unauthenticated
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError
from tornado.web import RequestHandler, stream_request_body

from grid_jupyter.errors import GridError, NodeUnavailableError
from grid_jupyter.server import passing
from grid_jupyter.server.detached import LINGER_S, answer, in_json
from grid_jupyter.server.supervisor import ChildProcess

log = logging.getLogger("grid_jupyter")

PUBLIC_PATH = "grid/public"
"""Where it is, below the base_url."""
PIECE = 256 << 10
"""Bytes that are held of a transfer, in each direction."""
CONNECT_S = 5.0
"""Time that the Node has to take a connection."""
STALL_S = 60.0
"""Longest time for a piece to come, or to be taken."""
ANSWER_S = 600.0
"""Time that the Node has for the head of its answer, once it has all of the request."""


class Passing(Protocol):
    """What of the extension the door needs."""

    node: ChildProcess
    public_connections: int
    public_connections_of_one: int
    passing: int
    passing_from: Counter[str]


class _Stalled(Exception):
    """One side sends nothing, or takes nothing."""


@stream_request_body
class PublicDoor(RequestHandler):
    """Any request of a Node's, at <base_url>/grid/public followed by its path; also its WebSockets."""

    def check_xsrf_cookie(self) -> None:
        """Nothing to check: no cookie passes here."""

    def data_received(self, chunk: bytes) -> None:
        """Never called: the connection is taken over before the body."""

    @allow_unauthenticated
    async def get(self, *args: str) -> None:
        """Never called, as all below: `prepare` has seen to the request. They say that Jupyter's login is not asked."""

    @allow_unauthenticated
    async def head(self, *args: str) -> None:
        pass

    @allow_unauthenticated
    async def post(self, *args: str) -> None:
        pass

    @allow_unauthenticated
    async def put(self, *args: str) -> None:
        pass

    @allow_unauthenticated
    async def patch(self, *args: str) -> None:
        pass

    @allow_unauthenticated
    async def delete(self, *args: str) -> None:
        pass

    async def prepare(self) -> None:
        """Take the connection over, before a byte of the body is read, and see to the request."""
        began, asked = time.monotonic(), self.request
        extension: Passing = self.settings["grid_jupyter"]
        headers = list(asked.headers.get_all())
        prefix = f"{self.settings['base_url'].rstrip('/')}/{PUBLIC_PATH}"
        stream = self.detach()
        status = 0
        try:
            head = passing.request(
                asked.method or "", asked.path[len(prefix) :], asked.query, headers, asked.remote_ip or ""
            )
            async with _to_node(extension, asked.remote_ip or "") as node:
                exchange = _Exchange(
                    stream,
                    node,
                    length=passing.length(headers),
                    upgrades=passing.asks_for_websocket(headers),
                    has_body=asked.method != "HEAD",
                )
                status = await exchange.run(head, expects=asked.headers.get("Expect", "").lower() == "100-continue")
        except GridError as error:
            status = error.status
            await answer(stream, status, error.to_wire())
        except (StreamClosedError, UnsatisfiableReadError, _Stalled, OSError) as error:
            log.debug("a request through the Jupyter server broke off: %s", type(error).__name__)
        finally:
            stream.close()
        # never a query, a header or a body
        log.debug("%d %s %s (%.1f ms)", status, asked.method, asked.path, 1e3 * (time.monotonic() - began))


@asynccontextmanager
async def _to_node(extension: Passing, origin: str) -> AsyncIterator[IOStream]:
    """A connection to the Node's public door, for somebody at an address. Raises NodeUnavailableError."""
    running = extension.node.running
    if running is None or not running.public_socket:
        raise NodeUnavailableError("the Node behind this address does not run; its owner can start it")
    if extension.passing >= extension.public_connections:
        raise NodeUnavailableError("this address has all the connections that it takes; try again in a moment")
    share = extension.public_connections_of_one or max(1, extension.public_connections // 2)
    if extension.passing_from[origin] >= share:
        raise NodeUnavailableError(
            f"{share} connections from your address are open here, and one address has no more; close some of them, or "
            "try again in a moment"
        )
    extension.passing += 1
    extension.passing_from[origin] += 1
    stream = IOStream(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), max_buffer_size=4 * PIECE)
    try:
        try:
            await asyncio.wait_for(stream.connect(running.public_socket), CONNECT_S)
        except (OSError, StreamClosedError, asyncio.TimeoutError):
            raise NodeUnavailableError("the Node behind this address does not answer; try again in a moment") from None
        yield stream
    finally:
        extension.passing -= 1
        extension.passing_from[origin] -= 1
        if not extension.passing_from[origin]:
            del extension.passing_from[origin]
        stream.close()


class _Exchange:
    """One request from `client` to `node`, and its answer."""

    def __init__(self, client: IOStream, node: IOStream, *, length: int, upgrades: bool, has_body: bool) -> None:
        self._client = client
        self._node = node
        self._length = length
        self._upgrades = upgrades
        self._has_body = has_body
        self._answered = False

    async def run(self, head: bytes, *, expects: bool) -> int:
        """The answer's status. Raises StreamClosedError, UnsatisfiableReadError, _Stalled."""
        await self._node.write(head)
        if expects and self._length:
            await self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        up = asyncio.ensure_future(self._upload())
        try:
            try:
                said = await self._answer_head(up)
            except GridError as error:
                said = passing.Head(error.status, in_json(error.status, error.to_wire()), 0, is_websocket=False)
            self._answered = True
            if said.is_websocket:
                self._client.set_close_callback(None)  # its last words still go on
            await _write(self._client, said.raw)
            if said.is_websocket:
                await self._both_ways()
            else:
                await self._download(said.length)
                if not up.done():  # refused; closed at once, the body on its way would take the answer along
                    await self._linger(up)
            return said.status
        finally:
            self._client.set_close_callback(None)
            self._node.close()
            self._client.close()
            await asyncio.gather(up, return_exceptions=True)

    async def _upload(self) -> None:
        """Hand the body on. What comes after an answer is dropped."""
        buffer, left = memoryview(bytearray(min(PIECE, self._length))), self._length
        while left:
            count = await _read(self._client, buffer[: min(PIECE, left)])
            left -= count
            if not self._answered:
                try:
                    await _write(self._node, buffer[:count])
                except StreamClosedError:
                    self._answered = True  # the Node takes no more: it has said why, or is gone
            await asyncio.sleep(0)  # others have their turn

    async def _answer_head(self, up: asyncio.Future[None]) -> passing.Head:
        reading = asyncio.ensure_future(self._node.read_until(b"\r\n\r\n", max_bytes=passing.MAX_HEAD_BYTES))
        waiting: set[asyncio.Future[Any]] = {reading, up}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            up.result()  # raises if the body broke off
            self._client.set_close_callback(self._node.close)  # nothing else would tell that nobody waits any more
            if self._client.closed():  # then nobody calls back
                self._node.close()
            await asyncio.wait({reading}, timeout=ANSWER_S)
        if not reading.done():
            raise _Stalled
        try:
            raw = reading.result()
        except StreamClosedError:
            if self._client.closed():
                raise
            raise NodeUnavailableError("the Node behind this address broke off; try again in a moment") from None
        return passing.answer(raw, upgrades=self._upgrades, has_body=self._has_body)

    async def _download(self, length: int | None) -> None:
        buffer, left = memoryview(bytearray(PIECE if length is None else min(PIECE, length))), length
        while left is None or left:
            try:
                count = await _read(self._node, buffer[: min(PIECE, len(buffer) if left is None else left)])
            except StreamClosedError:
                if left is None:
                    return
                raise
            await _write(self._client, buffer[:count])
            left = None if left is None else left - count
            await asyncio.sleep(0)

    async def _linger(self, up: asyncio.Future[None]) -> None:
        if not self._client.closed() and not isinstance(self._client, SSLIOStream):
            self._client.socket.shutdown(socket.SHUT_WR)
        await asyncio.wait({up}, timeout=LINGER_S)

    async def _both_ways(self) -> None:
        """A WebSocket's bytes as they are, until one side ends it."""
        self._client.set_nodelay(True)
        ways = [
            asyncio.ensure_future(_pour(self._client, self._node)),
            asyncio.ensure_future(_pour(self._node, self._client)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self._node.close()
        self._client.close()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pour(source: IOStream, drain: IOStream) -> None:
    """Hand on what comes, until there is no more. Who listens may be silent for as long as both sides like."""
    buffer: Any = memoryview(bytearray(PIECE))
    while True:
        count = await source.read_into(buffer, partial=True)
        await _write(drain, buffer[:count])
        await asyncio.sleep(0)


async def _read(stream: IOStream, into: memoryview) -> int:
    """Some bytes; how many. Raises StreamClosedError, _Stalled."""
    piece: Any = into  # a view of a buffer, of which tornado's types know nothing
    reading = asyncio.ensure_future(stream.read_into(piece, partial=True))
    if not reading.done():
        await asyncio.wait({reading}, timeout=STALL_S)
        if not reading.done():
            stream.close()
            raise _Stalled
    return await reading


async def _write(stream: IOStream, data: bytes | memoryview) -> None:
    """Returns when all of it is out: nothing waits in memory. Raises StreamClosedError, _Stalled."""
    writing = stream.write(data)
    if not writing.done():
        await asyncio.wait({writing}, timeout=STALL_S)
        if not writing.done():
            stream.close()
            raise _Stalled
    await writing


PUBLIC_RULES: list[tuple[str, type[RequestHandler]]] = [(rf"{PUBLIC_PATH}(.*)", PublicDoor)]
