"""Named arrays as the bytes of a safetensors file, and back. NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.errors import InvalidDataError
from grid_jupyter.wire.safetensors import PREFIX_BYTES, build_header, header_length, parse_header

Array = NDArray[Any]


def write_arrays(arrays: Mapping[str, Array]) -> bytes:
    """The file of these arrays, in this order. Raises InvalidDataError for a dtype that does not travel."""
    return bytes(write_into(bytearray(), arrays))


def write_into(memory: bytearray, arrays: Mapping[str, Array]) -> bytearray:
    """The same in this memory, if that is as long as the file, else in new one."""
    data, places = room_for(memory, arrays)
    for name, array in arrays.items():
        places[name][...] = array
    return data


def room_for(memory: bytearray, arrays: Mapping[str, Array]) -> tuple[bytearray, dict[str, Array]]:
    """A file with the header of these arrays, in this memory if that is as long, else in new one; and arrays that are
    its own, to be filled."""
    header, places = _laid_out(tuple((name, array.dtype, array.shape) for name, array in arrays.items()))
    total = max((end for _, end in places), default=len(header))
    data = memory if len(memory) == total else bytearray(total)
    data[: len(header)] = header
    found = {}
    for (name, array), (begin, _) in zip(arrays.items(), places, strict=True):
        dtype = array.dtype.newbyteorder("<")  # as a file has it, whatever the array has
        found[name] = numpy.frombuffer(data, dtype, array.size, begin).reshape(array.shape)
    return data, found


@lru_cache(4)  # a device reports the same tensors in every cycle
def _laid_out(
    parts: tuple[tuple[str, numpy.dtype[Any], tuple[int, ...]], ...],
) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """The header of such arrays, and where each one begins and ends."""
    header = build_header([(name, dtype.name, shape) for name, dtype, shape in parts])
    total = len(header) + sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in parts)
    places = parse_header(header[:PREFIX_BYTES], header[PREFIX_BYTES:], total)
    return header, tuple((one.begin, one.end) for one in places)


def read_arrays(data: bytes | bytearray | memoryview) -> dict[str, Array]:
    """The arrays of a file, which share its memory. Raises InvalidDataError, LimitExceededError."""
    view = memoryview(data)
    prefix = bytes(view[:PREFIX_BYTES])
    end = PREFIX_BYTES + header_length(prefix, len(view))
    found = {}
    for one in parse_header(prefix, bytes(view[PREFIX_BYTES:end]), len(view)):
        if one.dtype == "bfloat16":
            raise InvalidDataError(f"the tensor {one.name[:80]!r} is of bfloat16, which NumPy does not have")
        dtype = numpy.dtype(one.dtype)
        count = (one.end - one.begin) // dtype.itemsize
        found[one.name] = numpy.frombuffer(view, dtype, count, one.begin).reshape(one.shape)
    return found


def arrays_of(model: Any) -> dict[str, Array]:
    """The tensors of a model by name: of a module, a mapping, or a plan's State (named "0", "1", …).

    Raises InvalidDataError for anything else.
    """
    if hasattr(model, "state_dict"):
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    elif isinstance(model, Mapping):
        named = dict(model)
    elif hasattr(model, "read"):
        named = {str(number): tensor for number, tensor in enumerate(model.read())}
    else:
        raise InvalidDataError(f"a model is a module, a State, or tensors by name, not a {type(model).__name__}")
    return {name: _array(tensor) for name, tensor in named.items()}


def _array(tensor: Any) -> Array:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().numpy()
    return numpy.asarray(tensor)
