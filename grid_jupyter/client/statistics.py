"""Statistics of tables that are elsewhere: computed where the rows are, with pandas' numbers, read by who may read.

What is missing is left out, as pandas does: numbers come as float64 with NaN in the gaps, texts and categories
as codes with -1. How many rows there are, and how many gaps, nobody is told on the way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from grid_jupyter.client.summaries import RemoteCounts, RemoteGroups, RemoteSeries, RemoteSummary, fetched
from grid_jupyter.errors import InvalidDataError, ObjectNotFoundError
from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.tensors.text import plain

_NAN = float("nan")
_QUARTERS = (0.25, 0.5, 0.75)


class Statistics(ABC):
    """What one computes of the columns of a table; `mean` and the like take those of numbers, booleans included."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the columns."""

    @property
    @abstractmethod
    def dtypes(self) -> dict[str, str]:
        """pandas' name of each column's dtype."""

    @abstractmethod
    def column(self, name: str) -> RemoteTensor:
        """A pointer to one column's numbers."""

    @abstractmethod
    def categories(self, name: str, user: str | None = None) -> list[Any]:
        """The words behind a column's codes, for one who may read them."""

    def kinds(self) -> dict[str, str]:
        """What each column holds: number, bool, time, or codes."""
        from grid_jupyter.client.columns import parse_dtype  # pandas, which tensors alone do not need

        found = {}
        for name, text in self.dtypes.items():
            kind = parse_dtype(text).kind
            number = "bool" if text in ("bool", "boolean") else "number"
            found[name] = {"number": number, "nullable": number, "time": "time"}.get(kind, "codes")
        return found

    def to_tensor(self, columns: Sequence[str] | None = None) -> RemoteTensor:
        """A matrix [rows, columns] in float64, NaN where a number is missing; unless named, of all numbers."""
        names = self.numbers() if columns is None else list(columns)
        if not names:
            raise InvalidDataError("the table has no columns of numbers; name those that are to be used")
        made: Any = torch.stack([self.column(name).double() for name in names], 1)
        return made  # type: ignore[no-any-return]

    def count(self) -> RemoteSeries:
        """How many entries each column has that are not missing."""
        counts = [self.present(name, self.column(name)).sum() for name in self.columns]
        return RemoteSeries(self.columns, torch.stack(counts), whole=True)

    def sum(self) -> RemoteSeries:
        """Sum of each column."""
        return RemoteSeries(self.numbers(), self._matrix().sum, whole=self._whole())

    def mean(self) -> RemoteSeries:
        """Mean of each column."""
        return RemoteSeries(self.numbers(), self._matrix().mean)

    def var(self, ddof: int = 1) -> RemoteSeries:
        """Variance of each column, with n - ddof in the denominator."""
        return RemoteSeries(self.numbers(), self._matrix().var(ddof))

    def std(self, ddof: int = 1) -> RemoteSeries:
        """Standard deviation of each column, with n - ddof in the denominator."""
        return RemoteSeries(self.numbers(), self._matrix().var(ddof).sqrt())

    def min(self) -> RemoteSeries:
        """The least of each column."""
        return RemoteSeries(self.numbers(), self._matrix().quantile(0.0), whole=self._whole())

    def max(self) -> RemoteSeries:
        """The largest of each column."""
        return RemoteSeries(self.numbers(), self._matrix().quantile(1.0), whole=self._whole())

    def median(self) -> RemoteSeries:
        """Median of each column."""
        return RemoteSeries(self.numbers(), self._matrix().quantile(0.5))

    def quantile(self, q: float = 0.5) -> RemoteSeries:
        """A quantile of each column, interpolated between neighbours. Raises InvalidDataError for q beyond 0 to 1."""
        if not 0 <= q <= 1:
            raise InvalidDataError(f"a quantile is between 0 and 1, which {q} is not")
        return RemoteSeries(self.numbers(), self._matrix().quantile(q), name=q)

    def corr(self) -> RemoteSummary:
        """Pearson's correlation of each two columns, over the rows that have both."""
        names = self.numbers()
        return RemoteSummary(names, names, self._matrix().corr())

    def describe(self) -> RemoteSummary:
        """Count, mean, standard deviation, least, quartiles and largest of columns of numbers and times, as pandas has
        it. Times are exact to a microsecond."""
        kinds = self.kinds()
        names = [name for name in self.columns if kinds[name] in ("number", "time")]
        if not names:
            raise InvalidDataError(
                "the table has no columns of numbers or times to describe; value_counts(…) counts codes"
            )
        matrix = _Matrix(self.to_tensor(names))
        rows = {
            "count": matrix.count,
            "mean": matrix.mean,
            "std": matrix.var(1).sqrt(),
            "min": matrix.quantile(0.0),
            **{f"{q:.0%}": matrix.quantile(q) for q in _QUARTERS},
            "max": matrix.quantile(1.0),
        }
        times = {name: self.dtypes[name] for name in names if kinds[name] == "time"}
        return RemoteSummary(list(rows), names, torch.stack(list(rows.values())), times)

    def value_counts(self, name: str) -> RemoteCounts:
        """How often each value of a column is there."""
        column = self.column(name)
        keys, counts = torch.unique(column[self.present(name, column)], return_counts=True)
        return RemoteCounts(self, name, keys, counts)

    def groupby(self, name: str) -> RemoteGroups:
        """Rows by the values of a column; `.mean()`, `.sum()` and `.count()` give the other columns' of each group."""
        return RemoteGroups(self, name)

    def numbers(self) -> list[str]:
        """Names of the columns of numbers, booleans included."""
        return [name for name, kind in self.kinds().items() if kind in ("number", "bool")]

    def _whole(self) -> bool:
        return all("int" in self.dtypes[name].lower() or self.dtypes[name] == "bool" for name in self.numbers())

    def _matrix(self) -> _Matrix:
        return _Matrix(self.to_tensor())

    def present(self, name: str, column: Any) -> Any:
        """A mask of the rows where this column is not missing."""
        return column >= 0 if self.kinds()[name] == "codes" else ~torch.isnan(column.double())


