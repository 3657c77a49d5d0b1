"""Answers of one session that wait for its Worker, beside the frames that come in meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from grid_jupyter.errors import GridError
from grid_jupyter.node.line import Line

MAX_ANSWERING = 32
"""Answers of one session that are on their way at once: a client that does not take them gets no further ones."""

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Starts a task that ends with the session."""


class Answers:
    """The places of a session for answers. Whoever asks the Worker takes one, and each answer gives it back."""

    def __init__(self, line: Line, spawn: Spawn) -> None:
        self._line = line
        self._spawn = spawn
        self._places = 0  # taken
        self._freed: asyncio.Future[None] | None = None  # done when there is place for a further answer

    @property
    def has_place(self) -> bool:
        """Whether a further answer need not wait for the ones before it."""
        return self._places < MAX_ANSWERING

    async def place(self) -> None:
        """Wait until there is place for a further answer. Frames come in one by one, and so does who waits here."""
        while not self.has_place:
            self._freed = asyncio.get_running_loop().create_future()
            await self._freed

    def take(self) -> None:
        """Take a place; `sent` or `answer` give it back."""
        self._places += 1

    def sent(self, taken: asyncio.Future[None]) -> None:
        """This answer was sent: its place is free when the client has taken it."""
        if taken.done():
            self._give(taken)
        else:
            taken.add_done_callback(self._give)

    def answer(self, request_id: int, work: Awaitable[None]) -> None:
        """Answer by this work, beside the next frames; if it raises, with what went wrong."""
        self._spawn(self._answering(request_id, work)).add_done_callback(self._give)

    def fail(self, request_id: int, error: GridError) -> None:
        """Answer with what went wrong, beside the next frames."""
        self._spawn(self._line.fail(request_id, error)).add_done_callback(self._give)

    async def _answering(self, request_id: int, work: Awaitable[None]) -> None:
        try:
            await work
        except GridError as error:
            await self._line.fail(request_id, error)

    def _give(self, _taken: object) -> None:
        self._places -= 1
        if self._freed is not None and not self._freed.done():
            self._freed.set_result(None)
