"""Answers of the Worker that folds go together where they can, in order, and none waits for something to come."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from grid_jupyter.aggregation.averaging import Averaging
from grid_jupyter.aggregation.reports import _SMALL, Folding, form_of
from grid_jupyter.aggregation.strategies import FedAvg, Median
from grid_jupyter.errors import GridError, InvalidDataError
from grid_jupyter.wire import frames, worker
from grid_jupyter.worker.channel import Channel, pair
from grid_jupyter.worker.folds import serve

LIMITS = worker.WorkerLimits(memory_bytes=0, operation_s=0, threads=1)


class Memory:
    """The file of a checkpoint."""

    def __init__(self) -> None:
        self.data = b""

    def begin(self, name: str, nbytes: int, /) -> Memory:
        return self

    def write(self, data: bytes | memoryview, /) -> None:
        self.data += bytes(data)


def test_an_answer_waits_for_the_next_one_and_no_longer_than_its_sender_has_something_to_do(tmp_path: Path):
    near, far = pair()
    with near, far:
        ours, theirs = Channel(near), Channel(far)
        theirs.send_soon(b"first")
        with pytest.raises(BlockingIOError):
            near.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        waiting = threading.Thread(target=theirs.receive)
        waiting.start()
        assert bytes(ours.receive()[0]) == b"first"
        ours.send(b"go on")
        waiting.join()
        theirs.send_soon(b"second")
        (tmp_path / "file").write_bytes(b"abc")
        with (tmp_path / "file").open("rb") as file:
            theirs.send(b"third", [file.fileno()])
        assert bytes(ours.receive()[0]) == b"second"
        frame, (descriptor,) = ours.receive()
        assert (bytes(frame), os.pread(descriptor, 9, 0)) == (b"third", b"abc")
        os.close(descriptor)


def test_a_frame_with_a_descriptor_may_be_longer_than_the_socket_takes_at_once(tmp_path: Path):
    near, far = pair()
    long = bytes(range(256)) * 8_000
    with near, far, (tmp_path / "file").open("wb") as file:
        sending = threading.Thread(target=Channel(far).send, args=(long, [file.fileno()]))
        sending.start()
        frame, (descriptor,) = Channel(near).receive()
        sending.join()
        assert bytes(frame) == long
        os.close(descriptor)


def test_each_of_many_requests_that_came_at_once_is_answered(tmp_path: Path):
    save_file({"w": numpy.ones(5, numpy.float32)}, tmp_path / "model")
    near, far = pair()
    with near, far, (tmp_path / "model").open("rb") as model:
        ours = Channel(near)
        begin = worker.BeginFold(training=1, strategy="FedAvg", numbers={}, buffers=())
        check = worker.CheckReport(training=1, samples=1, max_norm=None, forms=("float32",))
        for number in range(20):
            ours.send(worker.request_frame(number, check if number else begin), [model.fileno()])
        working = threading.Thread(target=serve, args=(far, LIMITS))
        working.start()
        answers = [frames.decode(frames.unpack(ours.receive()[0]).header, worker.reply_decoder) for _ in range(20)]
        assert answers == [(number, worker.Done()) for number in range(20)]
        near.shutdown(socket.SHUT_WR)
        working.join()


@pytest.mark.parametrize("length", [3, _SMALL])
@pytest.mark.parametrize("kept", [False, True])
def test_a_report_that_is_read_and_one_that_is_mapped_come_to_the_same(tmp_path: Path, length: int, kept: bool):
    random = numpy.random.default_rng(length)
    reports = [random.standard_normal(length).astype(numpy.float32) for _ in range(2)]
    opened = []
    for number, values in enumerate(reports):
        save_file({"w": values}, tmp_path / str(number))
        opened.append((tmp_path / str(number)).open("rb"))
    folding = Folding(form_of(opened[0].fileno()), Averaging(Median() if kept else FedAvg()))
    for file in opened:
        folding.check(file.fileno(), samples=3)
        folding.fold(file.fileno(), 3)
        file.close()
    made = Memory()
    with (tmp_path / "0").open("rb") as model:
        folding.checkpoint(model.fileno(), {}, made)
    found = numpy.frombuffer(made.data[-4 * length :], numpy.float32)
    numpy.testing.assert_allclose(found, reports[0] - (reports[0] + reports[1]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [numpy.float32, numpy.float64])
@pytest.mark.parametrize("samples", [1, 1_000, 10**25])
def test_values_are_refused_from_where_the_sum_of_a_million_like_them_overflows(
    tmp_path: Path, dtype: type[numpy.floating], samples: int
):
    most = float(numpy.finfo(dtype).max) / (1 << 20) / samples
    for value in (dtype(most / 1.01), dtype(most * 1.01)):
        save_file({"w": numpy.array([0, -value, 0], dtype)}, tmp_path / "report")
        with (tmp_path / "report").open("rb") as file:
            folding = Folding(form_of(file.fileno()), Averaging())
            if float(value) <= most:
                folding.check(file.fileno(), samples=samples)
            else:
                with pytest.raises(InvalidDataError, match="would overflow its sum"):
                    folding.check(file.fileno(), samples=samples)


def test_a_report_that_is_shorter_than_it_was_when_it_came_is_refused(tmp_path: Path):
    save_file({"w": numpy.ones(500, numpy.float32)}, tmp_path / "report")
    with (tmp_path / "report").open("r+b") as file:
        folding = Folding(form_of(file.fileno()), Averaging())
        file.truncate(300)
        with pytest.raises(GridError):
            folding.check(file.fileno())
