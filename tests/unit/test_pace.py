"""Large bodies that trickle are given up, and what came of them is kept; slow lines and busy Nodes are no cause."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from tornado.netutil import bind_sockets
from tornado.web import stream_request_body

from grid_jupyter.server.door import application, http_server
from grid_jupyter.server.node_streams import BulkDoor
from grid_jupyter.server.pace import LEAST_BYTES, Pace

MB = 1 << 20
PATIENCE_S = 20.0


def waited(pace: Pace, came: dict[float, int], until: float) -> list[float]:
    """When a body was too slow, of which so many bytes had come by when, and that is kept at once."""
    slow, total, now = [], 0, 0.0
    pace.wait(now)
    while now < until:
        now += 1.0
        if now in came:
            pace.work(now)
            total += came[now]
            pace.wait(now)
        if pace.is_too_slow(total, now):
            slow.append(now)
    return slow


def test_a_body_of_which_less_comes_in_a_window_than_has_to_is_too_slow():
    assert waited(Pace(), {float(at): 1 for at in range(300)}, 100) == [30, 60, 90]
    assert waited(Pace(), {29.0: LEAST_BYTES - 1, 59.0: LEAST_BYTES}, 60) == [30]


def test_eight_kilobytes_in_a_second_are_enough_also_with_long_pauses():
    assert not waited(Pace(), {float(at): 8 << 10 for at in range(600)}, 600)
    assert not waited(Pace(), {float(at): 8 << 10 for at in range(600) if at % 30 < 10}, 600)


def test_the_time_that_the_node_takes_for_itself_does_not_count():
    pace = Pace()
    pace.wait(0)
    for hour in range(10):
        pace.work(3600.0 * hour + 2)
        assert not pace.is_too_slow(hour, 3600.0 * hour + 3599)
        pace.wait(3600.0 * (hour + 1))
    assert pace.left_s(36_000) == 10
    assert pace.is_too_slow(10, 36_010)


@stream_request_body
class Taking(BulkDoor):
    """Takes what comes."""

    open_to_all = frozenset({"POST"})

    async def prepare(self) -> None:
        self.take(self.length())

    async def data_received(self, chunk: bytes | memoryview) -> None:
        await self.settings["busy"]()
        self.settings["got"].extend(chunk)

    async def post(self) -> None:
        self.reply({"got": len(self.settings["got"])})


async def idle() -> None:
    """Nothing keeps it."""


@asynccontextmanager
async def port(got: bytearray, pace: Callable[[], Pace], busy: Any = idle) -> AsyncIterator[int]:
    server = http_server(application([("/", Taking)], None, got=got, pace=pace, busy=busy))  # type: ignore[arg-type]
    (listening,) = bind_sockets(0, "127.0.0.1")
    server.add_sockets([listening])
    try:
        yield listening.getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()


def send(where: int, pieces: list[bytes], length: int, pause_s: float) -> tuple[int, dict[str, Any]]:
    """Send these, and then one byte after the other until there is an answer, which is what this comes to."""
    stop = threading.Event()
    with socket.create_connection(("127.0.0.1", where), PATIENCE_S) as line:
        line.sendall(f"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n".encode())

        def trickle() -> None:
            left = length - sum(map(len, pieces))
            with contextlib.suppress(OSError):  # the Node closes the connection when it has answered
                for piece in pieces:
                    line.sendall(piece)
                    stop.wait(pause_s)
                while left and not stop.wait(pause_s):
                    line.sendall(b"t")
                    left -= 1

        sending = threading.Thread(target=trickle)
        sending.start()
        answer = b""
        while data := line.recv(65536):
            answer += data
            head, _, body = answer.partition(b"\r\n\r\n")
            if b"}" in body:
                break
        stop.set()
        sending.join()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("first", [0, 1000, 300_000, MB + 1000])
def test_a_body_that_trickles_is_given_up_and_what_came_is_there_to_the_last_byte(first: int):
    async def go() -> None:
        got = bytearray()
        async with port(got, partial(Pace, 10_000, 0.3)) as where:
            began = time.monotonic()
            status, said = await asyncio.to_thread(send, where, [b"f" * first], 4 * MB, 0.02)
        assert (status, said["code"]) == (408, "too-slow")
        assert "less than 10000 bytes of it came in 0.3 seconds" in said["error"]
        assert time.monotonic() - began < 5
        assert got[:first] == b"f" * first
        assert 5 < len(got) - first < 100

    asyncio.run(go())


def test_what_comes_while_the_last_of_a_slow_body_is_kept_does_not_change_it():
    sent = bytes(at % 251 for at in range(2 * MB))

    async def go() -> None:
        got, keeping = bytearray(), asyncio.Event()

        async def busy() -> None:
            keeping.set()
            await asyncio.sleep(0.3)

        async with port(got, partial(Pace, 10_000, 0.3), busy) as where:
            reader, writer = await asyncio.open_connection("127.0.0.1", where)
            writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(sent))
            at = 0
            while not keeping.is_set():
                writer.write(sent[at : at + 1])
                at += 1
                await asyncio.wait([asyncio.create_task(keeping.wait())], timeout=0.02)
            writer.write(sent[at:MB])  # a line that is well again, just too late
            assert b"too-slow" in await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE_S)
            writer.close()
        assert got
        assert got == sent[: len(got)]

    asyncio.run(go())


def test_a_body_that_comes_as_fast_as_it_has_to_is_taken_whatever_the_node_does_meanwhile():
    async def go() -> None:
        got = bytearray()
        pieces = [bytes(4000)] * (500_000 // 4000)
        async with port(got, partial(Pace, 10_000, 0.3), partial(asyncio.sleep, 0.7)) as where:
            status, said = await asyncio.to_thread(send, where, pieces, 500_000, 0.01)
        assert (status, said) == (200, {"got": 500_000})
        assert got == bytes(500_000)

    asyncio.run(go())
