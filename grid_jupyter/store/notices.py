"""The rows of push: where devices can be reached, and the outbox of notices to them. Decides nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sqlalchemy import ColumnElement, String, cast, delete, exists, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from grid_jupyter.store.database import Database
from grid_jupyter.store.records import DeviceRow, Participation, PushAddress, PushNotice, TrainingRow
from grid_jupyter.wire.answers import GivenUp

T = TypeVar("T")

Audience = Literal["all", "free", "unheard", "invited", "assigned", "reported", "none", "named"]
"""Devices of a training that can be reached: all; those that may be in a cycle as far as their last one goes; those
that were not heard of since a time; those that have such a place in a cycle; those that get a notice each besides."""
_PLACES = ("invited", "assigned", "reported", "none")
KEEP_S = 7 * 86_400.0
"""How long it is remembered what became of a notice."""
_AT_ONCE = 500
"""Notices that are made of one, or deleted, in one transaction."""


@dataclass(frozen=True, kw_only=True)
class StoredNotice:
    """A notice that is due, and where its device can be reached."""

    id: int
    type: str
    facts: dict[str, Any]
    device: int
    worker_id: str
    model: str
    version: str
    token: str | None
    listens: bool
    attempts: int
    expires: float


class NoticeTable:
    """Notices in the database; `transact` is one transaction."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def transact(self, work: Callable[[NoticeRows], T]) -> T:
        """Run work on the rows: all of it happens, and is on the disk when this returns, or nothing."""
        return await self._run(lambda session: work(NoticeRows(session)))


