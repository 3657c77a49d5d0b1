"""Which devices of the pool are invited to a cycle. Touches as many rows as are invited, however many there are."""

from __future__ import annotations

import math
import random
from array import array

from grid_jupyter.cycles.machine import Invite, Pooled, Training, on, rest
from grid_jupyter.cycles.terms import Terms
from grid_jupyter.store.trainings import Eligible, StoredTraining, TrainingRows

_SPARE = 64
"""Ranks that are drawn beyond twice what is wanted, since some of them cannot be invited."""


def pool_of(terms: Terms, state: Training, now: float, *, asked: bool = False) -> Eligible:
    """Who could be invited: devices that were heard of within the length of a cycle, and may be in this one. Where
    devices are `asked` whether they are there when a cycle begins, only those that said so since."""
    until = state.sequence - rest(terms)
    since = now - (terms.cycle_length or math.inf)
    return Eligible(since=max(since, state.began) if asked else since, until=until)


def gather(
    rows: TrainingRows, stored: StoredTraining, terms: Terms, state: Training, now: float, *, asked: bool
) -> Training:
    """Where a cycle waits for its pool: see whether it is large enough by now, and invite. `asked` as in `pool_of`."""
    if state.phase != "gathering" or terms.goal_count is None:
        return state
    who = pool_of(terms, state, now, asked=asked)
    size = rows.pool(stored.id, state.sequence, who, max(terms.pool, terms.goal_count))
    state, actions = on(terms, state, Pooled(size), now)
    for action in actions:
        if isinstance(action, Invite):
            ranks, cursor = draw(rows, stored.id, terms, state, stored.seed, action.count, now, asked=asked)
            rows.invite(stored.id, state.sequence, ranks, now, cursor)
    return state


def draw(
    rows: TrainingRows,
    training: int,
    terms: Terms,
    state: Training,
    seed: str,
    count: int,
    now: float,
    *,
    asked: bool = False,
) -> tuple[list[int], int]:
    """Ranks of `count` devices of the pool, and where the next turn begins. `random`: without replacement, the same for
    the same seed, attempt and registry; `iterate`: in turn. With `drop_rate` that part of them is slow devices, rounded
    up, as far as there are such."""
    who = pool_of(terms, state, now, asked=asked)
    drawing = _Drawing(rows, training, state, who, seed, rows.cursor(training))
    take = drawing.at_random if terms.pool_selection == "random" else drawing.in_turn
    if terms.drop_rate is not None:
        slow = math.ceil(count * terms.drop_rate)
        take(slow, slow=True)
        take(count - slow, slow=False)
    take(count - len(drawing.chosen), slow=None)
    return sorted(drawing.chosen), drawing.cursor


class _Drawing:
    def __init__(
        self, rows: TrainingRows, training: int, state: Training, who: Eligible, seed: str, cursor: int
    ) -> None:
        self._rows, self._training, self._sequence, self._who = rows, training, state.sequence, who
        self._random = random.Random(f"{seed} {state.attempt}")  # noqa: S311 - no secret: who is invited may be known
        self.cursor = cursor
        self.chosen: set[int] = set()

    def at_random(self, count: int, *, slow: bool | None) -> None:
        if count < 1:
            return
        registered = self._rows.registered(self._training)
        tried = self._random.sample(range(1, registered + 1), min(registered, 2 * count + _SPARE))
        can = self._rows.eligible_of(self._training, self._sequence, self._who, tried, slow) - self.chosen
        found = [rank for rank in tried if rank in can][:count]
        if len(found) < count and len(tried) < registered:  # most are gone or busy: look at all of them
            pool = array("q", self._rows.eligible(self._training, self._sequence, self._who, slow))
            left = [rank for rank in pool if rank not in self.chosen] if self.chosen else pool
            found = self._random.sample(left, min(count, len(left)))
        self.chosen.update(found)

    def in_turn(self, count: int, *, slow: bool | None) -> None:
        for behind in (self.cursor, 0):
            most = count + len(self.chosen)
            ranks = self._rows.eligible(self._training, self._sequence, self._who, slow, behind=behind, most=most)
            for rank in ranks:
                if count > 0 and rank not in self.chosen:
                    self.chosen.add(rank)
                    self.cursor = rank
                    count -= 1
            if count < 1:
                return
