"""Reports become durable together: those that come while others are synced wait for the disk once."""

from __future__ import annotations

import asyncio

from grid_jupyter.store.blobs import Blob, Upload, commit_together

_TOGETHER = 32
"""Files that are synced one after the other before anybody of those who wait for them goes on, at most."""


class Keeping:
    """The reports of a Node on their way to the disk."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Upload, asyncio.Future[Blob]]] = []
        self._working: asyncio.Task[None] | None = None

    async def keep(self, upload: Upload) -> Blob:
        """A blob of use for a while, on the disk when this returns. Raises as Upload.commit."""
        kept: asyncio.Future[Blob] = asyncio.get_running_loop().create_future()
        self._waiting.append((upload, kept))
        if self._working is None:
            self._working = asyncio.create_task(self._work_off())
        return await kept

    async def _work_off(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            outcomes = await asyncio.to_thread(commit_together, [upload for upload, _ in taken])
            for (_, kept), outcome in zip(taken, outcomes, strict=True):
                if kept.done():  # whoever waited was ended with the process
                    continue
                if isinstance(outcome, Blob):
                    kept.set_result(outcome)
                else:
                    kept.set_exception(outcome)
        self._working = None
