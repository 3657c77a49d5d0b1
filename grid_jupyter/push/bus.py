"""The event bus of a Node: any module tells what happened, any other takes it. Events are pure data, in order."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Union

log = logging.getLogger("grid_jupyter")

Fact = Union[str, int, float, bool, None]

EVENTS = frozenset(
    {
        "device-connected",
        "cycle-opened",
        "training-started",
        "cycle-completed",
        "cycle-reset",
        "training-over",
        "notices-queued",
        "notice-sent",
        "notice-given-up",
        "push-token-forgotten",
    }
)
"""What may happen; docs/push.md has the facts of each."""


@dataclass(frozen=True)
class Event:
    """Something that happened, told after it was durable. Nothing secret is in it: no ids of devices, no tokens."""

    name: str
    facts: Mapping[str, Fact] = field(default_factory=lambda: MappingProxyType({}))


Subscriber = Callable[[Event], None]


class Bus:
    """Events go to all subscribers, each event to all of them before the next one, in the order of publishing.

    `publish` may be called from any thread; subscribers are called in the thread of the event loop in which the bus
    was made. What a subscriber publishes comes after what is on its way. What it raises keeps nobody else from the
    event: it is logged with its traceback, and counted.
    """

    def __init__(self) -> None:
        self.failed = 0
        """How often a subscriber raised."""
        self._subscribers: list[tuple[frozenset[str], Subscriber]] = []
        self._waiting: deque[Event] = deque()
        self._busy = False
        self._thread = threading.get_ident()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def subscribe(self, subscriber: Subscriber, names: Collection[str] = EVENTS) -> Callable[[], None]:
        """Call `subscriber` for each event of these names. Returns what ends that. Raises KeyError for a name that
        there is not."""
        for name in names:
            _check(name)
        entry = (frozenset(names), subscriber)
        self._subscribers.append(entry)
        return lambda: self._subscribers.remove(entry)

    def publish(self, name: str, **facts: Fact) -> None:
        """Tell that something happened. Raises KeyError for a name that there is not."""
        _check(name)
        event = Event(name, MappingProxyType(facts))
        if self._loop is None or threading.get_ident() == self._thread:
            self._take(event)
        else:
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event) -> None:
        self._waiting.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                self._tell(self._waiting.popleft())
        finally:
            self._busy = False

    def _tell(self, event: Event) -> None:
        for names, subscriber in tuple(self._subscribers):
            if event.name not in names:
                continue
            try:
                subscriber(event)
            except Exception as error:  # the outermost call of somebody else's code: the others get the event too
                self.failed += 1
                log.error("a subscriber of %s failed: %s", event.name, type(error).__name__, exc_info=error)


def _check(name: str) -> None:
    if name not in EVENTS:
        raise KeyError(f"there is no event {name!r}")