class NoticeRows:
    """The rows within one transaction."""

    def __init__(self, session: Session) -> None:
        self.queued = 0
        """Notices that were queued in this transaction."""
        self._session = session

    # -------------------------------------------------------------- where devices can be reached

    def save_token(self, device: DeviceRow, token: str) -> None:
        """A device has a push token. Another device of this training that had it is the same one under an older id: it
        is not reached any more, nor in the pool until it comes by itself."""
        digest = token_digest(token)
        older = select(PushAddress).where(
            PushAddress.training_id == device.training_id,
            PushAddress.digest == digest,
            PushAddress.device != device.number,
        )
        for row in self._session.scalars(older).all():
            before = self._session.get(DeviceRow, row.device)
            if before is not None:
                before.seen = 0.0
            self._session.delete(row)
        self._session.flush()
        row = self._address(device)
        row.token, row.digest = token, digest

    def listens(self, device: DeviceRow) -> None:
        """A device takes notices over a WebSocket: what waited for it is due."""
        self._address(device).listens = True
        waiting = update(PushNotice).where(PushNotice.device == device.number, PushNotice.state == "waiting")
        self._session.execute(waiting.values(due=0.0))

    def _address(self, device: DeviceRow) -> PushAddress:
        row = self._session.get(PushAddress, device.number)
        if row is None:
            row = PushAddress(
                device=device.number, training_id=device.training_id, token=None, digest=None, listens=False
            )
            self._session.add(row)
        return row

    def forget(self, token: str) -> None:
        """Nobody is reached by this token."""
        here = PushAddress.digest == token_digest(token)
        self._session.execute(delete(PushAddress).where(here, PushAddress.listens.is_(False)))
        self._session.execute(update(PushAddress).where(here).values(token=None, digest=None))

    def reachable(self, training: int, since: float, most: int) -> int:
        """How many devices can be reached and were heard of since; counts to `most` at most."""
        query = (
            select(PushAddress.device)
            .join(DeviceRow, DeviceRow.number == PushAddress.device)
            .where(PushAddress.training_id == training, DeviceRow.seen >= since)
            .limit(most)
        )
        return self._session.scalar(select(func.count()).select_from(query.subquery())) or 0

    def reach(self, training: int) -> bool:
        """Whether any device of a training can be reached."""
        return self._session.scalar(select(exists().where(PushAddress.training_id == training))) or False

    def reached(self, training: int, worker_ids: Collection[str] | None) -> list[int]:
        """Devices of a training that can be reached, by their ids."""
        query = (
            select(PushAddress.device)
            .join(DeviceRow, DeviceRow.number == PushAddress.device)
            .where(PushAddress.training_id == training, DeviceRow.id.in_(worker_ids or ()))
        )
        return list(self._session.scalars(query))

    # -------------------------------------------------------------- the outbox

    def known(self, key: str) -> bool:
        """Whether there is a notice of this key."""
        return self._session.scalar(select(exists().where(PushNotice.key == key))) or False

    def queue(
        self,
        key: str,
        training: int,
        type: str,  # noqa: A002
        facts: Mapping[str, Any],
        *,
        to: Audience | int,
        now: float,
        expires: float,
        sequence: int | None = None,
        since: float | None = None,
        origin: str = "cycle",
    ) -> bool:
        """A notice to a device (its number), or to an audience; False where there is one of this key."""
        if self.known(key):
            return False
        one = isinstance(to, int)
        self._session.add(
            PushNotice(
                key=key,
                training_id=training,
                type=type,
                facts=dict(facts),
                device=to if one else None,
                audience=None if one else to,
                sequence=sequence,
                since=since,
                cursor=0,
                origin=origin,
                created=now,
                expires=expires,
                due=now,
                attempts=0,
                state="waiting" if one else "done" if to == "named" else "spreading",
                by="",
                said="",
            )
        )
        self._session.flush()
        self.queued += 1
        return True

    def void(self, training: int, types: Collection[str]) -> None:
        """Notices of these types that have not gone are not true any more."""
        here = (PushNotice.training_id == training, PushNotice.state.in_(("waiting", "spreading")))
        self._session.execute(update(PushNotice).where(*here, PushNotice.type.in_(types)).values(state="void"))

    def due(self, now: float, most: int, skip: Collection[int]) -> list[StoredNotice]:
        """Those that are due, as they became so, at most one for each device, and none for the devices of `skip`."""
        going = select(PushNotice.device).where(PushNotice.id.in_(list(skip)), PushNotice.device.is_not(None))
        query = (
            select(PushNotice, DeviceRow.id, TrainingRow.name, TrainingRow.version, PushAddress)
            .join(DeviceRow, DeviceRow.number == PushNotice.device)
            .join(TrainingRow, TrainingRow.id == PushNotice.training_id)
            .outerjoin(PushAddress, PushAddress.device == PushNotice.device)
            .where(PushNotice.state == "waiting", PushNotice.due <= now, PushNotice.device.not_in(going))
            .order_by(PushNotice.due, PushNotice.id)
            .limit(4 * (most + len(skip)))
        )
        busy = set[int | None]()
        found: list[StoredNotice] = []
        for row, worker_id, model, version, address in self._session.execute(query):
            if len(found) < most and row.device not in busy:
                busy.add(row.device)
                found.append(_stored(row, worker_id, model, version, address))
        return found

    def next(self, now: float) -> float | None:
        """When the next one is due that is not due yet."""
        later = (PushNotice.state == "waiting", PushNotice.due > now)
        return self._session.scalar(select(func.min(PushNotice.due)).where(*later))

    def spread(self, now: float) -> bool:
        """Make notices to one device each, some hundred, of the oldest that goes to many; False: there is none."""
        query = select(PushNotice).where(PushNotice.state == "spreading").order_by(PushNotice.id).limit(1)
        row = self._session.scalars(query).first()
        if row is None:
            return False
        reached = list(
            self._session.scalars(
                select(PushAddress.device)
                .join(DeviceRow, DeviceRow.number == PushAddress.device)
                .where(PushAddress.training_id == row.training_id, PushAddress.device > row.cursor, *_within(row))
                .order_by(PushAddress.device)
                .limit(_AT_ONCE)
            )
        )
        if reached:
            self._session.execute(_copies(row, reached[-1], now))
            row.cursor = reached[-1]
        if len(reached) < _AT_ONCE:
            row.state = "done"
        return True

    def settle(
        self,
        notice: int,
        state: str,
        *,
        by: str,
        said: str,
        attempts: int,
        due: float,
        token: str | None,
    ) -> None:
        """What became of a notice; `token` is one to be forgotten."""
        changed = update(PushNotice).where(PushNotice.id == notice, PushNotice.state == "waiting")
        self._session.execute(changed.values(state=state, by=by, said=said[:256], attempts=attempts, due=due))
        if token is not None:
            self.forget(token)

    def purge(self, now: float) -> bool:
        """Forget some of what became of notices long ago; whether there may be more."""
        old = (
            select(PushNotice.id)
            .where(PushNotice.state.in_(("sent", "given-up", "done", "void")), PushNotice.due < now - KEEP_S)
            .limit(_AT_ONCE)
        )
        numbers = self._session.scalars(old).all()
        self._session.execute(delete(PushNotice).where(PushNotice.id.in_(numbers)))
        return len(numbers) == _AT_ONCE

    # -------------------------------------------------------------- for the owner

    def used(self, origin: str, since: float) -> int:
        """How many pushes somebody had sent since. What is made of one, a notice to each device, counts no more."""
        query = select(func.count()).where(
            PushNotice.origin == origin, PushNotice.created >= since, PushNotice.device.is_(None)
        )
        return self._session.scalar(query) or 0

    def counts(self) -> dict[str, int]:
        """How many notices to one device each stand how."""
        query = select(PushNotice.state, func.count()).where(PushNotice.device.is_not(None)).group_by(PushNotice.state)
        return {row[0]: row[1] for row in self._session.execute(query)}

    def given_up(self, most: int) -> list[GivenUp]:
        """The newest that were given up."""
        query = (
            select(
                PushNotice.id, PushNotice.type, TrainingRow.name, TrainingRow.version, PushNotice.by, PushNotice.due,
                PushNotice.attempts, PushNotice.said,
            )
            .join(TrainingRow, TrainingRow.id == PushNotice.training_id)
            .where(PushNotice.state == "given-up")
            .order_by(PushNotice.id.desc())
            .limit(most)
        )  # fmt: skip
        return [
            {"id": id_, "type": kind, "model": model, "version": version, "by": by, "at": at, "attempts": attempts,
             "reason": reason}
            for id_, kind, model, version, by, at, attempts, reason in self._session.execute(query)
        ]  # fmt: skip


