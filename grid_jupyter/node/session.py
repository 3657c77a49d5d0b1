"""One session: one caller, one Worker, and the gates in between.

Frames of one session are handled in order; answers that wait for the Worker do not hold up the next frame
(node/answers.py). Values leave by node/releases.py, all that is said goes by node/line.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from grid_jupyter.errors import (
    ComputeNotPermittedError,
    GridError,
    InvalidMessageError,
    LimitExceededError,
    ObjectNotFoundError,
    SessionLostError,
    VersionMismatchError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node import policy
from grid_jupyter.node.answers import Answers
from grid_jupyter.node.bulk import Bulk, Incoming, is_same
from grid_jupyter.node.datasets import is_vocabulary, rules_of
from grid_jupyter.node.gate import Gate, Source
from grid_jupyter.node.line import HangUp, Line, Send
from grid_jupyter.node.releases import Releases
from grid_jupyter.wire import frames, messages, worker
from grid_jupyter.wire.limits import MAX_VALUES, PROTOCOL
from grid_jupyter.worker.process import WorkerProcess, lost_session

if TYPE_CHECKING:
    from grid_jupyter.node.sessions import Sessions

log = logging.getLogger("grid_jupyter")

_PIPED_FROM = 1 << 20
"""Bytes of a tensor that is worth asking the Worker for memory first."""
RECHECK_S = 1.0
"""How long a session goes on before its caller's credential is looked at again: it may have been revoked."""


