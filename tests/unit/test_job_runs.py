"""What a job's run leaves behind when it is cancelled in the middle of something: nothing half done."""

from __future__ import annotations

import asyncio

import pytest

from grid_jupyter.node.job_runs import failed, to_the_end


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
