"""What a benchmark says: figures beside their baselines, the machine they came from, and how both are shown."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.timing import Timings

_CPUINFO = Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One figure and what it stands beside, in the same unit: medians, and the best where there were several runs.

    `against` says in words what the baseline is. A figure may have a target: it, its best run or its ratio has to be
    at most or at least something.
    """

    what: str
    value: float
    unit: str
    baseline: float
    against: str
    best: float | None = None
    baseline_best: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    best_at_least: float | None = None
    ratio_at_most: float | None = None
    ratio_at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value by baseline; None where the baseline was too small to be measured."""
        return self.value / self.baseline if self.baseline else None

    @property
    def ok(self) -> bool:
        """Whether the figure is within its target, if it has one."""
        return all(
            figure is not None and (figure <= target if upper else figure >= target)
            for _, figure, target, upper in self._targets()
        )

    def _targets(self) -> list[tuple[str, float | None, float, bool]]:
        """What has a target, the figure, the target, and whether it may not be more than that, else not less."""
        given = (
            ("value", self.value, self.at_most, True),
            ("value", self.value, self.at_least, False),
            ("best", self.best, self.best_at_least, False),
            ("ratio", self.ratio, self.ratio_at_most, True),
            ("ratio", self.ratio, self.ratio_at_least, False),
        )
        return [(name, figure, target, upper) for name, figure, target, upper in given if target is not None]

    def as_json(self) -> dict[str, Any]:
        """The figure as `--json` shows it; `target`, `target_of` and `ok` only where there is a target."""
        shown: dict[str, Any] = {
            "what": self.what, "value": self.value, "unit": self.unit, "baseline": self.baseline, "ratio": self.ratio,
            "against": self.against, "best": self.best, "baseline_best": self.baseline_best,
        }  # fmt: skip
        for name, _, target, upper in self._targets()[:1]:
            shown |= {"target": target, "target_of": f"{name} {'≤' if upper else '≥'}", "ok": self.ok}
        return shown


def rate(
    what: str, of: float, took: Timings, unit: str, base: Timings, against: str, *, base_of: float | None = None
) -> Result:
    """How much of something is done in a second: `of` it in each run, `base_of` in the baseline's, or as much."""
    other = of if base_of is None else base_of
    return Result(
        what=what,
        value=of / took.median,
        best=of / took.best,
        unit=unit,
        baseline=other / base.median,
        baseline_best=other / base.best,
        against=against,
    )


def milliseconds(what: str, took: Timings, base: Timings, against: str, *, each: int = 1) -> Result:
    """How long one of something takes, where each run does `each` of it, and so does the baseline's."""
    return Result(
        what=what,
        value=took.median / each * 1e3,
        best=took.best / each * 1e3,
        unit="ms",
        baseline=base.median / each * 1e3,
        baseline_best=base.best / each * 1e3,
        against=against,
    )


class Neighbours:
    """How much of the cores other programs use, from its making until it is asked."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._all, self._ours = _all_cpu_s(), _our_cpu_s()

    def share(self, unseen_cpu_s: float) -> float:
        """Of all cores, 0 to 1. What we started counts as ours once it has ended, and so does `unseen_cpu_s`."""
        others = _all_cpu_s() - self._all - (_our_cpu_s() - self._ours) - unseen_cpu_s
        return max(0.0, others / (time.monotonic() - self._began) / (os.cpu_count() or 1))


def machine() -> dict[str, Any]:
    """The machine, and how loaded it is now."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "tornado": _version("tornado"),
        "websockets": _version("websockets"),
        "load_average": list(os.getloadavg()),
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def table(results: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Figures, as `as_json` gives them, in rows of cells; the first row is the heading."""
    rows = [["what", "figure", "best", "baseline", "ratio", "the baseline is", "target"]]
    for result in results:
        target = ""
        if "target" in result:
            target = f"{result['target_of']} {number(result['target'])}{'' if result['ok'] else ' (missed)'}"
        rows.append(
            [
                str(result["what"]),
                f"{number(result['value'])} {result['unit']}".strip(),
                number(result["best"]),
                number(result["baseline"]),
                number(result["ratio"]),
                str(result["against"]),
                target,
            ]
        )
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]


def text_table(rows: list[list[str]]) -> str:
    """Rows for a terminal: columns aligned, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 1 <= n <= 4 else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown_table(rows: list[list[str]]) -> str:
    """Rows for a page."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("---:" if 1 <= n <= 4 else "---" for n in range(len(rows[0]))) + "|")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three significant digits, or all of a larger number's whole ones."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _all_cpu_s() -> float:
    times = psutil.cpu_times()._asdict()
    # Linux counts guests in user and nice already
    return float(sum(times[kind] for kind in times if kind not in ("idle", "iowait", "guest", "guest_nice")))


def _our_cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _cpu_model() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
