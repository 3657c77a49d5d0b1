"""What others wrote, as a page shows it: short, without control and direction characters, as JSON and never as HTML."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from grid_jupyter.tensors.text import plain

NAME_CHARS = 200
TEXT_CHARS = 2_000
LINES = 2_000
"""Lines of a text, such as a plan, that are shown."""


def name(text: object) -> str:
    """A name, in one line."""
    return plain(str(text), NAME_CHARS)


def line(text: object) -> str:
    """A sentence, in one line."""
    return plain(str(text), TEXT_CHARS)


def block(text: object) -> str:
    """A text of several lines."""
    found = str(text).split("\n")
    shown = [plain(one, TEXT_CHARS) for one in found[:LINES]]
    return "\n".join([*shown, f"… and {len(found) - LINES} lines more"] if len(found) > LINES else shown)


def number(value: Any) -> float | None:
    """A number that JSON has; None for one that it has not."""
    try:
        return value if isinstance(value, (int, float)) and math.isfinite(value) else None
    except OverflowError:  # a whole number that no float has
        return None


def changes(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    """What is new and what is gone, line by line behind "+ ", "- " and "  ", by their longest common part.

    Takes a second or two for twice 2,000 lines that differ everywhere; difflib takes many minutes where they are alike.
    """
    shorter = min(len(before), len(after))
    begin = next((k for k in range(shorter) if before[k] != after[k]), shorter)
    end = next((k for k in range(shorter - begin) if before[-1 - k] != after[-1 - k]), shorter - begin)
    numbers: dict[str, int] = {}
    old, new = (
        [numbers.setdefault(one, len(numbers)) for one in lines[begin : len(lines) - end]] for lines in (before, after)
    )
    common = [array("H", bytes(2 * len(new) + 2))]  # of what is left from each pair of lines on; the last line first
    for one in reversed(old):
        behind, row = common[-1], array("H", bytes(2 * len(new) + 2))
        for k in range(len(new) - 1, -1, -1):
            if one == new[k]:
                row[k] = behind[k + 1] + 1
            else:
                row[k] = max(row[k + 1], behind[k])
        common.append(row)
    yield from ("  " + one for one in before[:begin])
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:
            yield "  " + before[begin + i]
            i, j = i + 1, j + 1
        elif j == len(new) or (i < len(old) and common[-2 - i][j] >= common[-1 - i][j + 1]):
            yield "- " + before[begin + i]
            i += 1
        else:
            yield "+ " + after[begin + j]
            j += 1
    yield from ("  " + one for one in before[len(before) - end :])
