"""What devices measured, on the side of who hosts the model: as a table, as means of rounds, live. Knows no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec

from grid_jupyter.client.accuracy_plot import plot_accuracy
from grid_jupyter.client.watching import Draw, Watch, needed
from grid_jupyter.errors import Forbidden
from grid_jupyter.link.http import Address, call, transfer
from grid_jupyter.tensors.text import plain

COLUMNS = ("cycle", "worker", "metric", "value", "samples", "time")
"""Of the table: a row for each metric that a device told of a cycle."""
_WAIT_S = 10


class Measured(msgspec.Struct, frozen=True):
    """What one device told of a cycle. `worker` is its number among the devices, `time` UTC seconds."""

    cycle: int
    worker: int
    samples: Annotated[int, msgspec.Meta(ge=1)]
    time: float
    values: dict[str, float]


class _Page(msgspec.Struct, frozen=True):
    name: str
    version: str
    metrics: list[Measured]
    next: int
    more: bool


@dataclass
class Reading:
    """The metrics of one training, as far as they were read; `more` reads on."""

    address: Address
    token: Callable[[], str]
    name: str
    version: str | None
    _next: int = 0

    def __post_init__(self) -> None:
        self._rows: list[Measured] = []

    @property
    def rows(self) -> list[Measured]:
        """What was read."""
        return self._rows

    def more(self) -> list[Measured]:
        """Read what came since; returns all of it. Raises NotFound, Forbidden for who does not host the model."""
        while True:
            where = f"/model-centric/metrics?{_query(self.name, self.version, after=self._next)}"
            page: _Page = call(self.address, "GET", where, token=self.token(), kind=_Page)
            self._next = page.next
            self._rows += page.metrics
            if not page.more:
                return self.rows


def frame_of(rows: Iterable[Measured]) -> Any:
    """A tidy pandas DataFrame of COLUMNS, by cycle and worker."""
    pandas = needed("pandas")
    lines = [
        (one.cycle, one.worker, plain(name), value, one.samples, one.time)
        for one in sorted(rows, key=lambda one: (one.cycle, one.worker))
        for name, value in sorted(one.values.items())
    ]
    frame = pandas.DataFrame(lines, columns=list(COLUMNS))
    kinds = {"cycle": "int64", "worker": "int64", "metric": "str", "value": "float64", "samples": "int64"}
    frame = frame.astype(kinds)
    frame["time"] = pandas.to_datetime(frame["time"].astype("float64"), unit="s", utc=True)
    return frame


def means_of(rows: Iterable[Measured]) -> dict[str, float]:
    """Means over devices, each weighted by the number of samples that it measured on.

    mean[m] = Σ nᵢ·vᵢ[m] / Σ nᵢ        over the devices that told m
    """
    totals: dict[str, tuple[float, int]] = {}
    for one in rows:
        for name, value in one.values.items():
            total, samples = totals.get(name, (0.0, 0))
            totals[name] = total + one.samples * value, samples + one.samples
    return {plain(name): total / samples for name, (total, samples) in sorted(totals.items())}


class ReadsMetrics:
    """What clients of a Node have for metrics of the models that they host."""

    address: Address
    _token: str

    def metrics(self, name: str, version: str | None = None) -> Any:
        """What devices measured, a tidy pandas DataFrame with the columns cycle, worker, metric, value, samples, time.

        `worker` is a device's number in this training, `samples` the rows that it measured on. All of it is what the
        devices say. Without a version it is the newest. Raises NotFound, Forbidden for who does not host the model.
        """
        return frame_of(self._reading(name, version).more())

    def export_metrics(self, path: str | Path, name: str, version: str | None = None) -> Path:
        """Write the same as a CSV file, whose path is returned. Raises as `metrics` does."""
        where = f"/model-centric/metrics?{_query(name, version, format='csv')}"
        path = Path(path)
        path.write_bytes(transfer(self.address, "GET", where, token=self._token))
        return path

    def watch_training(
        self, name: str, version: str | None = None, timeout_s: float | None = None, *, live: bool = True
    ) -> Any:
        """Wait until a training is over, or `timeout_s` went by, with a bar of its cycles, and with `live` in a
        notebook the plot of accuracy and loss as it grows. Returns `metrics` as they are then."""
        reading = self._reading(name, version)
        reading.more()  # raises before anything is shown
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        watch: Watch | None = None
        try:
            for stands in self._stands(name, version, until):
                if watch is None:
                    draw = _drawing(name, reading)
                    watch = Watch("cycle", stands["num_cycles"] or None, live=live, draw=draw)
                watch.says(plain(str(stands["phase"])))
                figures = means_of(one for one in reading.more() if one.cycle == stands["completed"])
                watch.at([(stands["completed"], figures)] if stands["completed"] else [])
        finally:
            if watch is not None:
                watch.close()
        return frame_of(reading.rows)

    def _stands(self, name: str, version: str | None, until: float) -> Iterator[dict[str, Any]]:
        """How a training stands: at once, whenever more cycles are complete, and at its end."""
        completed = -1
        while True:
            wait_s = max(0, math.ceil(min(_WAIT_S, until - time.monotonic())))
            query = _query(name, version, **({} if completed < 0 else {"after": completed, "wait_s": wait_s}))
            stands: dict[str, Any] = dict(call(self.address, "GET", f"/model-centric/cycle?{query}", token=self._token))
            over = stands["phase"] in ("over", "failed") or time.monotonic() >= until
            if stands["completed"] > completed or over:
                completed = stands["completed"]
                yield stands
            if over:
                return

    def _reading(self, name: str, version: str | None) -> Reading:
        return Reading(self.address, lambda: self._token, name, version)


def told_of(reading: Reading, cycle: int) -> dict[str, Any]:
    """`{"metrics": means}` of a cycle, for whom they are; nothing for who follows a model of somebody else's."""
    try:
        rows = reading.more()
    except Forbidden:
        return {}
    return {"metrics": means_of(one for one in rows if one.cycle == cycle)}


def _drawing(title: str, reading: Reading) -> Draw:
    return lambda unit, points: plot_accuracy(frame_of(reading.rows), title=title)


def _query(name: str, version: str | None, **more: Any) -> str:
    return urlencode({"name": name, **({} if version is None else {"version": version}), **more})
