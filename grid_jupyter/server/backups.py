"""Backups of a Node or Network of this machine: making one while it runs, and making a state directory of one."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from grid_jupyter.errors import Conflict, InvalidDataError, NotFound, StorageFullError
from grid_jupyter.server.running import try_lock
from grid_jupyter.store.archive import DATABASE, ROLES, Manifest, read_archive, read_manifest, write_archive
from grid_jupyter.store.migrations import check_known
from grid_jupyter.store.object_claim import of_backup
from grid_jupyter.wire.files import sync_directory
from grid_jupyter.wire.home import private_directory

_LOCK = "restore.lock"


def backup(state_dir: Path, file: Path, *, role: str, name: str) -> Manifest:
    """Write everything that lies in a state directory into one file (mode 0600), also while its process runs.

    All that was acknowledged before the call is in it. The file is there whole, or not at all.

    Raises Conflict if the file is there already, or the rows are in PostgreSQL; NotFound where there is no state,
    NodeUnavailableError, InvalidDataError for a database that is damaged, StorageFullError; of an object store what
    `of_backup` and ObjectStore raise.
    """
    file = file.absolute()
    if file.exists() or file.is_symlink():
        raise Conflict(f"{file} is there already; name another file, or remove it")
    if not file.parent.is_dir():
        raise NotFound(f"there is no directory {file.parent}")
    objects, nothing_deleted = of_backup(state_dir)
    with nothing_deleted, _every_descriptor(), _whole(file) as out:
        return write_archive(state_dir, out, role=role, name=name, scratch=file.parent, objects=objects)


def restore(file: Path, state_dir: Path, *, replace: bool = False) -> Manifest:
    """Make a state directory of a backup. Nothing is there of it before all of the backup was found to be whole.

    Raises InvalidDataError for a file that is no backup, or damaged; Conflict where `state_dir` is not empty (unless
    `replace`), or in use, or a newer version made the backup; NotFound, StorageFullError.
    """
    target = state_dir.absolute()
    if not target.parent.exists():
        private_directory(target.parent)
    _remove_left_overs(target, "restoring")
    with _opened(file) as archive, _draft(target, archive) as draft:
        _check_free(target, replace=replace)
        with _held(target):  # refused before a long file is read, too
            pass
        manifest = read_archive(archive, draft)
        _check_database(draft / DATABASE)
        _sync(draft)
        _put_in_place(draft, target)
        (target / _LOCK).unlink(missing_ok=True)  # not before: another restore takes what is not locked for left over
    return manifest


def look(file: Path) -> Manifest:
    """What a backup says of itself; nothing is checked yet. Raises NotFound, InvalidDataError, Conflict."""
    with _opened(file) as archive:
        return read_manifest(archive)


def _opened(file: Path) -> BinaryIO:
    try:
        archive = file.open("rb")
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(archive.fileno()).st_mode):
        archive.close()
        raise NotFound(f"{file} is no file")
    return archive


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """A new file of mode 0600 that has no name before it is whole."""
    try:
        fd = os.open(file.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without files that have no name
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as out:
                yield out
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    else:
        with os.fdopen(fd, "wb") as out:
            yield out
            directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:  # with a directory Python calls linkat, which follows what /proc names
                os.link(f"/proc/self/fd/{fd}", file.name, dst_dir_fd=directory, follow_symlinks=True)
            except FileExistsError:
                raise Conflict(f"{file} is there already; name another file, or remove it") from None
            finally:
                os.close(directory)
    _sync(file.parent)


@contextlib.contextmanager
def _every_descriptor() -> Iterator[None]:
    """As many open files as the system lets this user have: a backup opens all that it is made of."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@contextlib.contextmanager
def _draft(target: Path, archive: BinaryIO) -> Iterator[Path]:
    """A directory beside the target, with room for the archive. What is left of it at the end is removed."""
    need = os.fstat(archive.fileno()).st_size
    free = shutil.disk_usage(target.parent).free
    if need > free:
        raise StorageFullError(f"the backup has {need} bytes, and {target.parent} has room for {free}")
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.restoring-", dir=target.parent))  # mode 0700
    lock = try_lock(draft / _LOCK)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_left_overs(target: Path, kind: str) -> None:
    """What a restore that was killed has left beside the target. One that still works holds its lock."""
    for old in target.parent.glob(f".{target.name}.{kind}-*"):
        lock = try_lock(old / _LOCK)
        if lock is not None:
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)


def _check_free(target: Path, *, replace: bool) -> None:
    """Raises Conflict where something is in the way."""
    locks = {f"{role}.lock" for role in ROLES}
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise Conflict(f"{target} is no directory of its own; name the directory itself")
    found = {entry.name for entry in target.iterdir()} - locks if target.is_dir() else set()
    if found and not replace:
        raise Conflict(f"{target} is not empty; give another directory, or say --replace to throw that away")
    if found and DATABASE not in found:
        raise Conflict(f"{target} is not empty, and it is not the state of a Node or Network: it is not thrown away")


def _check_database(path: Path) -> None:
    """Raises InvalidDataError, and GridError for a schema of a newer version."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA trusted_schema=OFF")
            said = connection.execute("PRAGMA integrity_check(1)").fetchone()
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise InvalidDataError(f"the backup's database cannot be read: {error}") from None
    if said != ("ok",) or row is None:
        raise InvalidDataError("the backup's database is damaged")
    check_known(str(row[0]))


@contextlib.contextmanager
def _held(target: Path) -> Iterator[None]:
    """Nobody runs on this state meanwhile. Raises Conflict where somebody does."""
    with contextlib.ExitStack() as held:
        for role in ROLES if target.is_dir() else ():
            lock = try_lock(target / f"{role}.lock")
            if lock is None:
                raise Conflict(f"a {role} runs on {target}; end it first, then restore")
            held.callback(os.close, lock)
        yield


def _put_in_place(draft: Path, target: Path) -> None:
    """The draft becomes the target; what was there goes. A process that holds the target's state keeps it."""
    with _held(target):
        old = None
        if target.exists():
            old = target.with_name(f".{target.name}.replaced-{secrets.token_hex(4)}")
            target.rename(old)
        try:
            draft.rename(target)
        except OSError:  # something was begun there within this moment
            if old is not None and not target.exists():
                old.rename(target)
            raise Conflict(f"something else was made at {target} meanwhile; try again") from None
        _sync(target.parent)
    _remove_left_overs(target, "replaced")


def _sync(directory: Path) -> None:
    for path in [*(entry for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink()), directory]:
        sync_directory(path)
