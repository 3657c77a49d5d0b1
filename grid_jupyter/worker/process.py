"""One Worker, as its Node sees it: operations and requests go to it in order, answers come back by number.

Knows no torch: it runs in the Node's control process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from grid_jupyter.errors import GridError, SessionLostError, from_wire
from grid_jupyter.wire import frames, worker
from grid_jupyter.wire.messages import Failed
from grid_jupyter.worker.channel import AsyncChannel, Frame, close_all

Answer = tuple[worker.Reply, memoryview, list[int]]
"""A reply, its payload, and its descriptors, which belong to whom it is given to."""
Answered = Callable[[Answer | GridError], None]

_LAST_WORDS_S = 10.0
"""How long the fork server, which knows why a Worker ended and may be loading something, is waited for."""


class WayToWorker(Protocol):
    """How frames and descriptors reach a Worker: AsyncChannel here, NearEnd for one on another machine."""

    passes_pipes: bool
    """Whether a descriptor may be a pipe's, through which more comes later; else what it holds is sent as it is."""

    def send(self, frame: Frame, descriptors: Sequence[int] = ()) -> asyncio.Future[None] | None:
        """Send one frame in order. None if it is on its way; else wait for what is returned before sending more:
        the Worker is behind. Raises EOFError when it is gone."""

    def close(self) -> None:
        """Close this end; the Worker leaves."""


Arrived = Callable[[memoryview, list[int]], None]
HungUp = Callable[[], None]
OpenWay = Callable[[Arrived, HungUp], WayToWorker]
"""Opens a way, on which what arrives, and its end, are told."""


def here(sock: socket.socket) -> OpenWay:
    """The way to a Worker on this machine, whose end of the channel this is."""
    return lambda arrived, hung_up: AsyncChannel(sock, arrived, hung_up)


class WorkerProcess:
    """One Worker. `lost` is done, with the reason in words, when it is gone."""

    def __init__(self, number: int, open_way: OpenWay) -> None:
        self.number = number
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._channel = open_way(self._arrived, self._hung_up)
        self._requests = itertools.count(1)
        self._waiting: dict[int, Answered] = {}
        self._parting: asyncio.Task[None] | None = None
        self._said: str | None = None

    @property
    def takes_pipes(self) -> bool:
        """Whether bytes may go to the Worker through a pipe."""
        return self._channel.passes_pipes

    # -------------------------------------------------------------- to the Worker

    def operations(self, frame: bytes) -> Awaitable[None] | None:
        """Pass an OPERATIONS frame on, undecoded. None if that is done; else what is returned is to be awaited
        before the next frame: the Worker is behind, or gone (SessionLostError)."""
        try:
            behind = self._channel.send(frame)
        except EOFError:
            return self._gone()
        return None if behind is None else asyncio.shield(behind)

    def ask(
        self,
        message: worker.Request,
        answered: Answered,
        descriptors: tuple[int, ...] = (),
        payload: memoryview | bytes = b"",
    ) -> Awaitable[None] | None:
        """Send a request in order; `answered` is called once, as soon as there is an answer. Returns as `operations`
        does; if that raises SessionLostError, `answered` is not called."""
        number = next(self._requests)
        try:
            behind = self._channel.send(worker.request_frame(number, message, payload), descriptors)
        except EOFError:
            return self._gone()
        self._waiting[number] = answered
        return None if behind is None else asyncio.shield(behind)

    async def send(
        self, message: worker.Request, descriptors: tuple[int, ...] = (), payload: memoryview | bytes = b""
    ) -> asyncio.Future[Answer]:
        """Send a request in order; the returned future has its answer. Raises SessionLostError."""
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answered(answer: Answer | GridError) -> None:
            if waiting.done():  # nobody waits any more
                if not isinstance(answer, GridError):
                    close_all(answer[2])
            elif isinstance(answer, GridError):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

        behind = self.ask(message, answered, descriptors, payload)
        if behind is not None:
            await behind
        return waiting

    async def _gone(self) -> None:
        raise lost_session(await asyncio.shield(self.lost))

    # -------------------------------------------------------------- from the Worker

    def _arrived(self, frame: memoryview, descriptors: list[int]) -> None:
        try:
            cut = frames.unpack(frame)
            number, reply = frames.decode(cut.header, worker.reply_decoder)
        except GridError:
            close_all(descriptors)
            raise
        if number == 0 and isinstance(reply, Failed):
            self._said = reply.error  # the Worker's last words
        answered = self._waiting.pop(number, None)
        if answered is None:
            close_all(descriptors)
        elif isinstance(reply, Failed):
            close_all(descriptors)
            answered(from_wire(reply.code, reply.error))
        else:
            answered((reply, cut.payload, descriptors))

    def _hung_up(self) -> None:
        self._parting = asyncio.create_task(self._part())

    async def _part(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.lost), _LAST_WORDS_S)
        self.end("its Worker ended")

    # -------------------------------------------------------------- the end

    def end(self, reason: str) -> None:
        """Mark the Worker as gone; whoever waits for it learns why."""
        if not self.lost.done():
            self.lost.set_result(self._said or reason)
        waiting, self._waiting = self._waiting, {}
        for answered in waiting.values():
            answered(lost_session(self.lost.result()))

    async def close(self) -> None:
        """End the Worker: it leaves when its input ends."""
        self.end("the session was closed")
        self._channel.close()
        if self._parting is not None:
            self._parting.cancel()
            await asyncio.wait([self._parting])


def lost_session(reason: str) -> SessionLostError:
    """What everybody is told who waits for a Worker that is gone."""
    return SessionLostError(f"the session ended: {reason}. Open the data again to go on")
