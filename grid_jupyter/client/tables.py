"""Tables on their way to a Node and back: one safetensors file and the columns' descriptions.

Column i is the tensor "col/<i>", perhaps with "mask/<i>" and "vocab/<i>"; client/columns.py says when,
and what they hold. What a table is read from, it is read piece by piece (client/sources.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from grid_jupyter.client.arrays import ArraysSpec, BlobWriter, TensorShape, new_blob, write_npz, write_safetensors
from grid_jupyter.client.columns import Series, parse_dtype, tensor_names
from grid_jupyter.client.series import ColumnEncoder, Reader, decode
from grid_jupyter.client.sources import TableSource, changed, csv_source, frame_source, parquet_source
from grid_jupyter.errors import InvalidDataError, LimitExceededError
from grid_jupyter.wire.messages import ColumnInfo
from grid_jupyter.wire.safetensors import BlobTensor, build_header

MAX_VOCABULARY_BYTES = 512 << 20
"""Memory that the different texts of one table may take while it is prepared."""
_LONGEST = 10**18
"""A length with as many digits as any real one."""


@dataclass(frozen=True)
class TableSpec:
    """What a file of a table holds: nothing here tells a value or a category.

    The length of a vocabulary tensor depends on the texts in it: show it to nobody who may not read them.
    """

    rows: int
    columns: tuple[ColumnInfo, ...]
    tensors: tuple[BlobTensor, ...]
    nbytes: int


def write_frame(frame: pandas.DataFrame, path: Path) -> TableSpec:
    """A DataFrame as a safetensors file at `path`.

    Names that are no texts are stored as their texts. A named index becomes the first columns; row numbers
    are left out. Raises InvalidDataError, with the remedy, for what cannot be published, LimitExceededError
    for too many or too long names and texts, StorageFullError; there is no file then.
    """
    return write_source(frame_source(frame), path)


def write_file(source: Path, path: Path) -> TableSpec | ArraysSpec:
    """A CSV, Parquet, NPZ or safetensors file, whatever its size, as a safetensors file at `path`.

    The first two are tables, the others arrays by name. Raises InvalidDataError, with the remedy, for other
    endings, damaged files and what cannot be published, LimitExceededError, StorageFullError; there is no
    file then. A source that cannot be opened raises OSError as open() does.
    """
    ending = source.suffix.lower()
    if ending == ".csv":
        return write_source(csv_source(source), path)
    if ending in (".parquet", ".pq"):
        return write_source(parquet_source(source), path)
    if ending == ".npz":
        return write_npz(source, path)
    if ending == ".safetensors":
        return write_safetensors(source, path)
    raise InvalidDataError(
        f"a file that ends in {ending[:20]!r} cannot be published; CSV, Parquet, NPZ and safetensors files can, "
        "and so can a DataFrame"
    )


def read_frame(columns: Sequence[ColumnInfo], read: Reader) -> pandas.DataFrame:
    """The table as it was published, for one who may read it: `read` gives a tensor by its name.

    Raises InvalidDataError where tensors and columns do not fit each other, and whatever `read` raises.
    """
    table: dict[str, Series] = {}
    for index, column in enumerate(columns):
        if column.name in table:
            raise InvalidDataError(f"the table has two columns named {column.name[:40]!r}")
        table[column.name] = decode(column, index, read)
    if len({len(series) for series in table.values()}) > 1:
        raise InvalidDataError("the columns of the table are not of one length")
    frame: pandas.DataFrame = pandas.DataFrame(table)
    return frame


def write_source(source: TableSource, path: Path) -> TableSpec:
    """Whatever a table is read from as a safetensors file at `path`; raises as `write_frame` does."""
    encoders = [ColumnEncoder(column.name, parse_dtype(column.dtype), source.rows) for column in source.columns]
    fixed = _fixed_tensors(encoders, source.rows)
    worded = {tensor_names(i)[2]: encoder for i, encoder in enumerate(encoders) if encoder.encoding.has_vocabulary}
    # vocabularies are complete only at the end, so they lie there, and the header leaves room for their lengths
    room = len(build_header([*fixed, *((name, "uint8", (_LONGEST,)) for name in worded)]))
    with new_blob(path) as blob:
        blob.layout([*fixed, *((name, "uint8", (0,)) for name in worded)], min_bytes=room)
        _write_rows(source, encoders, blob)
        end = max(tensor.end for tensor in blob.tensors.values())
        lengths: list[TensorShape] = []
        for name, encoder in worded.items():
            length = blob.write_blocks(end, encoder.vocabulary())
            lengths.append((name, "uint8", (length,)))
            end += length
        blob.layout([*fixed, *lengths], min_bytes=room)
        return TableSpec(source.rows, source.columns, tuple(blob.tensors.values()), end)


def _fixed_tensors(encoders: Sequence[ColumnEncoder], rows: int) -> list[TensorShape]:
    """Values and masks: what is known before the first row is read."""
    values = [(tensor_names(i)[0], encoder.stored, (rows,)) for i, encoder in enumerate(encoders)]
    masks = [(tensor_names(i)[1], "bool", (rows,)) for i, encoder in enumerate(encoders) if encoder.encoding.has_mask]
    return [*values, *masks]


def _write_rows(source: TableSource, encoders: Sequence[ColumnEncoder], blob: BlobWriter) -> None:
    done = 0
    for piece in source.pieces:
        count = len(piece[0])
        if done + count > source.rows:
            raise changed()
        for index, (encoder, series) in enumerate(zip(encoders, piece, strict=True)):
            values, mask = encoder.encode(series)
            blob.write(tensor_names(index)[0], values, done)
            if mask is not None:
                blob.write(tensor_names(index)[1], mask, done)
        done += count
        _check_vocabularies(encoders)
    if done != source.rows:
        raise changed()


def _check_vocabularies(encoders: Sequence[ColumnEncoder]) -> None:
    if sum(encoder.vocabulary_bytes for encoder in encoders) > MAX_VOCABULARY_BYTES:
        largest = max(encoders, key=lambda encoder: encoder.vocabulary_bytes)
        raise LimitExceededError(
            f"the table holds more different texts than the limit of {MAX_VOCABULARY_BYTES} bytes; most are in the "
            f"column {largest.name!r}: leave it out, or publish it as numbers"
        )
