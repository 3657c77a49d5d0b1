"""The lock-out of those who guess: the rule, and its memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from grid_jupyter.identity.lockout import MAX_WAIT_S, Failures, Lockouts, fail, place, remaining_s, wait_s


@pytest.mark.parametrize(
    ("count", "seconds"), [(0, 0), (4, 0), (5, 1), (6, 2), (7, 4), (14, 512), (15, 900), (16, 900), (10**9, 900)]
)
def test_the_wait_doubles_from_one_second_to_fifteen_minutes(count: int, seconds: float) -> None:
    assert wait_s(count) == seconds


def test_five_failures_are_free_and_the_fifth_begins_the_first_wait() -> None:
    failures = Failures()
    for _ in range(5):
        assert remaining_s(failures, now=100.0) == 0.0
        failures = fail(failures, now=100.0)
    assert remaining_s(failures, now=100.0) == 1.0
    assert remaining_s(failures, now=100.75) == 0.25
    assert remaining_s(failures, now=101.0) == 0.0


def test_an_attempt_during_a_wait_neither_counts_nor_prolongs_it() -> None:
    waiting = Failures(count=7, last=100.0, until=104.0)
    assert fail(waiting, now=103.9) == waiting
    assert fail(waiting, now=104.0) == Failures(count=8, last=104.0, until=112.0)


def test_a_clock_that_is_set_back_ends_a_wait_rather_than_stretching_it() -> None:
    assert remaining_s(Failures(count=20, last=1e9, until=1e9 + 900), now=1000.0) == 0.0


@given(st.lists(st.integers(min_value=0, max_value=2000), max_size=40))
def test_no_pace_of_failures_brings_more_attempts_than_the_rule_allows(pauses: list[int]) -> None:
    failures, now, admitted = Failures(), 0.0, 0
    for pause in pauses:
        now += pause
        if remaining_s(failures, now) == 0.0:
            admitted += 1
        failures = fail(failures, now)
        assert failures.count == admitted
        assert 0.0 <= remaining_s(failures, now) <= MAX_WAIT_S
    assert sum(wait_s(n) for n in range(admitted)) <= now


class LockoutMachine(RuleBasedStateMachine):
    """Lockouts over few keys against the rule followed by hand for each key."""

    def __init__(self) -> None:
        super().__init__()
        self.lockouts = Lockouts()
        self.counts: dict[str, int] = {}
        self.until: dict[str, float] = {}
        self.now = 0.0

    keys = st.sets(st.sampled_from(["ann", "bob", "10.0.0.1"]), min_size=1).map(lambda keys: tuple(sorted(keys)))

    @rule(seconds=st.integers(min_value=0, max_value=1000))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(keys=keys)
    def a_failure(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            if self.now >= self.until.get(key, 0.0):
                self.counts[key] = self.counts.get(key, 0) + 1
                self.until[key] = self.now + wait_s(self.counts[key])
        self.lockouts.fail(keys, self.now)

    @rule(keys=keys)
    def a_success(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            self.counts.pop(key, None)
            self.until.pop(key, None)
        self.lockouts.succeed(keys)

    @invariant()
    def each_key_waits_as_the_rule_says(self) -> None:
        waits = {key: max(0.0, self.until.get(key, 0.0) - self.now) for key in ("ann", "bob", "10.0.0.1")}
        for key, wait in waits.items():
            assert self.lockouts.remaining_s((key,), self.now) == wait
        assert self.lockouts.remaining_s(tuple(waits), self.now) == max(waits.values())
        assert len(self.lockouts) == len(self.counts)


TestLockoutMachine = LockoutMachine.TestCase


def test_a_flood_of_names_neither_fills_the_memory_nor_frees_who_is_locked_out() -> None:
    lockouts = Lockouts(max_keys=100)
    for _ in range(6):
        lockouts.fail(("10.0.0.1", "ann"), now=0.0)
    before = lockouts.remaining_s(("ann",), now=0.0)
    for n in range(5000):
        lockouts.fail((n,), now=0.0)
        assert len(lockouts) <= 100
    assert lockouts.remaining_s(("ann",), now=0.0) == before > 0
    assert lockouts.remaining_s(("10.0.0.1",), now=0.0) == before


@pytest.mark.parametrize(
    ("origin", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("x" * 1000, "x" * 128),
    ],
)
def test_a_host_with_many_addresses_is_one_place(origin: str, counted: str) -> None:
    assert place(origin) == counted
