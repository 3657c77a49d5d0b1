"""Arrays on their way to a Node: one safetensors file out of an NPZ or another safetensors file, as a stream.

What is written appears under its name only when it is complete; only the user can read it.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import math
import mmap
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, BinaryIO

import numpy

from grid_jupyter.client.columns import STORED, Array
from grid_jupyter.client.series import to_stored
from grid_jupyter.errors import InvalidDataError, StorageFullError
from grid_jupyter.wire.dtypes import ITEM_BYTES, nbytes
from grid_jupyter.wire.safetensors import PREFIX_BYTES, BlobTensor, build_header, parse_header, read_header

BLOCK_BYTES = 4 << 20
"""How much of an array is in memory at a time."""
TURN_BYTES = 8 << 20
"""How much of an array that lies column by column is turned at a time."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUNS = 64
"""Places of a file that are read before their pages are given back."""

_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError, OSError)

TensorShape = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor."""


@dataclass(frozen=True)
class ArraysSpec:
    """What a file of arrays holds: its tensors, where they lie in it, and its size."""

    tensors: tuple[BlobTensor, ...]
    nbytes: int


class BlobWriter:
    """A safetensors file whose tensors are written in any order; each must be filled by the end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tensors: dict[str, BlobTensor] = {}

    def layout(self, tensors: Sequence[TensorShape], *, min_bytes: int = 0) -> int:
        """Write the header. Returns its length, the offset of the first tensor."""
        header = build_header(tensors, min_bytes=min_bytes)
        total = len(header) + sum(nbytes(dtype, shape) for _, dtype, shape in tensors)
        parsed = parse_header(header[:PREFIX_BYTES], header[PREFIX_BYTES:], total)
        self.tensors = {tensor.name: tensor for tensor in parsed}
        self.file.seek(0)
        self.file.write(header)
        return len(header)

    def write(self, name: str, data: Array, first: int = 0) -> None:
        """Put the values of a tensor from its element `first` on."""
        tensor = self.tensors[name]
        self.file.seek(tensor.begin + first * ITEM_BYTES[tensor.dtype])
        self.file.write(_raw(data))

    def write_blocks(self, begin: int, blocks: Iterable[Array | bytes]) -> int:
        """Put blocks one behind the other, the first one at the offset `begin`. Returns how many bytes they were."""
        self.file.seek(begin)
        for block in blocks:
            self.file.write(block if isinstance(block, bytes) else _raw(block))
        return self.file.tell() - begin


def _raw(array: Array) -> memoryview:
    return numpy.ascontiguousarray(array).reshape(-1).view("uint8").data


@contextlib.contextmanager
def new_blob(path: Path) -> Iterator[BlobWriter]:
    """A writer for the file at `path`, which appears, mode 0600, when the block ends without an error.

    Raises StorageFullError where the disk has no room for it.
    """
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield BlobWriter(file)
        Path(part).replace(path)
    except BaseException as error:
        Path(part).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise StorageFullError(f"there is no room left in {path.parent} for the prepared data") from None
        raise


def forms_of(source: Path) -> list[TensorShape]:
    """What an NPZ or safetensors file says it holds, by its headers alone. Raises InvalidDataError,
    LimitExceededError."""
    with source.open("rb") as opened:
        if source.suffix.lower() == ".safetensors":
            return _not_empty([(tensor.name, tensor.dtype, tensor.shape) for tensor in read_header(opened)[0]])
        with _damage_is_told():
            archive = zipfile.ZipFile(opened)
            arrays = [_npy_header(archive, entry) for entry in archive.infolist()]
        return _not_empty([(array.name, array.stored, array.shape) for array in arrays])


def write_npz(source: Path, path: Path) -> ArraysSpec:
    """The arrays of an NPZ file, under their names, as a safetensors file.

    No object array is ever read. Raises InvalidDataError, naming the array, for what cannot be published.
    """
    with source.open("rb") as opened:
        with _damage_is_told():
            archive = zipfile.ZipFile(opened)
            arrays = [_npy_header(archive, entry) for entry in archive.infolist()]
        with new_blob(path) as blob:
            blob.layout(_not_empty([(array.name, array.stored, array.shape) for array in arrays]))
            for array in arrays:
                blob.write_blocks(blob.tensors[array.name].begin, _npy_blocks(archive, array, path.parent))
            return ArraysSpec(tuple(blob.tensors.values()), blob.file.seek(0, os.SEEK_END))


