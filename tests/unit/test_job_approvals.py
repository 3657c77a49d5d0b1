"""A job's approval that is taken back at the last moment: what the job came to stays, and both sides read why."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from grid_jupyter.errors import Conflict
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
    def __init__(self, path: Path) -> None:
        self.database = Database(sqlite_url(path / "grid.db"))
        self.blobs = BlobStore(path / "blobs")
        self.audit = Audit(AuditTable(self.database))
        self.requests = Hurried(RequestTable(self.database), self.audit, self.blobs)
        self.datasets = DatasetTable(self.database)
        self.keeper = JobKeeper(
            table=JobTable(self.database),
            blobs=self.blobs,
            datasets=Datasets(self.datasets, self.blobs, self.audit, max_upload_bytes=1, public_tags=False),
            requests=self.requests,
            pool=local_workers(WorkerLimits(1 << 30, 60.0, 1), 0, require_isolation=False),
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
        row = await JobTable(self.database).add(new_row("j" * 16, "Ana", "upload", document, 1000.0), 1)
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


def test_an_approval_that_is_taken_back_just_before_the_result_leaves_keeps_it(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path)
        live = await world.approved(rounds=1)
        stands(live, "held")
        world.requests.then = lambda request: world.requests.revoke(BOB, request)
        await world.keeper.reconsider(live)
        assert live.machine.state == "denied"
        assert "the approval was taken back" in live.machine.said
        assert (await world.requests.standing(live.request, "Ana")).state == "revoked"
        assert "released-by-approval" not in await world.close()

    asyncio.run(story())


def test_a_result_that_was_released_before_the_node_was_started_again_still_is(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path)
        live = await world.approved(rounds=1)
        stands(live, "held")
        world.requests.then = lambda request: world.requests.use(request, "Ana")
        await world.keeper.reconsider(live)
        assert live.machine.state == "done"
        assert (await world.close()).count("released-by-approval") == 1

    asyncio.run(story())


@pytest.mark.parametrize(("rounds", "before"), [(3, 0), (3, 1), (2, 1)])
def test_no_round_leaves_once_the_approval_is_taken_back(tmp_path: Path, rounds: int, before: int):
    """The first round, one in the middle, and the last, by which the approval is taken up."""

    async def story() -> None:
        world = World(tmp_path)
        live = await world.approved(rounds)
        stands(live, "running")
        for _ in range(before):
            await world.keeper.round_done(live, {"loss": 1.0})
        await world.requests.revoke(BOB, live.request)
        assert live.machine.state == "running"  # the keeper was told, and has not looked yet
        with pytest.raises(Conflict, match="denied: the approval was taken back"):
            await world.keeper.round_done(live, {"loss": 0.5})
        assert live.history == [{"loss": 1.0}] * before
        events = await world.close()
        assert events.count("releases-by-approval") == before
        assert "released-by-approval" not in events

    asyncio.run(story())


def test_no_round_leaves_of_a_job_that_ended_meanwhile(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path)
        live = await world.approved(rounds=3)
        stands(live, "cancelled")
        with pytest.raises(Conflict, match="this job is cancelled"):
            await world.keeper.round_done(live, {"loss": 1.0})
        assert not live.history
        await world.close()

    asyncio.run(story())


def test_the_last_round_leaves_and_ends_the_job(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path)
        live = await world.approved(rounds=2)
        stands(live, "running")
        for loss in (1.0, 0.5):
            await world.keeper.round_done(live, {"loss": loss})
        assert live.machine.state == "done"
        assert live.machine.rounds_done == 2
        assert (await world.close())[-2:] == ["releases-by-approval", "released-by-approval"]

    asyncio.run(story())
