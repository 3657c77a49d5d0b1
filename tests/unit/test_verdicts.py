"""What the policies of data sets say to a job or a value that rests on them."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from grid_jupyter.node import verdicts
from grid_jupyter.node.policy import Rules
from grid_jupyter.node.verdicts import APPROVED, DENIED, JOB, QUESTION, VALUE, WAITING, Asked, binding_of, demand
from grid_jupyter.wire.messages import JobPolicy


def rules(dataset: int, owner: str, readers: tuple[str, ...] = (), **said: Any) -> Rules:
    return Rules(dataset, owner, readers, None, jobs=JobPolicy(**said))


ASKS = rules(1, "Bob")
AUTOMATIC = rules(2, "Bill", automatic=("Ana",), min_rows=100, min_steps=10)
DENIES = rules(3, "Zed", jobs=False, values=False)
READ_BY_ANA = rules(4, "Bob", ("Ana",))


def asked(*sources: Rules, **changes: Any) -> Asked:
    job = Asked(kind=JOB, key="job", asker="Ana", binding="0" * 64, sources=sources, rows=100, steps=10)
    return dataclasses.replace(job, **changes)


def test_every_job_asks_unless_the_owner_says_otherwise():
    assert demand(asked(ASKS)).owners == ("Bob",)


def test_a_named_user_s_job_is_automatic():
    assert demand(asked(AUTOMATIC)) == verdicts.Demand()


@pytest.mark.parametrize("less", [{"rows": 99}, {"steps": 9}, {"whole_step": True}, {"asker": "Eve"}, {"kind": VALUE}])
def test_what_is_not_automatic_asks(less: dict[str, Any]):
    assert demand(asked(AUTOMATIC, **less)).owners == ("Bill",)


def test_the_strictest_of_all_owners_counts_in_any_order():
    for sources in itertools.permutations((ASKS, AUTOMATIC, READ_BY_ANA)):
        assert demand(asked(*sources)).owners == ("Bob",)
    for sources in itertools.permutations((ASKS, AUTOMATIC, DENIES)):
        assert "data set 3 of Zed takes no jobs" in demand(asked(*sources)).denied


def test_two_owners_who_are_asked_are_both_asked():
    assert set(demand(asked(ASKS, AUTOMATIC, rows=1)).owners) == {"Bob", "Bill"}


def test_nobody_is_asked_about_data_that_the_asker_may_read():
    assert demand(asked(READ_BY_ANA)) == verdicts.Demand()
    assert demand(asked(DENIES, asker="Zed")) == verdicts.Demand()


def test_a_reader_s_job_is_denied_where_jobs_are():
    assert demand(asked(rules(5, "Zed", ("Ana",), jobs=False))).denied


def test_a_value_is_denied_where_values_are_and_not_where_jobs_are():
    assert "single values" in demand(asked(DENIES, kind=VALUE)).denied
    assert demand(asked(rules(6, "Zed", jobs=False), kind=VALUE)).owners == ("Zed",)


def test_an_owner_can_refuse_jobs_under_reduced_isolation():
    said = rules(7, "Bob", ("Ana",), automatic=("Ana",), full_isolation=True)
    assert not demand(asked(said)).denied
    assert "isolation" in demand(asked(said, reduced_isolation=True)).denied
    assert not demand(asked(said, reduced_isolation=True, asker="Bob")).denied


def test_guests_and_what_came_from_another_node_are_denied():
    assert "log in" in demand(asked(AUTOMATIC, asker="")).denied
    foreign = Rules(0, "", ("Ana",), (), origin="Lyon")
    assert "Lyon" in demand(asked(foreign)).denied


def test_nobody_who_is_called_like_no_one_is_automatic():
    assert demand(asked(rules(8, "", ("",), automatic=("",)), asker="")).denied


def test_epochs_are_shown_only_if_every_owner_says_so():
    shows, hides = rules(1, "Bob", epoch_metrics=True), rules(2, "Bill")
    assert verdicts.shows_epochs(asked(shows))
    assert not verdicts.shows_epochs(asked(shows, hides))
    assert verdicts.shows_epochs(asked(shows, rules(3, "Bill", ("Ana",))))


def test_a_request_is_approved_only_if_all_its_owners_approved():
    both = ("Bob", "Bill")
    assert verdicts.overall(both, {"Bob": APPROVED}) == WAITING
    assert verdicts.overall(both, {"Bob": APPROVED, "Bill": APPROVED}) == APPROVED
    assert verdicts.overall(both, {"Bob": APPROVED, "Bill": QUESTION}) == QUESTION
    assert verdicts.overall(both, {"Bob": QUESTION, "Bill": DENIED}) == DENIED
    assert verdicts.overall((), {}) == WAITING


def test_a_binding_is_of_content_and_one_changed_byte_is_another():
    document = {"plan": "ab" * 32, "data": [{"dataset": 1, "version": 2}], "epochs": 3}
    assert binding_of(document) == binding_of(dict(reversed(document.items())))
    for change in (
        {"epochs": 4},
        {"epochs": 3.0},
        {"plan": "ac" + "ab" * 31},
        {"data": [{"dataset": 1, "version": 3}]},
    ):
        assert binding_of({**document, **change}) != binding_of(document)
    with pytest.raises(ValueError, match="JSON"):
        binding_of({"rate": float("nan")})
