"""Accuracy and loss against the round in a notebook: curves that grow, and a picture that stays in the file.

The picture is an output of its own below the curves, for a file that is opened without a kernel: made by matplotlib,
when training is over, and every so often before.
"""

from __future__ import annotations

import base64
import html
import io
import time
from typing import Any, Protocol
from urllib.parse import urlencode

from grid_jupyter.client.accuracy_plot import plot_accuracy
from grid_jupyter.client.fits import Fit
from grid_jupyter.client.jobs import WAITING, Job
from grid_jupyter.client.lines import of_measured, of_points
from grid_jupyter.client.metrics import frame_of
from grid_jupyter.client.owner import owner
from grid_jupyter.client.texts import line, name
from grid_jupyter.client.watching import curves, in_notebook
from grid_jupyter.errors import BadRequest, DependencyError, GridError, NodeUnavailableError
from grid_jupyter.link.http import call
from grid_jupyter.widgets.view import View, script, style

PICTURE_S = 15.0
"""How often the picture is made anew while training goes on, in seconds."""
AT_MOST_EVERY_S = 0.2
"""How often rounds are drawn as they come; besides, it looks every second."""
QUIET_S = 2.0
"""How long no round has to come before it is made anew all the same."""


class Source(Protocol):
    """Where rounds come from."""

    title: str
    python: dict[str, str]
    """What the exports are in Python."""

    def read(self) -> dict[str, Any]:
        """Lines, how training stands in words, and whether it is `over`. Raises GridError."""

    def figure(self) -> Any:
        """A matplotlib figure of what was read last. Raises DependencyError."""


class OfFit:
    """A training of `grid.train`, while it runs or behind it."""

    def __init__(self, fit: Fit | None) -> None:
        self.fit = fit
        self.title = "Training over Nodes"
        self.python = {"png": "fit.plot().savefig('curves.png')", "csv": "fit.history.to_csv('curves.csv')"}

    def read(self) -> dict[str, Any]:
        """Each round that is behind it."""
        points, each = ([], {}) if self.fit is None else (self.fit.points, self.fit.each)
        stands = f"round {points[-1][0]}" if points else "no round yet"
        return {**of_points("round", points, each), "stands": stands, "over": False}

    def figure(self) -> Any:
        """`fit.plot()`."""
        return curves("round", [] if self.fit is None else self.fit.points)


