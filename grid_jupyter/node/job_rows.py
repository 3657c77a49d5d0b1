"""What of a job is on the disk: its row, and the blobs that the row names.

A row is written as a whole, by one at a time: who changes a job or writes it down holds its lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from grid_jupyter.node.job_records import LiveJob
from grid_jupyter.node.job_runs import failed, to_the_end
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.jobs import JobTable

BEHIND_S = 3.0
"""How long rounds may be done and not written down."""


class JobRows:
    """The rows and blobs of the jobs of one Node; `tell` is called when a row was written."""

    def __init__(self, table: JobTable, blobs: BlobStore, clock: Callable[[], float], tell: Callable[[], None]) -> None:
        self._table = table
        self._blobs = blobs
        self._clock = clock
        self._tell = tell

    async def write_behind(self, live: LiveJob) -> None:
        """Write down the rounds of a job that were done a while ago."""
        if time.monotonic() - live.saved > BEHIND_S:
            async with live.lock:  # what changes it meanwhile is written behind this, not over it
                await self.save(live)

    async def save(self, live: LiveJob) -> None:
        """Write down how a job stands; its lock is held."""
        if live.unsaved:
            live.unsaved = False
            storing = asyncio.ensure_future(self._store(live))
            try:
                await to_the_end(storing)
            finally:
                live.unsaved = live.unsaved or failed(storing)

    async def _store(self, live: LiveJob) -> None:
        live.row = await self._table.save(live.to_save())
        live.saved = time.monotonic()
        live.tell()
        self._tell()

    async def forget(self, live: LiveJob, **changes: Any) -> None:
        """Let the row name other blobs than before, or none."""
        async with live.lock:
            live.take(live.machine, self._clock(), **changes)
            await self.save(live)

    async def drop(self, *blobs: str | None) -> None:
        """Delete these blobs, where there are any."""
        for blob in blobs:
            if blob:
                await asyncio.to_thread(self._blobs.delete, blob)
