"""What a Node and the machine of a far Worker say to each other: the Worker's frames, files in place of descriptors.

    offset  size  what
    0       4     header length H, unsigned, big-endian, at most MAX_RELAYED_HEADER_BYTES
    4       4     payload length P, at most MAX_FRAME_BYTES
    8       H     header: one message, msgpack
    8 + H   P     payload

The far machine speaks first. Files have numbers, each end counts its own.
"""

from __future__ import annotations

import struct
from typing import Union

import msgspec

from grid_jupyter.wire.worker import Message

PREFIX = struct.Struct(">II")
MAX_RELAYED_HEADER_BYTES = 64 << 10
"""Length of a message between a Node and the machine of a far Worker, in bytes."""


class Arrive(Message, frozen=True, tag="arrive"):
    """From the far machine, first of all: the one-time ticket of the Worker that the Node asked for."""

    ticket: str
    version: str  # of this package
    place: str  # which machine this is
    isolation: str


class Relayed(Message, frozen=True, tag="relayed"):
    """One frame, as payload, with these files in place of descriptors."""

    files: tuple[int, ...] = ()


class File(Message, frozen=True, tag="file"):
    """A file comes. One with a digest (sha256) never changes: whoever has it already says so, and is sent nothing."""

    number: int
    size: int
    digest: str = ""


class Wanted(Message, frozen=True, tag="wanted"):
    """Reply to a File with a digest: whether its bytes are wanted."""

    number: int
    wanted: bool


class Piece(Message, frozen=True, tag="piece"):
    """The next bytes of a file, as payload."""

    number: int


class Ended(Message, frozen=True, tag="worker-ended"):
    """From the far machine, last of all: the Worker ended, and why in words."""

    reason: str


Relay = Union[Arrive, Relayed, File, Wanted, Piece, Ended]

relay_decoder: msgspec.msgpack.Decoder[Relay] = msgspec.msgpack.Decoder(Relay)
