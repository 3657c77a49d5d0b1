"""Shape inference: what an operation would return, from metadata alone, before anything is sent.

Layouts are interned, so that a cache of results can be keyed by identity: uncached, an operation costs
some 300 µs (FakeTensor); cached, next to nothing.
"""

from __future__ import annotations

import functools
import logging
import threading
from typing import Any

import torch
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._mode_utils import no_dispatch

from grid_jupyter.errors import RemoteOperationError
from grid_jupyter.ops.raw import named

logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

DYNAMIC = (DynamicOutputShapeException, DataDependentOutputException)
"""Raised by `infer` where the result's shape depends on values."""

_aten = torch.ops.aten
# Plain meta kernels are right and cheaper for these.
_META = frozenset(
    {
        _aten.select.int, _aten.slice.Tensor, _aten.view.default, _aten.t.default, _aten.transpose.int,
        _aten.expand.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.permute.default, _aten.mm.default,
        _aten.addmm.default, _aten.unbind.int, _aten.split.Tensor, _aten.diagonal.default,
    }
)  # fmt: skip
_inferring = threading.Lock()  # a FakeTensorMode keeps what it is at in itself: one thread at a time
# Their results have the memory format of the input, which FakeTensor does not know.
_FORMATTED = frozenset({_aten.max_unpool2d.default})
_MAX_LAYOUTS = 200_000


class Layout:
    """Shape, strides and dtype of a tensor; no storage offset, since no shape depends on it."""

    __slots__ = ("dtype", "shape", "stride")

    def __init__(self, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape = shape
        self.stride = stride
        self.dtype = dtype


_layouts: dict[tuple[Any, ...], Layout] = {}


def layout(shape: Any, stride: Any, dtype: torch.dtype) -> Layout:
    """The one Layout object of these values."""
    key = (shape, stride, dtype)
    found = _layouts.get(key)
    if found is None:
        if len(_layouts) >= _MAX_LAYOUTS:
            _layouts.clear()  # layouts in use live on in their tensors; only sharing is lost
        found = Layout(torch.Size(shape), tuple(stride), dtype)
        _layouts[(found.shape, found.stride, dtype)] = found
    return found


def check_dense(tensor: torch.Tensor) -> None:
    """Raises TypeError for a sparse tensor and the like."""
    if tensor.layout != torch.strided:
        raise TypeError(f"a {tensor.layout} tensor cannot go to a Node: only dense ones; see .to_dense()")


def layout_of(tensor: torch.Tensor) -> Layout:
    """The Layout of a local tensor. Raises TypeError for one that is not dense."""
    check_dense(tensor)
    return layout(tensor.shape, tensor.stride(), tensor.dtype)


@functools.cache
def _fake_mode() -> FakeTensorMode:
    """Made at first use: it loads a part of torch that takes more than a second."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def infer(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run `op` on metadata: tensors are given, and returned, as pairs (Layout, storage offset).

    Raises what torch raises for wrong shapes and dtypes, and DYNAMIC where only values can tell.
    """
    options = {key: value for key, value in kwargs.items() if key != "generator"}
    if op in _META:
        with no_dispatch():
            result = op(*_build(args, None), **options)
    else:
        with _inferring:
            mode = _fake_mode()
            built, built_options = _build(args, mode), {key: _build(value, mode) for key, value in options.items()}
            with mode:
                result = op(*built, **built_options)
                if op in _FORMATTED:
                    result = result.contiguous(memory_format=suggest_memory_format(built[0]))
    return _describe(op, result)


def _build(argument: Any, mode: FakeTensorMode | None) -> Any:
    if isinstance(argument, tuple) and len(argument) == 2 and isinstance(argument[0], Layout):
        if mode is None:
            return _empty(argument[0], argument[1], device="meta")
        with mode:
            return _empty(argument[0], argument[1])
    if isinstance(argument, (list, tuple)):
        return [_build(part, mode) for part in argument]
    return argument


def _empty(of: Layout, offset: int, **options: Any) -> torch.Tensor:
    if not offset:
        return torch.empty_strided(of.shape, of.stride, dtype=of.dtype, **options)
    length = offset
    if 0 not in of.shape:
        length += 1 + sum((n - 1) * step for n, step in zip(of.shape, of.stride, strict=True))
    return torch.empty(length, dtype=of.dtype, **options).as_strided(of.shape, of.stride, offset)


def _describe(op: Any, result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        if result.layout != torch.strided:
            raise RemoteOperationError(f"{op} gives a {result.layout} tensor; only strided ones live on a Node")
        named(result.dtype)
        return layout_of(result), result.storage_offset()
    if isinstance(result, (list, tuple)):
        return [_describe(op, part) for part in result]
    return result


# ------------------------------------------------------------------ rows, in plain Python: loops take many of them


def select(of: Layout, offset: int, args: Any) -> tuple[Layout, int] | None:
    """`aten.select.int` on metadata; None leaves it to `infer`. Raises IndexError as torch does."""
    dim, index, rank = args[1], args[2], len(of.shape)
    if type(of) is not Layout or not -rank <= dim < rank:
        return None
    dim %= rank
    length = of.shape[dim]
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of bounds for dimension {dim} with size {length}")
    shape = (*of.shape[:dim], *of.shape[dim + 1 :])
    stride = (*of.stride[:dim], *of.stride[dim + 1 :])
    return layout(torch.Size(shape), stride, of.dtype), offset + (index % length) * of.stride[dim]


def slice_(of: Layout, offset: int, args: Any) -> tuple[Layout, int] | None:
    """`aten.slice.Tensor` with all integers given, on metadata; None leaves it to `infer`."""
    dim, rank, step = args[1], len(of.shape), args[4] if len(args) > 4 else 1
    if type(of) is not Layout or step < 1 or not -rank <= dim < rank:
        return None
    dim %= rank
    rows = range(of.shape[dim])[args[2] : args[3] : step]
    shape = (*of.shape[:dim], len(rows), *of.shape[dim + 1 :])
    stride = (*of.stride[:dim], of.stride[dim] * step, *of.stride[dim + 1 :])
    return layout(torch.Size(shape), stride, of.dtype), offset + rows.start * of.stride[dim]
