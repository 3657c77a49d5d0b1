"""What stores are tested on: SQLite and PostgreSQL for rows; the disk, fsspec and an S3 server for bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Postgres, binaries, postgres
from s3_server import options_file, s3_server
from sqlalchemy import URL

from grid_jupyter.store.database import sqlite_url
from grid_jupyter.store.object_address import ObjectAddress, at_url
from grid_jupyter.store.objects import ObjectStore

_numbers = itertools.count()


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


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server."""
    with s3_server() as address:
        yield address


def _place(kind: str, request: pytest.FixtureRequest, directory: Path) -> ObjectAddress:
    """An empty prefix."""
    if kind == "s3":
        file = options_file(request.getfixturevalue("s3"), directory / "options.json")
        return at_url(f"s3://ward7/test-{next(_numbers)}", file)
    if kind == "memory":
        return at_url(f"memory://ward7/test-{next(_numbers)}", None)
    return at_url((directory / "store").as_uri(), None)


@pytest.fixture(params=["file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectAddress:
    """Where an object store of each kind is, one after the other."""
    return _place(request.param, request, tmp_path)


@pytest.fixture(params=["disk", "file", "memory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ObjectStore | None:
    """The same; None where there is none, and the disk is all."""
    if request.param == "disk":
        return None
    made = ObjectStore(_place(request.param, request, tmp_path_factory.mktemp("objects")))
    made.set_mark(b"{}")
    return made
