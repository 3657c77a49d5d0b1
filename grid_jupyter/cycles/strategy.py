"""Which strategy a server_config names, its numbers, and what makes no sense together with it. Folds nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import msgspec

from grid_jupyter.errors import BadRequest

if TYPE_CHECKING:
    from grid_jupyter.aggregation.strategies import Strategy
    from grid_jupyter.cycles.terms import Terms

MAX_KEPT = 256
"""Reports of a cycle under a strategy that keeps them all; each is a file that is mapped."""
_ASYNCHRONOUS = "FedBuff"
_REFUSED = {
    "SCAFFOLD": "SCAFFOLD keeps a control variate for each participant from cycle to cycle, and devices come and go "
    "without a name; against data that differ, take FedProx or FedAdam",
    "Serial": "Serial trains one participant after the other, and devices of a cycle train at the same time; take "
    "FedAvg with max_workers=1, max_diffs=1, which is the same",
}
_OF_CYCLES = (
    "min_diffs", "max_diffs", "min_workers", "max_workers", "require_min_workers", "goal_count", "drop_rate",
    "cycle_length",
)  # fmt: skip


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """A strategy that was checked, and what the cycle machine must know of it. Needs no NumPy."""

    name: str
    numbers: dict[str, float]
    least: int = 1
    """Reports that it cannot do without."""
    asynchronous: bool = False
    """A report counts in whatever cycle is open when it comes."""
    max_staleness: int = 0
    """Cycles that a report may be late."""


def choose(told: str | Mapping[str, Any]) -> Chosen:
    """A strategy as a server_config names it: by its name, or as {"name": …, number: …}. Raises BadRequest."""
    from grid_jupyter.aggregation.strategies import FedBuff, numbered  # NumPy, which most Nodes do without

    made = _made(told)
    asynchronous = isinstance(made, FedBuff)
    return Chosen(
        name=type(made).__name__,
        numbers={key: value for key, value in numbered(made).items() if key != "name"},
        least=made.least,
        asynchronous=asynchronous,
        max_staleness=made.max_staleness if isinstance(made, FedBuff) else 0,
    )


def check_together(chosen: Chosen, given: Mapping[str, Any], terms: Terms) -> None:
    """Refuse what contradicts the strategy. `given` are the keys that the host gave. Raises BadRequest."""
    if chosen.asynchronous:
        wrong = [key for key in _OF_CYCLES if given.get(key)]
        if terms.worker_participation_mode == 0:
            wrong.append("worker_participation_mode")
        if wrong:
            raise BadRequest(
                f"server_config contradicts itself: {chosen.name} waits for nobody, and closes its buffer at goal="
                f"{chosen.least} reports: leave {', '.join(wrong)} out"
            )
        return
    if terms.min_diffs is not None and terms.min_diffs < chosen.least:
        raise BadRequest(f"{chosen.name} needs {chosen.least} reports a cycle: min_diffs={chosen.least} or more")
    for key, most in (("max_diffs", terms.max_diffs), ("max_workers, or goal_count,", terms.places)):
        if most is not None and most < chosen.least:
            raise BadRequest(f"{chosen.name} needs {chosen.least} reports a cycle: {key} {chosen.least} or more")
    if chosen.name in ("Median", "TrimmedMean", "Krum"):
        _check_bounded(chosen, terms)


def advice(chosen: Chosen | None) -> list[str]:
    """What somebody who hosts with this strategy may not expect."""
    if chosen is None:
        return []
    if chosen.name == "FedProx":
        return [
            "FedProx is the devices' work: they are told proximal_mu in client_config; jupyter grid device does it "
            "for plans of a whole step, other clients must do it themselves"
        ]
    if chosen.name in ("Median", "TrimmedMean", "Krum", "FedBuff"):
        return [f"{chosen.name} counts each report alike: num_samples is kept, and weighs nothing"]
    return []


def _check_bounded(chosen: Chosen, terms: Terms) -> None:
    if terms.max_diffs is not None:
        most: float = terms.max_diffs
    elif terms.cycle_length is None:
        most = terms.least
    else:
        most = terms.places or math.inf
    if most > MAX_KEPT:
        raise BadRequest(
            f"{chosen.name} keeps all reports of a cycle until it ends: say that these are at most {MAX_KEPT}, by "
            "max_diffs, or max_workers"
        )


def _made(told: str | Mapping[str, Any]) -> Strategy:
    from grid_jupyter.aggregation.averaging import STRATEGIES as known  # noqa: N811

    numbers = {} if isinstance(told, str) else {key: value for key, value in told.items() if key != "name"}
    name = told if isinstance(told, str) else told.get("name")
    if not isinstance(name, str) or name not in known:
        if isinstance(name, str) and name in _REFUSED:
            raise BadRequest(_REFUSED[name])
        raise BadRequest(f"strategy is a name, or an object with a name and numbers; known are {', '.join(known)}")
    wanted = {one.name: one for one in fields(known[name]) if one.name != "max_norm"}
    if "max_norm" in numbers:
        raise BadRequest("max_norm is a key of server_config, beside strategy")
    for key, value in numbers.items():
        if key not in wanted:
            has = f"its numbers are {', '.join(wanted)}" if wanted else "it has none"
            raise BadRequest(f"the strategy {name} has no number {str(key)[:80]}; {has}")
        whole = wanted[key].type == "int"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not _in_range(value):
            raise BadRequest(f"{key} of the strategy {name} is a {'whole ' if whole else ''}number")
    for key, one in wanted.items():
        if one.default is MISSING and key not in numbers:
            raise BadRequest(f"the strategy {name} needs its {key}: {{'name': {name!r}, {key!r}: …}}")
    return known[name](**numbers)


def _in_range(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= 1_000_000_000
