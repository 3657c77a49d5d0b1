"""Takes the frames of a session's WebSocket as they come in, many at once where many have come.

tornado's own loop reads each frame in four or five steps, which for the short frames of operations and reads take
longer than all that the Node does with them. Everything else of the WebSocket is tornado's.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from tornado.iostream import StreamClosedError
from tornado.util import _websocket_mask
from tornado.websocket import WebSocketProtocol13

_AT_ONCE = 64 << 10
"""Bytes that are taken from the connection at a time, if they are there."""
_TURN = 256 << 10
"""Bytes after which other connections get their turn, though more may be there."""
_FRAME_COST = 1024
"""How many bytes of that a frame counts, besides its own."""


class _Head(NamedTuple):
    """What precedes the payload of a frame (RFC 6455, 5.2)."""

    first: int  # byte: whether it is the last of its message, and its opcode
    mask: bytes
    begin: int
    end: int  # of the payload


class SessionFrames(WebSocketProtocol13):
    """The protocol of a session's connection."""

    _kind = 0
    _pieces: bytearray | None = None  # of a message in several frames

    async def _receive_frame_loop(self) -> None:
        try:
            await self._take_frames()
        except StreamClosedError:
            self._abort()
        finally:
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    async def _take_frames(self) -> None:
        data, at, taken = b"", 0, 0
        while not self.client_terminated:
            head = _head(data, at)
            if head is not None and not self._is_allowed(head):
                return
            missing = 0 if head is None else head.end - len(data)
            if head is None or missing > 0:
                large = missing > _AT_ONCE  # then all of it, so that it is not put together again and again
                more = await self.stream.read_bytes(missing if large else _AT_ONCE, partial=not large)
                data, at = data[at:] + more, 0
                continue
            payload = data[head.begin : head.end]
            taken += _FRAME_COST + head.end - at
            at = head.end
            later = self._frame(head.first, _websocket_mask(head.mask, payload) if head.mask else payload)
            if later is not None:
                await later
            if taken >= _TURN:
                taken = 0
                await asyncio.sleep(0)

    def _is_allowed(self, head: _Head) -> bool:
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


def _head(data: bytes, at: int) -> _Head | None:
    """The head of the frame that begins there; None if it is not whole yet."""
    if len(data) < at + 2:
        return None
    first, second = data[at], data[at + 1]
    length, begin = second & 0x7F, at + 2
    if length > 125:
        size = 2 if length == 126 else 8
        if len(data) < begin + size:
            return None
        length = int.from_bytes(data[begin : begin + size], "big")
        begin += size
    if not second & 0x80:
        return _Head(first, b"", begin, begin + length)
    if len(data) < begin + 4:
        return None
    return _Head(first, data[begin : begin + 4], begin + 4, begin + 4 + length)


def message_head(length: int) -> bytes:
    """What precedes a whole binary message from a server (RFC 6455, 5.2)."""
    if length < 126:
        return bytes((0x82, length))
    if length < 1 << 16:
        return b"\x82\x7e" + length.to_bytes(2, "big")
    return b"\x82\x7f" + length.to_bytes(8, "big")
