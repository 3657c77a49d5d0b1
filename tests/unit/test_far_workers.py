"""The way between a Node and a Worker on another machine: files once, in order, in bounds; and its door."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from grid_jupyter.errors import GridError
from grid_jupyter.wire import relay
from grid_jupyter.worker.channel import Channel, pair
from grid_jupyter.worker.dask_worker import _trusting
from grid_jupyter.worker.far_door import FarDoor, new_ticket
from grid_jupyter.worker.far_end import FarEnd, KeptFiles
from grid_jupyter.worker.memory import fill, memory_file
from grid_jupyter.worker.relay import Digests, NearEnd, Stream

LIMIT = 1 << 20
PATIENCE_S = 10.0


async def streams() -> tuple[Stream, Stream]:
    """The two ends of one connection."""
    ends = socket.socketpair()
    near, far = [Stream(*await asyncio.open_connection(sock=end)) for end in ends]
    return near, far


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until it is so; `run` sees to the deadline."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


class Way:
    """A Node's end, a far end, and a blocking channel in place of the Worker."""

    def __init__(self, near: Stream, far: Stream, kept: KeptFiles, digests: Digests) -> None:
        ours, theirs = pair()
        theirs.settimeout(PATIENCE_S)
        self.worker = Channel(theirs)
        self.got: asyncio.Queue[tuple[bytes, list[int]]] = asyncio.Queue()
        self.reasons: list[str] = []
        self.over = asyncio.Event()
        self.far = FarEnd(1, ours)
        self.serving = asyncio.create_task(self.far.serve(far, kept))
        self.near = NearEnd(near, digests, LIMIT, self.reasons.append, self._arrived, self.over.set, "tcp://far:1")

    def _arrived(self, frame: memoryview, descriptors: list[int]) -> None:
        self.got.put_nowait((bytes(frame), descriptors))

    async def worker_gets(self) -> tuple[bytes, list[int]]:
        frame, descriptors = await asyncio.to_thread(self.worker.receive)
        return bytes(frame), descriptors

    async def node_gets(self) -> tuple[bytes, list[int]]:
        return await asyncio.wait_for(self.got.get(), PATIENCE_S)

    async def close(self) -> None:
        self.near.close()
        await asyncio.wait_for(self.serving, PATIENCE_S)
        await self.far.close()
        self.worker.close()


@contextlib.asynccontextmanager
async def way(kept: KeptFiles | None = None, digests: Digests | None = None) -> AsyncIterator[Way]:
    made = Way(*await streams(), kept or KeptFiles(), digests or Digests())
    try:
        yield made
    finally:
        await made.close()


