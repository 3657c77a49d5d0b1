"""Sessions: one caller, one Worker, and the gates in between.

Frames of one session are handled in order; answers that wait for the Worker do not hold up the next frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from grid_jupyter.errors import (
    ComputeNotPermittedError,
    GridError,
    InvalidMessageError,
    LimitExceededError,
    NotAuthenticatedError,
    ObjectNotFoundError,
    SessionLostError,
    VersionMismatchError,
    from_wire,
)
from grid_jupyter.identity.accounts import Account, Accounts
from grid_jupyter.node import policy
from grid_jupyter.node.datasets import Datasets, is_vocabulary, rules_of
from grid_jupyter.store.datasets import StoredDataset
from grid_jupyter.wire import commands, frames, messages, worker
from grid_jupyter.wire.dtypes import ITEM_BYTES, nbytes
from grid_jupyter.wire.limits import MAX_DATASETS_OPEN, MAX_RANK, MAX_VALUES, PROTOCOL
from grid_jupyter.worker.channel import close_all
from grid_jupyter.worker.pool import WorkerPool, WorkerProcess, lost_session

log = logging.getLogger("grid_jupyter")

Send = Callable[[bytes], Awaitable[None]]
MAX_BULK_WAITING = 16
"""Large released values of one session that wait for their download."""
MAX_ANSWERING = 32
"""Answers of one session that are on their way at once: a client that does not take them gets no further ones."""
RECHECK_S = 1.0
"""How long a session goes on before its caller's credential is looked at again: it may have been revoked."""
MAX_CONNECTIONS = 1000
"""Sessions that are connected at once, with a Worker or without."""


class Sessions:
    """All sessions of a Node, by their secret."""

    def __init__(
        self,
        *,
        name: str,
        node_id: str,
        accounts: Accounts,
        datasets: Datasets,
        pool: WorkerPool,
        guests: bool,
        max_sessions: int,
        idle_s: float,
    ) -> None:
        self.name = name
        self.node_id = node_id
        self.accounts = accounts
        self.datasets = datasets
        self.pool = pool
        self.guests = guests
        self.max_sessions = max_sessions
        self.idle_s = idle_s
        self._open: dict[str, NodeSession] = {}
        self._sweeper: asyncio.Task[None] | None = None

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

    def open(
        self, account: Account | None, credential: str, origin: str, send: Send, hang_up: Callable[[str], None]
    ) -> NodeSession:
        """A session for a new connection, whose caller came with this credential. Raises LimitExceededError."""
        if len(self._open) >= MAX_CONNECTIONS:
            raise LimitExceededError("this Node has too many connections; try again later")
        session = NodeSession(self, account, credential, origin, send, hang_up)
        self._open[session.secret] = session
        return session

    def find(self, secret: str) -> NodeSession:
        """The session with this secret. Raises NotAuthenticatedError."""
        session = self._open.get(secret)
        if session is None:
            raise NotAuthenticatedError("there is no such session here, or no longer; connect again")
        return session

    def closed(self, session: NodeSession) -> None:
        """A session has ended."""
        self._open.pop(session.secret, None)

    def end_with(self, dataset: int) -> int:
        """End the sessions that have a data set open; how many there were."""
        ending = [session for session in self._open.values() if session.has_open(dataset)]
        for session in ending:
            session.end_soon(f"data set {dataset} was unpublished, and what was computed from it ended with it")
        return len(ending)

    def working(self) -> list[NodeSession]:
        """Sessions that have a Worker."""
        return [session for session in self._open.values() if session.has_worker]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(30.0, self.idle_s / 2))
            now = time.monotonic()
            for session in self.working():
                if now - session.last_used > self.idle_s:
                    session.end_soon(f"it was idle for {self.idle_s:g} s")


