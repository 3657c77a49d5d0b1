"""What a Worker that folds knows of a training that is over, or could not be begun, is in nobody's way."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from grid_jupyter.cycles.fold_worker import FoldWorker, Subject, fold_workers
from grid_jupyter.errors import InvalidDataError
from grid_jupyter.wire import frames, worker
from grid_jupyter.wire.messages import Failed
from grid_jupyter.worker.channel import Channel
from grid_jupyter.worker.folds import Folds


def _file(path: Path, length: int) -> Path:
    save_file({"w": numpy.zeros(length, numpy.float32)}, path)
    return path


def _subject(number: int, model: Path) -> Subject:
    return Subject(number, model, "FedAvg", {}, (), None, ("float32",))


def test_a_number_that_is_given_again_is_another_training(tmp_path: Path) -> None:
    async def run() -> None:
        folds = FoldWorker(fold_workers())
        try:
            older = _subject(1, _file(tmp_path / "older", 7))
            await folds.check(older, tmp_path / "older", 1)
            await folds.drop(older)
            await folds.check(_subject(1, _file(tmp_path / "newer", 3)), tmp_path / "newer", 1)
        finally:
            await folds.stop()

    asyncio.run(run())


def test_a_model_that_could_not_be_opened_once_is_opened_the_next_time(tmp_path: Path) -> None:
    async def run() -> None:
        folds = FoldWorker(fold_workers())
        try:
            report, subject = _file(tmp_path / "report", 3), _subject(1, tmp_path / "model")
            with pytest.raises(FileNotFoundError):  # or too many open files
                await folds.check(subject, report, 1)
            _file(tmp_path / "model", 3)
            await folds.check(subject, report, 1)
        finally:
            await folds.stop()

    asyncio.run(run())


def test_what_no_check_foresaw_is_told_with_a_remedy_and_the_worker_goes_on(tmp_path: Path) -> None:
    model = os.open(_file(tmp_path / "model", 3), os.O_RDONLY)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel, folds = Channel(near), Folds()
    said = []
    for number, numbers in enumerate(({"nonsense": 1}, {})):
        begin = worker.BeginFold(training=1, strategy="FedAvg", numbers=numbers, buffers=())
        folds.answer(channel, number, begin, [model])
        frame, _ = Channel(far).receive()
        said.append(frames.decode(frames.unpack(frame).header, worker.reply_decoder)[1])
    os.close(model)
    near.close()
    far.close()
    assert isinstance(said[0], Failed)
    assert (said[0].code, "send a report as" in said[0].error) == (InvalidDataError.code, True)
    assert said[1] == worker.Done()