class OfJob:
    """A job at one Node, as far as its metrics are released."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.title = f"Job at {name(job.info.node)}"
        self.python = {"png": "job.history().plot()", "csv": "job.history().to_csv('curves.csv')"}

    def _points(self) -> list[Any]:
        return list(enumerate(self.job.info.history or (), 1))

    def read(self) -> dict[str, Any]:
        """Each epoch, or the last one of each round."""
        info = self.job.refresh()
        unit = "round" if info.arguments.rounds > 1 else "epoch"
        released = "" if info.history is not None else ", metrics are not released"
        over = info.state not in WAITING
        return {**of_points(unit, self._points()), "stands": f"{name(info.state)}{released}", "over": over}

    def figure(self) -> Any:
        """Loss and metrics by epoch or round."""
        return curves("epoch", self._points())


class OfProcess:
    """A model-centric training, as its host reads it."""

    def __init__(self, process: str, version: str | None, client: Any) -> None:
        self.title = name(process)
        self._client = client
        self._query = urlencode({"name": process, **({} if version is None else {"version": version})})
        self._reading = client._reading(process, version)
        which = ", ".join(map(repr, filter(None, (process, version))))
        self.python = {
            "png": f"sy.plot_accuracy(client.metrics({which})).savefig('curves.png')",
            "csv": f"client.export_metrics('curves.csv', {which})",
        }

    def read(self) -> dict[str, Any]:
        """Means of each cycle, and of the first devices what each told."""
        token = self._reading.token()
        stands: Any = call(self._client.address, "GET", f"/model-centric/cycle?{self._query}", token=token)
        of = f" of {stands['num_cycles']}" if stands["num_cycles"] else ""
        phase, problem = name(stands["phase"]), line(stands["problem"])
        told = f"{stands['completed']}{of} cycles, {phase}" if phase not in ("over", "failed") else phase
        return {
            **of_measured(self._reading.more()),
            "stands": f"{told}: {problem}" if problem else told,
            "over": phase in ("over", "failed"),
        }

    def figure(self) -> Any:
        """`sy.plot_accuracy(client.metrics(…))`."""
        return plot_accuracy(frame_of(self._reading.rows), title=self.title)


class Rounds(View):
    """`widgets.rounds(…)`. `show(fit)` is what `grid.train(…, after_round=view.show)` calls."""

    _esm = script("rounds", "uplot/uPlot.iife.min.js", "chart.js")
    _css = style("uplot/uPlot.min.css")

    def __init__(self, of: Any = None, version: str | None = None, client: Any = None) -> None:
        self._own: Any = None
        self._picture: Any = None
        self._drawn, self._drawn_at = (0, False), 0.0
        self._newest, self._newest_at = 0, 0.0
        self._woken_at = 0.0
        if isinstance(of, (Fit, type(None))):
            self._source: Source = OfFit(of)
        elif isinstance(of, Job):
            self._source = OfJob(of)
        elif isinstance(of, str):
            self._own = owner() if client is None else None
            self._source = OfProcess(of, version, client or self._own)
        else:
            raise BadRequest("widgets.rounds() takes the name of a model-centric training, a Fit, a Job, or nothing")
        super().__init__()

    def show(self, fit: Fit) -> None:
        """Draw this training from now on; `after_round=view.show` lets it go on."""
        if not isinstance(self._source, OfFit) or self._source.fit is not fit:
            self._source = OfFit(fit)
        now = time.monotonic()
        if now - self._woken_at > AT_MOST_EVERY_S:  # rounds may be faster than anybody sees; the last is looked for
            self._woken_at = now
            self.wake()

    def look(self) -> dict[str, Any]:
        """What was measured so far."""
        source = self._source
        found = source.read()
        self._draw_picture(len(found["rounds"]), found["over"])
        return {"node": source.title, "python": source.python, **found}

    def remedy(self, error: GridError) -> str:
        """A Node that does not answer may come back."""
        return "This view goes on by itself when it answers." if isinstance(error, NodeUnavailableError) else ""

    # -------------------------------------------------------------- the picture

    def figure(self) -> Any:
        """What the view shows, as a matplotlib figure. Raises DependencyError."""
        return self._source.figure()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        bundle, _ = self._repr_mimebundle_()
        display(bundle, raw=True)  # type: ignore[no-untyped-call]
        if in_notebook():
            self._picture = display({"text/plain": "", "text/html": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def _draw_picture(self, rounds: int, over: bool) -> None:
        now = time.monotonic()
        if rounds != self._newest:
            self._newest, self._newest_at = rounds, now
        due = over or not self._drawn[0] or now - self._drawn_at > PICTURE_S or now - self._newest_at > QUIET_S
        if self._picture is None or not rounds or (rounds, over) == self._drawn or not due:
            return
        try:
            self._picture.update(_bundle(self._source), raw=True)
        except DependencyError:
            return  # no matplotlib, no picture
        self._drawn, self._drawn_at = (rounds, over), now

    def close(self) -> None:
        """End the view; a picture of all that was measured stays."""
        if self._made and not self._closed:
            self.end()
            self.join(2.0)
            try:
                self._draw_picture(len(self._source.read()["rounds"]), True)
            except GridError:
                pass  # the one before stays
        super().close()
        if self._own is not None:
            self._own.close()


def _bundle(source: Source) -> dict[str, str]:
    buffer = io.BytesIO()
    source.figure().savefig(buffer, format="png", dpi=96)
    png = base64.b64encode(buffer.getvalue()).decode()
    title = html.escape(f"{source.title}, round by round")
    image = f'<img alt="{title}" src="data:image/png;base64,{png}">'
    folded = f"<details><summary>A picture, for this file without a kernel</summary>{image}</details>"
    return {"text/plain": f"{source.title}, round by round", "text/html": folded, "image/png": png}
