"""The rows of model-centric trainings: models, checkpoints, devices, places in cycles, reports. Decides nothing."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from grid_jupyter.errors import Conflict, NodeUnavailableError, NotAuthenticatedError, NotFound
from grid_jupyter.store.database import Database
from grid_jupyter.store.notices import NoticeRows
from grid_jupyter.store.records import (
    Checkpoint,
    DeviceRow,
    MetricsRow,
    Participation,
    PushAddress,
    PushNotice,
    TrainingPlan,
    TrainingRow,
)

T = TypeVar("T")

_AT_ONCE = 500
"""Ids of one query; SQLite takes some thousands."""


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """A plan of a training, whose document is a blob."""

    id: int
    name: str
    sha256: str
    blob: str
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A model's tensors, as a safetensors blob. `number` is 1 for the model as it was hosted."""

    id: int
    number: int
    blob: str
    nbytes: int
    sha256: str
    state: dict[str, str] = field(default_factory=dict)
    """Blobs of what the strategy keeps for the next one, by slot."""


@dataclass(frozen=True, kw_only=True)
class StoredTraining:
    """A training, without how it stands."""

    id: int
    name: str
    version: str
    owner: str
    created: float
    client_config: dict[str, Any]
    server_config: dict[str, Any]
    seed: str
    secret: str
    buffers: tuple[str, ...] = ()
    """Tensors of the model that no gradient trains."""
    averaging: str | None = None
    """The blob of the host's averaging plan."""


@dataclass(frozen=True, kw_only=True)
class StoredReport:
    """A report that counts and is in no checkpoint yet."""

    number: int
    blob: str
    samples: int
    staleness: int = 0
    """Cycles between the one that it is of and the one that it counts in."""


@dataclass(frozen=True)
class Eligible:
    """Which devices could be invited: not seen before `since` are gone, `until` is the last cycle that they may have
    reported in."""

    since: float
    until: int


