"""A small server inside a client's process: one door that speaks a Node's session protocol. Knows no tensors.

It runs on a thread of its own with an event loop of its own, so whoever started it goes on working. What is done
with frames is the business of the `Service` that it is given.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
import ssl
import threading
from typing import Any, Protocol

import tornado.httpserver
import tornado.web
import tornado.websocket

from grid_jupyter.errors import BadRequest, GridError, InvalidMessageError, LimitExceededError, NotAuthenticatedError
from grid_jupyter.wire import frames, messages
from grid_jupyter.wire.dtypes import ITEM_BYTES, nbytes
from grid_jupyter.wire.limits import MAX_FRAME_BYTES, MAX_RANK

MAX_VALUE_BYTES = 1 << 30
"""Largest tensor that a connection may hand over, in bytes."""
_MAX_BODY_BYTES = 1 << 20  # of a request that is not streamed
_START_S = 30.0
_SESSION = "X-Grid-Session"


class Connection(Protocol):
    """What a service does for one connection; called from the listener's thread, one call at a time."""

    def operations(self, header: memoryview) -> None:
        """Run one OPERATIONS header. Raises GridError: the connection ends."""

    def request(self, message: messages.Request) -> tuple[messages.Reply, bytes | memoryview]:
        """Answer a request. Raises GridError."""

    def receive(self, identity: int, dtype: str, shape: tuple[int, ...], data: bytearray) -> None:
        """Take in a large tensor."""

    def take(self, ticket: str) -> bytearray:
        """The bytes of a large value. Raises ObjectNotFoundError."""

    def close(self) -> None:
        """The connection is gone."""


class Service(Protocol):
    """What a listener serves."""

    def connect(self, session: str) -> Connection:
        """A new connection, with its secret for bulk transfers."""


class _Door(tornado.web.RequestHandler):
    """Base of the routes: errors are {"error": text, "code": code}, as everywhere in the grid."""

    def initialize(self, listener: Listener) -> None:
        self.listener = listener

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")

    def check_xsrf_cookie(self) -> None:
        """Nothing to check: no cookie is a credential here."""

    def check_token(self) -> None:
        """Raises NotAuthenticatedError for a wrong token, or none."""
        given = self.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.listener.token.encode()):
            raise NotAuthenticatedError("this worker needs its token: WebsocketClientWorker(…, token=…)")

    @property
    def connection(self) -> Connection:
        """The connection that a bulk transfer belongs to."""
        found = self.listener.connections.get(self.request.headers.get(_SESSION, ""))
        if found is None:
            raise NotAuthenticatedError("there is no such session here, or no longer; connect again")
        return found

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        told = error.to_wire() if isinstance(error, GridError) else {"code": "grid-error", "error": "internal error"}
        self.set_status(error.status if isinstance(error, GridError) else status_code)
        self.finish(json.dumps(told))

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Refusals are the caller's to tell; everything else is logged by tornado."""
        if not isinstance(value, GridError):
            super().log_exception(typ, value, tb)


class _SessionDoor(_Door, tornado.websocket.WebSocketHandler):
    """GET, upgraded: one connection."""

    _connection: Connection | None = None
    _secret = ""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        self.check_token()
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise BadRequest("a session is a WebSocket; connect with WebsocketClientWorker")
        await super().get(*args, **kwargs)

    def check_origin(self, origin: str) -> bool:
        """No page of a browser speaks this protocol."""
        return False

    async def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        self._secret = secrets.token_urlsafe(32)
        self._connection = self.listener.connections[self._secret] = self.listener.service.connect(self._secret)

    async def on_message(self, message: str | bytes) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if isinstance(message, str):
                raise BadRequest("a session takes binary frames")
            reply = await self.listener.work(_answer, connection, message)
        except GridError as error:
            reply = messages.reply_frame(0, messages.Failed(code=error.code, error=str(error)))
            await self._send(reply)
            self.close(1008, error.code)
            return
        if reply is not None:
            await self._send(reply)

    async def _send(self, frame: bytes) -> None:
        try:
            await self.write_message(frame, binary=True)
        except tornado.websocket.WebSocketClosedError:
            pass  # the client left; on_close ends the connection

    def on_close(self) -> None:
        self.listener.connections.pop(self._secret, None)
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _answer(connection: Connection, data: bytes) -> bytes | None:
    """One frame, and the frame that answers it. Raises GridError for what ends the connection."""
    cut = frames.unpack(data)
    if cut.kind == frames.OPERATIONS:
        connection.operations(cut.header)
        return None
    if cut.kind != frames.REQUEST:
        raise InvalidMessageError("a client sends operations and requests")
    number, message = frames.decode(cut.header, messages.request_decoder)
    try:
        reply, payload = connection.request(message)
    except GridError as error:
        return messages.reply_frame(number, messages.Failed(code=error.code, error=str(error)))
    return messages.reply_frame(number, reply, payload)


