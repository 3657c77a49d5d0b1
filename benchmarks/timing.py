"""Runs pieces of work in turns, so that all of them meet the same moods of the machine, and times them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

CpuReader = Callable[[], float]
"""CPU seconds that some process has used so far."""


@dataclass
class Timings:
    """Wall seconds of each run of one piece of work, and CPU seconds of all its runs by process."""

    walls: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> float:
        return min(self.walls)

    @property
    def median(self) -> float:
        return statistics.median(self.walls)

    def cpu_each(self, process: str) -> float:
        """CPU seconds of one run, on average: kernels count them in ticks of 10 ms."""
        return self.cpu[process] / len(self.walls)


def in_turns(
    works: Mapping[str, Callable[[], object]], runs: int, others: Mapping[str, CpuReader] | None = None
) -> dict[str, Timings]:
    """Run each piece of work once to warm up (unless there is but one run), then all of them `runs` times in turns.

    CPU seconds are those of this process, as "here", and of the `others`.
    """
    readers = dict(others or {})
    timings = {name: Timings(cpu=dict.fromkeys(("here", *readers), 0.0)) for name in works}
    for work in works.values() if runs > 1 else ():
        work()
    for _ in range(runs):
        for name, work in works.items():
            took = timings[name]
            before = {process: read() for process, read in readers.items()}
            used, began = time.process_time(), time.perf_counter()
            work()
            ended = time.perf_counter()
            took.cpu["here"] += time.process_time() - used  # before the others are read, which costs time here
            took.walls.append(ended - began)
            for process, read in readers.items():
                took.cpu[process] += read() - before[process]
    return timings
