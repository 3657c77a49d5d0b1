"""The client's WebSocket to a Node: one connection is one session. Knows no tensors."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
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
from grid_jupyter.link.outbox import Outbox
from grid_jupyter.link.room import Room
from grid_jupyter.link.websocket import Closed, WebSocket
from grid_jupyter.wire import frames
from grid_jupyter.wire.limits import PROTOCOL
from grid_jupyter.wire.messages import (
    Caller,
    Failed,
    Hello,
    Reply,
    Request,
    Resumed,
    Status,
    Welcome,
    reply_decoder,
    request_frame,
)

_OPEN_S = 15.0
RESUME_S = 10.0
"""How long a connection that was lost is tried again, before the session is given up."""

_MOST_LATER = 8
"""Requests that nobody waits for yet, of which the answers are kept."""

T = TypeVar("T")


class _Later:
    """What becomes of a request that nobody waits for yet."""

    __slots__ = ("payload", "position", "reply")

    def __init__(self) -> None:
        self.position = 0  # of its frame
        self.reply: Reply | None = None
        self.payload = memoryview(b"")


class WebSocketLink:
    """A connected session. `credential` gives the token of a user by name, for single calls.

    Methods may be called from any thread; each waits for its own answer. Interrupting one (KeyboardInterrupt) leaves
    a usable session: what was taken for sending is sent once, and an answer that nobody waits for any more is dropped.
    A connection that is lost is made again, and the session goes on where it was: the Node keeps it for a while, and
    says which frames it has taken. Once the session is gone every call raises SessionLostError with the reason that
    the Node gave.
    """

    def __init__(
        self,
        address: Address,
        token: str,
        credential: Callable[[str], str],
        timeout_s: float | None = None,
        *,
        resumes: bool = True,
    ) -> None:
        """Connect and greet. `timeout_s` is the longest wait for an answer; None: as long as it takes. `resumes` says
        whether the other side keeps a session whose connection was lost.

        Raises NodeUnavailableError, NotAuthenticatedError, VersionMismatchError."""
        self.address = address
        self.credential = credential
        self.lost: str | None = None
        self.lost_at: float | None = None  # when it was found that the connection is lost
        self._lock = threading.RLock()
        self._number = 0
        self._timeout_s = timeout_s
        self._resumes = resumes
        self._token = token
        self._outbox = Outbox()
        self._later: dict[int, _Later] = {}  # by request: what was asked, and nobody waits for yet
        self._taking = False  # still so at the next time: an interrupt came, and an answer may be lost with it
        self._welcome: Welcome | None = None
        self._socket = self._connect()
        reply, _ = self.request(Hello(protocol=PROTOCOL, software=f"grid-jupyter {__version__}"))
        if not isinstance(reply, Welcome):
            raise GridError(f"{address.url} did not welcome us; its version may differ")
        self._welcome = reply
        attendant.add(self)

    @property
    def welcome(self) -> Welcome:
        """What the Node said of itself and of the session. Raises SessionLostError before it has."""
        if self._welcome is None:
            raise SessionLostError("the Node has not answered yet")
        return self._welcome

    def _connect(self, session: str = "") -> WebSocket:
        """A connection; with a session's secret, one that goes on with it."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if session:
            headers["X-Grid-Session"] = session
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

    def become(self, caller: Caller, token: str) -> None:
        """The session's caller is another one now, by this token."""
        self._token = token
        self._welcome = msgspec.structs.replace(self.welcome, caller=caller)

    def is_open(self) -> bool:
        """Whether the session still stands, as far as what came tells; a connection that was lost is made again."""
        self.attend()
        if self._socket.is_open:
            return True
        with self._lock:
            try:
                self._hand_over(push=True)
            except SessionLostError:
                return False
            return True

    def reason(self) -> str:
        """Why the connection is gone."""
        return str(self._gone())

    def attend(self) -> bool:
        """Answer pings, and learn that the connection was closed, unless somebody uses it (link/attendant.py)."""
        if self._lock.acquire(blocking=False):
            try:
                self._begin_taking()
                self._socket.look()
                while (data := self._socket.received()) is not None:
                    self._decode(data)
                self._taking = False
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
            self._outbox.enter(frames.pack(frames.OPERATIONS, header), number)
            self._hand_over(push=not more)
            if self._outbox.is_long:
                self.request(Status())  # when it is answered, the frames before it need not be kept

    def request(self, message: Request) -> tuple[Reply, memoryview]:
        """Ask, and wait for the answer."""
        with self._lock:
            self._number += 1
            position = self._outbox.enter(request_frame(self._number, message))
            reply, payload = self._answer(self._number)
            self._outbox.taken(position)
        return self._told(reply), payload

    def ask_later(self, message: Request, payload: bytes | memoryview = b"") -> int:
        """Ask, and do not wait; the number by which `answer` gives the answer. Bytes may go along."""
        with self._lock:
            while len(self._later) >= _MOST_LATER:
                del self._later[next(iter(self._later))]
            self._number += 1
            number = self._number
            self._later[number] = _Later()
            self._later[number].position = self._outbox.enter(request_frame(number, message, payload))
            self._hand_over(push=True)
            return number

    def answer(self, number: int) -> tuple[Reply, memoryview] | None:
        """Wait for the answer to what was asked earlier; None if it is lost, by an interrupt perhaps."""
        with self._lock:
            if self._taking:
                self._later.clear()
            later = self._later.get(number)
            if later is None:
                return None
            reply, payload = self._answer(number)
            del self._later[number]
            self._outbox.taken(later.position)
        return self._told(reply), payload

    def _told(self, reply: Reply) -> Reply:
        """Raises what the Node reported, if it did."""
        if isinstance(reply, Failed):
            error = from_wire(reply.code, reply.error, reply.value)
            if isinstance(error, SessionLostError):
                self.lost = reply.error  # the connection closes in a moment; the next use makes another
            raise error
        return reply

    def _answer(self, expected: int) -> tuple[Reply, memoryview]:
        self._begin_taking()
        while True:
            self._hand_over(push=True)
            try:
                while True:
                    later = self._later.get(expected)
                    if later is not None and later.reply is not None:
                        self._taking = False
                        return later.reply, later.payload
                    number, reply, payload = self._decode(self._socket.receive(self._timeout_s))
                    if number == expected:  # else nobody waits for it any more, or not yet
                        self._taking = False
                        return reply, payload
            except TimeoutError:
                self.lost = f"{self.address.url} did not answer within {self._timeout_s:g} s"
                self._socket.close()
                raise SessionLostError(self.lost) from None
            except Closed:
                self._resume()

    def _hand_over(self, *, push: bool) -> None:
        """Give the connection what is entered; where it is gone, the session goes on over another one."""
        while True:
            try:
                if not self._socket.is_open:
                    raise Closed("the connection is gone")
                self._outbox.hand(self._socket)
                if push:
                    self._socket.push()
                return
            except Closed:
                self._resume()

    def _begin_taking(self) -> None:
        """From here until `_taking` is false again an interrupt may lose an answer that came."""
        if self._taking:
            self._later.clear()
        self._taking = True

    def _decode(self, data: memoryview) -> tuple[int, Reply, memoryview]:
        cut = frames.unpack(data)
        number, reply = frames.decode(cut.header, reply_decoder)
        if number == 0 and isinstance(reply, Failed):
            self.lost = reply.error
        later = self._later.get(number)
        if later is not None:
            later.reply, later.payload = reply, cut.payload
        return number, reply, cut.payload

    def _resume(self) -> None:
        """Connect again and go on with the session, which its Node keeps for a while. Raises SessionLostError."""
        self._hear_out()
        self._socket.close()
        self.lost_at = began = time.monotonic()
        pause = 0.05
        while self.lost is None:
            try:
                made = self._connect(self.welcome.session)
                _, reply, _ = self._decode(made.receive(RESUME_S))
            except (NodeUnavailableError, Closed, TimeoutError):
                if time.monotonic() > began + RESUME_S:
                    break
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            except GridError as error:
                self.lost = str(error)
            else:
                if isinstance(reply, Resumed):
                    self._outbox.begin_again(reply.taken)
                    self._socket = made
                    return
                made.close()
                self.lost = self.lost or "the Node did not go on with the session"
        raise self._gone()

    def _hear_out(self) -> None:
        """What the Node said last, before it closed."""
        try:
            while self.lost is None:
                self._decode(self._socket.receive())
        except (Closed, GridError):
            pass
        if self.lost is None and self._welcome is None:
            self.lost = "the connection was lost before it was answered"
        if self.lost is None and not self._resumes:
            self.lost = f"the connection to {self.address.url} was lost"

    def _gone(self) -> SessionLostError:
        self.lost = self.lost or "the connection to the Node was lost, and the session's values with it"
        return SessionLostError(self.lost)

    # -------------------------------------------------------------- bulk, by HTTP beside the stream

    def upload(self, identity: int, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        """Hand over a large tensor."""
        query = f"?dtype={dtype}&shape={quote(msgspec.json.encode(shape).decode())}"
        where = f"/data-centric/values/{identity}"
        self._bulk(lambda: upload(self.address, where, query, of_memory(data), len(data), self._secret, "sending"))

    def download(self, ticket: str, room: Room | None = None) -> memoryview:
        """Fetch the bytes of a large released value; into `room`, if there is one."""
        where = f"/data-centric/released/{quote(ticket)}"
        return self._bulk(lambda: download(self.address, where, self._secret, "fetching", room))

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

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # it was never connected, or the interpreter is going down
            self._socket.close()  # says goodbye: the Node does not wait for a client that nobody has any more

    def close(self) -> None:
        """End the session."""
        self.lost = self.lost or "the session was closed here"
        alone = self._lock.acquire(timeout=1.0)  # another thread may wait for an answer; it learns of this then
        try:
            self._socket.close()
        finally:
            if alone:
                self._lock.release()
