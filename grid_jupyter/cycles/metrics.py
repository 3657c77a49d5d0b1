"""What devices measure: taken once for each place, told to who hosts the model and to nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grid_jupyter.errors import BadRequest, Conflict, Forbidden
from grid_jupyter.identity.accounts import Account
from grid_jupyter.store.database import Database
from grid_jupyter.store.metrics import MetricsRows, MetricsTable, StoredMetrics
from grid_jupyter.store.places import Device, Place
from grid_jupyter.wire.metrics import MetricsReport, UploadStats, read_metrics

PAGE_ROWS = 5_000
"""Reports of metrics that one answer has at most."""
READERS = "can_triage_requests"
"""The right to read metrics of models that others host."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a device measured with its report: checked values by name, and on how many samples."""

    values: dict[str, float]
    samples: int


@dataclass(frozen=True, kw_only=True)
class Page:
    """Metrics of a training, in the order of their coming; `rows` are those behind the row that was asked for."""

    name: str
    version: str
    after: int
    rows: list[StoredMetrics]

    @property
    def next(self) -> int:
        """The row to ask behind for what comes next."""
        return self.rows[-1].id if self.rows else self.after

    @property
    def more(self) -> bool:
        """Whether there may be more of them."""
        return len(self.rows) == PAGE_ROWS


class Metrics:
    """The metrics of all trainings of a Node."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        takes: Callable[[int, int], bool],
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """`takes(training, cycle)`: whether a report of that cycle would count now; `tell` is called when something
        came by itself."""
        self._table = MetricsTable(database)
        self._clock, self._takes, self._tell = clock, takes, tell

    async def take(self, report: MetricsReport) -> None:
        """Metrics of a place; the same ones again change nothing.

        Raises BadRequest, NotFound, NotAuthenticatedError, Conflict for a place that is over, or told others before.
        """
        told = Measured(values=read_metrics(report.metrics), samples=report.num_samples)
        await self._take([(report.worker_id, report.request_key, None, told)])

    async def take_stats(self, body: UploadStats) -> None:
        """The same, as 0.2.9's fork has it: all entries or none. Raises as `take` does."""
        await self._take(
            [
                (one.worker_id, one.request_key, one.cycle_id,
                 Measured(values=read_metrics(one.metrics), samples=one.num_samples))
                for one in body.stats
            ]
        )  # fmt: skip

    async def _take(self, told: Iterable[tuple[str, str, int | None, Measured]]) -> None:
        def work(rows: MetricsRows) -> None:
            for worker_id, request_key, cycle, measured in told:
                device, place = rows.trainings.place_of(worker_id, request_key)
                if cycle is not None and cycle != place.sequence:
                    raise BadRequest("'cycle_id' is not the cycle of this request_key")
                waits = place.state == "assigned" and self._takes(place.training_id, place.sequence)
                if place.state != "reported" and not waits:
                    raise Conflict(
                        "this place was given up, or its cycle is over without its report; ask for a new one"
                    )
                known = rows.of(place)
                if known is not None and known != (measured.values, measured.samples):
                    raise Conflict("this place has told other metrics before, and they count once")
                if known is None:
                    rows.tell(place, device, measured.values, measured.samples, self._clock())

        await self._table.transact(work)
        self._tell()

    async def read(self, account: Account, name: str, version: str | None, after: int) -> Page:
        """What came behind the row `after` (0: from the first on).

        Raises NotFound, Forbidden for who neither hosts the model nor may triage requests.
        """

        def work(rows: MetricsRows) -> Page:
            found = rows.trainings.find(name, version)
            if found.owner != account.username and READERS not in account.flags:
                raise Forbidden(
                    "metrics of devices are for the account that hosts the model: ask whoever hosts it, or an owner of "
                    "the Node"
                )
            behind = rows.after(found.id, after, PAGE_ROWS)
            return Page(name=found.name, version=found.version, after=after, rows=behind)

        return await self._table.transact(work)


def measured_of(given: Mapping[str, Any], samples: int | None) -> Measured | None:
    """What came along with a report; None where nothing did. Raises BadRequest."""
    return Measured(values=read_metrics(given), samples=samples or 1) if given else None


def keep(rows: MetricsRows, place: Place, device: Device, measured: Measured, now: float) -> None:
    """What came with a report that counts; what the place has told before stays."""
    if rows.of(place) is None:
        rows.tell(place, device, measured.values, measured.samples, now)
