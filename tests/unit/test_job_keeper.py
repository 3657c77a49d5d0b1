"""What happens while a job is written down, gets a Worker, or is cancelled: it ends, and leaves nothing running."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from job_keeper_world import World, stands

from grid_jupyter.errors import Conflict, StorageFullError
from grid_jupyter.node import job_keeper
from grid_jupyter.node import job_machine as machine
from grid_jupyter.node.job_keeper import JobKeeper
from grid_jupyter.node.job_records import LiveJob
from grid_jupyter.node.job_runs import JobWorker, started
from grid_jupyter.node.service import local_workers
from grid_jupyter.store.jobs import JobTable, StoredJob
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.devices import WHOLE, Asked, Wish
from grid_jupyter.worker.pool import WorkerPool
from grid_jupyter.worker.process import WorkerProcess

LIMITS = WorkerLimits(1 << 30, 60.0, 1)


class Slow(JobTable):
    """The answer to one save is late, or the disk is full."""

    late: asyncio.Event | None = None
    full = False

    async def save(self, job: StoredJob) -> StoredJob:
        if self.full:
            raise StorageFullError("the disk is full")
        late, self.late = self.late, None
        saved = await super().save(job)
        if late is not None:
            await late.wait()
        return saved


class Held(JobKeeper):
    """A Worker is there, and its start is not over yet."""

    begun = False
    decided = False

    async def reconsider(self, live: LiveJob) -> None:
        if not self.decided:
            await super().reconsider(live)

    async def _start(self, live: LiveJob) -> JobWorker:
        process = await started(self._pool, live.document.asked)
        try:
            self.begun = True
            await asyncio.Event().wait()
        finally:
            await self._pool.kill(process)
        raise AssertionError


def test_a_job_that_is_cancelled_while_its_rounds_are_written_down_ends(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path, Slow)
        assert isinstance(world.table, Slow)
        live = await world.approved(rounds=3)
        stands(live, "running")
        await world.keeper.round_done(live, {"loss": 1.0})
        late = world.table.late = asyncio.Event()
        live.saved = float("-inf")
        writing = asyncio.create_task(world.keeper.rows.write_behind(live))
        await until(lambda: world.table.late is None)
        cancelling = asyncio.create_task(world.keeper.apply(live, machine.Cancelled("Ana")))
        for _ in range(3):  # transactions are taken in order: had it begun one, that would be over
            await world.table.all()
        late.set()
        await writing
        await cancelling
        row = await world.table.get(live.id)
        assert (row.state, live.row.state) == ("cancelled", "cancelled")
        assert row.history == [{"loss": 1.0}]
        assert world.keeper.get(live.id) is None
        await world.close()

    asyncio.run(story())


def test_a_job_that_is_cancelled_on_a_full_disk_computes_no_more(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path, Slow)
        assert isinstance(world.table, Slow)
        live = await world.approved(rounds=1)
        stands(live, "running")
        running = live.running = asyncio.create_task(asyncio.Event().wait())  # type: ignore[assignment]
        world.table.full = True
        with pytest.raises(StorageFullError):
            await world.keeper.apply(live, machine.Cancelled("Ana"))
        await asyncio.wait_for(asyncio.wait({running}), 30)
        assert running.cancelled()
        world.table.full = False
        await world.close()

    asyncio.run(story())


def test_a_job_whose_approval_is_asked_for_anew_as_it_begins_gets_no_worker(tmp_path: Path):
    async def story() -> None:
        world = World(tmp_path, keeper=Held)
        keeper = world.keeper
        assert isinstance(keeper, Held)
        live = await world.approved(rounds=1)
        keeper.decided = True
        async with live.lock:  # it is written down just now
            asking = asyncio.create_task(keeper.apply(live, machine.Asked("Bob")))
            await asyncio.sleep(0)  # it waits for the lock, before who begins does
            running = live.running = keeper._spawn(keeper._run(live))
            await asyncio.sleep(0)
        await asking
        done, _ = await asyncio.wait({running}, timeout=10)
        assert done
        assert live.machine.state == "waiting"
        assert not keeper.begun
        await world.close()

    asyncio.run(story())


class Torn(JobTable):
    """The disk does not answer once."""

    swept = 0

    async def forget(self, before: float) -> list[StoredJob]:
        self.swept += 1
        if self.swept == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return await super().forget(before)


def test_jobs_are_looked_after_behind_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_keeper, "SWEEP_S", 0.01)

    async def story() -> None:
        world = World(tmp_path, Torn)
        table = world.table
        assert isinstance(table, Torn)
        await world.keeper.start()
        await until(lambda: table.swept > 1)
        await world.close()

    asyncio.run(story())


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def shares(pool: WorkerPool[WorkerProcess], *wanted: float) -> None:
    await until(lambda: [one["shares"] for one in pool.shares.describe()] == [list(wanted)])


def test_a_job_that_is_cancelled_while_its_next_round_gets_a_worker_leaves_none(tmp_path: Path):
    async def story() -> None:
        wish = Wish(declared_bytes=1 << 30, parts=WHOLE // 2)
        pool = local_workers(LIMITS, 0, require_isolation=False, wish=wish)
        world = World(tmp_path, keeper=Held, pool=pool)
        keeper = world.keeper
        assert isinstance(keeper, Held)
        live = await world.approved(rounds=3)
        stands(live, "running")
        keeper._at_once = 1
        asking = asyncio.create_task(keeper.worker(live))
        await until(lambda: keeper.begun)
        await shares(pool, 0.5)
        await keeper.apply(live, machine.Cancelled("Ana"))
        with pytest.raises(Conflict, match="this job is cancelled"):
            await asyncio.wait_for(asking, 30)
        await shares(pool)
        await world.close()
        await pool.stop()

    asyncio.run(story())


def test_a_spare_worker_that_gave_way_comes_back_also_when_it_was_tried_too_early():
    async def story() -> None:
        wish = Wish(declared_bytes=1 << 30, parts=WHOLE // 2)
        pool = local_workers(LIMITS, 1, require_isolation=False, wish=wish)
        try:
            pool.prepare()
            await shares(pool, 0.5)
            large = await pool.start(Asked("cpu", WHOLE))
            filled = pool._filling
            await until(lambda: pool._filling is not filled and pool._filling.done())  # its place is taken
            await shares(pool, 1.0)
            await pool.kill(large)
            await shares(pool, 0.5)
        finally:
            await pool.stop()

    asyncio.run(story())
