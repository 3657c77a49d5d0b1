"""Uploads that go into a pipe, as the Node keeps them: in turns, in bounds, and to nobody but the session's Worker."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from grid_jupyter.errors import Conflict, InvalidMessageError, LimitExceededError, ObjectNotFoundError
from grid_jupyter.node.bulk import MAX_COMING, Bulk, Use
from grid_jupyter.server import bulk_doors

MB = 1 << 20


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_bytes_go_from_the_connection_to_the_reader_and_not_one_more():
    before, bulk = descriptors(), Bulk(8 * MB)
    incoming = bulk.begin(1, "uint8", (10,), 10)
    reader = incoming.into_pipe()
    near, far = socket.socketpair()
    near.setblocking(False)
    turn = incoming.begin_turn()
    assert incoming.pass_on(turn, memoryview(b"01")) == 2
    with pytest.raises(BlockingIOError):
        incoming.splice(turn, near.fileno(), 8)
    far.sendall(b"23456789 and what comes behind it")
    assert incoming.splice(turn, near.fileno(), 8) == 8
    incoming.seal()
    assert os.read(reader, 100) == b"0123456789"
    with pytest.raises(InvalidMessageError, match="more came"):
        incoming.splice(turn, near.fileno(), 1)
    for one in (near, far):
        one.close()
    bulk.arrived(1, incoming)
    assert os.read(reader, 100) == b"", "the Worker is told that it is not needed any more"
    os.close(reader)
    assert descriptors() == before


def test_a_turn_that_is_over_moves_nothing():
    bulk = Bulk(8 * MB)
    incoming = bulk.begin(1, "uint8", (10,), 10)
    reader = incoming.into_pipe()
    older = incoming.begin_turn()
    assert bulk.progress(1) == (0, False)
    for moves in (lambda: incoming.pass_on(older, memoryview(b"1")), lambda: incoming.splice(older, 0, 1)):
        with pytest.raises(Conflict):
            moves()
    bulk.begin(1, "uint8", (10,), 10)
    with pytest.raises(Conflict):
        incoming.into_pipe()
    bulk.give_up(1, incoming)
    assert bulk.progress(1) == (0, False), "another upload came in its place"
    bulk.close()
    os.close(reader)


def test_a_tensor_of_the_session_is_no_weights_of_a_job():
    bulk = Bulk(8 * MB)
    incoming = bulk.begin(1, "uint8", (3,), 3)
    reader = incoming.into_pipe()
    incoming.pass_on(incoming.begin_turn(), memoryview(b"abc"))
    with pytest.raises(InvalidMessageError, match="a tensor of the session"):
        bulk.claim(1)
    bulk.close()
    os.close(reader)


def test_who_waits_for_a_busy_worker_gives_way_to_another_connection(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk_doors, "_LOOK_S", 0.01)

    async def story() -> None:
        bulk = Bulk(8 * MB)
        incoming = bulk.begin(1, "uint8", (4 * MB,), 4 * MB)
        reader = incoming.into_pipe()
        session = SimpleNamespace(gone=asyncio.get_running_loop().create_future())
        turn = incoming.begin_turn()
        pouring = asyncio.ensure_future(bulk_doors._pour(memoryview(bytes(4 * MB)), incoming, turn, session))  # type: ignore[arg-type]
        done, _ = await asyncio.wait({pouring}, timeout=0.05)
        assert not done, "the pipe is full, and nobody reads"
        incoming.begin_turn()
        with pytest.raises(Conflict):
            await asyncio.wait_for(pouring, 10)
        bulk.close()
        os.close(reader)

    asyncio.run(story())


def test_nothing_goes_on_or_is_taken_as_something_else_than_it_began_as():
    bulk = Bulk(8 * MB)
    uses: tuple[Use, ...] = ("value", "round", "moved")
    for number, use in enumerate(uses):
        incoming = bulk.begin(number, "uint8", (1,), 1, use=use)
        incoming.write(incoming.begin_turn(), memoryview(b"1"))
        for other in uses:
            if other != use:
                with pytest.raises(ObjectNotFoundError):
                    bulk.resume(number, 1, other)
        if use != "round":
            with pytest.raises(InvalidMessageError, match="a tensor of the session"):
                bulk.claim(number)
    bulk.close()


def test_uploads_that_are_not_complete_are_limited():
    bulk = Bulk(8 * MB)
    for number in range(MAX_COMING):
        bulk.begin(number, "uint8", (1,), 1)
    with pytest.raises(LimitExceededError, match="not complete"):
        bulk.begin(MAX_COMING, "uint8", (1,), 1)
    bulk.begin(3, "uint8", (1,), 1)  # anew
    bulk.close()