def token_digest(token: str) -> str:
    """By what a token is found."""
    return hashlib.sha256(token.encode()).hexdigest()


def _within(row: PushNotice) -> list[ColumnElement[bool]]:
    """What is true of the devices that a notice goes to."""
    if row.audience in _PLACES:
        places = select(Participation.device).where(
            Participation.training_id == row.training_id,
            Participation.sequence == row.sequence,
            Participation.state == row.audience,
        )
        return [PushAddress.device.in_(places)]
    if row.audience == "free":
        return [or_(DeviceRow.last.is_(None), DeviceRow.last <= row.sequence)]
    return [DeviceRow.seen < row.since] if row.audience == "unheard" else []


def _copies(row: PushNotice, last: int, now: float) -> Any:
    """The statement that makes a notice for each device behind the cursor, up to `last`."""
    same = {
        "training_id": row.training_id, "type": row.type, "origin": row.origin, "created": row.created,
        "expires": row.expires, "due": now, "attempts": 0, "state": "waiting", "by": "", "said": "", "cursor": 0,
    }  # fmt: skip
    other, key = aliased(PushNotice), literal(f"{row.key}/device-") + cast(PushAddress.device, String)
    devices = (
        select(
            key,
            PushAddress.device,
            literal(row.facts, PushNotice.facts.type),
            *(literal(value) for value in same.values()),
        )
        .join(DeviceRow, DeviceRow.number == PushAddress.device)
        .where(
            PushAddress.training_id == row.training_id,
            PushAddress.device > row.cursor,
            PushAddress.device <= last,
            ~exists().where(other.key == key),
            *_within(row),
        )
    )
    return insert(PushNotice).from_select(["key", "device", "facts", *same], devices)


def _stored(row: PushNotice, worker_id: str, model: str, version: str, address: PushAddress | None) -> StoredNotice:
    return StoredNotice(
        id=row.id,
        type=row.type,
        facts=row.facts,
        device=row.device or 0,
        worker_id=worker_id,
        model=model,
        version=version,
        token=None if address is None else address.token,
        listens=address is not None and address.listens,
        attempts=row.attempts,
        expires=row.expires,
    )
