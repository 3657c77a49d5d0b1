"""Models that are small enough to go with a place: read once, since all devices of a cycle get the same."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from grid_jupyter.errors import NodeUnavailableError, ObjectNotFoundError

if TYPE_CHECKING:
    from grid_jupyter.store.blobs import BlobStore
    from grid_jupyter.store.trainings import StoredCheckpoint

LARGEST: Final = 128 << 10
"""Bytes of a model that goes along; more take a request of their own, which may be slow without keeping anybody."""
_KEPT: Final = 8
"""Models that are in memory: of so many trainings that run at the same time."""


class SmallModels:
    """The newest ones, by the names of their blobs, which never change."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._models: OrderedDict[str, bytes] = OrderedDict()

    async def get(self, checkpoint: StoredCheckpoint, most: int) -> bytes | None:
        """The file of a checkpoint; None where it is longer than `most`, or LARGEST, or cannot be had."""
        if checkpoint.nbytes > min(most, LARGEST):
            return None
        known = self._models.get(checkpoint.blob)
        if known is None:
            try:
                descriptor = await self._blobs.open(checkpoint.blob, checkpoint.sha256)
            except (ObjectNotFoundError, NodeUnavailableError):
                return None  # who fetches it is told
            try:
                known = self._models[checkpoint.blob] = os.pread(descriptor, checkpoint.nbytes, 0)
            finally:
                os.close(descriptor)
        self._models.move_to_end(checkpoint.blob)
        while len(self._models) > _KEPT:
            self._models.popitem(last=False)
        return known
