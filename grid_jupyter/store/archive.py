"""A backup as a file: an uncompressed tar of what a Node or Network keeps, with its checksums. Restores nothing.

    grid-backup.json   what it is of, and when it was made (Manifest)
    grid.db            the database
    blobs/<name>       bytes of data sets, models, jobs, values that are held
    training/<name>    bytes of model-centric training
    SHA256SUMS         the SHA-256 of each file before it, as sha256sum writes them

It is read as hostile: plain files of these names alone, each once, no longer than the archive says and holds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from grid_jupyter import __version__
from grid_jupyter.errors import (
    Conflict,
    InvalidDataError,
    LimitExceededError,
    NodeUnavailableError,
    NotFound,
    StorageFullError,
)
from grid_jupyter.store.database import DISK_FULL_ERRNOS
from grid_jupyter.store.objects import ObjectStore
from grid_jupyter.store.postgres import MARK

FORMAT = 1
"""Of the archive. One with another number is refused."""
MANIFEST = "grid-backup.json"
DATABASE = "grid.db"
SUMS = "SHA256SUMS"
ROLES = ("node", "network")
FOLDERS = ("blobs", "training")
"""Of a Node's state directory, with blobs in them; a Network has none."""
BLOCK = 512
"""Bytes of a tar header; files are padded to multiples of it."""
PIECE = 1 << 20
MAX_MANIFEST_BYTES = 64 << 10
LOCK_PATIENCE_S = 60.0
"""How long a moment without writing is waited for: a busy Node leaves many short ones."""

_BLOB = re.compile(r"[0-9a-f]{32}")
_MEMBER = re.compile(r"(blobs|training)/[0-9a-f]{32}")
_SUM = re.compile(r"([0-9a-f]{64})  (\S{1,64})")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup is of. `created` is the moment that it shows, in UTC seconds; `schema` the database's revision."""

    format: int
    role: str
    name: str
    version: str
    schema: str
    created: float
    files: int
    nbytes: int


@dataclass(frozen=True)
class _Member:
    name: str
    size: int


# ------------------------------------------------------------------ writing


def write_archive(
    state: Path, out: BinaryIO, *, role: str, name: str, scratch: Path, objects: ObjectStore | None = None
) -> Manifest:
    """Write what lies in a state directory at one moment, while its process may run; and what its object store has
    besides, from which nothing is deleted meanwhile.

    Every row that was committed before the call is in it, with the bytes that it names: no row changes while the files
    are opened, and what is open stays readable when it is deleted. `scratch` is a directory with room for the database.

    Raises NotFound where there is no database, Conflict where that is PostgreSQL, NodeUnavailableError where it never
    rests, or the object store is away, ObjectNotFoundError where an object is damaged, StorageFullError.
    """
    with ExitStack() as stack, _disk_full_told():
        files, schema, created = _at_one_moment(state, scratch, stack)
        sizes = {member: os.fstat(file.fileno()).st_size for member, file in files.items()}
        far = {} if objects is None else _far(objects, files)
        sizes |= {member: nbytes for member, (nbytes, _) in far.items()}
        manifest = Manifest(
            format=FORMAT,
            role=role,
            name=name,
            version=__version__,
            schema=schema,
            created=created,
            files=len(sizes),
            nbytes=sum(sizes.values()),
        )
        head = msgspec.json.encode(manifest)
        sums = [f"{hashlib.sha256(head).hexdigest()}  {MANIFEST}"]
        _put(out, MANIFEST, head, created)
        for member, file in files.items():
            sums.append(f"{_copy(_pieces(file), out, _Member(member, sizes[member]), created)}  {member}")
            file.close()
        for member, (nbytes, pieces) in far.items():
            sums.append(f"{_copy(pieces, out, _Member(member, nbytes), created)}  {member}")
        _put(out, SUMS, "".join(f"{line}\n" for line in sums).encode(), created)
        out.write(bytes(2 * BLOCK))
        out.flush()
        os.fsync(out.fileno())
        return manifest


