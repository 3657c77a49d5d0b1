"""What the Grid panel is told of a training leaves nothing of it behind but its last message."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from grid_jupyter import Fit
from grid_jupyter.client import training_watch
from grid_jupyter.client.checkpoints import Record
from grid_jupyter.client.training_watch import TrainingWatch


def test_a_training_that_is_over_is_not_kept_for_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_watch, "in_notebook", lambda: True)
    monkeypatch.setattr(training_watch, "_told", training_watch.deque())
    for _ in range(30):
        fit = Fit(torch.nn.Linear(2, 1))
        watch = TrainingWatch(fit, 2, 1, "for ward 7", live=False)
        fit.records.append(Record(1, ("Flo",), 0.1, {"loss": float("nan")}, {"Gus": "away"}, {"Flo": {"loss": 0.5}}))
        watch.at()
        watch.close("finished")
    model = weakref.ref(fit.model)
    del fit, watch
    gc.collect()
    assert model() is None
    assert len(training_watch._told) == 20
