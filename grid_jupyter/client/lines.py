"""What was measured, as lines against the number of the round: of one training, of all who took part, and of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grid_jupyter.client.metrics import Measured, means_of
from grid_jupyter.client.texts import name, number
from grid_jupyter.client.watching import Point

EACH = 50
"""Participants, or devices, that get a line of their own."""
ROUNDS = 2_000
"""Rounds that are drawn: of more, evenly chosen ones, and always the last."""


def of_points(
    unit: str, points: Sequence[Point], each: Mapping[str, Sequence[Point]] | None = None, *, most: int = ROUNDS
) -> dict[str, Any]:
    """Lines of what was measured behind each round or epoch, of `most` rounds; `each`: what the participants measured
    by themselves."""
    chosen = _chosen([one for one, _ in points], most)
    figures = {one: found for one, found in points if one in chosen}
    lines = _lines("", figures)
    for by, some in sorted((each or {}).items())[:EACH]:
        alone = dict(some)
        lines += _lines(name(by), {one: alone.get(one, {}) for one in figures})
    return {"unit": unit, "rounds": sorted(figures), "lines": lines}


def of_measured(rows: Iterable[Measured]) -> dict[str, Any]:
    """Means of each cycle, weighted by samples, and the first devices by themselves."""
    cycles: dict[int, list[Measured]] = {}
    for one in rows:
        cycles.setdefault(one.cycle, []).append(one)
    chosen = _chosen(sorted(cycles), ROUNDS)
    by_device: dict[int, dict[int, Mapping[str, float]]] = {}
    for cycle in chosen:
        for one in cycles[cycle]:
            if one.worker <= EACH:
                by_device.setdefault(one.worker, {})[cycle] = one.values
    rounds = {cycle: means_of(cycles[cycle]) for cycle in sorted(chosen)}
    lines = _lines("", rounds)
    for worker, found in sorted(by_device.items()):
        lines += _lines(f"device {worker}", {cycle: found.get(cycle, {}) for cycle in rounds})
    return {"unit": "cycle", "rounds": list(rounds), "lines": lines}


def _lines(by: str, figures: Mapping[int, Mapping[str, float]]) -> list[dict[str, Any]]:
    metrics = dict.fromkeys(metric for found in figures.values() for metric in found)
    return [
        {
            "metric": name(metric),
            "by": by,
            "values": [number(figures[one].get(metric)) for one in sorted(figures)],
        }
        for metric in metrics
    ]


def _chosen(rounds: Sequence[int], most: int) -> set[int]:
    step = math.ceil(len(rounds) / most)
    return {*rounds[::step], rounds[-1]} if rounds else set()