class NodeSession:
    """One connection of one caller, with at most one Worker. Frames come in through `handle`."""

    def __init__(
        self,
        sessions: Sessions,
        account: Account | None,
        credential: str,
        origin: str,
        send: Send,
        hang_up: Callable[[str], None],
    ) -> None:
        self.secret = secrets.token_urlsafe(32)
        self.last_used = time.monotonic()
        self._sessions = sessions
        self._caller = _caller(account)
        self._credential = credential
        self._identified = time.monotonic()
        self._origin = origin
        self._send = send
        self._hang_up = hang_up
        self._greeted = False
        self._worker: WorkerProcess | None = None
        self._starting = asyncio.Lock()
        self._sources: list[StoredDataset] = []
        self._fault: worker.Fault | None = None  # what failed and made no value that would tell
        self._bulk: dict[str, int] = {}  # by ticket
        self._sending: set[int] = set()  # those of them that are on their way
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receiving = 0  # bytes of large tensors that are coming in
        self._answers = asyncio.Semaphore(MAX_ANSWERING)
        self._tasks: set[asyncio.Task[None]] = set()
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
        return any(source.id == dataset for source in self._sources)

    # -------------------------------------------------------------- frames

    async def handle(self, data: bytes) -> None:
        """One frame from the client. Raises InvalidMessageError, LimitExceededError: the connection ends."""
        self.last_used = time.monotonic()
        cut = frames.unpack(data)
        if cut.kind == frames.OPERATIONS:
            await self._operations(data)
            return
        if cut.kind != frames.REQUEST:
            raise InvalidMessageError("a client sends operations and requests")
        request_id, message = frames.decode(cut.header, messages.request_decoder)
        try:
            await self._request(request_id, message)
        except SessionLostError:
            raise
        except GridError as error:
            await self._fail(request_id, error)
            if isinstance(error, VersionMismatchError):
                self._hang_up(str(error))

    async def _operations(self, data: bytes) -> None:
        if not self._greeted:
            raise InvalidMessageError("the first message of a session is hello")
        policy.check_session(self._caller.user, self._sessions.guests)
        await (await self._running()).operations(data)

    async def _request(self, request_id: int, message: messages.Request) -> None:
        if isinstance(message, messages.Hello):
            await self._hello(request_id, message)
            return
        if not self._greeted:
            raise InvalidMessageError("the first message of a session is hello")
        if isinstance(message, messages.Login):
            await self._identify(message.credential)
            if self._worker is not None:
                await self._close_sources(self._worker)
            await self._reply(request_id, messages.LoggedIn(caller=self._caller))
            return
        if isinstance(message, messages.Status):
            await self._status(request_id)
            return
        if self._credential and time.monotonic() - self._identified > RECHECK_S:
            await self._identify(self._credential)
        if isinstance(message, messages.Read | messages.Sizes | messages.Open) and message.credential:
            reader = (await self._sessions.accounts.identify(message.credential, self._origin)).username
        else:
            reader = self._caller.user
        policy.check_session(self._caller.user, self._sessions.guests)
        if isinstance(message, messages.Search):
            await self._search(request_id, message)
        elif isinstance(message, messages.Open):
            await self._open(request_id, message, reader)
        elif isinstance(message, messages.Read):
            running = await self._running()
            await self._answers.acquire()
            waiting = await running.send(worker.Fetch(value=message.value))
            self._answer(self._release(request_id, message, reader, waiting))
        else:
            running = await self._running()
            await self._answers.acquire()
            waiting = await running.send(worker.Measure(values=message.values))
            self._answer(self._measure(request_id, reader, waiting))

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
        limits = self._sessions.pool.limits
        await self._reply(
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

    async def _status(self, request_id: int) -> None:
        if self._worker is None:
            await self._reply(request_id, messages.SessionStatus(values=0, worker=False))
            return
        await self._answers.acquire()
        waiting = await self._worker.send(worker.Count())

        async def answer() -> None:
            reply, _, _ = await waiting
            count = reply.values if isinstance(reply, worker.Counted) else 0
            await self._reply(request_id, messages.SessionStatus(values=count, worker=True))

        self._answer(self._answering(request_id, answer()))

    async def _search(self, request_id: int, message: messages.Search) -> None:
        datasets = self._sessions.datasets
        found = await datasets.visible(self._caller.user, message.query)
        described = tuple(datasets.describe(stored, self._caller.user) for stored in found)
        await self._reply(request_id, messages.Found(datasets=described))

    # -------------------------------------------------------------- gate 2: opening a data set

    async def _open(self, request_id: int, message: messages.Open, reader: str) -> None:
        datasets = self._sessions.datasets
        stored = await datasets.get(message.dataset, message.version)
        rules = rules_of(stored)
        if not policy.may_compute(self._caller.user, rules):
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
                worker.Mapped(value=value, dtype=part.dtype, shape=part.shape, begin=part.begin, end=part.end)
            )
        running = await self._running()
        source = self._source(stored)
        await self._close_sources(running)
        descriptor = datasets.open(stored)
        try:
            waiting = await running.send(worker.Load(source=source, tensors=tuple(mapped)), (descriptor,))
        finally:
            os.close(descriptor)
        await waiting
        await self._reply(request_id, messages.Opened())

    async def _close_sources(self, running: WorkerProcess) -> None:
        """Tell the Worker which of its sources the caller may not read."""
        sources = enumerate(await self._rules(tuple(range(len(self._sources)))))
        closed = tuple(number for number, rules in sources if not policy.may_read(self._caller.user, rules))
        await (await running.send(worker.Close(sources=closed)))

    def _source(self, stored: StoredDataset) -> int:
        """The session's number for a version of a data set: its bit in the lineage of values."""
        for number, source in enumerate(self._sources):
            if (source.id, source.version) == (stored.id, stored.version):
                return number
        if len(self._sources) >= MAX_DATASETS_OPEN:
            raise LimitExceededError(f"a session has at most {MAX_DATASETS_OPEN} data sets open; start another one")
        self._sources.append(stored)
        return len(self._sources) - 1

    # -------------------------------------------------------------- gate 4: releasing a value

    async def _rules(self, sources: tuple[int, ...]) -> list[policy.Rules]:
        """What the owners of these sources say now. Raises ObjectNotFoundError for one that was unpublished."""
        opened = [self._sources[number] for number in sources]
        return [rules_of(await self._sessions.datasets.get(source.id, source.version)) for source in opened]

    async def _gate(self, reader: str, reply: worker.Reply) -> list[policy.Rules]:
        """The rules of what a value derives from, if this reader may have it. That something failed may tell of
        the data as well, so it passes the same gate.

        Raises GetNotPermittedError, or what failed.
        """
        if not isinstance(reply, worker.Fetched | worker.Measured | worker.Broken):
            raise GridError("the Worker answered a question for values with something else")
        self._fault = self._fault or reply.earlier
        if self._fault is not None and policy.may_read_all(reader, await self._rules(self._fault.sources)):
            fault, self._fault = self._fault, None
            raise from_wire(fault.code, fault.error, fault.value)
        rules = await self._rules(reply.fault.sources if isinstance(reply, worker.Broken) else reply.sources)
        policy.check_release(reader, rules)
        if isinstance(reply, worker.Broken):
            raise from_wire(reply.fault.code, reply.fault.error, reply.fault.value)
        return rules

    async def _release(
        self,
        request_id: int,
        message: messages.Read,
        reader: str,
        waiting: asyncio.Future[tuple[worker.Reply, memoryview, list[int]]],
    ) -> None:
        try:
            reply, payload, descriptors = await waiting
            try:
                rules = await self._gate(reader, reply)
                if not isinstance(reply, worker.Fetched):
                    raise GridError("the Worker answered a read with something else")
                readers = policy.readers(rules) if rules else None
                ticket = self._keep(descriptors.pop()) if descriptors else ""
                value = messages.Value(dtype=reply.dtype, shape=reply.shape, readers=readers, bulk=ticket)
            finally:
                close_all(descriptors)
            if message.remove and self._worker is not None:
                forget = frames.encode([[commands.FREE, message.value]])
                await self._worker.operations(frames.pack(frames.OPERATIONS, forget))
            await self._send(messages.reply_frame(request_id, value, payload))
        except GridError as error:
            await self._fail(request_id, error)

    async def _measure(
        self,
        request_id: int,
        reader: str,
        waiting: asyncio.Future[tuple[worker.Reply, memoryview, list[int]]],
    ) -> None:
        try:
            reply, _, _ = await waiting
            await self._gate(reader, reply)
            if not isinstance(reply, worker.Measured):
                raise GridError("the Worker answered a question for sizes with something else")
            await self._reply(request_id, messages.Shapes(layouts=reply.layouts))
        except GridError as error:
            await self._fail(request_id, error)

    def _keep(self, descriptor: int) -> str:
        waiting = sum(os.fstat(one).st_size for one in (descriptor, *self._bulk.values(), *self._sending))
        if len(self._bulk) >= MAX_BULK_WAITING or waiting > self._sessions.pool.limits.memory_bytes:
            os.close(descriptor)
            raise LimitExceededError("too many large values wait for their download; fetch one after the other")
        ticket = secrets.token_urlsafe(16)
        self._bulk[ticket] = descriptor
        return ticket

    @contextlib.contextmanager
    def take_bulk(self, ticket: str) -> Iterator[int]:
        """The descriptor of a large released value, for as long as it is sent: once. Raises ObjectNotFoundError."""
        descriptor = self._bulk.pop(ticket, None)
        if descriptor is None:
            raise ObjectNotFoundError("there is no such value to download, or it was fetched already")
        self.last_used = time.monotonic()
        self._sending.add(descriptor)
        try:
            yield descriptor
        finally:
            self._sending.discard(descriptor)
            os.close(descriptor)

    async def begin_receive(self, dtype: str, shape: tuple[int, ...], size: int) -> None:
        """Make room for a large tensor of this form, until `end_receive`.

        Raises NotAuthenticatedError, InvalidMessageError, LimitExceededError.
        """
        policy.check_session(self._caller.user, self._sessions.guests)
        if dtype not in ITEM_BYTES or len(shape) > MAX_RANK or any(length < 0 for length in shape):
            raise InvalidMessageError("a tensor needs a known dtype and a shape of non-negative integers")
        if nbytes(dtype, shape) != size:
            raise InvalidMessageError(f"a tensor of {dtype} {shape} has {nbytes(dtype, shape)} bytes, not {size}")
        limit = self._sessions.pool.limits.memory_bytes
        if self._receiving + size > limit:
            raise LimitExceededError(f"a tensor of {size} bytes is over the session's memory of {limit} bytes")
        await self._running()  # a session that nothing can be computed in takes nothing in
        self._receiving += size

    def end_receive(self, size: int) -> None:
        """The tensor is in, or will not come."""
        self._receiving -= size

    async def receive(self, value: int, dtype: str, shape: tuple[int, ...], descriptor: int) -> None:
        """Hand a large tensor of the client's to the Worker."""
        self.last_used = time.monotonic()
        running = await self._running()
        await (await running.send(worker.Receive(value=value, dtype=dtype, shape=shape), (descriptor,)))

    # -------------------------------------------------------------- the Worker

    async def _running(self) -> WorkerProcess:
        async with self._starting:
            if self._ended:
                raise SessionLostError("the session has ended")
            if self._worker is None:
                if len(self._sessions.working()) >= self._sessions.max_sessions:
                    raise LimitExceededError(
                        f"this Node already serves {self._sessions.max_sessions} sessions; try again later, or ask "
                        f"its owner to raise --max-sessions"
                    )
                self._worker = await self._sessions.pool.start()
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
            await self._fail(0, lost_session(reason))
            self._hang_up("session ended")
        if self._worker is not None:
            await self._worker.close()
            self._worker = None
        close_all(list(self._bulk.values()))
        self._bulk.clear()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    # -------------------------------------------------------------- answers

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _answer(self, work: Coroutine[Any, Any, None]) -> None:
        """Answer beside the next frames, in one of the places that `_answers` counts."""
        self._spawn(work).add_done_callback(lambda done: self._answers.release())

    async def _answering(self, request_id: int, work: Awaitable[None]) -> None:
        try:
            await work
        except GridError as error:
            await self._fail(request_id, error)

    async def _reply(self, request_id: int, reply: messages.Reply) -> None:
        await self._send(messages.reply_frame(request_id, reply))

    async def _fail(self, request_id: int, error: GridError) -> None:
        await self._send(
            messages.reply_frame(request_id, messages.Failed(code=error.code, error=str(error), value=error.value))
        )


def _caller(account: Account | None) -> messages.Caller:
    if account is None:
        return messages.Caller()
    return messages.Caller(user=account.username, roles=(account.role,))
