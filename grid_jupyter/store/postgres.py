"""PostgreSQL as a Node's database: its address and where that may stand, one process at a time, whose state it is."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from grid_jupyter.errors import BadRequest, Conflict, NodeUnavailableError

VARIABLE = "GRID_JUPYTER_DATABASE"
"""The environment variable that has the address, where no option does."""
DRIVER = "postgresql+psycopg"
CONNECT_S = 10
"""How long a server has to answer, in seconds."""
HELD_S = 10.0
"""How long to wait for the lock of a process that was killed a moment ago, in seconds."""
MARK = "database"
"""The file of a state directory that says to which database its blobs belong."""
_SECRETS = frozenset({"password", "sslpassword"})
"""Parameters of libpq's that are one, behind the `?` of an address."""
_LOCK = 0x67726964  # "grid", in each database one

_SILENT_S = 20
"""How long the other end may say nothing before the connection counts as broken, in seconds; else it is hours."""

ENGINE: Mapping[str, Any] = {
    # one thread talks to it; a connection that broke is seen before it is used
    "pool_size": 1, "max_overflow": 0, "pool_pre_ping": True, "connect_args": {
        "connect_timeout": CONNECT_S, "tcp_user_timeout": 1000 * _SILENT_S,
        "keepalives_idle": _SILENT_S // 2, "keepalives_interval": _SILENT_S // 4, "keepalives_count": 2,
    },
}  # fmt: skip


def take_over(connection: Any, _record: object) -> None:
    """Make a new connection this process's: what is acknowledged is on the disk, and nobody else writes.

    Raises Conflict where another process has this database.
    """
    until = time.monotonic() + HELD_S
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
        # the server holds the lock of a connection that was cut for as long as it does not know
        cursor.execute(f"SET tcp_keepalives_idle = {_SILENT_S // 2}")
        cursor.execute(f"SET tcp_keepalives_interval = {_SILENT_S // 4}")
        cursor.execute("SET tcp_keepalives_count = 2")
        while True:
            cursor.execute(f"SELECT pg_try_advisory_lock({_LOCK})")
            if cursor.fetchone()[0]:
                break
            if time.monotonic() > until:
                raise Conflict("another Node uses this database; each Node needs one of its own")
            time.sleep(0.1)  # in the database's own thread
    connection.commit()


def read_address(told: str | None, environment: Mapping[str, str]) -> URL | None:
    """The database that an option or the environment names: a URL, or `@FILE` with one. None: SQLite.

    Raises BadRequest for another kind of database, for a password where every user of the machine could see it, and
    for a file that others may read.
    """
    if told is not None and not told.startswith("@"):
        address = _url(told)
        if address.password is not None or not _SECRETS.isdisjoint(address.query):
            raise BadRequest(
                "a password on the command line is seen by everybody on this machine: put the address into a file that "
                f"you alone may read and give --database @FILE, or into the environment variable {VARIABLE}"
            )
        return address
    text = _text_of(Path(told[1:]).expanduser()) if told is not None else environment.get(VARIABLE, "")
    return _url(text.strip()) if text.strip() else None


def check_state(state: Path, address: URL | None) -> None:
    """Refuse a state directory whose rows are in another kind of database. Raises BadRequest."""
    if address is None and (state / MARK).exists():
        raise BadRequest(
            f"the rows of the Node of {state} are in PostgreSQL: say where (--database, or {VARIABLE}), or give "
            "another state directory"
        )
    if address is not None and (state / "grid.db").exists():
        raise BadRequest(
            f"the rows of the Node of {state} are in its SQLite file: start it without --database, or give another "
            "state directory"
        )


def settle_whose(state: Path, known: str, fresh: str) -> str:
    """The id of the Node whose state this directory and this database have together: when a Node starts, files that no
    row names are removed. `known` is the database's, empty at its first start, when it is to be `fresh`.

    Raises BadRequest where the two belong to different Nodes.
    """
    mark = state / MARK
    marked = mark.read_text().strip() if mark.exists() else ""
    if marked != known and known:
        raise BadRequest(
            f"this database belongs to a Node with another state directory than {state}: give the one, or the other"
        )
    if not marked:
        mark.write_text((known or fresh) + "\n")  # before the database says so: killed in between, it goes on from here
    return marked or fresh


def is_gone(error: DBAPIError) -> bool:
    """Whether it says that the server does not answer, or let nobody in."""
    state = getattr(error.orig, "sqlstate", "")  # None: it never came so far
    refused = isinstance(error, OperationalError) and (state is None or state[:2] in ("08", "28", "3D", "57"))
    return error.connection_invalidated or refused


def unavailable(address: URL) -> NodeUnavailableError:
    """Nobody answers there, or lets this Node in. Names no user and no password."""
    host = address.host or address.query.get("host", "this machine")
    return NodeUnavailableError(
        f"PostgreSQL at {host}, database {address.database}, cannot be used: it does not answer, or refuses this user; "
        "see its log"
    )


def _url(text: str) -> URL:
    try:
        address = make_url(text)
    except (ArgumentError, ValueError):
        address = None
    if address is None or address.get_backend_name() != "postgresql" or not address.database:
        raise BadRequest(f"a database is {DRIVER}://USER@HOST/NAME; without one a Node has a SQLite file of its own")
    return address.set(drivername=DRIVER)


def _text_of(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        text = file.read_text()
    except (OSError, UnicodeError):
        raise BadRequest(f"{file} with the address of the database cannot be read") from None
    if stat.S_IMODE(mode) & 0o077 and os.name == "posix":
        raise BadRequest(f"others may read {file}, which has the address of the database: chmod 600 it")
    return text
