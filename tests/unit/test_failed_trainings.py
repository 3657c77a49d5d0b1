"""Trainings that this version does not go on with: the Node starts, shows why, and forgets them when it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cycle_world import World, diff, world
from sqlalchemy import update

from grid_jupyter.errors import Conflict, NotFound
from grid_jupyter.identity.accounts import Account
from grid_jupyter.store.records import TrainingRow

ANN = Account(1, "Ann", "Publisher", frozenset(), ())


async def spoil(here: World, name: str, **config: Any) -> None:
    """As a version that refused less might have stored it."""
    stale = update(TrainingRow).where(TrainingRow.name == name).values(server_config=config)
    await here.cycles._table.transact(lambda rows: rows.session.execute(stale) and None)


def test_a_stored_configuration_that_is_refused_today_keeps_no_other_training_from_going_on(tmp_path: Path):
    async def work() -> None:
        async with world(tmp_path) as here:
            await here.host("stale", max_diffs=1)
            await here.host("good", max_diffs=1)
            device = await here.device("stale")
            await spoil(here, "stale", min_diffs=5, max_devices=2)
        async with world(tmp_path) as here:
            stands = await here.stands(name="stale")
            assert stands["phase"] == "failed"
            assert "max_devices is fewer than a cycle needs" in stands["problem"]
            for asked in (here.device("stale"), here.ask(device, "stale"), here.cycles.foresee("stale", None)):
                with pytest.raises(Conflict, match=r"does not go on: .*max_devices.*hosts it anew"):
                    await asked
            assert (await here.checkpoint(name="stale"))["w"].shape == (3, 1)
            await here.report(await here.accepted("good"), diff(1, 1, 1))
            assert (await here.stands(after=0, name="good"))["completed"] == 1
            await here.cycles.ending.delete(ANN, "stale", None)
            with pytest.raises(NotFound):
                await here.stands(name="stale")
        async with world(tmp_path) as here:
            assert [one["name"] for one in here.cycles.ending.hosted()] == ["good"]

    asyncio.run(work())


def test_a_model_whose_file_is_gone_is_shown_as_such(tmp_path: Path):
    async def work() -> None:
        async with world(tmp_path) as here:
            await here.host("lost", max_diffs=1)
            found = await here.cycles._table.transact(lambda rows: rows.checkpoint(1).blob)
            here.cycles.blobs.path(found).unlink()
        async with world(tmp_path) as here:
            stands = await here.stands(name="lost")
            assert (stands["phase"], stands["problem"]) == ("failed", "the file of its model is gone")

    asyncio.run(work())
