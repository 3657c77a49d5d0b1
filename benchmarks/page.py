"""docs/benchmarks.md, made of what all benchmarks said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from benchmarks.results import markdown_table, table

_BUSY = 0.1


class Run(NamedTuple):
    """One benchmark as it went: its name and line, what its figures mean, and its JSON object."""

    name: str
    line: str
    meaning: str
    told: Mapping[str, Any]


def page(runs: Iterable[Run], quick: bool) -> str:
    """The whole page."""
    runs = list(runs)
    parts = [_INTRODUCTION]
    if quick:
        parts.append("**Made with `--quick`: the figures mean nothing.**")
    parts.append(_machine(runs))
    parts += [_section(run) for run in runs]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# Benchmarks

This page is written by `make bench`, which runs everything below; do not edit it by hand. `python -m benchmarks` \
lists the benchmarks, `python -m benchmarks NAME` runs one, `--json` prints its figures for machines.

Every figure stands beside a baseline that was measured in the same run, in turns with it. Figures are medians, with \
the best run beside them; *ratio* is figure by baseline, so for rates (`…/s`) more is better and for times and sizes \
less. Clients, Nodes and Workers are separate processes that share the cores of one machine."""


def _machine(runs: list[Run]) -> str:
    if not runs:
        return ""
    facts = runs[0].told["machine"]
    busiest = max(run.told["machine"]["others"] for run in runs)
    lines = [
        "## The machine",
        f"{facts['cpus']} cores of {facts['cpu']}, {facts['memory_bytes'] / 2**30:.0f} GiB of memory, "
        f"{facts['system']}; Python {facts['python']}, torch {facts['torch']}, tornado {facts['tornado']}, "
        f"websockets {facts['websockets']}. Measured {facts['measured']}.",
    ]
    if busiest > _BUSY:
        lines.append(
            f"**The machine was not idle:** other programs used up to {busiest:.0%} of its cores while the benchmarks "
            f"ran (each section says how much). Absolute figures are too low by an unknown amount and vary from run "
            f"to run; ratios suffer less, and CPU times least."
        )
    return "\n\n".join(lines)


def _section(run: Run) -> str:
    facts = run.told["machine"]
    load = ", ".join(f"{average:.2f}" for average in facts["load_average"])
    return "\n\n".join(
        [
            f"## {run.name}",
            f"{run.line[0].upper()}{run.line[1:]}.",
            f"```\npython -m benchmarks {run.name}\n```",
            markdown_table(table(run.told["results"])),
            run.meaning,
            f"Measured {facts['measured']}. Load averages at its beginning: {load}; other programs used "
            f"{facts['others']:.0%} of the cores while it ran.",
        ]
    )
