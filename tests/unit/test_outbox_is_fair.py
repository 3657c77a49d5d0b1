"""One device with many notices keeps none from the others."""

from __future__ import annotations

from pathlib import Path

from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.notices import NoticeRows
from grid_jupyter.store.records import DeviceRow, TrainingRow


def test_a_device_that_is_busy_hides_nobody(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "grid.db"))

    def fill(session: object) -> None:
        rows = NoticeRows(session)  # type: ignore[arg-type]
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
        rows._session.flush()
        for number in (1, 2):
            rows._session.add(
                DeviceRow(number=number, id=f"d{number}", training_id=1, rank=number, registered=0.0, seen=0.0,
                          slow=False, subject=None, last=None, asked=0)
            )  # fmt: skip
        rows._session.flush()
        for number in range(1_100):
            rows.queue(f"{number}", 1, "message", {}, to=1, now=0.0, expires=9.0)
        rows.queue("other", 1, "message", {}, to=2, now=1.0, expires=9.0)

    try:
        database.call(fill)
        [first] = database.call(lambda session: NoticeRows(session).due(2.0, 256, ()))
        found = database.call(lambda session: NoticeRows(session).due(2.0, 255, (first.id,)))
        assert [one.device for one in found] == [2]
    finally:
        database.close()
