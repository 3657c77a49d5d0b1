"""The rows of what devices measured: one for each place in a cycle that told its metrics. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from grid_jupyter.store.database import Database
from grid_jupyter.store.places import Device, Place
from grid_jupyter.store.records import MetricsRow
from grid_jupyter.store.trainings import TrainingRows

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoredMetrics:
    """What a device measured in a cycle. `worker` is its number among the devices of its training, and no secret."""

    id: int
    cycle: int
    worker: int
    samples: int
    time: float
    values: dict[str, float]


class MetricsTable:
    """Metrics in the database; `transact` is one transaction."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def transact(self, work: Callable[[MetricsRows], T]) -> T:
        """Run work on the rows: all of it happens, and is on the disk when this returns, or nothing."""
        return await self._run(lambda session: work(MetricsRows(session)))


class MetricsRows:
    """The rows within one transaction; `trainings` are those of trainings within the same."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.trainings = TrainingRows(session)

    @classmethod
    def beside(cls, trainings: TrainingRows) -> MetricsRows:
        """Those of a transaction that is under way."""
        return cls(trainings.session)

    def of(self, place: Place) -> tuple[dict[str, float], int] | None:
        """Metrics that a place has told under the key that it has now, and on how many samples."""
        row = self._row(place)
        return None if row is None or row.key != place.key else (row.figures, row.samples)

    def tell(self, place: Place, device: Device, values: dict[str, float], samples: int, now: float) -> None:
        """The metrics of a place. What it told when it was given out before is replaced."""
        row = self._row(place)
        if row is not None:
            self._session.delete(row)
            self._session.flush()
        self._session.add(
            MetricsRow(
                training_id=place.training_id,
                sequence=place.sequence,
                place=place.id,
                worker=device.rank,
                key=place.key,
                figures=values,
                samples=samples,
                at=now,
            )
        )

    def after(self, training: int, id: int, most: int) -> list[StoredMetrics]:  # noqa: A002
        """What came after the row with this id, in the order of its coming; at most so many rows."""
        query = select(MetricsRow).where(MetricsRow.training_id == training, MetricsRow.id > id)
        return [
            StoredMetrics(
                id=row.id, cycle=row.sequence, worker=row.worker, samples=row.samples, time=row.at, values=row.figures
            )
            for row in self._session.scalars(query.order_by(MetricsRow.id).limit(most))
        ]

    def _row(self, place: Place) -> MetricsRow | None:
        return self._session.scalars(select(MetricsRow).where(MetricsRow.place == place.id)).first()
