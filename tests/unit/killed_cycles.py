"""A program: the same training again and again, killed each time at another of the points where a Node may die.

Run as `python killed_cycles.py DIRECTORY [STRATEGY]`, with a strategy for two cycles. It prints, as JSON,
what each run came to after its restart.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
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


STRATEGY = sys.argv[2] if len(sys.argv) > 2 else None
CYCLES = [REPORTS] if STRATEGY is None else [REPORTS[:2], REPORTS[1:]]
FILES = 3 if STRATEGY is None else 6
"""A plan and checkpoints, and the last one's moments."""


async def train(state: Path, at: Callable[[str], None]) -> dict[str, Any]:
    """Three reports, of one cycle or of two. Called again on the same directory it does the same again, as devices
    would that never heard an answer."""
    async with world(state, at=at) as here:
        for cycle, reports in enumerate(CYCLES):
            journal = state / f"journal-{cycle}.json"
            if not journal.exists():
                if not cycle:
                    ends = {"max_diffs": 3} if STRATEGY is None else {"min_diffs": 2, "strategy": STRATEGY}
                    await here.host(num_cycles=len(CYCLES) + 1, **ends)
                places = [await here.accepted() for _ in reports]
                journal.write_text(json.dumps(places))
            for number, (place, (data, samples)) in enumerate(
                zip(json.loads(journal.read_text()), reports, strict=True)
            ):
                hand_in = here.report if number else here.report_in_parts
                await hand_in(tuple(place), data, samples, loss=1 / samples)
            stands = await here.stands(after=cycle)
        descriptor, found = await here.cycles.retrieve("m", None, "latest")
        os.close(descriptor)
        deadline = time.monotonic() + 20
        while len(list((state / "training").iterdir())) > FILES:  # reports are deleted behind the answer
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        # which device told it does not matter: one that was given its place as the Node died comes as another
        told = [[cycle, samples, values] for cycle, _, samples, values in await here.metrics()]
    async with world(state):  # a start removes what was left half done
        files = len(list((state / "training").iterdir()))
    return {
        "completed": stands["completed"], "number": found.number, "sha256": found.sha256, "files": files, "told": told
    }  # fmt: skip


def run(state: Path, killed_at: tuple[str, int] | None) -> tuple[int, list[str]]:
    """In a process of its own; the signal that ended it, and the points that it came by."""
    if not state.exists():
        shutil.copytree(state.parent / "empty", state)
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


async def empty(state: Path) -> None:
    """A database with its tables, which take longer to make than all that follows."""
    async with world(state):
        pass


def main(directory: Path) -> None:
    asyncio.run(empty(directory / "empty"))
    _, points = run(directory / "whole", None)
    found = {"": json.loads((directory / "whole" / "found.json").read_text())}
    for line in dict.fromkeys(points):
        point, _, number = line.partition(" ")
        if STRATEGY is not None and point.startswith("report-") and point != "report-deleted" and int(number) < 3:
            continue  # as without a strategy
        state = directory / line.replace(" ", "-")
        ended, _ = run(state, (point, int(number)))
        again, _ = run(state, None)
        found[line] = {"killed": ended == -signal.SIGKILL, "again": again}
        found[line] |= json.loads((state / "found.json").read_text())
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
