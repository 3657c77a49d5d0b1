"""How much of the disk trainings may take: what is there, what comes in, and when something is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from grid_jupyter.errors import StorageFullError
from grid_jupyter.store.blobs import BlobStore

LOOK_S = 2.0
"""How old a look at the disk may be."""


class Room:
    """Room of all trainings of a Node: models, checkpoints, reports, and uploads that are under way.

    Checkpoints are made whatever it says, since a cycle that is closed must end: `keep_checkpoints` bounds these.
    """

    def __init__(self, blobs: BlobStore, limit: int | None, clock: Callable[[], float]) -> None:
        """`limit` in bytes; None: as much as the disk has."""
        self._blobs, self._limit, self._clock = blobs, limit, clock
        self._used, self._looked = 0, float("-inf")
        self._coming = 0

    async def take(self, nbytes: int) -> None:
        """Bytes come in, and `give_back` tells when no more of them come. Raises StorageFullError."""
        if self._limit is not None:
            if not 0 <= self._clock() - self._looked < LOOK_S:
                self._looked = self._clock()
                self._used = await asyncio.to_thread(self._blobs.used_bytes)
            if self._used + self._coming + nbytes > self._limit:
                raise StorageFullError(
                    f"trainings of this Node take {self._limit} bytes at most, and that is used up; try again later. "
                    "Its owner gives them more (--training-storage), or deletes a training"
                )
        self._coming += nbytes

    def give_back(self, nbytes: int, kept: int = 0) -> None:
        """No more of them come; so many are on the disk. What was refused takes no room, or anybody could use it up."""
        self._coming -= nbytes
        self._used += kept  # until the next look
