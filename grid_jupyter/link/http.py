"""HTTP from the client's side: short JSON calls, and bulk bytes up and down. Knows no tensors.

Connections go straight to the address, through no proxy of the environment: a Node is usually near.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import msgspec

from grid_jupyter.errors import BadRequest, GridError, NodeUnavailableError, from_wire

TIMEOUT_S = 60.0
"""How long a call waits for the next bytes."""
_CHUNK = 1 << 20

T = TypeVar("T")


class WholeHead(http.client.HTTPResponse):
    """An answer whose head arrived whole. Where the connection breaks inside of it http.client takes what is there for
    all of it: a length is then absent, or has lost its last digits."""

    def begin(self) -> None:
        """Read the head. Raises RemoteDisconnected where it ends early."""
        arriving = self.fp
        self.fp = cast(BufferedReader, _WholeLines(arriving))
        try:
            super().begin()
        finally:
            if self.fp:  # else it was no HTTP, and is closed
                self.fp = arriving


class _WholeLines:
    """Reads lines that have an end."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(limit)
        if len(line) < limit and not line.endswith(b"\n"):
            raise http.client.RemoteDisconnected("the connection broke inside the head of an answer")
        return line

    def close(self) -> None:
        """Let go what is no HTTP."""
        self._file.close()


class Address:
    """An http:// or https:// address, checked; `ca_file` names the certificates to trust, if not the system's."""

    def __init__(self, url: str, ca_file: str | Path | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """`timeout_s` is how long a call waits for the next bytes. Raises BadRequest."""
        self.timeout_s = timeout_s
        parts = urlsplit(url if "//" in url else f"http://{url}")
        scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
        if scheme not in ("http", "https") or not parts.hostname:
            raise BadRequest(f"{url!r} is not an address: give one such as http://localhost:3000")
        try:
            self.port = parts.port or (443 if scheme == "https" else 80)
        except ValueError:
            raise BadRequest(f"{url!r} has no valid port") from None
        self.host = parts.hostname
        self.path = parts.path.rstrip("/")
        self.tls = ssl.create_default_context(cafile=ca_file) if scheme == "https" else None
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{scheme}://{shown}:{self.port}{self.path}"
        self.websocket_url = self.url.replace("http", "ws", 1)

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own for one call."""
        made: http.client.HTTPConnection
        if self.tls is not None:
            made = http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s, context=self.tls)
        else:
            made = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        made.response_class = WholeHead
        return made


class SocketAddress(Address):
    """A Unix socket of this machine where HTTP is spoken: the owner's door of a Node."""

    def __init__(self, path: str | Path) -> None:
        super().__init__("http://localhost")
        self._path = str(path)

    def connect(self) -> http.client.HTTPConnection:
        return UnixConnection(self._path, self.timeout_s)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    response_class = WholeHead

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(
    address: Address,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    token: str = "",
    kind: type[T] | Any = Any,
) -> T:
    """One JSON call; the answer as `kind`. Raises what the other side reported, or NodeUnavailableError."""
    data = None if body is None else msgspec.json.encode(body)
    sent = {**(headers or {}), **({} if data is None else {"Content-Type": "application/json"})}
    answer = transfer(address, method, path, data, headers=sent, token=token)
    try:
        return msgspec.json.decode(bytes(answer), type=kind)
    except msgspec.MsgspecError:
        raise GridError(f"{address.url} answered with something else than expected; its version may differ") from None


def transfer(
    address: Address,
    method: str,
    path: str,
    body: bytes | memoryview | Iterable[bytes | memoryview] | None = None,
    *,
    length: int | None = None,
    headers: dict[str, str] | None = None,
    token: str = "",
) -> bytearray:
    """One call with bytes both ways. A body that is not bytes comes with its `length`. Raises as `call` does."""
    return _exchange(address, method, path, body, length=length, headers=headers, token=token)[1]


def fetch(address: Address, path: str, *, token: str) -> tuple[dict[str, str], bytearray]:
    """The headers and the bytes of an answer to GET. Raises as `call` does."""
    return _exchange(address, "GET", path, None, length=None, headers=None, token=token)


def _exchange(
    address: Address,
    method: str,
    path: str,
    body: bytes | memoryview | Iterable[bytes | memoryview] | None,
    *,
    length: int | None,
    headers: dict[str, str] | None,
    token: str,
) -> tuple[dict[str, str], bytearray]:
    sent = dict(headers or {})
    if token:
        sent["Authorization"] = f"Bearer {token}"
    if length is not None:
        sent["Content-Length"] = str(length)
    connection = address.connect()
    try:
        try:
            connection.request(method, address.path + path, body=body, headers=sent)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent: the answer says why
        response = connection.getresponse()
        data = _read(address, response)
        return dict(response.headers.items()), data
    except ssl.SSLCertVerificationError:
        raise untrusted(address) from None
    except (OSError, http.client.HTTPException) as error:
        raise NodeUnavailableError(
            f"{address.url} does not answer ({type(error).__name__}): is it running, and is the address right?"
        ) from None
    finally:
        connection.close()


def _read(address: Address, response: http.client.HTTPResponse) -> bytearray:
    size = response.length
    if response.status != 200:
        raise reported(response.status, response.read(_CHUNK), address.url)
    if size is None:
        return bytearray(response.read())
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = response.readinto(view[: 8 * _CHUNK])
        if not count:
            raise http.client.IncompleteRead(b"")
        view = view[count:]
    return data


def untrusted(address: Address) -> NodeUnavailableError:
    """The error for a certificate that nobody whom we trust has signed."""
    return NodeUnavailableError(
        f"the certificate of {address.url} is not trusted here: give the file that its owner gave you as ca_file="
    )


def reported(status: int, body: bytes, url: str) -> GridError:
    """The error that an answer with another status than 200 tells of."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    if isinstance(told, dict) and "error" in told:
        return from_wire(told.get("code"), told["error"])
    return GridError(f"{url} answered with status {status}; is it a Node or Network of a grid?")
