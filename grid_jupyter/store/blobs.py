"""Bytes on the disk, one file a blob, there as a whole or not at all. Which row names a blob is known elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from grid_jupyter.errors import Conflict, GridError, ObjectNotFoundError, StorageFullError
from grid_jupyter.store.database import DISK_FULL_ERRNOS, DISK_FULL_TEXT
from grid_jupyter.store.held import Held, write_all
from grid_jupyter.store.spares import Spares
from grid_jupyter.store.write_back import EACH, begin_write_back
from grid_jupyter.wire.files import sync_directory

UPLOAD_KEPT_S = 86_400.0
"""How long an unfinished upload of this process may rest before a sweep takes it."""

_REMOVING = ThreadPoolExecutor(1, thread_name_prefix="grid-blobs")
"""Ends with the process, when all is removed that was begun."""
_BLOB = re.compile(r"[0-9a-f]{32}")
_UPLOAD = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.part")


class Digest(Protocol):
    """A hash of bytes that come one after the other."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Append bytes."""

    def hexdigest(self) -> str:
        """Of all of them; asked for once."""


@dataclass(frozen=True)
class Blob:
    """A blob that is on the disk to stay: its name, its size, the SHA-256 of its bytes in hex, or the digest that it
    was begun with."""

    name: str
    nbytes: int
    sha256: str


