"""How fast a large body has to come, at least: whoever trickles bytes would keep a place here for hours."""

from __future__ import annotations

LEAST_BYTES = 64 << 10
"""Of a body, in each window."""
WINDOW_S = 30.0
"""Seconds in which its sender was waited for: what this Node takes to keep what came is not among them."""


class Pace:
    """What came of one body, against the time that was waited for it. Times are of one clock, in seconds."""

    def __init__(self, least: int = LEAST_BYTES, window_s: float = WINDOW_S) -> None:
        self.least, self.window_s = least, window_s
        self._since: float | None = None
        self._waited = 0.0
        self._before = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the sender is waited for just now."""
        return self._since is not None

    def wait(self, now: float) -> None:
        """From now on the sender is waited for."""
        self._since = now

    def work(self, now: float) -> None:
        """Something came, and is kept now."""
        if self._since is not None:
            self._waited, self._since = self._waited + now - self._since, None

    def left_s(self, now: float) -> float:
        """How much longer the sender is waited for until it shows whether it is too slow."""
        waiting = 0.0 if self._since is None else now - self._since
        return max(0.0, self.window_s - self._waited - waiting)

    def is_too_slow(self, came: int, now: float) -> bool:
        """Whether less came in the window that is over than has to; `came` bytes did since the start. The next window
        begins now."""
        if self.left_s(now):
            return False
        of_it, self._before, self._waited = came - self._before, came, 0.0
        if self._since is not None:
            self._since = now
        return of_it < self.least