class NodeSession:
    """One connection of one caller, with at most one Worker. Frames come in through `handle`."""

    def __init__(
        self,
        sessions: Sessions,
        account: Account | None,
        credential: str,
        origin: str,
        send: Send,
        hang_up: HangUp,
    ) -> None:
        self.secret = secrets.token_urlsafe(32)
        self.last_used = time.monotonic()
        self._sessions = sessions
        self._caller = _caller(account)
        self._credential = credential
        self._identified = time.monotonic()
        self._origin = origin
        self._line = Line(send, hang_up)
        self.turn = asyncio.Lock()  # held while a frame is waited for: what goes on with the session waits too
        self._greeted = False
        self._worker: WorkerProcess | None = None
        self._starting = asyncio.Lock()
        self._gate = Gate(sessions.datasets, sessions.audit)
        self.bulk = Bulk(sessions.pool.limits.memory_bytes)
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = Answers(self._line, self._spawn)
        self._releases = Releases(
            self._gate, self._line, self._answers, self.bulk, sessions.moves, sessions.held, self.gone, self._spawn
        )
        self._ended = False

    @property
    def has_worker(self) -> bool:
        """Whether a Worker runs for this session."""
        return self._worker is not None

    @property
    def user(self) -> str:
        """The caller's name; empty for a guest."""
        return self._caller.user

    def has_open(self, dataset: int) -> bool:
        """Whether the session maps this data set."""
        return self._gate.has_open(dataset)

    # -------------------------------------------------------------- frames

    def handle(self, data: bytes) -> Awaitable[None] | None:
        """One frame from the client. What is returned, if anything, is to be awaited before the next frame: most
        frames are done at once. Raises InvalidMessageError, LimitExceededError, here or when it is awaited: the
        connection ends.
        """
        self.last_used = time.monotonic()
        cut = frames.unpack(data)
        self._line.taken += 1
        if cut.kind == frames.OPERATIONS:
            running = self._ready()
            return self._operations(data) if running is None else running.operations(data)
        if cut.kind != frames.REQUEST:
            raise InvalidMessageError("a client sends operations and requests")
        request_id, message = frames.decode(cut.header, messages.request_decoder)
        if isinstance(message, messages.Read) and not message.credential:
            running = self._ready()
            if running is not None and not self._is_stale() and self._answers.has_place:
                return self._releases.read(request_id, message, self._caller.user, running)
        return self._handle(request_id, message, cut.payload)

    def _ready(self) -> WorkerProcess | None:
        """The Worker, if there is nothing to be done before it is used. Raises NotAuthenticatedError."""
        if not self._greeted or self._ended or self._worker is None:
            return None
        policy.check_session(self._caller.user, self._sessions.guests)
        return self._worker

    def _is_stale(self) -> bool:
        """Whether the caller's credential is to be looked at again."""
        return bool(self._credential) and time.monotonic() - self._identified > RECHECK_S

    async def _handle(self, request_id: int, message: messages.Request, payload: memoryview) -> None:
        try:
            await self._request(request_id, message, payload)
        except SessionLostError:
            raise
        except GridError as error:
            await self._line.fail(request_id, error)
            if isinstance(error, VersionMismatchError):
                self._line.hang_up(str(error))

    async def _operations(self, data: bytes) -> None:
        if not self._greeted:
            raise InvalidMessageError("the first message of a session is hello")
        policy.check_session(self._caller.user, self._sessions.guests)
        behind = (await self._running()).operations(data)
        if behind is not None:
            await behind

    async def _request(self, request_id: int, message: messages.Request, payload: memoryview) -> None:
        if isinstance(message, messages.Hello):
            await self._hello(request_id, message)
            return
        if not self._greeted:
            raise InvalidMessageError("the first message of a session is hello")
        if isinstance(message, messages.Login):
            await self._identify(message.credential)
            if self._worker is not None:
                await self._close_sources(self._worker)
            self._expect_work()
            await self._line.reply(request_id, messages.LoggedIn(caller=self._caller))
            return
        if isinstance(message, messages.Status):
            await self._status(request_id)
            return
        if self._is_stale():
            await self._identify(self._credential)
        presents = (messages.Read, messages.Sizes, messages.Open, messages.Move, messages.AskRelease)
        if isinstance(message, presents) and message.credential:
            reader = (await self._sessions.accounts.identify(message.credential, self._origin)).username
        else:
            reader = self._caller.user
        policy.check_session(self._caller.user, self._sessions.guests)
        if isinstance(message, messages.Search):
            await self._search(request_id, message)
        elif isinstance(message, messages.Open):
            await self._open(request_id, message, reader)
        elif isinstance(message, messages.Expect):
            await self._line.reply(request_id, self._sessions.moves.expect(self, message))
        elif isinstance(message, messages.Sizes):
            await self._releases.measure(request_id, message, reader, await self._running())
        elif isinstance(message, messages.AskRelease):
            await self._releases.ask(request_id, message, reader, await self._running())
        elif isinstance(message, messages.Move):
            where = await self._sessions.moves.where(message)
            await self._releases.move(request_id, message, where, reader, await self._running())
        elif isinstance(message, messages.Round):
            await self._answers.place()
            self._answers.take()
            self._answers.answer(request_id, self._round(request_id, message, payload))
        else:
            running = await self._running()
            await self._answers.place()
            behind = self._releases.read(request_id, message, reader, running)
            if behind is not None:
                await behind

    async def _identify(self, credential: str) -> None:
        """Let the credential's owner be the caller. Raises NotAuthenticatedError; then the caller is as before."""
        account = await self._sessions.accounts.identify(credential, self._origin)
        self._caller, self._credential, self._identified = _caller(account), credential, time.monotonic()

    async def _hello(self, request_id: int, message: messages.Hello) -> None:
        if message.protocol != PROTOCOL:
            older, newer = ("client", "Node") if message.protocol < PROTOCOL else ("Node", "client")
            raise VersionMismatchError(
                f"this Node speaks protocol {PROTOCOL} and the client {message.protocol}: the {older} is older than "
                f"the {newer}, upgrade it with 'pip install --upgrade grid-jupyter'"
            )
        self._greeted = True
        self._expect_work()
        limits = self._sessions.pool.limits
        await self._line.reply(
            request_id,
            messages.Welcome(
                protocol=PROTOCOL,
                node=self._sessions.name,
                node_id=self._sessions.node_id,
                caller=self._caller,
                session=self.secret,
                limits=messages.Limits(
                    memory_bytes=limits.memory_bytes, values=MAX_VALUES, operation_s=limits.operation_s
                ),
            ),
        )

    def _expect_work(self) -> None:
        """Somebody is here who may compute: a Worker should be ready when they do."""
        if self._caller.user != policy.GUEST or self._sessions.guests:
            self._sessions.pool.prepare()

    async def _status(self, request_id: int) -> None:
        if self._worker is None:
            await self._line.reply(request_id, messages.SessionStatus(values=0, worker=False))
            return
        await self._answers.place()
        waiting = await self._worker.send(worker.Count())
        self._answers.take()

        async def answer() -> None:
            reply, _, _ = await waiting
            count = reply.values if isinstance(reply, worker.Counted) else 0
            await self._line.reply(request_id, messages.SessionStatus(values=count, worker=True))

        self._answers.answer(request_id, answer())

    async def _search(self, request_id: int, message: messages.Search) -> None:
        datasets = self._sessions.datasets
        found = await datasets.visible(self._caller.user, message.query)
        described = tuple(datasets.describe(stored, self._caller.user) for stored in found)
        await self._line.reply(request_id, messages.Found(datasets=described))

    # -------------------------------------------------------------- gate 2: opening a data set

    async def _open(self, request_id: int, message: messages.Open, reader: str) -> None:
        datasets = self._sessions.datasets
        stored = await datasets.get(message.dataset, message.version)
        rules = rules_of(stored)
        if not policy.may_compute(self._caller.user, rules):
            self._sessions.audit.note("data-set-denied", self._caller.user, dataset=stored.id)
            # the same answer as for one that is not there: an id is not a capability, nor a probe
            raise ObjectNotFoundError("there is no such data set or version here, or no longer; search again")
        parts = {tensor.name: tensor for tensor in stored.tensors}
        mapped = []
        for name, value in message.values.items():
            part = parts.get(name)
            if part is None:
                raise ObjectNotFoundError(f"data set {stored.id} has no tensor of that name")
            if is_vocabulary(name) and not policy.may_read(reader, rules):
                raise ComputeNotPermittedError("the words behind a column's codes are for those who may read them")
            mapped.append(
                worker.Mapped(
                    value=value, dtype=part.dtype, shape=part.shape, begin=part.begin, end=part.end, name=part.name
                )
            )
        running = await self._running()
        source = self._gate.number(stored)
        await self._close_sources(running)
        descriptor = await datasets.open(stored)
        try:
            waiting = await running.send(worker.Load(source=source, tensors=tuple(mapped)), (descriptor,))
        finally:
            os.close(descriptor)
        await waiting
        self._sessions.audit.note("data-set-opened", self._caller.user, dataset=stored.id, version=stored.version)
        await self._line.reply(request_id, messages.Opened())

    async def _close_sources(self, running: WorkerProcess) -> None:
        """Tell the Worker which of its sources the caller may not read."""
        closed = await self._gate.closed(self._caller.user)
        await (await running.send(worker.Close(sources=closed)))

    # -------------------------------------------------------------- rounds of jobs

    async def _round(self, request_id: int, message: messages.Round, payload: memoryview) -> None:
        came = self.bulk.claim(message.number) if message.bulk else None
        descriptor = None if came is None else came.descriptor
        again = ""
        try:
            if came is not None and came.job not in ("", message.job):
                raise InvalidMessageError("these weights came for another job: send them for this one")
            rounded, weights, handed = await self._sessions.rounds(
                self._caller.user, message, payload, descriptor, self.gone
            )
            if handed and came is not None and is_same(handed[0], came.descriptor):
                again = came.job  # they came back where they went in
        finally:
            if came is not None:
                came.drop()
        if handed:
            size = os.fstat(handed[0]).st_size
            rounded = msgspec.structs.replace(rounded, bulk=self.bulk.keep(handed[0], size, again))
        await self._line.send(messages.reply_frame(request_id, rounded, weights))

    # -------------------------------------------------------------- bulk bytes

    async def begin_receive(
        self, value: int, dtype: str, shape: tuple[int, ...], size: int, *, of_client: bool = False
    ) -> Incoming:
        """Make room for a large tensor of this form, under the client's id. One of the client's may come in parts, and
        through a pipe.

        Raises NotAuthenticatedError, InvalidMessageError, LimitExceededError.
        """
        self.last_used = time.monotonic()
        policy.check_session(self._caller.user, self._sessions.guests)
        made = self.bulk.begin(value, dtype, shape, size, use="value" if of_client else "moved")
        try:
            running = await self._running()  # a session that nothing can be computed in takes nothing in
            if of_client and size >= _PIPED_FROM and running.takes_pipes:
                reader = made.into_pipe()
                try:
                    waiting = await running.send(worker.TakeIn(number=made.number, nbytes=size), (reader,))
                finally:
                    os.close(reader)
                await waiting
        except GridError:
            self.bulk.give_up(value, made)
            raise
        return made

    async def receive(self, value: int, incoming: Incoming, sources: Sequence[Source] = ()) -> None:
        """Hand a large tensor to the Worker, with what it derives from. Raises InvalidMessageError if bytes of it
        are missing, LimitExceededError."""
        self.last_used = time.monotonic()
        incoming.seal()
        running = await self._running()
        numbers = tuple(self._gate.number(source) for source in sources)
        if numbers:
            await self._close_sources(running)
        piped = incoming.is_piped
        message = worker.Receive(
            value=value,
            dtype=incoming.dtype,
            shape=incoming.shape,
            sources=numbers,
            taken=incoming.number if piped else 0,
        )
        await (await running.send(message, () if piped else (incoming.descriptor,)))
        self.bulk.arrived(value, incoming)

    # -------------------------------------------------------------- the Worker

    async def _running(self) -> WorkerProcess:
        async with self._starting:
            if self._ended:
                raise SessionLostError("the session has ended")
            if self._worker is None:
                if len(self._sessions.working()) >= self._sessions.max_sessions:
                    await self._sessions.make_room()
                if len(self._sessions.working()) >= self._sessions.max_sessions:
                    raise LimitExceededError(
                        f"this Node already serves {self._sessions.max_sessions} sessions; try again later, or ask "
                        f"its owner to raise --max-sessions"
                    )
                running = await self._sessions.pool.start()
                if self._ended:  # meanwhile: nobody else would end it
                    await self._sessions.pool.kill(running)
                    raise SessionLostError("the session has ended")
                self._worker = running
                self._spawn(self._watch(self._worker))
            return self._worker

    async def _watch(self, running: WorkerProcess) -> None:
        reason = await asyncio.shield(running.lost)
        await self.end(reason)

    def end_soon(self, reason: str) -> None:
        """End the session from outside of it."""
        self._spawn(self.end(reason))

    async def end(self, reason: str = "") -> None:
        """End the session: tell the client why, end the Worker, forget everything."""
        if self._ended:
            return
        self._ended = True
        self.gone.set_result(None)
        self._sessions.closed(self)
        if reason:
            log.info("a session ended: %s", reason)
            await self._line.fail(0, lost_session(reason))
            self._line.hang_up("session ended")
        if self._worker is not None:
            await self._worker.close()
            self._worker = None
        self.bulk.close()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    # -------------------------------------------------------------- connections come and go

    def attach(self, send: Send, hang_up: HangUp) -> None:
        """Go on over another connection of the same caller."""
        self._line.attach(send, hang_up)

    def detach(self, send: Send, *, wait: bool) -> None:
        """This connection is gone. With `wait`, the client may come back for a while, if there is something to keep."""
        if not self._line.is_over(send) or self._ended:
            return
        if not wait or self._worker is None:
            self.end_soon("")
            return
        self._line.wait(self._spawn(self._wait_for_client()))

    async def _wait_for_client(self) -> None:
        await asyncio.sleep(self._sessions.grace_s)
        await self.end(f"its client did not come back within {self._sessions.grace_s:g} s")

    @property
    def is_waiting(self) -> bool:
        """Whether the session waits for a client whose connection was lost."""
        return self._line.is_waiting

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _caller(account: Account | None) -> messages.Caller:
    if account is None:
        return messages.Caller()
    return messages.Caller(user=account.username, roles=(account.role,))
