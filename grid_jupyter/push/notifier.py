"""What a way to reach devices is: it says whom it reaches, sends one notice, and tells what became of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, Protocol

from grid_jupyter.wire.push import Notice

log = logging.getLogger("grid_jupyter")


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A notice, and where its device can be reached. `repr` shows no token."""

    notice: Notice
    device: int
    token: str | None
    listens: bool  # it has taken notices over a WebSocket before
    attempts: int  # that failed
    expires: float

    def __repr__(self) -> str:
        return f"<Outgoing {self.notice.type} {self.notice.id}>"


@dataclass(frozen=True)
class Outcome:
    """What became of a notice. `again`: it failed and may work later, not before `after_s` seconds; `later`: the same,
    and nothing was tried; `refused`: it never will; `token-gone`: nobody is reached by this token any more. `reason`
    names no device and no token."""

    state: Literal["sent", "again", "later", "refused", "token-gone"]
    reason: str = ""
    after_s: float = 0.0


SENT = Outcome("sent")


class Notifier(Protocol):
    """A way to reach devices."""

    name: str

    def reaches(self, outgoing: Outgoing) -> bool:
        """Whether this is a way to the device of a notice, now."""
        ...

    async def send(self, outgoing: Outgoing) -> Outcome:
        """Send a notice. Raises nothing but CancelledError; takes a bounded time."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class LogNotifier:
    """Writes into the log of the Node what would be pushed: where there is no push service."""

    name = "log"

    def reaches(self, outgoing: Outgoing) -> bool:
        return outgoing.token is not None

    async def send(self, outgoing: Outgoing) -> Outcome:
        notice = outgoing.notice
        log.info("push %s, %s %s, notice %d", notice.type, notice.model, notice.version, notice.id)
        return SENT

    def close(self) -> None:
        """There is nothing."""
