"""Starts Workers for a Node: one fork server, lazily, inside a bubblewrap sandbox where there is one, or a fork of one
that Nodes share; and keeps a few spare Workers ready, so that a session that begins to compute waits for none.

Knows no torch: it runs in the Node's control process.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from grid_jupyter import __version__
from grid_jupyter.errors import LimitExceededError, NodeUnavailableError
from grid_jupyter.wire import frames, worker
from grid_jupyter.worker.channel import AsyncChannel, pair
from grid_jupyter.worker.devices import (
    NODES,
    ON_CPU,
    Asked,
    Found,
    Granted,
    Wait,
    Wish,
    limited,
    room,
)
from grid_jupyter.worker.sandbox import Sandbox
from grid_jupyter.worker.servers import ForkServer, borrow, start
from grid_jupyter.worker.shares import Shares

log = logging.getLogger("grid_jupyter")
_START_S = 60.0
_REPLACE_S = 0.5
"""How long after a spare was taken, or died, the next one is forked: whoever took it computes first."""
_PROGRAM = ("-m", "grid_jupyter.worker.forkserver")
_PROBING = ("-m", "grid_jupyter.worker.probing")
_ROOM_S = 3.0
"""How long somebody waits for a share of a device that is taken: a Worker may be about to end."""


class Forked(Protocol):
    """One Worker as whoever asked for it holds it: WorkerProcess in a Node, FarEnd where it is another machine's."""

    number: int
    lost: asyncio.Future[str]

    def end(self, reason: str) -> None:
        """It is gone, and why."""

    async def close(self) -> None:
        """Let it leave."""


F = TypeVar("F", bound=Forked)


