"""The rows of the audit log: each carries a hash over itself and the hash of the row before, so that none can be
changed, put in or taken out unseen. What is worth a row is known elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from grid_jupyter.store.database import Database
from grid_jupyter.store.records import AuditRow, Setting

MAX_ROWS = 1_000_000
"""Rows that are kept; beyond, the oldest tenth goes, and the hash before the first one that stays is kept."""
START = "0" * 64
"""The hash before the first row of all."""
_ANCHOR, _HEAD = "audit-anchor", "audit-head"  # {number, hash}: of the last row that is gone, of the last one written
_VERIFY_ROWS = 5_000


@dataclass(frozen=True)
class Event:
    """Something that a gate decided, at a time in UTC seconds. `details` are of JSON: never a value, never a secret."""

    at: float
    event: str
    actor: str
    details: dict[str, Any]


@dataclass(frozen=True)
class StoredEvent(Event):
    """One row of the log."""

    number: int
    hash: str


@dataclass(frozen=True)
class Verified:
    """What a look at the whole chain found. `broken` is the first row that is not what was written; 0: none."""

    rows: int
    first: int
    last: int
    head: str
    broken: int = 0
    reason: str = ""


def append(session: Session, events: Sequence[Event], max_rows: int = MAX_ROWS) -> None:
    """Write rows behind the last one, within the caller's transaction."""
    if not events:
        return
    number, before = _mark(session, _HEAD)
    rows = []
    for event in events:
        number += 1
        details = json.dumps(event.details, sort_keys=True, separators=(",", ":"), allow_nan=False)
        before = _hash(before, number, event.at, event.event, event.actor, details)
        rows.append(
            {"number": number, "at": event.at, "event": event.event, "actor": event.actor, "details": details,
             "hash": before}
        )  # fmt: skip
    session.execute(insert(AuditRow), rows)
    _set_mark(session, _HEAD, number, before)
    gone, _ = _mark(session, _ANCHOR)
    if number - gone > max_rows:
        last = number - max_rows + max_rows // 10
        kept = session.get_one(AuditRow, last)
        _set_mark(session, _ANCHOR, last, kept.hash)
        session.execute(delete(AuditRow).where(AuditRow.number <= last))


class AuditTable:
    """The audit log in the database; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def append(self, events: Sequence[Event]) -> None:
        """Write rows behind the last one; durable when it returns."""
        await self._run(lambda session: append(session, events))

    async def listed(self, *, before: int | None = None, limit: int = 1000) -> tuple[StoredEvent, ...]:
        """Rows, newest first; with `before`, those older than that one."""
        query = select(AuditRow).order_by(AuditRow.number.desc()).limit(limit)
        if before is not None:
            query = query.where(AuditRow.number < before)
        return await self._run(lambda session: tuple(_stored(row) for row in session.scalars(query)))

    async def verify(self) -> Verified:
        """Go through the whole chain, some rows a transaction, so that nothing else waits for long."""
        head_number, head = await self._run(lambda session: _mark(session, _HEAD))
        number, before = await self._run(lambda session: _mark(session, _ANCHOR))
        first = number + 1
        while number < head_number:
            start = number

            def some(session: Session, start: int = start) -> list[tuple[Any, ...]]:
                columns = (
                    AuditRow.number,
                    AuditRow.at,
                    AuditRow.event,
                    AuditRow.actor,
                    AuditRow.details,
                    AuditRow.hash,
                )
                query = select(*columns).where(AuditRow.number > start).order_by(AuditRow.number).limit(_VERIFY_ROWS)
                return [tuple(row) for row in session.execute(query)]

            rows = await self._run(some)
            if not rows:
                return Verified(number - first + 1, first, number, before, number + 1, "rows at the end are missing")
            for found, at, event, actor, details, kept in rows:
                if found != number + 1:
                    return Verified(number - first + 1, first, number, before, number + 1, "the row is missing")
                if _hash(before, found, at, event, actor, details) != kept:
                    reason = "the row is not what was written, or what came before it is not"
                    return Verified(number - first + 1, first, number, before, found, reason)
                number, before = found, kept
                if number == head_number and before != head:
                    return Verified(number - first, first, number, before, number, "the last row was written anew")
        return Verified(max(0, number - first + 1), first, number, before)

    async def counted(self, event: str) -> list[tuple[str, dict[str, Any], int, float]]:
        """Rows of one event that are the same but for their time: actor, details, how many, the last one's time."""
        alike = AuditRow.actor, AuditRow.details
        query = select(*alike, func.count(), func.max(AuditRow.at)).where(AuditRow.event == event).group_by(*alike)

        def run(session: Session) -> list[tuple[str, dict[str, Any], int, float]]:
            return [(actor, json.loads(told), rows, last) for actor, told, rows, last in session.execute(query)]

        return await self._run(run)

    async def count(self) -> int:
        """How many rows there are."""
        return await self._run(lambda session: int(session.scalar(select(func.count(AuditRow.number))) or 0))


def _hash(before: str, number: int, at: float, event: str, actor: str, details: str) -> str:
    text = json.dumps([before, number, at, event, actor, details], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _mark(session: Session, key: str) -> tuple[int, str]:
    row = session.get(Setting, key)
    if row is None:
        return 0, START
    number, text = json.loads(row.value)
    return int(number), str(text)


def _set_mark(session: Session, key: str, number: int, text: str) -> None:
    session.merge(Setting(key=key, value=json.dumps([number, text])))


def _stored(row: AuditRow) -> StoredEvent:
    return StoredEvent(
        at=row.at, event=row.event, actor=row.actor, details=json.loads(row.details), number=row.number, hash=row.hash
    )
