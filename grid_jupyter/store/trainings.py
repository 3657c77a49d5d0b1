"""The rows of model-centric trainings: models, checkpoints, devices, places in cycles, reports. Decides nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, Table, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.orm import Session

from grid_jupyter.errors import Conflict, NodeUnavailableError, NotFound
from grid_jupyter.store.database import Database
from grid_jupyter.store.notices import NoticeRows
from grid_jupyter.store.places import REPORT_BLOBS, PlaceRows
from grid_jupyter.store.records import (
    Checkpoint,
    DeviceRow,
    MetricsRow,
    Participation,
    PushAddress,
    PushNotice,
    TrainingName,
    TrainingPlan,
    TrainingRow,
)
from grid_jupyter.store.statements import Statement

T = TypeVar("T")

_AT_ONCE = 500
"""Ids of one query; SQLite takes some thousands."""

_TRAINING = cast(Table, TrainingRow.__table__)
# Made once: how a training stands is read and written with all that happens to it, and nothing else of its row is.
_STATE = Statement(select(_TRAINING.c.state).where(_TRAINING.c.id == bindparam("training")))
_SAVE = Statement(update(_TRAINING).where(_TRAINING.c.id == bindparam("training")).values(state=bindparam("new")))
_REGISTER = Statement(
    update(_TRAINING)
    .where(_TRAINING.c.id == bindparam("training"))
    .values(registered=_TRAINING.c.registered + 1)
    .returning(_TRAINING.c.registered, _TRAINING.c.forgotten)
)
_ADD_DEVICE = Statement(insert(cast(Table, DeviceRow.__table__)))
_CHECKPOINTS = cast(Table, Checkpoint.__table__)
_C = _CHECKPOINTS.c
_OF_CHECKPOINT = (_C.id, _C.number, _C.blob, _C.nbytes, _C.sha256, _C.state)
_CHECKPOINT = Statement(
    select(*_OF_CHECKPOINT).where(_C.training_id == bindparam("training"), _C.number == bindparam("which"))
)
_LATEST_CHECKPOINT = Statement(
    select(*_OF_CHECKPOINT).where(_C.training_id == bindparam("training")).order_by(_C.number.desc()).limit(1)
)
_OLDER = Statement(
    select(_C.id, _C.blob, _C.state).where(
        _C.training_id == bindparam("training"), _C.number > 1, _C.number < bindparam("which")
    )
)
_ADD_CHECKPOINT = Statement(insert(_CHECKPOINTS))
_DROP_CHECKPOINT = Statement(delete(_CHECKPOINTS).where(_C.id == bindparam("checkpoint")))


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


class TrainingRows(PlaceRows):
    """The rows within one transaction."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.notices = NoticeRows(session)

    @property
    def session(self) -> Session:
        """The transaction, for rows of other tables."""
        return self._session

    # -------------------------------------------------------------- trainings

    def add(
        self,
        training: StoredTraining,
        state: dict[str, Any],
        plans: Iterable[StoredPlan],
        model: StoredCheckpoint,
        *,
        takes_over: bool = False,
    ) -> int:
        """A new training, its id. `takes_over`: it may have a name under which others hosted, and nobody does now.
        Raises Conflict where name and version are taken, or the name is somebody else's."""
        self._name(training, takes_over)
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

    def _name(self, training: StoredTraining, takes_over: bool) -> None:
        """Devices ask for a model by its name, and run the plans that they get."""
        named = self._session.get(TrainingName, training.name)
        if named is None:
            self._session.add(TrainingName(name=training.name, owner=training.owner))
        elif named.owner != training.owner:
            hosted = select(exists().where(TrainingRow.name == training.name))
            if not takes_over or self._session.scalar(hosted):
                raise Conflict(
                    "somebody else hosted under this name, and their devices would train what you host: take another "
                    "name. Who manages this Node may take it over when nothing is hosted under it"
                )
            named.owner = training.owner

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
        """How it stands, as the machine wrote it. Raises NotFound."""
        found = self._run(_STATE, {"training": training})
        if not found:
            raise NotFound("Federated Learning Process not found!")
        return dict(found[0][0])

    def save(self, training: int, state: dict[str, Any]) -> None:
        """How it stands from here on."""
        self._run(_SAVE, {"training": training, "new": state})

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
        if number is None:
            found = self._run(_LATEST_CHECKPOINT, {"training": training})
        else:
            found = self._run(_CHECKPOINT, {"training": training, "which": number})
        if not found:
            raise NotFound("Model's Checkpoint not found!")
        return StoredCheckpoint(**{column.name: value for column, value in zip(_OF_CHECKPOINT, found[0], strict=True)})

    def add_checkpoint(self, training: int, model: StoredCheckpoint, created: float) -> None:
        """The next checkpoint."""
        self._run(
            _ADD_CHECKPOINT,
            {
                "training_id": training,
                "number": model.number,
                "blob": model.blob,
                "nbytes": model.nbytes,
                "sha256": model.sha256,
                "created": created,
                "state": model.state,
            },
        )

    def drop_checkpoints(self, training: int, number: int) -> list[str]:
        """Forget checkpoints before this number, but not the first. Their blobs are the caller's to delete."""
        names: list[str] = []
        for checkpoint, blob, state in self._run(_OLDER, {"training": training, "which": number}):
            self._run(_DROP_CHECKPOINT, {"checkpoint": checkpoint})
            names += (blob, *state.values())
        return names

    def drop_state(self, checkpoint: int) -> list[str]:
        """The next checkpoint is there: this one's strategy's state is needed no more. Its blobs are the caller's to
        delete, afterwards."""
        row = self._session.get_one(Checkpoint, checkpoint)
        names, row.state = list(row.state.values()), {}
        return names

    def kept(self, trainings: Mapping[int, int]) -> tuple[int, list[str]]:
        """What these trainings keep, with the reports of a cycle of each: bytes of plans and models, and names of blobs
        whose length no row has."""
        names = [
            name
            for training, cycle in trainings.items()
            for (name,) in self._run(REPORT_BLOBS, {"of": training, "cycle": cycle})
        ]
        models = select(Checkpoint.nbytes, Checkpoint.state).where(Checkpoint.training_id.in_(trainings))
        plans = select(TrainingPlan.nbytes).where(TrainingPlan.training_id.in_(trainings))
        nbytes = sum(self._session.scalars(plans))
        for size, state in self._session.execute(models):
            nbytes += size
            names += state.values()
        names += self._session.scalars(select(TrainingRow.averaging).where(TrainingRow.id.in_(trainings)))
        return nbytes, [name for name in names if name]

    def blobs(self) -> frozenset[str]:
        """The names of all blobs that a row names."""
        found: set[str] = set()
        for column in (TrainingRow.averaging, TrainingPlan.blob, Checkpoint.blob, Participation.blob):
            found.update(name for name in self._session.scalars(select(column)) if name)
        for state in self._session.scalars(select(Checkpoint.state)):
            found.update(state.values())
        return frozenset(found)

    def report_blobs(self) -> frozenset[str]:
        """Those among them that are reports, which go when they are in a checkpoint."""
        return frozenset(name for name in self._session.scalars(select(Participation.blob)) if name)

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
    ) -> str:
        """A device that comes for the first time: its id. Where there are `most` already, those are forgotten that
        never had a place and were not heard of since `idle`.

        Raises NodeUnavailableError where there are none such.
        """
        found = self._run(_REGISTER, {"training": training})
        if not found:
            raise NotFound("Federated Learning Process not found!")
        rank, forgotten = found[0]
        if most is not None and rank - forgotten > most:
            gone = self._forget_idle(training, idle)
            if not gone:
                raise NodeUnavailableError(
                    f"{most} devices are registered for this training, as many as it takes; come again later"
                )
            self._row(training).forgotten += gone
        device = {
            "id": str(uuid.uuid4()), "training_id": training, "rank": rank, "registered": now, "seen": now,
            "slow": slow, "subject": subject, "last": None, "asked": 0,
        }  # fmt: skip
        self._run(_ADD_DEVICE, device)
        return str(device["id"])

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
        return self._session.scalars(query.order_by(DeviceRow.rank).limit(None if most < 0 else most))

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