class TrainingTable:
    """Trainings in the database; `transact` is one transaction."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def transact(self, work: Callable[[TrainingRows], T]) -> T:
        """Run work on the rows: all of it happens, and is on the disk when this returns, or nothing."""
        return await self._run(lambda session: work(TrainingRows(session)))


class TrainingRows:
    """The rows within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.notices = NoticeRows(session)

    @property
    def session(self) -> Session:
        """The transaction, for rows of other tables."""
        return self._session

    # -------------------------------------------------------------- trainings

    def add(
        self, training: StoredTraining, state: dict[str, Any], plans: Iterable[StoredPlan], model: StoredCheckpoint
    ) -> int:
        """A new training, its id. Raises Conflict where name and version are taken."""
        taken = select(TrainingRow.id).where(TrainingRow.name == training.name, TrainingRow.version == training.version)
        if self._session.scalars(taken).first() is not None:
            raise Conflict("FL Process already exists. Host it under another name or version")
        row = TrainingRow(
            name=training.name,
            version=training.version,
            owner=training.owner,
            created=training.created,
            client_config=training.client_config,
            server_config=training.server_config,
            seed=training.seed,
            secret=training.secret,
            buffers=list(training.buffers),
            averaging=training.averaging,
            state=state,
            registered=0,
            forgotten=0,
            cursor=0,
        )
        self._session.add(row)
        self._session.flush()
        for plan in plans:
            self._session.add(
                TrainingPlan(training_id=row.id, name=plan.name, sha256=plan.sha256, blob=plan.blob, nbytes=plan.nbytes)
            )
        self.add_checkpoint(row.id, model, training.created)
        return row.id

    def find(self, name: str, version: str | None) -> StoredTraining:
        """A training by name; without a version the newest. Raises NotFound."""
        query = select(TrainingRow).where(TrainingRow.name == name)
        if version is not None:
            query = query.where(TrainingRow.version == version)
        row = self._session.scalars(query.order_by(TrainingRow.id.desc()).limit(1)).first()
        if row is None:
            raise NotFound("Federated Learning Process not found! Check name and version of the model")
        return _training(row)

    def all(self) -> list[StoredTraining]:
        """All trainings, oldest first."""
        return [_training(row) for row in self._session.scalars(select(TrainingRow).order_by(TrainingRow.id))]

    def state(self, training: int) -> dict[str, Any]:
        """How it stands, as the machine wrote it."""
        return self._row(training).state

    def save(self, training: int, state: dict[str, Any]) -> None:
        """How it stands from here on."""
        self._row(training).state = state

    def _row(self, training: int) -> TrainingRow:
        row = self._session.get(TrainingRow, training)
        if row is None:
            raise NotFound("Federated Learning Process not found!")
        return row

    def forget_some(self, training: int) -> bool:
        """Delete some of what belongs to a training that is over; whether there may be more."""
        for kind, key in (
            (MetricsRow, MetricsRow.id),
            (PushNotice, PushNotice.id),
            (PushAddress, PushAddress.device),
            (Participation, Participation.id),
            (DeviceRow, DeviceRow.number),
        ):
            keys = self._session.scalars(select(key).where(kind.training_id == training).limit(_AT_ONCE)).all()
            if keys:
                self._session.execute(delete(kind).where(key.in_(keys)))
                return True
        return False

    def forget(self, training: int) -> list[str]:
        """Delete the rest of it. Its blobs are the caller's to delete, afterwards. Raises NotFound."""
        row = self._row(training)
        names = [] if row.averaging is None else [row.averaging]
        for plan in self._session.scalars(select(TrainingPlan).where(TrainingPlan.training_id == training)).all():
            names.append(plan.blob)
            self._session.delete(plan)
        for one in self._session.scalars(select(Checkpoint).where(Checkpoint.training_id == training)).all():
            names += [one.blob, *one.state.values()]
            self._session.delete(one)
        self._session.flush()
        self._session.delete(row)
        return names

    # -------------------------------------------------------------- plans and checkpoints

    def plans(self, training: int) -> list[StoredPlan]:
        """The plans of a training, in the order of their names."""
        query = select(TrainingPlan).where(TrainingPlan.training_id == training).order_by(TrainingPlan.name)
        return [
            StoredPlan(id=row.id, name=row.name, sha256=row.sha256, blob=row.blob, nbytes=row.nbytes)
            for row in self._session.scalars(query)
        ]

    def checkpoint(self, training: int, number: int | None = None) -> StoredCheckpoint:
        """A checkpoint; without a number the latest. Raises NotFound."""
        query = select(Checkpoint).where(Checkpoint.training_id == training)
        if number is not None:
            query = query.where(Checkpoint.number == number)
        row = self._session.scalars(query.order_by(Checkpoint.number.desc()).limit(1)).first()
        if row is None:
            raise NotFound("Model's Checkpoint not found!")
        return StoredCheckpoint(
            id=row.id, number=row.number, blob=row.blob, nbytes=row.nbytes, sha256=row.sha256, state=row.state
        )

    def add_checkpoint(self, training: int, model: StoredCheckpoint, created: float) -> None:
        """The next checkpoint."""
        self._session.add(
            Checkpoint(
                training_id=training,
                number=model.number,
                blob=model.blob,
                nbytes=model.nbytes,
                sha256=model.sha256,
                created=created,
                state=model.state,
            )
        )

    def drop_checkpoints(self, training: int, number: int) -> list[str]:
        """Forget checkpoints before this number, but not the first. Their blobs are the caller's to delete."""
        query = select(Checkpoint).where(
            Checkpoint.training_id == training, Checkpoint.number > 1, Checkpoint.number < number
        )
        found = self._session.scalars(query).all()
        names = [name for row in found for name in (row.blob, *row.state.values())]
        for row in found:
            self._session.delete(row)
        return names

    def drop_state(self, checkpoint: int) -> list[str]:
        """The next checkpoint is there: this one's strategy's state is needed no more. Its blobs are the caller's to
        delete, afterwards."""
        row = self._session.get_one(Checkpoint, checkpoint)
        names, row.state = list(row.state.values()), {}
        return names

    def blobs(self) -> frozenset[str]:
        """The names of all blobs that a row names."""
        found: set[str] = set()
        for column in (TrainingRow.averaging, TrainingPlan.blob, Checkpoint.blob, Participation.blob):
            found.update(name for name in self._session.scalars(select(column)) if name)
        for state in self._session.scalars(select(Checkpoint.state)):
            found.update(state.values())
        return frozenset(found)

    # -------------------------------------------------------------- devices

    def register(
        self,
        training: int,
        now: float,
        *,
        slow: bool,
        subject: str | None = None,
        most: int | None = None,
        idle: float = 0.0,
    ) -> DeviceRow:
        """A device that comes for the first time. Where there are `most` already, those are forgotten that never had a
        place and were not heard of since `idle`.

        Raises NodeUnavailableError where there are none such.
        """
        row = self._row(training)
        if most is not None and row.registered - row.forgotten >= most:
            gone = self._forget_idle(training, idle)
            if not gone:
                raise NodeUnavailableError(
                    f"{most} devices are registered for this training, as many as it takes; come again later"
                )
            row.forgotten += gone
        row.registered += 1
        device = DeviceRow(
            id=str(uuid.uuid4()), training_id=training, rank=row.registered, registered=now, seen=now, slow=slow,
            subject=subject, last=None, asked=0,
        )  # fmt: skip
        self._session.add(device)
        self._session.flush()
        return device

    def _forget_idle(self, training: int, idle: float) -> int:
        known = (
            select(Participation.id).where(Participation.device == DeviceRow.number),
            select(PushAddress.device).where(PushAddress.device == DeviceRow.number),
            select(PushNotice.id).where(PushNotice.device == DeviceRow.number),
        )
        idlers = select(DeviceRow.number).where(
            DeviceRow.training_id == training, DeviceRow.seen < idle, *(~one.exists() for one in known)
        )
        numbers = self._session.scalars(idlers.limit(_AT_ONCE)).all()
        self._session.execute(delete(DeviceRow).where(DeviceRow.number.in_(numbers)))
        return len(numbers)

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

    def device(self, id: str) -> DeviceRow:  # noqa: A002
        """A device by the id that it was given. Raises NotFound."""
        row = self._session.scalars(select(DeviceRow).where(DeviceRow.id == id)).first()
        if row is None:
            raise NotFound("Worker ID not found! Authenticate first: that gives a worker_id")
        return row

    def pool(self, training: int, sequence: int, who: Eligible, most: int) -> int:
        """How many devices could be invited; counts to `most` at most."""
        query = select(DeviceRow.number).where(*_eligible(training, sequence, who)).limit(most)
        return self._session.scalar(select(func.count()).select_from(query.subquery())) or 0

    def registered(self, training: int) -> int:
        """How many devices ever registered; their ranks are 1 to this."""
        return self._row(training).registered

    def eligible_of(
        self, training: int, sequence: int, who: Eligible, ranks: Collection[int], slow: bool | None
    ) -> set[int]:
        """Those of these ranks that could be invited."""
        asked, found = list(ranks), set[int]()
        for start in range(0, len(asked), _AT_ONCE):
            query = select(DeviceRow.rank).where(
                *_eligible(training, sequence, who, slow), DeviceRow.rank.in_(asked[start : start + _AT_ONCE])
            )
            found.update(self._session.scalars(query))
        return found

    def eligible(
        self, training: int, sequence: int, who: Eligible, slow: bool | None, *, behind: int = 0, most: int = -1
    ) -> Iterable[int]:
        """Ranks of those that could be invited, ascending from behind a rank on."""
        query = select(DeviceRow.rank).where(*_eligible(training, sequence, who, slow), DeviceRow.rank > behind)
        return self._session.scalars(query.order_by(DeviceRow.rank).limit(most))

    def cursor(self, training: int) -> int:
        """Rank of the last device that was invited in turn."""
        return self._row(training).cursor

    def invite(self, training: int, sequence: int, ranks: Collection[int], now: float, cursor: int) -> None:
        """Keep places for the devices of these ranks."""
        self._row(training).cursor = cursor
        chosen = list(ranks)
        for start in range(0, len(chosen), _AT_ONCE):
            numbers = self._session.scalars(
                select(DeviceRow.number).where(
                    DeviceRow.training_id == training, DeviceRow.rank.in_(chosen[start : start + _AT_ONCE])
                )
            ).all()
            known = select(Participation).where(
                Participation.training_id == training,
                Participation.sequence == sequence,
                Participation.device.in_(numbers),
            )
            rows = {row.device: row for row in self._session.scalars(known)}
            for number in numbers:
                row = rows.get(number)
                if row is None:
                    row = Participation(training_id=training, sequence=sequence, device=number)
                    self._session.add(row)
                row.state, row.at, row.key = "invited", now, None

    # -------------------------------------------------------------- places and reports

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


