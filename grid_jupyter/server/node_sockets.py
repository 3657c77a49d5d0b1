"""The Node's WebSockets, which strangers may open, and that of a session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

from tornado.iostream import IOStream, StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from grid_jupyter.errors import BadRequest, GridError
from grid_jupyter.node.session import NodeSession
from grid_jupyter.server.node_streams import SESSION_HEADER, NodeDoor
from grid_jupyter.server.session_frames import SessionFrames
from grid_jupyter.wire import messages
from grid_jupyter.wire.limits import MAX_FRAME_BYTES
from grid_jupyter.wire.websocket import binary_head

PING_S = 20.0
"""How often a client is asked whether it is still there, and how long it has to answer."""
FIRST_WORD_S = 10.0
"""How long whoever opens a WebSocket and is nobody yet may say nothing."""
_GOODBYE = 1000  # the code of a WebSocket that was closed on purpose


class NodeSocket(NodeDoor, WebSocketHandler):
    """Base of the WebSockets: a connection has a place here for who says something."""

    open_to_all = frozenset({"GET"})  # the gates are inside
    max_message_size = MAX_FRAME_BYTES
    _silence: asyncio.TimerHandle | None = None

    def check_origin(self, origin: str) -> bool:
        """No page may use its visitor's place in the network."""
        return False

    def expect_word(self) -> None:
        """Close it, unless somebody speaks soon."""
        self._silence = asyncio.get_running_loop().call_later(FIRST_WORD_S, self.close, 1008, "nothing was said")

    def spoke(self) -> None:
        """Somebody did, or has left."""
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None


class SessionDoor(NodeSocket):
    """GET, upgraded: one session. wire/messages.py and wire/commands.py say what goes over it."""

    _session: NodeSession | None = None
    _looking: asyncio.Task[None] | None = None
    _heard = _waits = _refused = False

    async def get(self, *args: Any, **kwargs: Any) -> None:
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise BadRequest("a session is a WebSocket; clients connect with DataCentricFLClient")
        await super().get(*args, **kwargs)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """tornado's, with a loop of its own over the frames that come in."""
        made = super().get_websocket_protocol()
        return SessionFrames(self, False, made.params) if isinstance(made, WebSocketProtocol13) else made

    async def open(self, *_args: str, **_kwargs: str) -> None:
        self.set_nodelay(True)
        secret = self.request.headers.get(SESSION_HEADER, "")
        try:
            account = await self.account()
            if secret:
                session = self.node.sessions.resume(secret, account)
                async with session.turn:  # a frame of the connection before may still be waited for
                    session.attach(self._send, self._hang_up)
                self._session = session
            else:
                self._session = self.node.sessions.open(
                    account, self._credential() or "", self.origin, self._send, self._hang_up
                )
        except GridError as error:
            await self._refuse(error)
        self._looking = asyncio.create_task(self._look_after())
        if self._session is not None and account is None and not secret:
            self.expect_word()

    async def _look_after(self) -> None:
        """Close the connection of a client that went away without a word. tornado's own pings would also close one
        whose frames wait for its Worker, since an answer to a ping waits behind them."""
        with contextlib.suppress(WebSocketClosedError):
            while True:
                self._heard = False
                self.ping(b"")
                await asyncio.sleep(PING_S)
                if not self._heard and not self._waits:
                    self.close(1001, "no answer to a ping")
                    return

    def on_pong(self, data: bytes) -> None:
        self._heard = True

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        if self._session is None:
            return None
        self._heard = True
        self.spoke()
        try:
            if isinstance(message, str):
                raise BadRequest("a session takes binary frames")
            later = self._session.handle(message)
        except GridError as error:
            return self._refuse(error)
        return None if later is None else self._wait(later)

    async def _wait(self, later: Awaitable[None]) -> None:
        """Frames are taken one after the other: a Worker that is behind slows its client down."""
        self._waits = True
        try:
            if self._session is None:
                await later
            else:
                async with self._session.turn:
                    await later
        except GridError as error:
            await self._refuse(error)
        finally:
            self._waits, self._heard = False, True

    def on_close(self) -> None:
        self.spoke()
        if self._looking is not None:
            self._looking.cancel()
        if self._session is not None:
            self._session.detach(self._send, wait=self.close_code != _GOODBYE and not self._refused)
            self._session = None

    async def _refuse(self, error: GridError) -> None:
        self._refused = True
        await self._send(messages.reply_frame(0, messages.Failed(code=error.code, error=str(error))))
        self._hang_up(error.code)

    def _send(self, frame: bytes) -> asyncio.Future[None]:
        """Write a binary message at once; tornado's write_message would wake the loop twice more for it, and its
        stream once."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection: Any = self.ws_connection
        if connection is None or connection.is_closing():
            taken.set_result(None)  # the client left; on_close ends the session
            return taken
        stream, data = connection.stream, binary_head(len(frame)) + frame
        sent = 0
        if type(stream) is IOStream and not stream.writing():
            with contextlib.suppress(OSError):  # the socket is full, or the stream is to see by itself that it broke
                sent = stream.socket.send(data)
            if sent == len(data):
                taken.set_result(None)
                return taken
        try:
            written: asyncio.Future[None] = stream.write(memoryview(data)[sent:] if sent else data)
        except StreamClosedError:
            taken.set_result(None)
            return taken
        if written.done():
            taken.set_result(None)
            return taken

        def finish(done: asyncio.Future[None]) -> None:
            if not done.cancelled():
                done.exception()
            if not taken.done():
                taken.set_result(None)

        written.add_done_callback(finish)
        return taken

    def _hang_up(self, reason: str) -> None:
        self.close(1008, reason.encode()[:120].decode(errors="ignore"))  # the protocol's limit is 123 bytes
