"""Tensors as raw bytes and back, without a copy where that is possible."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from grid_jupyter.errors import InvalidMessageError, RemoteOperationError
from grid_jupyter.wire.dtypes import ITEM_BYTES, nbytes
from grid_jupyter.wire.limits import MAX_RANK

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_AS_THEY_ARE = frozenset({
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32,
    torch.float64,
})  # fmt: skip
"""Dtypes whose elements a memoryview knows, too."""


def named(dtype: torch.dtype) -> str:
    """Our name of a dtype. Raises RemoteOperationError for one that no Node keeps."""
    name = NAMES.get(dtype)
    if name is None:
        raise RemoteOperationError(f"tensors of {dtype} do not live on a Node; use one of {', '.join(DTYPES)}")
    return name


def to_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a strided tensor in row-major order; a view if the tensor is contiguous, and on the CPU."""
    count = tensor.numel()
    if count == 0:
        return memoryview(b"")
    array: Any
    if _is_in_order(tensor):  # most are: the same as below, in short
        array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
        return memoryview(array).cast("B")
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    # as_strided: a dimension of size 1 may have any stride and still count as contiguous
    array = flat.as_strided((count,), (1,)).view(torch.uint8).numpy()
    return memoryview(array)


def _is_in_order(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie in memory as they are to be told, and numpy and memoryview know their dtype."""
    return (
        tensor.dtype in _AS_THEY_ARE
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and tensor.device.type == "cpu"
    )


def from_bytes(data: bytes | bytearray | memoryview, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of that dtype and shape. Writable buffers are used as they are, others copied.

    Raises InvalidMessageError if the bytes do not make such a tensor.
    """
    check_layout(dtype, shape)
    if nbytes(dtype, shape) != len(data):
        raise InvalidMessageError(f"a tensor of {dtype} {shape} has {nbytes(dtype, shape)} bytes, not {len(data)}")
    if not len(data):
        return torch.zeros(shape, dtype=DTYPES[dtype])
    buffer: Any = data if type(data) is bytearray or not memoryview(data).readonly else bytearray(data)
    flat = torch.frombuffer(buffer, dtype=DTYPES[dtype])
    return flat if len(shape) == 1 else flat.reshape(shape)


def mapped(data: memoryview, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor over memory as it lies, which may be read-only: nothing is copied, and nobody may write to it.

    Raises InvalidMessageError if the bytes do not make such a tensor.
    """
    check_layout(dtype, shape)
    if nbytes(dtype, shape) != len(data):
        raise InvalidMessageError(f"a tensor of {dtype} {shape} has {nbytes(dtype, shape)} bytes, not {len(data)}")
    if not len(data):
        return torch.zeros(shape, dtype=DTYPES[dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the memory is read-only
        return torch.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)


def check_layout(dtype: str, shape: tuple[int, ...]) -> None:
    """Raises InvalidMessageError unless dtype and shape could be those of a tensor."""
    if dtype not in DTYPES or len(shape) > MAX_RANK or any(type(n) is not int or n < 0 for n in shape):
        raise InvalidMessageError("a tensor needs a known dtype and a shape of non-negative integers")
    if nbytes(dtype, tuple(max(n, 1) for n in shape)) >= 1 << 63:  # strides are computed without the zeros
        raise InvalidMessageError("a tensor of that shape is larger than 64 bits can address")
