"""One SQL database and the one thread that talks to it: transactions, durability, migration, errors.

It is a SQLite file, or PostgreSQL; store/postgres.py knows what is different there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    DependencyError,
    NodeUnavailableError,
    OutcomeUnknownError,
    StorageFullError,
)
from grid_jupyter.store.migrations import HEAD, upgrade
from grid_jupyter.store.postgres import ENGINE, is_gone, take_over, unavailable

T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
"""How long a transaction waits for another process that writes to the same SQLite file."""
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system says when no more bytes can be kept."""
DISK_FULL_TEXT = "the disk of this Node is full and nothing was kept; its owner must free space, then try again"
AWAY_TEXT = "the database of this Node does not answer; try again in a moment"
"""What callers are told while PostgreSQL is away."""
DOUBT_TEXT = (
    "the database of this Node went away while this was being kept, and nobody knows whether it was: look whether it "
    "is there, or send it again"
)
DOUBT_S = 60.0
"""How long PostgreSQL is asked whether a transaction happened whose end was not heard, in seconds."""

_SQLITE_FULL = 13
_TOGETHER = 64
"""Transactions that are committed together, at most: they wait for the disk once."""


def is_id(value: int) -> bool:
    """Whether a number from outside can be the id of a row at all (a driver refuses what does not fit 64 bits)."""
    return 0 < value < 2**63


def sqlite_url(path: Path) -> URL:
    """The address of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path))


class Database:
    """A database at the newest schema, with a thread of its own in which every transaction runs.

    SQLite runs in WAL mode, and a commit is on the disk (synchronous=FULL) before it is answered. All work goes
    through one thread, so transactions of one process follow one another and need no further locks; those that wait
    for it at the same time are committed together, which is one wait for the disk.
    """

    def __init__(self, url: str | URL) -> None:
        """Open the database, creating the file (mode 0600) and its directory (0700), and migrate it.

        Raises StorageFullError, GridError if a newer version of this software wrote the database; of PostgreSQL
        NodeUnavailableError, DependencyError, and Conflict where another process has this database.
        """
        address = make_url(url)
        self._address = address
        self._sqlite = address.get_backend_name() == "sqlite"
        if self._sqlite and address.database and address.database != ":memory:":
            _create_private(Path(address.database))
        # what somebody stored is in no text of an error
        more: Mapping[str, Any] = {} if self._sqlite else ENGINE
        try:
            self._engine: Engine = create_engine(address, hide_parameters=True, **more)
        except ModuleNotFoundError:
            raise DependencyError(
                "psycopg is not installed, and PostgreSQL needs it; pip install 'grid-jupyter[postgres]'"
            ) from None
        if not self._sqlite:
            event.listen(self._engine, "connect", self._take_over)
            event.listen(self._engine, "commit", self._about_to_commit)
        if self._sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_immediate)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grid-database")
        self._waiting: deque[tuple[Callable[[Session], Any], Future[Any]]] = deque()
        self._ident = self._thread.submit(threading.get_ident).result()
        self._closed = False
        self._opened = False
        self._committing: int | None = None  # PostgreSQL's number of the transaction, from its COMMIT on
        try:
            self._thread.submit(self._migrate).result()
            self._opened = True
        except BaseException:  # the thread must not outlive an open that failed
            self.close()
            raise

    def call(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction and wait for it. Any error rolls it back.

        Raises what `work` raises, Conflict for a broken uniqueness or reference, StorageFullError; NodeUnavailableError
        where PostgreSQL is away, and OutcomeUnknownError where it has been since the COMMIT: files that rows may name
        by then are to stay.
        """
        return self._submit(work).result()

    async def run(self, work: Callable[[Session], T]) -> T:
        """Like `call`, without blocking the event loop. Cancelled before it began, it does not happen."""
        return await asyncio.wrap_future(self._submit(work))

    def close(self) -> None:
        """Finish the work that was handed in, close the file, end the thread."""
        if not self._closed:
            self._closed = True
            self._thread.submit(self._engine.dispose)
            self._thread.shutdown(wait=True)

    def _submit(self, work: Callable[[Session], T]) -> Future[T]:
        if threading.get_ident() == self._ident:
            raise RuntimeError("a transaction cannot start another one; pass the Session on")
        future: Future[T] = Future()
        self._waiting.append((work, future))
        try:
            self._thread.submit(self._work_off)
        except RuntimeError:  # it was closed
            self._waiting.remove((work, future))
            raise
        return future

    def _work_off(self) -> None:
        """What waits by now, together: whoever comes while the disk is waited for is in the next commit."""
        count = min(len(self._waiting), _TOGETHER)
        taken = [self._waiting.popleft() for _ in range(count)]
        begun = [(work, future) for work, future in taken if future.set_running_or_notify_cancel()]
        if len(begun) == 1:
            _settle(begun[0][1], lambda: self._transact(begun[0][0]))
        elif begun:
            self._transact_together(begun)

    def _transact(self, work: Callable[[Session], T]) -> T:
        self._committing = None
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                result = work(session)
        except (DBAPIError, OSError) as error:
            if not self._happened(error):
                raise _meaning(error) from error
        return result

    def _transact_together(self, works: Sequence[tuple[Callable[[Session], Any], Future[Any]]]) -> None:
        """Each in a savepoint, which an error rolls back, and one commit. Nobody is answered before that."""
        outcomes: list[Callable[[], Any]] = []
        self._committing = None
        try:
            with self._engine.begin() as connection:
                for work, _ in works:
                    outcomes.append(_within(connection, work))
        except (_LostError, IntegrityError):  # nothing of it happened: by itself each finds out whether it was the one
            outcomes = [partial(self._transact, work) for work, _ in works]
        except BaseException as error:
            try:
                happened = self._happened(error)
            except OutcomeUnknownError as unknown:
                error, happened = unknown, False
            if not happened:
                outcomes = [partial(_raise, error)] * len(works)
        for (_, future), outcome in zip(works, outcomes, strict=True):
            _settle(future, outcome)

    def _take_over(self, connection: Any, record: object) -> None:
        try:
            take_over(connection, record)
        except Conflict:
            if not self._opened:
                raise
            # perhaps by the connection that we lost: nothing is wrong with what is asked for
            raise NodeUnavailableError(AWAY_TEXT) from None

    def _about_to_commit(self, connection: Connection) -> None:
        self._committing = connection.exec_driver_sql("SELECT txid_current_if_assigned()").scalar()

    def _happened(self, error: BaseException) -> bool:
        """Whether a transaction is kept though its end was an error: what broke may be the answer to its COMMIT alone,
        and whoever is told that nothing happened deletes files that rows name by then.

        Raises OutcomeUnknownError where nobody says.
        """
        number, self._committing = self._committing, None
        if number is None or not isinstance(error, DBAPIError) or not is_gone(error):
            return False
        until = time.monotonic() + DOUBT_S
        while time.monotonic() < until:
            try:
                with self._engine.connect() as connection:
                    status = connection.exec_driver_sql("SELECT txid_status(%s)", (number,)).scalar()
            except (DBAPIError, NodeUnavailableError) as away:
                if isinstance(away, DBAPIError) and not is_gone(away):
                    break  # another server, perhaps, than the one that was lost
            else:
                if status in ("committed", "aborted"):
                    return bool(status == "committed")
            time.sleep(0.1)  # in the database's own thread
        raise OutcomeUnknownError(DOUBT_TEXT) from error

    def _migrate(self) -> None:
        try:
            with self._engine.begin() as connection:
                revision = _revision(connection)
                if revision != HEAD:  # Alembic takes a quarter of a second to import: only when there is work
                    upgrade(connection, revision)
        except (DBAPIError, OSError) as error:
            if isinstance(error, DBAPIError) and is_gone(error):
                raise unavailable(self._address) from None
            raise _meaning(error) from error


