"""Which calls of which operation were survived, kept in a file, so that runs add up.

What counts for an operation is what runs there: its schema, the guard in front of it, torch. When one of them
changes, its count starts anew.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from grid_jupyter.ops.kernels import kernel, overload

Span = tuple[int, int]


class Entry:
    """What is known of one operation, as what it is now."""

    def __init__(self, mark: str, given: dict[str, Any] | None = None) -> None:
        given = given or {}
        self.mark = mark
        self.spans: dict[str, list[Span]] = {s: [(a, b) for a, b in x] for s, x in given.get("spans", {}).items()}
        """Calls made, from number to number, by seed."""
        self.results: int = given.get("results", 0)
        self.cut: int = given.get("cut", 0)
        """Calls that took too long, and were ended."""
        self.crashes: int = given.get("crashes", 0)

    @property
    def survived(self) -> int:
        """Calls that went to their end, with a result or an error in words."""
        made = sum(last - first for spans in self.spans.values() for first, last in spans)
        return made - self.cut - self.crashes

    def add(self, seed: str, first: int, last: int) -> None:
        """Calls that were made."""
        if last <= first:
            return
        spans = sorted([*self.spans.get(seed, []), (first, last)])
        merged = spans[:1]
        for begin, end in spans[1:]:
            if begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        self.spans[seed] = merged

    def missing(self, seed: str, first: int, wanted: int, piece: int) -> list[Span]:
        """Calls still to be made, in pieces, so that `wanted` are survived in all."""
        left = wanted - self.survived
        found: list[Span] = []
        at = first
        for begin, end in [*self.spans.get(seed, []), (1 << 62, 1 << 62)]:
            while at < begin and left > 0:
                step = min(piece, left, begin - at)
                found.append((at, at + step))
                at, left = at + step, left - step
            at = max(at, end)
        return found


class Survived:
    """The table of all operations asked for, and its file, if it has one."""

    def __init__(self, names: list[str], path: Path | None) -> None:
        self._path = path
        self._kept: dict[str, Any] = {}
        self._written = 0.0
        if path is not None and path.exists():
            self._kept = json.loads(path.read_text())["operations"]
        self.entries: dict[str, Entry] = {}
        for name in names:
            mark, given = mark_of(name), self._kept.get(name)
            self.entries[name] = Entry(mark, given if given is not None and given["mark"] == mark else None)

    def write(self, seldom: bool = False) -> None:
        """Keep it; with `seldom` not more than once in some seconds."""
        if self._path is None or (seldom and time.monotonic() - self._written < 5):
            return
        rows = {**self._kept, **{name: vars(entry) for name, entry in self.entries.items()}}
        text = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()))
        made = self._path.with_suffix(".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(f'{{"torch": {json.dumps(torch.__version__)}, "operations": {{\n{text}\n}}}}\n')
        made.replace(self._path)
        self._written = time.monotonic()


def mark_of(name: str) -> str:
    """A hash of what runs for an operation: torch's version, the schema, what we know of it, the guard's source."""
    known = kernel(name)
    parts = [torch.__version__, str(overload(name)._schema)]
    parts += [repr(sorted(field) if isinstance(field, frozenset) else field) for field in known if field != known.run]
    parts += _sources(known.run, set())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _sources(run: Any, seen: set[int]) -> list[str]:
    """The source of a guard, of our functions that it calls, and what it was made for."""
    if id(run) in seen:
        return []
    seen.add(id(run))
    if not isinstance(run, FunctionType):
        # what torch made of the schema has no text but an address
        return [str(run)] if isinstance(run, (torch._ops.OpOverload, int, str, list, tuple)) else []
    if not run.__module__.startswith("grid_jupyter."):
        return []
    parts = [inspect.getsource(run)]
    for cell in run.__closure__ or ():
        parts += _sources(cell.cell_contents, seen)
    for used in sorted(_names(run.__code__)):
        parts += _sources(run.__globals__.get(used), seen)
    return parts


def _names(code: Any) -> set[str]:
    inner = [part for part in code.co_consts if inspect.iscode(part)]
    return set(code.co_names).union(*map(_names, inner))
