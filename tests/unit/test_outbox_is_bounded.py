"""Notices of long ago go as fast as new ones come."""

from __future__ import annotations

import asyncio
from pathlib import Path

from grid_jupyter.cycles.pushing import StoredOutbox
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.notices import KEEP_S, NoticeRows, NoticeTable
from grid_jupyter.store.records import TrainingRow


def test_all_old_notices_are_forgotten_within_one_purge(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "grid.db"))

    def fill(rows: NoticeRows) -> None:
        rows._session.add(
            TrainingRow(
                id=1,
                name="m",
                version="1",
                owner="o",
                created=0.0,
                client_config={},
                server_config={},
                seed="",
                secret="",
                buffers=[],
                averaging=None,
                state={},
                registered=0,
                forgotten=0,
                cursor=0,
            )
        )
        for number in range(1_200):
            rows.queue(f"{number}", 1, "message", {}, to="named", now=0.0, expires=0.0)

    async def run() -> int:
        table = NoticeTable(database)
        await table.transact(fill)
        outbox, now = StoredOutbox(table), KEEP_S + 1.0
        for _ in range(4):
            now = await outbox.next(now) or now + 30.0
        return await table.transact(lambda rows: sum(rows.known(f"{number}") for number in range(1_200)))

    try:
        assert asyncio.run(run()) == 0
    finally:
        database.close()
