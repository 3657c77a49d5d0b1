"""A model's name stays with who first hosted under it: its devices run no plans of somebody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cycle_world import world

from grid_jupyter.errors import Conflict
from grid_jupyter.identity.accounts import Account

ANN = Account(1, "Ann", "Publisher", frozenset(), ())


def test_nobody_else_hosts_under_a_name_while_it_is_hosted_nor_when_it_is_deleted(tmp_path: Path):
    async def work() -> None:
        async with world(tmp_path) as here:
            await here.host("m", owner="Ann")
            for told in ({}, {"takes_over": True}):
                with pytest.raises(Conflict, match="somebody else hosted under this name"):
                    await here.host("m", owner="Eve", version="2.0", **told)
            await here.cycles.ending.delete(ANN, "m", "1.0")
        async with world(tmp_path) as here:
            with pytest.raises(Conflict, match="their devices would train what you host"):
                await here.host("m", owner="Eve")
            await here.host("m", owner="Ann")  # the same account may
            await here.host("m", owner="Ann", version="2.0")
            await here.host("other", owner="Eve")

    asyncio.run(work())


def test_who_manages_the_node_takes_a_name_over_that_nobody_uses(tmp_path: Path):
    async def work() -> None:
        async with world(tmp_path) as here:
            await here.host("m", owner="Ann")
            await here.cycles.ending.delete(ANN, "m", "1.0")
            await here.host("m", owner="Olga", takes_over=True)
            with pytest.raises(Conflict):
                await here.host("m", owner="Ann", version="2.0")

    asyncio.run(work())
