"""The Node's doors for the bulk bytes of sessions: large values up, down, and over from other Nodes.

Bodies go straight between connection and memory file, in one buffer, or from the connection to the pipe of a Worker:
tornado's own way copies them twice more. A transfer that was cut goes on: HEAD tells how far an upload is and PATCH
brings the rest; a download takes a Range.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.web import stream_request_body

from grid_jupyter.errors import BadRequest, GridError, LimitExceededError
from grid_jupyter.node.bulk import Incoming, Outgoing
from grid_jupyter.node.moves import Expectation, begin, foreign
from grid_jupyter.node.session import NodeSession
from grid_jupyter.server.detached import readable, send_file, take_over, writable
from grid_jupyter.server.door import Door
from grid_jupyter.server.node_streams import (
    CHUNK,
    OFFSET_HEADER,
    SESSION_HEADER,
    STALL_S,
    TRANSFER_S,
    BulkDoor,
    byte_number,
    tell_progress,
)
from grid_jupyter.wire.limits import MAX_NAME_CHARS, MAX_USERS

_FRUITLESS = 16
"""How often in a row nothing may have moved that seemed to be there: before a byte that is urgent nothing ever does."""

_LOOK_S = 1.0
"""How often whoever waits for a Worker looks whether another connection has taken over."""


class SessionBulkDoor(BulkDoor):
    """Base of transfers that belong to a session: its secret is the credential."""

    def is_open(self) -> bool:
        return SESSION_HEADER in self.request.headers

    @property
    def session(self) -> NodeSession:
        return self.node.sessions.find(self.request.headers.get(SESSION_HEADER, ""))


class Intake(BulkDoor):
    """Takes the body of a request into a memory file, and answers by itself: the connection is tornado's no more."""

    async def prepare(self) -> None:
        takes: dict[str | None, Any] = {"PUT": self.put, "PATCH": self.patch}
        if self.request.method not in takes:
            await super().prepare()
            return
        try:
            await super().prepare()
            await takes[self.request.method](*self.path_args)  # before the body, which it takes for itself
        except GridError as error:
            await self.conclude(self.detach(), error)

    async def take_in(self, incoming: Incoming, session: NodeSession, done: Callable[[], Awaitable[None]]) -> None:
        """Append the body, then `done`; the answer tells how that went."""
        self.check_still_there()
        length = self.length()
        turn = incoming.begin_turn()
        stream: Any = self.detach()
        refused: GridError | None = None
        try:
            if self.request.headers.get("Expect", "").lower() == "100-continue":
                await stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if incoming.is_piped and not isinstance(stream, SSLIOStream):
                begin, stream = take_over(stream)
                await _splice(stream, begin, length, incoming, turn, session)
            else:
                await self._append(stream, length, incoming, turn, session)
            incoming.end_turn(turn, time.monotonic())
            await done()
        except (StreamClosedError, _Stalled):
            stream.close()  # what came is kept, and may go on
            return
        except GridError as error:
            refused = error
        finally:
            incoming.end_turn(turn, time.monotonic())
        await self.conclude(stream, refused)

    async def _append(self, stream: IOStream, length: int, incoming: Incoming, turn: int, session: NodeSession) -> None:
        buffer = bytearray(min(CHUNK, length))
        deadline = time.monotonic() + TRANSFER_S
        while length and time.monotonic() < deadline:
            reading: asyncio.Future[Any] = asyncio.ensure_future(stream.read_into(buffer, partial=True))
            await asyncio.wait({reading, session.gone}, timeout=STALL_S, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.add_done_callback(lambda future: future.cancelled() or future.exception())
                raise _Stalled
            count = min(reading.result(), length)  # what comes behind the body is not read: the connection ends
            if incoming.is_piped:
                await _pour(memoryview(buffer)[:count], incoming, turn, session)
            else:
                incoming.write(turn, memoryview(buffer)[:count])
            length -= count
            if length < len(buffer):
                buffer = bytearray(length)

    def data_received(self, chunk: bytes) -> None:
        """The body of a request that needs none is dropped."""


class _Stalled(Exception):
    """The other side sends nothing, or its session is over."""


async def _splice(
    stream: IOStream, begin: bytes, length: int, incoming: Incoming, turn: int, session: NodeSession
) -> None:
    """Let the body go from the connection to the Worker, of which `begin` was read already: not a byte of the rest
    comes into this process. Raises _Stalled, Conflict."""
    deadline, tries = time.monotonic() + TRANSFER_S, _FRUITLESS
    connection = stream.socket.fileno()
    begin = begin[:length]  # what comes behind the body is not read: the connection ends
    await _pour(memoryview(begin), incoming, turn, session)
    length -= len(begin)
    while length and time.monotonic() < deadline:
        try:
            count = incoming.splice(turn, connection, min(length, CHUNK))
        except BlockingIOError:
            tries -= 1
            if not tries or not await _movable(connection, incoming, turn, session.gone):
                raise _Stalled from None
            continue
        except OSError:  # it broke, or the Worker is gone
            raise _Stalled from None
        if not count:
            raise _Stalled
        length, tries = length - count, _FRUITLESS
        await asyncio.sleep(0)  # others have their turn


async def _movable(connection: int, incoming: Incoming, turn: int, gone: asyncio.Future[None]) -> bool:
    """Wait until there is something to be moved and room for it; whether there may be. A Worker that is busy is waited
    for, a sender not without end."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    if not waiting.poll(0):
        return await readable(connection, gone, STALL_S)
    return await _takes_more(incoming, turn, gone)


async def _takes_more(incoming: Incoming, turn: int, gone: asyncio.Future[None]) -> bool:
    """Wait until the Worker takes more, or this turn is over; False when the session is."""
    own = os.dup(incoming.descriptor)  # it may be closed meanwhile, and its number be another one's
    try:
        while incoming.turn == turn and not await writable(own, gone, _LOOK_S):
            if gone.done():
                return False
        return True
    finally:
        os.close(own)


async def _pour(data: memoryview, incoming: Incoming, turn: int, session: NodeSession) -> None:
    """Hand bytes to the Worker. Raises _Stalled when it is gone."""
    while data:
        try:
            data = data[incoming.pass_on(turn, data) :]
        except BlockingIOError:
            if not await _takes_more(incoming, turn, session.gone):
                raise _Stalled from None
        except OSError:  # the Worker is gone
            raise _Stalled from None


@stream_request_body
class ValueIn(SessionBulkDoor, Intake):
    """PUT /data-centric/values/<id>?dtype=&shape=: a large tensor into the session, under the client's id.
    HEAD: how much of it is here. PATCH: the rest of it."""

    async def put(self, value: str) -> None:
        session, number, shape = self.session, byte_number(value), _shape(self.get_query_argument("shape", ""))
        dtype = self.get_query_argument("dtype", "")
        incoming = await session.begin_receive(number, dtype, shape, self.length(), of_client=True)
        await self.take_in(incoming, session, lambda: session.receive(number, incoming))

    async def patch(self, value: str) -> None:
        session, number = self.session, byte_number(value)
        incoming = session.bulk.resume(number, byte_number(self.request.headers.get(OFFSET_HEADER, "")))
        if self.length() != incoming.size - incoming.offset:
            raise BadRequest("PATCH brings all that is missing of an upload")
        await self.take_in(incoming, session, lambda: session.receive(number, incoming))

    async def head(self, value: str) -> None:
        offset, complete = self.session.bulk.progress(byte_number(value))
        tell_progress(self, offset, complete)


class ValueOut(SessionBulkDoor):
    """GET /data-centric/released/<ticket>: the bytes of a large value that was released to this session, from the
    first byte of a Range on. DELETE: they are no longer wanted."""

    async def get(self, ticket: str) -> None:
        session = self.session
        session.last_used = time.monotonic()
        with session.bulk.sending(ticket) as value:
            await send_value(self, value, session.gone)

    async def delete(self, ticket: str) -> None:
        self.session.bulk.forget(ticket)
        self.reply({"success": True})


@stream_request_body
class MovedIn(Intake):
    """GET /data-centric/moved/<ticket's number>?challenge=: proof that the ticket is from here. PUT: the value that
    it is good for, from another Node. The ticket's secret is the credential."""

    def is_open(self) -> bool:
        return self.request.method == "GET" or "X-Grid-Ticket" in self.request.headers

    async def put(self, number: str) -> None:
        dtype, shape = _header(self, "X-Grid-Form", tuple[str, _Shape])
        readers = _header(self, "X-Grid-Readers", _Readers)
        origin = unquote(self.request.headers.get("X-Grid-Origin", ""))
        if not 0 < len(origin) <= MAX_NAME_CHARS or not origin.isprintable():
            raise BadRequest("a value that is moved comes with the name of its Node")
        expected = self.node.sessions.moves.claim(number, self.request.headers.get("X-Grid-Ticket", ""))
        incoming = await begin(expected, dtype, shape)
        if self.length() != expected.size:
            raise BadRequest("the length is not that of the tensor")
        session = _session(expected)
        sources = foreign(readers, origin)
        await self.take_in(incoming, session, lambda: session.receive(expected.value, incoming, sources))

    async def get(self, number: str) -> None:
        challenge = self.get_query_argument("challenge", "")
        if not re.fullmatch(r"[0-9a-f]{32}", challenge):
            raise BadRequest("a challenge has 32 hexadecimal digits")
        self.reply({"proof": self.node.sessions.moves.proof(number, challenge)})


async def send_value(door: BulkDoor, value: Outgoing, gone: asyncio.Future[None]) -> None:
    """Answer with a file, from the first byte of a Range on; it ends early when `gone` is done."""
    first = _first_byte(door.request.headers.get("Range"), value.size)
    head = f"HTTP/1.1 {'206 Partial Content' if first else '200 OK'}\r\n"
    if first:
        head += f"Content-Range: bytes {first}-{value.size - 1}/{value.size}\r\n"
    head += (
        f"Content-Type: application/octet-stream\r\nX-Content-Type-Options: nosniff\r\n"
        f"Cache-Control: no-store\r\nAccept-Ranges: bytes\r\nContent-Length: {value.size - first}\r\n"
        f"Connection: close\r\n\r\n"
    )
    door.set_status(206 if first else 200)
    value.sent = await send_file(door.detach(), head, value, first, gone, STALL_S) or value.sent
    door.application.log_request(door)


_Shape = Annotated[tuple[int, ...], msgspec.Meta(max_length=64)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_Readers = Annotated[tuple[_Name, ...], msgspec.Meta(max_length=MAX_USERS)] | None


def _session(expected: Expectation) -> NodeSession:
    if not isinstance(expected.session, NodeSession):
        raise GridError("a ticket belongs to a session")
    return expected.session


def _shape(text: str) -> tuple[int, ...]:
    try:
        return msgspec.json.decode(text or "null", type=_Shape)
    except (msgspec.DecodeError, UnicodeError):
        raise BadRequest("shape is a JSON list of lengths, such as [5,3]") from None


def _header(door: Door, name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(door.request.headers.get(name, ""), type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise BadRequest(f"the header {name} is not what it should be") from None


def _first_byte(header: str | None, size: int) -> int:
    """Where a download begins: at the first byte of its Range, `bytes=N-`. Raises BadRequest, LimitExceededError."""
    if header is None:
        return 0
    found = re.fullmatch(r"bytes=([0-9]{1,18})-", header)
    if found is None:
        raise BadRequest("a Range is bytes=N-, from byte N to the end")
    first = int(found[1])
    if first >= size:
        raise LimitExceededError(f"the value has {size} bytes")
    return first


BULK_RULES: list[tuple[str, type[Door]]] = [
    (r"/data-centric/values/([0-9]+)", ValueIn),
    (r"/data-centric/released/([A-Za-z0-9_-]{1,64})", ValueOut),
    (r"/data-centric/moved/([A-Za-z0-9_-]{1,64})", MovedIn),
]
