"""What a training over a grid came to: the model, its history as a table, the plot."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from grid_jupyter.client.checkpoints import Record
from grid_jupyter.client.watching import Point, curves, needed

Metric = Callable[[torch.Tensor, torch.Tensor], Any]
"""(scores, targets) -> a number."""
HeldOut = tuple[torch.Tensor, torch.Tensor]


class Fit:
    """A training over a grid, as far as it has come."""

    def __init__(self, model: torch.nn.Module, records: Sequence[Record] = ()) -> None:
        self.model = model
        """The trained model; the one that was given to `train` is as it was."""
        self.records: list[Record] = list(records)

    @property
    def history(self) -> Any:
        """A pandas DataFrame with a row for each round, by its number: loss and metrics on what was held out,
        `train_loss` where Nodes released it, participants, seconds, and who was left out and why."""
        pandas = needed("pandas")
        rows = [
            {
                "round": record.round,
                **record.figures,
                "participants": len(record.participants),
                "seconds": record.seconds,
                "left_out": "; ".join(f"{name}: {why}" for name, why in record.left_out.items()),
            }
            for record in self.records
        ]
        columns = ["round", "participants", "seconds", "left_out"]
        return pandas.DataFrame(rows, columns=None if rows else columns).set_index("round")

    @property
    def points(self) -> list[Point]:
        """Each round's number, and what was measured behind it."""
        return [(record.round, record.figures) for record in self.records]

    @property
    def each(self) -> dict[str, list[Point]]:
        """The same by the names of the Nodes: what each one measured on its own rows, as far as it was released."""
        names = dict.fromkeys(name for record in self.records for name in record.each)
        return {
            name: [(record.round, record.each[name]) for record in self.records if name in record.each]
            for name in names
        }

    def plot(self, *, each: bool = False) -> Any:
        """A matplotlib figure: what was measured on what was held out, and the loss, against the round; with `each`,
        what each Node measured besides, in thin lines."""
        return curves("round", self.points, self.each if each else None)

    def __repr__(self) -> str:
        if not self.records:
            return "<Fit before its first round>"
        last = self.records[-1]
        figures = ", ".join(f"{name} {value:.4g}" for name, value in last.figures.items())
        return f"<Fit after {last.round} rounds: {figures or 'nothing was held out'}>"

    def _repr_png_(self) -> Any:
        """What a notebook shows, where matplotlib is installed."""
        if importlib.util.find_spec("matplotlib") is None or not self.records:
            return None
        buffer = io.BytesIO()
        self.plot().savefig(buffer, format="png", dpi=96)
        return buffer.getvalue()


def evaluated(
    model: torch.nn.Module, loss: Any, held_out: HeldOut | None, metrics: Mapping[str, Metric] | None
) -> dict[str, float]:
    """Loss and metrics on what was held out; without metrics, accuracy where the targets are classes."""
    if held_out is None:
        return {}
    rows, targets = held_out
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            scores = model(rows)
            found = {} if metrics is None else {name: float(one(scores, targets)) for name, one in metrics.items()}
            if metrics is None and targets.dtype == torch.int64 and scores.dim() == 2:
                found["accuracy"] = float((scores.argmax(1) == targets).double().mean())
            found["loss"] = float(loss(scores, targets))
    finally:
        model.train(training)
    return found