class _LostError(Exception):
    """After an error of the database itself, nothing is known of the transaction around a savepoint."""


def _within(connection: Connection, work: Callable[[Session], T]) -> Callable[[], T]:
    """Run work in a savepoint; what it came to."""
    try:
        with (
            Session(connection, expire_on_commit=False, join_transaction_mode="create_savepoint") as session,
            session.begin(),
        ):
            result = work(session)
    except BaseException as error:
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            raise _LostError from error
        return partial(_raise, error)
    return lambda: result


def _raise(error: BaseException) -> NoReturn:
    if isinstance(error, DBAPIError | OSError):
        raise _meaning(error) from error
    raise error


def _settle(future: Future[T], outcome: Callable[[], T]) -> None:
    try:
        result = outcome()
    except BaseException as error:  # it is the caller's
        future.set_exception(error)
    else:
        future.set_result(result)


def _create_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its -wal and -shm files the mode of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin a transaction only at its first write
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
        "trusted_schema=OFF",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    # What a transaction reads must still hold when it writes, also beside another process.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _meaning(error: DBAPIError | OSError) -> Exception:
    """The error of the tree that a driver's or the system's error stands for, or that error itself."""
    if isinstance(error, OSError):
        return StorageFullError(DISK_FULL_TEXT) if error.errno in DISK_FULL_ERRNOS else error
    if is_gone(error):
        return NodeUnavailableError(AWAY_TEXT)
    if isinstance(error, DataError):
        return BadRequest("a text has a character that the database of this Node cannot keep, such as NUL")
    if isinstance(error, IntegrityError):
        return Conflict("this contradicts what is stored: a name or id is taken, or something it refers to is gone")
    return StorageFullError(DISK_FULL_TEXT) if _is_full(error.orig) else error


def _is_full(error: BaseException | None) -> bool:
    if not isinstance(error, sqlite3.OperationalError):
        return "disk full" in str(error).lower()  # PostgreSQL's class 53100
    code = getattr(error, "sqlite_errorcode", None)  # Python 3.11 and later
    return code & 0xFF == _SQLITE_FULL if isinstance(code, int) else "is full" in str(error)
