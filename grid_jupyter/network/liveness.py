"""When a Node counts as alive: pure rules over its links and heartbeats, with the clock passed in.

A Node is alive while it has a link open over which a heartbeat came less than two intervals ago. A
Node that was killed is therefore gone from every list after at most two intervals, even where its
machine vanished and nobody closed the connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

ALIVE_INTERVALS = 2.0
"""A Node is listed for so many heartbeat intervals after its last heartbeat."""
SILENT_INTERVALS = 3.0
"""A link is given up after so many intervals without a message; both ends keep to it."""


@dataclass(frozen=True)
class Presence:
    """What is known of one Node's being there. `link` is the newest link, None when it is closed."""

    link: int | None = None
    last_heartbeat: float | None = None


@dataclass(frozen=True)
class Opened:
    """A link was opened; it takes the place of an older one."""

    link: int


@dataclass(frozen=True)
class Beat:
    """A heartbeat came over a link."""

    link: int


@dataclass(frozen=True)
class Closed:
    """A link is closed."""

    link: int


Event = Union[Opened, Beat, Closed]


def advance(presence: Presence, event: Event, now: float) -> Presence:
    """The presence after an event. What an older link still says, its end included, changes nothing."""
    if isinstance(event, Opened):
        return Presence(link=event.link)
    if event.link != presence.link:
        return presence
    if isinstance(event, Beat):
        return Presence(link=event.link, last_heartbeat=now)
    return Presence(last_heartbeat=presence.last_heartbeat)


def is_alive(presence: Presence, now: float, interval_s: float) -> bool:
    """Whether the Node may be listed."""
    if presence.link is None or presence.last_heartbeat is None:
        return False
    return now - presence.last_heartbeat < ALIVE_INTERVALS * interval_s


def is_silent(last_message: float, now: float, interval_s: float) -> bool:
    """Whether a link has been silent for so long that its end closes it."""
    return now - last_message >= SILENT_INTERVALS * interval_s
