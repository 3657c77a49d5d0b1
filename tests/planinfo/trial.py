"""One layer, captured, and trained for three steps beside eager torch."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch

from grid_jupyter.errors import NotCapturableError
from grid_jupyter.plans.models import training_plan
from grid_jupyter.plans.optimisers import SGD

from .layers import Entry

SIZES = (6, 5, 9)
"""Rows of the three steps."""
AGREES, REFUSED, DIFFERS = "agrees", "refused", "differs"
TOLERANCE = 1e-5
"""Largest difference of a parameter after the steps."""


class Verdict(NamedTuple):
    """How a layer does: `outcome` is one of the three above, `reason` why not."""

    name: str
    outcome: str
    reason: str


def trial(name: str, entry: Entry) -> Verdict:
    """Refused, with the reason that a user gets; or compared."""
    torch.manual_seed(1)
    model = entry.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of layers that warn
        try:
            plan = training_plan(model, entry.loss, SGD(lr=0.05), inputs=entry.rows(4), metrics=())
        except NotCapturableError as error:
            return Verdict(name, REFUSED, str(error))
        training, optimiser = plan.training(), torch.optim.SGD(model.parameters(), lr=0.05)
        for size in SIZES:
            x, y = entry.rows(size)
            training.step({"x": x}, {"y": y}, size)
            optimiser.zero_grad()
            entry.loss(model(x), y).backward()
            optimiser.step()
    worst = max(float((training.params[key] - p.detach()).abs().max()) for key, p in model.named_parameters())
    return Verdict(name, AGREES if worst < TOLERANCE else DIFFERS, f"{worst:.0e}")
