"""Sizes that depend on private values, in the Worker: how much memory they take cannot be felt from outside of them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

_FEEL = """
import json, resource, sys, torch
from grid_jupyter.errors import GridError
from grid_jupyter.wire import commands as c, frames
from grid_jupyter.worker.executor import Broken, Executor
from grid_jupyter.worker.memory import data_bytes

chosen, rows, keep, gradient = json.loads(sys.argv[1])
torch.set_num_threads(1)
MEMORY = 256 << 20
resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + MEMORY,) * 2)
executor = Executor(MEMORY)
executor.closed = 1
feed = lambda *batch: executor.feed(frames.encode(list(batch)))
secret = torch.zeros(rows)
secret[:chosen] = 1
executor.put(1, secret, 1, frozen=True)
executor.put(2, torch.zeros(1 << 20))
feed(
    [c.DEFINE, 0, "aten.gt.Scalar", ["r", "d"], []],
    [c.DEFINE, 1, "aten.index.Tensor", ["r", ["L", ["r"]]], []],
    [c.DEFINE, 2, "aten.exp.default", ["r"], []],
    [c.DEFINE, 3, "aten.new_zeros.default", ["r", "d"], []],
    [c.DEFINE, 4, "aten.clone.default", ["r"], []],
    [c.DEFINE, 5, "aten.mul.Tensor", ["r", "r"], []],
    [0, 3, 1, 0],
    [4, 4, 1],
)
if gradient:
    feed([c.REQUIRE_GRAD, 4, True])
feed([1, 10, 4, 3])
for number in range(keep):
    feed([2, 20 + 2 * number, 10], [5, 21 + 2 * number, 20 + 2 * number, 10])
assert not isinstance(executor.read(19 + 2 * keep), Broken)
feed([c.FREE, *range(20, 20 + keep)])
taken = 0
try:
    while True:  # fill what is left, by megabytes
        feed([3, 1_000_000 + taken, 2, [1 << 18]])
        if isinstance(executor.read(1_000_000 + taken), Broken):
            break
        taken += 1
except GridError as error:
    print(json.dumps([taken, error.code]))
"""


def felt(chosen: int, rows: int, keep: int, gradient: bool) -> list[Any]:
    """Megabytes that a session can still fill after `keep` results of a hidden size, and how that ends."""
    arguments = json.dumps([chosen, rows, keep, gradient])
    done = subprocess.run(
        [sys.executable, "-c", _FEEL, arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return list(json.loads(done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("gradient", [False, True])
def test_the_memory_that_is_left_does_not_tell_how_many_rows_were_chosen(gradient: bool):
    (few, ended), (many, _) = (felt(chosen, 1 << 19, 16, gradient) for chosen in (1, 1 << 19))
    assert abs(few - many) <= 1  # of the 64 MB more that the many take
    assert ended == "limit-exceeded", "a session that feels for the limit ends there"
