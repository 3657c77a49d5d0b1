"""The values of one column: from pandas into the arrays of its tensors, and back for one who may read them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy
import pandas

from grid_jupyter.client.columns import (
    CODE_DTYPES,
    NULLABLE,
    STORED,
    TICKS,
    Array,
    Encoding,
    Index,
    Series,
    code_dtype,
    describe_dtype,
    parse_dtype,
    tensor_names,
)
from grid_jupyter.errors import InvalidDataError
from grid_jupyter.wire.messages import ColumnInfo

ENTRY_BYTES = 64
"""What one entry of a vocabulary counts beyond its text: the memory that its bookkeeping takes."""
_CALENDAR_S = (-62_135_596_800, 253_402_300_800)
"""Beginning of the year 1 and end of 9999, in seconds since 1970."""
_ZONED_CALENDAR_S = (-9_214_560_000, 253_402_214_400)
"""Beginning of 1678 and a day before the end of 9999."""
_NAT = numpy.iinfo("int64").min
_MAX_INT64 = numpy.iinfo("int64").max
_BEYOND = (
    "the column {!r} holds dates before the year 1 (1678 with a time zone) or after 9999; "
    "set them to NaT, or publish them as numbers"
)
_ENTRIES_A_PIECE = 10_000

Reader = Callable[[str], Array]
"""Gives the tensor of this name as an array."""


def to_stored(array: Array, what: str) -> Array:
    """An array in the dtype that holds it in a file (STORED); `what` names it in errors.

    Raises InvalidDataError for a dtype that does not travel, and for uint64 beyond int64.
    """
    dtype = array.dtype.newbyteorder("=").name
    if dtype not in STORED:
        raise InvalidDataError(f"{what} has the dtype {dtype[:40]}, which cannot be published; convert it to numbers")
    if dtype == "uint64" and array.size and int(array.max()) > _MAX_INT64:
        raise InvalidDataError(f"{what} holds integers beyond int64; convert it to float64, or to texts")
    return numpy.asarray(array, dtype=STORED[dtype], order="C")


# ------------------------------------------------------------------ into the file


class ColumnEncoder:
    """One column on its way into a file, piece by piece; it remembers the vocabulary."""

    def __init__(self, name: str, encoding: Encoding, rows: int) -> None:
        self.name = name
        self.encoding = encoding
        self.stored = code_dtype(rows) if encoding.has_vocabulary else encoding.stored
        self.vocabulary_bytes = 0  # a measure of the memory that the vocabulary takes
        self._codes: dict[Any, int] = {}
        self._missing: set[object] = set()  # None and NaN, as met in an object column
        self._categories: tuple[Index, Array] | None = None  # of the last piece, and their codes

    def encode(self, piece: Series) -> tuple[Array, Array | None]:
        """Values and mask of the next rows. Raises InvalidDataError for values that do not fit the dtype."""
        kind = self.encoding.kind
        if kind == "number":
            return to_stored(piece.to_numpy(), f"the column {self.name!r}"), None
        if kind == "nullable":
            plain = NULLABLE[self.encoding.text]
            values = piece.to_numpy(dtype=plain, na_value=0)
            return to_stored(values, f"the column {self.name!r}"), piece.isna().to_numpy()
        if kind == "time":
            values = _ticks(piece, self.encoding)
            if _out_of_calendar(values, self.encoding):
                raise InvalidDataError(_BEYOND.format(self.name))
            mask = values == _NAT
            return numpy.where(mask, 0, values), mask
        codes = self._text_codes(piece) if kind == "text" else self._category_codes(piece)
        return codes.astype(self.stored, copy=False), None

    def vocabulary(self) -> Iterator[bytes]:
        """The vocabulary as JSON, in pieces."""
        entries: Iterator[Any] = iter(self._codes)
        if self._missing == {None}:
            entries = itertools.chain(entries, [None])
        mark = b"["
        while batch := list(itertools.islice(entries, _ENTRIES_A_PIECE)):
            yield mark + json.dumps(batch, ensure_ascii=False, separators=(",", ":"))[1:-1].encode()
            mark = b","
        yield b"[]" if mark == b"[" else b"]"

    def _text_codes(self, piece: Series) -> Array:
        try:
            codes, texts = pandas.factorize(piece)
        except TypeError:  # unhashable: lists, dictionaries
            raise self._mixed() from None
        if self.encoding.is_object:
            self._note_missing(piece.to_numpy()[codes == -1])
        return _look_up(self._learn(texts), codes)

    def _category_codes(self, piece: Series) -> Array:
        categories = piece.cat.categories
        if self._categories is None or self._categories[0] is not categories:
            before = len(self._codes)
            known = self._learn(_entries(categories, _of_categories(self.encoding), self.name))
            in_order = bool((numpy.diff(known) > 0).all())
            new_ones_are_last = len(self._codes) == before or len(self._codes) == len(known)
            if self.encoding.ordered and not (in_order and new_ones_are_last):
                raise InvalidDataError(
                    f"the column {self.name!r} orders its categories in more than one way; "
                    "give all of it the same categories"
                )
            self._categories = categories, known
        return _look_up(self._categories[1], piece.cat.codes.to_numpy())

    def _learn(self, entries: Iterable[Any]) -> Array:
        """Codes of these entries; new ones get the next numbers."""
        codes, is_text = self._codes, (self.encoding.categories or self.encoding).kind == "text"
        found = []
        for entry in entries:
            code = codes.get(entry)
            if code is None:
                if is_text:
                    self.vocabulary_bytes += self._text_bytes(entry)
                self.vocabulary_bytes += ENTRY_BYTES
                code = codes[entry] = len(codes)
            found.append(code)
        return numpy.array(found, dtype="int64")

    def _text_bytes(self, entry: object) -> int:
        if not isinstance(entry, str):
            raise self._mixed()
        try:
            return len(entry.encode())
        except UnicodeEncodeError:
            raise InvalidDataError(f"the column {self.name!r} holds texts that are not valid Unicode") from None

    def _note_missing(self, missing: Array) -> None:
        for value in missing:
            if value is None:
                self._missing.add(None)
            elif isinstance(value, float):
                self._missing.add(numpy.nan)
            else:  # NaT and NA would come back as something else
                raise self._mixed()

    def _mixed(self) -> InvalidDataError:
        return InvalidDataError(
            f"the column {self.name!r} holds other things than texts; convert it with .astype('string'), to a number "
            "dtype or with .convert_dtypes()"
        )


def _ticks(values: Series | Index, encoding: Encoding) -> Array:
    word = "timedelta64" if encoding.text.startswith("timedelta64") else "datetime64"
    return values.to_numpy(dtype=f"{word}[{encoding.unit}]").view("int64")


def _out_of_calendar(ticks: Array, encoding: Encoding) -> bool:
    """Whether there are dates that crash some pandas: beyond Python's calendar, or zoned and older than pytz knows."""
    if encoding.unit == "ns" or not encoding.text.startswith("datetime64"):
        return False
    first, last = _CALENDAR_S if isinstance(encoding.pandas, numpy.dtype) else _ZONED_CALENDAR_S
    scale = int(TICKS[encoding.unit])
    within = (first * scale <= ticks) & (ticks < last * scale)
    return not bool((within | (ticks == _NAT)).all())


