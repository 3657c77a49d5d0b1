"""The steps of one training: an event, and how the training stands after it, are written together. Events that come
while the database is busy are one transaction, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from grid_jupyter.cycles.machine import Training
from grid_jupyter.errors import OutcomeUnknownError
from grid_jupyter.store.trainings import TrainingRows, TrainingTable

T = TypeVar("T")
Work = Callable[[TrainingRows, Training, float], tuple[Training, T]]
"""What an event does to the rows and to how the training stands, and what it comes to."""

_TOGETHER = 256
"""Events of one transaction, at most: nobody else's waits for more."""


@dataclass(frozen=True)
class Step:
    """What happened: how the training stood before and after it, what it came to, and the notices that were queued."""

    before: Training
    after: Training
    result: Any
    queued: int


@dataclass(frozen=True, eq=False)
class _Event:
    work: Work[Any]
    happened: Callable[[Step], None]
    done: asyncio.Future[Any]


class Steps:
    """Those of one training, by its number."""

    def __init__(
        self,
        table: TrainingTable,
        training: int,
        clock: Callable[[], float],
        beside: Callable[[TrainingRows, Training, Training, float], None],
    ) -> None:
        """`beside` writes what else follows from each step, within its transaction."""
        self._table, self._training, self._clock, self._beside = table, training, clock, beside
        self._waiting: deque[_Event] = deque()
        self._coming = False  # a transaction that will take what waits
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, work: Work[T], happened: Callable[[Step], None]) -> T:
        """Let an event happen; `happened` is told as soon as it is on the disk. Goes on where its caller is cancelled:
        what is in the database must be known here too. Raises what `work` raises; then nothing happened."""
        event = _Event(work, happened, asyncio.get_running_loop().create_future())
        self._waiting.append(event)
        if not self._coming:
            self._coming = True
            task = asyncio.create_task(self._work_off())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        found: T = await asyncio.shield(event.done)
        return found

    async def settled(self) -> None:
        """Wait for what is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _work_off(self) -> None:
        taken: list[_Event] = []

        def run(rows: TrainingRows) -> list[Step]:
            if not taken:  # else the database does it again
                self._coming = False
                while self._waiting and len(taken) < _TOGETHER:
                    taken.append(self._waiting.popleft())
            return self._run(rows, taken)

        try:
            steps = await self._table.transact(run)
        except Exception as error:  # it is the caller's, who gets it
            if not taken:  # the database is closed, or away
                self._coming = False
                taken, self._waiting = list(self._waiting), deque()
            if len(taken) == 1 or isinstance(error, OutcomeUnknownError):  # else one would be told that it is not kept
                for event in taken:
                    _fail(event, error)
            else:  # by itself each finds out whether it was the one
                await asyncio.gather(*(self._alone(event) for event in taken))
        else:
            for event, step in zip(taken, steps, strict=True):
                _settle(event, step)
        if self._waiting and not self._coming:
            self._coming = True
            await self._work_off()

    async def _alone(self, event: _Event) -> None:
        try:
            (step,) = await self._table.transact(lambda rows: self._run(rows, [event]))
        except Exception as error:  # it is the caller's, who gets it
            _fail(event, error)
        else:
            _settle(event, step)

    def _run(self, rows: TrainingRows, events: list[_Event]) -> list[Step]:
        if not events:
            return []
        first = state = msgspec.convert(rows.state(self._training), Training)
        steps: list[Step] = []
        for event in events:
            before, now, queued = state, self._clock(), rows.notices.queued
            state, result = event.work(rows, before, now)
            self._beside(rows, before, state, now)
            steps.append(Step(before, state, result, rows.notices.queued - queued))
        if state != first:
            rows.save(self._training, msgspec.to_builtins(state))
        return steps


def _settle(event: _Event, step: Step) -> None:
    try:
        event.happened(step)
    except Exception as error:  # it is the caller's, who gets it
        _fail(event, error)
    else:
        if not event.done.done():
            event.done.set_result(step.result)


def _fail(event: _Event, error: Exception) -> None:
    if not event.done.done():
        event.done.set_exception(error)
        event.done.exception()  # a caller that was cancelled does not ask for it
