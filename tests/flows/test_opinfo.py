"""PyTorch's own operator database on a real Node: what the documentation says does not run is refused, others agree."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from node_world import GridProcess
from opinfo.samples import OPERATORS
from opinfo.table import AGREES, NOWHERE, REFUSED, Verdict, table

from grid_jupyter import NodeClient, TorchHook

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
EVERY = 6
"""One of so many operators is tried here; `python -m tests.opinfo` tries all of them."""

ALWAYS = ("masked_select", "nonzero", "tensor_split", "unique", "unique_consecutive")
"""Values tell how large the results of these are: they are tried each time."""


def documented() -> set[str]:
    """The operators that the documentation lists as not agreeing."""
    section = re.search(r"^## What of torch's operator database.*?\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    assert section
    cells = [line.split("|")[1] for line in section[1].splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.fixture
def verdicts(bob: GridProcess, hook: TorchHook) -> Callable[..., dict[str, Verdict]]:
    """Tries operators on Bob's Node: names, and how many samples of each."""

    def tried(names: list[str], samples: int) -> dict[str, Verdict]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return {one.operator: one for one in table(names, lambda: NodeClient(None, bob.address), samples, None)}
        finally:
            torch.set_num_threads(threads)

    return tried


def test_operators_that_are_documented_as_refused_are_refused_with_the_reason(
    verdicts: Callable[..., dict[str, Verdict]],
):
    found = verdicts(sorted(documented()), 400)
    assert {name: one for name, one in found.items() if one.outcome not in (REFUSED, NOWHERE)} == {}
    assert all(one.reason for one in found.values())


def test_all_other_operators_agree_with_local_torch(verdicts: Callable[..., dict[str, Verdict]]):
    others = sorted(set(OPERATORS) - documented())
    assert len(others) >= 640
    found = verdicts(sorted({*others[::EVERY], *ALWAYS}), 2)
    assert {name: one for name, one in found.items() if one.outcome != AGREES} == {}
    assert sum(one.gradients for one in found.values()) > len(found)


def test_lengths_that_depend_on_values_are_right_for_all_samples(verdicts: Callable[..., dict[str, Verdict]]):
    found = verdicts(list(ALWAYS), 400)
    assert {name: one for name, one in found.items() if one.outcome != AGREES} == {}


def test_the_documentation_counts_them(verdicts: Callable[..., dict[str, Verdict]]):
    left = len(OPERATORS) - len(documented())
    assert f"{left} of its {len(OPERATORS)} entries" in PAGE
