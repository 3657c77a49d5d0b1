"""Databases of every schema that there ever was: opened, they are as a new one, and keep what was in them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from schemas import REVISIONS, SCRIPTS, make_schema
from sqlalchemy import create_engine, inspect

from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.migrations import HEAD
from grid_jupyter.store.records import Base

CHANGED = {("training", "server_config")}
"""Columns whose values a revision changes on purpose: it has a test of its own in test_store_database.py."""


def fill(file: Path, connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """One row in every table that this schema has, each with references that lead somewhere: table → row."""
    engine = create_engine(sqlite_url(file))
    found = inspect(engine)
    tables = [name for name in found.get_table_names() if name != "alembic_version"]
    written: dict[str, dict[str, Any]] = {}
    while len(written) < len(tables):
        before = len(written)
        for table in tables:
            referred = {key["constrained_columns"][0]: key for key in found.get_foreign_keys(table)}
            if table in written or any(key["referred_table"] not in written for key in referred.values()):
                continue
            row = {}
            for column in found.get_columns(table):
                name = column["name"]
                if name in referred:
                    key = referred[name]
                    row[name] = written[key["referred_table"]][key["referred_columns"][0]]
                else:
                    row[name] = value_of(table, name, str(column["type"]))
            names = ", ".join(f'"{name}"' for name in row)
            marks = ", ".join("?" * len(row))
            connection.execute(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', list(row.values()))  # noqa: S608
            written[table] = row
        assert len(written) > before, "tables refer to one another in a circle"
    engine.dispose()
    return written


def value_of(table: str, column: str, kind: str) -> Any:
    if kind == "JSON":
        return json.dumps({"of": f"{table}.{column}"})
    if kind in ("FLOAT", "FLOAT(53)"):
        return 1_700_000_000.25
    if kind == "BOOLEAN":
        return 1
    return 7 if kind in ("INTEGER", "BIGINT") else f"{table} {column} ä"


def read(file: Path) -> dict[str, list[dict[str, Any]]]:
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')] for name in names}  # noqa: S608


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_database_of_any_schema_becomes_the_newest_and_keeps_its_rows(tmp_path: Path, revision: str):
    file = tmp_path / "state" / "grid.db"
    with closing(make_schema(file, revision)) as connection:
        written = fill(file, connection)
    Database(sqlite_url(file)).close()
    found = read(file)
    assert found["alembic_version"] == [{"version_num": HEAD}]
    for table, row in written.items():
        (kept,) = found[table]
        same = {name: value for name, value in row.items() if (table, name) not in CHANGED}
        assert {name: kept[name] for name in same} == same
    engine = create_engine(sqlite_url(file))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall() == []
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    engine.dispose()


def test_a_migration_that_fails_in_the_middle_leaves_the_old_schema_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "state" / "grid.db"
    with closing(make_schema(file, "0001")) as connection:
        connection.execute("INSERT INTO setting VALUES ('kept', 'yes')")
        connection.execute("CREATE TABLE push_notice (in_the_way INTEGER)")  # so that a later revision fails
    before = read(file)
    with pytest.raises(Exception, match="push_notice already exists"):
        Database(sqlite_url(file))
    assert read(file) == before
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE push_notice")
    Database(sqlite_url(file)).close()
    assert read(file)["setting"] == [{"key": "kept", "value": "yes"}]


def test_revisions_follow_one_another_without_a_gap():
    assert [f"{number:04}" for number in range(1, len(REVISIONS) + 1)] == REVISIONS
    assert [script.down_revision for script in SCRIPTS] == [None, *REVISIONS[:-1]]
