"""How much of the disk trainings may take: what is there, what comes in, and when something is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grid_jupyter.errors import StorageFullError
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.trainings import TrainingTable

if TYPE_CHECKING:
    from grid_jupyter.cycles.live import Live

LOOK_S = 2.0
"""How old a look at the disk may be."""


@dataclass
class _Use:
    """What is on the disk, when that was looked at, and what comes in."""

    used: int = 0
    looked: float = float("-inf")
    coming: int = 0
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Room:
    """Room of all trainings of a Node: models, checkpoints, reports, and uploads that are under way; and of those that
    one account hosts, its share.

    Checkpoints are made whatever it says, since a cycle that is closed must end: `keep_checkpoints` bounds these.
    """

    def __init__(
        self,
        blobs: BlobStore,
        limit: int | None,
        clock: Callable[[], float],
        *,
        share: int | None = None,
        kept_by: Callable[[str], Awaitable[int]] | None = None,
    ) -> None:
        """`limit` in bytes, None: as much as the disk has; `share` of it is what one host may take, and `kept_by` says
        what its trainings have on the disk."""
        self._blobs, self._limit, self._clock = blobs, limit, clock
        self._share, self._kept_by = share, kept_by
        self._all = _Use()
        self._hosts: dict[str, _Use] = {}
        self.waiting: Callable[[str], int] = lambda host: 0
        """Bytes that an account uploaded, and hosts not yet."""

    async def take(self, host: str, nbytes: int) -> None:
        """Bytes come in for a training of a host, and `give_back` tells when no more of them come.

        Raises StorageFullError.
        """
        use = self._hosts.setdefault(host, _Use())
        if self._share is not None:
            await self._look(use, lambda: self._of_host(host))
        if self._limit is not None:
            await self._look(self._all, self._used)
            if self._all.used + self._all.coming + nbytes > self._limit and self._blobs.spares.nbytes():
                await asyncio.to_thread(self._blobs.spares.drop)
                self._all.looked = float("-inf")
                await self._look(self._all, self._used)
        if self._share is not None and use.used + use.coming + nbytes > self._share:
            raise StorageFullError(
                f"what one account hosts takes {self._share} bytes at most on this Node, and that is used up here. Who "
                "hosts can delete a training, or have fewer checkpoints kept (keep_checkpoints); the Node's owner "
                "gives each account more (--host-storage)"
            )
        if self._limit is not None and self._all.used + self._all.coming + nbytes > self._limit:
            raise StorageFullError(
                f"trainings of this Node take {self._limit} bytes at most, and that is used up; try again later. "
                "Its owner gives them more (--training-storage), or deletes a training"
            )
        for one in (self._all, use):
            one.coming += nbytes

    def give_back(self, host: str, nbytes: int, kept: int = 0) -> None:
        """No more of them come; so many are on the disk. What was refused takes no room, or anybody could use it up."""
        for one in (self._all, self._hosts.setdefault(host, _Use())):
            one.coming -= nbytes
            one.used += kept  # until the next look

    async def _look(self, use: _Use, look: Callable[[], Awaitable[int]]) -> None:
        """Look again, if it is time; whoever comes meanwhile waits for what is seen."""
        async with use.looking:
            now = self._clock()
            if not 0 <= now - use.looked < LOOK_S:
                use.looked = now
                use.used = await look()

    async def _used(self) -> int:
        return await asyncio.to_thread(self._blobs.used_bytes)

    async def _of_host(self, host: str) -> int:
        kept = 0 if self._kept_by is None else await self._kept_by(host)
        return kept + self.waiting(host)


async def kept_by(host: str, live: Mapping[int, Live], table: TrainingTable, blobs: BlobStore) -> int:
    """Bytes on the disk of all that an account hosts."""
    hosted = {number: one.state.sequence for number, one in live.items() if one.stored.owner == host}
    if not hosted:
        return 0
    nbytes, names = await table.transact(lambda rows: rows.kept(hosted))
    return nbytes + await asyncio.to_thread(lambda: sum(map(blobs.size, names)))
