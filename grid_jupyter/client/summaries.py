"""What statistics of remote tables give: numbers that are elsewhere, with names that make pandas objects of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from grid_jupyter.errors import InvalidDataError, ObjectNotFoundError
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.tensors.text import plain

_NAN = float("nan")


class Table(Protocol):
    """A table, or a part of one, as its groups need it."""

    @property
    def dtypes(self) -> dict[str, str]:
        """pandas' name of each column's dtype."""

    def kinds(self) -> dict[str, str]:
        """What each column holds: number, bool, time, or codes."""

    def numbers(self) -> list[str]:
        """Names of the columns of numbers."""

    def column(self, name: str) -> RemoteTensor:
        """A pointer to one column's numbers."""

    def present(self, name: str, column: Any) -> Any:
        """A mask of the rows where this column is not missing."""

    def categories(self, name: str, user: str | None = None) -> list[Any]:
        """The words behind a column's codes."""


class RemoteSeries:
    """One number a column, elsewhere: `means["age"]` is a pointer to it, `get()` gives a pandas Series."""

    def __init__(self, index: Sequence[str], values: Any, whole: bool = False, name: Any = None) -> None:
        self.index = list(index)
        self.values = values
        self.name = name
        self._whole = whole

    def __getitem__(self, name: str) -> RemoteTensor:
        found: Any = self.values[_at(self.index, name)]
        return found  # type: ignore[no-any-return]

    def get(self, user: str | None = None) -> Any:
        """The numbers, for one who may read them. Raises GetNotPermittedError."""
        import pandas

        found = fetched(self.values, user).numpy()
        whole = self._whole and not (found != found).any()
        return pandas.Series(found.astype("int64") if whole else found, index=self.index, name=self.name)

    def __repr__(self) -> str:
        return f"<RemoteSeries of {', '.join(plain(name, 40) for name in self.index)} at {self.values.location}>"


class RemoteSummary:
    """A small table of numbers, elsewhere: `summary["age"]` is a RemoteSeries, `get()` gives a pandas DataFrame."""

    def __init__(
        self, index: Sequence[str], columns: Sequence[str], values: Any, times: dict[str, str] | None = None
    ) -> None:
        self.index = list(index)
        self.columns = list(columns)
        self.values = values
        self._times = times or {}

    def __getitem__(self, name: str) -> RemoteSeries:
        return RemoteSeries(self.index, self.values[:, _at(self.columns, name)], name=name)

    def get(self, user: str | None = None) -> Any:
        """The numbers, for one who may read them; times as such. Raises GetNotPermittedError."""
        import pandas

        found = pandas.DataFrame(fetched(self.values, user).numpy(), self.index, self.columns)
        if self._times:
            found = found.astype(dict.fromkeys(self._times, object))
            for name, text in self._times.items():
                found[name] = [_time(row, number, text) for row, number in found[name].items()]
            if any(text.startswith("datetime") for text in self._times.values()):
                found = found.reindex([row for row in self.index if row != "std"] + ["std"])  # as pandas orders it
        return found

    def __repr__(self) -> str:
        return f"<RemoteSummary of {', '.join(plain(name, 40) for name in self.columns)} at {self.values.location}>"


class RemoteCounts:
    """How often each value of a column is there; how many different ones there are is a part of the secret."""

    def __init__(self, table: Table, name: str, keys: Any, counts: Any) -> None:
        self._table = table
        self.name = name
        self.keys = keys
        self.counts = counts

    def get(self, user: str | None = None) -> Any:
        """The counts by value, the largest first, for one who may read them. Raises GetNotPermittedError."""
        import pandas

        found = pandas.Series(fetched(self.counts, user).numpy(), _labels(self._table, self.name, self.keys, user))
        return found.rename("count").rename_axis(self.name).sort_values(ascending=False, kind="stable")

    def __repr__(self) -> str:
        return f"<RemoteCounts of {plain(self.name, 40)} at {self.counts.location}>"


