"""The rows of places in cycles, and of the reports that were made of them. Decides nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from grid_jupyter.errors import NotAuthenticatedError, NotFound
from grid_jupyter.store.records import DeviceRow, Participation


@dataclass(frozen=True, kw_only=True)
class StoredReport:
    """A report that counts and is in no checkpoint yet."""

    number: int
    blob: str
    samples: int
    staleness: int = 0
    """Cycles between the one that it is of and the one that it counts in."""


class PlaceRows:
    """The rows within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def device(self, id: str) -> DeviceRow:  # noqa: A002
        """A device by the id that it was given. Raises NotFound."""
        row = self._session.scalars(select(DeviceRow).where(DeviceRow.id == id)).first()
        if row is None:
            raise NotFound("Worker ID not found! Authenticate first: that gives a worker_id")
        return row

    def _place(self, training: int, sequence: int, device: int) -> Participation | None:
        """Its latest; under a strategy that waits for nobody a device has one after the other in the same cycle."""
        return self._session.scalars(
            select(Participation)
            .where(
                Participation.training_id == training,
                Participation.sequence == sequence,
                Participation.device == device,
            )
            .order_by(Participation.id.desc())
            .limit(1)
        ).first()

    def place(self, training: int, sequence: int, device: int) -> str:
        """What a device has in a cycle: none, invited, assigned, reported."""
        row = self._place(training, sequence, device)
        return "none" if row is None else row.state

    def has_key(self, training: int, sequence: int, device: int, request_key: str) -> bool:
        """Whether a device has a place without a report in a cycle, and this key for it."""
        row = self._place(training, sequence, device)
        return row is not None and row.state == "assigned" and row.key == _digest(request_key)

    def assign(self, training: int, sequence: int, device: int, request_key: str, now: float) -> None:
        """Give a device its place."""
        row = self._place(training, sequence, device)
        if row is None or row.state == "reported":
            row = Participation(training_id=training, sequence=sequence, device=device)
            self._session.add(row)
        row.state, row.key, row.at = "assigned", _digest(request_key), now

    def give_up_older(self, training: int, sequence: int, device: int) -> None:
        """Take back a device's places without a report in cycles before this one."""
        self._session.execute(
            update(Participation)
            .where(
                Participation.training_id == training,
                Participation.device == device,
                Participation.sequence < sequence,
                Participation.state == "assigned",
            )
            .values(state="none")
        )

    def place_of(self, device_id: str, request_key: str) -> tuple[DeviceRow, Participation]:
        """The place that a request_key is for. Raises NotFound, and NotAuthenticatedError for another device's key."""
        device = self.device(device_id)
        row = self._session.scalars(select(Participation).where(Participation.key == _digest(request_key))).first()
        if row is None or row.device != device.number:
            raise NotAuthenticatedError(
                "Invalid request key! Use the worker_id and the request_key of the cycle-request that was accepted"
            )
        return device, row

    def count(
        self,
        place: Participation,
        device: DeviceRow,
        *,
        counted: int,
        number: int,
        samples: int,
        blob: str,
        sha256: str,
    ) -> None:
        """The report of a place, which counts in cycle `counted`."""
        place.state, place.counted, place.number = "reported", counted, number
        place.samples, place.blob, place.sha256 = samples, blob, sha256
        device.last = counted

    def reports(self, training: int, sequence: int) -> list[StoredReport]:
        """The reports of a cycle, in the order in which they counted."""
        query = select(Participation).where(
            Participation.training_id == training, Participation.counted == sequence, Participation.number.is_not(None)
        )
        return [stored_report(row) for row in self._session.scalars(query.order_by(Participation.number))]

    def give_up(self, training: int, sequence: int) -> None:
        """Take back the places of a cycle that have no report."""
        self._session.execute(
            update(Participation)
            .where(
                Participation.training_id == training,
                Participation.sequence == sequence,
                Participation.number.is_(None),
            )
            .values(state="none")
        )

    def folded(self, training: int, sequence: int) -> list[str]:
        """The reports of a cycle are in a checkpoint: their rows name no blobs any more. Those are the caller's to
        delete, afterwards."""
        rows = self._session.scalars(
            select(Participation).where(
                Participation.training_id == training,
                Participation.counted == sequence,
                Participation.blob.is_not(None),
            )
        ).all()
        names = [row.blob for row in rows if row.blob]
        for row in rows:
            row.blob = None
        return names

    def kin(self, training: int, sequence: int, subject: str | None) -> int:
        """Places of a cycle that devices with the same token's subject have."""
        if subject is None:
            return 0
        query = (
            select(func.count())
            .select_from(Participation)
            .join(DeviceRow, DeviceRow.number == Participation.device)
            .where(
                Participation.training_id == training,
                Participation.sequence == sequence,
                Participation.state.in_(("assigned", "reported")),
                DeviceRow.subject == subject,
            )
        )
        return self._session.scalar(query) or 0


def stored_report(row: Participation) -> StoredReport:
    """A report as it is folded."""
    late = (row.counted or row.sequence) - row.sequence
    return StoredReport(number=row.number or 0, blob=row.blob or "", samples=row.samples or 1, staleness=late)


def _digest(request_key: str) -> str:
    return hashlib.sha256(request_key.encode("utf-8", "surrogatepass")).hexdigest()
