"""What a session holds, as its notebook sees it: live pointers, their size, and the names that keep them alive."""

from __future__ import annotations

import gc
import html
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import torch

from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.tensors.session import Ref, Session
from grid_jupyter.wire.dtypes import nbytes

_MAX_SHOWN = 60
_MAX_PARTS = 1000


class Live(NamedTuple):
    """One remote value that this process holds a pointer to."""

    pointer: RemoteTensor
    shape: tuple[int, ...]
    dtype: str
    nbytes: int  # of its elements; views share their storage with others
    names: tuple[str, ...]  # what holds it, as far as a notebook's variables and outputs tell


class Values(Sequence[Live]):
    """The live values of a session, largest first. Prints as a table."""

    def __init__(self, place: str, found: list[Live]) -> None:
        self._place = place
        self._found = found

    @overload
    def __getitem__(self, index: int) -> Live: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Live]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Live]:
        return iter(self._found)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        shown = [
            (str(one.shape), one.dtype, f"{one.nbytes:,}", ", ".join(one.names) or "(no name)")
            for one in self._found[:_MAX_SHOWN]
        ]
        left = len(self._found) - len(shown)
        return [*shown, ("…", "", "", f"and {left} more")] if left > 0 else shown

    def __repr__(self) -> str:
        if not self._found:
            return f"no pointers to values of this session on {self._place}"
        rows = [("shape", "dtype", "bytes", "held by"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join((row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2].rjust(widths[2]), row[3]))
            for row in rows
        ]
        return f"{len(self._found)} pointers to values of this session on {self._place}\n" + "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def values_of(session: Session) -> Values:
    """The pointers of this process into a session. They are found by the garbage collector's lists, so that
    computing costs nothing for it; published data is not among them, for it lives on without a pointer."""
    held_by = _names()
    found: dict[int, Live] = {}
    for pointer in [one for one in gc.get_objects() if type(one) is RemoteTensor]:
        reference: Any = pointer._ref
        if type(reference) is not Ref or reference.session is not session:
            continue
        names = (*(found[reference.id].names if reference.id in found else ()), *held_by.get(id(pointer), ()))
        shape = tuple(pointer._layout.shape)
        dtype = str(pointer._layout.dtype).removeprefix("torch.")
        known = all(type(length) is int for length in shape)
        found[reference.id] = Live(pointer, shape, dtype, nbytes(dtype, shape) if known else 0, names)
    return Values(str(session.place.id), sorted(found.values(), key=lambda one: -one.nbytes))


def forget_outputs() -> None:
    """Let go of pointers that a notebook keeps as results of its cells: `Out[n]`, `_n`, `_`, `__` and `___`."""
    shell = _shell()
    if shell is None:
        return
    outputs = shell.user_ns.get("Out", {})
    for number in [number for number, value in outputs.items() if isinstance(value, RemoteTensor)]:
        del outputs[number]
        for names in (shell.user_ns, shell.user_ns_hidden):
            names.pop(f"_{number}", None)
    for name in ("_", "__", "___"):
        if isinstance(shell.user_ns.get(name), RemoteTensor):
            shell.user_ns[name] = shell.user_ns_hidden[name] = ""
            setattr(shell.displayhook, name, "")


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _names() -> dict[int, tuple[str, ...]]:
    """Names of what a notebook's variables hold, by the object's identity."""
    shell = _shell()
    namespace = shell.user_ns if shell is not None else vars(sys.modules["__main__"])
    names: dict[int, tuple[str, ...]] = {}

    def note(name: str, value: Any) -> None:
        if isinstance(value, RemoteTensor):
            names[id(value)] = (*names.get(id(value), ()), name)

    for name, value in list(namespace.items()):
        note(name, value)
        if isinstance(value, torch.nn.Module):
            for part, tensor in [*value.named_parameters(), *value.named_buffers()]:
                note(f"{name}.{part}", tensor)
        elif isinstance(value, dict):
            for key, part in list(value.items())[:_MAX_PARTS]:
                note(f"{name}[{key!r:.40}]", part)
        elif type(value) in (list, tuple):
            for index, part in enumerate(value[:_MAX_PARTS]):
                note(f"{name}[{index}]", part)
    return names
