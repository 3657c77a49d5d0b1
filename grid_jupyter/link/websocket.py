"""The client's end of one WebSocket, without a thread of its own: messages out, messages in. Knows no requests.

A KeyboardInterrupt may come between any two steps of the main thread. So whatever leaves or enters does so in
steps that either happened or did not (each is one call into C), and may be repeated: an interrupted call loses
nothing that it took, sends nothing twice, and the next call goes on where it stopped.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode, apply_mask  # type: ignore[attr-defined]  # the quicker one of its two
from websockets.protocol import State
from websockets.uri import parse_uri

from grid_jupyter.errors import GridError
from grid_jupyter.link.http import Address
from grid_jupyter.wire.limits import MAX_FRAME_BYTES
from grid_jupyter.wire.websocket import WHOLE_BINARY, binary_head, read_head

_PART = 64 << 10
_MAX_ANSWER_BYTES = 64 << 10  # of a refused handshake
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_KEEPALIVE = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4))
_Outgoing = tuple[int, bytes]


class Closed(Exception):
    """The connection is gone; the text says so, for who has no better reason."""


class WebSocket:
    """A connected WebSocket. One thread at a time may use it: its owner holds a lock."""

    def __init__(self, address: Address, path: str, headers: dict[str, str], open_s: float) -> None:
        """Connect. Raises OSError (also for TLS), InvalidHandshake."""
        self.is_open = True
        self._out: collections.deque[_Outgoing] = collections.deque()
        self._delivered = 0  # the last number that is out
        self._train: tuple[tuple[_Outgoing, ...], bytes, list[int]] | None = None  # what is being sent, and how far
        self._in: list[bytes] = []
        self._socket = _connect(address, path, headers, open_s)
        self._socket.setblocking(False)
        self._decrypted = self._socket.pending if isinstance(self._socket, ssl.SSLSocket) else None
        self._readable, self._either = select.poll(), select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._either.register(self._socket, select.POLLIN | select.POLLOUT)

    # -------------------------------------------------------------- out

    def put(self, message: bytes, number: int = 0) -> None:
        """Take a message, to be sent in order. One with a number that was taken before is not taken again."""
        if number and (number <= self._delivered or any(number <= taken for taken, _ in self._out)):
            return
        self._out.append((number, _masked(message)))

    def push(self) -> None:
        """Send all that was taken; waits while the other side is behind. Raises Closed."""
        while not self._push():
            self._either.poll()
            self._take()  # so that pings are answered, and the other side is not waiting for us in turn

    def _push(self) -> bool:
        """Send what goes at once; whether that was all."""
        while True:
            train = self._train
            if train is None:
                if not self._out:
                    return True
                waiting = tuple(self._out)
                train = self._train = (waiting, b"".join([data for _, data in waiting]), [])
            waiting, data, sent = train
            done = sum(sent)
            if done < len(data):
                try:
                    # the count is in the list when the call returns: an interrupt cannot come between
                    sent.extend(map(self._socket.send, (memoryview(data)[done:] if done else data,)))
                except _LATER:
                    return False
                except (OSError, ValueError) as error:
                    while self.is_open and self._take():
                        pass  # the other side may have said why
                    self.is_open = False
                    raise Closed(f"sending failed ({type(error).__name__})") from error
                continue
            for one in waiting:
                if self._out and self._out[0] is one:
                    self._delivered = one[0] or self._delivered
                    self._out.popleft()
            self._train = None

    # -------------------------------------------------------------- in

    def receive(self, timeout_s: float | None = None) -> memoryview:
        """The next message; waits for it, and at most so long for something to come.

        Raises Closed, TimeoutError, GridError for what is no binary message.
        """
        while True:
            message = self.received() if self._in else None
            if message is not None:
                return message
            if not self.is_open:
                raise Closed("the other side closed the connection")
            waiting = not (self._decrypted and self._decrypted())
            if waiting and not self._readable.poll(None if timeout_s is None else timeout_s * 1000):
                raise TimeoutError
            self._take()

    def received(self) -> memoryview | None:
        """The next message that is here already, if any; pings and the like are seen to. Raises GridError."""
        while self._in:
            data = self._in[0] if len(self._in) == 1 else b"".join(self._in)
            found = _cut(data)
            if found is None:
                if len(self._in) > 1:
                    self._in[:] = [data]
                return None
            opcode, payload, end = found
            self._in[:] = [data[end:]] if end < len(data) else []
            if opcode == Opcode.BINARY:
                return payload
            if opcode == Opcode.TEXT:
                raise GridError("text came where binary messages are expected")
            self._control(opcode, bytes(payload))
        return None

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.PING:
            self._out.append((0, Frame(Opcode.PONG, payload).serialize(mask=True)))
            self._push()
        elif opcode == Opcode.CLOSE and self.is_open:
            self.is_open = False
            self._say_goodbye(payload[:2])

    def look(self) -> None:
        """Take in what has come, without waiting."""
        if self.is_open:
            self._take()

    def _take(self) -> bool:
        """Take in what has come; whether there was anything."""
        try:
            self._in.extend(map(self._socket.recv, (_PART,)))
        except _LATER:
            return False
        except (OSError, ValueError):
            self.is_open = False
            return False
        if self._in and not self._in[-1]:
            self.is_open = False
            self._in.pop()
            return False
        return True

    # -------------------------------------------------------------- the end

    def _say_goodbye(self, code: bytes) -> None:
        try:
            self._out.append((0, Frame(Opcode.CLOSE, code).serialize(mask=True)))
            self._push()
        except (Closed, OSError):
            pass  # the other side was faster

    def close(self) -> None:
        """End the connection. Does nothing the second time."""
        if self.is_open:
            self.is_open = False
            self._say_goodbye((1000).to_bytes(2, "big"))
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # who waits for it in another thread wakes up
        self._socket.close()


def _cut(data: bytes) -> tuple[int, memoryview, int] | None:
    """The first message in `data`: opcode, payload, and where it ends. None if it is not whole yet.

    Raises GridError for one that is too long, or masked, which only a client's may be.
    """
    if len(data) > 1 and data[0] == WHOLE_BINARY and data[1] < 126:  # most answers: the same as below, in short
        end = 2 + data[1]
        return (Opcode.BINARY, memoryview(data)[2:end], end) if len(data) >= end else None
    pieces: list[memoryview] = []
    kind, end = -1, 0
    for fin, opcode, begin, end in _frames(data):
        piece = memoryview(data)[begin:end]
        if opcode & 8:  # a control frame, which may come between the pieces of a message: it is told first
            if pieces:
                raise GridError("a control frame came in the middle of a message")
            return opcode, piece, end
        kind = opcode if kind < 0 else kind
        pieces.append(piece)
        if sum(map(len, pieces)) > MAX_FRAME_BYTES:
            raise GridError(f"a message is over the limit of {MAX_FRAME_BYTES} bytes")
        if fin:
            return kind, piece if len(pieces) == 1 else memoryview(b"".join(pieces)), end
    return None


def _masked(message: bytes) -> bytes:
    """A binary message as the one frame that a client sends."""
    mask = os.urandom(4)
    return b"".join((binary_head(len(message), mask), apply_mask(message, mask)))


def _frames(data: bytes) -> Iterator[tuple[bool, int, int, int]]:
    """Whole frames: the last of their message?, opcode, begin and end of the payload."""
    at = 0
    while (head := read_head(data, at)) is not None:
        if head.mask:
            raise GridError("a frame is masked, which only a client's may be")
        if head.end - head.begin > MAX_FRAME_BYTES:
            raise GridError(f"a message is over the limit of {MAX_FRAME_BYTES} bytes")
        if len(data) < head.end:
            return
        yield bool(head.first & 0x80), head.first & 0x0F, head.begin, head.end
        at = head.end


# ------------------------------------------------------------------ connecting


def _connect(address: Address, path: str, headers: dict[str, str], open_s: float) -> socket.socket:
    deadline = time.monotonic() + open_s
    made = socket.create_connection((address.host, address.port), open_s)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that went away is noticed
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if address.tls is not None:
            made = address.tls.wrap_socket(made, server_hostname=address.host)
        _shake_hands(made, address, path, headers, deadline)
    except BaseException:
        made.close()
        raise
    return made


def _shake_hands(made: socket.socket, address: Address, path: str, headers: dict[str, str], deadline: float) -> None:
    protocol = ClientProtocol(parse_uri(f"{address.websocket_url}{path}"), max_size=MAX_FRAME_BYTES)
    request = protocol.connect()
    for name, value in headers.items():
        request.headers[name] = value
    protocol.send_request(request)
    made.sendall(b"".join(protocol.data_to_send()))
    taken = 0
    ended = False
    # one byte at a time, for what follows the handshake is not the protocol's to take
    while protocol.state is State.CONNECTING and protocol.handshake_exc is None and taken < _MAX_ANSWER_BYTES:
        made.settimeout(max(0.001, deadline - time.monotonic()))
        data = made.recv(1)
        taken += 1
        if data:
            protocol.receive_data(data)
        elif ended:
            break
        else:
            protocol.receive_eof()
            ended = True
    if protocol.state is State.OPEN:
        return
    error = protocol.handshake_exc
    raise error if isinstance(error, (InvalidHandshake, InvalidStatus)) else InvalidHandshake("no WebSocket answers")
