"""What devices are told, and what is told on the event bus, when a training goes on: pure, from its state before and
after."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass

from grid_jupyter.cycles.machine import Training, rest
from grid_jupyter.cycles.terms import Terms
from grid_jupyter.push.bus import Bus
from grid_jupyter.store.notices import Audience
from grid_jupyter.store.trainings import StoredTraining, TrainingRows
from grid_jupyter.wire.push import NoticeType

KEPT_S = 86_400.0
"""How long a notice waits for a device that is away, where nothing else says it."""
REFRESH_S = 30.0
"""How often at most devices are asked whether they are there because another one registered."""
_TRUE_ONCE: tuple[NoticeType, ...] = ("request_for_cycle", "worker_online_status")
"""What is not true any more when the training goes on."""


@dataclass(frozen=True)
class Announcement:
    """One kind of notice, and to whom of a cycle it goes, or to which device."""

    type: NoticeType
    to: Audience | int
    sequence: int


def announcements(terms: Terms, before: Training, after: Training) -> tuple[Announcement, ...]:
    """What is to be told, in this order. Whether a cycle that needs no invitations is told depends on the pool too
    (`opens`)."""
    told: list[Announcement] = []
    if after.completed > before.completed:
        told.append(Announcement("cycle_completed", "reported", before.sequence))
        if not terms.asynchronous:  # else what they train counts in the next one
            told.append(Announcement("interrupt_cycle_completed", "assigned", before.sequence))
    elif after.attempt > before.attempt:
        told.append(Announcement("cycle reset", "none", before.sequence))
    if after.phase == "over":
        if before.phase != "over":
            told.append(Announcement("fl_completed", "all", after.sequence))
    elif after.phase == "gathering" and after.attempt > before.attempt:
        told.append(Announcement("worker_online_status", "all", after.sequence))
    elif invites(terms, before, after):
        told.append(Announcement("request_for_cycle", "invited", after.sequence))
    return tuple(told)


def invites(terms: Terms, before: Training, after: Training) -> bool:
    """Whether invitations went out in this step: training has been started."""
    return (before.started is None or before.attempt != after.attempt) and invited(terms, after)


def invited(terms: Terms, state: Training) -> bool:
    """Whether a cycle runs to which devices were invited."""
    return terms.goal_count is not None and state.phase == "open" and state.started is not None


def opens(terms: Terms, state: Training) -> bool:
    """Whether a cycle is open to whoever asks, and nobody has begun to train: once somebody has, nobody is woken."""
    return terms.goal_count is None and state.phase == "open" and state.started is None


def start_key(stored: StoredTraining, state: Training) -> str:
    """What tells the invitations of one attempt at a cycle from those of others. It opens nothing."""
    told = f"start {state.sequence} {state.attempt}".encode()
    return hmac.new(stored.secret.encode(), told, hashlib.sha256).hexdigest()


# ------------------------------------------------------------------ written together with the step


def announce(
    rows: TrainingRows, stored: StoredTraining, terms: Terms, before: Training, after: Training, now: float
) -> None:
    """Write into the outbox what a step causes, within its transaction."""
    told = announcements(terms, before, after)
    if told:
        rows.notices.void(stored.id, _TRUE_ONCE)
    for one in told:
        _queue(rows, stored, terms, one, after, now)
    _announce_open(rows, stored, terms, after, now)


def _announce_open(rows: TrainingRows, stored: StoredTraining, terms: Terms, state: Training, now: float) -> None:
    """Where a cycle is open to whoever asks: tell so, once, when enough devices can be reached."""
    if not opens(terms, state) or rows.notices.known(_key(stored, state, "request_for_cycle")):
        return
    needed = max(1, terms.min_workers or 1)
    since = 0.0 if terms.cycle_length is None else now - terms.cycle_length
    if rows.notices.reachable(stored.id, since, needed) < needed:
        return
    until = state.sequence - rest(terms)
    _queue(rows, stored, terms, Announcement("request_for_cycle", "free", until), state, now)


def invite_again(
    rows: TrainingRows, stored: StoredTraining, terms: Terms, state: Training, device: int, now: float
) -> None:
    """A device that was invited before it could be reached: it is told so now, if that was not done."""
    if invited(terms, state) and rows.place(stored.id, state.sequence, device) == "invited":
        key = _key(stored, state, "request_for_cycle")
        one = Announcement("request_for_cycle", device, state.sequence)
        _queue(rows, stored, terms, one, state, now, f"{key}/device-{device}")


def refresh(rows: TrainingRows, stored: StoredTraining, terms: Terms, state: Training, now: float) -> None:
    """While no cycle has been started: ask those whether they are there of whom nothing was heard for too long."""
    if state.phase != "gathering" or terms.cycle_length is None:
        return
    rows.notices.queue(
        f"{_key(stored, state, 'worker_online_status')}/{int(now // REFRESH_S)}",
        stored.id,
        "worker_online_status",
        {"cycle_id": state.sequence},
        to="unheard",
        since=max(state.began, now - terms.cycle_length),
        now=now,
        expires=now + max(terms.cycle_length, REFRESH_S),
    )


def _queue(
    rows: TrainingRows,
    stored: StoredTraining,
    terms: Terms,
    one: Announcement,
    state: Training,
    now: float,
    key: str = "",
) -> None:
    facts: dict[str, str | int] = {"cycle_id": one.sequence}
    expires = now + KEPT_S
    if one.type == "request_for_cycle":
        facts = {"cycle_id": state.sequence, "cycle_start_request_key": start_key(stored, state)}
        expires = expires if state.end is None else max(state.end, now)
    elif one.type == "worker_online_status":
        expires = now + max(terms.cycle_length or KEPT_S, REFRESH_S)
    rows.notices.queue(
        key or _key(stored, state, one.type), stored.id, one.type, facts,
        to=one.to, sequence=one.sequence, now=now, expires=expires,
    )  # fmt: skip


def _key(stored: StoredTraining, state: Training, type: NoticeType) -> str:  # noqa: A002
    """One notice of a type for each attempt; completion is told of the cycle before."""
    return f"{stored.id}/{state.completed}/{state.attempt}/{type}"


# ------------------------------------------------------------------ told after the step


def events(before: Training, after: Training) -> Iterator[tuple[str, int]]:
    """Names of what happened, and of which cycle."""
    if after.completed > before.completed:
        yield "cycle-completed", before.sequence
    elif after.attempt > before.attempt:
        yield "cycle-reset", before.sequence
    if after.phase == "over":
        if before.phase != "over":
            yield "training-over", after.sequence
        return
    if after.attempt > before.attempt:
        yield "cycle-opened", after.sequence
    if after.started is not None and (before.started is None or after.attempt > before.attempt):
        yield "training-started", after.sequence


def publish(bus: Bus, stored: StoredTraining, before: Training, after: Training) -> None:
    """Tell what happened on the bus."""
    for name, cycle in events(before, after):
        bus.publish(name, model=stored.name, version=stored.version, cycle=cycle)
