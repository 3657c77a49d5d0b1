"""The life of a training, cycle by cycle, as a pure machine: (terms, state, event, now) → (state, action).

    gathering ──enough pool──▶ open ──enough reports, or its end──▶ closing ──aggregated──▶ open | gathering | over
        ▲                       │ ▲
        └──── its end came with too few reports: reset ──┘

It knows no clock, no disk, no registry: what it needs to know of a worker comes with the event, and its own state is a
dozen numbers however many workers there are. Without `goal_count` a cycle is open from its beginning, and whoever asks
gets a place while there is one; with it, a cycle gathers until the pool is large enough, and then workers are invited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal, Union

from grid_jupyter.cycles.terms import Terms

Phase = Literal["gathering", "open", "closing", "over"]
Place = Literal["none", "invited", "assigned", "reported"]
"""What a worker has in the cycle: nothing, a place that waits for it, a place, a place and has reported."""

RETRY_S: Final = 10
"""When to ask again where no end of the cycle says it, in seconds."""
SOON_S: Final = 1
"""When to ask again where the next cycle is about to begin."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a training stands. Times are UTC seconds."""

    phase: Phase
    began: float
    sequence: int = 1  # of the cycle
    attempt: int = 1  # grows with each cycle and each reset
    end: float | None = None
    started: float | None = None  # the first worker got its place, or invitations went out
    invited: int = 0  # whose places wait for them
    assigned: int = 0  # who got a place, those who reported included
    reports: int = 0
    completed: int = 0  # cycles
    asked: int = 0  # workers that asked for a place in this attempt
    asked_before: int = 0  # and in the one before


# ------------------------------------------------------------------ events


@dataclass(frozen=True)
class Pooled:
    """So many workers could be invited now."""

    size: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A worker asks for a place. `lot` is drawn from [0, 1)."""

    place: Place = "none"
    registered: float = 0.0
    last: int | None = None  # the cycle that it had its last place in
    again: bool = False  # it has asked in this attempt before
    kin: int = 0  # places that its token has in this cycle already
    lot: float = 0.0
    download: float = math.inf  # KiB/s
    upload: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A report, good in itself, of a worker that got its place in a cycle."""

    sequence: int  # of that cycle
    place: Place


@dataclass(frozen=True)
class Tick:
    """Time went by."""


@dataclass(frozen=True)
class Aggregated:
    """The reports of the cycle that was closed are in a checkpoint."""


@dataclass(frozen=True)
class End:
    """Who hosts it ends the training."""


Event = Union[Pooled, Asked, Reported, Tick, Aggregated, End]

# ------------------------------------------------------------------ actions


@dataclass(frozen=True)
class Invite:
    """Draw so many workers from the pool."""

    count: int


@dataclass(frozen=True)
class Accept:
    """The worker that asked gets a place."""


@dataclass(frozen=True)
class Reject:
    """It gets none. `timeout_s`: ask again after that; None: training is over, and nothing else."""

    timeout_s: int | None
    reason: str


@dataclass(frozen=True)
class Store:
    """The report counts, as the `number`-th of its cycle."""

    number: int


@dataclass(frozen=True)
class Late:
    """It does not count, and nothing is changed."""

    reason: str


@dataclass(frozen=True)
class Aggregate:
    """Make a checkpoint of all reports of the cycle."""


@dataclass(frozen=True)
class Release:
    """The cycle begins again: places without a report are given up. Reports that counted go on counting."""


@dataclass(frozen=True)
class Begin:
    """The next cycle began; or, where `over`, there is none."""

    over: bool


Action = Union[Invite, Accept, Reject, Store, Late, Aggregate, Release, Begin]
Result = tuple[Training, tuple[Action, ...]]

# ------------------------------------------------------------------ the machine


def begin(terms: Terms, now: float) -> Training:
    """The first cycle."""
    return _opened(terms, Training(phase="open", began=now, attempt=0), now)


def on(terms: Terms, state: Training, event: Event, now: float) -> Result:
    """What an event changes, and what is to be done. Impossible events change nothing."""
    if isinstance(event, Asked):
        return _asked(terms, state, event, now)
    if isinstance(event, Reported):
        return _reported(terms, state, event, now)
    if isinstance(event, Tick):
        return _tick(terms, state, now)
    if isinstance(event, Pooled):
        return _pooled(terms, state, event.size, now)
    if isinstance(event, End):
        return _ended(state)
    return _aggregated(terms, state, now)


def timeout(state: Training, now: float) -> int | None:
    """Seconds until it is worth asking again; None: never, training is over."""
    if state.phase == "over":
        return None
    if state.phase == "closing":
        return SOON_S
    if state.end is None:
        return RETRY_S
    return max(SOON_S, math.ceil(state.end - now))


def _asked(terms: Terms, state: Training, event: Asked, now: float) -> Result:
    if not event.again:
        state = replace(state, asked=state.asked + 1)
    refused = _refusal(terms, state, event, now)
    if refused is not None:
        return state, (refused,)
    invited = state.invited - (event.place == "invited")
    started = now if state.started is None else state.started
    return replace(state, invited=invited, assigned=state.assigned + 1, started=started), (Accept(),)


