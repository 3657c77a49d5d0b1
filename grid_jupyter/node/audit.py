"""The audit log of a Node: what the gates decided, in order, written behind by the database's thread.

Nothing waits for a row, except where a value leaves by somebody's approval: that row is written with the approval.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grid_jupyter.errors import GridError, StorageFullError
from grid_jupyter.store.audit import AuditTable, Event

log = logging.getLogger("grid_jupyter")

DELAY_S = 0.2
"""How long rows are gathered before they are written together."""
MAX_PENDING = 100_000
"""Rows that wait at most: beyond, while the disk is full, they are counted and the count is written."""
REPEAT_S = 60.0
"""How long the same is counted before one row tells how often it was."""
MAX_REPEATED = 10_000
"""Different rows that are counted at once; with more, all of them are told."""
_MAX_BATCH = 2_000
_RETRY_S = 5.0


@dataclass
class _Repeated:
    since: float
    event: str
    actor: str
    details: dict[str, Any]
    times: int = 0


class Audit:
    """Takes notes and writes them in order."""

    def __init__(self, table: AuditTable, clock: Callable[[], float] = time.time) -> None:
        self.table = table
        self.clock = clock
        self._pending: list[Event] = []
        self._lost = 0
        self._again: dict[str, _Repeated] = {}
        self._writing: asyncio.Task[None] | None = None
        self._heard: Callable[[str, str, dict[str, Any], float], None] = lambda event, actor, details, at: None
        self._busy = asyncio.Lock()  # rows are on their way to the database

    def on_note(self, heard: Callable[[str, str, dict[str, Any], float], None]) -> None:
        """What is told of each note: event, actor, details, time."""
        self._heard = heard

    def note(self, event: str, actor: str, **details: Any) -> None:
        """Remember that this was decided. `details` are of JSON, without values and secrets.

        What is the same but for its time is counted, not written again, for a minute: then one row tells how often.
        So nobody drives rows of others out of the log by having the same refused again and again.
        """
        now = self.clock()
        self._heard(event, actor, details, now)
        key = f"{event} {actor!r} {details!r}"
        again = self._again.get(key)
        if again is not None and 0 <= now - again.since < REPEAT_S:
            again.times += 1
            return
        if again is not None or len(self._again) >= MAX_REPEATED:
            self._tell_repeated(now, all_of_them=len(self._again) >= MAX_REPEATED)
        self._again[key] = _Repeated(now, event, actor, details)
        self._keep(Event(now, event, actor, details))

    def _keep(self, event: Event) -> None:
        if len(self._pending) >= MAX_PENDING:
            self._lost += 1
            return
        self._pending.append(event)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="audit log")

    def _tell_repeated(self, now: float, *, all_of_them: bool = False) -> None:
        for key, one in list(self._again.items()):
            if all_of_them or not 0 <= now - one.since < REPEAT_S:
                del self._again[key]
                if one.times:
                    self._keep(Event(now, one.event, one.actor, {**one.details, "repeated": one.times}))

    def event(self, event: str, actor: str, **details: Any) -> Event:
        """A row, for who writes it in a transaction of their own."""
        return Event(self.clock(), event, actor, details)

    def take(self) -> list[Event]:
        """All that waits, for a transaction that writes it before its own rows, so that the order is kept."""
        taken, self._pending = self._pending, []
        return taken

    def give_back(self, events: list[Event]) -> None:
        """That transaction did not happen: what was taken waits again."""
        self._pending = events + self._pending

    def sweep(self) -> None:
        """Tell what was repeated; to be called now and then."""
        self._tell_repeated(self.clock())

    async def flush(self) -> None:
        """Write what waits, now. Raises StorageFullError; then it still waits."""
        while self._pending:
            async with self._busy:
                batch = self._pending[:_MAX_BATCH]
                del self._pending[:_MAX_BATCH]
                try:
                    await self.table.append(batch)
                except GridError:
                    self.give_back(batch)
                    raise

    async def _write(self) -> None:
        try:
            await asyncio.sleep(DELAY_S)
            while self._pending:
                try:
                    await self.flush()
                except StorageFullError:
                    log.warning("the audit log cannot be written: the disk is full")
                    await asyncio.sleep(_RETRY_S)
                if self._lost and len(self._pending) < MAX_PENDING:
                    lost, self._lost = self._lost, 0
                    self._pending.append(self.event("audit-gap", "", lost=lost))
        finally:
            self._writing = None

    async def close(self) -> None:
        """Write what waits; the Node ends."""
        self._tell_repeated(self.clock(), all_of_them=True)
        writing = self._writing
        if writing is not None:
            async with self._busy:
                writing.cancel()
            await asyncio.wait([writing])
        try:
            await self.flush()
        except StorageFullError:
            log.warning("%d rows of the audit log are lost: the disk is full", len(self._pending))
