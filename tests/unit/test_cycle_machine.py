"""Cycles of training: whatever order events come in, the rules hold, told here once more in the plainest way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grid_jupyter.cycles.machine import (
    RETRY_S,
    SOON_S,
    Accept,
    Aggregate,
    Aggregated,
    Asked,
    Begin,
    End,
    Invite,
    Late,
    Pooled,
    Reject,
    Release,
    Reported,
    Store,
    Tick,
    Training,
    begin,
    chance,
    on,
)
from grid_jupyter.cycles.terms import KNOWN, Terms, advice, read_speed, read_terms
from grid_jupyter.errors import BadRequest

# ------------------------------------------------------------------ what a server_config may say

REFERENCE = {
    "min_workers": 5,
    "max_workers": 5,
    "pool_selection": "random",
    "do_not_reuse_workers_until_cycle": 6,
    "cycle_length": 28800,
    "num_cycles": 5,
    "max_diffs": 1,
    "minimum_upload_speed": 0,
    "minimum_download_speed": 0,
}
"""Of the best-known notebook of 0.2.9, which then runs one client."""


def test_the_reference_configuration_is_taken_and_says_that_min_workers_keeps_nobody_waiting():
    terms = read_terms(REFERENCE)
    assert terms.measures_speed
    assert "min_workers=5 keeps nobody waiting" in advice(terms)[0]


def test_an_unknown_key_is_refused_with_the_list_of_known_ones():
    with pytest.raises(BadRequest, match="has no key goal_cuont; known are authentication, cycle_length"):
        read_terms({"goal_cuont": 3})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"min_diffs": 3, "max_diffs": 2}, "min_diffs is more than max_diffs"),
        ({"min_workers": 3, "max_workers": 2, "cycle_length": 9}, "min_workers is more than max_workers"),
        ({"goal_count": 3, "max_workers": 2, "cycle_length": 9}, "goal_count is more than max_workers"),
        ({"min_diffs": 3, "max_workers": 2, "cycle_length": 9}, "min_diffs is more than there are places"),
        ({"min_diffs": 3, "goal_count": 2, "cycle_length": 9}, "min_diffs is more than there are places"),
        ({"max_workers": 2}, "need a cycle_length"),
        ({"goal_count": 2}, "need a cycle_length"),
        ({"drop_rate": 0.5}, "drop_rate is a part of goal_count"),
        ({"require_min_workers": True}, "require_min_workers needs min_workers"),
        ({"require_min_workers": True, "min_workers": 2, "goal_count": 2, "cycle_length": 9}, "no goal_count"),
        ({"iterative_plan": 1}, "iterative_plan"),
        ({"authentication": {"type": "jwt"}}, "needs a 'secret'"),
        ({"authentication": {"secret": "short"}}, "at least 32 bytes"),
        ({"authentication": {"endpoint": 5}}, "endpoint"),
        ({"authentication": {"secret": "s" * 32, "kind": 1}}, "unknown field"),
        ({"pool_selection": "best"}, "pool_selection"),
        ({"cycle_length": 0}, "cycle_length"),
        ({"cycle_length": float("inf")}, "cycle_length"),
        ({"minimum_upload_speed": -1}, "minimum_upload_speed"),
        ({"minimum_upload_speed": float("nan")}, "minimum_upload_speed"),
        ({"num_cycles": "5"}, "num_cycles"),
        ({"num_cycles": True}, "num_cycles"),
        ({"max_norm": 0}, "max_norm"),
        ({"worker_participation_mode": 0, "min_diffs": 2}, "worker_participation_mode 0 needs a cycle_length"),
        ({"worker_participation_mode": 2}, "worker_participation_mode"),
        ({"drop_rate": 1.5, "goal_count": 2, "cycle_length": 9}, "drop_rate"),
    ],
)
def test_what_is_wrong_or_contradicts_itself_is_refused_with_the_reason(config: dict[str, Any], said: str):
    with pytest.raises(BadRequest, match=said):
        read_terms(config)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "100", True, [], {}])
def test_a_speed_that_is_no_positive_number_is_refused(value: object):
    with pytest.raises(BadRequest, match="'download' needs to be a positive number"):
        read_speed("download", value, required=False)


def test_a_speed_is_required_only_where_a_minimum_is_set():
    assert read_speed("upload", None, required=False) is None
    with pytest.raises(BadRequest, match="'upload' is required"):
        read_speed("upload", None, required=True)


# ------------------------------------------------------------------ single rules


def asked(terms: Terms, state: Training, now: float = 0.0, **facts: Any) -> tuple[Training, Accept | Reject]:
    state, (answer,) = on(terms, state, Asked(**facts), now)
    assert isinstance(answer, (Accept, Reject))
    return state, answer


def reported(terms: Terms, state: Training, now: float = 0.0) -> tuple[Training, tuple[Any, ...]]:
    return on(terms, state, Reported(sequence=state.sequence, place="assigned"), now)


def test_a_report_that_comes_just_before_the_clock_is_looked_at_counts_and_closes_the_cycle():
    terms = read_terms({"cycle_length": 100, "min_diffs": 2})
    state = begin(terms, 0.0)
    state, _ = reported(terms, state, 50.0)
    state, actions = reported(terms, state, 101.0)
    assert actions == (Store(2), Aggregate())
    assert state.phase == "closing"


def test_a_cycle_ends_on_time_though_nobody_reports_any_more():
    terms = read_terms({"cycle_length": 100, "min_diffs": 1, "max_diffs": 5})
    state, _ = reported(terms, begin(terms, 0.0), 10.0)
    assert on(terms, state, Tick(), 99.9) == (state, ())
    state, actions = on(terms, state, Tick(), 100.0)
    assert actions == (Aggregate(),)


def test_an_expired_cycle_without_enough_reports_begins_again_and_loses_none():
    terms = read_terms({"cycle_length": 100, "min_diffs": 2, "max_workers": 3})
    state = begin(terms, 0.0)
    for _ in range(3):
        state, _ = asked(terms, state)
    state, _ = reported(terms, state)
    state, actions = on(terms, state, Tick(), 100.0)
    assert actions == (Release(),)
    assert (state.phase, state.sequence, state.end) == ("open", 1, 200.0)
    assert (state.reports, state.assigned) == (1, 1)
    state, answer = asked(terms, state, 101.0)
    assert answer == Accept()


def test_only_the_end_of_training_has_no_timeout():
    terms = read_terms({"num_cycles": 1, "max_diffs": 1})
    state = begin(terms, 0.0)
    state, _ = asked(terms, state)
    _, again = asked(terms, state, place="assigned")
    assert again == Reject(RETRY_S, "this worker has its place in this cycle already")
    state, _ = reported(terms, state)
    _, closing = asked(terms, state)
    assert isinstance(closing, Reject)
    assert closing.timeout_s == SOON_S
    state, actions = on(terms, state, Aggregated(), 1.0)
    assert actions == (Begin(over=True),)
    _, over = asked(terms, state, 2.0)
    assert isinstance(over, Reject)
    assert over.timeout_s is None


def test_num_cycles_of_zero_is_without_end():
    terms = read_terms({"num_cycles": 0, "max_diffs": 1})
    state = begin(terms, 0.0)
    for number in range(1, 30):
        state, _ = reported(terms, state)
        state, actions = on(terms, state, Aggregated(), 0.0)
        assert actions == (Begin(over=False),)
        assert state.sequence == number + 1


def test_timeouts_are_whole_seconds_until_the_end_of_the_cycle():
    terms = read_terms({"cycle_length": 100, "max_workers": 1})
    state, _ = asked(terms, begin(terms, 0.0))
    _, answer = asked(terms, state, 0.5)
    assert answer == Reject(100, "all places of this cycle are taken")


def test_slow_connections_are_rejected_and_a_minimum_of_zero_rejects_nobody():
    terms = read_terms({"minimum_download_speed": 100, "minimum_upload_speed": 0})
    state = begin(terms, 0.0)
    _, answer = asked(terms, state, download=99.9, upload=0.0)
    assert isinstance(answer, Reject)
    assert "slower than the 100 KiB/s" in answer.reason
    _, answer = asked(terms, state, download=100.0, upload=0.0)
    assert answer == Accept()


@pytest.mark.parametrize(("rest", "allowed"), [(0, 2), (1, 2), (2, 3), (6, 7)])
def test_a_worker_is_taken_again_so_many_cycles_later(rest: int, allowed: int):
    terms = read_terms({"max_diffs": 1, "do_not_reuse_workers_until_cycle": rest})
    state, first = begin(terms, 0.0), None
    while first is None:
        state, _ = reported(terms, state)
        state, _ = on(terms, state, Aggregated(), 0.0)
        if asked(terms, state, last=1)[1] == Accept():
            first = state.sequence
    assert first == allowed


def test_a_cycle_that_requires_its_workers_waits_for_them():
    terms = read_terms({"min_workers": 3, "require_min_workers": True})
    state = begin(terms, 0.0)
    for _ in range(2):
        state, answer = asked(terms, state)
        assert answer == Reject(RETRY_S, "the cycle waits for more workers")
    _, answer = asked(terms, state, again=True)
    assert isinstance(answer, Reject)
    state, answer = asked(terms, state)
    assert answer == Accept()
    _, answer = asked(terms, state, again=True)
    assert answer == Accept()


def test_a_lone_worker_is_never_drawn_against_and_of_many_as_many_are_drawn_as_there_are_places():
    terms = read_terms({"pool_selection": "random", "max_workers": 10, "cycle_length": 100, "max_diffs": 1})
    state = begin(terms, 0.0)
    assert chance(terms, state) == 1.0
    for _ in range(40):
        state, _ = asked(terms, state)
    state, _ = reported(terms, state)
    state, _ = on(terms, state, Aggregated(), 1.0)
    assert chance(terms, state) == 0.25
    assert asked(terms, state, 1.0, lot=0.25)[1] != Accept()
    assert asked(terms, state, 1.0, lot=0.2499)[1] == Accept()


def test_who_registers_after_training_began_waits_where_participation_mode_is_0():
    for mode, expected in ((0, Reject), (1, Accept)):
        terms = read_terms({"worker_participation_mode": mode, "cycle_length": 100})
        state, first = asked(terms, begin(terms, 0.0), 5.0, registered=1.0)
        assert first == Accept()
        assert asked(terms, state, 6.0, registered=5.0)[1] == Accept()
        assert isinstance(asked(terms, state, 7.0, registered=6.0)[1], expected)


def test_invitations_go_out_when_the_pool_is_large_enough_and_no_earlier():
    terms = read_terms({"goal_count": 4, "min_workers": 2, "min_diffs": 3, "cycle_length": 100})
    state = begin(terms, 0.0)
    assert (state.phase, state.end) == ("gathering", None)
    assert asked(terms, state)[1] == Reject(RETRY_S, "the cycle waits for more workers")
    assert on(terms, state, Pooled(2), 1.0) == (state, ())  # fewer than its min_diffs could never complete it
    state, actions = on(terms, state, Pooled(3), 10.0)
    assert actions == (Invite(3),)
    assert (state.phase, state.end, state.started) == ("open", 110.0, 10.0)
    assert on(terms, state, Pooled(9), 11.0) == (state, ())


@pytest.mark.parametrize(("mode", "places", "joins"), [(0, 3, False), (1, 2, False), (1, 3, True)])
def test_who_was_not_invited_joins_where_the_mode_and_the_places_allow_it(mode: int, places: int, joins: bool):
    config = {"goal_count": 2, "max_workers": places, "cycle_length": 100, "worker_participation_mode": mode}
    terms = read_terms(config)
    state, _ = on(terms, begin(terms, 0.0), Pooled(2), 0.0)
    state, answer = asked(terms, state, place="invited")
    assert answer == Accept()
    assert isinstance(asked(terms, state)[1], Accept) == joins
    state, answer = asked(terms, state, place="invited")
    assert answer == Accept()
    assert (state.invited, state.assigned) == (0, 2)


def test_reports_for_another_cycle_a_closed_one_or_a_place_that_was_given_up_are_late_and_change_nothing():
    terms = read_terms({"max_diffs": 2})
    state = begin(terms, 0.0)
    for event in (
        Reported(sequence=0, place="assigned"),
        Reported(sequence=1, place="none"),
        Reported(sequence=1, place="invited"),
        Reported(sequence=1, place="reported"),
    ):
        after, (answer,) = on(terms, state, event, 0.0)
        assert isinstance(answer, Late)
        assert after == state


# ------------------------------------------------------------------ any order of events

_COUNTS = st.none() | st.integers(1, 4)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "num_cycles": st.integers(0, 3),
        "cycle_length": st.sampled_from([5, 20]),
        "min_diffs": _COUNTS,
        "max_diffs": _COUNTS,
        "max_workers": _COUNTS,
        "min_workers": _COUNTS,
        "require_min_workers": st.booleans(),
        "goal_count": _COUNTS,
        "worker_participation_mode": st.sampled_from([0, 1]),
        "do_not_reuse_workers_until_cycle": st.integers(0, 2),
        "strategy": st.fixed_dictionaries(
            {"name": st.just("FedBuff"), "goal": st.integers(1, 4), "max_staleness": st.integers(0, 2)}
        ),
    },
)


def _possible(config: dict[str, Any]) -> bool:
    try:
        read_terms(config)
    except BadRequest:
        return False
    return True


class Cycles(RuleBasedStateMachine):
    """The machine beside a model of the rules that keeps every worker, and says each rule in a line."""

    @initialize(config=CONFIGS.filter(_possible))
    def host(self, config: dict[str, Any]) -> None:
        self.terms = read_terms(config)
        self.now = 0.0
        self.state = begin(self.terms, self.now)
        self.last: dict[int, int] = {}
        self.places: dict[int, str] = {}
        self.older: dict[int, int] = {}  # of FedBuff: who has a place of which cycle before this one
        self.attempts: set[int] = set()
        self.reports = self.completed = 0
        self.over = False
        self.workers = 0

    def _on(self, event: Any) -> tuple[Any, ...]:
        self.state, actions = on(self.terms, self.state, event, self.now)
        for action in actions:
            if isinstance(action, Invite):
                free = [one for one in range(self.workers) if self._eligible(one)]
                assert 0 < action.count <= len(free)
                self.places.update(dict.fromkeys(free[: action.count], "invited"))
            if isinstance(action, Release):
                self.places = {one: place for one, place in self.places.items() if place == "reported"}
                self.attempts.clear()
        return actions

    def _eligible(self, worker: int) -> bool:
        waits = self.terms.strategy is None
        rest = max(1 if waits else 0, self.terms.do_not_reuse_workers_until_cycle)
        rested = worker not in self.last or self.state.sequence - self.last[worker] >= rest
        return rested and (worker not in self.places or (not waits and self.places[worker] == "reported"))

    def _gather(self) -> None:
        if self.terms.goal_count is not None:
            self._on(Pooled(sum(map(self._eligible, range(self.workers)))))

    @rule()
    def register(self) -> None:
        self.workers += 1
        self._gather()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        worker = data.draw(st.integers(0, self.workers - 1))
        self._gather()
        place, before = self.places.get(worker, "none"), self.state
        (answer,) = self._on(
            Asked(place=place, last=self.last.get(worker), again=worker in self.attempts)  # type: ignore[arg-type]
        )
        self.attempts.add(worker)
        if isinstance(answer, Accept):
            assert before.phase == "open"
            assert before.end is None or self.now < before.end
            assert place == "invited" or self._eligible(worker)
            if self.terms.goal_count is not None and self.terms.worker_participation_mode == 0:
                assert place == "invited"
            self.places[worker] = "assigned"
            self.older.pop(worker, None)
        else:
            assert isinstance(answer, Reject)
            assert (answer.timeout_s is None) == self.over
            assert answer.timeout_s is None or answer.timeout_s >= SOON_S
            assert answer.reason
            in_time = before.phase == "open" and (before.end is None or self.now < before.end)
            assert not (place == "invited" and in_time), "an invited worker gets its place"

    @precondition(lambda self: self.places)
    @rule(data=st.data(), old=st.booleans())
    def report(self, data: st.DataObject, old: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.places)))
        old = old and self.terms.strategy is None
        sequence = self.state.sequence - old
        before = self.state
        actions = self._on(Reported(sequence=sequence, place=self.places[worker]))  # type: ignore[arg-type]
        if self.places[worker] == "assigned" and not old and before.phase == "open":
            self.places[worker] = "reported"
            self.last[worker] = self.state.sequence
            self.reports += 1
            terms = self.terms
            # 0.2.9's rule, as it stands in its documentation
            goal = terms.strategy["goal"] if isinstance(terms.strategy, dict) else 1
            ready = self.reports >= max(goal, terms.min_diffs or 0) and (
                (terms.max_diffs is None and before.end is None)
                or (terms.max_diffs is not None and self.reports >= terms.max_diffs)
                or (before.end is not None and self.now >= before.end)
            )
            assert actions == ((Store(self.reports), Aggregate()) if ready else (Store(self.reports),))
        else:
            assert isinstance(actions[0], Late)
            assert self.state == before

    @precondition(lambda self: self.older)
    @rule(data=st.data())
    def report_late(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.older)))
        before, sequence = self.state, self.older[worker]
        actions = self._on(Reported(sequence=sequence, place="assigned"))
        if before.phase == "open" and before.sequence - sequence <= self.terms.strategy["max_staleness"]:  # type: ignore[index, call-overload]
            self.reports += 1
            self.last[worker] = before.sequence
            del self.older[worker]
            full = self.reports >= self.terms.strategy["goal"]  # type: ignore[index, call-overload]
            assert actions == ((Store(self.reports), Aggregate()) if full else (Store(self.reports),))
        else:
            assert isinstance(actions[0], Late)
            assert self.state == before

    @rule(seconds=st.sampled_from([0.5, 4.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        before = self.state
        actions = self._on(Tick())
        if before.phase == "open" and before.end is not None and self.now >= before.end:
            enough = self.reports >= max(1, self.terms.min_diffs or 0)
            assert actions == ((Aggregate(),) if enough else (Release(),))
        else:
            assert actions == ()
        self._gather()

    @precondition(lambda self: self.state.phase == "closing")
    @rule()
    def aggregate(self) -> None:
        (action,) = self._on(Aggregated())
        self.completed += 1
        self.over = bool(self.terms.num_cycles) and self.completed >= self.terms.num_cycles
        assert action == Begin(over=self.over)
        if not self.over:
            if self.terms.strategy is not None:
                sequence = self.state.sequence - 1
                self.older.update({one: sequence for one, place in self.places.items() if place == "assigned"})
            self.places, self.reports = {}, 0
            self.attempts.clear()
        self._gather()

    @precondition(lambda self: self.completed or self.reports > 2)
    @rule()
    def end(self) -> None:
        over = self.over
        actions = self._on(End())
        assert actions == (() if over else (Begin(over=True),))
        self.over = True
        self.places = {one: place for one, place in self.places.items() if place != "invited"}

    @invariant()
    def the_machine_and_the_model_agree(self) -> None:
        if not hasattr(self, "state"):
            return
        state, taken = self.state, list(self.places.values())
        assert (state.completed, state.reports) == (self.completed, self.reports)
        if self.terms.strategy is None:
            assert state.assigned == len([one for one in taken if one in ("assigned", "reported")])
        assert state.invited == taken.count("invited")
        assert (state.phase == "over") == self.over
        if self.terms.places is not None:
            assert state.assigned + state.invited <= max(self.terms.places, state.reports)
        if self.terms.max_diffs is not None:
            assert state.reports <= self.terms.max_diffs
        assert set(Terms.__struct_fields__) == {*KNOWN, "chosen"}


Cycles.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_order_of_events_keeps_the_rules = Cycles.TestCase