class Upload:
    """A blob being written, under a temporary name. Left as a context without `commit`, nothing of it remains.

    Its methods raise StorageFullError when the disk is full, and then nothing of it remains either.
    """

    def __init__(
        self, directory: Path, temporary: str, made: set[str], keep: Callable[[Blob], None] = lambda blob: None,
        spare: Callable[[Path], int] = lambda path: -1, digest: Callable[[], Digest] = hashlib.sha256, held: int = 0,
    ) -> None:  # fmt: skip
        """Nothing is on the disk before `open`, or the first `write`. `keep` is called with what is to stay; `spare`
        may have a file to be written again, for what will be as long as that; `digest` begins what tells blobs
        apart. What has `held` bytes at most is in memory until `commit`."""
        self._directory = directory
        self._path = directory / temporary
        self._made = made
        self._keep, self._spare = keep, spare
        self._held = Held(held) if held else None
        self._hash = digest()
        self._size = 0
        self._begun = 0  # bytes that the disk was given early
        self._fd = -1
        self._ended = False
        made.add(temporary)  # before it appears, so that no sweep comes between

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def path(self) -> Path:
        """Where its file is until `commit`, if it has one."""
        return self._path

    def reading(self, flags: int) -> int:
        """A descriptor of what was written, which is not committed yet: its file opened by these flags, or one of
        memory. The caller closes it."""
        return os.open(self._path, flags) if self._held is None else self._held.file()

    def holds(self, nbytes: int) -> bool:
        """Whether so many more bytes would be in memory: then `write` waits for no disk."""
        return self._held is not None and self._held.takes(nbytes)

    @property
    def ended(self) -> bool:
        """Whether it was committed or aborted."""
        return self._ended

    def open(self) -> None:
        """Make its file. Raises StorageFullError."""
        if self._fd < 0 and not self._ended:
            try:
                with disk_full_told():
                    self._fd = self._spare(self._path)
                    if self._fd < 0:
                        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except BaseException:
                self._made.discard(self._path.name)
                raise

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes. Blocks while the disk does."""
        rest = memoryview(data).cast("B")
        self._hash.update(rest)
        self._size += len(rest)
        if self._held is not None and self._held.takes(len(rest)):
            self._held.add(rest)
            return
        try:
            with disk_full_told():
                self._unhold()
                self.open()
                write_all(self._fd, rest)
            if self._size - self._begun >= EACH:
                begin_write_back(self._fd, self._begun, self._size - self._begun)
                self._begun = self._size
        except BaseException:
            self.abort()
            raise

    def _unhold(self) -> None:
        """What was in memory, into its file."""
        held, self._held = self._held, None
        if held is not None:
            self.open()
            held.write_to(self._fd)

    def abort(self) -> None:
        """Forget it all. Does nothing after a commit or another abort."""
        if not self._ended:
            there = self._fd >= 0
            self._close()
            if there:
                self._path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """As `abort`, without waiting for the disk: what is large takes a while to remove."""
        if self._fd < 0:
            self.abort()
        else:
            descriptor, self._fd, self._ended = self._fd, -1, True
            _REMOVING.submit(_remove, self._path, descriptor, self._made)

    def commit(self, *, passing: bool = False) -> Blob:
        """Make it a blob: on the disk, whole, under a name of ours, and in the object store, where there is one and it
        is not `passing`, of use for a while alone.

        Raises Conflict if the upload was begun again, NodeUnavailableError where the object store is away.
        """
        blob = self._named(lambda: sync_directory(self._directory))
        if not passing:
            try:
                self._keep(blob)
            except BaseException:
                (self._directory / blob.name).unlink(missing_ok=True)
                self._made.discard(blob.name)
                self.abort()
                raise
        self._close()
        return blob

    def _written(self) -> None:
        """All of it is in its file, and on its way to the disk."""
        try:
            with disk_full_told():
                self._unhold()
                self.open()
                begin_write_back(self._fd, self._begun, self._size - self._begun)
        except BaseException:
            self.abort()
            raise

    def _named(self, then: Callable[[], None]) -> Blob:
        """Under its name, of which the disk knows after `then`."""
        blob = Blob(secrets.token_hex(16), self._size, self._hash.hexdigest())
        try:
            with disk_full_told():
                self._unhold()
                self.open()
                if os.fstat(self._fd).st_size != self._size:  # of a spare file, whose end would be another's
                    os.ftruncate(self._fd, self._size)
                os.fsync(self._fd)
                self._made.add(blob.name)
                self._path.rename(self._directory / blob.name)
                then()
        except FileNotFoundError:
            self.abort()
            raise Conflict("this upload was begun again elsewhere, and only the newer one counts") from None
        except BaseException:
            self.abort()
            raise
        return blob

    def _close(self) -> None:
        descriptor, self._fd, self._ended, self._held = self._fd, -1, True, None
        self._made.discard(self._path.name)
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class BlobStore:
    """The blobs of one Node, in a directory (mode 0700) that no other process writes to."""

    def __init__(self, directory: Path) -> None:
        """Open the directory, and make it if it is not there."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._made: set[str] = set()  # by this process: their rows may be about to be written
        self.spares = Spares(directory, self._made)
        """What `retire` kept."""

    def begin(
        self, upload_id: str | None = None, *, nbytes: int = 0, leave: int = 0,
        digest: Callable[[], Digest] = hashlib.sha256, held: int = 0,
    ) -> Upload:  # fmt: skip
        """Begin to write a blob. An unfinished upload of the same id is given up, so that a retry needs no room twice;
        without an id there is none, and nothing is on the disk before the first `write`. `nbytes` says how long it
        will be, as far as that is known then: it may come into a file that `retire` kept, if so many are left to
        others. Up to `held` bytes stay in memory until they are committed. What is to stay has no `digest` but SHA-256.
        Raises StorageFullError.
        """
        if upload_id is None:
            take = partial(self.spares.take, nbytes, leave=leave)
            return Upload(self._directory, new_temporary(), self._made, self._keep, take, digest, held)
        origin = hashlib.sha256(upload_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for older in self._directory.glob(f"{origin}-*.part"):
            older.unlink(missing_ok=True)
        upload = Upload(self._directory, new_temporary(origin), self._made, self._keep)
        upload.open()
        return upload

    def path(self, name: str) -> Path:
        """Where a blob is. Raises ObjectNotFoundError for what is not a blob's name."""
        if not _BLOB.fullmatch(name):
            raise ObjectNotFoundError("there is no such blob here")
        return self._directory / name

    def size(self, name: str) -> int:
        """Bytes of a blob; 0 where it is not there any more."""
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return 0

    async def open(self, name: str, sha256: str = "") -> int:
        """A descriptor to read the blob; the caller closes it. It stays good when the blob is deleted meanwhile.
        `sha256` is what its row says: what an object store has under another one is not taken.

        Raises ObjectNotFoundError, and NodeUnavailableError where the object store has it alone, and is away.
        """
        return self._open_here(name)

    def reading(self, name: str) -> BinaryIO:
        """The blob as a file. Blocks, for as long as it has to be fetched. Raises as `open`."""
        return os.fdopen(self._open_here(name), "rb")

    @asynccontextmanager
    async def at_hand(self, *names: str) -> AsyncIterator[None]:
        """Meanwhile these are files at their `path`. Raises as `open`."""
        yield

    async def hold(self, name: str) -> None:
        """From now on it is a file at its `path`, until it is deleted. Raises as `open`."""

    def _open_here(self, name: str) -> int:
        try:
            return os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise ObjectNotFoundError("the bytes of this data set are gone; publish it again") from None

    def rest(self, name: str) -> None:
        """Nobody will read this blob soon: the memory that has its bytes is free for the next ones."""
        with suppress(OSError, ObjectNotFoundError):
            descriptor = self._open_here(name)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def delete(self, name: str) -> None:
        """Remove a blob that no row names any more. One that is gone already is as well."""
        self.delete_all([name])

    def delete_all(self, names: Iterable[str], each: Callable[[], None] = lambda: None) -> None:
        """The same, for many of them; `each` is called when one is removed."""
        for name in names:
            self.path(name).unlink(missing_ok=True)
            self._made.discard(name)
            each()
        sync_directory(self._directory)

    def retire(self, names: Iterable[str], each: Callable[[], None] = lambda: None) -> None:
        """The same, of those that were `passing`: some of the files are kept a while, to be written again. The disk is
        not waited for: what a loss of power brings back goes with the next sweep."""
        for name in names:
            path = self.path(name)
            if not self.spares.keep(path):
                path.unlink(missing_ok=True)
            self._made.discard(name)
            each()

    def drop_spares(self, rested_s: float = 0.0) -> None:
        """Remove what `retire` kept for so long, without waiting for the disk."""
        _REMOVING.submit(self.spares.drop, rested_s)

    def sweep(self, known: Collection[str], passing: Collection[str] = ()) -> int:
        """Remove what an earlier process left: blobs that no row names (`known` are those that one does), unfinished
        uploads; of this process, uploads that have rested for a day. How many files that were.

        `passing` are those of the known ones that were committed so. Raises NodeUnavailableError."""
        names = frozenset(known)
        removed = 0
        for entry in self._entries():
            if _BLOB.fullmatch(entry.name):
                stale = entry.name not in names and entry.name not in self._made
            elif _UPLOAD.fullmatch(entry.name):
                resting_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
                stale = entry.name not in self._made or resting_s > UPLOAD_KEPT_S
            else:
                continue  # not ours
            if stale:
                (self._directory / entry.name).unlink(missing_ok=True)
                self._made.discard(entry.name)
                removed += 1
        if removed:
            sync_directory(self._directory)
        return removed

    def check_gone(self, names: Iterable[str]) -> None:
        """Raises NodeUnavailableError where some of these were deleted, and are still in the object store."""

    def used_bytes(self) -> int:
        """Bytes of all blobs and unfinished uploads."""
        total = 0
        for entry in self._entries():
            with suppress(FileNotFoundError):  # it was removed since it was seen
                total += entry.stat(follow_symlinks=False).st_size
        return total

    def _keep(self, blob: Blob) -> None:
        """A blob is on the disk, to stay."""

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self._directory) as entries:
            yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))


