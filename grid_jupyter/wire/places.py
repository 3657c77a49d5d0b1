"""How an answer in JSON and a model travel as one body: a length, the JSON, and the safetensors file behind it."""

from __future__ import annotations

import struct

from grid_jupyter.errors import InvalidMessageError

WITH_MODEL = "application/vnd.grid-jupyter.place"
"""The media type of these bodies."""
_LENGTH = struct.Struct("<Q")


def with_model(answer: bytes, model: bytes) -> bytes:
    """The length of the JSON (8 bytes, little-endian), the JSON, the model to the end."""
    return _LENGTH.pack(len(answer)) + answer + model


def parted(body: bytes | bytearray) -> tuple[bytes, bytes]:
    """The JSON and the model of a body. Raises InvalidMessageError."""
    end = _LENGTH.size + _LENGTH.unpack_from(body)[0] if len(body) >= _LENGTH.size else len(body) + 1
    if end > len(body):
        raise InvalidMessageError("an answer with a model is shorter than it says")
    return bytes(body[_LENGTH.size : end]), bytes(body[end:])
