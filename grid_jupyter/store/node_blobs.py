"""The two directories with the blobs of a Node, and the object store that keeps them, where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.cache import Cache
from grid_jupyter.store.cached_blobs import CachedBlobStore
from grid_jupyter.store.objects import ObjectStore

CACHE_BYTES = 10 << 30


class NodeBlobs:
    """What a Node keeps besides its rows: `blobs` of data sets, models, jobs, values that are held; and `training`."""

    def __init__(
        self,
        state: Path,
        objects: ObjectStore | None = None,
        cache_bytes: int = CACHE_BYTES,
        *,
        sweeps: bool = False,
    ) -> None:
        """Both in the state directory alone, unless there is an object store, of which they have copies then; it
        `sweeps` where objects are to be removed at this start that no row names."""
        self.blobs, self.training = BlobStore(state / "blobs"), BlobStore(state / "training")
        self.objects = objects
        self._cached: list[CachedBlobStore] = []
        if objects is not None:
            self._cache = Cache(cache_bytes)
            self._cached = [
                CachedBlobStore(state / name, objects, self._cache, sweeps=sweeps) for name in ("blobs", "training")
            ]
            self.blobs, self.training = self._cached

    def settle(self) -> None:
        """Do what the object store is owed: delete, and keep what was here before. Blocks.

        Raises NodeUnavailableError, StorageFullError; the rest is for the next time.
        """
        if self.objects is not None:
            self.objects.settle()
        for store in self._cached:
            store.settle()

    def describe(self) -> dict[str, Any] | None:
        """Where the object store is; objects and their bytes; bytes of copies here, and how many there may be; objects
        that are to be deleted, and blobs that are to be copied there; objects that no row names, and their bytes. None
        where there is none."""
        if self.objects is None:
            return None
        counts, unnamed = [store.kept() for store in self._cached], [store.unnamed() for store in self._cached]
        return {
            "url": self.objects.url,
            "objects": sum(count for count, _ in counts),
            "bytes": sum(nbytes for _, nbytes in counts),
            "cached": self._cache.used_bytes,
            "cache": self._cache.limit,
            "to_delete": self.objects.owed(),
            "to_copy": sum(store.waiting for store in self._cached),
            "unnamed": sum(count for count, _ in unnamed),
            "unnamed_bytes": sum(nbytes for _, nbytes in unnamed),
        }