def commit_together(uploads: Sequence[Upload]) -> list[Blob | Exception]:
    """Commit uploads of one store that are `passing`, which wait for their directory once; what each came to. All are
    on their way before the first is waited for: the file system writes its journal once for most of them."""
    failed: dict[int, Exception] = {}
    outcomes: list[Blob | Exception] = []
    for number, upload in enumerate(uploads):
        try:
            upload._written()
        except Exception as error:  # whoever commits this one gets it
            failed[number] = error
    for number, upload in enumerate(uploads):
        try:
            outcomes.append(failed.get(number) or upload._named(lambda: None))
        except Exception as error:  # as above
            outcomes.append(error)
    named = [upload for upload, outcome in zip(uploads, outcomes, strict=True) if isinstance(outcome, Blob)]
    try:
        with disk_full_told():
            for directory in {upload._directory for upload in named}:
                sync_directory(directory)
    except (OSError, GridError) as error:  # nobody knows whether the disk has their names
        return [error if isinstance(outcome, Blob) else outcome for outcome in outcomes]
    finally:
        for upload in named:
            with suppress(OSError):  # its bytes are synced, and the others are still to be told
                upload._close()
    return outcomes


def new_temporary(origin: str | None = None) -> str:
    """A name of something unfinished, which a sweep removes."""
    return f"{origin or secrets.token_hex(8)}-{secrets.token_hex(8)}.part"


def _remove(path: Path, descriptor: int, made: set[str]) -> None:
    os.close(descriptor)
    path.unlink(missing_ok=True)
    made.discard(path.name)


@contextmanager
def disk_full_told() -> Iterator[None]:
    """Raises StorageFullError where the system says so."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise StorageFullError(DISK_FULL_TEXT) from error
        raise
