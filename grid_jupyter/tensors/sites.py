"""Which line issued an operation: kept for the latest ones, since errors of operations come at a later read."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

_KEPT = 1 << 15  # a power of two: ids of a session follow one another
_INSIDE = tuple(f"{Path(str(module.__file__)).parent}/" for module in (torch, sys.modules["grid_jupyter"]))
_inside: dict[str, bool] = {}


class Sites:
    """Call sites of the operations of one session, by the id of their result."""

    __slots__ = ("_ring",)

    def __init__(self) -> None:
        self._ring: list[tuple[int, CodeType, int] | None] = [None] * _KEPT

    def note(self, identity: int, frame: FrameType | None) -> None:
        """The operation that makes `identity` was issued here: at the first frame that is neither torch's nor ours."""
        while frame is not None:
            code = frame.f_code
            inside = _inside.get(code.co_filename)
            if inside is None:
                inside = _inside[code.co_filename] = code.co_filename.startswith(_INSIDE)
            if not inside:
                self._ring[identity & (_KEPT - 1)] = (identity, code, frame.f_lasti)
                return
            frame = frame.f_back

    def text(self, identity: int) -> str:
        """`In[3], line 2: z = x @ y`; empty if it is not known, or no longer."""
        found = self._ring[identity & (_KEPT - 1)]
        if found is None or found[0] != identity:
            return ""
        _, code, instruction = found
        line = next((at for begin, end, at in code.co_lines() if begin <= instruction < end and at), 0)
        source = linecache.getline(code.co_filename, line).strip()
        return f"{_file(code.co_filename)}, line {line}" + (f": {source}" if source else "")


def _file(name: str) -> str:
    """A cell as notebooks call it, `In[3]`; else the file's name."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    cell = shell.compile.format_code_name(name) if shell is not None else None
    if cell and len(cell) == 2 and "[" in cell[1]:
        return str(cell[1])
    return Path(name).name if name else "?"
