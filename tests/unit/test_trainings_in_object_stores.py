"""Trainings whose models are in an object store: a checkpoint is there before the next cycle, and reports are not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy
from cycle_world import MODEL, World, diff, world
from test_averaging_plans import largest

from grid_jupyter.store.node_blobs import NodeBlobs
from grid_jupyter.store.object_address import at_url
from grid_jupyter.store.object_claim import claim


def run(state: Path, store: Path, work: Callable[[World], Awaitable[None]]) -> None:
    """One life of a Node, in whose cache is room for a single byte."""
    state.mkdir(exist_ok=True)

    async def story() -> None:
        kept = NodeBlobs(state, claim(state, at_url(store.as_uri(), None), "ward7"), 1)
        async with world(state, blobs=kept.training) as here:
            await work(here)

    asyncio.run(story())


def names(directory: Path) -> set[str]:
    return {file.name.partition(".")[0] for file in directory.iterdir()}


async def until(holds: Callable[[], bool]) -> None:
    """Old files are deleted when the next cycle is open."""
    deadline = asyncio.get_running_loop().time() + 30
    while not holds():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def cycle(here: World, number: int) -> None:
    await here.report(await here.accepted(), diff(1, 2, 3))
    await here.report(await here.accepted(), diff(1, 2, 3))
    assert (await here.stands(after=number))["problem"] == ""


def test_a_strategy_with_a_state_goes_on_though_all_copies_are_pushed_out_and_the_node_restarts(tmp_path: Path):
    state, store = tmp_path / "state", tmp_path / "store"

    async def first(here: World) -> None:
        await here.host(strategy="FedAdam", min_diffs=2, max_diffs=2)
        await cycle(here, 0)
        await cycle(here, 1)

    async def second(here: World) -> None:
        await cycle(here, 2)
        for number in (1, 2, 3, 4):
            assert (await here.checkpoint(str(number)))["w"].shape == (3, 1)
        await until(lambda: len(names(store / "training")) == 1 + 4 + 2)  # plan, models, the latest state
        await until(lambda: not names(state / "training") - names(store / "training"))  # reports that were folded
        await until(lambda: len(names(state / "training")) <= 2)  # the first model, which stays, and one copy

    run(state, store, first)
    for file in (state / "training").iterdir():
        file.unlink()
    run(state, store, second)


def test_an_averaging_plan_is_fetched_when_it_is_needed(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(averaging=largest(2), min_diffs=2, max_diffs=2)
        await cycle(here, 0)
        expected = MODEL["w"] - numpy.array([[1], [2], [3]])
        numpy.testing.assert_allclose((await here.checkpoint())["w"], expected, rtol=1e-6)

    run(tmp_path / "state", tmp_path / "store", work)


def test_reports_count_while_the_store_is_away_and_the_checkpoint_is_made_when_it_is_back(tmp_path: Path):
    state, store, unmounted = tmp_path / "state", tmp_path / "store", tmp_path / "unmounted"

    async def work(here: World) -> None:
        await here.host(min_diffs=2, max_diffs=2)
        places = [await here.accepted(), await here.accepted()]
        store.rename(unmounted)
        store.write_text("")
        for place in places:
            await here.report(place, diff(1, 2, 3))
        live = here.cycles._live[1]
        await until(lambda: bool(live.problem))
        stands = live.told()
        assert "object store" in stands["problem"]
        assert (stands["completed"], stands["reports"]) == (0, 2)
        assert len(names(state / "training") - names(unmounted / "training")) == 2, "the reports"
        store.unlink()
        unmounted.rename(store)
        assert (await here.stands(after=0))["completed"] == 1
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - [[1], [2], [3]], rtol=1e-6)
        assert len(names(store / "training")) == 3, "plan and two models"

    run(state, store, work)
