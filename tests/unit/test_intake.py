"""What comes to a Worker through pipes: between frames, whole or not at all, and gone when its Node lets go of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from grid_jupyter.errors import InvalidMessageError
from grid_jupyter.worker.channel import Channel, pair
from grid_jupyter.worker.intake import Intake

SIZE = (5 << 20) + 3


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    node, worker = [Channel(sock) for sock in pair()]
    worker.sock.settimeout(10.0)
    yield node, worker
    node.close()
    worker.close()


def test_a_tensor_comes_in_while_the_worker_waits_for_a_frame(ends: tuple[Channel, Channel]):
    node, worker = ends
    data, (reader, writer), intake = os.urandom(SIZE), pipe(), Intake()

    def send() -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(writer, rest) :]
        node.send(b"all of it is sent")

    sending = threading.Thread(target=send)
    intake.begin(1, SIZE, reader)
    sending.start()
    intake.serve_until(worker.sock)
    sending.join(10.0)
    assert bytes(worker.receive()[0]) == b"all of it is sent"
    assert intake.whole(1)[:] == data
    assert intake.whole(1)[:] == data, "a request that is sent again is answered again"
    os.close(writer)
    node.send(b"next")
    intake.serve_until(worker.sock)
    assert intake.is_open, "a frame goes before the end of a pipe, for it may speak of it"
    worker.receive()
    intake.serve_until(worker.sock)
    assert not intake.is_open


def test_what_is_left_in_the_pipe_belongs_to_the_tensor_and_no_byte_may_be_missing():
    (reader, writer), intake = pipe(), Intake()
    intake.begin(7, 10, reader)
    os.write(writer, b"12345")
    with pytest.raises(InvalidMessageError, match="without all of its bytes"):
        intake.whole(7)
    with pytest.raises(InvalidMessageError, match="did not come"):
        intake.whole(8)
    os.write(writer, b"67890 and more")
    assert intake.whole(7)[:] == b"1234567890"
    os.close(writer)


def test_a_tensor_that_is_given_up_leaves_nothing(ends: tuple[Channel, Channel]):
    _, worker = ends
    before = descriptors()
    intake = Intake()
    for number in range(20):
        reader, writer = pipe()
        intake.begin(number, SIZE, reader)
        os.write(writer, b"half")
        os.close(writer)
    intake.serve_until(worker.sock)
    assert not intake.is_open
    assert descriptors() == before


def test_numbers_are_not_used_twice_and_the_pipe_is_closed():
    intake, before = Intake(), descriptors()
    (reader, writer), (other, theirs) = pipe(), pipe()
    intake.begin(1, 5, reader)
    for number, nbytes in ((1, 5), (2, 0)):
        with pytest.raises(InvalidMessageError):
            intake.begin(number, nbytes, os.dup(other))
    for one in (reader, writer, other, theirs):
        os.close(one)
    assert descriptors() == before


_NARROW = """
import os, resource
from grid_jupyter.worker.intake import Intake
from grid_jupyter.worker.memory import data_bytes
resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + (64 << 20),) * 2)
(given_up, theirs), (reader, writer) = os.pipe(), os.pipe()
intake = Intake()
intake.begin(1, 40 << 20, given_up)
os.close(theirs)
intake.begin(2, 40 << 20, os.dup(reader))
try:
    intake.begin(3, 40 << 20, reader)
except MemoryError:
    pass
else:
    raise SystemExit("it had room")
print("refused")
"""


def test_a_tensor_for_which_there_is_no_memory_is_refused_before_it_comes():
    done = subprocess.run([sys.executable, "-c", _NARROW], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
