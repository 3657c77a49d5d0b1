"""A JobKeeper on a real database, with one job of Ana's on Bob's data; it runs nothing unless it is told to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.audit import Audit
from grid_jupyter.node.datasets import Datasets
from grid_jupyter.node.job_documents import JobDocument
from grid_jupyter.node.job_keeper import JobKeeper
from grid_jupyter.node.job_records import LiveJob, new_row
from grid_jupyter.node.requests import Requests
from grid_jupyter.node.service import local_workers
from grid_jupyter.node.verdicts import Asked, Verdict
from grid_jupyter.store.audit import AuditTable
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.datasets import DatasetTable, NewDataset, StoredTensor
from grid_jupyter.store.jobs import JobTable
from grid_jupyter.store.requests import RequestTable
from grid_jupyter.wire.jobs import Arguments, Rows
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.pool import WorkerPool
from grid_jupyter.worker.process import WorkerProcess

BOB = Account(1, "Bob", "User", frozenset(), ())


class Hurried(Requests):
    """Something happens as soon as the next question was answered."""

    then: Callable[[int], Awaitable[object]] | None = None

    async def decide(self, asked: Asked, **held: object) -> Verdict:
        verdict = await super().decide(asked, **held)  # type: ignore[arg-type]
        then, self.then = self.then, None
        if then is not None:
            await then(verdict.request)
        return verdict


class World:
    def __init__(
        self,
        path: Path,
        table: type[JobTable] = JobTable,
        keeper: type[JobKeeper] = JobKeeper,
        pool: WorkerPool[WorkerProcess] | None = None,
    ) -> None:
        self.database = Database(sqlite_url(path / "grid.db"))
        self.table = table(self.database)
        self.pool = pool or local_workers(WorkerLimits(1 << 30, 60.0, 1), 0, require_isolation=False)
        self.blobs = BlobStore(path / "blobs")
        self.audit = Audit(AuditTable(self.database))
        self.requests = Hurried(RequestTable(self.database), self.audit, self.blobs)
        self.datasets = DatasetTable(self.database)
        self.keeper = keeper(
            table=self.table,
            blobs=self.blobs,
            datasets=Datasets(self.datasets, self.blobs, self.audit, max_upload_bytes=1, public_tags=False),
            requests=self.requests,
            pool=self.pool,
            at_once=0,
            per_user=1,
            job_s=60.0,
        )

    async def approved(self, rounds: int) -> LiveJob:
        """A job of Ana's on Bob's data, which he has approved."""
        tensor = StoredTensor("x", "float32", (4,), 0, 16)
        new = NewDataset(
            name="x", owner="Bob", kind="tensor", tags=(), description="", allowed_users=(), tensors=(tensor,),
            blob="b" * 32, nbytes=16, sha256="c" * 64,
        )  # fmt: skip
        dataset, version = await self.datasets.publish(new, "upload")
        data = {"x": Rows(dataset=dataset, version=version, tensors=("x",))}
        document = JobDocument(
            plan="d" * 64, kind="step", arguments=Arguments(rounds=rounds), model=(), data=data, rows=4, steps=1
        )
        row = await self.table.add(new_row("j" * 16, "Ana", "upload", document, 1000.0), 1)
        await self.keeper.take(row)
        live = self.keeper.get(row.id)
        assert live is not None
        await self.requests.approve(BOB, live.request)
        await self.keeper.reconsider(live)
        assert live.machine.state == "queued"
        return live

    async def close(self) -> list[str]:
        await self.keeper.stop()
        await self.audit.flush()
        events = [row.event for row in reversed(await self.audit.table.listed())]
        await self.audit.close()
        self.database.close()
        return events


def stands(live: LiveJob, state: str) -> None:
    live.machine = replace(live.machine, state=state)  # type: ignore[arg-type]
