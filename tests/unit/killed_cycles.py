"""A program: the same training again and again, killed each time at another of the points where a Node may die.

Run as `python killed_cycles.py DIRECTORY`. It prints, as JSON, what each run came to after its restart.
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

REPORTS = [(diff(0.1, 1e-7, 3e4), 3), (diff(-0.7, 1 / 3, 1e-3), 7), (diff(2.5, -1e5, 0.3), 1000)]


async def train(state: Path, at: Callable[[str], None]) -> dict[str, Any]:
    """One cycle of three reports. Called again on the same directory it does the same again, as devices would that
    never heard an answer."""
    async with world(state, at=at) as here:
        journal = state / "journal.json"
        if not journal.exists():
            await here.host(max_diffs=3, num_cycles=2)
            places = [await here.accepted() for _ in REPORTS]
            journal.write_text(json.dumps(places))
        for place, (data, samples) in zip(json.loads(journal.read_text()), REPORTS, strict=True):
            await here.report(tuple(place), data, samples)
        stands = await here.stands(after=0)
        descriptor, found = await here.cycles.retrieve("m", None, "latest")
        os.close(descriptor)
        deadline = time.monotonic() + 20
        while len(list((state / "training").iterdir())) > 3:  # reports are deleted behind the answer
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
    async with world(state):  # a start removes what was left half done
        files = len(list((state / "training").iterdir()))
    return {"completed": stands["completed"], "number": found.number, "sha256": found.sha256, "files": files}


def run(state: Path, killed_at: tuple[str, int] | None) -> tuple[int, list[str]]:
    """In a process of its own; the signal that ended it, and the points that it came by."""
    state.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        passed: Counter[str] = Counter()

        def at(point: str) -> None:
            passed[point] += 1
            with (state / "passed").open("a") as file:
                file.write(f"{point} {passed[point]}\n")
            if killed_at == (point, passed[point]):
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            found = asyncio.run(train(state, at))
            (state / "found.json").write_text(json.dumps(found))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    passed_points = (state / "passed").read_text().splitlines()
    (state / "passed").unlink()
    return os.waitstatus_to_exitcode(status), passed_points


def main(directory: Path) -> None:
    _, points = run(directory / "whole", None)
    found = {"": json.loads((directory / "whole" / "found.json").read_text())}
    for line in dict.fromkeys(points):
        point, _, number = line.partition(" ")
        state = directory / line.replace(" ", "-")
        ended, _ = run(state, (point, int(number)))
        again, _ = run(state, None)
        found[line] = {"killed": ended == -signal.SIGKILL, "again": again}
        found[line] |= json.loads((state / "found.json").read_text())
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
