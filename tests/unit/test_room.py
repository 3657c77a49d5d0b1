"""Memory for large values that come in: its pages are made before they are filled, and hold what came."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from grid_jupyter.link.room import Pages, fresh

SIZE = (7 << 20) + 4096 + 5


def test_memory_that_is_filled_piece_by_piece_holds_what_came():
    data, memory, at = os.urandom(SIZE), fresh(SIZE), 0
    pages = Pages(memory)
    for length in itertools.cycle((1, 70_000, 4096, 3 << 20, 999)):
        if at >= SIZE:
            break
        pages.make(at + length)
        memory[at : at + length] = data[at : at + length]
        at = min(at + length, SIZE)
    assert memory[:] == data


def test_memory_of_which_no_page_was_made_holds_nothing_of_others():
    assert fresh(SIZE)[:] == bytes(SIZE)


def test_huge_pages_that_take_too_long_are_asked_for_no_more():
    asked = itertools.count(0, 50)  # 50 s for each
    memory = fresh(64 << 20)
    Pages(memory, lambda: float(next(asked))).make(64 << 20)
    assert next(asked) == 100, "the first one was enough"
    memory[32 << 20] = 1
    for mapped in Path("/proc/self/smaps").read_text().split("VmFlags:")[:-1]:
        if "Size:              65536 kB" in mapped:
            assert "AnonHugePages:         0 kB" in mapped or "AnonHugePages:      2048 kB" in mapped