def _refusal(terms: Terms, state: Training, event: Asked, now: float) -> Reject | None:
    wait = timeout(state, now)
    soon = None if wait is None else min(wait, RETRY_S)
    if state.phase == "over":
        return Reject(None, "training is over")
    if state.phase == "closing" or (state.end is not None and now >= state.end):
        return Reject(SOON_S, "the cycle is ending; the next one begins in a moment")
    if event.place == "assigned" or (event.place == "reported" and not terms.asynchronous):
        return Reject(wait, "this worker has its place in this cycle already")
    if terms.max_devices_per_token is not None and event.kin >= terms.max_devices_per_token:
        return Reject(wait, "the devices of this auth_token have all the places of this cycle that one token gets")
    slow = _too_slow(terms, event)
    if slow:
        return Reject(wait, slow)
    if not may_again(terms, state.sequence, event.last):
        return Reject(wait, f"a worker is taken again {terms.do_not_reuse_workers_until_cycle} cycles after its last")
    if state.phase == "gathering":
        return Reject(soon, "the cycle waits for more workers")
    if event.place == "invited":
        return None
    if not terms.worker_participation_mode and _began_without(terms, state, event):
        return Reject(wait, "training has begun; who comes now waits for the next cycle")
    if terms.places is not None and state.assigned + state.invited >= terms.places:
        return Reject(wait, "all places of this cycle are taken")
    if terms.require_min_workers and not state.assigned and state.asked < (terms.min_workers or 0):
        return Reject(soon, "the cycle waits for more workers")
    if event.lot >= chance(terms, state):
        return Reject(soon, "the places of this cycle are drawn by lot, and this one fell to somebody else")
    return None


def _began_without(terms: Terms, state: Training, event: Asked) -> bool:
    """Whether the training of this cycle began before this worker was there, or without inviting it."""
    return terms.goal_count is not None or (state.started is not None and event.registered > state.started)


def may_again(terms: Terms, sequence: int, last: int | None) -> bool:
    """Whether a worker whose last cycle was `last` may be in this one."""
    return last is None or sequence - last >= rest(terms)


def rest(terms: Terms) -> int:
    """Cycles from a worker's last one to the next that it may be in: 0 where a buffer takes several of its reports."""
    return max(0 if terms.asynchronous else 1, terms.do_not_reuse_workers_until_cycle)


def chance(terms: Terms, state: Training) -> float:
    """The part of those who ask that gets a place. Under `random` as many as the last attempt had places for, so that
    the quick ones have no better lot; whoever asks again draws again, so that a cycle fills however few come."""
    if terms.pool_selection != "random" or terms.goal_count is not None or terms.max_workers is None:
        return 1.0
    return terms.max_workers / max(terms.max_workers, state.asked_before)


def _too_slow(terms: Terms, event: Asked) -> str:
    for name, least, speed in (
        ("download", terms.minimum_download_speed, event.download),
        ("upload", terms.minimum_upload_speed, event.upload),
    ):
        if least is not None and speed < least:
            return f"the {name} is slower than the {least:g} KiB/s that this training needs"
    return ""


def _reported(terms: Terms, state: Training, event: Reported, now: float) -> Result:
    if event.place == "reported":
        return state, (
            Late("this worker has reported in this cycle already; a report counts once; ask for the next one"),
        )
    if terms.staleness(event.sequence, state.sequence) is None or state.phase != "open":
        return state, (Late("the cycle of this request_key is closed; ask for the next one"),)
    if event.place != "assigned":
        return state, (Late("the cycle began again, and this place was given up; ask for a new one"),)
    state = replace(state, reports=state.reports + 1)
    stored = Store(state.reports)
    if not _ready(terms, state, now):
        return state, (stored,)
    return replace(state, phase="closing"), (stored, Aggregate())


def _ready(terms: Terms, state: Training, now: float) -> bool:
    if state.reports < terms.least:
        return False
    if terms.max_diffs is None and state.end is None:
        return True
    full = terms.max_diffs is not None and state.reports >= terms.max_diffs
    return full or (state.end is not None and now >= state.end)


def _tick(terms: Terms, state: Training, now: float) -> Result:
    if state.phase != "open" or state.end is None or now < state.end:
        return state, ()
    if state.reports >= terms.least:
        return replace(state, phase="closing"), (Aggregate(),)
    state = replace(state, assigned=state.reports)
    return _opened(terms, state, now), (Release(),)


def _pooled(terms: Terms, state: Training, size: int, now: float) -> Result:
    if state.phase != "gathering" or terms.goal_count is None:
        return state, ()
    missing = max(0, terms.goal_count - state.reports)
    if size + state.reports < terms.pool or not min(missing, size):
        return state, ()
    count = min(missing, size)
    end = None if terms.cycle_length is None else now + terms.cycle_length
    return replace(state, phase="open", started=now, end=end, invited=count), (Invite(count),)


def _aggregated(terms: Terms, state: Training, now: float) -> Result:
    if state.phase != "closing":
        return state, ()
    completed = state.completed + 1
    if terms.num_cycles and completed >= terms.num_cycles:
        return replace(state, phase="over", completed=completed, end=None), (Begin(over=True),)
    after = replace(state, completed=completed, sequence=state.sequence + 1, assigned=0, reports=0)
    return _opened(terms, after, now), (Begin(over=False),)


def _ended(state: Training) -> Result:
    if state.phase == "over":
        return state, ()
    return replace(state, phase="over", end=None, invited=0), (Begin(over=True),)


def _opened(terms: Terms, state: Training, now: float) -> Training:
    """A cycle, or another attempt at it, begins. One that gathers has no end yet: nobody has been asked to train."""
    gathers = terms.goal_count is not None
    return replace(
        state,
        phase="gathering" if gathers else "open",
        began=now,
        attempt=state.attempt + 1,
        end=None if gathers or terms.cycle_length is None else now + terms.cycle_length,
        started=None,
        invited=0,
        asked=0,
        asked_before=state.asked,
    )
