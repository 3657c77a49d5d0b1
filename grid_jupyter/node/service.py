"""The Node as a whole: puts accounts, data sets, models, Workers and sessions together, and speaks for them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import URL

from grid_jupyter.errors import NodeUnavailableError, StorageFullError
from grid_jupyter.identity.accounts import Accounts
from grid_jupyter.link.peer import Membership
from grid_jupyter.node.audit import Audit
from grid_jupyter.node.changes import Changes
from grid_jupyter.node.datasets import Datasets
from grid_jupyter.node.held import HeldValues
from grid_jupyter.node.job_keeper import JobKeeper
from grid_jupyter.node.jobs import Jobs
from grid_jupyter.node.models import Models
from grid_jupyter.node.requests import Requests
from grid_jupyter.node.sessions import Sessions
from grid_jupyter.node.usage import OPENED, Usage
from grid_jupyter.store.accounts import AccountTable
from grid_jupyter.store.audit import AuditTable
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.datasets import DatasetTable
from grid_jupyter.store.jobs import JobTable
from grid_jupyter.store.models import ModelTable
from grid_jupyter.store.node_blobs import NodeBlobs
from grid_jupyter.store.postgres import check_state, settle_whose
from grid_jupyter.store.requests import RequestTable
from grid_jupyter.store.settings import SettingTable
from grid_jupyter.wire import network, worker
from grid_jupyter.worker.backend import Workers
from grid_jupyter.worker.devices import ON_CPU, Wish
from grid_jupyter.worker.pool import WorkerPool
from grid_jupyter.worker.process import WorkerProcess, here

log = logging.getLogger("grid_jupyter")
SWEEP_S = 30.0
"""How often requests and approvals are looked at whose time may be over."""


class GridNode:
    """One Node, without its doors. Make it with `open`; `start` it inside the running event loop."""

    def __init__(
        self,
        *,
        name: str,
        node_id: str,
        database: Database,
        kept: NodeBlobs,
        guests: bool,
        public_tags: bool,
        max_sessions: int,
        idle_s: float,
        grace_s: float,
        max_upload_bytes: int,
        workers: Workers,
        warm: bool,
        max_jobs: int,
        jobs_per_user: int,
        job_storage_bytes: int,
        job_s: float,
    ) -> None:
        self.name = name
        self.node_id = node_id
        self.guests = guests
        self.max_upload_bytes = max_upload_bytes
        self.database = database
        self.settings = SettingTable(database)
        self.accounts = Accounts(AccountTable(database), node_id)
        self.pool = workers
        self.warm = warm
        self.kept, blobs = kept, kept.blobs
        self.models = Models(ModelTable(database), blobs)
        self.changes = Changes()
        self.audit = Audit(AuditTable(database))
        self.usage = Usage(self.audit.table)
        self.audit.on_note(self._noted)
        self.requests = Requests(RequestTable(database), self.audit, blobs)
        self.datasets = Datasets(
            DatasetTable(database), blobs, self.audit, max_upload_bytes=max_upload_bytes, public_tags=public_tags
        )
        self.held = HeldValues(self.requests, blobs)
        self.sessions = Sessions(
            name=name,
            node_id=node_id,
            accounts=self.accounts,
            datasets=self.datasets,
            pool=self.pool,
            audit=self.audit,
            held=self.held,
            guests=guests,
            max_sessions=max_sessions,
            idle_s=idle_s,
            grace_s=grace_s,
        )
        keeper = JobKeeper(
            table=JobTable(database),
            blobs=blobs,
            datasets=self.datasets,
            requests=self.requests,
            pool=self.pool,
            at_once=max_jobs,
            per_user=jobs_per_user,
            job_s=job_s,
        )
        self.jobs = Jobs(
            name=name,
            table=JobTable(database),
            blobs=blobs,
            datasets=self.datasets,
            keeper=keeper,
            pool=self.pool,
            storage_bytes=job_storage_bytes,
            job_s=job_s,
        )
        self.sessions.rounds = self.jobs.round
        self.datasets.on_unpublish(self.sessions.end_with, self._end_with)
        self.datasets.on_change(lambda: self.changes.tell("datasets"))
        self.requests.on_decided(lambda kind, key, verdict: self.changes.tell("requests"))
        self.sessions.on_change(lambda: self.changes.tell("node"))
        keeper.on_change(lambda: self.changes.tell("jobs"))
        self._tasks: list[asyncio.Task[None]] = []
        self.membership: Membership | None = None

    @classmethod
    async def open(
        cls,
        state: Path,
        *,
        name: str,
        workers: Workers,
        guests: bool = False,
        public_tags: bool = False,
        max_sessions: int = 16,
        idle_s: float = 1800.0,
        grace_s: float = 120.0,
        max_upload_bytes: int = 64 << 30,
        warm: bool = False,
        max_jobs: int = 4,
        jobs_per_user: int = 2,
        job_storage_bytes: int = 16 << 30,
        job_s: float = 43_200.0,
        postgres: URL | None = None,
        kept: NodeBlobs | None = None,
    ) -> GridNode:
        """The Node whose state lies in this directory; made there at its first start. Its rows are in a SQLite file
        there, or in `postgres`, its bytes in files there, or in `kept`.

        Raises BadRequest where directory and database are not of the same Node, and what `Database` raises.
        """
        check_state(state, postgres)
        database = Database(sqlite_url(state / "grid.db") if postgres is None else postgres)
        try:
            settings, fresh = SettingTable(database), secrets.token_hex(8)
            if postgres is not None:
                fresh = settle_whose(state, await settings.get("node-id", ""), fresh)
            node_id = await settings.keep("node-id", fresh)
        except BaseException:
            database.close()
            raise
        return cls(
            name=name,
            node_id=node_id,
            database=database,
            kept=kept or NodeBlobs(state),
            guests=guests,
            public_tags=public_tags,
            max_sessions=max_sessions,
            idle_s=idle_s,
            grace_s=grace_s,
            max_upload_bytes=max_upload_bytes,
            workers=workers,
            warm=warm,
            max_jobs=max_jobs,
            jobs_per_user=jobs_per_user,
            job_storage_bytes=job_storage_bytes,
            job_s=job_s,
        )

    async def start(self) -> str | None:
        """Make it ready to serve. Returns the owner's one-time invite at the first start, else None."""
        await self.requests.sweep()
        await self.usage.load()
        known = await self.models.blobs() | await self.requests.held_blobs() | await self.jobs.keeper.blobs()
        await self.datasets.sweep(known, passing=await self.jobs.keeper.checkpoints())
        await self.pool.probe()
        if self.warm:
            self.pool.prepare()
        self.sessions.start()
        await self.jobs.keeper.start()
        self._tasks = [asyncio.create_task(self._sweep(), name="requests and audit")]
        if self.kept.objects is not None:
            self._tasks.append(asyncio.create_task(self._settle(), name="object store"))
        return await self.accounts.first_start()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.audit.sweep()
            try:
                await self.requests.sweep()
            except StorageFullError:
                log.warning("requests that are over stay for now: the disk is full")

    async def _settle(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.kept.settle)
            except (NodeUnavailableError, StorageFullError):
                pass  # the log has it; it is tried again
            await asyncio.sleep(SWEEP_S)

    def _noted(self, event: str, actor: str, details: dict[str, Any], at: float) -> None:
        self.usage.take(event, actor, details, at)
        if event == OPENED:
            self.changes.tell("datasets")

    async def _end_with(self, dataset: int) -> None:
        """A data set is gone, and with it what was asked for on it and what runs on it."""
        await self.jobs.keeper.end_with(dataset)
        await self.requests.end_with(dataset)

    def reachable_at(self, address: str, peers: tuple[str, ...] = ()) -> None:
        """Where other Nodes reach this one, and which ones besides those of its Network it may hand values to."""
        self.sessions.moves.address, self.sessions.moves.peers = address, peers

    def join(self, network_url: str, *, address: Callable[[], str], invite: str | None, heartbeat_s: float) -> None:
        """Join a Network, and stay joined."""
        key = f"network-credential {network_url}"

        async def load() -> str | None:
            return await self.settings.get(key) or None

        async def save(credential: str) -> None:
            await self.settings.set(key, credential)

        self.membership = Membership(
            network_url,
            name=self.name,
            node_id=self.node_id,
            address=address,
            load=load,
            save=save,
            answer=self.answer,
            beat=lambda: self.beat(address()),
            invite=invite,
            heartbeat_s=heartbeat_s,
        )
        self.sessions.moves.find_node = self.membership.find_node
        self.membership.start()

    async def stop(self) -> None:
        """Leave the Network for now, end all sessions and Workers, close the database."""
        if self.membership is not None:
            await self.membership.stop()
        for task in self._tasks:
            task.cancel()
            await asyncio.wait([task])
        await self.sessions.stop()
        await self.jobs.keeper.stop()
        self.jobs.uploads.close()
        self.datasets.uploads.close()
        await self.pool.stop()
        await self.audit.close()
        self.database.close()

    # -------------------------------------------------------------- what the Network asks

    async def answer(self, question: network.Question) -> network.Answer:
        """Answer a question that came through the Network, whose asker is nobody in particular here."""
        if isinstance(question, network.ListModels):
            models = await self.models.list()
            return network.Models(
                id=question.id, models=tuple(network.HostedModel(id=model.id, mpc=model.mpc) for model in models)
            )
        if isinstance(question, network.ListTags):
            return network.Tags(id=question.id, tags=await self.tags(public=True))
        found = await self.datasets.public(question.query)
        listed = tuple(network.DatasetTags(id=stored.id, tags=stored.tags) for stored in found)
        return network.Datasets(id=question.id, datasets=listed)

    async def beat(self, address: str) -> network.Heartbeat:
        """How the Node is."""
        listed = await self.datasets.public()
        return network.Heartbeat(
            address=address,
            tags=len({tag for stored in listed for tag in stored.tags}),
            datasets=len(listed),
            models=len(await self.models.list()),
            cpu=psutil.cpu_percent(interval=None),
            memory=psutil.virtual_memory().percent,
        )

    async def tags(self, *, public: bool, caller: str = "") -> tuple[str, ...]:
        """All tags: those made public, or those that a caller may see."""
        found = await (self.datasets.public() if public else self.datasets.visible(caller))
        return tuple(sorted({tag for stored in found for tag in stored.tags}))


def local_workers(
    limits: worker.WorkerLimits,
    spare_workers: int,
    *,
    require_isolation: bool = False,
    wish: Wish = ON_CPU,
    shared: Path | None = None,
) -> WorkerPool[WorkerProcess]:
    """Workers on this machine; `shared` as WorkerPool has it."""

    def hold(number: int, sock: socket.socket) -> WorkerProcess:
        return WorkerProcess(number, here(sock))

    return WorkerPool(limits, hold, spare_workers, require_isolation=require_isolation, wish=wish, shared=shared)
