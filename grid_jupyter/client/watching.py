"""What somebody sees of a training while it goes on: a bar, and in a notebook curves that grow. Knows no torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grid_jupyter.errors import DependencyError
from grid_jupyter.tensors.text import plain

LABEL_CHARS = 60
"""Of a metric's or a Node's name in a legend."""
Point = tuple[int, Mapping[str, float]]
"""The number of a round or an epoch, and what was measured behind it."""
Draw = Callable[[str, Sequence[Point]], Any]
"""Unit and points → a matplotlib figure."""


class Watch:
    """A bar of `total` rounds or epochs, where somebody watches; with `live`, in a notebook, the curves as well."""

    def __init__(
        self, unit: str, total: int | None, *, live: bool, done: int = 0, draw: Draw | None = None, bar: bool = True
    ) -> None:
        """`draw(unit, points)` makes another figure than `curves`; None for the total: nobody knows. Without `bar`
        there is none."""
        self._unit, self._draw = unit, draw or curves
        self._bar = _bar(unit, total, done) if bar else None
        self._display: Any = None
        self._live = live and in_notebook() and importlib.util.find_spec("matplotlib") is not None

    def says(self, text: str) -> None:
        """Say what it waits for."""
        if self._bar is not None:
            self._bar.set_description(text)

    def at(self, points: Sequence[Point]) -> None:
        """So far it is; `points` are all that there are."""
        if not points:
            return
        number, figures = points[-1]
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
            self._bar.update(number - self._bar.n)
            self._bar.refresh()
        if self._live:
            figure = self._draw(self._unit, points)
            if self._display is None:
                self._display = needed("IPython.display").display(figure, display_id=True)
            else:
                self._display.update(figure)

    def close(self) -> None:
        """The bar stays as it is."""
        if self._bar is not None:
            self._bar.close()


def curves(unit: str, points: Sequence[Point], each: Mapping[str, Sequence[Point]] | None = None) -> Any:
    """A matplotlib figure: what was measured, and losses beside it, against the number of the round or epoch.

    `each`: what several measured by themselves, by name, in thin lines.
    """
    figure = blank_figure(9, 3.2)
    alone = {(by, name) for by, some in (each or {}).items() for _, figures in some for name in figures}
    names = list(dict.fromkeys([name for _, figures in points for name in figures] + sorted(name for _, name in alone)))
    losses = [name for name in names if name.endswith("loss")]
    others = [name for name in names if name not in losses]
    panels = [panel for panel in (others, losses) if panel] or [[]]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for name in panel:
            line = [(number, figures[name]) for number, figures in points if name in figures]
            if line:
                axis.plot(*zip(*line, strict=True), marker=".", label=_label(name))
        for by, name in sorted(one for one in alone if one[1] in panel):
            line = [(number, figures[name]) for number, figures in (each or {})[by] if name in figures]
            axis.plot(*zip(*line, strict=True), linewidth=0.8, alpha=0.6, label=_label(f"{by} · {name}"))
        axis.set(xlabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if panel:
            axis.legend()
    if others and all(0 <= figures.get(name, 0) <= 1 for _, figures in points for name in others):
        axes[0].set(ylim=(0, 1))
    return figure


def _label(text: str) -> str:
    """Others' text, which matplotlib takes for no formula, nor for one that the legend leaves out."""
    return plain(text.lstrip("_"), LABEL_CHARS).replace("$", r"\$")


def blank_figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches. Raises DependencyError."""
    pyplot = needed("matplotlib.pyplot")
    if threading.current_thread() is not threading.main_thread():
        # pyplot has one current figure for all threads, and it is what somebody's cell draws on
        return needed("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    figure = pyplot.figure(figsize=(width, height), layout="constrained")  # which makes a notebook show figures
    pyplot.close(figure)  # else a notebook shows it once more
    return figure


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def needed(module: str) -> Any:
    """A module of an optional package. Raises DependencyError."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise DependencyError(f"this needs {package}: pip install 'grid-jupyter[lab]'") from None


def _bar(unit: str, total: int | None, done: int) -> Any:
    if not in_notebook() and not sys.stderr.isatty():
        return None
    notebook = in_notebook() and importlib.util.find_spec("ipywidgets") is not None
    bar = needed("tqdm.notebook" if notebook else "tqdm").tqdm
    return bar(desc=f"{unit}s", total=total, initial=done, unit=unit)
