"""Statements that are made once and run often. SQLite's driver gets them as they are: what SQLAlchemy does around each
takes several times as long as SQLite itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError

Clause = Select[Any] | Insert | Update | Delete
_Way = Callable[[Any], Any] | None
"""How a value of a column's type becomes one of the driver's, or the other way; None: it is the same."""


@dataclass(frozen=True)
class _Made:
    """As the driver takes it: the text, the values that never change, and for each `?` its name and way."""

    text: str
    fixed: Mapping[str, Any]
    asked: tuple[tuple[str, _Way], ...]
    found: tuple[tuple[int, _Way], ...]
    """The columns of a row that are not as the driver gives them."""


class Statement:
    """A select, insert, update or delete whose values have names (`bindparam`; of an insert, its columns)."""

    def __init__(self, clause: Clause) -> None:
        self._clause = clause
        self._made: _Made | None = None

    def run(self, connection: Connection, asked: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run it with these values, the same names each time; the rows that it gives. Raises DBAPIError."""
        if connection.dialect.name != "sqlite":
            found = connection.execute(self._clause, dict(asked))
            return [tuple(row) for row in found] if found.returns_rows else []
        made = self._made
        if made is None:
            made = self._made = _make(self._clause, connection.dialect, asked)
        values = {**made.fixed, **asked}
        driver: Any = connection.connection.driver_connection
        try:
            given = [values[name] if way is None else way(values[name]) for name, way in made.asked]
            rows: list[tuple[Any, ...]] = driver.execute(made.text, given).fetchall()
        except sqlite3.Error as error:
            raise DBAPIError.instance(made.text, None, error, sqlite3.Error, hide_parameters=True) from error
        return [_read(row, made.found) for row in rows] if made.found else rows


def _make(clause: Clause, dialect: Dialect, asked: Mapping[str, Any]) -> _Made:
    compiled: Any = clause.compile(dialect=dialect, column_keys=list(asked) if isinstance(clause, Insert) else None)
    types = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
    names = compiled.positiontup or ()
    columns = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in clause.exported_columns]
    return _Made(
        text=str(compiled),
        fixed={name: value for name, value in compiled.params.items() if name not in asked},
        asked=tuple((name, types[name].bind_processor(dialect)) for name in names),
        found=tuple((place, way) for place, way in enumerate(columns) if way is not None),
    )


def _read(row: tuple[Any, ...], found: tuple[tuple[int, _Way], ...]) -> tuple[Any, ...]:
    read = list(row)
    for place, way in found:
        if way is not None:
            read[place] = way(read[place])
    return tuple(read)
