"""An ONNX model as bytes: the few protobuf messages of onnx.proto that a plan needs, written, never read.

The package `onnx` would bring 33 MB for this. Field numbers are those of onnx.proto, which never change.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

import numpy as np
import numpy.typing as npt

OPSET = 18
IR_VERSION = 9
"""The one that came with opset 19; every ONNX Runtime since 1.16 reads it."""
ELEMENT_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11,
    "bfloat16": 16,
}  # fmt: skip
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _INTS, _STRINGS = 1, 2, 3, 4, 5, 7, 8
"""What an attribute holds."""

Array = npt.NDArray[Any]
Attribute = Union[int, float, str, bytes, Array, Sequence[int], Sequence[str]]
"""Bytes are those of a graph."""
Length = Union[int, str]
"""Of a dimension; a text names one that is known when the model runs."""


def graph(
    nodes: Iterable[bytes], initializers: Iterable[bytes], inputs: Iterable[bytes], outputs: Iterable[bytes]
) -> bytes:
    """A graph, of messages that the functions below made."""
    return b"".join(
        [
            *(_bytes(1, node) for node in nodes),
            _text(2, "plan"),
            *(_bytes(5, initializer) for initializer in initializers),
            *(_bytes(11, one) for one in inputs),
            *(_bytes(12, one) for one in outputs),
        ]
    )


def model(graph: bytes, metadata: Mapping[str, str]) -> bytes:
    """A whole model."""
    return b"".join(
        [
            _integer(1, IR_VERSION),
            _text(2, "grid_jupyter"),
            _bytes(7, graph),
            _bytes(8, _text(1, "") + _integer(2, OPSET)),
            *(_bytes(14, _text(1, key) + _text(2, value)) for key, value in metadata.items()),
        ]
    )


def node(
    operator: str, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Attribute]
) -> bytes:
    """One operation; an input or output without a name is one that is left out."""
    return b"".join(
        [
            *(_text(1, one) for one in inputs),
            *(_text(2, one) for one in outputs),
            _text(3, name),
            _text(4, operator),
            *(_bytes(5, _attribute(key, value)) for key, value in attributes.items()),
        ]
    )


def tensor(name: str, array: Array) -> bytes:
    """A constant."""
    array = np.asarray(array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return b"".join(
        [
            *(_integer(1, length) for length in array.shape),
            _integer(2, ELEMENT_TYPES[array.dtype.name]),
            _text(8, name),
            _bytes(9, little.tobytes()),
        ]
    )


def described(name: str, dtype: str, shape: Sequence[Length]) -> bytes:
    """An input or an output: its name, dtype and shape."""
    lengths = (_integer(1, length) if isinstance(length, int) else _text(2, length) for length in shape)
    dimensions = b"".join(_bytes(1, length) for length in lengths)
    return _text(1, name) + _bytes(2, _bytes(1, _integer(1, ELEMENT_TYPES[dtype]) + _bytes(2, dimensions)))


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _integer(3, value) + _integer(20, _INT)
    if isinstance(value, float):
        if not math.isfinite(np.float32(value)):
            raise ValueError(f"the attribute {name} is no number of 32 bits")
        return _text(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _integer(20, _FLOAT)
    if isinstance(value, str):
        return _text(1, name) + _text(4, value) + _integer(20, _STRING)
    if isinstance(value, bytes):
        return _text(1, name) + _bytes(6, value) + _integer(20, _GRAPH)
    if isinstance(value, np.ndarray):
        return _text(1, name) + _bytes(5, tensor("", value)) + _integer(20, _TENSOR)
    if value and isinstance(value[0], str):
        return _text(1, name) + b"".join(_text(9, str(text)) for text in value) + _integer(20, _STRINGS)
    return _text(1, name) + b"".join(_integer(8, int(number)) for number in value) + _integer(20, _INTS)


# ------------------------------------------------------------------ protobuf


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)  # negative ones in two's complement


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
