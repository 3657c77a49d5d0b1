"""A connection that is kept for one exchange after the other: a request is one write, and a plain answer is read here.

http.client takes longer to write and to parse a head than a device takes for a step of a small model. What is anything
but plain (parts of unknown length, interim answers, lines that are continued) it still reads.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

from grid_jupyter.link.http import Address, WholeHead

_ROOM = 1 << 16
"""Bytes that are asked for at a time until the head is here; http.client takes no longer line either."""
_TOGETHER = 1 << 16
"""Length of a body that goes with its head."""
LARGE = 1 << 20
"""Length of an answer that comes into the memory of the one before."""
_PLAIN = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [^\r\n]*)?\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)*)\r\n")
_END = re.compile(rb"\n\r?\n")
_MOST_LINES = 100
"""Of a head, as http.client has it."""
_LENGTH = re.compile(rb"[0-9]{1,15}")
_NO_PART_OF_A_URL = re.compile(r"[^!-~]")

Body = bytes | bytearray | memoryview


class Answer(NamedTuple):
    """An answer whose body is here. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes | bytearray


class Kept:
    """A connection to an address, made when it is needed. One thread at a time."""

    def __init__(self, address: Address, *, reuses: bool = False) -> None:
        """`reuses`: a large answer comes into the memory of the one before, whose pages are there already."""
        self._address, self._reuses = address, reuses
        self._connection: http.client.HTTPConnection | None = None
        self._room = bytearray(_ROOM)
        self._buffer = bytearray()
        name = f"[{address.host}]" if ":" in address.host else address.host
        usual = 80 if address.tls is None else 443
        self._host = name if address.port == usual else f"{name}:{address.port}"

    def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def exchange(
        self,
        method: str,
        path: str,
        body: Body | None,
        headers: Mapping[str, str],
        seen: Callable[[Body], object] | None = None,
    ) -> Answer:
        """Ask for a path below the address; `seen` is given the bytes of the answer as they come, in order. Raises
        OSError, http.client.HTTPException; the connection is to be closed then."""
        if self._connection is None:
            self._connection = self._address.connect()
            self._connection.connect()
        sock: socket.socket = self._connection.sock
        head = self._head(method, path, body, headers)
        if body is None or len(body) > _TOGETHER:
            sock.sendall(head)
        if body is not None:
            sock.sendall(body if len(body) > _TOGETHER else b"".join((head, body)))
        return self._answer(sock, method, seen or _nothing)

    def _head(self, method: str, path: str, body: Body | None, headers: Mapping[str, str]) -> bytes:
        whole = self._address.path + path
        if _NO_PART_OF_A_URL.search(whole):
            raise http.client.InvalidURL("a path has characters that must be quoted")
        lines = [f"{method} {whole} HTTP/1.1", f"Host: {self._host}", "Accept-Encoding: identity"]
        if body is not None or method in ("POST", "PATCH", "PUT"):
            lines.append(f"Content-Length: {len(body or b'')}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join((*lines, "\r\n")).encode("ascii")

    def _answer(self, sock: socket.socket, method: str, seen: Callable[[Body], object]) -> Answer:
        room, have = memoryview(self._room), 0
        while have < _ROOM:
            count = sock.recv_into(room[have:])
            if not count:
                raise http.client.RemoteDisconnected("the connection ended without an answer")
            have += count
            if _END.search(self._room, max(0, have - count - 3), have) is not None:
                break
        plain = None if method == "HEAD" else _plain(self._room, have)
        if plain is None:
            answer = self._other(sock, method, bytes(room[:have]))
            seen(answer.data)
            return answer
        status, headers, begin, length = plain
        if have > begin + length:  # more than was asked for: what comes next is not known to be an answer
            self.close()
        if have >= begin + length:
            whole = bytes(room[begin : begin + length])
            seen(whole)
            return Answer(status, headers, whole)
        data = self._memory(length)
        view = memoryview(data)
        view[: have - begin] = room[begin:have]
        seen(view[: have - begin])
        self._fill(view[have - begin :], sock, seen)
        return Answer(status, headers, data)

    def _fill(self, view: memoryview, sock: socket.socket, seen: Callable[[Body], object]) -> None:
        while view:
            count = sock.recv_into(view)
            if not count:
                raise http.client.IncompleteRead(b"", len(view))
            seen(view[:count])  # while it is in the processor's cache
            view = view[count:]

    def _memory(self, length: int) -> bytearray:
        if length < LARGE or not self._reuses:
            return bytearray(length)
        if len(self._buffer) != length:
            self._buffer = bytearray(length)
        return self._buffer

    def _other(self, sock: socket.socket, method: str, begun: bytes) -> Answer:
        response = WholeHead(cast(socket.socket, _Begun(sock, begun)), method=method)
        response.begin()
        if response.will_close:
            self._connection, closing = None, self._connection
        else:
            closing = None
        try:
            length = response.length or 0
            if length < LARGE or not self._reuses:
                data: bytes | bytearray = response.read()
            else:
                data = self._memory(length)
                view = memoryview(data)
                while view:
                    count = response.readinto(view)
                    if not count:
                        raise http.client.IncompleteRead(b"", len(view))
                    view = view[count:]
        finally:
            if closing is not None:
                closing.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, headers, data)


def _nothing(data: Body) -> None:
    """Nobody looks."""


def _plain(room: bytearray, have: int) -> tuple[int, dict[str, str], int, int] | None:
    """Status, headers, where the body begins and how long it is; None where http.client is to read it."""
    found = _PLAIN.match(room, 0, have)
    if found is None:
        return None
    status, lines = int(found[1]), found[2].split(b"\r\n")[:-1]
    headers = {name.lower(): value.strip(b" \t") for name, _, value in (line.partition(b":") for line in lines)}
    length = headers.get(b"content-length", b"")
    if (
        len(headers) < len(lines)
        or len(lines) > _MOST_LINES
        or status in (204, 304)
        or b"transfer-encoding" in headers
        or headers.get(b"connection", b"keep-alive").lower() != b"keep-alive"
        or _LENGTH.fullmatch(length) is None
    ):
        return None
    told = {name.decode("ascii"): value.decode("latin-1") for name, value in headers.items()}
    return status, told, found.end(), int(length)


class _Begun:
    """A socket of which some bytes were read already, as far as http.client needs it."""

    def __init__(self, sock: socket.socket, begun: bytes) -> None:
        self._raw = _Rest(sock, begun)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Read from where it is."""
        return io.BufferedReader(self._raw)


class _Rest(io.RawIOBase):
    def __init__(self, sock: socket.socket, begun: bytes) -> None:
        self._sock, self._begun = sock, memoryview(begun)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._begun:
            return self._sock.recv_into(buffer)
        part, self._begun = self._begun[: len(buffer)], self._begun[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
