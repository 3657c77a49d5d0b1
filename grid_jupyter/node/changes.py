"""That something of a Node has changed, for whoever looks at it live: the names of topics, never what changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

TOPICS = ("datasets", "jobs", "node", "requests", "trainings")
"""What may change: data sets, jobs, the Node itself and who is connected, requests, model-centric trainings."""
GATHER_S = 0.1
"""Changes that come within this time are told together."""


class Changes:
    """A number for each topic, which grows. Its methods belong to one event loop."""

    def __init__(self) -> None:
        self._numbers = dict.fromkeys(TOPICS, 0)
        self._next: asyncio.Future[None] | None = None

    @property
    def numbers(self) -> dict[str, int]:
        """How often each topic has changed."""
        return dict(self._numbers)

    def tell(self, topic: str) -> None:
        """Something of this topic is another now. Raises KeyError for a topic that there is not."""
        self._numbers[topic] += 1
        if self._next is not None and not self._next.done():
            self._next.set_result(None)

    async def since(self, seen: Mapping[str, int], timeout_s: float) -> list[str]:
        """The topics that have changed since `seen`; none if none has for so long."""
        end = time.monotonic() + timeout_s
        while not (changed := self._changed(seen)) and (left := end - time.monotonic()) > 0:
            if self._next is None or self._next.done():
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._next}, timeout=left)
        if changed:
            await asyncio.sleep(GATHER_S)
            changed = self._changed(seen)
        return changed

    def _changed(self, seen: Mapping[str, int]) -> list[str]:
        return [topic for topic, number in self._numbers.items() if number != seen.get(topic)]
