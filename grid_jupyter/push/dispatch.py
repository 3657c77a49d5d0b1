"""Sees to it that notices go: takes what is due from the outbox, sends it, and writes down what became of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from grid_jupyter.push.bus import Bus
from grid_jupyter.push.notifier import Notifier, Outcome, Outgoing
from grid_jupyter.push.retrying import next_try

log = logging.getLogger("grid_jupyter")

AT_ONCE = 256
"""Notices that are on their way at once."""
LOOK_S = 30.0
"""How often the outbox is looked at, at least."""
_PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What is written down about a notice. `waiting`: it is tried again at `due`. `token`: one to be forgotten."""

    id: int
    state: Literal["waiting", "sent", "given-up"]
    by: str = ""
    reason: str = ""
    attempts: int
    due: float
    token: str | None = None


class Outbox(Protocol):
    """Notices that are to go, durable."""

    async def due(self, now: float, most: int, skip: Collection[int]) -> list[Outgoing]:
        """The oldest notices whose time has come, at most one for each device, and none for those of `skip`."""
        ...

    async def spread(self, now: float) -> bool:
        """Make notices to one device each of what goes to many; whether there was such a thing."""
        ...

    async def settle(self, now: float, settled: Sequence[Settled]) -> None:
        """Write down what became of notices."""
        ...

    async def next(self, now: float) -> float | None:
        """When the next notice is due that is not due yet; None: there is none."""
        ...


class Dispatcher:
    """At least once: a notice is crossed off the outbox after it went, never before."""

    def __init__(
        self,
        outbox: Outbox,
        notifiers: Sequence[Notifier],
        bus: Bus,
        *,
        clock: Callable[[], float] = time.time,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._outbox, self._notifiers, self._bus, self._clock, self._at = outbox, tuple(notifiers), bus, clock, at
        self._wake = asyncio.Event()
        self._going: dict[int, asyncio.Task[None]] = {}
        self._settled: list[Settled] = []
        self._running: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._running = asyncio.create_task(self._run(), name="push")

    def wake(self, *_: Any) -> None:
        """Something may be due."""
        self._wake.set()

    async def stop(self) -> None:
        """Let go; what has not gone is in the outbox."""
        if self._running is None:
            return
        self._stopping = True  # wait_for of Python 3.11 may swallow a cancellation
        tasks = [self._running, *self._going.values()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._running = None
        if self._settled:
            await self._outbox.settle(self._clock(), self._settled)
        for notifier in self._notifiers:
            notifier.close()

    async def _run(self) -> None:
        failed = 0
        while not self._stopping:
            try:
                await self._round()
                failed = 0
            except Exception as error:  # the outermost loop of its task: without it nothing would ever go again
                failed += 1
                log.error("notices wait: %s", type(error).__name__, exc_info=error)
                await asyncio.sleep(min(_PATIENCE_S, 2.0 ** min(failed, 6)))

    async def _round(self) -> None:
        self._wake.clear()
        if self._settled:
            settled, self._settled = self._settled, []
            try:
                await self._outbox.settle(self._clock(), settled)
            except BaseException:
                self._settled = settled + self._settled
                raise
            self._at("notices-settled")
            for one in settled:
                del self._going[one.id]
                self._tell(one)
        room = AT_ONCE - len(self._going)
        now = self._clock()
        found = await self._outbox.due(now, room, self._going.keys()) if room else []
        for outgoing in found:
            self._going[outgoing.notice.id] = asyncio.create_task(self._deliver(outgoing))
        more = len(found) < room and await self._outbox.spread(now)
        if found or more:  # one device may have had all that was looked at
            self._wake.set()
        await self._rest(now)

    async def _rest(self, now: float) -> None:
        if self._wake.is_set():
            return
        due = await self._outbox.next(now)
        pause = LOOK_S if due is None else max(0.05, min(LOOK_S, due - now))
        try:
            await asyncio.wait_for(self._wake.wait(), pause)
        except asyncio.TimeoutError:
            pass

    async def _deliver(self, outgoing: Outgoing) -> None:
        now = self._clock()
        settled = self._hopeless(outgoing, now)
        if settled is None:
            notifier = next(one for one in self._notifiers if one.reaches(outgoing))
            self._at("notice-taken")
            try:
                outcome = await notifier.send(outgoing)
            except Exception as error:  # the outermost call of a notifier: the notice is not lost with it
                log.error("a notice waits: %s", type(error).__name__, exc_info=error)
                outcome = Outcome("again", type(error).__name__)
            self._at("notice-gone")
            settled = judged(outgoing, outcome, notifier.name, self._clock())
        self._settled.append(settled)
        self._wake.set()

    def _hopeless(self, outgoing: Outgoing, now: float) -> Settled | None:
        """What is said of a notice that nobody tries to send."""
        number, attempts = outgoing.notice.id, outgoing.attempts
        if now >= outgoing.expires:
            return Settled(id=number, state="given-up", reason="its time was over", attempts=attempts, due=now)
        if any(one.reaches(outgoing) for one in self._notifiers):
            return None
        if outgoing.listens:  # it is due again when the device connects
            return Settled(id=number, state="waiting", reason="the device is away", attempts=attempts,
                           due=outgoing.expires)  # fmt: skip
        return Settled(id=number, state="given-up", reason="no way to the device", attempts=attempts, due=now)

    def _tell(self, one: Settled) -> None:
        if one.state == "sent":
            self._bus.publish("notice-sent", notice=one.id, by=one.by)
        elif one.state == "given-up":
            log.info("notice %d was given up: %s", one.id, one.reason)
            self._bus.publish("notice-given-up", notice=one.id, by=one.by, reason=one.reason)
        if one.token is not None:
            self._bus.publish("push-token-forgotten")


def judged(outgoing: Outgoing, outcome: Outcome, by: str, now: float) -> Settled:
    """What follows from an outcome."""
    number, attempts, why = outgoing.notice.id, outgoing.attempts + 1, outcome.reason
    if outcome.state == "sent":
        return Settled(id=number, state="sent", by=by, attempts=attempts, due=now)
    if outcome.state == "later":
        due = min(now + outcome.after_s, outgoing.expires)
        return Settled(id=number, state="waiting", by=by, reason=why, attempts=outgoing.attempts, due=due)
    gone = outgoing.token if outcome.state == "token-gone" else None
    again = next_try(attempts, now, outcome.after_s) if outcome.state == "again" else None
    if again is None or again >= outgoing.expires:
        return Settled(id=number, state="given-up", by=by, reason=why, attempts=attempts, due=now, token=gone)
    return Settled(id=number, state="waiting", by=by, reason=why, attempts=attempts, due=again)
