"""Blobs that an object store keeps: the directory has copies of them, and those that are of use for a while alone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from grid_jupyter.errors import NodeUnavailableError, ObjectNotFoundError
from grid_jupyter.store.blobs import Blob, BlobStore, new_temporary
from grid_jupyter.store.cache import Cache
from grid_jupyter.store.objects import ObjectStore, Stored

log = logging.getLogger("grid_jupyter")

_FETCHING = ThreadPoolExecutor(8, thread_name_prefix="grid-objects")
_LEFT_BY_A_KILL = 16
"""So many objects, of which rows name none, are no sign yet of rows that are another Node's, or lost."""
_TRIES = 8
"""How often a copy is fetched that others push out before it is opened."""


class CachedBlobStore(BlobStore):
    """The blobs of one directory, kept in the object store's folder of the same name."""

    def __init__(self, directory: Path, objects: ObjectStore, cache: Cache, *, sweeps: bool = False) -> None:
        """What the object store has is known after `sweep`, which removes there what no row names if it `sweeps`."""
        super().__init__(directory)
        self._folder = directory.name
        self._objects = objects
        self._cache = cache
        self._sweeps = sweeps
        self._kept: dict[str, Stored] = {}  # what the object store has
        self._unnamed: tuple[int, int] = 0, 0
        self._waiting: set[str] = set()  # what it is to have: it was here before the object store was
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many blobs the object store is still to have."""
        return len(self._waiting)

    def kept(self) -> tuple[int, int]:
        """How many objects there are, and their bytes."""
        with self._lock:
            return len(self._kept), sum(stored.nbytes for stored in self._kept.values())

    def unnamed(self) -> tuple[int, int]:
        """How many objects there were when this Node started that no row names, and their bytes."""
        return self._unnamed

    # -------------------------------------------------------------- reading

    async def open(self, name: str, sha256: str = "") -> int:
        """See BlobStore; what is here is opened at once, and everything else is fetched in a thread."""
        path, stored = self.path(name), self._kept.get(name)
        if sha256 and stored is not None and stored.sha256 != sha256:
            raise self._objects.lost(self._folder, name, stored, "damaged in")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            opening = asyncio.get_running_loop().run_in_executor(_FETCHING, self._opened, name)
            try:
                return await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close)
                raise
        self._cache.touch(path)
        return descriptor

    def reading(self, name: str) -> BinaryIO:
        """See BlobStore."""
        return os.fdopen(self._opened(name), "rb")

    @asynccontextmanager
    async def at_hand(self, *names: str) -> AsyncIterator[None]:
        """See BlobStore."""
        paths = [self.path(name) for name in names]
        for path in paths:
            self._cache.pin(path)
        try:
            for name in names:
                os.close(await self.open(name))
            yield
        finally:
            for path in paths:
                self._cache.unpin(path)

    async def hold(self, name: str) -> None:
        """See BlobStore."""
        path = self.path(name)
        self._cache.pin(path)
        try:
            os.close(await self.open(name))
        except BaseException:
            self._cache.unpin(path)
            raise

    def _opened(self, name: str) -> int:
        path = self.path(name)
        for _ in range(_TRIES):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                self._fetch(name, path)
            else:
                self._cache.touch(path)
                return descriptor
        raise NodeUnavailableError(
            "too much is read here at once; try again, or ask this Node's owner for --objects-cache"
        )

    def _fetch(self, name: str, path: Path) -> None:
        with self._lock:
            stored, turn = self._kept.get(name), self._turns.setdefault(name, threading.Lock())
        with turn:  # who comes second finds it there
            if stored is not None and not path.exists():
                self._cache.make_room(stored.nbytes)
                draft = path.with_name(new_temporary())
                self._made.add(draft.name)  # no sweep takes it
                try:
                    self._objects.get(self._folder, name, stored, draft)
                    draft.rename(path)
                finally:
                    draft.unlink(missing_ok=True)
                    self._made.discard(draft.name)
                self._cache.add(path, stored.nbytes)
        with self._lock:
            self._turns.pop(name, None)
            there = name in self._kept
        if not there:  # it never was, or was deleted meanwhile
            path.unlink(missing_ok=True)
            self._cache.forget(path)
            raise ObjectNotFoundError("these bytes are gone from this Node; publish them again")

    # -------------------------------------------------------------- keeping

    def _keep(self, blob: Blob) -> None:
        stored = Stored(blob.nbytes, blob.sha256)
        try:
            self._objects.put(self._folder, blob.name, self.path(blob.name), stored)
        except BaseException:
            self._objects.owe(self._folder, blob.name, stored)  # it may be there, and the answer was lost
            raise
        with self._lock:
            self._kept[blob.name] = stored
        self._cache.add(self.path(blob.name), blob.nbytes)

    def settle(self) -> None:
        """Let the object store have what waits for that. Raises NodeUnavailableError."""
        for name in sorted(self._waiting):
            path = self.path(name)
            with suppress(FileNotFoundError), path.open("rb") as file:
                digest = hashlib.sha256()
                while piece := file.read(1 << 20):
                    digest.update(piece)
                stored = Stored(file.tell(), digest.hexdigest())
                self._objects.put(self._folder, name, path, stored)
                with self._lock:
                    wanted = name in self._waiting
                    if wanted:
                        self._waiting.discard(name)
                        self._kept[name] = stored
                if wanted:
                    self._cache.add(path, stored.nbytes)
                else:  # it was deleted meanwhile
                    self._objects.delete(self._folder, {name: stored})

    # -------------------------------------------------------------- deleting

    def delete_all(self, names: Iterable[str], each: Callable[[], None] = lambda: None) -> None:
        """See BlobStore. What the object store cannot delete now is deleted later: `check_gone` tells."""
        doomed = list(names)
        with self._lock:
            self._waiting.difference_update(doomed)
            kept = {name: self._kept.pop(name) for name in doomed if name in self._kept}
        super().delete_all(doomed, each)
        for name in doomed:
            self._cache.forget(self.path(name))
        if kept:
            self._objects.delete(self._folder, kept)

    def check_gone(self, names: Iterable[str]) -> None:
        """See BlobStore."""
        if self._objects.refused(names):
            raise NodeUnavailableError(
                "it is deleted, and nobody uses it any more; but its bytes are still in this Node's object store, "
                "which is away: the Node deletes them when it answers again"
            )

    def sweep(self, known: Collection[str], passing: Collection[str] = ()) -> int:
        """See BlobStore. From now on it is known which objects there are. Of those that no row names go the ones that
        were to be deleted; the others stay, unless it is said that they go: these rows may be older than they are."""
        names = frozenset(known)
        self._objects.forgive(self._folder, names)
        self._objects.tidy(self._folder)
        found = self._objects.list(self._folder)
        removed = super().sweep(names)
        here = {entry.name: entry.stat() for entry in self._entries()}
        with self._lock:
            unnamed = {name: one for name, one in found.items() if name not in names and name not in self._made}
            self._kept.update((name, one) for name, one in found.items() if name not in unnamed)
            kept = {name for name, one in self._kept.items() if name not in here or here[name].st_size == one.nbytes}
            self._waiting = set(names & here.keys()) - kept - set(passing)
            lost = names - self._kept.keys() - here.keys()
        for name in sorted(kept & here.keys(), key=lambda one: here[one].st_mtime):
            self._cache.add(self.path(name), here[name].st_size)
        if lost:
            log.error(
                "object store %s: %d blobs that rows name are gone (%s …)", self._objects.url, len(lost), min(lost)
            )
        owed = self._objects.owes(self._folder)
        garbage = {name: one for name, one in unnamed.items() if name in owed}
        if len(unnamed) > _LEFT_BY_A_KILL and len(unnamed) == len(found):
            log.error(
                "object store %s: the rows of this Node name none of the %d objects in %s, so they stay: is this its "
                "database? If it is, delete them there",
                self._objects.url, len(found), self._folder,
            )  # fmt: skip
        elif self._sweeps:
            garbage = unnamed
        elif unnamed.keys() - owed:
            log.warning(
                "object store %s: no row of this Node names %d objects in %s, and they stay. If this is an older "
                "database than they are, stop the Node, and give it the newest one; if they are of no use, start it "
                "once with --objects-sweep",
                self._objects.url, len(unnamed.keys() - owed), self._folder,
            )  # fmt: skip
        left = [one.nbytes for name, one in unnamed.items() if name not in garbage]
        self._unnamed = len(left), sum(left)
        if garbage:
            self._objects.delete(self._folder, garbage)
        return removed + len(garbage)

    # -------------------------------------------------------------- sizes

    def size(self, name: str) -> int:
        """See BlobStore; wherever its bytes are."""
        with self._lock:
            stored = self._kept.get(name)
        return super().size(name) if stored is None else stored.nbytes

    def used_bytes(self) -> int:
        """See BlobStore; the objects among them, each once, whether or not there is a copy."""
        with self._lock:
            kept = dict(self._kept)
        total = sum(stored.nbytes for stored in kept.values())
        for entry in self._entries():
            if entry.name not in kept:
                with suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_size
        return total


def _close(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
