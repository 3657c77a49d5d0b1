"""How one column of a table lies in a file: its dtype as a text, its tensors, and the way back to pandas.

    dtype text (ColumnInfo.dtype)              "col/<i>"                   "mask/<i>"  "vocab/<i>"
    bool, int8 … int64, uint8, float16 …       the same                    –           –
    uint16, uint32, uint64                     int32, int64, int64         –           –
    boolean, Int8 … UInt64, Float32, Float64   as the plain dtype          yes         –
    datetime64[unit], datetime64[unit, zone],
    timedelta64[unit]                          int64, units since 1970     yes         –
    object (texts), str, string                int32 or int64, -1 missing  –           yes
    category[dtype of the categories, ordered] int32 or int64, -1 missing  –           yes

A mask is bool, True where the value is missing, and the value under it is 0. A vocabulary is uint8: a
JSON list in UTF-8, one item a code; it stays with those who may read values. Whether it ends in null
tells None from NaN in an object column. Dates are of the years 1 (1678 with a time zone) to 9999, since
pandas 2.2 crashes on others. The text alone says which tensors there are, so that nobody
stores more than ColumnInfo. Where the categories are texts of pandas' default dtype, `category` stands
alone, so that pandas 2 and 3 read each other's tables.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy
import pandas
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionDtype

from grid_jupyter.errors import InvalidDataError
from grid_jupyter.wire.messages import ColumnInfo

Dtype: TypeAlias = "numpy.dtype[Any] | ExtensionDtype"
Array: TypeAlias = "NDArray[Any]"
Series: TypeAlias = "pandas.Series[Any]"
Index: TypeAlias = "pandas.Index[Any]"
Kind = Literal["number", "nullable", "time", "text", "category"]

STORED = {
    "bool": "bool", "uint8": "uint8", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint16": "int32", "uint32": "int64", "uint64": "int64",
    "float16": "float16", "float32": "float32", "float64": "float64",
}  # fmt: skip
"""numpy's dtype → the dtype of the tensor that holds it without loss (uint64: where the values allow it)."""
NULLABLE = {
    "boolean": "bool", "Int8": "int8", "Int16": "int16", "Int32": "int32", "Int64": "int64", "UInt8": "uint8",
    "UInt16": "uint16", "UInt32": "uint32", "UInt64": "uint64", "Float32": "float32", "Float64": "float64",
}  # fmt: skip
"""pandas' nullable dtype → numpy's dtype of its values."""
CODE_DTYPES = ("int32", "int64")
"""Dtypes of codes, the narrower one first."""
TICKS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Ticks a second of each unit of dates and durations."""

_TIME = re.compile(r"(datetime64|timedelta64)\[(s|ms|us|ns)(?:, (?!dateutil/)([A-Za-z0-9_+\-/:]{1,64}))?\]")
_TEXT = re.compile(r"(object|str|string)(?:\[(python|pyarrow)\])?")
_CATEGORY = re.compile(r"category(?:\[(?:(ordered)|(?!category)(.+?)(, ordered)?)\])?")
_OLD_STORAGE: Any = "pyarrow_numpy"
_REMEDIES = {
    "Sparse": "make it dense with .sparse.to_dense()",
    "period": "make it a date with .dt.to_timestamp()",
    "interval": "make it texts with .astype(str)",
    "complex": "publish its real and imaginary parts as two columns",
    "pyarrow": "convert the table with .convert_dtypes(dtype_backend='numpy_nullable')",
    "datetime64": "convert its time zone to a named one with .dt.tz_convert('UTC')",
}


@dataclass(frozen=True)
class Encoding:
    """What a dtype text says: how the column is stored, and what pandas dtype it comes back as."""

    text: str
    kind: Kind
    pandas: Dtype
    stored: str  # of "col/<i>"; of codes, the narrower of the two
    unit: str = ""  # of dates and durations
    ordered: bool = False
    categories: Encoding | None = None  # of what the codes stand for

    @property
    def is_object(self) -> bool:
        """Whether the texts come back as Python objects."""
        return self.kind == "text" and isinstance(self.pandas, numpy.dtype)

    @property
    def has_mask(self) -> bool:
        """Whether there is a "mask/<i>"."""
        return self.kind in ("nullable", "time")

    @property
    def has_vocabulary(self) -> bool:
        """Whether there is a "vocab/<i>"."""
        return self.kind in ("text", "category")


@dataclass(frozen=True)
class ColumnPlan:
    """How computations see a column: `values` as it is, or float64 with NaN where `mask` is True.

    Where there is a scale, the values are divided by it: dates become seconds since 1970 (UTC), durations
    seconds. Where there are categories, the values are codes, and -1 is missing.
    """

    values: str
    mask: str | None = None
    scale: float | None = None
    categories: str | None = None

    @property
    def as_float(self) -> bool:
        """Whether computations see float64, whatever dtype `values` has."""
        return self.mask is not None


def tensor_names(index: int) -> tuple[str, str, str]:
    """Names of values, mask and vocabulary of the column at this position."""
    return f"col/{index}", f"mask/{index}", f"vocab/{index}"


def column_values(columns: Sequence[ColumnInfo], index: int, names: Collection[str]) -> ColumnPlan:
    """How the column at `index` is presented to computations, given the names of the table's tensors.

    Raises InvalidDataError if its dtype is not one of ours, or a tensor that it needs is not there.
    """
    encoding = parse_dtype(columns[index].dtype)
    values, mask, vocabulary = tensor_names(index)
    needed = {values} | ({mask} if encoding.has_mask else set()) | ({vocabulary} if encoding.has_vocabulary else set())
    if not needed <= set(names):
        raise InvalidDataError(f"the table's column {columns[index].name!r} lacks tensors; publish the table again")
    return ColumnPlan(
        values,
        mask if encoding.has_mask else None,
        TICKS[encoding.unit] if encoding.unit else None,
        vocabulary if encoding.has_vocabulary else None,
    )


# ------------------------------------------------------------------ dtype texts


def describe_dtype(dtype: Dtype) -> str:
    """The text that stands for a pandas dtype; numpy's byte orders become this machine's.

    Raises InvalidDataError, with the remedy, for what cannot be published.
    """
    if isinstance(dtype, pandas.CategoricalDtype):
        return _describe_category(dtype)
    if isinstance(dtype, pandas.StringDtype):
        return _describe_text(dtype)
    text = dtype.newbyteorder("=").name if isinstance(dtype, numpy.dtype) else str(dtype)
    if not isinstance(dtype, pandas.ArrowDtype):
        if text in STORED or text in NULLABLE or text == "object":
            return text
        if _TIME.fullmatch(text) and _comes_back(text, dtype):
            return text
    remedy = next((remedy for word, remedy in _REMEDIES.items() if word in text), "convert it with .astype(…)")
    raise InvalidDataError(f"a column of dtype {text[:80]} cannot be published; {remedy}")


def parse_dtype(text: str) -> Encoding:
    """What a dtype text says. Raises InvalidDataError if it is not one that `describe_dtype` gives."""
    if text in STORED:
        return Encoding(text, "number", numpy.dtype(text), STORED[text])
    if text in NULLABLE:
        return Encoding(text, "nullable", pandas.api.types.pandas_dtype(text), STORED[NULLABLE[text]])
    if found := _TIME.fullmatch(text):
        return Encoding(text, "time", _time_dtype(*found.groups()), "int64", unit=found[2])
    if found := _TEXT.fullmatch(text):
        return Encoding(text, "text", _text_dtype(*found.groups()), CODE_DTYPES[0])
    if found := _CATEGORY.fullmatch(text):
        return _parse_category(text, found[2] or _default_text(), bool(found[1] or found[3]))
    raise InvalidDataError(f"there is no column dtype {text[:80]!r}")


def code_dtype(rows: int) -> str:
    """The dtype of codes: it depends on the number of rows alone, so that it tells nothing of the values."""
    return CODE_DTYPES[rows > numpy.iinfo("int32").max]


def _describe_text(dtype: pandas.StringDtype) -> str:
    word = "string" if dtype.na_value is pandas.NA else "str"
    if _text_dtype(word, None) == dtype:
        return word
    return f"{word}[{dtype.storage.removesuffix('_numpy')}]"


def _text_dtype(word: str, storage: Any) -> Dtype:
    if word == "object":
        return numpy.dtype(object)
    if word == "string":
        return pandas.StringDtype(storage)
    try:
        return pandas.StringDtype(storage, na_value=numpy.nan)
    except TypeError:  # pandas 2.2: texts with NaN are objects, or live in pyarrow under another name
        return pandas.StringDtype(_OLD_STORAGE) if storage == "pyarrow" else numpy.dtype(object)


def _time_dtype(word: str, unit: Any, zone: str | None) -> Dtype:
    if zone is None:
        return numpy.dtype(f"{word}[{unit}]")
    if word == "timedelta64":
        raise InvalidDataError("a duration has no time zone")
    try:
        return pandas.DatetimeTZDtype(unit, zone)
    except (TypeError, ValueError, KeyError, LookupError, OSError):  # it depends on pandas' time zone library
        raise InvalidDataError(f"there is no time zone {zone!r} here; install tzdata, or upgrade it") from None


def _comes_back(text: str, dtype: Dtype) -> bool:
    try:
        return bool(parse_dtype(text).pandas == dtype)
    except InvalidDataError:
        return False


def _describe_category(dtype: pandas.CategoricalDtype) -> str:
    inner = describe_dtype(dtype.categories.dtype)
    parts = [] if inner == _default_text() else [inner]
    if dtype.ordered:
        parts.append("ordered")
    return f"category[{', '.join(parts)}]" if parts else "category"


def _parse_category(text: str, inner: str, ordered: bool) -> Encoding:
    categories = parse_dtype(inner)
    if categories.text == "float16":
        raise InvalidDataError("pandas has no categories of dtype float16")
    return Encoding(text, "category", pandas.CategoricalDtype(ordered=ordered), CODE_DTYPES[0], "", ordered, categories)


def _default_text() -> str:
    """The text of the dtype that this pandas gives to texts."""
    return describe_dtype(pandas.Series(["text"]).dtype)
