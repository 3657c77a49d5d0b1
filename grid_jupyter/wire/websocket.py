"""Heads of a WebSocket's frames (RFC 6455, 5.2), as both ends of a session write and read them."""

from __future__ import annotations

from typing import NamedTuple

WHOLE_BINARY = 0x82
"""First byte of a binary message in one frame."""


class Head(NamedTuple):
    """What precedes the payload of a frame."""

    first: int  # byte: whether it is the last of its message, and its opcode
    mask: bytes
    begin: int
    end: int  # of the payload


def read_head(data: bytes, at: int) -> Head | None:
    """The head of the frame that begins there; None if it is not whole yet."""
    if len(data) < at + 2:
        return None
    first, second = data[at], data[at + 1]
    length, begin = second & 0x7F, at + 2
    if length > 125:
        size = 2 if length == 126 else 8
        if len(data) < begin + size:
            return None
        length = int.from_bytes(data[begin : begin + size], "big")
        begin += size
    if not second & 0x80:
        return Head(first, b"", begin, begin + length)
    if len(data) < begin + 4:
        return None
    return Head(first, data[begin : begin + 4], begin + 4, begin + 4 + length)


def binary_head(length: int, mask: bytes = b"") -> bytes:
    """What precedes a binary message of so many bytes in one frame; a client's has a mask of 4 bytes."""
    bit = 0x80 if mask else 0
    if length < 126:
        return bytes((WHOLE_BINARY, bit | length)) + mask
    if length < 1 << 16:
        return bytes((WHOLE_BINARY, bit | 126)) + length.to_bytes(2, "big") + mask
    return bytes((WHOLE_BINARY, bit | 127)) + length.to_bytes(8, "big") + mask
