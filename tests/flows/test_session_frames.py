"""The Node's end of a WebSocket, fed byte by byte: frames in pieces, many at once, and such as may not be."""

from __future__ import annotations

import base64
import os
import random
import socket
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import World
from node_world import PATIENCE_S, GridProcess
from raw_session import RawSession
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from grid_jupyter.wire import commands, frames, messages
from grid_jupyter.wire.limits import MAX_FRAME_BYTES, PROTOCOL

BINARY, PING, PONG, CLOSE = 2, 9, 10, 8


def framed(opcode: int, payload: bytes, *, last: bool = True, reserved: int = 0) -> bytes:
    """A masked frame."""
    length, mask = len(payload), os.urandom(4)
    head = bytes((opcode | 0x80 * last | reserved,))
    if length < 126:
        head += bytes((0x80 | length,))
    else:
        head += b"\xfe" + length.to_bytes(2, "big") if length < 1 << 16 else b"\xff" + length.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def asks(number: int, message: messages.Request) -> bytes:
    return messages.request_frame(number, message)


HELLO = asks(1, messages.Hello(protocol=PROTOCOL, software="by hand"))


class Wire:
    """A connection after the handshake."""

    def __init__(self, node: GridProcess) -> None:
        self.sock = socket.create_connection(("127.0.0.1", node.port), PATIENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET /data-centric/session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._came = b""
        while b"\r\n\r\n" not in self._came:
            self._came += self.sock.recv(1 << 16)
        assert b" 101 " in self._came
        self._came = self._came.partition(b"\r\n\r\n")[2]

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame but for pings; (-1, nothing) at the end of the connection."""
        while True:
            have = self._came
            if len(have) >= 2:
                length, begin = have[1], 2
                if length > 125:
                    begin = 4
                    length = int.from_bytes(have[2:4], "big")
                if len(have) >= begin + length:
                    self._came = have[begin + length :]
                    if have[0] & 15 != PING:
                        return have[0] & 15, have[begin : begin + length]
                    continue
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionError:
                return -1, b""
            if not data:
                return -1, b""
            self._came += data

    def reply(self) -> messages.Reply:
        opcode, payload = self.receive()
        assert opcode == BINARY
        return frames.decode(frames.unpack(payload).header, messages.reply_decoder)[1]


@pytest.fixture
def wire(bob: GridProcess) -> Iterator[Callable[[], Wire]]:
    made: list[Wire] = []

    def make() -> Wire:
        made.append(Wire(bob))
        return made[-1]

    yield make
    for one in made:
        one.sock.close()


def test_frames_may_come_byte_by_byte_in_fragments_and_many_at_once(wire: Callable[[], Wire]):
    dice = random.Random(5)  # noqa: S311 - where it is cut
    for _ in range(12):
        said = b""
        for message in (HELLO, *(asks(number, messages.Status()) for number in range(2, 12))):
            cuts = sorted(dice.randrange(len(message)) for _ in range(dice.randrange(3)))
            pieces = [message[a:b] for a, b in zip([0, *cuts], [*cuts, len(message)], strict=True)]
            for at, piece in enumerate(pieces):
                said += framed(BINARY if at == 0 else 0, piece, last=at == len(pieces) - 1)
                said += framed(PONG, b"unasked") if dice.random() < 0.3 else b""
        one = wire()
        while said:
            cut = dice.choice([1, 2, 3, 7, 50, 1000, len(said)])
            one.send(said[:cut])
            said = said[cut:]
        assert isinstance(one.reply(), messages.Welcome)
        for _ in range(10):
            assert isinstance(one.reply(), messages.SessionStatus)


def test_a_ping_between_the_pieces_of_a_message_is_answered(wire: Callable[[], Wire]):
    one = wire()
    one.send(framed(BINARY, HELLO[:9], last=False) + framed(PING, b"there?") + framed(0, HELLO[9:]))
    assert one.receive() == (PONG, b"there?")
    assert isinstance(one.reply(), messages.Welcome)


def test_a_message_as_large_as_may_be_is_taken_and_a_larger_one_ends_the_connection(wire: Callable[[], Wire]):
    one = wire()
    one.send(framed(BINARY, HELLO))
    assert isinstance(one.reply(), messages.Welcome)
    whole = frames.pack(frames.REQUEST, frames.encode((2, messages.Status())))
    whole += bytes(MAX_FRAME_BYTES - len(whole))  # what is behind a request's header means nothing
    one.send(framed(BINARY, whole[:-70_000], last=False) + framed(0, whole[-70_000:]))
    assert isinstance(one.reply(), messages.SessionStatus)
    one.send(framed(BINARY, whole, last=False) + framed(0, b"one more"))
    assert one.receive() == (CLOSE, (1009).to_bytes(2, "big") + b"message too big")


@pytest.mark.parametrize(
    "wrong",
    [
        framed(BINARY, HELLO, reserved=0x40),
        framed(PING, b"x" * 126),
        framed(PING, b"x", last=False),
        framed(0, b"nothing to go on with"),
        framed(BINARY, b"one", last=False) + framed(BINARY, b"two"),
        framed(3, b"an opcode that there is not"),
    ],
    ids=["a reserved bit", "a long ping", "a ping in pieces", "an end without a beginning", "two begun", "opcode 3"],
)
def test_what_breaks_the_rules_of_websockets_ends_the_connection(wire: Callable[[], Wire], wrong: bytes):
    one = wire()
    one.send(wrong)
    assert one.receive()[0] in (CLOSE, -1)


def test_many_answers_that_nobody_takes_for_a_while_come_whole_and_in_order_later(wire: Callable[[], Wire]):
    one, other = wire(), wire()
    one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
    data = os.urandom(60_000)
    put = frames.pack(frames.OPERATIONS, frames.encode([[commands.PUT, 7, "uint8", [len(data)], data]]))
    one.send(framed(BINARY, HELLO) + framed(BINARY, put))
    assert isinstance(one.reply(), messages.Welcome)
    numbers = range(2, 152)
    for number in numbers:
        one.send(framed(BINARY, asks(number, messages.Read(value=7))))
    other.send(framed(BINARY, HELLO))
    assert isinstance(other.reply(), messages.Welcome)
    for number in range(2, 302):  # the Node goes on with others meanwhile
        other.send(framed(BINARY, asks(number, messages.Status())))
        assert isinstance(other.reply(), messages.SessionStatus)
    for number in numbers:
        opcode, payload = one.receive()
        cut = frames.unpack(payload)
        assert opcode == BINARY
        assert frames.decode(cut.header, messages.reply_decoder)[0] == number
        assert cut.payload == data
    one.send(framed(BINARY, asks(1000, messages.Status())))
    assert isinstance(one.reply(), messages.SessionStatus)


def test_a_goodbye_is_answered(wire: Callable[[], Wire]):
    one = wire()
    one.send(framed(BINARY, HELLO) + framed(CLOSE, (1000).to_bytes(2, "big")))
    assert isinstance(one.reply(), messages.Welcome)
    assert one.receive() == (CLOSE, (1000).to_bytes(2, "big"))
    assert one.receive() == (-1, b"")


def test_a_stranger_who_opens_a_websocket_and_says_nothing_has_no_place_for_long(small_world: World):
    node = small_world.start("node", "Hush", "--allow-guests")
    front = node.address.replace("http", "ws") + "/"
    with (
        RawSession(node, greet=False) as silent,
        RawSession(node) as greeted,
        connect(front, proxy=None) as mute,
        connect(front, proxy=None) as asked,
    ):
        asked.send('{"type": "socket-ping"}')
        assert "alive" in asked.recv(PATIENCE_S)
        for one in (silent.socket, mute):
            with pytest.raises(ConnectionClosed) as ended:  # though its answers to pings come
                one.recv(PATIENCE_S)
            assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1008, "nothing was said")
        asked.send('{"type": "socket-ping"}')
        assert "alive" in asked.recv(PATIENCE_S)
        assert greeted.read(greeted.put(torch.ones(1))).item() == 1
