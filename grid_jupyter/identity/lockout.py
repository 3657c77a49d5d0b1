"""When somebody who gave wrong credentials may try again.

After five failures in a row there is a wait that doubles with each further one, from 1 second to 15 minutes:

    wait(n) = 0 for n < 5, else min(2^(n - 5), 900) seconds

A success starts over. The rule is `wait_s`, `fail` and `remaining_s`; `Lockouts` remembers it for many keys.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from dataclasses import dataclass

FREE_FAILURES = 5
"""Failures in a row after which the first wait begins."""
MAX_WAIT_S = 900.0
MAX_KEYS = 20_000
"""Places and names remembered at once."""


@dataclass(frozen=True)
class Failures:
    """The failures in a row of one place or name. `last` and `until` are in seconds of the caller's clock."""

    count: int = 0
    last: float = 0.0
    until: float = 0.0  # no attempt before this


def wait_s(count: int) -> float:
    """Seconds to wait after this many failures in a row."""
    if count < FREE_FAILURES:
        return 0.0
    return min(2.0 ** min(count - FREE_FAILURES, 60), MAX_WAIT_S)


def fail(failures: Failures, now: float) -> Failures:
    """One more failure. One that comes during a wait neither counts nor prolongs it."""
    if remaining_s(failures, now) > 0:
        return failures
    count = failures.count + 1
    return Failures(count=count, last=now, until=now + wait_s(count))


def remaining_s(failures: Failures, now: float) -> float:
    """Seconds until the next attempt; 0 if it may come now."""
    if now < failures.last:  # the clock was set back: better an early attempt than a wait without end
        return 0.0
    return max(0.0, failures.until - now)


class Lockouts:
    """The failures of many keys, at most `max_keys`: when there are more, those with the fewest failures go first."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._failures: dict[Hashable, Failures] = {}

    def remaining_s(self, keys: tuple[Hashable, ...], now: float) -> float:
        """Seconds until an attempt under all of these keys may be made."""
        return max((remaining_s(self._failures[key], now) for key in keys if key in self._failures), default=0.0)

    def fail(self, keys: tuple[Hashable, ...], now: float) -> None:
        """Count a failure under each key."""
        for key in keys:
            self._failures[key] = fail(self._failures.get(key, Failures()), now)
        if len(self._failures) > self._max_keys:
            self._forget()

    def succeed(self, keys: tuple[Hashable, ...]) -> None:
        """Start over under each key."""
        for key in keys:
            self._failures.pop(key, None)

    def __len__(self) -> int:
        return len(self._failures)

    def _forget(self) -> None:
        # A tenth at once, so that a flood of new keys does not sort everything for each. Whoever floods has one
        # failure per key, so the keys that have collected many stay.
        by_weight = sorted(self._failures, key=lambda key: (self._failures[key].count, self._failures[key].last))
        for key in by_weight[: len(by_weight) - self._max_keys + self._max_keys // 10]:
            del self._failures[key]


def place(origin: str) -> str:
    """Where an attempt comes from, as far as it counts: an IPv4 address, or the /64 that one IPv6 host commands."""
    try:
        address = ipaddress.ip_address(origin.partition("%")[0])
    except ValueError:
        return origin[:128]  # a unix socket, or a name
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
