"""A kept connection reads what http.client does, to the same bytes, and takes half of an answer for none."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from grid_jupyter.client.training_line import TrainingLine
from grid_jupyter.errors import TooSlowError
from grid_jupyter.link.http import Address
from grid_jupyter.link.kept import LARGE, Kept
from grid_jupyter.wire.places import WITH_MODEL, with_model

BODY = bytes(range(256)) * 90
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 3\r\n\r\nabc"


class Asked:
    """What came to a server that says what it was told to, in these pieces, to one connection after the other."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0

    def serve(self, listening: socket.socket, answers: list[list[bytes]], ends: bool) -> None:
        left = iter(answers)
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while self._read(connection):
                    for piece in next(left):
                        connection.sendall(piece)
                    if ends:
                        break

    def _read(self, connection: socket.socket) -> bool:
        got = b""
        while b"\r\n\r\n" not in got:
            part = connection.recv(1 << 20)
            if not part:
                return False
            got += part
        head, _, body = got.partition(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        missing = int(lines.get(b"content-length", b"0")) - len(body)
        while missing > 0:
            part = connection.recv(1 << 20)
            if not part:
                return False
            got, missing = got + part, missing - len(part)
        self.requests.append(got)
        return True


@contextmanager
def answering(*answers: bytes | list[bytes], ends: bool = False, reuses: bool = False) -> Iterator[tuple[Kept, Asked]]:
    """A connection to a server with these answers; with `ends` it closes behind each."""
    asked = Asked()
    listening = socket.create_server(("127.0.0.1", 0))
    pieces = [[one] if isinstance(one, bytes) else one for one in answers]
    thread = threading.Thread(target=asked.serve, args=(listening, pieces, ends))
    thread.start()
    try:
        with closing(Kept(Address(f"http://127.0.0.1:{listening.getsockname()[1]}/base"), reuses=reuses)) as kept:
            yield kept, asked
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def plain(body: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines, b"", body))


def chunked(body: bytes) -> bytes:
    return b"".join(
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body), body, b"\r\n0\r\n\r\n")
    )


def test_one_connection_serves_many_exchanges_and_a_request_is_whole():
    with answering(PLAIN, plain(BODY), PLAIN) as (kept, asked):
        first = kept.exchange("POST", "/a?b=c", b"12345", {"Content-Type": "x/y"})
        assert (first.status, bytes(first.data), first.headers["content-type"]) == (200, b"abc", "a/b")
        assert kept.exchange("GET", "/", None, {}).data == BODY
        assert kept.exchange("POST", "/", bytearray(200_000), {}).data == b"abc"
        assert asked.connections == 1
        head, _, body = asked.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /base/a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"\r\nContent-Type: x/y" in head
        assert body == b"12345"
        assert b"Content-Length" not in asked.requests[1]
        assert asked.requests[2].endswith(bytes(200_000))


@pytest.mark.parametrize(
    "answer",
    [
        plain(BODY),
        plain(b""),
        plain(BODY, b"X-A: 1", b"x-a: 2"),  # a name twice
        plain(BODY, b"X-A: 1\r\n  and more of it"),  # a line that goes on
        plain(BODY, b"Connection: close"),
        plain(BODY, b"Connection: keep-alive"),
        plain(BODY).replace(b"\r\nContent", b"\nContent", 1),
        plain(BODY).replace(b"\r\n", b"\n", 3),
        b"HTTP/1.1 100 Continue\r\n\r\n" + plain(BODY),
        b"HTTP/1.1 200\r\ncontent-length:3\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,  # to the end of the connection
        chunked(BODY),
        plain(BODY, *(b"X-%d: %s" % (k, b"v" * 1000) for k in range(80))),  # a head longer than is read at a time
        plain(BODY, *(b"X-%d: 1" % k for k in range(200))),  # more lines than http.client takes
        plain(b"abc").replace(b": 3", b": +3"),
        plain(b"abc").replace(b": 3", b": 3, 3"),
        plain(b"abc").replace(b": 3", b": \xb2"),
        b"nothing of the kind\r\n\r\n",
    ],
)
@pytest.mark.parametrize("cut", [lambda data: [data], lambda data: [data[:70], data[70:]]])
def test_every_answer_is_what_http_client_makes_of_it(answer: bytes, cut: Callable[[bytes], list[bytes]]):
    with answering(cut(answer), cut(answer), ends=True) as (kept, asked):
        theirs = kept._address.connect()
        with closing(theirs):
            theirs.request("GET", "/base/")
            try:
                response = theirs.getresponse()
                expected: object = response.status, response.read()
            except (http.client.HTTPException, ValueError) as error:
                expected = type(error)
        try:
            found = kept.exchange("GET", "/", None, {})
            ours: object = found.status, bytes(found.data)
        except (http.client.HTTPException, ValueError) as error:
            ours = type(error)
        assert ours == expected
        assert asked.connections == 2