def _at_one_moment(state: Path, scratch: Path, stack: ExitStack) -> tuple[dict[str, BinaryIO], str, float]:
    """All files of a moment, open, the database's copy among them; its schema; when that was."""
    path = state / DATABASE
    if not path.is_file() and (state / MARK).is_file():
        raise Conflict(
            f"the rows of the Node of {state} are in PostgreSQL, whose backups are its own: stop the Node, pg_dump the "
            "database, and copy the state directory; both must be of one moment"
        )
    if not path.is_file():
        raise NotFound(f"there is no {DATABASE} in {state}: it is not the state of a Node or Network")
    files: dict[str, BinaryIO] = {}
    copy, name = tempfile.mkstemp(dir=scratch, prefix=".grid-backup-")
    files[DATABASE] = stack.enter_context(os.fdopen(copy, "rb"))
    try:
        target = stack.enter_context(closing(sqlite3.connect(name, isolation_level=None)))
        target.execute("PRAGMA journal_mode=MEMORY")
        target.execute("PRAGMA user_version=0")  # it opens the file now, which then needs no name any more
    finally:
        Path(name).unlink()
    with (
        closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as holder,
        closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as reader,
    ):
        _hold(holder)
        try:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on it sees this moment
            created = time.time()
            for folder in FOLDERS:
                files.update(_open_all(state / folder, stack))
            schema = _schema(reader)
        finally:
            holder.execute("ROLLBACK")
        reader.backup(target)
    return files, schema, created


def _hold(connection: sqlite3.Connection) -> None:
    """Keep everybody else from writing. SQLite's own way to wait sleeps longer than a busy Node rests."""
    until = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise InvalidDataError(f"{DATABASE} cannot be read: {error}") from None
            if time.monotonic() > until:
                raise NodeUnavailableError(
                    f"the database did not rest for {LOCK_PATIENCE_S:.0f} s; try again, or stop the Node first"
                ) from None
            time.sleep(0.002)
        except sqlite3.DatabaseError as error:
            raise InvalidDataError(f"{DATABASE} cannot be read: {error}") from None
        else:
            return


def _open_all(folder: Path, stack: ExitStack) -> Iterator[tuple[str, BinaryIO]]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        found = sorted(one.name for one in entries if _BLOB.fullmatch(one.name) and one.is_file(follow_symlinks=False))
    for name in found:
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # no row has named it any more, and it was just deleted
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise LimitExceededError(
                    "there are more files than one process may open here: raise the limit (ulimit -n), then try again"
                ) from None
            raise
        yield f"{folder.name}/{name}", stack.enter_context(os.fdopen(fd, "rb"))


def _schema(database: sqlite3.Connection) -> str:
    try:
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise InvalidDataError(f"{DATABASE} is not a database of grid_jupyter: {error}") from None
    if row is None:
        raise InvalidDataError(f"{DATABASE} has no schema: the first start of this Node was cut short")
    return str(row[0])


def _put(out: BinaryIO, name: str, data: bytes, at: float) -> None:
    out.write(_header(_Member(name, len(data)), at) + data + bytes(-len(data) % BLOCK))


def _far(objects: ObjectStore, here: Collection[str]) -> dict[str, tuple[int, Iterator[bytes]]]:
    """The files of a backup of which there is no copy here: their lengths, and their bytes, which are yet to come."""
    return {
        f"{folder}/{name}": (stored.nbytes, objects.pieces(folder, name, stored))
        for folder in FOLDERS
        for name, stored in sorted(objects.list(folder).items())
        if f"{folder}/{name}" not in here
    }


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE):
        yield piece


def _copy(pieces: Iterable[bytes], out: BinaryIO, member: _Member, at: float) -> str:
    """Append a file; its SHA-256."""
    out.write(_header(member, at))
    digest, left = hashlib.sha256(), member.size
    for piece in pieces:
        digest.update(piece)
        left -= len(piece)
        if left < 0:
            break
        out.write(piece)
    if left:
        raise InvalidDataError(f"{member.name} changed its length while it was read")
    out.write(bytes(-member.size % BLOCK))
    return digest.hexdigest()


def _header(member: _Member, at: float) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.size, info.mode, info.mtime = member.size, 0o600, int(at)
    return info.tobuf(tarfile.GNU_FORMAT)


# ------------------------------------------------------------------ reading


def read_manifest(archive: BinaryIO) -> Manifest:
    """What a backup says of itself, unchecked. Raises InvalidDataError, Conflict."""
    return _first(archive)[0]


