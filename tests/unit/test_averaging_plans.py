"""Averaging plans of hosts, run over the diffs of a cycle as 0.2.9 did, in a process of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from cycle_world import MODEL, World, diff, world
from plan_documents import linear
from safetensors.numpy import save

from grid_jupyter.aggregation.diffs import packed
from grid_jupyter.aggregation.form import Form
from grid_jupyter.cycles.averaging_plan import check_averaging
from grid_jupyter.cycles.terms import read_terms
from grid_jupyter.errors import BadRequest
from grid_jupyter.plans.document import canonical
from grid_jupyter.plans.reader import read_plan


def run(state: Path, work: Callable[[World], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        async with world(state) as here:
            return await work(here)

    return asyncio.run(whole())


def argument(name: str, shape: list[Any], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "role": "arg", "dtype": dtype, "shape": shape}


W, LIKE_W = [3, 1], [["float32", [3, 1]]]


def iterative(**changes: Any) -> dict[str, Any]:
    """(avg * num + item) / (num + 1), as the notebooks of 0.2.9 host it."""
    tree = linear(
        kind="average", batch={"min": 1, "max": 1},
        takes={"tuple": [{"list": ["*"]}, {"list": ["*"]}, "*"]}, gives={"list": ["*"]},
        inputs=[argument("0.0", W), argument("1.0", W), argument("2", [1])],
        nodes=[
            ["mul", ["%0", "%2"], LIKE_W], ["add", ["%3", "%1"], LIKE_W], ["add", ["%2", 1], [["float32", [1]]]],
            ["div", ["%4", "%5"], LIKE_W],
        ],
        outputs=[{"name": "0", "role": "result", "value": "%6"}],
    )  # fmt: skip
    return {**tree, **changes}


def largest(count: int, **changes: Any) -> dict[str, Any]:
    """The largest of so many diffs, coordinate by coordinate."""
    nodes = [["maximum", ["%0" if k == 1 else f"%{count + k - 2}", f"%{k}"], LIKE_W] for k in range(1, count)]
    return {
        **iterative(),
        "takes": {"tuple": [{"list": [{"list": ["*"]}] * count}]},
        "inputs": [argument(f"0.{k}.0", W) for k in range(count)],
        "nodes": nodes,
        "outputs": [{"name": "0", "role": "result", "value": f"%{2 * count - 2}"}],
        **changes,
    }


def test_an_iterative_plan_is_given_average_diff_and_number_one_diff_after_the_other(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(averaging=iterative(), iterative_plan=True, max_diffs=3)
        for cycle in range(2):
            reports = [diff(1, 2, 3), diff(2, -2, 9), save(packed({"w": numpy.float32([[6], [3], [0]])}, "float16"))]
            for report in reports:
                await here.report(await here.accepted(), report, 1000)  # samples are not a plan's
            assert (await here.stands(after=cycle))["problem"] == ""
        mean = numpy.array([[3], [1], [4]])
        numpy.testing.assert_allclose((await here.checkpoint("2"))["w"], MODEL["w"] - mean, rtol=1e-5)
        numpy.testing.assert_allclose((await here.checkpoint())["w"], MODEL["w"] - 2 * mean, rtol=1e-5)

    run(tmp_path, work)
    run(tmp_path, World.stands)
    assert len(list((tmp_path / "training").iterdir())) == 5  # two plans, three models


def test_a_plain_plan_is_given_all_diffs_at_once_also_after_a_restart(tmp_path: Path):
    async def before(here: World) -> None:
        await here.host(averaging=largest(2), min_diffs=2, max_diffs=2)
        await here.report(await here.accepted(), diff(1, 2, 3))

    async def after(here: World) -> None:
        await here.report(await here.accepted(), diff(5, -2, 0))
        await here.stands(after=0)
        expected = MODEL["w"] - numpy.array([[5], [2], [3]])
        numpy.testing.assert_allclose((await here.checkpoint())["w"], expected, rtol=1e-6)

    run(tmp_path, before)
    run(tmp_path, after)


def test_a_plan_whose_average_is_no_diff_makes_no_checkpoint_and_says_so_to_who_follows(tmp_path: Path):
    nodes = [["sub", ["%0", "%0"], LIKE_W], ["div", ["%0", "%2"], LIKE_W]]
    outputs = [{"name": "0", "role": "result", "value": "%3"}]

    async def work(here: World) -> None:
        plan = largest(2, nodes=nodes, outputs=outputs)
        await here.host(averaging=plan, min_diffs=2, max_diffs=2)
        for _ in range(2):
            await here.report(await here.accepted(), diff(1, 1, 1))
        live = here.cycles._live[1]
        until = asyncio.get_running_loop().time() + 30
        while not live.problem:
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.02)
        stands = live.told()
        assert "NaN or infinite" in stands["problem"]
        assert (stands["phase"], stands["completed"], stands["reports"]) == ("closing", 0, 2)

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("plan", "config", "said"),
    [
        (iterative(), {"max_diffs": 3}, "a list of diffs"),
        (largest(2), {"max_diffs": 2, "iterative_plan": True}, r"takes \(average, diff, number\)"),
        (largest(2), {"max_diffs": 3, "min_diffs": 3}, "is of 2 diffs: min_diffs=2 and max_diffs=2"),
        (largest(2), {"max_diffs": 2}, "is of 2 diffs: min_diffs=2 and max_diffs=2"),
        (iterative(), {"iterative_plan": True, "strategy": "FedAdam"}, "an averaging plan or a strategy"),
        (linear(), {}, "without state or noise"),
        (iterative(inputs=[argument("0.0", W), argument("1.0", W), argument("2", [3, 1])]), {"iterative_plan": True},
         "takes .average, diff, number.|gives"),
        (largest(2, outputs=[]), {"max_diffs": 2, "min_diffs": 2}, "gives a list of tensors|output|gives"),
        (largest(2, nodes=[["exp", ["%0"], [["float32", [9]]]]],
                 outputs=[{"name": "0", "role": "result", "value": "%2"}]),
         {"max_diffs": 2, "min_diffs": 2}, "it gives"),
        (largest(2, nodes=[["mul", ["%0", "%1"], LIKE_W], ["sum", ["%2", [0], True], [["float32", [1, 1]]]]],
                 outputs=[{"name": "0", "role": "result", "value": "%3"}]),
         {"max_diffs": 2, "min_diffs": 2}, "gives a list of tensors like the model's"),
        (largest(2, nodes=[["open", ["%0"], LIKE_W]]), {"max_diffs": 2, "min_diffs": 2}, "open|no operation"),
    ],
)  # fmt: skip
def test_a_plan_that_could_not_average_is_refused_with_the_reason(
    tmp_path: Path, plan: dict[str, Any], config: dict[str, Any], said: str
):
    async def work(here: World) -> None:
        with pytest.raises(BadRequest, match=said):
            await here.host(averaging=plan, **config)

    run(tmp_path, work)


def test_what_all_diffs_take_at_once_is_bounded_when_the_plan_is_hosted():
    rows, count = 1 << 27, 5  # 512 MiB each
    like = [["float32", [rows, 1]]]
    tree = largest(count)
    tree["inputs"] = [argument(f"0.{k}.0", [rows, 1]) for k in range(count)]
    tree["nodes"] = [[name, arguments, like] for name, arguments, _ in tree["nodes"]]
    form = Form((("w", numpy.dtype("float32"), (rows, 1)),))
    terms = read_terms({"min_diffs": count, "max_diffs": count})
    with pytest.raises(BadRequest, match=r"5 diffs of 536870912 bytes.*one after the other with iterative_plan"):
        check_averaging(read_plan(canonical(tree)), False, form, terms)
