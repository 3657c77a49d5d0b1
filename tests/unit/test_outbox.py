"""The outbox stays bounded and fair: notices of long ago go as fast as new ones come, and nobody's hide another's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import URL
from sqlalchemy.orm import Session

from grid_jupyter.cycles.pushing import StoredOutbox
from grid_jupyter.store.database import Database
from grid_jupyter.store.notices import KEEP_S, NoticeRows, NoticeTable
from grid_jupyter.store.records import DeviceRow, TrainingRow


@pytest.fixture
def database(address: URL) -> Iterator[Database]:
    """One with a training and its devices 1 and 2."""
    made = Database(address)

    def fill(session: Session) -> None:
        session.add(
            TrainingRow(id=1, name="m", version="1", owner="o", created=0.0, client_config={}, server_config={},
                        seed="", secret="", buffers=[], averaging=None, state={}, registered=0, forgotten=0, cursor=0)
        )  # fmt: skip
        session.flush()
        for number in (1, 2):
            session.add(
                DeviceRow(number=number, id=f"d{number}", training_id=1, rank=number, registered=0.0, seen=0.0,
                          slow=False, subject=None, last=None, asked=0)
            )  # fmt: skip

    made.call(fill)
    yield made
    made.close()


def test_all_old_notices_are_forgotten_within_one_purge(database: Database) -> None:
    def fill(rows: NoticeRows) -> None:
        for number in range(1_200):
            rows.queue(f"{number}", 1, "message", {}, to="named", now=0.0, expires=0.0)

    async def run() -> int:
        table = NoticeTable(database)
        await table.transact(fill)
        outbox, now = StoredOutbox(table), KEEP_S + 1.0
        for _ in range(4):
            now = await outbox.next(now) or now + 30.0
        return await table.transact(lambda rows: sum(rows.known(f"{number}") for number in range(1_200)))

    assert asyncio.run(run()) == 0


def test_a_device_that_is_busy_hides_nobody(database: Database) -> None:
    def fill(session: Session) -> None:
        rows = NoticeRows(session)
        for number in range(1_100):
            rows.queue(f"{number}", 1, "message", {}, to=1, now=0.0, expires=9.0)
        rows.queue("other", 1, "message", {}, to=2, now=1.0, expires=9.0)

    database.call(fill)
    [first] = database.call(lambda session: NoticeRows(session).due(2.0, 256, ()))
    found = database.call(lambda session: NoticeRows(session).due(2.0, 255, (first.id,)))
    assert [one.device for one in found] == [2]
