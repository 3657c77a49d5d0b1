"""A job's approval that is taken back at the last moment: what the job came to stays, and both sides read why."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from job_keeper_world import BOB, World, stands

from grid_jupyter.errors import Conflict


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
