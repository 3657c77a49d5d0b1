"""What a training over a grid came to: the model, its history as a table, the plot, the bar that shows it going on."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from grid_jupyter.client.checkpoints import Record
from grid_jupyter.errors import DependencyError

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
        pandas = _needed("pandas")
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

    def plot(self) -> Any:
        """A matplotlib figure: what was measured on what was held out, and the loss, against the round."""
        pyplot = _needed("matplotlib.pyplot")  # whose import makes a notebook show figures
        figure = pyplot.figure(figsize=(9, 3.2), layout="constrained")
        pyplot.close(figure)  # else a notebook shows it once more
        self._draw(figure)
        return figure

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

    def _draw(self, figure: Any) -> None:
        names = list(dict.fromkeys(name for record in self.records for name in record.figures))
        losses = [name for name in names if name.endswith("loss")]
        others = [name for name in names if name not in losses]
        panels = [panel for panel in (others, losses) if panel] or [[]]
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for name in panel:
                points = [(one.round, one.figures[name]) for one in self.records if name in one.figures]
                axis.plot(*zip(*points, strict=True), marker=".", label=name)
            axis.set(xlabel="round")
            if panel:
                axis.legend()
        if others and all(0 <= one.figures.get(name, 0) <= 1 for one in self.records for name in others):
            axes[0].set(ylim=(0, 1))


class Watch:
    """The bar of a training, and its plot as it grows, where somebody watches."""

    def __init__(self, fit: Fit, rounds: int, *, live: bool) -> None:
        self._fit = fit
        self._bar = _bar(rounds, len(fit.records))
        self._display: Any = None
        self._live = live and _in_notebook() and importlib.util.find_spec("matplotlib") is not None

    def waiting(self, text: str) -> None:
        """Say whom it waits for."""
        if self._bar is not None:
            self._bar.set_description(text)

    def round(self) -> None:
        """A round more is there."""
        if self._bar is not None:
            figures = self._fit.records[-1].figures
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
            self._bar.update()
        if self._live:
            figure = self._fit.plot()
            if self._display is None:
                self._display = _needed("IPython.display").display(figure, display_id=True)
            else:
                self._display.update(figure)

    def close(self) -> None:
        """The bar stays as it is."""
        if self._bar is not None:
            self._bar.close()


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


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _bar(rounds: int, done: int) -> Any:
    if not _in_notebook() and not sys.stderr.isatty():
        return None
    notebook = _in_notebook() and importlib.util.find_spec("ipywidgets") is not None
    bar = _needed("tqdm.notebook" if notebook else "tqdm").tqdm
    return bar(desc="rounds", total=rounds, initial=done, unit="round")


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise DependencyError(f"this needs {package}: pip install 'grid-jupyter[lab]'") from None