def test_an_answer_to_head_has_no_body():
    with answering(b"HTTP/1.1 200 OK\r\nUpload-Offset: 7\r\nContent-Length: 3\r\n\r\n", PLAIN) as (kept, _):
        told = kept.exchange("HEAD", "/", None, {})
        assert (told.headers["upload-offset"], bytes(told.data)) == ("7", b"")
        assert kept.exchange("GET", "/", None, {}).data == b"abc"


@pytest.mark.parametrize("end", [0, 5, 16, 40, len(PLAIN) - 4, len(PLAIN) - 1])
def test_half_of_an_answer_is_none(end: int):
    with answering(PLAIN[:end], ends=True) as (kept, _), pytest.raises((http.client.HTTPException, OSError)):
        kept.exchange("GET", "/", None, {})


def test_what_comes_behind_an_answer_is_not_the_next_one():
    with answering(PLAIN + PLAIN.replace(b"abc", b"xyz"), PLAIN) as (kept, asked):
        assert kept.exchange("GET", "/", None, {}).data == b"abc"
        assert kept.exchange("GET", "/", None, {}).data == b"abc"
        assert asked.connections == 2


@pytest.mark.parametrize("encode", [plain, chunked])
def test_a_large_answer_comes_into_the_memory_of_the_one_before(encode: Callable[[bytes], bytes]):
    large = [bytes([k]) * (LARGE + 17) for k in (1, 2)]
    with answering(*map(encode, large), reuses=True) as (kept, _):
        first = kept.exchange("GET", "/", None, {}).data
        assert first == large[0]
        second = kept.exchange("GET", "/", None, {}).data
        assert second == large[1]
        assert (second is first) == (encode is plain)


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/é", "/\x00"])
def test_a_path_that_would_say_more_than_a_path_is_refused(path: str):
    with answering(PLAIN) as (kept, asked):
        with pytest.raises(http.client.InvalidURL):
            kept.exchange("GET", path, None, {})
        assert asked.requests == []


@pytest.mark.parametrize("offset", ["\u00b2", "9" * 5000, "-1", "1e3", "7000000"])
def test_a_node_that_says_nonsense_of_what_came_is_an_error_of_the_tree(offset: str):
    slow = plain(b'{"code": "too-slow", "error": "too slow"}').replace(b"200 OK", b"408 Slow")
    head = b"HTTP/1.1 200 OK\r\nUpload-Offset: " + offset.encode("latin-1") + b"\r\nContent-Length: 0\r\n\r\n"
    with (
        answering(*[[slow], [head]] * 4) as (kept, _),
        closing(TrainingLine(kept._address, 2.0)) as line,
        pytest.raises(TooSlowError),
    ):
        line.report("worker", "key", bytes(2 << 20), 1, zipped=False)


@pytest.mark.parametrize("said", [b'{"next": 5}', b'{"next": []}', b'{"next": {}}', b"{}"])
def test_a_place_that_is_none_comes_with_no_model(said: bytes):
    answer = plain(with_model(said, b"model"), b"Content-Type: " + WITH_MODEL.encode())
    with answering(answer) as (kept, _), closing(TrainingLine(kept._address, 2.0)) as line:
        line.report("worker", "key", b"diff", 1, zipped=False, then={})
