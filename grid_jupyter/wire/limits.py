"""The protocol's version and the limits that stop a hostile message before anything is allocated."""

from __future__ import annotations

PROTOCOL = 1
"""Version of the session protocol and of the HTTP bodies. A Node serves exactly this one."""

MAX_HEADER_BYTES = 1 << 20
"""Length of a frame's header, in bytes."""
MAX_FRAME_BYTES = 8 << 20
"""Length of a whole frame, in bytes; what is larger goes over HTTP."""
MAX_INLINE_BYTES = 64 << 10
"""Largest tensor that travels inside a frame, in bytes."""
MAX_TAGS = 64
"""Tags of one data set."""
MAX_TAG_CHARS = 256
"""Characters of one tag."""
MAX_DESCRIPTION_CHARS = 20_000
"""Characters of a data set's description."""
MAX_REASON_CHARS = 1_000
"""Characters of a reason, a question or an answer."""
MAX_SHOWN_BYTES = 1 << 20
"""Bytes of what a request shows the owners who decide on it, as JSON."""
MAX_NAME_CHARS = 128
"""Characters of a user's, Node's or column's name."""
MAX_USERS = 1_000
"""Users in one data set's list of readers."""
MAX_COLUMNS = 10_000
"""Tensors (columns) of one data set."""
MAX_RANK = 64
"""Dimensions of one tensor (torch's own limit)."""
MAX_MOCK_BYTES = 64 << 20
"""Length of the file of a data set's mock rows, in bytes."""
MAX_BLOB_HEADER_BYTES = 16 << 20
"""Length of the JSON header of a safetensors file, in bytes."""
MAX_VALUES = 200_000
"""Live values of one session."""
MAX_DATASETS_OPEN = 256
"""Data sets that one session may have open."""
MAX_RECORDINGS = 256
"""Recordings that one session keeps."""
MAX_RECORDED_COMMANDS = 100_000
"""Commands in all recordings of one session together."""
