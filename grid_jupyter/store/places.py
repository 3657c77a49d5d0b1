"""The rows of places in cycles, and of the reports that were made of them. Decides nothing.

Every device asks for a place and reports in each cycle, so that what they need are statements that were made once, and
plain rows in place of mapped objects: half the time of a transaction.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, cast

from sqlalchemy import Connection, Table, and_, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from grid_jupyter.errors import NotAuthenticatedError, NotFound
from grid_jupyter.store.records import DeviceRow, Participation
from grid_jupyter.store.statements import Statement


@dataclass(frozen=True)
class Device:
    """A device, as its row was when it was read."""

    number: int
    training_id: int
    rank: int
    registered: float
    seen: float
    subject: str | None
    last: int | None
    asked: int


@dataclass(frozen=True)
class Place:
    """What a device has in a cycle, as its row was when it was read."""

    id: int
    training_id: int
    sequence: int
    device: int
    state: str
    key: str | None
    counted: int | None
    number: int | None
    samples: int | None
    sha256: str | None
    blob: str | None

    def waits(self, request_key: str) -> bool:
        """Whether it has no report yet, and this key is for it."""
        return self.state == "assigned" and self.key == _digest(request_key)

    def report(self) -> StoredReport:
        """Its report, as it is folded."""
        late = (self.counted or self.sequence) - self.sequence
        return StoredReport(number=self.number or 0, blob=self.blob or "", samples=self.samples or 1, staleness=late)


@dataclass(frozen=True, kw_only=True)
class StoredReport:
    """A report that counts and is in no checkpoint yet."""

    number: int
    blob: str
    samples: int
    staleness: int = 0
    """Cycles between the one that it is of and the one that it counts in."""


_NO_DEVICE = "Worker ID not found! Authenticate first: that gives a worker_id"
_DEVICES, _PLACES = cast(Table, DeviceRow.__table__), cast(Table, Participation.__table__)
_D, _P = _DEVICES.c, _PLACES.c
_OF_DEVICE = (_D.number, _D.training_id, _D.rank, _D.registered, _D.seen, _D.subject, _D.last, _D.asked)
_OF_PLACE = (
    _P.id, _P.training_id, _P.sequence, _P.device, _P.state, _P.key, _P.counted, _P.number, _P.samples, _P.sha256,
    _P.blob,
)  # fmt: skip
_IN_CYCLE = and_(_P.training_id == bindparam("training"), _P.sequence == bindparam("sequence"))
_COUNTED = and_(_P.training_id == bindparam("of"), _P.counted == bindparam("cycle"))
_THIS_DEVICE, _THIS_PLACE = _D.number == bindparam("who"), _P.id == bindparam("place")

_DEVICE = Statement(select(*_OF_DEVICE).where(_D.id == bindparam("id")))
_LATEST = Statement(
    select(*_OF_PLACE).where(_IN_CYCLE, _P.device == bindparam("device")).order_by(_P.id.desc()).limit(1)
)
_OF_KEY = Statement(
    select(*_OF_DEVICE, *_OF_PLACE)
    .select_from(_DEVICES)
    .outerjoin(_PLACES, and_(_P.device == _D.number, _P.key == bindparam("key")))
    .where(_D.id == bindparam("id"))
)
_REPORTS = Statement(select(*_OF_PLACE).where(_COUNTED, _P.number.is_not(None)).order_by(_P.number))
REPORT_BLOBS = Statement(select(_P.blob).where(_COUNTED, _P.blob.is_not(None)))

_ADD_PLACE = Statement(insert(_PLACES))
_ASSIGN = Statement(
    update(_PLACES).where(_THIS_PLACE).values(state="assigned", key=bindparam("digest"), at=bindparam("now"))
)
_SEEN = Statement(update(_DEVICES).where(_THIS_DEVICE).values(seen=bindparam("now")))
_ASKED = Statement(update(_DEVICES).where(_THIS_DEVICE).values(seen=bindparam("now"), asked=bindparam("attempt")))
_LAST = Statement(update(_DEVICES).where(_THIS_DEVICE).values(last=bindparam("cycle")))
_REPORTED = Statement(
    update(_PLACES)
    .where(_THIS_PLACE)
    .values(
        state="reported",
        **{name: bindparam(f"new_{name}") for name in ("counted", "number", "samples", "blob", "sha256")},
    )
)
_REFILE = Statement(update(_PLACES).where(_THIS_PLACE).values(blob=bindparam("file")))
_NO_BLOBS = Statement(update(_PLACES).where(_COUNTED).values(blob=None))


class PlaceRows:
    """The rows within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._connection: Connection | None = None

    def _run(self, statement: Statement, asked: dict[str, Any]) -> list[tuple[Any, ...]]:
        """A statement of rows that are no mapped objects, without what a Session does for those."""
        self._session.flush()
        if self._connection is None:
            self._connection = self._session.connection()
        return statement.run(self._connection, asked)

    def device(self, id: str) -> DeviceRow:  # noqa: A002
        """The row of a device by the id that it was given. Raises NotFound."""
        row = self._session.scalars(select(DeviceRow).where(DeviceRow.id == id)).first()
        if row is None:
            raise NotFound(_NO_DEVICE)
        return row

    def who(self, id: str) -> Device:  # noqa: A002
        """A device by the id that it was given. Raises NotFound."""
        found = self._run(_DEVICE, {"id": id})
        if not found:
            raise NotFound(_NO_DEVICE)
        return Device(*found[0])

    def latest(self, training: int, sequence: int, device: int) -> Place | None:
        """A device's latest place in a cycle; under a strategy that waits for nobody it has one after the other."""
        asked = {"training": training, "sequence": sequence, "device": device}
        found = self._run(_LATEST, asked)
        return Place(*found[0]) if found else None

    def place(self, training: int, sequence: int, device: int) -> str:
        """What a device has in a cycle: none, invited, assigned, reported."""
        found = self.latest(training, sequence, device)
        return "none" if found is None else found.state

    def assign(
        self, latest: Place | None, training: int, sequence: int, device: int, request_key: str, now: float
    ) -> None:
        """Give a device its place; `latest` is what it has in this cycle."""
        if latest is None or latest.state == "reported":
            place = {"training_id": training, "sequence": sequence, "device": device, "state": "assigned"}
            self._run(_ADD_PLACE, {**place, "key": _digest(request_key), "at": now})
        else:
            self._run(_ASSIGN, {"place": latest.id, "digest": _digest(request_key), "now": now})

    def heard(self, device: Device, now: float, attempt: int | None = None) -> None:
        """A device was heard of; it asked for a place in this attempt at a cycle, if there is one."""
        if attempt is None:
            self._run(_SEEN, {"who": device.number, "now": now})
        else:
            self._run(_ASKED, {"who": device.number, "now": now, "attempt": attempt})

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

    def place_of(self, device_id: str, request_key: str) -> tuple[Device, Place]:
        """The place that a request_key is for. Raises NotFound, and NotAuthenticatedError for another device's key."""
        found = self._run(_OF_KEY, {"id": device_id, "key": _digest(request_key)})
        if not found:
            raise NotFound(_NO_DEVICE)
        device, place = found[0][: len(_OF_DEVICE)], found[0][len(_OF_DEVICE) :]
        if place[0] is None:
            raise NotAuthenticatedError(
                "Invalid request key! Use the worker_id and the request_key of the cycle-request that was accepted"
            )
        return Device(*device), Place(*place)

    def count(self, place: Place, *, counted: int, number: int, samples: int, blob: str, sha256: str) -> StoredReport:
        """The report of a place, which counts in cycle `counted`."""
        told = {"counted": counted, "number": number, "samples": samples, "blob": blob, "sha256": sha256}
        self._run(_REPORTED, {"place": place.id, **{f"new_{name}": one for name, one in told.items()}})
        self._run(_LAST, {"who": place.device, "cycle": counted})
        return StoredReport(number=number, blob=blob, samples=samples, staleness=counted - place.sequence)

    def refile(self, place: Place, blob: str) -> StoredReport:
        """The report of a place is in another file now."""
        self._run(_REFILE, {"place": place.id, "file": blob})
        return replace(place, blob=blob).report()

    def reports(self, training: int, sequence: int) -> list[StoredReport]:
        """The reports of a cycle, in the order in which they counted."""
        found = self._run(_REPORTS, {"of": training, "cycle": sequence})
        return [Place(*row).report() for row in found]

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
        which = {"of": training, "cycle": sequence}
        names = [name for (name,) in self._run(REPORT_BLOBS, which)]
        if names:
            self._run(_NO_BLOBS, which)
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


def _digest(request_key: str) -> str:
    return hashlib.sha256(request_key.encode("utf-8", "surrogatepass")).hexdigest()
