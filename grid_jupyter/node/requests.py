"""Requests for jobs and values: who asked for what, what the owners said, how long that holds.

One table for both kinds. A request is decided by the owners of the data sets that it rests on, all of them, or by
somebody who may triage requests; never by who asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    GridError,
    LimitExceededError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.audit import Audit
from grid_jupyter.node.request_rules import (
    TRIAGE,
    asked_by,
    check_text,
    deciding,
    new_request,
    not_granted,
    verdict_of,
)
from grid_jupyter.node.verdicts import (
    APPROVED,
    DENIED,
    EXPIRED,
    GRANTED,
    OPEN,
    QUESTION,
    REVOKED,
    USED,
    WAITING,
    WITHDRAWN,
    Asked,
    Verdict,
    demand,
    overall,
    shows_epochs,
)
from grid_jupyter.store.audit import Event, append
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.requests import RequestRows, RequestTable, StoredDecision, StoredRequest

T = TypeVar("T")

WAITING_S = 30 * 86_400.0
"""How long a request waits for its owners."""
APPROVED_S = 7 * 86_400.0
"""How long an approval is good, unless told otherwise."""
LONGEST_S = 366 * 86_400.0
"""The longest that an approval can be good."""
MAX_OPEN = 100
"""Requests of one user that wait at once."""

Decided = Callable[[str, str, Verdict], None]
"""Called with kind, key and verdict of what was decided, revoked, or is over."""


class Requests:
    """All requests of a Node. Decisions are durable, and in the audit log, when a method returns."""

    def __init__(
        self, table: RequestTable, audit: Audit, blobs: BlobStore, clock: Callable[[], float] = time.time
    ) -> None:
        self._table = table
        self._audit = audit
        self._blobs = blobs
        self._clock = clock
        self._told: list[Decided] = []

    def on_decided(self, tell: Decided) -> None:
        """Whom to call, in the event loop, when something is decided, revoked or over."""
        self._told.append(tell)

    # -------------------------------------------------------------- asking

    async def decide(self, asked: Asked, *, blob: str | None = None, held: dict[str, Any] | None = None) -> Verdict:
        """Whether something may be had: by the policies of all its sources, else by a request, which is made here.

        Asked again with the same key and binding, it answers how the request stands. Another binding under the same
        key is another question: the old one, and its approval, no longer count. `blob` is a value that is held.

        Raises LimitExceededError for a user who has too many requests open, or one that is too large to be shown.
        """
        wanted = demand(asked)
        epochs = shows_epochs(asked)
        about = {"kind": asked.kind, "key": asked.key, "datasets": [rules.dataset for rules in asked.sources]}
        if wanted.denied:
            self._audit.note("denied-by-policy", asked.asker, **about)
            return Verdict(DENIED, reason=wanted.denied)
        if not wanted.owners:
            self._audit.note("granted-by-policy", asked.asker, **about)
            return Verdict(GRANTED, epoch_metrics=epochs)
        new = new_request(asked, wanted.owners, self._clock() + WAITING_S, blob, held)

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            now = self._clock()
            found = rows.newest(asked.key)
            if found is not None and found.asker != asked.asker:
                raise Conflict("this was asked for by somebody else; ask under a key of your own")
            if found is not None and (found.binding != new.binding or not set(new.owners) <= set(found.owners)):
                if found.state in (*OPEN, APPROVED):
                    rows.set_state(found.id, REVOKED)
                    rows.say(found.id, now, "", REVOKED, "something of it was changed, so it is asked anew")
                    events.append(self._audit.event("request-superseded", asked.asker, request=found.id))
                found = None
            if found is None:
                if rows.count(asked.asker, OPEN) >= MAX_OPEN:
                    raise LimitExceededError(
                        f"{MAX_OPEN} requests of yours wait already; withdraw some (node.my_requests()) or wait"
                    )
                found = rows.add(new, WAITING, now)
                events.append(self._audit.event("requested", asked.asker, request=found.id, **about))
                return found
            return self._on_time(rows, events, found, now)

        stored = await self._change(work)
        return verdict_of(stored, epoch_metrics=epochs)

    async def use(self, request: int, asker: str, *, again: bool = False) -> StoredRequest:
        """Take up an approval, once: durable, and in the audit log, before anything leaves by it. With `again`, the
        same may be fetched until the approval ends: the answer may have been lost.

        Raises GetNotPermittedError, which says how the request stands, and ObjectNotFoundError for another's.
        """

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            found = self._on_time(rows, events, asked_by(asker, rows.get(request)), self._clock())
            if again and found.state == USED and found.expires > self._clock():
                events.append(self._audit.event("released-again", asker, request=request, key=found.key))
                return found
            if found.state != APPROVED:
                raise not_granted(found)
            rows.set_state(request, USED)
            events.append(self._audit.event("released-by-approval", asker, request=request, key=found.key))
            return found

        return await self._change(work)

    async def begun(self, request: int, asker: str) -> None:
        """What a job makes in rounds leaves by this approval from now on, as long as it stands: durable, and in the
        audit log, before the first round leaves. Taken up already, it is good for the last round once more.

        Raises GetNotPermittedError, which says how the request stands, and ObjectNotFoundError for another's.
        """

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            found = self._on_time(rows, events, asked_by(asker, rows.get(request)), self._clock())
            if found.state not in (APPROVED, USED):
                raise not_granted(found)
            events.append(self._audit.event("releases-by-approval", asker, request=request, key=found.key))
            return found

        await self._change(work)

    async def standing(self, request: int, asker: str) -> StoredRequest:
        """One's own request as it stands. Raises ObjectNotFoundError."""
        return await self._change(
            lambda rows, events: self._on_time(rows, events, asked_by(asker, rows.get(request)), self._clock())
        )

    async def answer(self, account: Account, request: int, text: str) -> StoredRequest:
        """Answer the question that an owner asked back. Raises Conflict where none was asked."""
        check_text(text, "an answer")

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            now = self._clock()
            found = self._on_time(rows, events, asked_by(account.username, rows.get(request)), now)
            if found.state != QUESTION:
                raise Conflict(f"nothing was asked: request {request} is {found.state}")
            asking = [one.owner for one in found.decisions if one.state == QUESTION]
            rows.decide(request, asking, StoredDecision("", WAITING, "", now, found.expires, False))
            rows.say(request, now, account.username, "answer", text)
            rows.set_state(request, WAITING)
            events.append(self._audit.event("answered", account.username, request=request))
            return rows.get(request)

        return await self._change(work)

    async def withdraw(self, account: Account, request: int) -> StoredRequest:
        """Ask for it no longer. Raises Conflict for one that is over already."""

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            found = self._on_time(rows, events, asked_by(account.username, rows.get(request)), self._clock())
            if found.state not in (*OPEN, APPROVED):
                raise Conflict(f"request {request} is {found.state}, so there is nothing to withdraw")
            rows.set_state(request, WITHDRAWN)
            rows.say(request, self._clock(), account.username, WITHDRAWN, "")
            events.append(self._audit.event("withdrawn", account.username, request=request))
            return rows.get(request)

        return await self._change(work)

    # -------------------------------------------------------------- deciding

    async def approve(
        self, account: Account, request: int, *, expires_s: float | None = None, review: bool = False
    ) -> StoredRequest:
        """Let it go on, for what this account may decide. With `review`, a job may run and its result waits for
        another request. The approval is good for `expires_s` (7 days).

        Raises Forbidden, ObjectNotFoundError, Conflict for a request that is no longer open, BadRequest.
        """
        good_s = APPROVED_S if expires_s is None else expires_s
        if not 1.0 <= good_s <= LONGEST_S:
            raise BadRequest("an approval is good for 1 second to 366 days")

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            now = self._clock()
            found, owners = self._decidable(rows, events, account, request, now)
            if review and found.kind != "job":
                raise BadRequest("only the result of a job can be looked at before it is released")
            rows.decide(request, owners, StoredDecision("", APPROVED, account.username, now, now + good_s, review))
            rows.say(request, now, account.username, APPROVED, "")
            return self._settle(rows, events, account, request, "approved")

        return await self._change(work)

    async def deny(self, account: Account, request: int, reason: str) -> StoredRequest:
        """Refuse it, with a reason that the asker reads. Raises as `approve`."""
        check_text(reason, "a reason")

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            now = self._clock()
            found, owners = self._decidable(rows, events, account, request, now)
            rows.decide(request, owners, StoredDecision("", DENIED, account.username, now, found.expires, False))
            rows.say(request, now, account.username, DENIED, reason)
            return self._settle(rows, events, account, request, "denied")

        return await self._change(work)

    async def ask(self, account: Account, request: int, question: str) -> StoredRequest:
        """Ask the asker something; it waits for the answer. Raises as `approve`."""
        check_text(question, "a question")

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            now = self._clock()
            found, owners = self._decidable(rows, events, account, request, now)
            rows.decide(request, owners, StoredDecision("", QUESTION, account.username, now, found.expires, False))
            rows.say(request, now, account.username, QUESTION, question)
            return self._settle(rows, events, account, request, "asked-back")

        return await self._change(work)

    async def revoke(self, account: Account, request: int) -> StoredRequest:
        """Take an approval back, as long as nothing left by it. Raises Conflict, Forbidden, ObjectNotFoundError."""

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            now = self._clock()
            found = self._on_time(rows, events, rows.get(request), now)
            owners = deciding(account, found)
            given = [one.owner for one in found.decisions if one.owner in owners and one.state == APPROVED]
            if found.state not in (*OPEN, APPROVED) or not given:
                raise Conflict(f"request {request} is {found.state}, so there is no approval of yours to take back")
            rows.decide(request, given, StoredDecision("", REVOKED, account.username, now, now, False))
            rows.say(request, now, account.username, REVOKED, "")
            return self._settle(rows, events, account, request, "revoked")

        return await self._change(work)

    # -------------------------------------------------------------- looking

    async def to_decide(self, account: Account, states: tuple[str, ...] = OPEN) -> tuple[StoredRequest, ...]:
        """Requests that this account may decide on, or decided on, in these states: newest first."""
        await self.sweep()
        owner = None if TRIAGE in account.flags else account.username
        return await self._table.change(lambda rows: rows.listed(owner=owner, states=states, limit=1000))

    async def mine(self, account: Account) -> tuple[StoredRequest, ...]:
        """What this account asked for, newest first."""
        await self.sweep()
        return await self._table.change(lambda rows: rows.listed(asker=account.username, limit=1000))

    async def visible(self, account: Account, request: int) -> StoredRequest:
        """One request as it stands, for who asked and for who decides. Raises ObjectNotFoundError."""

        def work(rows: RequestRows, events: list[Event]) -> StoredRequest:
            found = rows.get(request)
            if found.asker != account.username:
                deciding(account, found)
            return self._on_time(rows, events, found, self._clock())

        return await self._change(work)

    # -------------------------------------------------------------- what comes to its end by itself

    async def sweep(self) -> None:
        """End requests and approvals whose time is over; the values held for them go."""
        now = self._clock()
        due = await self._table.change(lambda rows: [one.id for one in rows.due((*OPEN, APPROVED), now)])
        await self._let_go(now)
        for request in due:
            await self._change(partial(self._end_if_over, request, now))

    async def _let_go(self, now: float) -> None:
        """Values that were fetched, and whose approval has ended, are held no longer."""

        def fetched(rows: RequestRows) -> list[str | None]:
            return [rows.let_go(one.id) for one in rows.due((USED,), now) if one.blob is not None]

        for blob in await self._table.change(fetched):
            if blob is not None:
                await asyncio.to_thread(self._blobs.delete, blob)

    async def end_with(self, dataset: int) -> None:
        """A data set is gone, and with it what was asked for on it."""

        def work(rows: RequestRows) -> list[int]:
            listed = rows.listed(dataset=dataset, states=(*OPEN, APPROVED, USED))
            return [one.id for one in listed if one.state != USED or one.blob is not None]

        def end(request: int, rows: RequestRows, events: list[Event]) -> StoredRequest:
            rows.set_state(request, REVOKED)
            rows.say(request, self._clock(), "", REVOKED, f"data set {dataset} was unpublished")
            events.append(self._audit.event("revoked", "", request=request, dataset=dataset))
            return rows.get(request)

        for request in await self._table.change(work):
            await self._change(partial(end, request))

    async def close(self, key: str, state: str, by: str, why: str) -> None:
        """What was asked for under a key is over: what of it waits, or is approved, becomes withdrawn, expired or
        used, in the audit log as well."""

        def work(rows: RequestRows) -> list[int]:
            return [one.id for one in rows.under(key, (*OPEN, APPROVED))]

        def end(request: int, rows: RequestRows, events: list[Event]) -> StoredRequest:
            rows.set_state(request, state)
            rows.say(request, self._clock(), by, state, why)
            events.append(self._audit.event(state, by, request=request, key=key))
            return rows.get(request)

        for request in await self._table.change(work):
            await self._change(partial(end, request))

    async def last_state(self, key: str) -> str:
        """How the newest request under a key stands; empty where there is none."""
        found = await self._table.change(lambda rows: rows.newest(key))
        return "" if found is None else found.state

    async def open_keys(self, kind: str) -> frozenset[str]:
        """The keys of what waits, or is approved, of a kind."""
        found = await self._table.change(lambda rows: rows.listed(states=(*OPEN, APPROVED)))
        return frozenset(one.key for one in found if one.kind == kind)

    async def held_bytes(self, asker: str) -> int:
        """Bytes of the values that are held for somebody."""
        return await self._table.change(lambda rows: rows.held_bytes(asker))

    async def held_blobs(self) -> frozenset[str]:
        """Blobs of values that are held."""
        return await self._table.change(lambda rows: rows.held_blobs())

    # -------------------------------------------------------------- one change

    async def _change(self, work: Callable[[RequestRows, list[Event]], StoredRequest]) -> StoredRequest:
        """One transaction: what it changes and its rows of the audit log, behind all that was noted before. Then the
        value that is held goes, if nobody can have it any more, and whoever waits is told."""
        before = self._audit.take()
        dropped: list[str] = []

        def all_of_it(rows: RequestRows) -> tuple[StoredRequest | GridError, list[StoredRequest]]:
            events: list[Event] = []
            try:
                found: StoredRequest | GridError = work(rows, events)
            except GridError as refused:
                if not events:  # nothing was changed; where something was, that stays
                    raise
                found = refused
            touched = [rows.get(request) for request in dict.fromkeys(event.details["request"] for event in events)]
            for one in touched:
                if one.blob is not None and one.state in (DENIED, EXPIRED, REVOKED, WITHDRAWN):
                    dropped.extend(blob for blob in [rows.let_go(one.id)] if blob)
            append(rows.session, [*before, *events])
            return found, touched

        try:
            found, touched = await self._table.change(all_of_it)
        except GridError:
            self._audit.give_back(before)
            raise
        for blob in dropped:
            await asyncio.to_thread(self._blobs.delete, blob)
        for one in touched:
            for tell in self._told:
                tell(one.kind, one.key, verdict_of(one))
        if isinstance(found, GridError):
            raise found
        return found

    def _end_if_over(self, request: int, now: float, rows: RequestRows, events: list[Event]) -> StoredRequest:
        return self._on_time(rows, events, rows.get(request), now)

    def _on_time(self, rows: RequestRows, events: list[Event], found: StoredRequest, now: float) -> StoredRequest:
        """The request, ended if its time is over."""
        if found.state not in (*OPEN, APPROVED) or found.expires > now:
            return found
        rows.set_state(found.id, EXPIRED)
        events.append(self._audit.event("expired", "", request=found.id, was=found.state))
        return rows.get(found.id)

    def _decidable(
        self, rows: RequestRows, events: list[Event], account: Account, request: int, now: float
    ) -> tuple[StoredRequest, tuple[str, ...]]:
        """A request that waits, and the owners for whom this account decides."""
        found = rows.get(request)
        owners = deciding(account, found)
        found = self._on_time(rows, events, found, now)
        if found.state not in OPEN:
            raise Conflict(f"request {request} is {found.state}: there is nothing to decide any more")
        return found, owners

    def _settle(
        self, rows: RequestRows, events: list[Event], account: Account, request: int, event: str
    ) -> StoredRequest:
        """Let the request as a whole follow its decisions."""
        found = rows.get(request)
        state = overall(found.owners, {one.owner: one.state for one in found.decisions})
        rows.set_state(request, state)
        if state == APPROVED:
            soonest = min(one.expires for one in found.decisions)
            rows.set_state(request, state, expires=soonest, review=any(one.review for one in found.decisions))
        events.append(self._audit.event(event, account.username, request=request, state=state, binding=found.binding))
        return rows.get(request)
