"""Starts Workers on an existing Dask cluster: a long task each, which brings one up and connects it to this Node.

The Dask scheduler learns when a Worker begins and ends, and nothing of what it does. Knows no torch.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
from distributed import Client, Future

from grid_jupyter import __version__
from grid_jupyter.errors import BadRequest, NodeUnavailableError
from grid_jupyter.wire import relay
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker import dask_worker
from grid_jupyter.worker.dask_client import Certificates, connected
from grid_jupyter.worker.devices import NODES, ON_CPU, WHOLE, Asked
from grid_jupyter.worker.far_door import FarDoor, new_ticket, way_to
from grid_jupyter.worker.process import Arrived, HungUp, WayToWorker, WorkerProcess
from grid_jupyter.worker.relay import Digests, NearEnd, Stream
from grid_jupyter.worker.shares import Shares

log = logging.getLogger("grid_jupyter")

_START_S = 60.0
"""How long a session waits for a place on the cluster. The first Worker on a machine loads torch, which is in it."""
_REPLACE_S = 0.5
_LOOK_S = 10.0
"""How long the workers of the cluster have to say how isolated Workers are there."""


@dataclass(frozen=True)
class Link:
    """Where Dask workers reach the Node; port 0: any free one."""

    host: str
    port: int = 0


class DaskPool:
    """Workers on the cluster of a scheduler's address (`dask://`, `tcp://` or `tls://`), or of a `Client`.

    Each Worker is one task, and takes what `resources` says, or else one of a Dask worker's threads, for as long as it
    lives; on a GPU (`limits.device`), without `resources`, so much of `GPU` as its share. `link` is needed where Dask
    workers see this machine under another address than the way to the scheduler has. `certificates` are for `tls://`;
    without them, those of Dask's configuration.
    """

    def __init__(
        self,
        limits: WorkerLimits,
        cluster: str | Client,
        *,
        spare_workers: int = 0,
        resources: Mapping[str, float] | None = None,
        link: Link | None = None,
        certificates: Certificates | None = None,
        require_isolation: bool = False,
        start_s: float = _START_S,
    ) -> None:
        self.limits = limits
        self.shares = Shares(ON_CPU)  # Dask counts its resources, not this Node
        self.shares.text = limits.device
        self.spare_workers = spare_workers
        self.isolation = "unknown: no Dask worker has run a Worker yet"
        self._given = None if isinstance(cluster, str) else cluster
        self._address: str = cluster if isinstance(cluster, str) else _scheduler_of(cluster)
        share = {} if limits.device == "cpu" else {"GPU": (limits.device_parts or WHOLE) / WHOLE}
        self._resources = dict(resources or share)
        self._link = link
        self._certificates = certificates
        self._require_isolation = require_isolation
        self._start_s = start_s
        self._client: Client | None = None
        self._door = FarDoor(self._arrived, lambda ticket: ticket in self._asked)
        self._host = ""
        self._name = secrets.token_hex(16)  # what it keeps there is found by who knows this
        self._digests = Digests()
        self._numbers = itertools.count(1)
        self._asked: dict[str, Future[str]] = {}  # tasks whose Worker has not arrived yet, by ticket
        self._running: dict[int, Future[str]] = {}
        self._workers: dict[int, WorkerProcess] = {}
        self._spares: collections.deque[WorkerProcess] = collections.deque()
        self._waiting: collections.deque[asyncio.Future[WorkerProcess]] = collections.deque()
        self._keeps_spares = False
        self._replacing: asyncio.TimerHandle | None = None
        self._explaining: set[asyncio.Task[None]] = set()

    # -------------------------------------------------------------- the cluster

    async def probe(self) -> str:
        """Connect to the scheduler, and ask the workers that it has how isolated Workers are there. Raises
        NodeUnavailableError."""
        client = await self._connected()
        if not self._door.port:
            address = _scheduler_of(client)
            where = self._link or Link(way_to(urlsplit(address).netloc))
            self._host = where.host
            await self._door.open(where.host, where.port)
            if urlsplit(address).scheme not in ("tls", "gateway"):  # dask-gateway's proxy takes TLS alone
                log.warning(
                    "the way to Dask's scheduler %s is not encrypted, and tickets of Workers go by it: use tls://, "
                    "unless nobody else is on that network", address,
                )  # fmt: skip
        limits = msgspec.to_builtins(self.limits)
        try:
            said = await asyncio.wait_for(
                _asked_of(client, client.run, dask_worker.isolation, limits, on_error="return"), _LOOK_S
            )
        except (asyncio.TimeoutError, OSError):
            return self.isolation
        for text in said.values():
            self._is_isolated(text if isinstance(text, str) else f"reduced: unknown ({type(text).__name__})")
        return self.isolation

    async def _connected(self) -> Client:
        if self._client is None or self._client.status == "closed":
            if self._given is not None:
                self._client = self._given
                return self._client
            self._client = await connected(self._address, self._certificates)
        return self._client

    def _is_isolated(self, text: str) -> None:
        kind, _, how = text.partition(":")
        if not self.isolation.startswith("reduced"):  # one such worker is enough to say so
            self.isolation = f"{kind} on Dask:{how}"

    # -------------------------------------------------------------- Workers for the Node

    def prepare(self) -> None:
        """Somebody may compute soon: ask for spare Workers."""
        self._keeps_spares = True
        self._balance()

    def room(self, asked: Asked) -> int:
        """Bytes that a Worker may compute with, as far as this Node knows. Raises BadRequest for another device or
        share than all Workers have here."""
        if asked not in (NODES, Asked(self.limits.device)):
            raise BadRequest(
                f"this Node's Workers run on Dask, where all have the same share of {self.limits.device}: leave device "
                f"and device_fraction out"
            )
        return self.limits.memory_bytes

    def waits(self, asked: Asked) -> str:
        """Nothing: the cluster's queue is Dask's."""
        self.room(asked)
        return ""

    async def start(self, asked: Asked = NODES) -> WorkerProcess:
        """A Worker for a new session: a spare one, or else a new one.

        Raises NodeUnavailableError where the cluster has no place for it in time, or cannot run it; as `room`.
        """
        self.room(asked)
        await self._connected()
        while self._spares:
            process = self._spares.popleft()
            if not process.lost.done():
                self._balance_soon()
                return process
        waiting: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._balance()
        try:
            return await asyncio.wait_for(waiting, self._start_s)
        except asyncio.TimeoutError:
            wanted = ", ".join(f"{name}={number:g}" for name, number in self._resources.items()) or "a free thread"
            raise NodeUnavailableError(
                f"no Dask worker had a place ({wanted}) within {self._start_s:g} s; try again later, or ask the Node's "
                f"owner for more workers on {self._address}"
            ) from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiting)
            self._balance_soon()

    def count(self) -> tuple[int, int]:
        """How many Workers there are, and how many of them are spare."""
        return len(self._workers), len(self._spares)

    async def kill(self, process: WorkerProcess) -> None:
        """End a Worker at once, also in the middle of a computation: the far machine does when its Node leaves."""
        await process.close()

    # -------------------------------------------------------------- tasks

    def _balance(self) -> None:
        """Have as many tasks asked for as Workers are waited for."""
        client = self._client
        if client is None or client.status == "closed":
            return
        spare = max(0, self.spare_workers - len(self._spares)) if self._keeps_spares else 0
        wanted = len(self._waiting) + spare
        while len(self._asked) > wanted:
            self._asked.popitem()[1].release()
        while len(self._asked) < wanted:
            self._ask(client)

    def _ask(self, client: Client) -> None:
        ticket = new_ticket()
        task = client.submit(
            dask_worker.serve_worker,
            self._host,
            self._door.port,
            ticket,
            self._door.certificate,
            self._name,
            msgspec.to_builtins(self.limits),
            self._require_isolation,
            key=f"grid_jupyter-worker-{secrets.token_hex(8)}",  # the ticket is no name: the scheduler shows those
            pure=False,
            retries=0,
            resources=self._resources or None,
        )
        self._asked[ticket] = task
        loop = asyncio.get_running_loop()

        def over(done: Future[str]) -> None:  # in a thread of Dask's
            with contextlib.suppress(RuntimeError):  # the Node's loop is closed
                loop.call_soon_threadsafe(self._over, ticket, done)

        task.add_done_callback(over)

    def _over(self, ticket: str, task: Future[str]) -> None:
        """A task is done. Where its Worker never arrived, whoever waits learns why; spares are not asked for again
        until somebody comes."""
        if self._asked.pop(ticket, None) is None:
            return
        explaining = asyncio.get_running_loop().create_task(self._explain(task))
        self._explaining.add(explaining)
        explaining.add_done_callback(self._explaining.discard)

    async def _explain(self, task: Future[str]) -> None:
        if task.status == "finished":
            reason = str(await _asked_of(task.client, task.result))
        elif task.status == "error":
            failed = await _asked_of(task.client, task.exception)
            reason = f"{type(failed).__name__}: {failed}"[:300]
        else:
            reason = "the cluster gave it up"
        self._refuse(reason)

    # -------------------------------------------------------------- Workers that arrive

    def _arrived(self, arrive: relay.Arrive, stream: Stream) -> None:
        task = self._asked.pop(arrive.ticket)
        if arrive.version != __version__:
            stream.close()
            self._refuse(
                f"the Dask worker {arrive.place} has grid_jupyter {arrive.version} and this Node {__version__}; "
                f"install the same on both"
            )
            return
        self._is_isolated(arrive.isolation)
        number = next(self._numbers)

        def told(reason: str) -> None:
            process.end(reason)

        def open_way(arrived: Arrived, hung_up: HungUp) -> WayToWorker:
            return NearEnd(stream, self._digests, self.limits.memory_bytes, told, arrived, hung_up, arrive.place)

        process = self._workers[number] = WorkerProcess(number, open_way)
        self._running[number] = task
        process.lost.add_done_callback(lambda _: self._lost(process))
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(process)
                return
        self._spares.append(process)

    def _lost(self, process: WorkerProcess) -> None:
        self._workers.pop(process.number, None)
        task = self._running.pop(process.number, None)
        if task is not None:
            task.release()
        if process in self._spares:
            self._spares.remove(process)
            self._balance_soon()

    def _refuse(self, reason: str) -> None:
        log.warning("a Worker on Dask was not started: %s", ascii(reason))
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(NodeUnavailableError(f"no Worker could be started on Dask: {reason}"))
                break
        self._keeps_spares = False

    def _balance_soon(self) -> None:
        if self._replacing is None:
            self._replacing = asyncio.get_running_loop().call_later(_REPLACE_S, self._balance_now)

    def _balance_now(self) -> None:
        self._replacing = None
        self._balance()

    # -------------------------------------------------------------- the end

    async def stop(self) -> None:
        """End all Workers, take back what was asked for, and leave the cluster as it was."""
        self._keeps_spares = False
        if self._replacing is not None:
            self._replacing.cancel()
        self._door.close()
        self._spares.clear()
        for process in list(self._workers.values()):
            await process.close()
        for task in (*self._asked.values(), *self._running.values()):
            task.release()
        self._asked.clear()
        for explaining in self._explaining:
            explaining.cancel()
        if self._client is not None and self._given is None:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await self._client.close()


def _scheduler_of(client: Client) -> str:
    if client.scheduler is None:
        raise NodeUnavailableError("this Dask Client is not connected; make another one")
    return str(client.scheduler.address)


async def _asked_of(client: Client, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call of a Client answers: one that is not asynchronous would hold up the Node."""
    if client.asynchronous:
        return await call(*arguments, **options)
    return await asyncio.to_thread(call, *arguments, **options)
