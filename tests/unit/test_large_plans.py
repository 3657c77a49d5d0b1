"""Plans of tens of thousands of nodes: who hosts one keeps nobody else waiting, and it is read as a small one is."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cycle_world import world
from plan_documents import linear

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans.document import canonical, parsed


def long_plan(nodes: int) -> dict[str, Any]:
    tree = linear()
    more = [["mul", ["%5", ["/", 2.0, "B"]], [["float32", ["B", 1]]]] for _ in range(nodes)]
    return {**tree, "nodes": tree["nodes"] + more}


def test_the_event_loop_goes_on_while_a_plan_of_many_nodes_is_hosted(tmp_path: Path):
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            began = time.process_time()  # what others of this machine take does not count
            await asyncio.sleep(0.001)
            longest = max(longest, time.process_time() - began)

    async def go() -> None:
        async with world(tmp_path) as here:
            plan = long_plan(30_000)
            beating = asyncio.create_task(beat())
            await here.host(plan=plan, max_diffs=1)
            beating.cancel()
            assert gc.isenabled()
            with pytest.raises(PlanInvalidError):
                await here.host("other", plan=linear(kind="none"), max_diffs=1)
            assert gc.isenabled(), "also when it was refused"

    asyncio.run(go())
    assert longest < 0.2, longest


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2.5, "\\u00e9", [{"b": null}], -0.0, 1e400], "b": {"c": [1]}, "a": [ ]}',
        ' { "a" : [ 1 , 2 ] } ',
        "[1, 2]",
        "3",
    ],
)
def test_json_that_is_read_entry_by_entry_is_what_it_always_was(text: str):
    assert parsed(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["", "{", '{"a": [1,]}', '{"a": [01]}', '{"a": 1} 2', "[" * 100_000])
def test_what_is_no_json_is_none(text: str):
    with pytest.raises((ValueError, RecursionError)):
        parsed(text.encode())


def test_the_one_spelling_of_a_plan_is_still_the_same():
    tree = json.loads(json.dumps(long_plan(10)))
    assert canonical(tree) == json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
