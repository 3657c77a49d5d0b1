"""Who may end or delete a training, and how that is done without stopping the Node for long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping

from grid_jupyter.cycles.fold_worker import FoldWorker
from grid_jupyter.cycles.live import Live
from grid_jupyter.errors import Forbidden, NotFound
from grid_jupyter.identity.accounts import Account
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.trainings import StoredTraining, TrainingTable
from grid_jupyter.wire.answers import Done, Ended, Owned

ENDERS = "can_manage_infrastructure"
"""The right to end and delete what others host."""


class Ending:
    """Ends trainings, and deletes them with all that is theirs."""

    def __init__(
        self,
        table: TrainingTable,
        blobs: BlobStore,
        live: MutableMapping[int, Live],
        let_go: Callable[[], Awaitable[None]],
        folds: FoldWorker,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """`let_go` waits for reports whose bytes are here; `tell` is called when one is deleted."""
        self._table, self._blobs, self._live, self._let_go, self._tell = table, blobs, live, let_go, tell
        self._folds = folds

    async def end(self, account: Account, name: str, version: str | None) -> Ended:
        """Training is over: devices are told so, reports are late, checkpoints stay.

        Raises NotFound, Forbidden for who neither hosts it nor manages the Node.
        """
        live = await self._of(account, name, version)
        await live.finish()
        return {"status": "success", **live.told()}

    async def delete(self, account: Account, name: str, version: str | None) -> Done:
        """End a training, then forget it: its devices, reports, checkpoints and plans. What was begun goes on when it
        is asked for again. Raises as `end` does, and NodeUnavailableError as `BlobStore.check_gone`."""
        live = await self._of(account, name, version)
        await live.finish()
        live.leaving = True
        await self._let_go()
        await live.stop()
        await self._folds.drop(live.subject)  # reports that were checked since; another training may get this number
        while await self._table.transact(lambda rows: rows.forget_some(live.stored.id)):
            pass
        names = await self._table.transact(lambda rows: rows.forget(live.stored.id))
        self._live.pop(live.stored.id, None)
        self._tell()
        for blob in names:
            await asyncio.to_thread(self._blobs.delete, blob)
        self._blobs.check_gone(names)
        return {"status": "success"}

    def hosted(self) -> list[Owned]:
        """All trainings, oldest first, with who hosts each."""
        return [{**live.told(), "owner": live.stored.owner} for _, live in sorted(self._live.items())]

    async def _of(self, account: Account, name: str, version: str | None) -> Live:
        stored: StoredTraining = await self._table.transact(lambda rows: rows.find(name, version))
        if stored.owner != account.username and ENDERS not in account.flags:
            raise Forbidden("who hosts a training ends it, or who manages this Node: ask them")
        live = self._live.get(stored.id)
        if live is None:  # its row was written a moment ago, or is about to go
            raise NotFound("Federated Learning Process not found! Try again in a moment")
        return live
