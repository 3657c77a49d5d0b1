"""A program: the same training with a device that is pushed to, killed each time at another of the points where a Node
may die between what causes a notice and that it is crossed off.

Run as `python killed_pushes.py DIRECTORY`. It prints, as JSON, what the device got before and after each restart.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cycle_world import diff, world
from sqlalchemy import func, select

from grid_jupyter.push.notifier import SENT, Outcome, Outgoing
from grid_jupyter.store.records import PushNotice

MOST = 2
"""How often one point is tried."""


class Letterbox:
    """A notifier that keeps what it was given in a file, whatever becomes of this process."""

    name = "letterbox"

    def __init__(self, path: Path) -> None:
        self._path = path

    def reaches(self, outgoing: Outgoing) -> bool:
        return True

    async def send(self, outgoing: Outgoing) -> Outcome:
        notice = outgoing.notice
        with self._path.open("a") as file:
            file.write(json.dumps([notice.id, notice.type, notice.cycle_id, outgoing.token]) + "\n")
        return SENT

    def close(self) -> None:
        pass


async def train(state: Path, at: Callable[[str], None]) -> None:
    """One cycle of one report, and the end of training. Called again it goes on as the device would."""
    async with world(state, at=at, push=Letterbox(state / "letters")) as here:
        journal = state / "journal.json"
        if not journal.exists():
            await here.host(max_diffs=1, num_cycles=1)
            worker = await here.device(fcm_device_token="a")
            await here.device(fcm_device_token="b")
            answer = await here.ask(worker, nonce="n")
            journal.write_text(json.dumps([worker, answer["request_key"]]))
        await here.report(tuple(json.loads(journal.read_text())), diff(1, 1, 1))
        await here.stands(after=0)
        deadline = time.monotonic() + 20
        while await here.cycles._table._run(_left):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)


def _left(session: Any) -> int:
    waits = PushNotice.state.in_(("waiting", "spreading"))
    return int(session.scalar(select(func.count()).select_from(PushNotice).where(waits)))


def run(state: Path, killed_at: tuple[str, int] | None) -> tuple[int, list[str]]:
    """In a process of its own; the signal that ended it, and the points that it came by."""
    state.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        passed: Counter[str] = Counter()

        def at(point: str) -> None:
            if not point.startswith("notice") or not (state / "journal.json").exists():
                return
            passed[point] += 1
            with (state / "passed").open("a") as file:
                file.write(f"{point} {passed[point]}\n")
            if killed_at == (point, passed[point]):
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            asyncio.run(train(state, at))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    passed_points = (state / "passed").read_text().splitlines() if (state / "passed").exists() else []
    (state / "passed").unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), passed_points


def letters(state: Path) -> list[Any]:
    return [json.loads(line) for line in (state / "letters").read_text().splitlines()]


def main(directory: Path) -> None:
    ended, points = run(directory / "whole", None)
    found = {"": {"killed": False, "again": ended, "letters": letters(directory / "whole")}}
    for line in dict.fromkeys(points):
        point, _, number = line.partition(" ")
        if int(number) > MOST:
            continue
        state = directory / line.replace(" ", "-")
        ended, _ = run(state, (point, int(number)))
        again, _ = run(state, None)
        found[line] = {"killed": ended == -signal.SIGKILL, "again": again, "letters": letters(state)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
