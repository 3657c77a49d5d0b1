"""Frames of a session on their way to its Node, kept until the Node is known to have taken them.

A KeyboardInterrupt may come between any two steps: where a frame stands is counted from what is kept, never beside it.
"""

from __future__ import annotations

from collections import deque

from grid_jupyter.link.websocket import WebSocket

MOST_KEPT_BYTES = 32 << 20
"""When more than this is kept, the Node should be asked for a sign."""


class Outbox:
    """Frames in the order in which they were entered, each with its position in the session: 1, 2, …"""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, int, bytes]] = deque()  # position, number, frame
        self._taken = 0  # position of the last frame that the Node has taken for sure
        self._taken_number = 0
        self._handed = 0  # position of the last frame that the connection of the moment was given

    @property
    def is_long(self) -> bool:
        """Whether much is kept that the Node may have taken long ago."""
        return len(self._kept) > 64 and sum(len(frame) for _, _, frame in self._kept) > MOST_KEPT_BYTES

    def enter(self, frame: bytes, number: int = 0) -> int:
        """Take a frame; its position. One whose number, above 0, was entered before is not taken again."""
        last = self._kept[-1][0] if self._kept else self._taken
        if number and number <= self._newest():
            return last
        self._kept.append((last + 1, number, frame))
        return last + 1

    def _newest(self) -> int:
        return next((number for _, number, _ in reversed(self._kept) if number), self._taken_number)

    def hand(self, connection: WebSocket) -> None:
        """Give the connection what it was not given yet."""
        fresh = []
        for kept in reversed(self._kept):
            if kept[0] <= self._handed:
                break
            fresh.append(kept)
        for position, _, frame in reversed(fresh):
            connection.put(frame, position)  # which takes each position once
            self._handed = position

    def taken(self, position: int) -> None:
        """The Node has taken the frames up to this position: forget them."""
        for kept, number, _ in self._kept:
            if kept > position:
                break
            self._taken_number = number or self._taken_number
        self._taken = max(self._taken, position)
        while self._kept and self._kept[0][0] <= position:
            self._kept.popleft()

    def begin_again(self, position: int) -> None:
        """A new connection, at a Node that has taken the frames up to this position."""
        self.taken(position)
        self._handed = position