def stored_report(row: Participation) -> StoredReport:
    """A report as it is folded."""
    late = (row.counted or row.sequence) - row.sequence
    return StoredReport(number=row.number or 0, blob=row.blob or "", samples=row.samples or 1, staleness=late)


def _eligible(training: int, sequence: int, who: Eligible, slow: bool | None = None) -> list[ColumnElement[bool]]:
    busy = select(Participation.device).where(
        Participation.training_id == training, Participation.sequence == sequence, Participation.state != "none"
    )
    wanted = [
        DeviceRow.training_id == training,
        DeviceRow.seen >= who.since,
        or_(DeviceRow.last.is_(None), DeviceRow.last <= who.until),
        DeviceRow.number.not_in(busy),
    ]
    return wanted if slow is None else [*wanted, DeviceRow.slow.is_(slow)]


def _training(row: TrainingRow) -> StoredTraining:
    return StoredTraining(
        id=row.id,
        name=row.name,
        version=row.version,
        owner=row.owner,
        created=row.created,
        client_config=row.client_config,
        server_config=row.server_config,
        seed=row.seed,
        secret=row.secret,
        buffers=tuple(row.buffers),
        averaging=row.averaging,
    )


def _digest(request_key: str) -> str:
    return hashlib.sha256(request_key.encode("utf-8", "surrogatepass")).hexdigest()
