"""The line of a session to its client, over one connection after another: one that is lost may be made again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from grid_jupyter.errors import GridError
from grid_jupyter.wire import messages

Send = Callable[[bytes], "asyncio.Future[None]"]
"""Sends a frame to the client at once; what it returns is done, and never fails, when the client has taken it."""
HangUp = Callable[[str], None]
"""Closes a connection, for this reason."""
_SAID = 4


class Line:
    """What a session says to its client. `taken` counts the client's frames since the session began."""

    def __init__(self, send: Send, hang_up: HangUp) -> None:
        self.taken = 0
        self._out = send
        self._hang_up = hang_up
        self._said: deque[bytes] = deque(maxlen=_SAID)  # the last answers: a connection may be lost with them
        self._waits: asyncio.Task[None] | None = None  # for the client, whose connection was lost

    def send(self, frame: bytes) -> asyncio.Future[None]:
        """Send a frame at once; what is returned is done when the client has taken it."""
        self._said.append(frame)
        return self._out(frame)

    async def reply(self, request_id: int, reply: messages.Reply) -> None:
        """Answer a request, and wait until the client has taken it."""
        await self.send(messages.reply_frame(request_id, reply))

    async def fail(self, request_id: int, error: GridError) -> None:
        """Answer a request with what went wrong; 0 tells it of the session."""
        await self.reply(request_id, messages.Failed(code=error.code, error=str(error), value=error.value))

    def hang_up(self, reason: str) -> None:
        """Close the connection."""
        self._hang_up(reason)

    # -------------------------------------------------------------- connections come and go

    @property
    def is_waiting(self) -> bool:
        """Whether the connection was lost and the client may come back."""
        return self._waits is not None

    def is_over(self, send: Send) -> bool:
        """Whether this connection is the one in use."""
        return self._out == send

    def attach(self, send: Send, hang_up: HangUp) -> None:
        """Go on over another connection: tell the client how far it was heard, and say the last answers again."""
        before, self._out, self._hang_up = self._hang_up, send, hang_up
        before("the session goes on over another connection")
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None
        self._out(messages.reply_frame(0, messages.Resumed(taken=self.taken)))
        for frame in list(self._said):
            self._out(frame)

    def wait(self, waits: asyncio.Task[None]) -> None:
        """The connection is lost. `waits` is cancelled if the client comes back."""
        self._out, self._hang_up = _into_nothing, _nobody
        self._waits = waits


def _into_nothing(frame: bytes) -> asyncio.Future[None]:
    """Takes frames for a client that is not connected."""
    taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    taken.set_result(None)
    return taken


def _nobody(reason: str) -> None:
    """Nobody is connected who could be hung up on."""