def write_safetensors(source: Path, path: Path) -> ArraysSpec:
    """The tensors of a safetensors file, checked, as a safetensors file of ours: aligned, without metadata.

    Raises InvalidDataError and LimitExceededError for a file that is not what it claims to be.
    """
    with source.open("rb") as opened:
        tensors, _ = read_header(opened)
        with new_blob(path) as blob:
            blob.layout(_not_empty([(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]))
            for tensor in tensors:
                blob.write_blocks(blob.tensors[tensor.name].begin, _tensor_blocks(opened, tensor))
            return ArraysSpec(tuple(blob.tensors.values()), blob.file.seek(0, os.SEEK_END))


def _not_empty(tensors: list[TensorShape]) -> list[TensorShape]:
    if not tensors:
        raise InvalidDataError("the file holds no arrays, so there is nothing to publish")
    return tensors


def _tensor_blocks(opened: BinaryIO, tensor: BlobTensor) -> Iterator[bytes]:
    opened.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        block = opened.read(min(left, BLOCK_BYTES))
        if not block:
            raise InvalidDataError("the file became shorter while it was read; publish it again")
        if tensor.dtype == "bool":
            _check_bools(numpy.frombuffer(block, "uint8"), tensor.name)
        left -= len(block)
        yield block


def _check_bools(data: Array, name: str) -> None:
    """Compiled code may take a bool for 0 or 1, and do anything for other bytes."""
    if data.size and int(data.max()) > 1:
        raise InvalidDataError(f"the array {name!r} is of bools, but holds other bytes than 0 and 1")


# ------------------------------------------------------------------ NPZ


@dataclass(frozen=True)
class _Npy:
    """One array of an NPZ file, as its header has it."""

    entry: zipfile.ZipInfo
    name: str
    dtype: numpy.dtype[Any]
    shape: tuple[int, ...]
    columns_first: bool  # Fortran's order
    begin: int  # of the values, in the entry

    @property
    def stored(self) -> str:
        return STORED[_native(self.dtype)]


@contextlib.contextmanager
def _damage_is_told() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        # RuntimeError: encrypted, or compressed in a way that Python lacks; OSError: an offset that is none
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise
        raise InvalidDataError("the NPZ file is damaged, encrypted or compressed in an unknown way") from None


def _npy_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Npy:
    name = entry.filename.removesuffix(".npy")
    if name == entry.filename:
        raise InvalidDataError(f"the NPZ file holds {name[:40]!r}, which is no array (.npy)")
    with archive.open(entry) as file:
        try:
            read = _HEADER_READERS[numpy.lib.format.read_magic(file)]
            shape, columns_first, dtype = read(file)
        except (ValueError, KeyError, TypeError, OverflowError, SyntaxError, TokenError, RecursionError, MemoryError):
            # numpy reads the header as a Python literal, and says all of this of one that is none
            raise InvalidDataError(
                f"the array {name[:40]!r} has no readable header; save it again with numpy"
            ) from None
        begin = file.tell()
    if _native(dtype) not in STORED or dtype.subdtype is not None:
        raise InvalidDataError(
            f"the array {name[:40]!r} has the dtype {dtype.name[:40]}, which cannot be published; "
            "convert it to numbers, or publish texts and dates as a table"
        )
    shape = tuple(int(length) for length in shape)
    if min(shape, default=0) < 0 or entry.file_size - begin != dtype.itemsize * math.prod(shape):
        raise InvalidDataError(f"the array {name[:40]!r} is shorter or longer than its shape")
    return _Npy(entry, name, dtype, shape, bool(columns_first) and len(shape) > 1, begin)


def _native(dtype: numpy.dtype[Any]) -> str:
    return str(dtype.newbyteorder("=").name)


def _npy_blocks(archive: zipfile.ZipFile, array: _Npy, scratch: Path) -> Iterator[Array]:
    with _damage_is_told(), archive.open(array.entry) as file:
        file.read(array.begin)
        blocks = _read_values(file, array)
        for block in _turned(blocks, array, scratch) if array.columns_first else blocks:
            yield to_stored(block, f"the array {array.name!r}")


def _read_values(file: IO[bytes], array: _Npy) -> Iterator[Array]:
    left = array.dtype.itemsize * math.prod(array.shape)
    while left:
        block = file.read(min(left, BLOCK_BYTES))
        left -= len(block)
        if len(block) % array.dtype.itemsize or not block:
            raise InvalidDataError(f"the array {array.name!r} is shorter than its shape")
        if array.dtype == bool:
            _check_bools(numpy.frombuffer(block, "uint8"), array.name)
        yield numpy.frombuffer(block, array.dtype)
    file.read(1)  # zipfile compares the checksum when it meets the end


def _turned(blocks: Iterable[Array], array: _Npy, scratch: Path) -> Iterator[Array]:
    """An array that lies column by column, row by row; its values wait in a file meanwhile."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        for block in blocks:
            file.write(block.data)
        if not file.tell():
            return
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # ends with the last array that uses it
        whole: Array = numpy.ndarray(array.shape, array.dtype, mapped, order="F")
        for part in _parts(whole):
            turned = numpy.empty(part.shape, array.dtype)
            step = max(1, _RUNS // math.prod(part.shape[1:-1]))
            for first in range(0, part.shape[-1], step):
                turned[..., first : first + step] = part[..., first : first + step]
                if sys.platform != "win32":
                    mapped.madvise(mmap.MADV_DONTNEED)  # what was read need not stay in memory
            yield turned


def _parts(array: Array) -> Iterator[Array]:
    """An array cut into parts of TURN_BYTES that follow one another in C order."""
    if array.nbytes <= TURN_BYTES:
        yield array
    elif array.nbytes // len(array) > TURN_BYTES:
        for one in array:
            yield from _parts(one)
    else:
        rows = TURN_BYTES // (array.nbytes // len(array))
        for first in range(0, len(array), rows):
            yield array[first : first + rows]


_HEADER_READERS = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}