class WorkerPool(Generic[F]):
    """Forks Workers on this machine; `hold` makes of a number and a socket what the caller knows a Worker by.
    `spare_workers` are kept ready for the next sessions, from `prepare` on. With `require_isolation` there are none
    without a sandbox. Where `wish` names devices that are shared, each Worker gets a share of one, and there is none
    for whom no share is left. At the socket `shared` a Lender (worker/lending.py) has a fork server for several Nodes;
    where it has none for this one, the pool starts its own.

    A spare is a Worker like any other: confined, limited, with randomness of its own; it belongs to nobody yet.
    """

    def __init__(
        self,
        limits: worker.WorkerLimits,
        hold: Callable[[int, socket.socket], F],
        spare_workers: int = 2,
        *,
        require_isolation: bool = False,
        program: Sequence[str] = _PROGRAM,
        wish: Wish = ON_CPU,
        shared: Path | None = None,
    ) -> None:
        self._unshared = limits
        self.shares = Shares(wish)
        self.shares.on_freed(self._replace_soon)  # a spare that gave way comes back when there is room again
        self._on_gpu = wish.of_gpu or limits.device != "cpu"
        self._require_isolation = require_isolation
        self._program = program
        self._shared = shared
        self._hold = hold
        self.spare_workers = spare_workers
        self.isolation = "unknown"
        self._numbers = itertools.count(1)
        self._workers: dict[int, F] = {}
        self._spares: collections.deque[F] = collections.deque()
        self._filling: asyncio.Task[None] | None = None
        self._replacing: asyncio.TimerHandle | None = None
        self._starting = asyncio.Lock()
        self._server: ForkServer | None = None  # the last one: it may be starting, or gone
        self._control: AsyncChannel | None = None
        self._sandbox = Sandbox(self._on_gpu)

    @property
    def limits(self) -> worker.WorkerLimits:
        """Of a Worker for whom nothing else was asked."""
        [*devices] = self.shares.devices
        return limited(self._unshared, Granted(devices[0], self.shares.wish.parts)) if devices else self._unshared

    async def probe(self) -> str:
        """Find out, in words, how Workers are kept apart from the rest of this machine, and which devices it has.

        Raises NodeUnavailableError where a device is not there.
        """
        self.isolation = await self._sandbox.probe()
        if self.shares.wish.of_gpu:
            self.shares.settle(await self._machine())
        return self.isolation

    async def sandboxed(self) -> tuple[list[str], dict[str, str]]:
        """What a program that is no Worker is started behind, and its environment; no command where there is no
        sandbox. Raises NodeUnavailableError where there must be one."""
        if self.isolation == "unknown":
            self.isolation = await self._sandbox.probe()
        if self._require_isolation and not self._sandbox.is_there:
            raise NodeUnavailableError(f"nothing is computed here: isolation is {self.isolation}")
        return self._sandbox.command(), self._sandbox.environment(False)

    async def _machine(self) -> Found:
        process = await asyncio.create_subprocess_exec(
            *self._sandbox.command(), sys.executable, *_PROBING, env=self._sandbox.environment(self._on_gpu),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            told, _ = await asyncio.wait_for(process.communicate(), _START_S)
            return msgspec.json.decode(told, type=Found)
        except (asyncio.TimeoutError, msgspec.MsgspecError):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise NodeUnavailableError(
                "this Node cannot find out which GPUs there are: is torch installed, and does nvidia-smi answer?"
            ) from None

    def prepare(self) -> None:
        """Somebody may compute soon: start the fork server if it does not run, and fork spare Workers beside."""
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill())

    async def start(self, asked: Asked = NODES) -> F:
        """A Worker, as it is asked for: a spare one, or else a new one. The first one loads torch and takes seconds,
        others milliseconds. Room on a device is waited for, for a few seconds.

        Raises NodeUnavailableError if the fork server cannot be started, BadRequest for what can never be,
        LimitExceededError also where there is no room.
        """
        try:
            while asked == NODES and self._spares:
                process = self._spares.popleft()
                if not process.lost.done():
                    return process
            return await self._fork(asked)
        finally:
            self._replace_soon()

    def room(self, asked: Asked) -> int:
        """Bytes that a Worker may compute with that is asked for so. Raises BadRequest, LimitExceededError for what
        can never be."""
        granted = self.shares.ever(asked)
        return self._unshared.memory_bytes if granted is None else room(granted)

    def waits(self, asked: Asked) -> str:
        """What such a Worker would have to wait for, in words; empty: nothing. Raises as `room`."""
        decided = self.shares.look(asked, frozenset(one.number for one in self._spares))
        return decided.text if isinstance(decided, Wait) else ""

    async def _admit(self, asked: Asked) -> Granted | None:
        """A share. Spare Workers give way to it, and Workers that are about to end are waited for."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + _ROOM_S
        while True:
            decided = self.shares.look(asked)
            if not isinstance(decided, Wait):
                return decided
            freed = self.shares.freed()
            having = ((one, self.shares.of(one.number)) for one in self._spares)
            spare = next((one for one, has in having if has and has.device.name in decided.devices), None)
            if spare is not None:
                self._spares.remove(spare)
                await self.kill(spare)
            elif loop.time() >= latest:
                raise LimitExceededError(f"no Worker can begin now: {decided.text}. Try again later")
            await asyncio.wait({freed}, timeout=_ROOM_S)

    async def _fork(self, asked: Asked = NODES) -> F:
        control = await self._fork_server()
        granted = await self._admit(asked)
        number = next(self._numbers)
        limits = self._unshared
        if granted is not None:  # at once: nobody else is let in between
            self.shares.take(number, granted)
            limits = limited(limits, granted)
        try:
            process, behind = await self._ask_for(control, number, limits)
        except BaseException as error:
            self.shares.give_back(number)
            if not isinstance(error, EOFError | OSError):
                raise
            log.warning("a Worker could not be started: %s", error or "the fork server ended")
            raise NodeUnavailableError("this Node's Workers cannot be started just now; try again") from None
        if behind is not None:
            try:
                await asyncio.shield(behind)
            except BaseException:  # nobody will know of it; its share comes back with its end
                await self.kill(process)
                raise
        return process

    async def _ask_for(
        self, control: AsyncChannel, number: int, limits: worker.WorkerLimits
    ) -> tuple[F, asyncio.Future[None] | None]:
        """A Worker that the fork server was told to fork, and what to wait for if it is behind. Raises EOFError,
        OSError; then nothing is left of it."""
        ours, theirs = pair()
        with theirs:
            try:
                process = self._hold(number, ours)
            except BaseException:
                ours.close()
                raise
            try:
                behind = control.send(frames.encode(worker.Fork(worker=number, limits=limits)), [theirs.fileno()])
            except BaseException:
                await process.close()
                raise
        self._workers[number] = process
        return process, behind

    def count(self) -> tuple[int, int]:
        """How many Workers there are, and how many of them are spare."""
        return len(self._workers), len(self._spares)

    async def kill(self, process: F) -> None:
        """End a Worker at once, also in the middle of a computation."""
        if process.number in self._workers and self._control is not None:
            with contextlib.suppress(EOFError):  # then the fork server is gone, and the Worker with it
                self._control.send(frames.encode(worker.Kill(worker=process.number)))
        await process.close()

    # -------------------------------------------------------------- spares

    async def _fill(self) -> None:
        try:
            await self._fork_server()
            while len(self._spares) < self.spare_workers and not isinstance(self.shares.look(NODES), Wait):
                self._spares.append(await self._fork())
        except (LimitExceededError, NodeUnavailableError) as error:
            log.warning("no spare Worker: %s", error)  # whoever needs one tries again, and is told

    def _replace_soon(self) -> None:
        if self._replacing is None and self._control is not None:
            self._replacing = asyncio.get_running_loop().call_later(_REPLACE_S, self._replace)

    def _replace(self) -> None:
        self._replacing = None
        if self._control is not None:
            self.prepare()

    async def stop(self) -> None:
        """End all Workers and the fork server."""
        if self._replacing is not None:
            self._replacing.cancel()
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
        self._spares.clear()
        for number, process in list(self._workers.items()):
            await process.close()
            self.shares.give_back(number)
        self._workers.clear()
        self._control = None
        if self._server is not None:
            await self._server.stop()

    # -------------------------------------------------------------- the fork server

    async def _fork_server(self) -> AsyncChannel:
        async with self._starting:
            if self._control is None:
                self._control = await self._start_fork_server()
            return self._control

    async def _start_fork_server(self) -> AsyncChannel:
        if self.isolation == "unknown":
            await self.probe()
        if self._shared is not None and (borrowed := await self._borrowed(self._shared)) is not None:
            return borrowed
        self.isolation = await self._sandbox.probe()
        if self._require_isolation and not self._sandbox.is_there:
            raise NodeUnavailableError(
                f"nothing is computed here: isolation is {self.isolation}, and this Node's owner requires a sandbox. "
                f"The owner can install bubblewrap, or start the Node without --require-isolation"
            )
        command = [*self._sandbox.command(), sys.executable, *self._program]
        environment = self._sandbox.environment(self._on_gpu)
        self._server = await start(command, environment, self._worker_ended, self._fork_server_ended)
        await self._server.ready()
        return self._server.channel

    async def _borrowed(self, place: Path) -> AsyncChannel | None:
        """A fork server of the one that Nodes share at this socket; None, and a line in the log, where it cannot be: a
        Node never has less of a sandbox for it than it would have alone."""
        try:
            self._server = await borrow(place, self._worker_ended, self._fork_server_ended)
            ready = await self._server.ready()
        except (OSError, NodeUnavailableError) as error:
            log.warning("no fork server is shared here, this Node has one of its own: %s", error)
            return None
        because = ""
        if ready.version != __version__:
            because = f"it is of grid_jupyter {ready.version}"
        elif (self._require_isolation or self._sandbox.is_there) and not ready.isolation.startswith("sandboxed"):
            because = f"its isolation is {ready.isolation}"
        if because:
            await self._server.stop()
            log.warning("the shared fork server is not used, this Node has one of its own: %s", because)
            return None
        self.isolation = ready.isolation
        return self._server.channel

    def _worker_ended(self, event: worker.Ended) -> None:
        process = self._workers.pop(event.worker, None)
        if process is not None:
            process.end(_reason(event, self.limits))
            if process in self._spares:
                self._spares.remove(process)
                log.warning("a spare Worker ended: %s", _reason(event, self.limits))
                self._replace_soon()
        self.shares.give_back(event.worker)

    def _fork_server_ended(self) -> None:
        self._control = None  # the next session starts another
        self._spares.clear()
        for number, process in list(self._workers.items()):
            process.end("the Node's fork server ended, and its Workers with it")
            self.shares.give_back(number)
        self._workers.clear()


def _reason(event: worker.Ended, limits: worker.WorkerLimits) -> str:
    if event.no_room:
        return (
            "the Node's machine has no room for another process, so its Worker never began; try again later. Its owner "
            "sees to the memory, and to how many processes there may be"
        )
    if event.signal == signal.SIGALRM:
        return f"an operation ran longer than {limits.operation_s:g} s, so its Worker was ended"
    if event.signal == signal.SIGKILL:
        return "its Worker was killed, perhaps for memory"
    if event.signal:
        return f"its Worker crashed ({signal.Signals(event.signal).name})"
    return "its Worker ended"
