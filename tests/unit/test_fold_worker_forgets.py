"""What a Worker that folds knows of a training that is over, or could not be begun, is in nobody's way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from grid_jupyter.cycles.fold_worker import FoldWorker, Subject, fold_workers


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
