"""The client's WebSocket to a Node: one connection is one session. Knows no tensors."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

import msgspec
from websockets.exceptions import InvalidHandshake, InvalidStatus

from grid_jupyter import __version__
from grid_jupyter.errors import (
    GridError,
    NodeUnavailableError,
    NotAuthenticatedError,
    SessionLostError,
    from_wire,
)
from grid_jupyter.link.attendant import attendant
from grid_jupyter.link.bulk import download, of_memory, upload
from grid_jupyter.link.http import Address, reported, untrusted
from grid_jupyter.link.websocket import Closed, WebSocket
from grid_jupyter.wire import frames
from grid_jupyter.wire.limits import PROTOCOL
from grid_jupyter.wire.messages import Caller, Failed, Hello, Reply, Request, Welcome, reply_decoder, request_frame

_OPEN_S = 15.0

T = TypeVar("T")


class WebSocketLink:
    """A connected session. `credential` gives the token of a user by name, for single calls.

    Methods may be called from any thread; each waits for its own answer. Interrupting one (KeyboardInterrupt) leaves
    a usable session: what was taken for sending is sent once, and an answer that nobody waits for any more is dropped.
    Once the connection is gone every call raises SessionLostError with the reason that the Node gave.
    """

    def __init__(
        self, address: Address, token: str, credential: Callable[[str], str], timeout_s: float | None = None
    ) -> None:
        """Connect and greet. `timeout_s` is the longest wait for an answer; None: as long as it takes.

        Raises NodeUnavailableError, NotAuthenticatedError, VersionMismatchError."""
        self.address = address
        self.credential = credential
        self.lost: str | None = None
        self._lock = threading.RLock()
        self._number = 0
        self._timeout_s = timeout_s
        self._socket = self._connect(token)
        reply, _ = self.request(Hello(protocol=PROTOCOL, software=f"grid-jupyter {__version__}"))
        if not isinstance(reply, Welcome):
            raise GridError(f"{address.url} did not welcome us; its version may differ")
        self.welcome = reply
        attendant.add(self)

    def _connect(self, token: str) -> WebSocket:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            return WebSocket(self.address, "/data-centric/session", headers, _OPEN_S)
        except InvalidStatus as error:
            raise reported(error.response.status_code, bytes(error.response.body or b""), self.address.url) from None
        except ssl.SSLCertVerificationError:
            raise untrusted(self.address) from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise NodeUnavailableError(
                f"{self.address.url} does not answer ({type(error).__name__}): is the Node running, and is the "
                f"address right?"
            ) from None

    @property
    def caller(self) -> Caller:
        """Who the Node takes this session's caller for."""
        return self.welcome.caller

    def become(self, caller: Caller) -> None:
        """The session's caller is another one now."""
        self.welcome = msgspec.structs.replace(self.welcome, caller=caller)

    def is_open(self) -> bool:
        """Whether the connection still stands, as far as what came tells."""
        self.attend()
        return self._socket.is_open

    def reason(self) -> str:
        """Why the connection is gone."""
        return str(self._gone()) if self.lost is None else self.lost

    def attend(self) -> bool:
        """Answer pings, and learn that the connection was closed, unless somebody uses it (link/attendant.py)."""
        if self._lock.acquire(blocking=False):
            try:
                self._socket.look()
                while (data := self._socket.received()) is not None:
                    self._decode(data)
                if not self._socket.is_open:
                    self._socket.close()
            except (GridError, Closed):
                self._socket.close()
            finally:
                self._lock.release()
        return False

    # -------------------------------------------------------------- what a session asks (tensors.session.Link)

    def send(self, header: bytes, number: int = 0, more: bool = False) -> None:
        """Stream operations; blocks while the Node is behind. A number that was sent before is not sent again.
        With `more`, a request follows at once and takes them along."""
        with self._lock:
            try:
                if not self._socket.is_open:
                    raise self._gone()
                self._socket.put(frames.pack(frames.OPERATIONS, header), number)
                if not more:
                    self._socket.push()
            except Closed:
                raise self._gone() from None

    def request(self, message: Request) -> tuple[Reply, memoryview]:
        """Ask, and wait for the answer."""
        with self._lock:
            if not self._socket.is_open:
                raise self._gone()
            self._number += 1
            try:
                self._socket.put(request_frame(self._number, message))
                self._socket.push()
                while True:
                    number, reply, payload = self._decode(self._socket.receive(self._timeout_s))
                    if number == self._number:  # else nobody waits for it any more
                        break
            except TimeoutError:
                self.lost = f"{self.address.url} did not answer within {self._timeout_s:g} s"
                self._socket.close()
                raise SessionLostError(self.lost) from None
            except Closed:
                raise self._gone() from None
        if isinstance(reply, Failed):
            error = from_wire(reply.code, reply.error, reply.value)
            if isinstance(error, SessionLostError):
                self.lost = reply.error  # the connection closes in a moment; the next use makes another
            raise error
        return reply, payload

    def _decode(self, data: memoryview) -> tuple[int, Reply, memoryview]:
        cut = frames.unpack(data)
        number, reply = frames.decode(cut.header, reply_decoder)
        if number == 0 and isinstance(reply, Failed):
            self.lost = reply.error
        return number, reply, cut.payload

    def _gone(self) -> SessionLostError:
        """Why the connection closed: what the Node said last, if it said anything."""
        try:
            while self.lost is None:
                self._decode(self._socket.receive())
        except (Closed, GridError):
            pass
        self._socket.close()
        self.lost = self.lost or "the connection to the Node was lost, and the session's values with it"
        return SessionLostError(self.lost)

    # -------------------------------------------------------------- bulk, by HTTP beside the stream

    def upload(self, identity: int, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        """Hand over a large tensor."""
        query = f"?dtype={dtype}&shape={quote(msgspec.json.encode(shape).decode())}"
        where = f"/data-centric/values/{identity}"
        self._bulk(lambda: upload(self.address, where, query, of_memory(data), len(data), self._secret, "sending"))

    def download(self, ticket: str) -> memoryview:
        """Fetch the bytes of a large released value."""
        where = f"/data-centric/released/{quote(ticket)}"
        return self._bulk(lambda: download(self.address, where, self._secret, "fetching"))

    @property
    def _secret(self) -> dict[str, str]:
        return {"X-Grid-Session": self.welcome.session}

    def _bulk(self, transfer: Callable[[], T]) -> T:
        """A transfer fails with its session, and with its session's reason."""
        try:
            return transfer()
        except (NodeUnavailableError, NotAuthenticatedError):
            if self.lost is None and self.is_open():
                raise
            raise self._gone() from None

    def close(self) -> None:
        """End the session."""
        self.lost = self.lost or "the session was closed here"
        alone = self._lock.acquire(timeout=1.0)  # another thread may wait for an answer; it learns of this then
        try:
            self._socket.close()
        finally:
            if alone:
                self._lock.release()
