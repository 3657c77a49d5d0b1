"""Devices that are connected just now, and notices to them. Knows no sockets: only how to send text by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from grid_jupyter.push.notifier import SENT, Outcome, Outgoing

ACKNOWLEDGED_S = 10.0
"""How long a device has to say that it has a notice."""

DOUBTED = 16
"""Notices at one time to devices that left their last one without an answer: all others have the rest of the places."""
MISSES = 3
"""Notices in a row that a device may leave without an answer; then it is away until it listens again."""
_REMEMBERED = 10_000
"""Devices that are remembered for that."""

Send = Callable[[bytes], Awaitable[None]]
"""Send a text message. Raises ConnectionError where nobody is there any more."""


class Listeners:
    """A notifier: each device by the connection over which it listened last."""

    name = "websocket"

    def __init__(self, acknowledged_s: float = ACKNOWLEDGED_S) -> None:
        self._acknowledged_s = acknowledged_s
        self._sends: dict[str, Send] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._to: dict[int, str] = {}
        self._misses: dict[str, int] = {}  # by device, however often it listens anew
        self._doubted = 0

    def __len__(self) -> int:
        return len(self._sends)

    def add(self, worker_id: str, send: Send) -> None:
        """A device listens. What it listened by before is forgotten."""
        before = self._sends.get(worker_id)
        if before is not None and before != send:
            self.remove(worker_id, before)
        self._sends[worker_id] = send

    def remove(self, worker_id: str, send: Send) -> None:
        """It listens no more, unless it does so by another connection by now."""
        if self._sends.get(worker_id) == send:
            del self._sends[worker_id]
            for notice, to in self._to.items():
                if to == worker_id and not self._waiting[notice].done():
                    self._waiting[notice].set_exception(ConnectionError("the device left"))

    def received(self, worker_ids: set[str], notice: int) -> None:
        """One of these devices says that it has a notice. What was not sent to it changes nothing."""
        waiting = self._waiting.get(notice)
        if waiting is not None and not waiting.done() and self._to[notice] in worker_ids:
            waiting.set_result(None)

    def reaches(self, outgoing: Outgoing) -> bool:
        return outgoing.notice.worker_id in self._sends

    async def send(self, outgoing: Outgoing) -> Outcome:
        notice = outgoing.notice
        send = self._sends.get(notice.worker_id)
        if send is None:
            return Outcome("again", "the device left")
        doubted = notice.worker_id in self._misses
        if doubted and self._doubted >= DOUBTED:
            return Outcome("later", "devices that acknowledge come first", self._acknowledged_s)
        self._doubted += doubted
        waiting = self._waiting[notice.id] = asyncio.get_running_loop().create_future()
        self._to[notice.id] = notice.worker_id
        try:
            await asyncio.wait_for(self._exchange(send, msgspec.json.encode({"type": "push", "data": notice}), waiting),
                                   self._acknowledged_s)  # fmt: skip
        except ConnectionError:
            return Outcome("again", "the device left")
        except asyncio.TimeoutError:
            self._missed(notice.worker_id, send)
            return Outcome("again", "the device did not acknowledge it")
        finally:
            self._doubted -= doubted
            del self._waiting[notice.id], self._to[notice.id]
        self._misses.pop(notice.worker_id, None)
        return SENT

    def _missed(self, worker_id: str, send: Send) -> None:
        """A device that listens, and says nothing, holds a place that others wait for."""
        misses = self._misses.pop(worker_id, 0) + 1
        self._misses[worker_id] = misses  # the newest is the last
        if len(self._misses) > _REMEMBERED:
            del self._misses[next(iter(self._misses))]
        if misses % MISSES == 0:
            self.remove(worker_id, send)

    async def _exchange(self, send: Send, text: bytes, waiting: asyncio.Future[None]) -> None:
        await send(text)
        await waiting

    def close(self) -> None:
        """Forget everybody."""
        self._sends.clear()
