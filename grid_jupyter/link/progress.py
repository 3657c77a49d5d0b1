"""The bar that shows a transfer which takes long: in notebooks and terminals, never in a log."""

from __future__ import annotations

import importlib.util
import sys
from types import TracebackType
from typing import Any

SHOWN_FROM = 8 << 20
"""Bytes of a transfer that may get a bar."""
SHOWN_AFTER_S = 1.0
"""How long it takes before it does."""

_shown = True


def show_progress(on: bool) -> None:
    """Whether large transfers of this process show a bar while they take longer than a second; they do at first.

    In a terminal or a notebook, that is; output that goes to a file never gets one.
    """
    global _shown
    _shown = bool(on)


class Progress:
    """One transfer, of `total` bytes if that is known already; as a context manager, the bar goes at its end."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._bar: Any = None
        if total is not None:
            self.of(total)

    def of(self, total: int) -> None:
        """How many bytes it will be."""
        if total >= SHOWN_FROM and self._bar is None and _shown and _somebody_watches():
            self._bar = _bar(self._what, total)

    def at(self, done: int) -> None:
        """How many bytes got through."""
        if self._bar is not None and done >= self._bar.n:
            self._bar.update(done - self._bar.n)
        elif self._bar is not None:  # it begins again: tqdm would wait until it is as far as it was
            self._bar.n = self._bar.last_print_n = done

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _somebody_watches() -> bool:
    return _in_notebook() or sys.stderr.isatty()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _bar(what: str, total: int) -> Any:
    try:
        if _in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
            bar: Any = importlib.import_module("tqdm.notebook").tqdm
        else:
            bar = importlib.import_module("tqdm").tqdm
    except ImportError:  # a bare installation
        return None
    return bar(
        desc=what, total=total, unit="B", unit_scale=True, unit_divisor=1024, delay=SHOWN_AFTER_S, leave=False,
        mininterval=0.2, miniters=1,
    )  # fmt: skip
