"""A PostgreSQL of its own for tests: a cluster in a directory that is removed, run by a user that is not root."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import URL

from grid_jupyter.store.database import Database
from grid_jupyter.store.records import Base

PASSWORD = "a-password-of-tests"


def binaries() -> Path | None:
    """Where the server's programs are; Debian has them in no PATH."""
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@dataclass
class Postgres:
    """A server that listens on a Unix socket, where a password is asked for."""

    directory: Path

    def url(self, database: str) -> URL:
        """A database's address, with the password."""
        query = {"host": str(self.directory)}
        return URL.create("postgresql+psycopg", "grid", PASSWORD, database=database, query=query)

    def fresh(self) -> URL:
        """A database at the newest schema without rows. It is the same one each time: making one takes a second."""
        tables = ", ".join(f'"{name}"' for name in Base.metadata.tables)
        self.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE", database="migrated")
        return self.url("migrated")

    def empty(self) -> URL:
        """A database without tables."""
        name = f"t{secrets.token_hex(8)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """As its owner."""
        host = str(self.directory)
        with psycopg.connect(host=host, user="grid", password=PASSWORD, dbname=database, autocommit=True) as made:
            made.execute(statement.encode())


@contextmanager
def postgres(programs: Path) -> Iterator[Postgres]:
    """Start one, and take it away afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="grid-pg-", dir="/tmp"))  # a socket's path has 107 bytes
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to be root
    if user is not None:
        os.chown(directory, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    (directory / "password").write_text(PASSWORD)
    (directory / "password").chmod(0o644)

    def run(program: str, *arguments: str) -> None:
        told = subprocess.run([programs / program, *arguments], user=user, cwd=directory, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)  # fmt: skip
        assert told.returncode == 0, told.stdout

    data, log = str(directory / "data"), str(directory / "log")
    # no sync: what a machine that loses its power keeps is PostgreSQL's to test
    options = f"-c listen_addresses= -c unix_socket_directories={directory} -c fsync=off"
    try:
        run("initdb", "-D", data, "-U", "grid", "-A", "scram-sha-256", "--pwfile", str(directory / "password"),
            "-E", "UTF8", "--no-sync")  # fmt: skip
        run("pg_ctl", "-D", data, "-o", options, "-l", log, "-w", "start")
        try:
            made = Postgres(directory)
            made.execute("CREATE DATABASE migrated")
            Database(made.url("migrated")).close()
            yield made
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(directory)
