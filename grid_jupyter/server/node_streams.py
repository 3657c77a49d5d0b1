"""The Node's doors for what flows: the session's WebSocket, data sets and models that are uploaded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
from collections.abc import Awaitable
from typing import Any

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.web import HTTPError, stream_request_body
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from grid_jupyter.errors import BadRequest, GridError, InvalidDataError, LimitExceededError
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.service import GridNode
from grid_jupyter.node.session import NodeSession
from grid_jupyter.node.uploads import Coming, Uploads, check_may_publish
from grid_jupyter.server.detached import answer
from grid_jupyter.server.door import Door
from grid_jupyter.server.session_frames import SessionFrames, message_head
from grid_jupyter.server.straight import send_mapped, take_parts
from grid_jupyter.wire import messages
from grid_jupyter.wire.limits import MAX_FRAME_BYTES

log = logging.getLogger("grid_jupyter")

CHUNK = 1 << 20
"""Bytes of a bulk answer that are read and sent at a time."""
PART = 256 << 10
"""Bytes of a plain answer that must be taken within STALL_S: some 4 KiB in a second, as of whoever sends."""
READ = 256 << 10
"""Length of a body that comes in parts of CHUNK, in place of tornado's 64 KiB."""
TRANSFER_S = 6 * 3600.0
"""Longest time that one bulk transfer may take."""
SLOWEST = 4096
"""Bytes in a second that whoever sends a large body comes to, at least."""
STALL_S = 60.0
"""Longest time for a chunk of a bulk answer to be taken."""
SESSION_HEADER = "X-Grid-Session"
"""Carries the session's secret, where a connection or a transfer belongs to one."""
_GOODBYE = 1000  # the code of a WebSocket that was closed on purpose
PING_S = 20.0
"""How often a client is asked whether it is still there, and how long it has to answer."""


FIRST_WORD_S = 10.0
"""How long whoever opens a WebSocket and is nobody yet may say nothing."""
SILENT = "nothing was said"
OFFSET_HEADER = "Upload-Offset"
"""Bytes of an upload that are here; of one that goes on, the byte where it does."""
COMPLETE_HEADER = "Upload-Complete"
"""?1 or ?0: whether an upload is complete."""


class NodeDoor(Door):
    """Base of the Node's routes."""

    @property
    def node(self) -> GridNode:
        node: GridNode = self.settings["node"]
        return node

    async def send_blob(self, descriptor: int, nbytes: int) -> None:
        """Answer with the bytes of an open file, and close it."""
        connection: Any = self.request.connection
        try:
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Length", str(nbytes))
            if nbytes <= PART or isinstance(connection.stream, SSLIOStream):
                await self._send_pieces(descriptor, nbytes)
            else:
                mapped = _mapped(descriptor, nbytes)
                await self.hand_over()  # the head
                await send_mapped(connection.stream, mapped, PART, STALL_S)
                connection._expected_content_remaining = 0  # tornado wrote none of it
            self.finish()
        except StreamClosedError:
            return
        finally:
            os.close(descriptor)

    async def _send_pieces(self, descriptor: int, nbytes: int) -> None:
        sent = 0
        while sent < nbytes:
            if nbytes <= PART:  # quicker than the way to another thread
                piece = os.pread(descriptor, PART, 0)
            else:
                piece = await asyncio.to_thread(os.pread, descriptor, 2 * PART, sent)
            if not piece:
                raise HTTPError(500)
            for start in range(0, len(piece), PART):
                self.write(piece[start : start + PART])
                await self.hand_over()
            sent += len(piece)

    async def hand_over(self) -> None:
        """Send what was written. Raises StreamClosedError for a reader who left, or took nothing in STALL_S."""
        try:
            await asyncio.wait_for(self.flush(), STALL_S)
        except asyncio.TimeoutError:
            connection: Any = self.request.connection
            connection.stream.close()
            raise StreamClosedError from None


