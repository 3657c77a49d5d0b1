"""The memory file of a round of a job: it goes in, comes back, and is there for the next round of that job alone."""

from __future__ import annotations

import fcntl
import os

import pytest

from grid_jupyter.node.bulk import FETCHED_S, Bulk

SIZE = 3 << 20


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def a_round(bulk: Bulk, number: int, job: str, *, size: int = SIZE, seals: int = 0) -> int:
    """Weights come in, the Worker writes its own into their place, these are fetched; which file it was."""
    coming = bulk.begin(number, "uint8", (size,), size, job, use="round")
    turn = coming.begin_turn()
    for _ in range(2):
        coming.write(turn, memoryview(bytes([number]) * (size // 2)))
    coming.end_turn(turn, 0.0)
    taken = bulk.claim(number)
    handed = os.dup(taken.descriptor)  # as the Worker gives it back
    assert os.pread(handed, size, 0) == bytes([number]) * size
    os.lseek(handed, 0, os.SEEK_SET)
    assert os.write(handed, b"w" * size) == size
    if seals:
        fcntl.fcntl(handed, fcntl.F_ADD_SEALS, seals)
    taken.drop()
    ticket = bulk.keep(handed, size, job)
    with bulk.sending(ticket) as value:
        found, value.sent = inode(value.descriptor), True
        assert value.read(0, size) == b"w" * size
        bulk.forget(ticket)  # the client has it all, and says so, before the connection is closed
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bulk(clock: Clock) -> Bulk:
    return Bulk(32 << 20, clock)


def test_the_next_round_of_a_job_comes_into_the_file_of_the_one_before(bulk: Bulk):
    assert len({a_round(bulk, number, "a") for number in range(1, 5)}) == 1
    bulk.close()


def test_no_job_gets_the_file_of_another_and_no_round_one_of_another_size(bulk: Bulk):
    first = a_round(bulk, 1, "a")
    coming = bulk.begin(2, "uint8", (SIZE,), SIZE, "b")
    assert inode(coming.descriptor) != first
    second = a_round(bulk, 3, "a", size=SIZE * 2)
    coming = bulk.begin(4, "uint8", (SIZE,), SIZE, "a")
    assert inode(coming.descriptor) != second
    assert not bulk._spare
    bulk.close()


def test_a_file_that_a_worker_sealed_is_not_used_again(bulk: Bulk):
    first = a_round(bulk, 1, "a", seals=fcntl.F_SEAL_SEAL)
    kept = os.open(f"/proc/self/fd/{bulk._spare.descriptor}", os.O_RDONLY) if bulk._spare else -1  # its number stays
    assert a_round(bulk, 2, "a") != first
    os.close(kept)
    bulk.close()


def test_a_file_that_no_round_comes_for_is_let_go_of(bulk: Bulk, clock: Clock):
    a_round(bulk, 1, "a")
    assert bulk._spare is not None
    spare = bulk._spare
    clock.now = FETCHED_S + 1
    bulk.sweep()
    assert bulk._spare is None
    assert spare.descriptor == -1


def test_a_file_that_is_still_sent_when_its_session_ends_is_let_go_of(bulk: Bulk):
    coming = bulk.begin(1, "uint8", (SIZE,), SIZE, "a", use="round")
    coming.write(coming.begin_turn(), memoryview(bytes(SIZE)))
    ticket = bulk.keep(os.dup(bulk.claim(1).descriptor), SIZE, "a")
    with bulk.sending(ticket) as value:
        bulk.close()
        assert value.descriptor >= 0
    assert value.descriptor == -1
    assert bulk._spare is None
