"""The Node's doors for large bodies: how they are taken in and sent, data sets and models that are uploaded."""

from __future__ import annotations

import asyncio
import mmap
import os
from typing import Any

from tornado.iostream import SSLIOStream, StreamClosedError
from tornado.web import HTTPError, stream_request_body

from grid_jupyter.errors import BadRequest, GridError, InvalidDataError, LimitExceededError, TooSlowError
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.service import GridNode
from grid_jupyter.node.uploads import Coming, Uploads, check_may_publish
from grid_jupyter.server.detached import answer
from grid_jupyter.server.door import Door
from grid_jupyter.server.pace import Pace
from grid_jupyter.server.straight import send_mapped, take_parts

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
        """Let the body of this request be as large as the limit, and take its time; but none that trickles."""
        connection: Any = self.request.connection
        connection.set_max_body_size(limit)
        connection.set_body_timeout(time_for(self.length()))
        if self.length() > READ:
            pace = self.settings.get("pace", Pace)()
            take_parts(connection, CHUNK, pace, lambda: self.give_up(_too_slow(pace)))

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


def _too_slow(pace: Pace) -> TooSlowError:
    return TooSlowError(
        f"less than {pace.least} bytes of it came in {pace.window_s:g} seconds, and this Node waits no longer. Of a "
        "report or an upload it keeps for five minutes what came: ask by HEAD how much that is, and PATCH the rest"
    )


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
    (r"/data-centric/uploads/([0-9a-f]{32})", UploadIn),
    (r"/data-centric/serve-model/?", ServeModel),
]
