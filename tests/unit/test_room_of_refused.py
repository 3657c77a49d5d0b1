"""What is refused, or was cut, takes no room from others."""

from __future__ import annotations

import asyncio
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

from grid_jupyter.cycles import arriving as module
from grid_jupyter.cycles.arriving import Arrivals, Arriving
from grid_jupyter.cycles.room import Room
from grid_jupyter.store.blobs import BlobStore


class _Upload:
    ended = False

    def abandon(self) -> None:
        self.ended = True


class _Empty:
    def used_bytes(self) -> int:
        return 0


def _one(key: str) -> Arriving:
    return Arriving(cast(Any, None), "worker", key, 1 << 30)


def test_refused_reports_leave_the_room_that_they_found() -> None:
    async def run() -> None:
        room = Room(cast(Any, _Empty()), 64 << 30, lambda: 0.0)
        for _ in range(1000):
            await room.take("Ann", 1 << 30)
            room.give_back("Ann", 1 << 30, 0)

    asyncio.run(run())


def test_a_report_without_a_file_is_not_kept() -> None:
    async def run() -> list[int]:
        back: list[int] = []
        arrivals = Arrivals(lambda point: None, lambda arriving, kept: back.append(arriving.limit))
        arriving = arrivals.begin(_one("key"))
        arrivals.leave(arriving, arriving.begin_turn())
        return back

    assert asyncio.run(run()) == [1 << 30]


def test_cut_reports_are_bounded() -> None:
    async def run() -> tuple[int, int]:
        back: list[int] = []
        arrivals = Arrivals(lambda point: None, lambda arriving, kept: back.append(arriving.limit))
        uploads = []
        for number in range(module.MAX_UNFINISHED + 10):
            arriving = arrivals.begin(_one(str(number)))
            turn = arriving.begin_turn()
            arriving.upload = cast(Any, _Upload())
            uploads.append(arriving.upload)
            arrivals.leave(arriving, turn)
        return len(back), sum(cast(Any, one).ended for one in uploads)

    assert asyncio.run(run()) == (10, 10)


def test_a_large_file_that_is_given_up_is_removed_beside_the_event_loop(tmp_path: Path) -> None:
    removing: list[int] = []

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.remove" and str(arguments[0]).startswith(str(tmp_path)):
            removing.append(threading.get_ident())

    sys.addaudithook(look)
    arriving = _one("key")
    arriving.upload = upload = BlobStore(tmp_path).begin(secrets.token_hex(16))
    arriving.drop()
    assert upload.ended
    until = time.monotonic() + 10
    while upload.path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not upload.path.exists()
    assert removing
    assert threading.get_ident() not in removing
