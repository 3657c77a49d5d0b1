"""The safetensors file: its header, read as hostile and written as the format asks; knows no array library.

    offset  size  what
    0       8     header length H, unsigned, little-endian, at most MAX_BLOB_HEADER_BYTES
    8       H     JSON, UTF-8: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …},
                  perhaps "__metadata__": {text: text}; spaces behind it
    8 + H   rest  the tensors' bytes, C order, little-endian, without gap or overlap

Files written here keep every tensor aligned to its own item size, so that a mapped file can be used
in place; files of others need not (the format does not ask for it).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, TypeGuard

from grid_jupyter.errors import InvalidDataError, LimitExceededError
from grid_jupyter.wire.dtypes import ITEM_BYTES, SAFETENSORS, TO_SAFETENSORS
from grid_jupyter.wire.limits import MAX_BLOB_HEADER_BYTES, MAX_COLUMNS, MAX_NAME_CHARS, MAX_RANK

PREFIX_BYTES = 8
_PREFIX = struct.Struct("<Q")
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_DIGITS = 19
"""Digits of the largest number that a header can need (2^63 - 1)."""
_MAX_BRACKETS = 1_000_000
"""JSON objects and lists of one header: far over what MAX_COLUMNS needs, far under what memory holds."""
_SHORT, _REMEMBERED = 8 << 10, 32
"""Headers of so many bytes at most, and how many of them: the files of a training have the same one again and again."""


@dataclass(frozen=True)
class BlobTensor:
    """One tensor of a safetensors file: `begin` and `end` are offsets in the file, in bytes."""

    name: str
    dtype: str  # our name (wire/dtypes.py)
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: BinaryIO) -> tuple[tuple[BlobTensor, ...], int]:
    """The tensors of an open file, in the header's order, and the offset at which their bytes begin.

    Raises InvalidDataError and LimitExceededError as `parse_header` does.
    """
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = file.read(PREFIX_BYTES)
    length = header_length(prefix, file_bytes)
    return parse_header(prefix, file.read(length), file_bytes), PREFIX_BYTES + length


def header_length(prefix: bytes, file_bytes: int) -> int:
    """How many bytes of JSON follow the first 8, so that no one reads more than the limit allows.

    Raises InvalidDataError if the file is too short for it, LimitExceededError if it is too long.
    """
    if len(prefix) != PREFIX_BYTES:
        raise InvalidDataError("this is no safetensors file: it is shorter than the length that it must begin with")
    length: int = _PREFIX.unpack(prefix)[0]
    if PREFIX_BYTES + length > file_bytes:
        raise InvalidDataError(
            f"this is no safetensors file, or it was cut: it ends before its header of {length} bytes does"
        )
    if length > MAX_BLOB_HEADER_BYTES:
        raise LimitExceededError(f"its header of {length} bytes is over the limit of {MAX_BLOB_HEADER_BYTES}")
    return length


def parse_header(prefix: bytes, header: bytes, file_bytes: int) -> tuple[BlobTensor, ...]:
    """The tensors that a header describes, in its order; everything it could lie about is checked.

    `prefix` is the file's first 8 bytes, `header` what follows them, `file_bytes` the whole file's size.
    Raises InvalidDataError for what is malformed, or does not fit the file exactly, and
    LimitExceededError for what is too long or too many.
    """
    return (_parsed_before if len(header) <= _SHORT else _parsed)(prefix, header, file_bytes)


def _parsed(prefix: bytes, header: bytes, file_bytes: int) -> tuple[BlobTensor, ...]:
    length = header_length(prefix, file_bytes)
    if len(header) != length:
        raise InvalidDataError(f"the safetensors file ends before its header of {length} bytes does")
    entries = _parse_json(header)
    _check_metadata(entries.pop(_METADATA, {}))
    _check_count(len(entries))
    start = PREFIX_BYTES + length
    tensors = tuple(_tensor(name, entry, start) for name, entry in entries.items())
    _check_ranges(tensors, start, file_bytes)
    return tensors


_parsed_before = lru_cache(_REMEMBERED)(_parsed)  # what follows from the same bytes; an error is not kept


def build_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
    *,
    min_bytes: int = 0,
) -> bytes:
    """Length and JSON for tensors given as (name, dtype, shape); their bytes follow it.

    The header names them in the order given; in the file the wider dtypes come first, and among equals
    the order given counts, so that all are aligned. `parse_header` of the result tells where each one
    goes. The result is at least `min_bytes` long, for a writer who learns a last shape only later.

    Raises InvalidDataError for a name, dtype or shape that the format or its limits do not allow, and
    LimitExceededError for too many.
    """
    _check_count(len(tensors))
    begins: dict[str, int] = {}
    offset = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: -ITEM_BYTES.get(tensor[1], 0)):
        if name in begins:
            raise InvalidDataError(f"two tensors are named {_clip(name)}; give each a name of its own")
        if dtype not in TO_SAFETENSORS:
            raise InvalidDataError(f"the tensor {_clip(name)} has a dtype that does not travel: {_clip(dtype)}")
        _check_name(name)
        begins[name] = offset
        offset += _extent(name, dtype, shape)
    entries: dict[str, Any] = {}
    if metadata:
        _check_metadata(dict(metadata))
        entries[_METADATA] = dict(metadata)
    for name, dtype, shape in tensors:
        begin = begins[name]
        offsets = [begin, begin + _extent(name, dtype, shape)]
        entries[name] = {"dtype": TO_SAFETENSORS[dtype], "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    length = max(len(text), min_bytes - PREFIX_BYTES)
    length += -length % 8
    if length > MAX_BLOB_HEADER_BYTES:
        raise LimitExceededError(f"the header of {length} bytes is over the limit of {MAX_BLOB_HEADER_BYTES}")
    return _PREFIX.pack(length) + text.ljust(length)


# ------------------------------------------------------------------ JSON


def _parse_json(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise InvalidDataError("this is no safetensors file: its header does not begin with '{'")
    if header.count(b"{") + header.count(b"[") > _MAX_BRACKETS:
        raise LimitExceededError(f"the header holds more than the limit of {_MAX_BRACKETS} JSON objects and lists")
    try:
        entries: dict[str, Any] = _decoder.decode(header.decode())
    except (ValueError, RecursionError):
        # ValueError is JSONDecodeError, UnicodeDecodeError and an integer too long for int() alike
        raise InvalidDataError("the safetensors header is not well-formed JSON, or nests too deeply") from None
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidDataError("the safetensors header names something twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise InvalidDataError("the safetensors header has a number that is negative or beyond 64 bits")
    return int(text)


def _no_number(text: str) -> Any:
    raise InvalidDataError("the safetensors header has a number that is not an integer")


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_no_number, parse_constant=_no_number
)


# ------------------------------------------------------------------ checks


def _tensor(name: str, entry: Any, start: int) -> BlobTensor:
    _check_name(name)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise InvalidDataError(f"the tensor {_clip(name)} must have dtype, shape and data_offsets, and nothing else")
    theirs = entry["dtype"]
    dtype = SAFETENSORS.get(theirs) if isinstance(theirs, str) else None
    if dtype is None:
        raise InvalidDataError(f"the tensor {_clip(name)} has a dtype other than {', '.join(SAFETENSORS)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise InvalidDataError(f"the tensor {_clip(name)} has a shape or data_offsets that is no list of integers")
    extent = _extent(name, dtype, shape)
    begin, end = offsets
    if not _is_size(begin) or not _is_size(end) or end - begin != extent:
        raise InvalidDataError(f"the tensor {_clip(name)} needs {extent} bytes, which its data_offsets do not give it")
    return BlobTensor(name, dtype, tuple(shape), start + begin, start + end)


def _extent(name: str, dtype: str, shape: Sequence[object]) -> int:
    if len(shape) > MAX_RANK:
        raise LimitExceededError(f"the tensor {_clip(name)} has more dimensions than the limit of {MAX_RANK}")
    extent, strides = ITEM_BYTES[dtype], ITEM_BYTES[dtype]
    for length in shape:
        if not _is_size(length):
            raise InvalidDataError(f"the tensor {_clip(name)} has a dimension that is no size")
        extent *= length
        strides *= max(length, 1)
    if strides >= 1 << 63:  # strides are computed without the zeros, and must not overflow either
        raise LimitExceededError(f"the tensor {_clip(name)} is larger than 64 bits can address")
    return extent


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0  # a bool is an int, and no size


def _check_ranges(tensors: tuple[BlobTensor, ...], start: int, file_bytes: int) -> None:
    at = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != at:
            raise InvalidDataError(f"the tensor {_clip(tensor.name)} overlaps another one, or leaves a gap before it")
        at = tensor.end
    if at != file_bytes:
        raise InvalidDataError(
            f"the tensors end at byte {at}, the safetensors file at byte {file_bytes}; send it whole"
        )


def _check_count(count: int) -> None:
    if count > MAX_COLUMNS:
        raise LimitExceededError(f"{count} tensors in one file are over the limit of {MAX_COLUMNS}")


def _check_name(name: str) -> None:
    if not name or name == _METADATA:
        raise InvalidDataError(f"a tensor cannot be named {_clip(name)}")
    if len(name) > MAX_NAME_CHARS:
        raise LimitExceededError(f"the name {_clip(name)} is over the limit of {MAX_NAME_CHARS} characters")
    if not _is_unicode(name):
        raise InvalidDataError(f"the name {_clip(name)} is not valid Unicode")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) and _is_unicode(text) for pair in metadata.items() for text in pair
    ):
        raise InvalidDataError("the metadata of a safetensors file must be texts by name")


def _is_unicode(text: str) -> bool:
    """JSON can spell lone surrogates, which nothing else can store."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clip(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:40] + "…")