def read_archive(archive: BinaryIO, into: Path) -> Manifest:
    """Unpack a backup into an empty directory of ours, and hold each byte against its checksum.

    What lies there when this raises is to be thrown away. Raises InvalidDataError, naming what is wrong;
    StorageFullError; Conflict where a newer version made it.
    """
    with _disk_full_told():
        manifest, head = _first(archive)
        left = os.fstat(archive.fileno()).st_size
        for folder in FOLDERS if manifest.role == "node" else ():
            (into / folder).mkdir(mode=0o700)
        found = {MANIFEST: hashlib.sha256(head).hexdigest()}
        told: dict[str, str] | None = None
        while (member := _next(archive, left - archive.tell())) is not None:
            if told is not None:
                raise InvalidDataError(f"{member.name[:80]!r} comes after {SUMS}, which is the last file of a backup")
            if member.name == SUMS:
                told = _sums(archive, member, manifest.files + 1)
            elif member.name in found:
                raise InvalidDataError(f"{member.name} is there twice")
            elif "/" in member.name and manifest.role != "node":
                raise InvalidDataError(f"the backup has {member.name}, which no Network has")
            else:
                found[member.name] = _unpack(archive, member, into)
    if told is None:
        raise InvalidDataError(f"the backup has no {SUMS} at its end: it was cut short")
    _compare(found, told, manifest)
    return manifest


def _first(archive: BinaryIO) -> tuple[Manifest, bytes]:
    archive.seek(0)
    try:
        member = _next(archive, os.fstat(archive.fileno()).st_size)
    except InvalidDataError:
        member = None
    if member is None or member.name != MANIFEST or member.size > MAX_MANIFEST_BYTES:
        raise InvalidDataError(f"this is not a backup, which begins with {MANIFEST}")
    head = _read(archive, member.size)
    try:
        manifest = msgspec.json.decode(head, type=Manifest)
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidDataError(f"this is not a backup of this format: its {MANIFEST} cannot be read") from None
    if manifest.format != FORMAT:
        raise Conflict(f"the backup has format {manifest.format}; this version of grid_jupyter reads format {FORMAT}")
    if manifest.role not in ROLES:
        raise InvalidDataError(f"the backup is of a {manifest.role[:40]!a}, which is neither Node nor Network")
    return manifest, head


def _next(archive: BinaryIO, left: int) -> _Member | None:
    """The next file's name and size; None at the end. Headers that speak of other headers are not taken."""
    block = archive.read(BLOCK)
    if not block.strip(b"\0"):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise InvalidDataError(f"the backup is damaged, or no backup: {error}") from None
    plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.linkname
    if not plain or not (info.name in (MANIFEST, DATABASE, SUMS) or _MEMBER.fullmatch(info.name)):
        raise InvalidDataError(f"{info.name[:80]!r} (type {info.type!r}) is nothing that a backup has in it")
    if not 0 <= info.size <= left - BLOCK:
        raise InvalidDataError(f"{info.name} is said to have {info.size} bytes, which are not there: it was cut short")
    return _Member(info.name, info.size)


def _read(archive: BinaryIO, size: int) -> bytes:
    data = archive.read(size + -size % BLOCK)
    if len(data) < size:
        raise InvalidDataError("the backup ends in the middle of a file: it was cut short")
    return data[:size]


def _sums(archive: BinaryIO, member: _Member, files: int) -> dict[str, str]:
    if member.size > files * 160:
        raise InvalidDataError(f"{SUMS} is longer than its files call for")
    lines = _read(archive, member.size).decode("ascii", "replace").splitlines()
    found = [_SUM.fullmatch(line) for line in lines]
    if not all(found):
        raise InvalidDataError(f"{SUMS} has lines that are no checksums")
    return {line[2]: line[1] for line in found if line}


def _unpack(archive: BinaryIO, member: _Member, into: Path) -> str:
    """Write one file; its SHA-256."""
    fd = os.open(into / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        digest, left = hashlib.sha256(), member.size
        while left:
            piece = archive.read(min(PIECE, left))
            if not piece:
                raise InvalidDataError("the backup ends in the middle of a file: it was cut short")
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    archive.read(-member.size % BLOCK)
    return digest.hexdigest()


def _compare(found: dict[str, str], told: dict[str, str], manifest: Manifest) -> None:
    for name in sorted(found.keys() | told.keys()):
        if found.get(name) != told.get(name):
            what = "is missing" if name not in found else "has no checksum" if name not in told else "is not as it was"
            raise InvalidDataError(f"{name} {what}: the backup is damaged, and nothing of it was used")
    if DATABASE not in found or len(found) != manifest.files + 1:
        raise InvalidDataError(f"the backup does not have the {manifest.files} files that it says: it is damaged")


@contextmanager
def _disk_full_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise StorageFullError("the disk is full, and nothing was kept: free space, then try again") from error
        raise
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise StorageFullError("the disk is full, and nothing was kept: free space, then try again") from error
        raise