@tornado.web.stream_request_body
class _ValueIn(_Door):
    """PUT /data-centric/values/<id>?dtype=&shape=: a large tensor."""

    def prepare(self) -> None:
        """Before a byte of the body is taken: whose it is, and how many bytes it has."""
        self._taker = self.connection
        self._dtype, self._shape = self.get_query_argument("dtype", ""), _shape(self.get_query_argument("shape", ""))
        length = self.request.headers.get("Content-Length", "")
        if self._dtype not in ITEM_BYTES or str(nbytes(self._dtype, self._shape)) != length:
            raise BadRequest("the bytes do not fit the dtype and shape")
        if int(length) > MAX_VALUE_BYTES:
            raise LimitExceededError(f"a tensor sent to a worker of this kind has at most {MAX_VALUE_BYTES} bytes")
        connection: Any = self.request.connection
        connection.set_max_body_size(int(length))
        self._body = bytearray()

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk

    async def put(self, value: str) -> None:
        await self.listener.work(self._taker.receive, int(value), self._dtype, self._shape, self._body)
        self.finish('{"success": true}')


class _ValueOut(_Door):
    """GET /data-centric/released/<ticket>: the bytes of a large value."""

    async def get(self, ticket: str) -> None:
        self.set_header("Content-Type", "application/octet-stream")
        self.finish(bytes(self.connection.take(ticket)))


def _shape(text: str) -> tuple[int, ...]:
    try:
        found = json.loads(text or "null")
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) > MAX_RANK or not all(type(n) is int and n >= 0 for n in found):
        raise BadRequest("shape is a JSON list of lengths, such as [5,3]")
    return tuple(found)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens at the host's first address, an IPv4 one if it has any. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = next((one for one in found if one[0] == socket.AF_INET), found[0])
    made = socket.create_server(address[:2], family=family, backlog=128)
    made.setblocking(False)
    return made


class Listener:
    """Serves until `stop`. `token` is what every client must present."""

    def __init__(
        self, service: Service, *, host: str, port: int, token: str, tls: ssl.SSLContext | None = None
    ) -> None:
        """Binds at once; `port` 0 takes a free one. Raises BadRequest if the address cannot be used."""
        if not token:
            raise BadRequest("a listener needs a token")
        self.service = service
        self.token = token
        self.connections: dict[str, Connection] = {}
        try:
            self._socket = _bound(host, port)
        except OSError as error:
            raise BadRequest(f"{host}:{port} cannot be listened on ({type(error).__name__}): choose another") from None
        self.port = int(self._socket.getsockname()[1])
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"listener-{self.port}", daemon=True)
        self._thread.start()
        self._ready.wait(_START_S)

    async def work(self, call: Any, *args: Any) -> Any:
        """A call of the service, off the event loop, which goes on with other connections."""
        return await asyncio.to_thread(call, *args)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        rules = [
            (r"/data-centric/session/?", _SessionDoor, {"listener": self}),
            (r"/data-centric/values/([0-9]{1,18})", _ValueIn, {"listener": self}),
            (r"/data-centric/released/([A-Za-z0-9_-]{1,64})", _ValueOut, {"listener": self}),
        ]
        application = tornado.web.Application(
            rules, log_function=lambda handler: None, websocket_max_message_size=MAX_FRAME_BYTES
        )
        server = tornado.httpserver.HTTPServer(application, ssl_options=self._tls, max_body_size=_MAX_BODY_BYTES)
        server.add_sockets([self._socket])
        self._ready.set()
        await self._stopping.wait()
        server.stop()
        await server.close_all_connections()

    def wait(self) -> None:
        """Until somebody stops it."""
        self._thread.join()

    def stop(self) -> None:
        """End all connections, and free the port."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_START_S)