def run(work: Callable[[], Awaitable[Any]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work(), 60.0)

    asyncio.run(limited())


# ------------------------------------------------------------------ frames and files


def test_frames_and_files_arrive_in_order_also_behind_large_ones(tmp_path: Path):
    (tmp_path / "rows").write_bytes(os.urandom(3 << 20))

    async def work() -> None:
        async with way() as made:
            descriptor = os.open(tmp_path / "rows", os.O_RDONLY)
            assert made.near.send(b"before") is None
            behind = made.near.send(b"with rows", [descriptor])
            os.close(descriptor)
            made.near.send(b"after")
            assert await made.worker_gets() == (b"before", [])
            frame, [handed] = await made.worker_gets()
            assert frame == b"with rows"
            assert os.pread(handed, 4 << 20, 0) == (tmp_path / "rows").read_bytes()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(handed, b"x", 0)
            os.close(handed)
            assert await made.worker_gets() == (b"after", [])
            await behind

    run(work)


def test_what_may_only_be_read_is_sent_once_for_all_workers_of_a_node_and_kept_for_nobody(tmp_path: Path):
    (tmp_path / "rows").write_bytes(b"rows" * 1000)
    sent = []

    class Counted(Stream):
        def send(self, message: relay.Relay, payload: Any = b"") -> None:
            sent.append(len(payload) if isinstance(message, relay.Piece) else 0)
            super().send(message, payload)

    async def work() -> None:
        kept, digests = KeptFiles(), Digests()
        descriptor = os.open(tmp_path / "rows", os.O_RDONLY)
        async with contextlib.AsyncExitStack() as ways:
            for _ in range(3):
                near, far = await streams()
                near.__class__ = Counted
                made = Way(near, far, kept, digests)
                ways.push_async_callback(made.close)
                made.near.send(b"load", [descriptor])
                _, [handed] = await made.worker_gets()
                assert os.pread(handed, 8000, 0) == b"rows" * 1000
                os.close(handed)
            assert sum(sent) == 4000
            assert len(kept._files) == 1
        assert not kept._files, "the bytes went with the last Worker that used them"
        os.close(descriptor)

    run(work)


def test_a_file_whose_bringer_left_halfway_is_brought_by_the_next(tmp_path: Path):
    (tmp_path / "rows").write_bytes(b"rows" * 1000)

    async def work() -> None:
        kept = KeptFiles()
        digest = "d" * 64
        near, far = await streams()
        leaving = Way(near, far, kept, Digests())
        near.send(relay.File(number=1, size=4000, digest=digest))
        near.send(relay.Piece(number=1), b"rows" * 10)
        await until(lambda: digest in kept._files)
        near2, far2 = await streams()
        ours, theirs = pair()
        staying = FarEnd(2, ours)
        serving = asyncio.create_task(staying.serve(far2, kept))
        near2.send(relay.File(number=7, size=4000, digest=digest))
        await leaving.close()
        answer, _ = await near2.receive()
        assert answer == relay.Wanted(number=7, wanted=True)
        near2.send(relay.Piece(number=7), b"rows" * 1000)
        near2.send(relay.Relayed(files=(7,)), b"load")
        channel = Channel(theirs)
        _, [handed] = await asyncio.to_thread(channel.receive)
        assert os.pread(handed, 8000, 0) == b"rows" * 1000
        os.close(handed)
        near2.close()
        await serving
        await staying.close()
        channel.close()

    run(work)


def test_a_value_that_its_worker_still_fills_is_told_at_once_and_followed(tmp_path: Path):
    async def work() -> None:
        async with way() as made:
            memory = memory_file(LIMIT)
            made.worker.send(b"fetched", [memory])
            frame, [handed] = await made.node_gets()
            assert frame == b"fetched"
            assert os.lseek(handed, 0, os.SEEK_CUR) == 0
            made.worker.send(b"meanwhile")
            assert await made.node_gets() == (b"meanwhile", [])
            data = os.urandom(LIMIT)
            fill(memory, memoryview(data))
            os.close(memory)
            await until(lambda: os.lseek(handed, 0, os.SEEK_CUR) == LIMIT)
            assert os.pread(handed, LIMIT, 0) == data
            os.close(handed)

    run(work)


def test_a_value_that_is_whole_is_whole_at_the_node_when_it_is_told(tmp_path: Path):
    async def work() -> None:
        async with way() as made:
            memory = memory_file(LIMIT)
            fill(memory, memoryview(b"w" * LIMIT))
            made.worker.send(b"kept", [memory])
            os.close(memory)
            _, [handed] = await made.node_gets()
            assert os.pread(handed, LIMIT, 0) == b"w" * LIMIT
            os.close(handed)

    run(work)


# ------------------------------------------------------------------ what a hostile Worker, or machine, may say


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 50])
def test_a_value_above_the_sessions_memory_ends_the_session_before_it_is_taken(size: int):
    async def work() -> None:
        async with way() as made:
            memory = memory_file(size)
            made.worker.send(b"too much", [memory])
            os.close(memory)
            await asyncio.wait_for(made.over.wait(), PATIENCE_S)
            assert "over the session's memory" in made.reasons[0]
            assert made.got.empty()

    run(work)


