"""The client's WebSocket to a Node: one connection is one session. Knows no tensors."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from urllib.parse import quote

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from grid_jupyter import __version__
from grid_jupyter.errors import GridError, NodeUnavailableError, SessionLostError, from_wire
from grid_jupyter.link.http import Address, reported, transfer, untrusted
from grid_jupyter.wire import frames
from grid_jupyter.wire.limits import MAX_FRAME_BYTES, PROTOCOL
from grid_jupyter.wire.messages import Caller, Failed, Hello, Reply, Request, Welcome, reply_decoder, request_frame

_OPEN_S = 15.0


class WebSocketLink:
    """A connected session. `credential` gives the token of a user by name, for single calls.

    Methods may be called from any thread; each waits for its own answer. Once the connection is gone every
    call raises SessionLostError with the reason that the Node gave.
    """

    def __init__(self, address: Address, token: str, credential: Callable[[str], str]) -> None:
        """Connect and greet. Raises NodeUnavailableError, NotAuthenticatedError, VersionMismatchError."""
        self.address = address
        self.credential = credential
        self.lost: str | None = None
        self._lock = threading.RLock()
        self._number = 0
        self._until_closed = contextlib.ExitStack()
        self._socket = self._connect(token)
        reply, _ = self.request(Hello(protocol=PROTOCOL, software=f"grid-jupyter {__version__}"))
        if not isinstance(reply, Welcome):
            raise GridError(f"{address.url} did not welcome us; its version may differ")
        self.welcome = reply

    def _connect(self, token: str) -> ClientConnection:
        try:
            made = self._until_closed.enter_context(
                connect(
                    f"{self.address.websocket_url}/data-centric/session",
                    additional_headers={"Authorization": f"Bearer {token}"} if token else {},
                    compression=None,  # tensors do not compress, and it would cost twenty times the time
                    max_size=MAX_FRAME_BYTES,
                    open_timeout=_OPEN_S,
                    proxy=None,
                    ssl=self.address.tls,
                )
            )
        except InvalidStatus as error:
            raise reported(error.response.status_code, bytes(error.response.body or b""), self.address.url) from None
        except ssl.SSLCertVerificationError:
            raise untrusted(self.address) from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise NodeUnavailableError(
                f"{self.address.url} does not answer ({type(error).__name__}): is the Node running, and is the "
                f"address right?"
            ) from None
        made.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    @property
    def caller(self) -> Caller:
        """Who the Node takes this session's caller for."""
        return self.welcome.caller

    def become(self, caller: Caller) -> None:
        """The session's caller is another one now."""
        self.welcome = msgspec.structs.replace(self.welcome, caller=caller)

    def is_open(self) -> bool:
        """Whether the connection still stands, as far as its own state tells."""
        return self._socket.state is State.OPEN

    def reason(self) -> str:
        """Why the connection is gone."""
        return str(self._gone()) if self.lost is None else self.lost

    # -------------------------------------------------------------- what a session asks (tensors.session.Link)

    def send(self, header: bytes) -> None:
        """Stream operations; blocks while the Node is behind."""
        frame = frames.pack(frames.OPERATIONS, header)
        with self._lock:
            try:
                self._socket.send(frame)
            except ConnectionClosed:
                raise self._gone() from None

    def request(self, message: Request) -> tuple[Reply, memoryview]:
        """Ask, and wait for the answer."""
        with self._lock:
            self._number += 1
            try:
                self._socket.send(request_frame(self._number, message))
                while True:
                    number, reply, payload = self._receive()
                    if number == self._number:
                        break
            except ConnectionClosed:
                raise self._gone() from None
        if isinstance(reply, Failed):
            error = from_wire(reply.code, reply.error, reply.value)
            if isinstance(error, SessionLostError):
                self.lost = reply.error  # the connection closes in a moment; the next use makes another
            raise error
        return reply, payload

    def _receive(self) -> tuple[int, Reply, memoryview]:
        data = self._socket.recv()
        if isinstance(data, str):
            raise GridError(f"{self.address.url} sent text into a session; is it a Node?")
        cut = frames.unpack(data)
        number, reply = frames.decode(cut.header, reply_decoder)
        if number == 0 and isinstance(reply, Failed):
            self.lost = reply.error
        return number, reply, cut.payload

    def _gone(self) -> SessionLostError:
        """Why the connection closed: what the Node said last, if it said anything."""
        try:
            while self.lost is None:
                self._receive()
        except (ConnectionClosed, GridError):
            pass
        self.lost = self.lost or "the connection to the Node was lost, and the session's values with it"
        return SessionLostError(self.lost)

    # -------------------------------------------------------------- bulk, by HTTP beside the stream

    def upload(self, identity: int, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        """Hand over a large tensor."""
        where = f"/data-centric/values/{identity}?dtype={dtype}&shape={quote(msgspec.json.encode(shape).decode())}"
        transfer(self.address, "PUT", where, data, length=len(data), headers={"X-Grid-Session": self.welcome.session})

    def download(self, ticket: str) -> bytearray:
        """Fetch the bytes of a large released value."""
        return transfer(
            self.address,
            "GET",
            f"/data-centric/released/{quote(ticket)}",
            headers={"X-Grid-Session": self.welcome.session},
        )

    def close(self) -> None:
        """End the session."""
        self.lost = self.lost or "the session was closed here"
        self._until_closed.close()
