"""The picture of a training over devices: accuracy and loss by round, how devices differ, how many took part."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from grid_jupyter.client.measuring import AFTER, BEFORE
from grid_jupyter.client.watching import blank_figure, needed
from grid_jupyter.errors import InvalidDataError
from grid_jupyter.tensors.text import plain

_COLUMNS = frozenset({"cycle", "worker", "metric", "value", "samples"})
_MAIN, _TRAINED, _QUIET = "#1f5fa8", "#c4610a", "#8a8f98"
_SPREAD = 0.1, 0.9
"""Between which quantiles of devices the band lies."""
_ONES = 8
"""Rounds up to which each one is marked with a dot."""


@dataclass(frozen=True)
class _Line:
    """One metric by round: arrays of one length, by ascending round."""

    rounds: Any
    mean: Any
    low: Any
    high: Any


def plot_accuracy(metrics: Any, *, accuracy: str = "accuracy", loss: str = "loss", title: str = "") -> Any:
    """A matplotlib figure of the table that `metrics(…)` of a client gives.

    Accuracy and loss against the round, as means over devices weighted by their samples; the band has the middle 80 %
    of the devices; bars below count those that told metrics. Where devices measured before and after training, the
    first is the model that all of them got, and the second (dashed) each device's own. `accuracy` and `loss` name
    other metrics to plot.

    Raises InvalidDataError for another table, DependencyError without matplotlib.
    """
    if not set(getattr(metrics, "columns", ())) >= _COLUMNS:
        raise InvalidDataError("plot_accuracy takes the table that client.metrics(name, version) gives")
    panels = {name: lines for name in (accuracy, loss) if (lines := _lines(metrics, name))}
    figure = blank_figure(8, 1.7 + 2.1 * max(1, len(panels)))
    if not panels:
        figure.text(0.5, 0.5, "no device has told its metrics yet", ha="center", va="center", color=_QUIET)
        return figure
    axes = figure.subplots(len(panels) + 1, 1, sharex=True, height_ratios=[3] * len(panels) + [1], squeeze=False)[:, 0]
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        _panel(axis, name, lines)
        if name == accuracy and all(_within(line) for line in lines.values()):
            axis.set(ylim=(0, 1))
            axis.yaxis.set_major_formatter(needed("matplotlib.ticker").PercentFormatter(1.0, decimals=0))
    _participants(axes[-1], metrics)
    axes[0].legend(frameon=False, fontsize="small", ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    axes[0].set_title(_text(title), loc="left", fontweight="bold", fontsize="medium")
    return figure


def _lines(metrics: Any, name: str) -> dict[str, _Line]:
    """What is there of a metric, by its label."""
    found = {end: metrics[metrics["metric"] == name + end] for end in (BEFORE, "", AFTER)}
    common = found[BEFORE] if len(found[BEFORE]) else found[""]
    rows = {"model of the round": common, "trained on each device": found[AFTER]}
    return {label: _line(part) for label, part in rows.items() if len(part)}


def _line(rows: Any) -> _Line:
    numpy = needed("numpy")
    found = []
    with numpy.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # sums of what devices say may overflow; no such round is shown
        for cycle, part in rows.groupby("cycle"):
            values, samples = part["value"].to_numpy(), part["samples"].to_numpy(dtype="float64")
            found.append((cycle, numpy.average(values, weights=samples), *numpy.quantile(values, _SPREAD)))
    rounds = numpy.array(found, dtype="float64")
    return _Line(*rounds[numpy.isfinite(rounds).all(axis=1)].T)


def _within(line: _Line) -> bool:
    return bool((line.low >= 0).all() and (line.high <= 1).all())


def _panel(axis: Any, name: str, lines: dict[str, _Line]) -> None:
    for number, (label, line) in enumerate(lines.items()):
        how: dict[str, Any] = {"color": _TRAINED, "linestyle": (0, (4, 2)), "linewidth": 1.2}
        if number == 0:
            how = {"color": _MAIN, "linewidth": 2}
        marker = "o" if len(line.rounds) <= _ONES else None
        axis.plot(line.rounds, line.mean, marker=marker, markersize=4, label=label, zorder=3, **how)
        if number == 0:
            axis.fill_between(
                line.rounds, line.low, line.high, color=_MAIN, alpha=0.2, linewidth=0, label="middle 80 % of devices"
            )
    axis.set_ylabel(_text(name))
    _quiet(axis)


def _participants(axis: Any, metrics: Any) -> None:
    counts = metrics.groupby("cycle")["worker"].nunique()
    axis.bar(counts.index, counts.to_numpy(), width=0.7, color=_QUIET, alpha=0.6)
    axis.set(xlabel="round", xlim=(min(counts.index) - 0.6, max(counts.index) + 0.6), ylim=(0, max(counts) * 1.15))
    axis.set_ylabel("devices")
    axis.set_yticks([0, max(counts)])
    axis.xaxis.get_major_locator().set_params(integer=True)
    _quiet(axis)


def _quiet(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)


def _text(text: str) -> str:
    """Others' text, which matplotlib takes for no formula."""
    return plain(text, 22).replace("$", r"\$")
