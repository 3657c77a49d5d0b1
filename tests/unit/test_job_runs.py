"""What a job's run leaves behind when it is cancelled in the middle of something: nothing half done."""

from __future__ import annotations

import asyncio

import pytest

from grid_jupyter.errors import LimitExceededError
from grid_jupyter.node.job_runs import failed, started, to_the_end
from grid_jupyter.node.service import local_workers
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.devices import WHOLE, Asked, Wish


def test_what_was_begun_is_ended_before_its_caller_is_cancelled():
    async def story() -> None:
        begun, go_on, ended = asyncio.Event(), asyncio.Event(), []

        async def write() -> None:
            begun.set()
            await go_on.wait()
            ended.append("written")

        caller = asyncio.create_task(to_the_end(write()))
        await begun.wait()
        caller.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended == ["written"]

    asyncio.run(story())


def test_what_it_fails_of_is_told():
    async def story() -> None:
        async def write() -> None:
            raise OSError("the disk is full")

        writing = asyncio.ensure_future(write())
        with pytest.raises(OSError, match="full"):
            await to_the_end(writing)
        assert failed(writing)

    asyncio.run(story())


def test_a_job_waits_for_a_share_longer_than_a_session_does_and_can_be_cancelled_meanwhile():
    async def story() -> None:
        limits = WorkerLimits(memory_bytes=1 << 30, operation_s=60.0, threads=1)
        pool = local_workers(limits, 0, require_isolation=False, wish=Wish(declared_bytes=1 << 30, parts=WHOLE))
        try:
            first = await pool.start()
            waiting, cancelled = (asyncio.create_task(started(pool, Asked("cpu", WHOLE))) for _ in range(2))
            session = asyncio.create_task(pool.start())
            with pytest.raises(LimitExceededError, match="no Worker can begin now"):
                await session  # asked last: the jobs were told so before, and wait on
            assert not waiting.done()
            assert not cancelled.done()
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(cancelled, 30)
            await pool.kill(first)
            await asyncio.wait_for(waiting, 30)
            assert [one["shares"] for one in pool.shares.describe()] == [[1.0]]
        finally:
            await pool.stop()

    asyncio.run(story())
