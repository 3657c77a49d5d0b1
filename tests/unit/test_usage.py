"""How often data sets were opened, counted from the audit log and as it happens."""

from __future__ import annotations

import asyncio
from pathlib import Path

from grid_jupyter.node.audit import Audit
from grid_jupyter.node.usage import OPENED, Usage
from grid_jupyter.store.audit import AuditTable
from grid_jupyter.store.database import Database, sqlite_url


def test_a_restart_counts_what_was_counted_before_it(tmp_path: Path):
    async def run() -> None:
        database = Database(sqlite_url(tmp_path / "grid.db"))
        now = [1000.0]
        audit = Audit(AuditTable(database), lambda: now[0])
        live = Usage(audit.table)
        audit.on_note(live.take)
        for user in ("Ana", "Ana", "Ana", "Eve", ""):
            audit.note(OPENED, user, dataset=7, version=1)
            now[0] += 1.0
        audit.note(OPENED, "Ana", dataset=7, version=2)
        audit.note("refused", "Ana", dataset=7)
        audit.note(OPENED, "Ana", dataset=8, version=1)
        await audit.close()
        again = Usage(audit.table)
        await again.load()
        for usage in (live, again):
            assert (usage.of(7).times, usage.of(7).users, usage.of(8).times) == (6, {"Ana", "Eve", ""}, 1)
            assert (usage.of(9).times, usage.of(9).last) == (0, None)
        assert again.of(7).last == live.of(7).last == 1005.0
        database.close()

    asyncio.run(run())
