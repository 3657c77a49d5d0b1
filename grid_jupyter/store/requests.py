"""The rows of requests and of what was decided on them. Who may decide is known elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from grid_jupyter.errors import ObjectNotFoundError
from grid_jupyter.store.database import Database, is_id
from grid_jupyter.store.records import Decision, ReleaseRequest

T = TypeVar("T")

NO_REQUEST = (
    "there is no such request here, or it is not yours; node.my_requests() lists what you asked for, node.requests() "
    "('jupyter grid requests' at the Node) what waits for you"
)
"""Said of a request that is not there, and of another's: nobody learns which."""


@dataclass(frozen=True)
class StoredDecision:
    """What was said for one owner. Times are UTC seconds."""

    owner: str
    state: str
    by: str
    at: float
    expires: float
    review: bool


@dataclass(frozen=True, kw_only=True)
class NewRequest:
    """A request as it is made. `datasets` are {dataset, version, owner}; `owners` those who have to decide."""

    key: str
    kind: str
    asker: str
    reason: str
    binding: str
    datasets: tuple[dict[str, Any], ...]
    shown: dict[str, Any]
    owners: tuple[str, ...]
    expires: float
    blob: str | None = None
    held: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class StoredRequest(NewRequest):
    """A request as it stands."""

    id: int
    state: str
    review: bool
    created: float
    dialogue: tuple[dict[str, Any], ...] = ()
    decisions: tuple[StoredDecision, ...] = field(default=())


class RequestTable:
    """Requests in the database. `change` runs a decision as one transaction, so that two never race."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def change(self, work: Callable[[RequestRows], T]) -> T:
        """Read and change requests in one transaction; it is durable when this returns, and happens whether or not
        its caller is cancelled meanwhile."""
        return await asyncio.shield(self._run(lambda session: work(RequestRows(session))))


class RequestRows:
    """Requests within one transaction."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, new: NewRequest, state: str, now: float) -> StoredRequest:
        """Store a request; every owner's decision waits."""
        row = ReleaseRequest(
            key=new.key, kind=new.kind, asker=new.asker, reason=new.reason, binding=new.binding,
            datasets=list(new.datasets), shown=new.shown, state=state, review=False, created=now,
            expires=new.expires, dialogue=[], blob=new.blob, held=new.held,
            decisions=[
                Decision(owner=owner, state=state, by="", at=now, expires=new.expires, review=False)
                for owner in new.owners
            ],
        )  # fmt: skip
        self.session.add(row)
        self.session.flush()
        return _stored(row)

    def get(self, request: int) -> StoredRequest:
        """One request. Raises ObjectNotFoundError."""
        return _stored(self._row(request))

    def newest(self, key: str) -> StoredRequest | None:
        """The newest request with a key."""
        query = select(ReleaseRequest).where(ReleaseRequest.key == key).order_by(ReleaseRequest.id.desc()).limit(1)
        row = self.session.scalars(query).first()
        return None if row is None else _stored(row)

    def under(self, key: str, states: Sequence[str]) -> tuple[StoredRequest, ...]:
        """Requests with a key, in these states."""
        query = select(ReleaseRequest).where(ReleaseRequest.key == key, ReleaseRequest.state.in_(states))
        return tuple(_stored(row) for row in self.session.scalars(query))

    def listed(
        self,
        *,
        asker: str | None = None,
        owner: str | None = None,
        states: Sequence[str] = (),
        dataset: int | None = None,
        limit: int | None = None,
    ) -> tuple[StoredRequest, ...]:
        """Requests of an asker, for an owner to decide, in these states, on a data set: newest first."""
        query = select(ReleaseRequest).order_by(ReleaseRequest.id.desc()).limit(limit)
        if asker is not None:
            query = query.where(ReleaseRequest.asker == asker)
        if owner is not None:
            query = query.where(ReleaseRequest.decisions.any(Decision.owner == owner))
        if states:
            query = query.where(ReleaseRequest.state.in_(states))
        found = tuple(_stored(row) for row in self.session.scalars(query))
        if dataset is None:
            return found
        return tuple(one for one in found if any(part["dataset"] == dataset for part in one.datasets))

    def due(self, states: Sequence[str], now: float) -> tuple[StoredRequest, ...]:
        """Requests in one of these states whose time is over; of those that are used, the ones with a value."""
        query = select(ReleaseRequest).where(ReleaseRequest.state.in_(states), ReleaseRequest.expires <= now)
        query = query.where((ReleaseRequest.state != "used") | ReleaseRequest.blob.is_not(None))
        return tuple(_stored(row) for row in self.session.scalars(query))

    def count(self, asker: str, states: Sequence[str]) -> int:
        """How many requests of somebody are in these states."""
        query = select(func.count()).where(ReleaseRequest.asker == asker, ReleaseRequest.state.in_(states))
        return int(self.session.scalar(query) or 0)

    def held_bytes(self, asker: str) -> int:
        """Bytes of the values that are held for somebody."""
        query = select(ReleaseRequest.held).where(ReleaseRequest.asker == asker, ReleaseRequest.blob.is_not(None))
        return sum(int(held["nbytes"]) for held in self.session.scalars(query) if held is not None)

    def held_blobs(self) -> frozenset[str]:
        """Names of all blobs that are held."""
        query = select(ReleaseRequest.blob).where(ReleaseRequest.blob.is_not(None))
        return frozenset(blob for blob in self.session.scalars(query) if blob is not None)

    def set_state(self, request: int, state: str, *, expires: float | None = None, review: bool | None = None) -> None:
        """Change the request as a whole."""
        row = self._row(request)
        row.state = state
        if expires is not None:
            row.expires = expires
        if review is not None:
            row.review = review

    def decide(self, request: int, owners: Sequence[str], decision: StoredDecision) -> None:
        """Let one decision count for these owners."""
        for row in self._row(request).decisions:
            if row.owner in owners:
                row.state, row.by, row.at = decision.state, decision.by, decision.at
                row.expires, row.review = decision.expires, decision.review

    def say(self, request: int, at: float, by: str, what: str, text: str) -> None:
        """Add to what was said about a request."""
        row = self._row(request)
        row.dialogue = [*row.dialogue, {"at": at, "by": by, "what": what, "text": text}]

    def let_go(self, request: int) -> str | None:
        """The held value is no longer held; its blob is the caller's to delete once the transaction is done."""
        row = self._row(request)
        blob, row.blob = row.blob, None
        return blob

    def _row(self, request: int) -> ReleaseRequest:
        row = self.session.get(ReleaseRequest, request) if is_id(request) else None
        if row is None:
            raise ObjectNotFoundError(NO_REQUEST)
        return row


def _stored(row: ReleaseRequest) -> StoredRequest:
    return StoredRequest(
        id=row.id, key=row.key, kind=row.kind, asker=row.asker, reason=row.reason, binding=row.binding,
        datasets=tuple(row.datasets), shown=row.shown, owners=tuple(decision.owner for decision in row.decisions),
        state=row.state, review=row.review, created=row.created, expires=row.expires, dialogue=tuple(row.dialogue),
        blob=row.blob, held=row.held,
        decisions=tuple(
            StoredDecision(one.owner, one.state, one.by, one.at, one.expires, one.review) for one in row.decisions
        ),
    )  # fmt: skip