class SessionDoor(NodeDoor, WebSocketHandler):
    """GET, upgraded: one session. wire/messages.py and wire/commands.py say what goes over it."""

    open_to_all = frozenset({"GET"})  # guests may connect; the gates are inside
    max_message_size = MAX_FRAME_BYTES
    _session: NodeSession | None = None
    _looking: asyncio.Task[None] | None = None
    _silence: asyncio.TimerHandle | None = None
    _heard = _waits = _refused = False

    async def get(self, *args: Any, **kwargs: Any) -> None:
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise BadRequest("a session is a WebSocket; clients connect with DataCentricFLClient")
        await super().get(*args, **kwargs)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """tornado's, with a loop of its own over the frames that come in."""
        made = super().get_websocket_protocol()
        return SessionFrames(self, False, made.params) if isinstance(made, WebSocketProtocol13) else made

    def check_origin(self, origin: str) -> bool:
        """No browser speaks this protocol, and no page may use its visitor's place in the network."""
        return False

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
            self._silence = asyncio.get_running_loop().call_later(FIRST_WORD_S, self._hang_up, SILENT)

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
        self._spoke()
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

    def _spoke(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def on_close(self) -> None:
        self._spoke()
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
        stream, data = connection.stream, message_head(len(frame)) + frame
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


class BulkDoor(NodeDoor):
    """Base of doors that take in large bodies."""

    _left = False

    def length(self) -> int:
        """Content-Length of the request. Raises BadRequest without one."""
        text = self.request.headers.get("Content-Length", "")
        if not is_number(text):
            raise BadRequest("a bulk transfer says its Content-Length")
        return int(text)

    def take(self, limit: int) -> None:
        """Let the body of this request be as large as the limit, and take its time."""
        connection: Any = self.request.connection
        connection.set_max_body_size(limit)
        connection.set_body_timeout(time_for(limit))
        if self.length() > READ:
            take_parts(connection, CHUNK)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._left = True
        self.on_finish()

    def check_still_there(self) -> None:
        """After a wait in `prepare`: nobody would end what is begun now for a client that left. Raises BadRequest."""
        if self._left:
            self.on_finish()
            raise BadRequest("the connection was closed")

    async def conclude(self, stream: Any, error: GridError | None) -> None:
        """Answer on a detached connection, of which not all may have been read; `error` says what went wrong."""
        self.set_status(200 if error is None else error.status)
        await answer(stream, self.get_status(), {"success": True} if error is None else error.to_wire())
        self.application.log_request(self)

    def give_up(self, error: GridError) -> None:
        """Answer in the middle of the body; the rest of it is not taken."""
        if not self._finished:
            self.on_finish()
            self.write_error(error.status, exc_info=(type(error), error, None))


@stream_request_body
class UploadIn(BulkDoor):
    """PUT /data-centric/uploads/<id>: the safetensors bytes of a data set; Publish then names the id. HEAD: how much
    of it is here. PATCH: the rest of it."""

    _coming: Coming | None = None

    @property
    def uploads(self) -> Uploads:
        """Where the bytes go."""
        return self.node.datasets.uploads

    async def prepare(self) -> None:
        if self.request.method not in ("PUT", "PATCH"):
            await super().prepare()
            return
        try:
            await super().prepare()
            await self._begin(await self.require(), self.path_args[0])
        except GridError as error:
            self.on_finish()
            await self.conclude(self.detach(), error)

    async def _begin(self, publisher: Account, upload_id: str) -> None:
        size, uploads = self.length(), self.uploads
        if self.request.method == "PUT":
            coming = await uploads.begin(publisher, upload_id, size)
        else:
            offset = byte_number(self.request.headers.get(OFFSET_HEADER, ""))
            coming = uploads.resume(publisher, upload_id, offset)
            if size != coming.size - offset:
                raise BadRequest("PATCH brings all that is missing of an upload")
        self._publisher, self._coming, self._turn = publisher, coming, coming.begin_turn()
        self.check_still_there()
        self.take(size)

    async def data_received(self, chunk: bytes | memoryview) -> None:
        if self._coming is not None:
            try:
                await self._coming.write(self._turn, chunk)
            except GridError as error:
                self.give_up(error)

    async def put(self, upload_id: str) -> None:
        coming = self._coming
        if coming is not None and not self._finished:
            await self.uploads.finish(self._publisher, upload_id, coming)
            self.reply({"success": True})

    async def patch(self, upload_id: str) -> None:
        await self.put(upload_id)

    async def head(self, upload_id: str) -> None:
        offset, complete = await self.uploads.progress(await self.require(), upload_id)
        tell_progress(self, offset, complete)

    def on_finish(self) -> None:
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self.uploads.end_turn((self._publisher.username, self.path_args[0]), coming, self._turn)


@stream_request_body
class ServeModel(BulkDoor):
    """POST /data-centric/serve-model/: a model's safetensors bytes, as a form or a multipart form."""

    limit = 256 << 20

    async def prepare(self) -> None:
        await super().prepare()
        check_may_publish(await self.require())
        if self.length() > self.limit:
            raise LimitExceededError(f"a model has at most {self.limit} bytes here")
        self.take(self.limit)
        self._body = bytearray()

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk

    async def post(self) -> None:
        self.request.body = bytes(self._body)
        self.request._parse_body()
        model_id = self.get_body_argument("model_id", "")
        await self.node.models.serve(
            await self.require(),
            model_id,
            self._model(),
            allow_download=self._flag("allow_download"),
            allow_remote_inference=self._flag("allow_remote_inference"),
            mpc=self._flag("mpc"),
        )
        self.reply({"success": True, "message": f"Model saved with id: {model_id}"})

    def _flag(self, name: str) -> bool:
        return self.get_body_argument(name, "False") == "True"

    def _model(self) -> bytes:
        files = self.request.files.get("model")
        if files:
            return bytes(files[0].body)
        raw = self.request.body_arguments.get("model")
        if not raw:
            raise BadRequest("the form lacks the part 'model'")
        encoding = self.get_body_argument("encoding", "ISO-8859-1")
        if encoding.upper() not in ("ISO-8859-1", "LATIN-1"):
            raise BadRequest("the encoding of a model in a form is ISO-8859-1; a multipart file needs none")
        try:
            return raw[0].decode().encode("latin-1")
        except UnicodeError:
            raise InvalidDataError("the model is not text in ISO-8859-1; send it as a multipart file") from None


def _mapped(descriptor: int, nbytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ)
    except ValueError:  # the file is shorter than its row says
        raise HTTPError(500) from None


def time_for(nbytes: int) -> float:
    """Seconds that a body of so many bytes may take: a minute, and as long as the slowest line needs."""
    return min(TRANSFER_S, STALL_S + nbytes / SLOWEST)


def is_number(text: str) -> bool:
    """Whether a text is a number from 0 on that a Node works with; `²` is a digit too, and none."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def byte_number(text: str) -> int:
    """A number from a header or path. Raises BadRequest."""
    if not is_number(text):
        raise BadRequest("ids of values and numbers of bytes are plain numbers")
    return int(text)


def tell_progress(door: Door, offset: int, complete: bool) -> None:
    """Answer a HEAD: how far an upload is."""
    door.set_header(OFFSET_HEADER, str(offset))
    door.set_header(COMPLETE_HEADER, "?1" if complete else "?0")
    door.finish()


STREAM_RULES: list[tuple[str, type[Door]]] = [
    (r"/data-centric/session/?", SessionDoor),
    (r"/data-centric/uploads/([0-9a-f]{32})", UploadIn),
    (r"/data-centric/serve-model/?", ServeModel),
]
