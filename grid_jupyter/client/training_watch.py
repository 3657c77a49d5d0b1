"""Who watches a training of `grid.train`, and what they are told: a bar and curves in the cell, and the Grid panel.

The panel is told by a comm of the kernel, whose messages come while the cell runs; nobody has to listen. Each message
has all that is drawn, so that a page that was loaded anew is right with the next one, or asks for the last.
"""

from __future__ import annotations

import importlib.util
import time
import uuid
from collections import deque
from typing import Any, Literal

from grid_jupyter.client.fits import Fit
from grid_jupyter.client.lines import EACH, ROUNDS, of_points
from grid_jupyter.client.texts import line, name
from grid_jupyter.client.watching import Watch, in_notebook, needed

TARGET = "grid-jupyter:training"
"""What the panel listens to, and how the ids of its comms begin."""
Phase = Literal["waiting", "running", "finished", "cut"]
_VALUES, _LAST_VALUES = 6_000, 60_000
"""Of each metric in a message while it goes on, and in its last one: Jupyter's server takes so many bytes a second."""
_EVERY_S = 0.5
_REST = 20.0
"""It rests so many times as long as it took to tell."""
_KEPT = 20
"""Trainings of a kernel that a page can ask for."""

_told: deque[Any] = deque()


class TrainingWatch:
    """Tells of one training over so many Nodes."""

    def __init__(self, fit: Fit, rounds: int, nodes: int, reason: str, *, live: bool) -> None:
        self._fit, self._rounds, self._nodes = fit, rounds, nodes
        self._reason = line(reason)
        self._watch = Watch("round", rounds, live=live, done=len(fit.records), bar=live)
        self._page: _Page | None = None
        self._after = 0.0
        if len(fit.records) < rounds and in_notebook() and importlib.util.find_spec("comm") is not None:
            self._page = _Page(self._message("waiting"))

    def says(self, text: str) -> None:
        """What it waits for."""
        self._watch.says(text)

    def at(self) -> None:
        """A round is behind it."""
        self._watch.at(self._fit.points)
        began = time.monotonic()
        if began >= self._after:
            self._tell("running")
            self._after = began + max(_EVERY_S, _REST * (time.monotonic() - began))

    def close(self, phase: Phase) -> None:
        """It is over."""
        self._watch.close()
        self._tell(phase, _LAST_VALUES)

    def _tell(self, phase: Phase, values: int = _VALUES) -> None:
        if self._page is not None:
            self._page.tell(self._message(phase, values))

    def _message(self, phase: Phase, values: int = _VALUES) -> dict[str, Any]:
        fit = self._fit
        last = fit.records[-1] if fit.records else None
        left_out = sorted(() if last is None else last.left_out.items())[:EACH]
        most = min(ROUNDS, values // (1 + min(self._nodes, EACH)))
        return {
            "phase": phase,
            "reason": self._reason,
            "done": 0 if last is None else last.round,
            "asked": self._rounds,
            "nodes": self._nodes,
            "left_out": [[name(node), line(why)] for node, why in left_out],
            **of_points("round", fit.points, fit.each, most=most),
        }


class _Page:
    """The panel's side of a training: its last message, which outlives the training, and nothing else of it."""

    def __init__(self, first: dict[str, Any]) -> None:
        self._last = first
        name = f"{TARGET}:{uuid.uuid4().hex}"  # a page that was loaded anew knows its messages by that
        self._comm = needed("comm").create_comm(target_name=TARGET, comm_id=name, data=first)
        self._comm.on_msg(lambda asked: self._comm.send(self._last))
        _told.append(self._comm)
        if len(_told) > _KEPT:
            _told.popleft().close()

    def tell(self, message: dict[str, Any]) -> None:
        self._last = message
        self._comm.send(message)
