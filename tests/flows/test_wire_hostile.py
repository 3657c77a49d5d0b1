"""A stranger with a WebSocket and no manners: whatever is sent, others are served on, and the end has a reason."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from conftest import World
from node_world import GridProcess, until
from raw_session import RawSession
from websockets.exceptions import ConnectionClosed

from grid_jupyter import NodeClient
from grid_jupyter.errors import (
    GridError,
    InvalidMessageError,
    LimitExceededError,
    ObjectNotFoundError,
    OperationNotAllowedError,
    SessionLostError,
    VersionMismatchError,
)
from grid_jupyter.wire import commands as c
from grid_jupyter.wire import frames, messages
from grid_jupyter.wire.limits import MAX_FRAME_BYTES, MAX_HEADER_BYTES, MAX_RECORDED_COMMANDS, PROTOCOL

Intrude = Callable[..., RawSession]
NESTED = b"\x91" * 100_000


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[GridProcess]:
    """A Node of its own, whose log is read at the end: nothing hostile may reach a traceback."""
    made = world.start("node", "Target", "--allow-guests", "--session-memory", "300M", "--max-sessions", "12")
    made.user("Ana")
    yield made
    log = made.log.read_text()
    assert "Traceback" not in log, log
    assert "gjt1_" not in log
    assert "gji1_" not in log.replace("#gji1_", "", 1), "the first start shows the owner's invite, once"


@pytest.fixture(scope="module")
def bystander(node: GridProcess) -> Iterator[tuple[NodeClient, Any]]:
    """Somebody who computes all the while."""
    with node.client() as client:
        yield client, client.receive(torch.ones(3))


@pytest.fixture(autouse=True)
def others_are_served_on(node: GridProcess, bystander: tuple[NodeClient, Any]) -> Iterator[None]:
    """After every attack: the same process, the same session, its values still there, and room for a newcomer."""
    pid = node.pid
    yield
    client, value = bystander
    assert (value + 1).get().tolist() == [2, 2, 2]
    assert client.connected
    assert node.call("GET", "/data-centric/status")[0] == 200
    assert psutil.pid_exists(pid)
    with RawSession(node) as newcomer:
        assert newcomer.read(newcomer.put(torch.ones(1))).item() == 1


def header(kind: int, content: bytes) -> bytes:
    return struct.pack(">BI", kind, len(content)) + content


# ------------------------------------------------------------------ frames

HOSTILE_FRAMES: dict[str, bytes | str] = {
    "empty": b"",
    "shorter than a prefix": b"\x02\x00",
    "truncated": messages.request_frame(1, messages.Search())[:-3],
    "claims 4 GB of header": struct.pack(">BI", frames.REQUEST, 0xFFFFFFFF),
    "claims a header over the limit": struct.pack(">BI", frames.REQUEST, MAX_HEADER_BYTES + 1) + b"x" * 64,
    "of no kind": header(0, b""),
    "of an unknown kind": header(77, b"\x92\x01\x80"),
    "a reply": messages.reply_frame(1, messages.LoggedIn(caller=messages.Caller(user="Bob"))),
    "text": "hello",
    "text that is long": "x" * 100_000,
    "no msgpack": header(frames.REQUEST, b"\xc1\xc1\xc1"),
    "JSON": header(frames.REQUEST, b'[1, {"type": "search"}]'),
    "pickle": header(frames.REQUEST, b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system"),
    "an unknown message": header(frames.REQUEST, msgspec.msgpack.encode([1, {"type": "shutdown"}])),
    "an unknown field": header(frames.REQUEST, msgspec.msgpack.encode([1, {"type": "search", "user": "Bob"}])),
    "a wrong type": header(frames.REQUEST, msgspec.msgpack.encode([1, {"type": "read", "value": "1"}])),
    "a list of 4 billion": header(frames.REQUEST, b"\x92\x01\x82\xa4type\xa6search\xa5query\xdd\xff\xff\xff\xff"),
    "a text of 4 GB": header(frames.REQUEST, b"\x92\x01\x82\xa4type\xa6search\xa5query\x91\xdb\xff\xff\xff\xff"),
    "100,000 lists in one another": header(frames.REQUEST, NESTED),
    "a deep query": header(frames.REQUEST, b"\x92\x01\x82\xa4type\xa6search\xa5query" + NESTED + b"\x01"),
    "operations that are none": header(frames.OPERATIONS, b"\xc1"),
    "operations, 4 billion": header(frames.OPERATIONS, b"\xdd\xff\xff\xff\xff"),
    "operations with 4 GB": header(frames.OPERATIONS, b"\x91\x95\xfd\x01\xa7float32\x91\x01\xc6\xff\xff\xff\xff"),
    "operations, nested": header(frames.OPERATIONS, b"\x91\x92\x01" + NESTED + b"\x01"),
    "an unknown command": header(frames.OPERATIONS, msgspec.msgpack.encode([[-99]])),
    "a command without code": header(frames.OPERATIONS, msgspec.msgpack.encode([["os.system", "id"]])),
    "a template never defined": header(frames.OPERATIONS, msgspec.msgpack.encode([[5, 1, 2]])),
    "a recording in a recording": header(
        frames.OPERATIONS, msgspec.msgpack.encode([[c.RECORD, 1, [], 0, [[c.RECORD, 2, [], 0, [], []]], []]])
    ),
    "a recording that runs itself": header(
        frames.OPERATIONS, msgspec.msgpack.encode([[c.RECORD, 1, [], 0, [[c.RUN, 1, [], [], []]], []]])
    ),
    "a recording with slots that nothing fills": header(
        frames.OPERATIONS, msgspec.msgpack.encode([[c.RECORD, 1, [], 0, [], [1 << 40]]])
    ),
    "a recording with endless inputs": header(
        frames.OPERATIONS, msgspec.msgpack.encode([[c.RECORD, 1, [], 1 << 62, [], []]])
    ),
    "a recording with more commands than there may be": header(
        frames.OPERATIONS, msgspec.msgpack.encode([[c.RECORD, 1, [], 0, [[c.SEED]] * (MAX_RECORDED_COMMANDS + 1), []]])
    ),
    "a recording, nested": header(frames.OPERATIONS, b"\x91\x96\xec\x01\x90\x00" + NESTED + b"\x90"),
    "a run of what was never recorded": header(frames.OPERATIONS, msgspec.msgpack.encode([[c.RUN, 1, [], [], []]])),
    "a huge number": header(frames.OPERATIONS, msgspec.msgpack.encode([[(1 << 64) - 1, 1]])),
    "a seed that is a word": header(frames.OPERATIONS, msgspec.msgpack.encode([[c.SEED, "x"]])),
    "a tensor of negative size": header(frames.OPERATIONS, msgspec.msgpack.encode([[c.PUT, 1, "float32", [-1], b""]])),
    "a tensor beyond 64 bits": header(
        frames.OPERATIONS, msgspec.msgpack.encode([[c.PUT, 1, "float32", [0, 1 << 62, 1 << 62], b""]])
    ),
}


@pytest.mark.parametrize("frame", HOSTILE_FRAMES)
def test_a_hostile_frame_ends_its_own_session_with_a_reason(node: GridProcess, intrude: Intrude, frame: str):
    raw = intrude(node)
    raw.put(torch.ones(1))
    raw.send(HOSTILE_FRAMES[frame])
    said = raw.last_words()
    assert isinstance(said, (GridError,))
    assert type(said) in (InvalidMessageError, LimitExceededError, SessionLostError) or said.status == 400
    assert len(str(said)) < 400
    assert raw.socket.close_code == 1008


@pytest.mark.parametrize("frame", HOSTILE_FRAMES)
def test_a_hostile_frame_before_hello_is_answered_likewise(node: GridProcess, intrude: Intrude, frame: str):
    raw = intrude(node, greet=False)
    raw.send(HOSTILE_FRAMES[frame])
    assert isinstance(raw.last_words(), GridError)


@pytest.mark.parametrize(
    "message",
    [messages.Search(), messages.Read(value=1), messages.Login(credential="gjt1_x"), messages.Status()],
)
def test_the_first_message_of_a_session_is_hello(node: GridProcess, intrude: Intrude, message: Any):
    raw = intrude(node, greet=False)
    with pytest.raises(InvalidMessageError, match="hello"):
        raw.ask(message)


def test_operations_before_hello_start_no_worker(node: GridProcess, intrude: Intrude):
    before = node.status()["sessions"]
    raw = intrude(node, greet=False)
    raw.operations([c.PUT, 1, "float32", [], bytes(4)])
    assert "hello" in str(raw.last_words())
    assert node.status()["sessions"] == before


@pytest.mark.parametrize(("protocol", "older"), [(0, "client"), (-1, "client"), (2, "Node"), (99, "Node")])
def test_versions_are_compared_first_and_the_older_side_is_told_to_upgrade(
    node: GridProcess, intrude: Intrude, protocol: int, older: str
):
    raw = intrude(node, greet=False)
    with pytest.raises(VersionMismatchError, match=f"the {older} is older"):
        raw.ask(messages.Hello(protocol=protocol, software="x"))
    assert raw.last_words() is None
    assert raw.socket.close_code == 1008


def test_a_frame_over_the_limit_closes_the_connection(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    with pytest.raises(ConnectionClosed):
        _flood(raw.send, bytes(MAX_FRAME_BYTES + 1), 100)


# ------------------------------------------------------------------ below frames: bytes on the socket


def upgraded(node: GridProcess) -> socket.socket:
    """A connection whose WebSocket handshake is done, to write raw bytes to."""
    raw = node.tcp()
    key = base64.b64encode(os.urandom(16)).decode()
    raw.sendall(
        f"GET /data-centric/session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += raw.recv(1000)
    assert answer.startswith(b"HTTP/1.1 101")
    return raw


MASK = b"\x00\x00\x00\x00"


def _flood(send: Callable[[bytes], Any], data: bytes, times: int) -> None:
    for _ in range(times):
        send(data)


def masked(frame: bytes) -> bytes:
    """A binary message as it goes over the wire."""
    size = bytes([0x80 | len(frame)]) if len(frame) < 126 else b"\xfe" + struct.pack(">H", len(frame))
    return b"\x82" + size + MASK + frame


WIRE_BYTES: dict[str, bytes] = {
    "a length of 2^63": b"\x82\xff" + struct.pack(">Q", 1 << 63) + MASK,
    "a length of 2^62": b"\x82\xff" + struct.pack(">Q", 1 << 62) + MASK,
    "just over the limit": b"\x82\xff" + struct.pack(">Q", MAX_FRAME_BYTES + 1) + MASK,
    "a compressed frame": b"\xc2\x81" + MASK + b"x",
    "reserved bits": b"\xf2\x81" + MASK + b"x",
    "an unknown opcode": b"\x8b\x80" + MASK,
    "a continuation of nothing": b"\x80\x81" + MASK + b"x",
    "a long ping": b"\x89\xfe\x00\xff" + MASK + bytes(255),
    "a fragmented ping": b"\x09\x81" + MASK + b"x",
    "text that is not UTF-8": b"\x81\x82" + MASK + b"\xff\xfe",
    "not masked": b"\x82\x05hello",
    "HTTP again": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("sent", WIRE_BYTES)
def test_bytes_that_are_no_websocket_close_their_connection(node: GridProcess, sent: str):
    with upgraded(node) as raw:
        raw.sendall(WIRE_BYTES[sent])
        raw.shutdown(socket.SHUT_WR)
        try:
            while raw.recv(65536):
                pass
        except ConnectionResetError:
            pass


def test_fragments_without_end_are_stopped_at_the_limit(node: GridProcess):
    before = psutil.Process(node.pid).memory_info().rss
    chunk = 1 << 20
    with upgraded(node) as raw:
        head = struct.pack(">Q", chunk) + MASK
        try:
            raw.sendall(b"\x02\xff" + head + bytes(chunk))
            for _ in range(64):
                raw.sendall(b"\x00\xff" + head + bytes(chunk))
            raise AssertionError("64 MB of one message were taken")
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert psutil.Process(node.pid).memory_info().rss - before < 64 << 20


def test_headers_that_trickle_in_hold_nobody_up(node: GridProcess):
    with ExitStack() as stack:
        slow = [stack.enter_context(node.tcp()) for _ in range(200)]
        for number, one in enumerate(slow):
            one.sendall(b"GET /data-centric/session HTTP/1.1\r\nX-Slow: " if number % 2 else b"P")
        began = time.monotonic()
        for _ in range(20):
            assert node.call("GET", "/data-centric/status")[0] == 200
            slow[0].sendall(b"a")
        assert time.monotonic() - began < 10.0


def test_connections_that_say_nothing_hold_nobody_up(node: GridProcess):
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(upgraded(node))
        assert node.status()["sessions"] <= 2
        with RawSession(node) as raw:
            assert raw.read(raw.put(torch.ones(1))).item() == 1


# ------------------------------------------------------------------ operations by hand

OFF_THE_LIST = [
    "aten.set_.source_Tensor", "aten.as_strided.default", "aten.from_file.default", "aten.resize_.default",
    "aten._local_scalar_dense.default", "aten.to_sparse.default", "os.system", "os.system.default",
    "builtins.__import__.default", "aten.__class__.default", "aten.__init_subclass__.default", "aten..default",
    "torch.ops.aten.add.Tensor", "aten.add.Tensor; import os", "aten.convolution_backward.default", "\x00", "é" * 1000,
]  # fmt: skip


def test_operations_off_the_list_fail_by_name_and_the_session_goes_on(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    x = raw.put(torch.ones(3))
    for name in OFF_THE_LIST:
        with pytest.raises(OperationNotAllowedError):
            raw.read(raw.op(name, ["r"], x))
    assert raw.read(raw.op("aten.neg.default", ["r"], x)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("name", "args", "operands"),
    [
        ("aten.select.int", ["r", "d", "d"], (0, 1 << 62)),
        ("aten.select.int", ["r", "d", "d"], (-(1 << 62), 0)),
        ("aten.select.int", ["r", "d", "d"], ((1 << 64) - 1, 0)),
        ("aten.slice.Tensor", ["r", "d", "d", "d", "d"], (0, 0, 3, 0)),
        ("aten.slice.Tensor", ["r", "d", "d", "d", "d"], (0, 0, 3, -1)),
        ("aten.expand.default", ["r", "d"], ([1 << 40, 1 << 40, 3],)),
        ("aten.view.default", ["r", "d"], ([-1, -1],)),
        ("aten.view.default", ["r", "d"], ([0],)),
        ("aten.new_full.default", ["r", "d", "d"], ([1 << 40], 1.0)),
        ("aten.new_empty_strided.default", ["r", "d", "d"], ([2, 2], [1 << 60, 1])),
        ("aten.new_empty_strided.default", ["r", "d", "d"], ([2, 2], [-1, -1])),
        ("aten.repeat.default", ["r", "d"], ([1 << 40],)),
        ("aten.permute.default", ["r", "d"], ([5, 6],)),
        ("aten.unfold.default", ["r", "d", "d", "d"], (0, 1 << 40, 1)),
        ("aten.constant_pad_nd.default", ["r", "d"], ([1 << 61, 1 << 61],)),
        ("aten.bincount.default", ["r", ["c", None], "d"], (1 << 40,)),
        ("aten.index_select.default", ["r", "d", "r"], (0, "self")),
        ("aten.embedding.default", ["r", "r"], ("self",)),
        ("aten.mm.default", ["r", "r"], ("self",)),
        ("aten.cat.default", [["L", []]], None),
        ("aten.stack.default", [["L", ["r"]], "d"], (99,)),
        ("aten.sum.dim_IntList", ["r", "d"], ("cuda",)),
        ("aten.sum.dim_IntList", ["r", "d"], ([0] * 500,)),
        ("aten.nll_loss_forward.default", ["r", "r", ["c", None], "d", "d"], ("self", 1, -100)),
        ("aten._pack_padded_sequence.default", ["r", "r", ["c", False]], ("self",)),
        ("aten.grid_sampler_2d.default", ["r", "r", "d", "d", ["c", True]], ("self", 9, 9)),
        ("aten.max_pool2d_with_indices.default", ["r", "d", "d"], ([0, 0], [0, 0])),
        ("aten.convolution.default", ["r", "r", ["c", None], "d", "d", "d", ["c", False], "d", "d"],
         ("self", [0], [0], [0], [0], 0)),
    ],
)  # fmt: skip
def test_forged_arguments_are_refused_by_the_operation(
    node: GridProcess, intrude: Intrude, name: str, args: list[Any], operands: tuple[Any, ...] | None
):
    raw = intrude(node)
    x = raw.put(torch.ones(3))
    given = () if operands is None else (x, *(x if one == "self" else one for one in operands))
    with pytest.raises(GridError):
        raw.read(raw.op(name, args, *given))
    assert raw.read(x).tolist() == [1, 1, 1]


@pytest.mark.parametrize("number", [0, -1, -(1 << 63), (1 << 63) - 1, 99, 1 << 40])
def test_ids_that_name_nothing_are_answered_as_such(node: GridProcess, intrude: Intrude, number: int):
    raw = intrude(node)
    with pytest.raises(ObjectNotFoundError):
        raw.read(number)
    with pytest.raises(ObjectNotFoundError):
        raw.read(raw.op("aten.neg.default", ["r"], number))
    raw.operations([c.FREE, number])
    with pytest.raises(ObjectNotFoundError):
        raw.ask(messages.Sizes(values=(number,)))


def test_many_hostile_sessions_at_once_do_not_disturb_each_other(node: GridProcess):
    for _ in range(3):
        with ExitStack() as stack:
            hostile = [stack.enter_context(RawSession(node)) for _ in range(8)]
            for number, raw in enumerate(hostile):
                raw.put(torch.ones(10))
                raw.send(list(HOSTILE_FRAMES.values())[number])
            assert all(isinstance(raw.last_words(), GridError) for raw in hostile)


# ------------------------------------------------------------------ too much of everything


def test_answers_that_nobody_takes_pile_up_nowhere(node: GridProcess, bystander: tuple[NodeClient, Any]):
    """Hundreds of thousands of reads of 64 KB, sent without taking an answer, would be gigabytes in the Node."""
    before = psutil.Process(node.pid).memory_info().rss
    with upgraded(node) as mute:
        hello = messages.request_frame(1, messages.Hello(protocol=PROTOCOL, software="x"))
        template = [c.DEFINE, 0, "aten.expand.default", ["r", "d"], []]
        batch = [[c.PUT, 1, "float32", [1], bytes(4)], template, [0, 2, 1, [16_000]]]
        full = frames.pack(frames.OPERATIONS, frames.encode(batch))
        read = masked(messages.request_frame(2, messages.Read(value=2)))
        mute.sendall(masked(hello) + masked(full))
        mute.settimeout(1.0)
        with pytest.raises(TimeoutError):  # the Node stops taking requests from who takes no answers
            _flood(mute.sendall, read * 1000, 1000)
        for _ in range(300):  # meanwhile it would work off what it took
            (bystander[1] + 1).get()
        assert psutil.Process(node.pid).memory_info().rss - before < 64 << 20


def test_a_tensor_that_does_not_fit_its_description_is_not_taken_in(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    headers = {"X-Grid-Session": raw.secret}
    for query in (
        "dtype=float32&shape=[3]", "dtype=float32&shape=[-1]", "dtype=object&shape=[1]", "dtype=&shape=", "shape=[1]",
        "dtype=float32&shape=1", "dtype=float32&shape=[1.5]", "dtype=float32&shape=" + "[" * 5000,
        f"dtype=float32&shape=[{','.join(['1'] * 65)}]", "dtype=float32&shape=[1,9223372036854775808]",
        "dtype=float32&shape=[%ff]",
    ):  # fmt: skip
        status, answer = node.call("PUT", f"/data-centric/values/1?{query}", bytes(4), headers=headers)
        assert status == 400, (query, answer)
    for number in ("x", "-1", "9" * 19):
        status, _ = node.call(
            "PUT", f"/data-centric/values/{number}?dtype=float32&shape=[1]", bytes(4), headers=headers
        )
        assert status in (400, 404)
    with pytest.raises(ObjectNotFoundError):
        raw.read(1)
    status, _ = node.call(
        "PUT", "/data-centric/values/1?dtype=float32&shape=[0,4611686018427387904,9]", headers=headers
    )
    assert status == 400
    with pytest.raises(ObjectNotFoundError):
        raw.read(1)


def test_a_tensor_larger_than_the_sessions_memory_is_refused_before_it_is_sent(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    with node.tcp() as sender:
        sender.sendall(
            f"PUT /data-centric/values/1?dtype=uint8&shape=[{1 << 40}] HTTP/1.1\r\nHost: x\r\n"
            f"X-Grid-Session: {raw.secret}\r\nContent-Length: {1 << 40}\r\n\r\n".encode()
        )
        assert sender.recv(100).startswith(b"HTTP/1.1 413")


def test_uploads_into_one_session_share_its_memory(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    size = 200 << 20

    def begin(sender: socket.socket, value: int) -> None:
        sender.sendall(
            f"PUT /data-centric/values/{value}?dtype=uint8&shape=[{size}] HTTP/1.1\r\nHost: x\r\n"
            f"X-Grid-Session: {raw.secret}\r\nContent-Length: {size}\r\n\r\n".encode()
            + bytes(1000)
        )

    def progress(value: int) -> int:
        return node.call("HEAD", f"/data-centric/values/{value}", headers={"X-Grid-Session": raw.secret})[0]

    with node.tcp() as first, node.tcp() as second:
        begin(first, 1)
        until(lambda: progress(1) == 200)
        begin(second, 2)
        assert second.recv(100).startswith(b"HTTP/1.1 413")
    with node.tcp() as third:  # what was begun anew needs no room twice
        begin(third, 1)
        assert not _readable(third)
        assert progress(1) == 200


def _readable(one: socket.socket) -> bool:
    one.settimeout(0.05)
    try:
        return bool(one.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False


def test_released_values_that_nobody_downloads_are_limited(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    large = raw.op("aten.new_full.default", ["r", "d", "d"], raw.put(torch.ones(1)), [20 << 20], 1.0)  # 80 MB
    tickets = [raw.ask(messages.Read(value=large)).bulk for _ in range(3)]
    with pytest.raises(LimitExceededError, match="download"):
        raw.ask(messages.Read(value=large))
    where = f"/data-centric/released/{tickets[0]}"
    status, data = node.call("GET", where, headers={"X-Grid-Session": raw.secret})
    assert (status, len(data)) == (200, 80 << 20)
    assert isinstance(raw.ask(messages.Read(value=large)), messages.Value)


def test_a_download_that_nobody_takes_ends_with_its_session(node: GridProcess):
    def held() -> int:
        count = 0
        for one in Path(f"/proc/{node.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed while we look
                count += "memfd:" in str(one.readlink())
        return count

    until(lambda: held() == 0)
    with RawSession(node) as raw, node.tcp() as sleepy:
        large = raw.op("aten.new_full.default", ["r", "d", "d"], raw.put(torch.ones(1)), [20 << 20], 1.0)
        reply = raw.ask(messages.Read(value=large))
        assert isinstance(reply, messages.Value)
        request = f"GET /data-centric/released/{reply.bulk} HTTP/1.1\r\nHost: x\r\n"
        sleepy.sendall(f"{request}X-Grid-Session: {raw.secret}\r\n\r\n".encode())
        assert sleepy.recv(100).startswith(b"HTTP/1.1 200")
        assert held() == 1
        raw.socket.close()
        until(lambda: held() == 0, timeout_s=10.0)