def _look_up(table: Array, codes: Array) -> Array:
    return numpy.append(table, -1)[codes]  # -1 takes the last one


def _entries(categories: Index, encoding: Encoding, name: str) -> list[Any]:
    """Categories as JSON has them: numbers, texts, and the ticks of dates."""
    found = describe_dtype(categories.dtype)
    if found != encoding.text:
        raise InvalidDataError(f"the column {name!r} changes the dtype of its categories; convert it with .astype(…)")
    if encoding.kind == "text":
        return categories.tolist()
    if encoding.kind == "time":
        ticks = _ticks(categories, encoding)
        if _out_of_calendar(ticks, encoding):
            raise InvalidDataError(_BEYOND.format(name))
        return list(ticks.tolist())
    numbers = categories.to_numpy(dtype=NULLABLE.get(encoding.text, encoding.text)).tolist()
    return [_number_entry(number) for number in numbers]


def _number_entry(number: Any) -> Any:
    return str(number) if isinstance(number, float) and not math.isfinite(number) else number


# ------------------------------------------------------------------ and back


def decode(column: ColumnInfo, index: int, read: Reader) -> Series:
    """The column at `index` as pandas had it. Raises InvalidDataError where its tensors do not fit its dtype.

    The tensors come from another party: nothing in them is taken for granted.
    """
    with _must_fit(column):
        return _decode(parse_dtype(column.dtype), index, read)


def categories(column: ColumnInfo, data: Array) -> list[Any]:
    """What the codes of a text or category column stand for, in their order; `data` is its vocabulary.

    Raises InvalidDataError where it does not fit the dtype, or the column has none.
    """
    encoding = parse_dtype(column.dtype)
    entries = vocabulary(data)
    with _must_fit(column):
        if encoding.kind == "text":
            return _only(str, entries[:-1] if entries[-1:] == [None] else entries)
        return list(_categories(_of_categories(encoding), entries))


@contextlib.contextmanager
def _must_fit(column: ColumnInfo) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, OverflowError, KeyError):  # what pandas and numpy say of values beyond a dtype
        raise InvalidDataError(f"the tensors of the column {column.name!r} do not hold {column.dtype[:80]}") from None