class RemoteGroups:
    """Rows by the values of one column."""

    def __init__(self, table: Table, name: str) -> None:
        column = table.column(name)
        self._table = table
        self.name = name
        self._present: Any = table.present(name, column)
        self.keys, self._group = torch.unique(column[self._present], return_inverse=True)
        self._columns = [one for one in table.numbers() if one != name]

    def count(self) -> RemoteGrouped:
        """How many entries of each group are not missing."""
        return self._grouped(lambda total, count: count)

    def sum(self) -> RemoteGrouped:
        """Sums of each group."""
        return self._grouped(lambda total, count: total)

    def mean(self) -> RemoteGrouped:
        """Means of each group."""
        return self._grouped(lambda total, count: total / count)

    def _grouped(self, of: Callable[[Any, Any], Any]) -> RemoteGrouped:
        if not self._columns:
            raise InvalidDataError("there are no other columns of numbers to group")
        return RemoteGrouped(self, self._columns, [of(*self._sums(self._table.column(name))) for name in self._columns])

    def _sums(self, column: Any) -> tuple[Any, Any]:
        values = column.double()[self._present]
        missing = torch.isnan(values)
        zeros = torch.zeros_like(self.keys, dtype=torch.float64)
        return (
            zeros.index_add(0, self._group, values.masked_fill(missing, 0.0)),
            zeros.index_add(0, self._group, (~missing).double()),
        )

    def labels(self, user: str | None) -> list[Any]:
        """The values that the groups have in common. Raises GetNotPermittedError."""
        return _labels(self._table, self.name, self.keys, user)


class RemoteGrouped:
    """A number for each group and column: `grouped["weight"]` is a pointer, `get()` gives a pandas DataFrame."""

    def __init__(self, groups: RemoteGroups, columns: Sequence[str], values: Sequence[Any]) -> None:
        self._groups = groups
        self.columns = list(columns)
        self._values = values

    def __getitem__(self, name: str) -> RemoteTensor:
        found: RemoteTensor = self._values[_at(self.columns, name)]
        return found

    def get(self, user: str | None = None) -> Any:
        """The numbers by group, in the order of the groups, for one who may read them. Raises GetNotPermittedError."""
        import pandas

        found = [fetched(values, user).numpy() for values in self._values]
        index = self._groups.labels(user)
        made = pandas.DataFrame(dict(zip(self.columns, found, strict=True)), index)
        return made.rename_axis(self._groups.name).sort_index()

    def __repr__(self) -> str:
        return f"<RemoteGrouped by {plain(self._groups.name, 40)} at {self._groups.keys.location}>"


def _at(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise ObjectNotFoundError(f"there is no {plain(name)!r}; there are: {', '.join(plain(one) for one in names)}")
    return list(names).index(name)


def fetched(pointer: Any, user: str | None) -> torch.Tensor:
    """The value of a pointer, which stays. Raises GetNotPermittedError."""
    found = pointer.get(user=user, deregister_ptr=False)
    made: torch.Tensor = found.unwrap() if isinstance(found, PrivateTensor) else found
    return made.detach()


def _labels(table: Table, name: str, keys: Any, user: str | None) -> list[Any]:
    """The values that keys stand for: words for codes, and numbers of the column's own kind."""
    kind, text = table.kinds()[name], table.dtypes[name]
    found = fetched(keys, user)
    if kind == "codes":
        words = table.categories(name, user)
        return [words[int(code)] for code in found]
    if kind == "time":
        return [_time("", float(number), text) for number in found]
    if kind == "bool":
        return [bool(number) for number in found]
    return [int(number) if "int" in text.lower() else float(number) for number in found]


def _time(row: str, number: float, text: str) -> Any:
    """Seconds as the time that they stand for in a column of that dtype."""
    import pandas

    from grid_jupyter.client.columns import parse_dtype

    moment = text.startswith("datetime")
    if row == "count" or number != number or (row == "std" and moment):
        return number if row == "count" else _NAN if moment and row == "std" else pandas.NaT
    whole = pandas.Timedelta(round(number * 1e6), unit="us")
    if not moment:
        return whole
    zone: Any = getattr(parse_dtype(text).pandas, "tz", None)
    made = pandas.Timestamp(0, tz="UTC") + whole
    return made.tz_convert(zone) if zone is not None else made.tz_localize(None)
