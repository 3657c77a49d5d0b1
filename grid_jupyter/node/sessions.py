"""All sessions of a Node: opened, found by their secret, ended when they are idle or what they used is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from grid_jupyter.errors import LimitExceededError, NotAuthenticatedError, ObjectNotFoundError
from grid_jupyter.identity.accounts import Account, Accounts
from grid_jupyter.node.audit import Audit
from grid_jupyter.node.datasets import Datasets
from grid_jupyter.node.held import HeldValues
from grid_jupyter.node.line import HangUp, Send
from grid_jupyter.node.moves import Moves
from grid_jupyter.node.session import NodeSession
from grid_jupyter.wire.messages import Round, Rounded
from grid_jupyter.worker.backend import Workers
from grid_jupyter.worker.process import lost_session

MAX_CONNECTIONS = 1000
"""Sessions that are connected at once, with a Worker or without."""


Rounds = Callable[
    [str, Round, memoryview, int | None, "asyncio.Future[None]"], Awaitable[tuple[Rounded, memoryview, list[int]]]
]
"""Computes a round of a job of a caller's (node/jobs.py `Jobs.round`)."""


async def _no_rounds(
    caller: str, message: Round, payload: memoryview, descriptor: int | None, gone: asyncio.Future[None]
) -> tuple[Rounded, memoryview, list[int]]:
    raise ObjectNotFoundError("there are no jobs here")


class Sessions:
    """All sessions of a Node, by their secret."""

    def __init__(
        self,
        *,
        name: str,
        node_id: str,
        accounts: Accounts,
        datasets: Datasets,
        pool: Workers,
        audit: Audit,
        held: HeldValues,
        guests: bool,
        max_sessions: int,
        idle_s: float,
        grace_s: float,
    ) -> None:
        self.name = name
        self.node_id = node_id
        self.accounts = accounts
        self.datasets = datasets
        self.pool = pool
        self.audit = audit
        self.held = held
        self.guests = guests
        self.max_sessions = max_sessions
        self.idle_s = idle_s
        self.grace_s = grace_s  # how long a session waits for a client whose connection was lost
        self.moves = Moves(name)
        self.rounds: Rounds = _no_rounds  # who computes rounds of jobs
        self._open: dict[str, NodeSession] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._tell: Callable[[], None] = lambda: None

    def on_change(self, tell: Callable[[], None]) -> None:
        """Whom to call when somebody comes or goes."""
        self._tell = tell

    def start(self) -> None:
        """Begin to end idle sessions."""
        self._sweeper = asyncio.create_task(self._sweep(), name="idle sessions")

    async def stop(self) -> None:
        """End all sessions."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        for session in list(self._open.values()):
            await session.end("the Node stops")

    def open(self, account: Account | None, credential: str, origin: str, send: Send, hang_up: HangUp) -> NodeSession:
        """A session for a new connection, whose caller came with this credential. Raises LimitExceededError."""
        if len(self._open) >= MAX_CONNECTIONS:
            self.audit.note("session-refused", "" if account is None else account.username)
            raise LimitExceededError("this Node has too many connections; try again later")
        session = NodeSession(self, account, credential, origin, send, hang_up)
        self._open[session.secret] = session
        self.audit.note("session-opened", session.user, origin=origin)
        self._tell()
        return session

    def resume(self, secret: str, account: Account | None) -> NodeSession:
        """The session with this secret, for its own caller, whose connection was lost. Raises SessionLostError."""
        session = self._open.get(secret)
        if session is None or session.user != ("" if account is None else account.username):
            raise lost_session("it is not here, or no longer")
        return session

    async def make_room(self) -> None:
        """End the session that has waited longest for its client, if there is one that does."""
        waiting = min((one for one in self.working() if one.is_waiting), key=lambda one: one.last_used, default=None)
        if waiting is not None:
            await waiting.end("its client did not come back, and others needed the place")

    def find(self, secret: str) -> NodeSession:
        """The session with this secret. Raises NotAuthenticatedError."""
        session = self._open.get(secret)
        if session is None:
            raise NotAuthenticatedError("there is no such session here, or no longer; connect again")
        return session

    def closed(self, session: NodeSession) -> None:
        """A session has ended."""
        self._open.pop(session.secret, None)
        self.moves.forget(session)
        self._tell()

    def end_with(self, dataset: int) -> int:
        """End the sessions that have a data set open; how many there were."""
        ending = [session for session in self._open.values() if session.has_open(dataset)]
        for session in ending:
            session.end_soon(f"data set {dataset} was unpublished, and what was computed from it ended with it")
        return len(ending)

    def connected(self) -> int:
        """How many there are, with a Worker or without."""
        return len(self._open)

    def people(self) -> list[str]:
        """Who is connected, by name; "" for guests."""
        return sorted({session.user for session in self._open.values()})

    def working(self) -> list[NodeSession]:
        """Sessions that have a Worker."""
        return [session for session in self._open.values() if session.has_worker]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(30.0, self.idle_s / 2))
            now = time.monotonic()
            for session in self.working():
                session.bulk.sweep()
                if now - session.last_used > self.idle_s:
                    session.end_soon(f"it was idle for {self.idle_s:g} s")