def _decode(encoding: Encoding, index: int, read: Reader) -> Series:
    name, mask_name, vocabulary_name = tensor_names(index)
    values = read(name)
    allowed = CODE_DTYPES if encoding.has_vocabulary else (encoding.stored,)
    if values.ndim != 1 or not any(values.dtype == numpy.dtype(name) for name in allowed):
        raise ValueError
    if encoding.kind == "number":
        return _series(_narrow(values, encoding.text), copy=True)
    if encoding.kind in ("nullable", "time"):
        mask = read(mask_name)
        if mask.shape != values.shape or mask.dtype != bool:
            raise ValueError
        return _nullable(encoding, values, mask) if encoding.kind == "nullable" else _time(encoding, values, mask)
    if values.size and int(values.min()) < -1:
        raise ValueError
    entries = vocabulary(read(vocabulary_name))
    return _texts(encoding, values, entries) if encoding.kind == "text" else _category(encoding, values, entries)


def _narrow(values: Array, dtype: str) -> Array:
    widened = dtype in ("uint16", "uint32", "uint64") and values.size
    if widened and (int(values.min()) < 0 or int(values.max()) > numpy.iinfo(dtype).max):
        raise ValueError
    return values.astype(dtype, copy=False)


def _nullable(encoding: Encoding, values: Array, mask: Array) -> Series:
    plain = NULLABLE[encoding.text]
    kinds: dict[str, Any] = {"b": pandas.arrays.BooleanArray, "f": pandas.arrays.FloatingArray}
    build = kinds.get(numpy.dtype(plain).kind, pandas.arrays.IntegerArray)
    return _series(build(_narrow(values, plain), mask, copy=True))


def _time(encoding: Encoding, values: Array, mask: Array) -> Series:
    return _series(_from_ticks(encoding, numpy.where(mask, _NAT, values)))


def _from_ticks(encoding: Encoding, ticks: Array) -> Index:
    if encoding.text.startswith("timedelta64"):
        return _index(ticks.view(f"timedelta64[{encoding.unit}]"))
    if _out_of_calendar(ticks, encoding):
        raise ValueError
    dates: Any = pandas.DatetimeIndex(ticks.view(f"datetime64[{encoding.unit}]"))
    if isinstance(encoding.pandas, pandas.DatetimeTZDtype):
        dates = dates.tz_localize("UTC").tz_convert(encoding.pandas.tz)
    return _index(dates)


def _texts(encoding: Encoding, codes: Array, entries: list[Any]) -> Series:
    missing: Any = numpy.nan
    if entries and entries[-1] is None:
        missing = entries.pop()
    if codes.size and int(codes.max()) >= len(entries):
        raise ValueError
    texts = numpy.empty(len(entries) + 1, dtype=object)
    texts[:-1] = _only(str, entries)
    texts[-1] = missing
    if encoding.is_object:
        return _series(texts[codes], dtype=object)
    known: Any = pandas.array(texts[:-1], dtype=cast(Any, encoding.pandas))
    return _series(known.take(codes, allow_fill=True))


def _category(encoding: Encoding, codes: Array, entries: list[Any]) -> Series:
    known = _categories(_of_categories(encoding), entries)
    return _series(pandas.Categorical.from_codes(codes, categories=known, ordered=encoding.ordered))


def _of_categories(encoding: Encoding) -> Encoding:
    if encoding.categories is None:
        raise TypeError("only a category column has an encoding of its categories")
    return encoding.categories


def _categories(encoding: Encoding, entries: list[Any]) -> Index:
    if encoding.kind == "text":
        return _index(_only(str, entries), dtype=encoding.pandas)
    if encoding.kind == "time":
        return _from_ticks(encoding, numpy.array(_only(int, entries), dtype="int64"))
    plain = numpy.dtype(NULLABLE.get(encoding.text, encoding.text))
    if plain.kind == "f":
        entries = [float(entry) for entry in entries]
    elif plain.kind != "b" and not all(numpy.iinfo(plain).min <= entry <= numpy.iinfo(plain).max for entry in entries):
        raise ValueError
    numbers = numpy.array(_only({"b": bool, "f": float}.get(plain.kind, int), entries), dtype=plain)
    return _index(numbers, dtype=encoding.pandas)


def _only(kind: type, entries: list[Any]) -> list[Any]:
    if not all(type(entry) is kind for entry in entries):
        raise ValueError
    return entries


def vocabulary(data: Array) -> list[Any]:
    """The entries of a vocabulary as JSON has them. Raises InvalidDataError if it is no JSON list."""
    if data.dtype == numpy.uint8 and data.ndim == 1:
        try:
            entries = json.loads(data.tobytes())
        except (ValueError, RecursionError):
            entries = None
        if isinstance(entries, list):
            return entries
    raise InvalidDataError("the vocabulary of a column is no JSON list; publish the table again")


def _series(values: Any, **how: Any) -> Series:
    series: Series = pandas.Series(values, **how)
    return series


def _index(values: Any, **how: Any) -> Index:
    index: Index = pandas.Index(values, **how)
    return index
