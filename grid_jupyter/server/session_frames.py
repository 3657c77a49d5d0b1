"""Takes the frames of a session's WebSocket as they come in, many at once where many have come.

tornado's own loop reads each frame in four or five steps, which for the short frames of operations and reads take
longer than all that the Node does with them. Everything else of the WebSocket is tornado's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from tornado.iostream import IOStream, StreamClosedError
from tornado.util import _websocket_mask
from tornado.websocket import WebSocketProtocol13

from grid_jupyter.wire.websocket import Head, read_head

_AT_ONCE = 64 << 10
"""Bytes that are taken from the connection at a time, if they are there."""
_TURN = 256 << 10
"""Bytes after which other connections get their turn, though more may be there."""
_FRAME_COST = 1024
"""How many bytes of that a frame counts, besides its own."""


class SessionFrames(WebSocketProtocol13):
    """The protocol of a session's connection."""

    _kind = 0
    _pieces: bytearray | None = None  # of a message in several frames
    _data = b""  # what has come
    _at = 0  # of the next frame in it
    _missing = 0  # bytes of a frame of which the head is here
    _turn = 0
    _is_plain = False  # whether bytes come from the socket as they are
    _woken: asyncio.Future[Awaitable[Any] | None] | None = None  # while frames are handled as their bytes come

    async def _receive_frame_loop(self) -> None:
        self._is_plain = type(self.stream) is IOStream
        self.stream.set_close_callback(lambda: self._wake(None))  # also where it is a write that sees the end
        try:
            await self._take_frames()
        except StreamClosedError:
            self._abort()
        finally:
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    async def _take_frames(self) -> None:
        while not self.client_terminated:
            later = self._go_on()
            if later is None and not self.client_terminated:
                later = await self._more()
            if later is not None:
                await later

    def _go_on(self) -> Awaitable[Any] | None:
        """Handle the frames that are here. What is returned, if anything, is to be awaited before the next one."""
        while not self.client_terminated:
            data, at = self._data, self._at
            head = read_head(data, at)
            if head is None or not self._is_allowed(head):
                self._missing = 0
                return None
            self._missing = head.end - len(data)
            if self._missing > 0:
                return None
            payload = data[head.begin : head.end]
            self._turn += _FRAME_COST + head.end - at
            self._at = head.end
            later: Awaitable[Any] | None = self._frame(
                head.first, _websocket_mask(head.mask, payload) if head.mask else payload
            )
            if later is not None:
                return later
            if self._turn >= _TURN:
                self._turn = 0
                return asyncio.sleep(0)
        return None

    # -------------------------------------------------------------- bytes that come

    async def _more(self) -> Awaitable[Any] | None:
        """Wait for more bytes. What is returned, if anything, is to be awaited: frames may have been handled."""
        stream: Any = self.stream
        large = self._missing > _AT_ONCE  # then all of it, so that it is not put together again and again
        if self._is_plain and not large and stream._state and not stream._read_buffer_size and not stream.writing():
            return await self._stand_by(stream)
        self._take(await stream.read_bytes(self._missing if large else _AT_ONCE, partial=not large))
        return None

    def _take(self, more: bytes) -> None:
        self._data, self._at = self._data[self._at :] + more if self._at < len(self._data) else more, 0

    async def _stand_by(self, stream: Any) -> Awaitable[Any] | None:
        """Handle frames as soon as their bytes are here, without a turn of the loop in between, until one of them is
        to be awaited. tornado's stream, which has nothing to read or to write, gets the connection back then."""
        woken: asyncio.Future[Awaitable[Any] | None] = asyncio.get_running_loop().create_future()
        self._woken = woken
        stream.io_loop.remove_handler(stream.fileno())
        stream.io_loop.add_handler(stream.fileno(), self._ready, stream.io_loop.READ)
        try:
            return await woken
        finally:
            self._woken = None
            if not stream.closed():
                stream.io_loop.remove_handler(stream.fileno())
                stream.io_loop.add_handler(stream.fileno(), stream._handle_events, stream._state)

    def _ready(self, _descriptor: int, events: int) -> None:
        stream: Any = self.stream
        if self._woken is None or self._woken.done():
            return  # it is seen again, by whoever looks next
        if events != stream.io_loop.READ:
            self._wake(None)  # the stream has something to write
            return
        try:
            more = stream.socket.recv(_AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            more = b""
        if not more:
            self._is_plain = False  # the stream is to see the end by itself
            self._wake(None)
            return
        self._take(more)
        later, done = None, False
        try:
            later = self._go_on()
            done = True
        finally:
            if not done:
                self._abort()
        if later is not None or self._missing > _AT_ONCE or self.client_terminated:
            self._wake(later)

    def _wake(self, later: Awaitable[Any] | None) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(later)

    def _abort(self) -> None:
        super()._abort()
        self._wake(None)

    # -------------------------------------------------------------- frames

    def _is_allowed(self, head: Head) -> bool:
        """Whether a frame may be taken that begins so; else the connection is at its end."""
        length = head.end - head.begin
        if head.first & 0x70 or (head.first & 0x08 and (length > 125 or not head.first & 0x80)):
            self._abort()  # an extension that nobody agreed on; a control frame that is long, or not whole
            return False
        if length + len(self._pieces or b"") > self.params.max_message_size:
            self.close(1009, "message too big")
            self._abort()
            return False
        return True

    def _frame(self, first: int, payload: bytes) -> Any:
        """Handle a frame; what is returned, if anything, is to be awaited before the next one."""
        opcode, last = first & 0x0F, first & 0x80
        if not opcode & 0x08:  # a control frame may come between the pieces of a message
            if (opcode == 0) is (self._pieces is None):
                self._abort()  # there is nothing to go on with, or it is not the end of what was begun
                return None
            if self._pieces is not None:
                self._pieces += payload
            elif not last:
                self._kind, self._pieces = opcode, bytearray(payload)
            if not last:
                return None
            if self._pieces is not None:
                opcode, payload, self._pieces = self._kind, bytes(self._pieces), None
        return self._handle_message(opcode, payload)
