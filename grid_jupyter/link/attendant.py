"""One thread of this process that looks after connections while nobody uses them. Knows neither tensors nor Nodes.

It answers pings, learns that a connection was closed, and sends what was left in a buffer for some milliseconds.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

TICK_S = 0.005
"""How often it looks after those that are in use."""
REST_S = 2.0
"""How often it looks after all others."""


class Attended(Protocol):
    """Something to be looked after."""

    def attend(self) -> bool:
        """Do what is due, without waiting for anybody; whether to look again after TICK_S."""


class Attendant:
    """Looks after others in a thread, which begins with the first of them, and anew in a forked process."""

    def __init__(self) -> None:
        self._attended: weakref.WeakSet[Attended] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, one: Attended) -> None:
        """Look after this one for as long as it lives."""
        with self._lock:
            self._attended.add(one)
            if self._thread is None or not self._thread.is_alive():
                self._busy = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._busy,), name="grid-attendant", daemon=True
                )
                self._thread.start()

    def wake(self) -> None:
        """Something is in use now."""
        if not self._busy.is_set():
            self._busy.set()

    def _run(self, busy: threading.Event) -> None:
        while True:
            busy.wait(REST_S)
            while True:
                busy.clear()  # before it looks: what begins meanwhile sets it again
                with self._lock:
                    attended = list(self._attended)
                again = sum(one.attend() for one in attended)  # all of them, not up to the first that is busy
                attended.clear()
                if not again:
                    break
                time.sleep(TICK_S)


attendant = Attendant()
"""The one of this process."""
