"""The databases that tables are tested on: SQLite, and a PostgreSQL that is started for the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Postgres, binaries, postgres
from sqlalchemy import URL

from grid_jupyter.store.database import sqlite_url


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here")
    with postgres(programs) as made:
        yield made


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """An empty database of each kind, one after the other."""
    if request.param == "SQLite":
        return sqlite_url(tmp_path / "grid.db")
    made: URL = request.getfixturevalue("server").fresh()
    return made