def test_a_descriptor_that_is_no_value_ends_the_session(tmp_path: Path):
    async def work() -> None:
        for path in ("/dev/null", str(tmp_path)):
            async with way() as made:
                descriptor = os.open(path, os.O_RDONLY)
                made.worker.send(b"look", [descriptor])
                os.close(descriptor)
                await asyncio.wait_for(made.over.wait(), PATIENCE_S)
                assert made.reasons == ["its Worker handed over something else than a value"]

    run(work)


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (relay.Relayed(files=(3,)), b""),
        (relay.Piece(number=3), b"x"),
        (relay.Wanted(number=1, wanted=True), b""),
        (relay.Arrive(ticket="x", version="1", place="y", isolation="z"), b""),
        (relay.File(number=1, size=-1), b""),
    ],
)
def test_a_far_machine_that_breaks_the_protocol_is_left(message: relay.Relay, payload: bytes):
    async def work() -> None:
        near, far = await streams()
        reasons: list[str] = []
        over = asyncio.Event()
        NearEnd(near, Digests(), LIMIT, reasons.append, lambda *_: None, over.set, "tcp://far:1")
        far.send(message, payload)
        await asyncio.wait_for(over.wait(), PATIENCE_S)
        assert "does not keep to the protocol" in reasons[0]
        far.close()

    run(work)


def test_why_a_worker_ended_is_told_behind_all_that_it_said():
    async def work() -> None:
        async with way() as made:
            made.worker.send(b"last words")
            made.far.end("an operation ran longer than 2 s, so its Worker was ended")
            made.worker.close()
            assert await made.node_gets() == (b"last words", [])
            await asyncio.wait_for(made.over.wait(), PATIENCE_S)
            assert made.reasons == ["an operation ran longer than 2 s, so its Worker was ended"]
            with pytest.raises(EOFError):
                made.near.send(b"more")

    run(work)


# ------------------------------------------------------------------ the door


def test_only_a_ticket_opens_the_door_once_and_only_its_certificate_is_taken():
    async def work() -> None:
        tickets = {new_ticket()}
        [ticket] = tickets
        arrived = []

        def take(arrive: relay.Arrive, stream: Stream) -> None:
            tickets.remove(arrive.ticket)
            arrived.append(stream)

        door = FarDoor(take, lambda one: one in tickets)
        await door.open("127.0.0.1", 0)
        other = FarDoor(take, lambda one: one in tickets)
        await other.open("127.0.0.1", 0)

        async def knock(shown: str, trusted: str) -> bool:
            made = Stream(
                *await asyncio.open_connection("127.0.0.1", door.port, ssl=_trusting(trusted), server_hostname="")
            )
            made.send(relay.Arrive(ticket=shown, version="1", place="p", isolation="i"))
            before = len(arrived)
            try:
                while len(arrived) == before:
                    await asyncio.wait_for(made.receive(), 0.2)
            except asyncio.TimeoutError:
                return True  # nothing came, and it is open
            except (EOFError, OSError):
                return False
            finally:
                made.close()
            return True

        assert not await knock("x" * len(ticket), door.certificate)
        assert await knock(ticket, door.certificate)
        assert not await knock(ticket, door.certificate), "once"
        with pytest.raises(ssl.SSLError):
            await knock(ticket, other.certificate)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(OSError):
            assert not await asyncio.wait_for(reader.read(), PATIENCE_S), "nothing is said without TLS"
        writer.close()
        assert len(arrived) == 1
        for stream in arrived:
            stream.close()
        door.close()
        other.close()

    run(work)


def test_a_message_that_says_it_is_huge_is_refused_before_it_is_read():
    async def work() -> None:
        ends = socket.socketpair()
        near = Stream(*await asyncio.open_connection(sock=ends[0]))
        ends[1].sendall(relay.PREFIX.pack(1 << 31, 1 << 31))
        with pytest.raises(GridError, match="too long"):
            await near.receive()
        near.close()
        ends[1].close()

    run(work)
