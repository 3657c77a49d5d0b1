"""Tensors of whole numbers in a training: what would leave the range of their dtype stays at its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy
import pytest
from cycle_world import MODEL, World, world
from safetensors.numpy import save

from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import Form


@pytest.mark.parametrize("strategy", ["FedAvg", "Median"])
@pytest.mark.parametrize(("before", "diff", "after"), [
    (2**63 - 5, -100, 2**63 - 1), (-(2**63) + 5, 100, -(2**63)), (-2, -(2**63), 2**63 - 3), (7, -3, 10),
])  # fmt: skip
def test_a_count_that_would_wrap_around_stays_at_the_end(
    tmp_path: Path, strategy: str, before: int, diff: int, after: int
):
    async def work(here: World) -> int:
        await here.host(model={**MODEL, "n": numpy.int64([before])}, strategy=strategy, min_diffs=3, max_diffs=3)
        for _ in range(3):
            report = save({"w": numpy.zeros((3, 1), numpy.float32), "n": numpy.int64([diff])})
            await here.report(await here.accepted(), report)
        assert (await here.stands(after=0))["completed"] == 1
        return int((await here.checkpoint())["n"][0])

    async def whole() -> int:
        async with world(tmp_path) as here:
            return await work(here)

    found = asyncio.run(whole())
    assert found == after if abs(diff) < 2**53 else abs(found - after) <= 1024  # means are float64


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_a_mean_of_the_largest_numbers_is_none_of_the_smallest(dtype: str):
    most = numpy.iinfo(dtype).max
    fold = Fold(Form((("n", numpy.dtype(dtype), (1,)),)))
    for _ in range(2):
        fold.add({"n": numpy.array([most], dtype)})
    mean = int(fold.mean()["n"][0])
    assert most - 1024 < mean <= most if dtype == "int64" else mean == most
