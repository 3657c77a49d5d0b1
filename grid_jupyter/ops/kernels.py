"""The allowed operations as callables, with what their schemas say about aliases and mutation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from grid_jupyter.errors import OperationNotAllowedError
from grid_jupyter.ops.allowed import ALLOWED, why_refused
from grid_jupyter.ops.guards import BY_LAYOUT, GUARDS

aten = torch.ops.aten

# torch takes a number for these and looks it up unchecked: a dtype of 1,000 is a crash.
_NAMED = ("ScalarType", "Layout", "MemoryFormat", "Device", "Generator", "Storage", "Stream")
# Kernels that write to arguments although their schema does not say so: positions of those arguments.
_HIDDEN_MUTATION = {"aten.native_batch_norm.default": (3, 4)}
# Kernels whose results are as large as values say, although they are not tagged with it.
_SIZED_BY_VALUES = frozenset({"aten._pack_padded_sequence.default"})


def _zeros_strided(like: torch.Tensor, size: list[int], stride: list[int], **options: Any) -> torch.Tensor:
    made = torch.empty_strided(size, stride, dtype=options.get("dtype") or like.dtype, device=like.device)
    made.untyped_storage().fill_(0)  # type: ignore[attr-defined]  # missing in torch's stubs
    return made


def _apart(views: Callable[..., Any]) -> Callable[..., list[torch.Tensor]]:
    """Copies, strided as the views are that the operation would give."""

    def copies(x: torch.Tensor, size: Any, dim: int = 0) -> list[torch.Tensor]:
        return [_zeros_strided(view, list(view.shape), list(view.stride())).copy_(view) for view in views(x, size, dim)]

    return copies


_REPLACED: dict[str, Callable[..., Any]] = {
    # uninitialised memory holds what was computed before: whatever would be empty is zero instead
    "aten.empty_like.default": aten.zeros_like.default,
    "aten.new_empty.default": aten.new_zeros.default,
    "aten.new_empty_strided.default": _zeros_strided,
    # views that keep a version of their own would let autograd take in what was written to them since
    "aten._unsafe_view.default": aten.view.default,
    "aten.unsafe_split.Tensor": _apart(GUARDS["aten.split.Tensor"]),
    "aten.unsafe_split_with_sizes.default": _apart(GUARDS["aten.split_with_sizes.default"]),
    # a client's tensor cannot carry the conjugate or negative bit, so these are computed
    "aten._conj.default": aten._conj_physical.default,
    "aten._neg_view.default": aten.neg.default,
}


class Kernel(NamedTuple):
    """An operation that may run, and what it does to its arguments."""

    name: str
    run: Callable[..., Any]
    again: Callable[..., Any]  # the same, on arguments of layouts with which it ran before
    overload: Any  # the operation of torch's that `again` is; None where it is more than that
    parameters: tuple[str, ...]
    mutates: frozenset[int]  # positions of the arguments that it writes to
    views: dict[int, int]  # result → argument whose storage it shares
    writes: dict[int, int]  # result → argument that it is (in-place and out= forms)
    results: int
    returns_list: bool
    seeded: bool  # takes from the random generator
    sized: bool  # values tell how large the results are
    tensors: frozenset[int]  # positions of the arguments that are tensors, or lists of them
    lists: frozenset[int]  # positions of the arguments that are lists, of whatever
    named: frozenset[int]  # positions of the arguments that are dtypes and the like, which torch takes as numbers too


def overload(name: str) -> Any:
    """torch's own OpOverload for an allowed full name. Raises OperationNotAllowedError."""
    if name not in ALLOWED:
        raise OperationNotAllowedError(f"{name} does not run on a Node: {why_refused(name)}")
    found = _table().get(name)
    if found is None:
        raise OperationNotAllowedError(f"{name} is not in torch {torch.__version__}, which this side has")
    return found


@functools.cache
def _table() -> dict[str, Any]:
    """Names resolve through this closed table, built from our own list: no name off the wire reaches torch."""
    found = {}
    for full in ALLOWED:
        _, base, variant = full.split(".")
        packet = getattr(aten, base, None)
        if packet is not None and variant in packet.overloads():
            found[full] = getattr(packet, variant)
    return found


@functools.cache
def kernel(name: str) -> Kernel:
    """The operation of that full name. Raises OperationNotAllowedError if it is off the list."""
    op = overload(name)
    schema = op._schema
    holders: dict[str, int] = {}
    mutates = set(_HIDDEN_MUTATION.get(name, ()))
    for position, argument in enumerate(schema.arguments):
        alias = argument.alias_info
        if alias is None:
            continue
        holders.update(dict.fromkeys(alias.before_set, position))
        if alias.is_write:
            mutates.add(position)
    views: dict[int, int] = {}
    writes: dict[int, int] = {}
    for result, returned in enumerate(schema.returns):
        alias = returned.alias_info
        for label in alias.before_set if alias is not None else ():
            if label in holders:
                (writes if alias.is_write else views)[result] = holders[label]
    run = GUARDS.get(name) or _REPLACED.get(name) or op._op  # what an OpOverload calls, without its Python around
    again = op._op if name in BY_LAYOUT else run
    return Kernel(
        name,
        run,
        again,
        op if again is op._op else again if isinstance(again, torch._ops.OpOverload) else None,
        tuple(argument.name for argument in schema.arguments),
        frozenset(mutates),
        views,
        writes,
        len(schema.returns),
        len(schema.returns) == 1 and str(schema.returns[0].type).startswith("List[Tensor"),
        torch.Tag.nondeterministic_seeded in op.tags,
        torch.Tag.dynamic_output_shape in op.tags or name in _SIZED_BY_VALUES,
        frozenset(position for position, argument in enumerate(schema.arguments) if "Tensor" in str(argument.type)),
        frozenset(position for position, argument in enumerate(schema.arguments) if "List[" in str(argument.type)),
        frozenset(
            position
            for position, argument in enumerate(schema.arguments)
            if any(part in str(argument.real_type) for part in _NAMED)
        ),
    )
