"""The reports of one training's open cycle: folded in the Worker as they count, in their order, and made a checkpoint.

What counts is in the database and in files: whatever goes wrong here, all of them are folded again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from grid_jupyter.cycles.fold_worker import FoldWorker, Made, Subject
from grid_jupyter.errors import GridError, SessionLostError
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.places import StoredReport
from grid_jupyter.store.trainings import StoredCheckpoint

log = logging.getLogger("grid_jupyter")
T = TypeVar("T")

_AT_ONCE = 32
"""Reports that the Worker is given before it has answered: their files are open meanwhile."""
_TRIES = 3
"""How often reports are folded in Workers that die beside it, before it is said that they do."""


class Folding:
    """One training's."""

    def __init__(self, subject: Subject, folds: FoldWorker, blobs: BlobStore, at: Callable[[str], None]) -> None:
        self._subject, self._folds, self._blobs, self._at = subject, folds, blobs, at
        self._pending: dict[int, StoredReport] = {}
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._coming = False  # a task that will fold what is pending
        self._closed = False

    def later(self, report: StoredReport) -> None:
        """A report counts: fold it when it is its turn. Where the Node stops, the next start does."""
        self._pending[report.number] = report
        if not self._closed and not self._coming:
            self._coming = True
            task = asyncio.create_task(self._ahead())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def all_of(self, count: int) -> list[StoredReport] | None:
        """The reports of the cycle, in their order; None where not all of so many came by here."""
        if not count or self._pending.keys() != set(range(1, count + 1)):
            return None
        return [self._pending[number] for number in range(1, count + 1)]

    async def checkpoint(self, reports: Sequence[StoredReport], model: StoredCheckpoint) -> Made:
        """The model after a cycle of these reports, durably; none is pending afterwards. Raises GridError, and OSError
        where the file of a report is lost."""
        async with self._turn:
            self._pending = {report.number: report for report in reports}
            made = await self._tried(lambda: self._made(len(reports), model))
            self._pending.clear()  # nothing counts while a cycle is closing
            return made

    def close(self) -> None:
        """Fold no more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    async def closed(self) -> None:
        """Fold no more; returns when nothing is."""
        self.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # -------------------------------------------------------------- in the Worker

    async def _ahead(self) -> None:
        try:
            async with self._turn:
                self._coming = False
                await self._tried(self._ready)
        except Exception as error:  # the outermost call of its task; closing the cycle folds all of them again
            log.error("a report of training %d waits: %s", self._subject.training, type(error).__name__, exc_info=error)

    async def _tried(self, work: Callable[[], Awaitable[T]]) -> T:
        """Work that a Worker may die beside: it is done again from the start."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(SessionLostError):
                return await work()
        return await work()

    async def _ready(self) -> None:
        """Fold what has come, in the order in which it counted, which may not be that of its coming."""
        folds, subject = self._folds, self._subject
        try:
            while taken := self._next():
                files = [(self._blobs.path(one.blob), one.samples, one.staleness) for one in taken]
                await folds.fold(subject, files)
                for _ in taken:
                    self._at("report-folded")
        except BaseException:
            folds.forget(subject)  # half a report may be in it; whoever is next folds all of them again
            raise

    def _next(self) -> list[StoredReport]:
        """The reports whose turn it is."""
        first = self._folds.count(self._subject) + 1
        found = (self._pending.get(number) for number in range(first, first + _AT_ONCE))
        return list(itertools.takewhile(lambda one: one is not None, found))  # type: ignore[arg-type]

    async def _made(self, count: int, model: StoredCheckpoint) -> Made:
        await self._ready()
        if self._folds.count(self._subject) != count:
            self._folds.forget(self._subject)
            raise GridError(f"of {count} reports of a cycle some are not there")
        state = {slot: self._blobs.path(name) for slot, name in model.state.items()}
        async with self._blobs.at_hand(model.blob, *model.state.values()):
            return await self._folds.checkpoint(self._subject, self._blobs.path(model.blob), state, self._blobs)
