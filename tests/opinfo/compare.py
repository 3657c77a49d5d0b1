"""Compares what an operator gave here with what it gave on a Node: structure, dtypes, shapes, strides, values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grid_jupyter.tensors.remote import RemoteTensor


class Differs(Exception):
    """The results are not the same; the text says in what."""


def flat(value: Any) -> Iterator[Any]:
    """The parts of a result that are not lists, tuples or dicts."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from flat(part)
    elif isinstance(value, dict):
        yield from flat(list(value.values()))
    else:
        yield value


def same_result(local: Any, remote: Any, values: bool = True) -> None:
    """Raises Differs. Without `values` (uninitialised memory), only what the result looks like."""
    here, there = list(flat(local)), list(flat(remote))
    if len(here) != len(there):
        raise Differs(f"{len(here)} results here, {len(there)} there")
    for one, other in zip(here, there, strict=True):
        if isinstance(one, torch.Tensor):
            if not isinstance(other, torch.Tensor):
                raise Differs(f"a tensor here, {type(other).__name__} there")
            same_layout(one, other)
            if values:
                same_values(one.detach(), fetched(other))
        elif isinstance(other, torch.Tensor) or not _equal(one, other):
            raise Differs(f"{one!r} here, {other!r} there" if not isinstance(other, torch.Tensor) else "a number here")


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))


def fetched(tensor: Any) -> torch.Tensor:
    """The values of a pointer; a local tensor as it is."""
    if type(tensor) is not RemoteTensor:
        return tensor.detach()
    found: torch.Tensor = tensor._ref.session.read(tensor._ref.id)[0]
    return found


def same_layout(local: torch.Tensor, remote: Any) -> None:
    """The pointer says of itself what the local tensor does, and the value in the Worker is so."""
    said = [("the pointer", remote.dtype, remote.shape, remote.stride())]
    if type(remote) is RemoteTensor:
        remote.shape[:1].numel().__index__()  # asks for a length that is not known yet
        said = [("the pointer", remote.dtype, remote._layout.shape, remote._layout.stride)]
    if type(remote) is RemoteTensor:
        ((of, offset),) = remote._ref.session.sizes([remote._ref.id])
        said.append(("the Worker", of.dtype, of.shape, of.stride))
        if offset != remote._offset:
            raise Differs(f"storage offset {remote._offset} at the pointer, {offset} in the Worker")
    for who, dtype, shape, stride in said:
        if dtype != local.dtype:
            raise Differs(f"{local.dtype} here, {dtype} says {who}")
        if tuple(shape) != tuple(local.shape):
            raise Differs(f"shape {tuple(local.shape)} here, {tuple(shape)} says {who}")
        if _significant(shape, stride) != _significant(local.shape, local.stride()):
            raise Differs(f"strides {local.stride()} of shape {tuple(local.shape)} here, {tuple(stride)} says {who}")


def _significant(shape: Any, stride: Any) -> list[int]:
    """Strides that lead anywhere: not those of dimensions of size 1, none of an empty tensor."""
    return [] if 0 in shape else [step for size, step in zip(shape, stride, strict=True) if size > 1]


def same_values(local: torch.Tensor, remote: torch.Tensor) -> None:
    """Equal, or as close as torch asks of its own kernels."""
    here = local.resolve_conj().resolve_neg()
    try:
        torch.testing.assert_close(remote, here, rtol=0, atol=0, equal_nan=True, check_stride=False)
    except AssertionError:
        try:
            torch.testing.assert_close(remote, here, equal_nan=True, check_stride=False)
        except AssertionError as error:
            raise Differs("values: " + " ".join(str(error).split())[:200]) from None


class SeededAsRemote(TorchDispatchMode):
    """Seeds each random operation as a client seeds a Worker, so that random results can be compared, too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False  # whether there was one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # what takes no tensor is drawn on this side either way
        if torch.Tag.nondeterministic_seeded not in func.tags or not any(
            isinstance(a, torch.Tensor) for a in flat(args)
        ):
            return func(*args, **(kwargs or {}))
        self.seen = True
        seed = int(torch.randint(0, 2**31 - 1, ()).item())
        state = torch.get_rng_state()
        try:
            torch.manual_seed(seed)
            return func(*args, **(kwargs or {}))
        finally:
            torch.set_rng_state(state)