class _Matrix:
    """Statistics over the rows of a matrix [rows, columns] in float64 whose gaps are NaN; each [columns]."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.missing = torch.isnan(values)
        self.count = (~self.missing).sum(0)
        self.sum = values.masked_fill(self.missing, 0.0).sum(0)
        self.mean = self.sum / self.count
        self._sorted: Any = None

    def var(self, ddof: int) -> Any:
        freedom = (self.count - ddof).double()
        squares = (self._values - self.mean).masked_fill(self.missing, 0.0).square().sum(0)
        return squares / freedom.masked_fill(freedom <= 0, _NAN)

    def quantile(self, q: float) -> Any:
        if self._sorted is None:
            # NaN comes last in order; one more of it stands for a column of nothing
            end = self.mean.new_full((1, self.mean.shape[0]), _NAN)
            self._sorted = torch.cat([torch.sort(self._values, 0).values, end])
        place = (self.count - 1).clamp(min=0).double() * q
        below, above = (
            torch.gather(self._sorted, 0, at.long().unsqueeze(0))[0] for at in (place.floor(), place.ceil())
        )
        part = place - place.floor()
        return torch.where(part > 0, below + (above - below) * part, below)

    def corr(self) -> Any:
        centred = (self._values - self.mean).masked_fill(self.missing, 0.0)
        there = (~self.missing).double()
        pairs = there.t() @ there
        sums, squares = centred.t() @ there, (centred * centred).t() @ there
        scatter = squares - sums * sums / pairs
        return (centred.t() @ centred - sums * sums.t() / pairs) / (scatter * scatter.t()).sqrt()


class RemoteFrame(Statistics):
    """Some columns or rows of a published table: `table[["age", "weight"]]`, `table[table["age"] > 60]`."""

    def __init__(self, table: Any, columns: Sequence[str], masks: tuple[RemoteTensor, ...] = ()) -> None:
        for name in columns:
            if name not in table.columns:
                raise ObjectNotFoundError(f"the table has no column {plain(str(name))!r}; see .columns")
        self._table = table
        self._masks = masks
        self._columns = list(columns)
        self._taken: dict[str, RemoteTensor] = {}

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._columns)

    @property
    def dtypes(self) -> dict[str, str]:
        """pandas' name of each column's dtype."""
        return {name: self._table.dtypes[name] for name in self._columns}

    def categories(self, name: str, user: str | None = None) -> list[Any]:
        """The words behind a column's codes, for one who may read them. Raises GetNotPermittedError."""
        words: list[Any] = self._table.categories(name, user)
        return words

    @property
    def location(self) -> Any:
        """Where the rows are."""
        return self._table.location

    def column(self, name: str) -> RemoteTensor:
        """A pointer to one column's numbers, of the rows that were chosen. Raises ObjectNotFoundError."""
        if name not in self.columns:
            raise ObjectNotFoundError(f"these columns have no {plain(name)!r}; see .columns")
        if name not in self._taken:
            found = self._table.column(name)
            for mask in self._masks:
                found = found[mask]
            self._taken[name] = found
        return self._taken[name]

    def __getitem__(self, key: Any) -> Any:
        return self.column(key) if isinstance(key, str) else chosen(self._table, self.columns, key, self._masks)

    def get(self, user: str | None = None) -> Any:
        """The part of the DataFrame that was published, for one who may read it. Raises GetNotPermittedError."""
        frame = self._table.get(user)
        for mask in self._masks:
            frame = frame[fetched(mask, user).numpy()]
        return frame[self.columns]

    def __repr__(self) -> str:
        rows = f" of the rows of {len(self._masks)} masks" if self._masks else ""
        return f"<RemoteFrame of {', '.join(plain(name, 40) for name in self.columns)}{rows} at {self.location}>"


def chosen(table: Any, columns: Sequence[str], key: Any, masks: tuple[RemoteTensor, ...] = ()) -> RemoteFrame:
    """What `table[key]` means for a list of names, or a mask of rows. Raises InvalidDataError for anything else."""
    if isinstance(key, RemoteTensor):
        if key.dtype is not torch.bool:
            raise InvalidDataError(
                f"rows are chosen by a mask of booleans, such as table['age'] > 60, not by {key.dtype}"
            )
        return RemoteFrame(table, columns, (*masks, key))
    if isinstance(key, (list, tuple)) and all(isinstance(name, str) for name in key):
        for name in key:
            if name not in columns:
                raise ObjectNotFoundError(f"the table has no column {plain(name)!r}; see .columns")
        return RemoteFrame(table, key, masks)
    raise InvalidDataError("columns are chosen by name or a list of names, rows by a mask that was computed of columns")
