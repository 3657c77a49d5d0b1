"""Tutorials that two play: `…-owner.ipynb` and `…-scientist.ipynb` run at the same time, and wait for one another."""

from __future__ import annotations

from pathlib import Path

_SIDES = {"-owner": "-scientist", "-scientist": "-owner"}


def other_side(notebook: Path) -> Path | None:
    """The notebook that has to run beside this one, if it is one of two."""
    for side, other in _SIDES.items():
        if notebook.stem.endswith(side):
            return notebook.with_name(notebook.stem.removesuffix(side) + other + notebook.suffix)
    return None
