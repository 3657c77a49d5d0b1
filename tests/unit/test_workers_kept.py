"""No Worker, and no share of a device, is left to nobody: whatever fails, or ends, while a Worker starts."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grid_jupyter.errors import NodeUnavailableError, SessionLostError
from grid_jupyter.identity.accounts import Accounts
from grid_jupyter.node.audit import Audit
from grid_jupyter.node.datasets import Datasets
from grid_jupyter.node.held import HeldValues
from grid_jupyter.node.requests import Requests
from grid_jupyter.node.service import local_workers
from grid_jupyter.node.sessions import Sessions
from grid_jupyter.store.accounts import AccountTable
from grid_jupyter.store.audit import AuditTable
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.datasets import DatasetTable
from grid_jupyter.store.requests import RequestTable
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.devices import WHOLE, Wish
from grid_jupyter.worker.pool import WorkerPool
from grid_jupyter.worker.process import WorkerProcess


def one_share() -> WorkerPool[WorkerProcess]:
    """Workers of a device that one at a time has."""
    limits = WorkerLimits(memory_bytes=1 << 30, operation_s=60.0, threads=1)
    return local_workers(limits, 0, wish=Wish(declared_bytes=1 << 30, parts=WHOLE))


def shares(pool: WorkerPool[WorkerProcess]) -> list[float]:
    return [share for one in pool.shares.describe() for share in one["shares"]]


async def until(condition: Callable[[], bool]) -> None:
    latest = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < latest
        await asyncio.sleep(0.01)


async def until_free(pool: WorkerPool[WorkerProcess]) -> None:
    await until(lambda: not shares(pool))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    database = Database(sqlite_url(tmp_path / "grid.db"))
    blobs = BlobStore(tmp_path / "blobs")
    audit = Audit(AuditTable(database))
    yield Sessions(
        name="Alma", node_id="1", accounts=Accounts(AccountTable(database), "1"),
        datasets=Datasets(DatasetTable(database), blobs, audit, max_upload_bytes=1, public_tags=False),
        pool=one_share(), audit=audit, held=HeldValues(Requests(RequestTable(database), audit, blobs), blobs),
        guests=True, max_sessions=4, idle_s=600.0, grace_s=60.0,
    )  # fmt: skip
    database.close()


def test_a_session_that_ends_while_its_worker_starts_leaves_none(sessions: Sessions):
    async def story() -> None:
        pool = sessions.pool
        assert isinstance(pool, WorkerPool)
        session = sessions.open(
            None, "", "", lambda frame: asyncio.get_running_loop().create_future(), lambda why: None
        )
        computing = asyncio.create_task(session.begin_receive(1, "float32", (1,), 4))
        await until(lambda: pool.isolation != "unknown")
        assert not computing.done()  # the fork server loads torch by now
        await session.end()
        with pytest.raises(SessionLostError, match="has ended"):
            await computing
        await until_free(pool)
        await sessions.audit.close()
        await pool.stop()

    asyncio.run(story())


def test_whoever_is_cancelled_while_the_first_worker_starts_leaves_nothing_behind():
    async def story() -> None:
        pool, before = one_share(), descriptors()
        starting = asyncio.create_task(pool.start())
        await until(lambda: pool.isolation != "unknown" and descriptors() > before)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not shares(pool)
        await pool.start()
        assert shares(pool) == [1.0]
        await pool.stop()

    asyncio.run(story())


def test_a_worker_for_which_there_are_no_descriptors_left_takes_no_share():
    async def story() -> None:
        pool = one_share()
        await pool.kill(await pool.start())
        await until_free(pool)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        begun = descriptors()
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, most[1]))
        try:
            for _ in range(2):
                with pytest.raises(NodeUnavailableError, match="cannot be started just now"):
                    await pool.start()
                assert not shares(pool)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert descriptors() == begun
        await pool.start()
        assert shares(pool) == [1.0]
        await pool.stop()
        assert not shares(pool)

    asyncio.run(story())
