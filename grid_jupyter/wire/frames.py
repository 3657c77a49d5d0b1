"""The frame: one kind byte, a header length, a header (msgpack) and raw bytes behind it.

    offset  size  what
    0       1     kind: 1 operations, 2 request, 3 reply
    1       4     header length H, unsigned, big-endian, at most MAX_HEADER_BYTES
    5       H     header, msgpack
    5 + H   rest  payload: the raw bytes of one tensor, or nothing

A whole frame is one binary WebSocket message; between a Node and its Workers it follows its own
total length (worker/channel.py). Lengths are compared with the limits before anything is sliced.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, TypeVar

import msgspec

from grid_jupyter.errors import InvalidMessageError, LimitExceededError
from grid_jupyter.wire.limits import MAX_FRAME_BYTES, MAX_HEADER_BYTES

OPERATIONS, REQUEST, REPLY = 1, 2, 3
_PREFIX = struct.Struct(">BI")
_encoder = msgspec.msgpack.Encoder()

T = TypeVar("T")


class Frame(NamedTuple):
    """A frame that was cut along its own lengths; the header is not decoded yet."""

    kind: int
    header: memoryview
    payload: memoryview


def pack(kind: int, header: bytes, payload: bytes | memoryview = b"") -> bytes:
    """One frame as bytes. Raises LimitExceededError if header or frame are too long."""
    total = _PREFIX.size + len(header) + len(payload)
    if len(header) > MAX_HEADER_BYTES or total > MAX_FRAME_BYTES:
        raise LimitExceededError(
            f"a frame of {total} bytes (header {len(header)}) is over the limit of {MAX_FRAME_BYTES} "
            f"(header {MAX_HEADER_BYTES}); send large tensors over HTTP"
        )
    return b"".join((_PREFIX.pack(kind, len(header)), header, payload))


def unpack(data: bytes | bytearray | memoryview) -> Frame:
    """Cut a frame into its parts without copying. Raises InvalidMessageError, LimitExceededError."""
    if len(data) > MAX_FRAME_BYTES:
        raise LimitExceededError(f"a frame of {len(data)} bytes is over the limit of {MAX_FRAME_BYTES}")
    if len(data) < _PREFIX.size:
        raise InvalidMessageError("the frame is shorter than its own prefix of 5 bytes")
    kind, length = _PREFIX.unpack_from(data)
    if kind not in (OPERATIONS, REQUEST, REPLY):
        raise InvalidMessageError(f"there is no frame of kind {kind}")
    if length > MAX_HEADER_BYTES:
        raise LimitExceededError(f"a header of {length} bytes is over the limit of {MAX_HEADER_BYTES}")
    if _PREFIX.size + length > len(data):
        raise InvalidMessageError(f"the frame ends before its header of {length} bytes does")
    view = memoryview(data)
    return Frame(kind, view[_PREFIX.size : _PREFIX.size + length], view[_PREFIX.size + length :])


def encode(message: Any) -> bytes:
    """A message, or a list of commands, as msgpack. Raises InvalidMessageError for text that is not Unicode."""
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:
        raise InvalidMessageError("a text is not valid Unicode: it holds half of a surrogate pair") from None


def decode(header: bytes | memoryview, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """A header as the type that the decoder names; everything else raises InvalidMessageError.

    The decoder's error names the place (`$[1].query[0]`), never the value that stood there.
    """
    try:
        return decoder.decode(header)
    except msgspec.ValidationError as error:
        raise InvalidMessageError(f"the message does not fit the protocol: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        raise InvalidMessageError("the header is not well-formed msgpack, or nests too deeply") from None
