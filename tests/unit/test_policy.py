"""The gates' decisions: everything that is not allowed is denied."""

from __future__ import annotations

import itertools

import pytest

from grid_jupyter.errors import GetNotPermittedError, NotAuthenticatedError
from grid_jupyter.node.policy import (
    GUEST,
    Rules,
    check_release,
    check_session,
    may_compute,
    may_read,
    may_read_all,
    readers,
)

OPEN = Rules(dataset=1, owner="Bob", allowed_users=("Ana", "Alice"), compute_users=None)
CLOSED = Rules(dataset=2, owner="Bill", allowed_users=("Ana",), compute_users=("Ana", "Zed"))
NOBODY = Rules(dataset=3, owner="Bob", allowed_users=(), compute_users=())
EVERYBODY = ("Bob", "Bill", "Ana", "Alice", "Zed", "A", "ana", "Ana ", "None", GUEST)


def test_a_guest_has_a_session_only_where_the_owner_lets_guests_in():
    check_session(GUEST, guests_allowed=True)
    check_session("Ana", guests_allowed=False)
    with pytest.raises(NotAuthenticatedError, match="log in"):
        check_session(GUEST, guests_allowed=False)


@pytest.mark.parametrize(("rules", "who"), [(OPEN, EVERYBODY), (CLOSED, ("Bill", "Ana", "Zed")), (NOBODY, ("Bob",))])
def test_those_compute_whom_the_owner_named_and_the_owner(rules: Rules, who: tuple[str, ...]):
    assert tuple(user for user in EVERYBODY if may_compute(user, rules)) == who


@pytest.mark.parametrize(
    ("rules", "who"), [(OPEN, ("Bob", "Ana", "Alice")), (CLOSED, ("Bill", "Ana")), (NOBODY, ("Bob",))]
)
def test_those_read_whom_the_owner_named_and_the_owner(rules: Rules, who: tuple[str, ...]):
    assert tuple(user for user in EVERYBODY if may_read(user, rules)) == who


@pytest.mark.parametrize("sources", [(), (OPEN,), (OPEN, CLOSED), (CLOSED, OPEN), (OPEN, CLOSED, NOBODY), (OPEN, OPEN)])
def test_a_value_leaves_exactly_if_all_of_its_sources_allow_the_reader(sources: tuple[Rules, ...]):
    for user in EVERYBODY:
        allowed = all(may_read(user, rules) for rules in sources)
        assert may_read_all(user, sources) == allowed
        if allowed:
            check_release(user, sources)
        else:
            with pytest.raises(GetNotPermittedError):
                check_release(user, sources)


def test_the_readers_of_a_value_are_those_to_whom_it_would_be_released():
    for sources in itertools.permutations((OPEN, CLOSED, Rules(4, "Ana", ("Bob", "Bill"), None)), 2):
        assert set(readers(sources)) == {user for user in EVERYBODY if may_read_all(user, sources)}
    assert readers(()) == ()


def test_a_guest_reads_nothing_even_if_a_list_names_the_empty_name():
    careless = Rules(dataset=5, owner="", allowed_users=("",), compute_users=("",))
    assert not may_read(GUEST, careless)
    assert not may_compute(GUEST, careless)


def test_a_refusal_names_data_sets_and_owners_and_what_to_do():
    with pytest.raises(GetNotPermittedError) as refused:
        check_release("Zed", (OPEN, CLOSED))
    text = str(refused.value)
    assert "1 of Bob" in text
    assert "2 of Bill" in text
    assert ".get(user=" in text
    assert "Alice" not in text, "who may read is not for others to know"


def test_a_refusal_names_a_few_of_many_sources():
    many = [Rules(number, "Bob", (), None) for number in range(1_000)]
    with pytest.raises(GetNotPermittedError) as refused:
        check_release(GUEST, many)
    assert len(str(refused.value)) < 600
