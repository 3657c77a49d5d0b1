"""What a table is read from: a DataFrame, a CSV or a Parquet file, as columns of known dtypes and pieces of rows.

A piece is small whatever the size of the whole, so that a file larger than memory can be read. A CSV
file is read twice: once for the number of rows and the dtypes, once for the values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas

from grid_jupyter.client.columns import NULLABLE, Encoding, Series, describe_dtype, parse_dtype
from grid_jupyter.errors import InvalidDataError, LimitExceededError
from grid_jupyter.wire.limits import MAX_NAME_CHARS
from grid_jupyter.wire.messages import ColumnInfo

PIECE_CELLS = 1 << 20
"""Values of one piece."""
PIECE_BYTES = 16 << 20
"""Bytes of one piece, as far as they can be told beforehand."""
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class TableSource:
    """A table about to be read: `pieces` can be gone through once, and gives one Series a column."""

    columns: tuple[ColumnInfo, ...]
    rows: int
    pieces: Iterator[Sequence[Series]]


# ------------------------------------------------------------------ DataFrame


def frame_source(frame: pandas.DataFrame) -> TableSource:
    """A DataFrame; the levels of a named index become its first columns, row numbers are left out.

    Raises InvalidDataError, with the remedy, for an unnamed index of other things than row numbers, for
    names that are not unique as texts, and for columns that cannot be published.
    """
    if frame.columns.nlevels > 1:
        raise InvalidDataError("the columns have names of several levels; join each into one text")
    levels = _index_levels(frame.index)
    series: list[Series] = [*levels, *(frame.iloc[:, number] for number in range(frame.shape[1]))]
    names = _unique_names([level.name for level in levels] + list(frame.columns))
    columns = tuple(_column(name, _describe_column(one, name)) for name, one in zip(names, series, strict=True))
    size = PIECE_CELLS  # of each column: these pieces are no copies
    starts = range(0, max(len(frame), 1), size)  # a piece even without rows: it carries the categories
    return TableSource(columns, len(frame), ([one.iloc[start : start + size] for one in series] for start in starts))


def _index_levels(index: pandas.Index[Any]) -> list[Series]:
    if all(name is not None for name in index.names):
        return [pandas.Series(index.get_level_values(number)) for number in range(index.nlevels)]
    if isinstance(index, pandas.RangeIndex) or not len(index):
        return []
    raise InvalidDataError(
        "the index holds more than row numbers; name it (frame.index.name = …) to publish it as a column, "
        "or leave it out with .reset_index(drop=True)"
    )


def _describe_column(series: Series, name: str) -> str:
    """The dtype text of a column, named in the error if there is none."""
    try:
        return describe_dtype(series.dtype)
    except InvalidDataError as error:
        raise InvalidDataError(f"the column {name!r}: {error}") from None


def _unique_names(names: Iterable[object]) -> list[str]:
    texts = [str(name) for name in names]
    if not texts:
        raise InvalidDataError("the table has no columns, so there is nothing to publish")
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise InvalidDataError(f"two columns are named {text[:40]!r}; give each a name of its own")
        seen.add(text)
    return texts


def _column(name: str, dtype: str) -> ColumnInfo:
    if len(name) > MAX_NAME_CHARS:
        raise LimitExceededError(f"the column name {name[:40]!r}… is over the limit of {MAX_NAME_CHARS} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidDataError(f"the column name {name!r} is not valid Unicode; rename it") from None
    return ColumnInfo(name=name, dtype=dtype)


def _piece_rows(columns: int, row_bytes: int) -> int:
    return max(1, min(PIECE_CELLS // columns, PIECE_BYTES // max(row_bytes, 1)))


# ------------------------------------------------------------------ CSV


def csv_source(path: Path, first: int | None = None) -> TableSource:
    """A CSV file as pandas.read_csv understands it, every column with one dtype from the first to the last row; or
    only its `first` so many rows, as if there were no others.

    Numbers with missing values are float64 and bools with missing values boolean; a column with anything
    else in it is text as a whole. Raises InvalidDataError for what cannot be parsed.
    """
    names = _csv_names(path)
    size = _piece_rows(len(names), _row_bytes(path))
    kinds: list[set[str]] = [set() for _ in names]
    rows = 0
    for piece in _csv_pieces(path, names, size, {}, first):
        rows += len(piece)
        for found, number in zip(kinds, range(len(names)), strict=True):
            found |= _csv_kinds(piece.iloc[:, number])
    dtypes = {name: _csv_dtype(name, found, rows) for name, found in zip(names, kinds, strict=True)}
    columns = tuple(_column(name, _text_of(dtype)) for name, dtype in dtypes.items())
    pieces = _csv_pieces(path, names, size, dtypes, first)
    return TableSource(columns, rows, ([piece.iloc[:, number] for number in range(len(names))] for piece in pieces))


def _csv_names(path: Path) -> list[str]:
    # without a header, a first row longer than the names is an error; with it, pandas would take its first field for
    # an index. And names that stand there twice would be given numbers.
    how: dict[str, Any] = {"dtype": str, "keep_default_na": False}
    _unique_names(name for piece in _read_csv(path, nrows=2, header=None, **how) for name in piece.iloc[0] if name)
    names: list[str] = [str(name) for piece in _read_csv(path, nrows=0) for name in piece.columns]
    return _unique_names(names)


def _csv_pieces(
    path: Path, names: list[str], size: int, dtypes: dict[str, Any], first: int | None
) -> Iterator[pandas.DataFrame]:
    for piece in _read_csv(path, chunksize=size, nrows=first, low_memory=False, dtype=dtypes):
        if list(piece.columns) != names:
            raise changed()
        yield piece


def _read_csv(path: Path, **how: Any) -> Iterator[pandas.DataFrame]:
    try:
        found: Any = pandas.read_csv(path, **how)
        if isinstance(found, pandas.DataFrame):
            yield found
            return
        with found:
            yield from found
    except pandas.errors.EmptyDataError:
        raise InvalidDataError("the CSV file is empty") from None
    except pandas.errors.ParserError as error:  # its text names the line, not what stands there
        raise InvalidDataError(f"the CSV file cannot be parsed: {str(error).strip()[:200]}") from None
    except UnicodeDecodeError:
        raise InvalidDataError("the CSV file is not UTF-8; convert it, or read it with pandas") from None
    except (ValueError, OverflowError):
        raise changed() from None  # the dtypes held for every row when they were found out


def changed() -> InvalidDataError:
    """What is said of a file that was another one when it was read again."""
    return InvalidDataError("the file changed while it was read; publish it again")


def _csv_kinds(values: Series) -> set[str]:
    """What a piece tells of its column: bool, int, uint, float, text; missing."""
    kinds = {"missing"} if bool(values.isna().any()) else set()
    if values.dtype.kind in "biuf":
        word = {"b": "bool", "i": "int", "u": "uint", "f": "float"}[values.dtype.kind]
    else:
        word = {"boolean": "bool", "empty": "float"}.get(pandas.api.types.infer_dtype(values, skipna=True), "text")
    return kinds if word == "float" and bool(values.isna().all()) else {*kinds, word}


def _csv_dtype(name: str, kinds: set[str], rows: int) -> Any:
    words = kinds - {"missing"}
    if not rows or "text" in words or ("bool" in words and words != {"bool"}):
        return str
    if words == {"bool"}:
        return pandas.BooleanDtype() if "missing" in kinds else numpy.dtype(bool)
    if "float" in words or "missing" in kinds:
        return numpy.dtype("float64")
    if "uint" in words:
        raise InvalidDataError(
            f"the column {name!r} holds integers beyond int64; read it with pandas, as texts or float64"
        )
    return numpy.dtype("int64")


def _text_of(dtype: Any) -> str:
    return describe_dtype(pandas.Series(["text"]).dtype if dtype is str else dtype)


def _row_bytes(path: Path) -> int:
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    return len(sample) // max(sample.count(b"\n"), 1)


# ------------------------------------------------------------------ Parquet


def parquet_source(path: Path) -> TableSource:
    """A Parquet file. Integers and bools with missing values get pandas' nullable dtypes, dictionaries are categories.

    Raises InvalidDataError for a damaged file and, naming the column, for types that cannot be published.
    """
    with _open_parquet(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
    names = _unique_names(schema.names)
    if any(name.startswith("__index_level_") for name in names):
        raise InvalidDataError("the Parquet file holds an unnamed index; name it, or save the table with index=False")
    noted = _pandas_dtypes(schema)
    texts = [_arrow_text(metadata, number, field, noted.get(field.name, "")) for number, field in enumerate(schema)]
    columns = tuple(_column(name, text) for name, text in zip(names, texts, strict=True))
    total = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    size = _piece_rows(len(names), total // max(metadata.num_rows, 1))
    return TableSource(columns, metadata.num_rows, _parquet_pieces(path, texts, size))


def _parquet_pieces(path: Path, texts: list[str], size: int) -> Iterator[Sequence[Series]]:
    with _open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=size):
            if batch.num_columns != len(texts):
                raise changed()
            yield [_arrow_series(array, parse_dtype(text)) for array, text in zip(batch.columns, texts, strict=True)]


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet  # time that only those who have such a file need to spend

    with path.open("rb") as opened:  # a missing file is told as such
        try:
            # with a buffer, column chunks are read bit by bit and not whole
            with pyarrow.parquet.ParquetFile(opened, buffer_size=_SAMPLE_BYTES, pre_buffer=False) as file:
                yield file
        except (pyarrow.ArrowException, OSError, ValueError):
            raise InvalidDataError("the Parquet file is damaged or encrypted, or holds what pandas cannot") from None


def _arrow_series(array: Any, encoding: Encoding) -> Series:
    if encoding.kind == "number":
        plain: Series = pandas.Series(array.to_numpy(zero_copy_only=False))
        return plain
    types = {array.type: encoding.pandas} if encoding.kind == "nullable" or encoding.text == "string" else {}
    series: Series = array.to_pandas(types_mapper=types.get, date_as_object=False)
    return series


def _pandas_dtypes(schema: Any) -> dict[str, str]:
    """Dtypes that pandas noted when it wrote the file, by column."""
    noted = (schema.pandas_metadata or {}).get("columns", [])
    return {str(column.get("field_name")): str(column.get("numpy_type")) for column in noted}


def _arrow_text(metadata: Any, number: int, field: Any, noted: str) -> str:
    import pyarrow.types as types

    kind = field.type
    if types.is_dictionary(kind):
        inner = _arrow_text(metadata, number, field.with_type(kind.value_type).with_nullable(False), "")
        default = _text_of(str)
        parts = ([] if inner == default else [inner]) + (["ordered"] if kind.ordered else [])
        return f"category[{', '.join(parts)}]" if parts else "category"
    if types.is_string(kind) or types.is_large_string(kind):
        return "string" if noted.startswith("string") else _text_of(str)
    if types.is_boolean(kind) or types.is_integer(kind):
        plain = "bool" if types.is_boolean(kind) else str(kind)
        nullable = {stored: text for text, stored in NULLABLE.items()}[plain]
        return nullable if noted == nullable or _has_nulls(metadata, number, field) else plain
    if types.is_floating(kind):
        plain = kind.to_pandas_dtype().__name__
        return noted if NULLABLE.get(noted) == plain else plain
    if types.is_timestamp(kind) or types.is_duration(kind) or types.is_date(kind):
        return describe_dtype(_arrow_dtype(kind))
    raise InvalidDataError(
        f"the column {field.name[:40]!r} is of Parquet type {str(kind)[:40]}, which cannot be published; "
        "convert it to numbers, texts or dates, or leave it out"
    )


def _arrow_dtype(kind: Any) -> Any:
    import pyarrow

    return pyarrow.array([], kind).to_pandas(date_as_object=False).dtype


def _has_nulls(metadata: Any, number: int, field: Any) -> bool:
    """Whether values may be missing; without statistics, they may."""
    if not field.nullable:
        return False
    groups = (metadata.row_group(group).column(number).statistics for group in range(metadata.num_row_groups))
    return any(found is None or not found.has_null_count or found.null_count > 0 for found in groups)
