"""When a notice that could not be delivered is tried again, and when it is given up."""

from __future__ import annotations

FIRST_S = 1.0
"""Pause after the first failure; each further one doubles it."""
LONGEST_S = 600.0
"""Longest pause."""
MOST_ATTEMPTS = 10
"""After so many failures a notice is given up."""


def next_try(attempts: int, now: float, asked_s: float = 0.0) -> float | None:
    """When to try again after `attempts` failures, in UTC seconds; None: never.

    `asked_s` is for how long the other side asked to be left alone (Retry-After): it is obeyed.
    """
    if attempts >= MOST_ATTEMPTS:
        return None
    return now + max(asked_s, min(LONGEST_S, FIRST_S * 2.0 ** max(0, attempts - 1)))
