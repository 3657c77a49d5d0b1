"""Databases as earlier versions left them: at any revision, made by that revision's own scripts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import grid_jupyter.store.migrations as migrations
from grid_jupyter.store.database import sqlite_url

SCRIPTS = list(ScriptDirectory(str(Path(str(migrations.__file__)).parent)).walk_revisions())[::-1]
"""The oldest first."""
REVISIONS = [script.revision for script in SCRIPTS]


def make_schema(file: Path, revision: str) -> sqlite3.Connection:
    """An empty database at a revision, open to write rows into."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(sqlite_url(file))
    with engine.begin() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            for script in SCRIPTS[: REVISIONS.index(revision) + 1]:
                script.module.upgrade()
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{revision}')")  # noqa: S608
    engine.dispose()
    return sqlite3.connect(file, isolation_level=None)
