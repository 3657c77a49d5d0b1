"""Small steps that are kept as lists of kernels: the same bits as the ordinary ones, and only where that is so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plan_models import made
from test_job_training import BATCH, ROWS, halves, job, linear
from torch import Tensor, nn

from grid_jupyter.errors import RemoteOperationError
from grid_jupyter.worker import kept_steps


def classes(seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(seed))
    return x, x.argmax(1) % 3


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


KEPT: list[tuple[Any, Any, Any, dict[str, Any]]] = [
    (perceptron, nn.CrossEntropyLoss(), classes, {"metrics": ("accuracy",)}),
    (perceptron, nn.CrossEntropyLoss(), classes, {"shuffle": True, "optimizer": "adam", "numbers": {"lr": 0.01}}),
    (perceptron, nn.CrossEntropyLoss(), classes, {"numbers": {"lr": 0.1, "momentum": 0.9}, "proximal": 0.1}),
    (dropping, nn.CrossEntropyLoss(), classes, {"shuffle": True}),
    (linear, nn.BCELoss(), halves, {"shuffle": True, "batch_size": 7}),
    (linear, nn.MSELoss(), halves, {"batch_size": ROWS}),
]


@pytest.mark.parametrize(("network", "loss", "rows", "options"), KEPT)
def test_steps_that_are_kept_train_to_the_bits_of_the_ordinary_ones(
    network: Any, loss: Any, rows: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    came = []
    for can in (True, False):
        monkeypatch.setattr(kept_steps, "CAN_COMPILE", can)
        ours = job(network(), loss, *rows(), **options)
        told = [ours.epoch(number) for number in range(1, 5)]
        assert all(one is not None for one in ours._kept.values()) is can
        came.append((told, ours.weights.flat.clone()))
    assert came[0][0] == came[1][0]
    assert torch.equal(came[0][1], came[1][1])


def test_another_round_trains_from_the_weights_that_it_is_given(monkeypatch: pytest.MonkeyPatch):
    flats = []
    for can in (True, False):
        monkeypatch.setattr(kept_steps, "CAN_COMPILE", can)
        ours = job(perceptron(), nn.CrossEntropyLoss(), *classes(), shuffle=True)
        begun = ours.weights.flat.clone()
        for round_ in (1, 2, 3):
            with torch.no_grad():
                ours.weights.load(begun)
            ours.reset()
            ours.epoch(1, round_)
        flats.append(ours.weights.flat.clone())
    assert torch.equal(*flats)


@pytest.mark.parametrize("name", ["batch-norm-cnn", "lstm"])
def test_what_is_not_known_to_come_to_the_same_stays_as_it_was(name: str):
    model, loss, rows = made(name)
    ours = job(model, loss, *rows(ROWS))
    for number in (1, 2):
        ours.epoch(number)
    assert not any(ours._kept.values())


def test_a_step_of_much_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_steps, "MOST_BYTES", 1000)
    ours = job(perceptron(), nn.CrossEntropyLoss(), *classes())
    ours.epoch(1)
    assert not any(ours._kept.values())


def test_training_that_diverges_in_steps_that_are_kept_says_so():
    x, y = halves()
    ours = job(nn.Linear(4, 1), nn.MSELoss(), x, y, numbers={"lr": 10.0})
    ours.epoch(1)
    assert ours._kept[BATCH] is not None
    with pytest.raises(RemoteOperationError, match="diverged"):
        list(map(ours.epoch, range(2, 50)))


def test_what_is_kept_is_the_step_of_its_own_number_of_rows():
    ours = job(perceptron(), nn.CrossEntropyLoss(), *classes())
    for number in (1, 2):
        ours.epoch(number)
    assert sorted(ours._kept) == [ROWS % BATCH, BATCH]
