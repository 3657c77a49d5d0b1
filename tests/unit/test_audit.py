"""The audit log: a chain that shows what was changed in it, in order, without being in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, text

from grid_jupyter.node.audit import REPEAT_S, Audit
from grid_jupyter.store import audit as rows
from grid_jupyter.store.audit import AuditTable, Event
from grid_jupyter.store.database import Database

run = asyncio.run


@pytest.fixture
def database(address: URL) -> Iterator[Database]:
    database = Database(address)
    yield database
    database.close()


@pytest.fixture
def table(database: Database) -> AuditTable:
    return AuditTable(database)


def events(count: int) -> list[Event]:
    return [Event(1000.0 + n, "released", "Ana", {"datasets": [n]}) for n in range(count)]


def change(database: Database, sql: str) -> None:
    database.call(lambda session: session.execute(text(sql)).close())  # type: ignore[attr-defined]


def test_a_chain_that_nobody_touched_holds(table: AuditTable):
    assert run(table.verify()) == rows.Verified(0, 1, 0, rows.START)
    for _ in range(3):
        run(table.append(events(10)))
    found = run(table.verify())
    assert (found.rows, found.first, found.last, found.broken) == (30, 1, 30, 0)
    assert found.head == run(table.listed())[0].hash


@pytest.mark.parametrize(
    ("sql", "broken"),
    [
        ("UPDATE audit SET actor = 'Eve' WHERE number = 7", 7),
        ("UPDATE audit SET details = '{}' WHERE number = 7", 7),
        ("UPDATE audit SET at = at + 1 WHERE number = 1", 1),
        ("UPDATE audit SET hash = (SELECT hash FROM audit WHERE number = 3) WHERE number = 7", 7),
        ("DELETE FROM audit WHERE number = 7", 7),
        ("DELETE FROM audit WHERE number = 20", 20),
        ("DELETE FROM audit WHERE number > 12", 13),
        ("DELETE FROM audit WHERE number = 1", 1),
        ("UPDATE audit SET number = 99 WHERE number = 20", 20),
    ],
)
def test_a_row_that_was_changed_taken_out_or_put_elsewhere_is_named(
    database: Database, table: AuditTable, sql: str, broken: int
):
    run(table.append(events(20)))
    change(database, sql)
    assert run(table.verify()).broken == broken


def test_rows_that_were_exchanged_are_named(database: Database, table: AuditTable):
    run(table.append(events(5)))
    for sql in (
        "UPDATE audit SET number = -2 WHERE number = 2",
        "UPDATE audit SET number = 2 WHERE number = 3",
        "UPDATE audit SET number = 3 WHERE number = -2",
    ):
        change(database, sql)
    assert run(table.verify()).broken == 2


def test_the_log_goes_on_after_a_row_was_broken_and_still_names_it(database: Database, table: AuditTable):
    run(table.append(events(5)))
    change(database, "UPDATE audit SET actor = 'Eve' WHERE number = 2")
    run(table.append(events(5)))
    assert run(table.verify()).broken == 2


def test_the_oldest_rows_go_and_the_chain_holds(database: Database, table: AuditTable):
    for _ in range(12):
        database.call(lambda session: rows.append(session, events(10), 50))
    found = run(table.verify())
    assert (found.broken, found.last) == (0, 120)
    assert found.rows <= 50
    assert found.first == 121 - found.rows
    change(database, "DELETE FROM audit WHERE number = (SELECT min(number) FROM audit)")
    assert run(table.verify()).broken == found.first


def test_a_million_rows_are_gone_through_in_pieces(table: AuditTable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "_VERIFY_ROWS", 7)
    run(table.append(events(30)))
    assert run(table.verify()).rows == 30


def test_texts_of_others_are_kept_as_they_are(table: AuditTable):
    hostile = "<script>\x01\n'; DROP TABLE audit; -- \N{SNOWMAN}\u202e"
    run(table.append([Event(1.0, "requested", hostile, {"key": hostile})]))
    (found,) = run(table.listed())
    assert (found.actor, found.details) == (hostile, {"key": hostile})
    assert not run(table.verify()).broken


def test_notes_are_written_behind_and_in_order(table: AuditTable):
    async def story() -> None:
        audit = Audit(table)
        for n in range(100):
            audit.note("released", "Ana", number=n)
        assert not await table.listed()  # nothing waited for it
        await audit.close()

    run(story())
    assert [row.details["number"] for row in reversed(run(table.listed()))] == list(range(100))


def test_the_same_again_and_again_is_counted_and_drives_nothing_out(table: AuditTable):
    now = [1000.0]

    async def story() -> None:
        audit = Audit(table, lambda: now[0])
        for _ in range(5_000):
            audit.note("refused", "Eve", datasets=[1])
        audit.note("refused", "Eve", datasets=[2])
        now[0] += REPEAT_S
        audit.note("refused", "Eve", datasets=[1])
        await audit.close()

    run(story())
    found = [(row.details["datasets"], row.details.get("repeated")) for row in reversed(run(table.listed()))]
    assert found == [([1], None), ([2], None), ([1], 4_999), ([1], None)]


@pytest.mark.parametrize("address", ["SQLite"], indirect=True)  # whose pages can be bounded
def test_what_waits_while_the_disk_is_full_is_written_later(database: Database, table: AuditTable):
    async def story() -> None:
        audit = Audit(table)
        change(database, "PRAGMA max_page_count=1")
        for n in range(3_000):
            audit.note("released", "Ana", text="x" * 1000, number=n)
        from grid_jupyter.errors import StorageFullError

        with pytest.raises(StorageFullError):
            await audit.flush()
        change(database, "PRAGMA max_page_count=1000000")
        await audit.close()

    run(story())
    found = run(table.verify())
    assert (found.rows, found.broken) == (3_000, 0)
