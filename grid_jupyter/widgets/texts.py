"""What others wrote, as a view shows it: short, without control and direction characters, as JSON and never as HTML."""

from __future__ import annotations

import math
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
