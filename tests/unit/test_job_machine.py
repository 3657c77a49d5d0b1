"""The life of a job: no order of events leads anywhere but where it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid_jupyter.node.job_machine import (
    ENDS,
    MAX_TRIES,
    PAUSES_S,
    TERMS,
    Asked,
    AskRelease,
    Begun,
    Broke,
    Cancelled,
    Checkpointed,
    CloseRequest,
    Denied,
    DropResult,
    DropWork,
    EndRun,
    Enough,
    Event,
    Finished,
    Granted,
    Job,
    Lapsed,
    Refused,
    Released,
    Rest,
    Restarted,
    RoundDone,
    Stopped,
    Tick,
    on,
)
from grid_jupyter.node.job_queue import Waiting, next_job

JOB = Job(id="1", by="Ann")
EVENTS = st.one_of(
    st.builds(Granted, look=st.booleans()),
    st.builds(Asked, text=st.just("wait")),
    st.builds(Denied, text=st.just("no")),
    st.builds(Lapsed, text=st.just("over")),
    st.just(Begun()),
    st.builds(Checkpointed, epoch=st.integers(1, 9)),
    st.just(RoundDone()),
    st.just(Finished()),
    st.builds(Broke, text=st.just("the loss is not a number")),
    st.builds(Stopped, text=st.just("killed")),
    st.builds(Refused, text=st.just("gone")),
    st.just(Released()),
    st.builds(Cancelled, who=st.just("Ann")),
    st.just(Enough()),
    st.just(Restarted()),
    st.just(Tick()),
)


def after(job: Job, *events: Event, now: float = 0.0) -> Job:
    for event in events:
        job, _ = on(job, event, now)
    return job


def test_a_job_that_is_granted_runs_and_is_released():
    job = after(JOB, Granted(), Begun())
    assert job.state == "running"
    job, actions = on(job, Finished(), 5.0)
    assert job.state == "held"
    assert actions == (EndRun(), AskRelease())
    job, actions = on(job, Released(), 6.0)
    assert job.state == "done"
    assert actions == (DropWork(), CloseRequest("used"))
    assert job.expires is not None


def test_a_failure_is_held_as_a_result_is_and_told_when_it_is_released():
    held = after(JOB, Granted(look=True), Begun(), Broke("the loss is not a number"))
    other = after(JOB, Granted(look=True), Begun(), Finished())
    assert replace(held, outcome="") == other
    assert after(held, Released()).said == "the loss is not a number"
    refused = after(held, Denied("no"))
    assert (refused.state, refused.said, refused.outcome) == ("denied", "no", "")


def test_an_owner_who_never_answers_ends_it_and_the_text_says_what_to_do():
    job = after(JOB, Asked("it waits for Bob"))
    assert after(job, Tick(), now=10.0) == job
    late = after(job, Tick(), now=15 * 86_400.0)
    assert late.state == "expired"
    assert "submit it again" in late.said


def test_a_restart_of_the_node_gives_an_owner_no_further_time_and_another_question_does():
    job = after(JOB, Asked("it waits for Bob"))
    again = after(job, Restarted(), Asked("it waits for Bob"), now=9 * 86_400.0)
    assert again.expires == job.expires
    assert after(again, Asked("an owner asks: why?"), now=9 * 86_400.0).expires == 23 * 86_400.0


def test_a_restart_keeps_what_is_queued_and_puts_what_ran_back_at_its_checkpoint():
    queued = after(JOB, Granted())
    assert after(queued, Restarted()) == queued
    running = after(replace(JOB, epochs=5), Granted(), Begun(), Checkpointed(3))
    again = after(running, Restarted())
    assert (again.state, again.epoch) == ("queued", 3)


def test_a_worker_that_keeps_ending_fails_the_job_and_one_that_gets_further_does_not():
    job = after(replace(JOB, epochs=99), Granted())
    for _ in range(MAX_TRIES):
        assert job.state == "queued"
        job = after(job, Begun(), Stopped("killed"))
    assert job.state == "held"
    job = after(replace(JOB, epochs=99), Granted())
    for epoch in range(1, 20):
        job = after(job, Begun(), Checkpointed(epoch), Stopped("killed"))
    assert job.state == "queued"


def test_a_job_rests_longer_each_time_its_worker_ends_and_as_at_first_when_it_got_further():
    job, rests = after(replace(JOB, epochs=99), Granted()), []
    for event in (Stopped("killed"), Stopped("killed"), Checkpointed(1), Stopped("killed")):
        job = after(job, Begun()) if job.state == "queued" else job
        job, actions = on(job, event, 0.0)
        rests += [action.seconds for action in actions if isinstance(action, Rest)]
    assert rests == [PAUSES_S[0], PAUSES_S[1], PAUSES_S[0]]
    assert tuple(sorted(PAUSES_S)) == PAUSES_S
    assert len(PAUSES_S) == MAX_TRIES - 1


def test_a_job_of_rounds_is_done_with_the_last_one_and_expires_between_two():
    job = after(replace(JOB, rounds=2), Granted(), Begun(), RoundDone())
    assert job.state == "running"
    assert after(job, Tick(), now=10 * 86_400.0).state == "expired"
    assert after(job, RoundDone()).state == "done"


def test_a_result_expires_and_its_bytes_go():
    done = after(JOB, Granted(), Begun(), Finished(), Released())
    gone, actions = on(done, Tick(), 15 * 86_400.0)
    assert gone.state == "expired"
    assert DropResult() in actions


@given(st.lists(EVENTS, max_size=30), st.integers(1, 3))
def test_whatever_happens_ends_are_ends_nothing_runs_behind_them_and_nothing_leaves_unreleased(events, rounds):
    job, granted, running = replace(JOB, rounds=rounds), False, False
    for now, event in enumerate(events):
        before = job
        job, actions = on(job, event, float(now))
        granted = granted or isinstance(event, Granted)
        running = (running or (job.state == "running" and before.state != "running")) and EndRun() not in actions
        if isinstance(event, Restarted):
            running = False
        if before.state in ENDS and before.state != "done":
            assert job == before
            assert actions == ()
        if job.state in ENDS:
            assert not running
            assert job.state != "expired" or job.said
            assert job.state == "done" or job.said
        if job.state in ("running", "held", "done"):
            assert granted
        if job.state == "done" and before.state != "done":
            assert isinstance(event, Released) or rounds > 1
        if job.state == "failed" and before.state == "held":
            assert isinstance(event, Released)
        if job.state in ENDS and before.state not in ENDS:
            assert DropWork() in actions
            assert DropResult() in actions or job.state == "done"
        assert job.epoch >= before.epoch
        assert job.rounds_done >= before.rounds_done


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), min_size=1, max_size=30),
    st.integers(1, 3),
)
def test_every_queued_job_gets_its_turn_and_no_user_waits_for_all_jobs_of_another(asked, most):
    queued = [Waiting(str(number), by, float(created)) for number, (by, created) in enumerate(asked)]
    served: dict[str, int] = {}
    order = []
    while queued:
        turn = next_job(queued, [], served, most)
        job = next(one for one in queued if one.id == turn)
        queued.remove(job)
        order.append(job.by)
        served[job.by] = len(order)
    users = set(order)
    assert set(order[: len(users)]) == users


def test_a_user_who_runs_as_many_as_allowed_waits_while_others_do_not():
    queued = [Waiting("1", "Ann", 0.0), Waiting("2", "Bob", 9.0)]
    assert next_job(queued, ["Ann"], {}, 1) == "2"
    assert next_job(queued[:1], ["Ann"], {}, 1) is None


@pytest.mark.parametrize(
    ("events", "state", "closed"),
    [
        ([Cancelled("Ann")], "cancelled", ("withdrawn", "Ann")),
        ([Asked("Bea"), Cancelled("Bea")], "cancelled", ("withdrawn", "Bea")),
        ([Granted(), Begun(), Cancelled("Ann")], "cancelled", ("withdrawn", "Ann")),
        ([Granted(), Refused("gone")], "failed", ("withdrawn", "")),
        ([Lapsed("nobody said a word")], "expired", ("expired", "")),
        ([Granted(), Begun(), Lapsed("the approval is over")], "expired", ("expired", "")),
        ([Granted(look=True), Begun(), Finished(), Lapsed("nobody looked")], "expired", ("expired", "")),
        ([Granted(look=True), Begun(), Broke("no number"), Released()], "failed", ("used", "")),
        ([Granted(), Begun(), Enough()], "cancelled", ("withdrawn", "Ann")),
    ],
)
def test_what_ends_a_job_ends_what_was_asked_of_its_owners(events: list[Event], state: str, closed: tuple[str, str]):
    job, actions = on(after(JOB, *events[:-1]), events[-1], 1.0)
    assert job.state == state
    assert [(one.state, one.by) for one in actions if isinstance(one, CloseRequest)] == [closed]


@pytest.mark.parametrize("then", [(), (Stopped("killed"),), (Restarted(),)])
def test_a_job_of_which_no_more_rounds_are_needed_is_done_and_stays_so(then: tuple[Event, ...]):
    job, actions = on(after(replace(JOB, rounds=9), Granted(), Begun(), RoundDone(), RoundDone(), *then), Enough(), 1.0)
    assert (job.state, job.said, job.settled) == ("done", "finished after 2 rounds", False)
    assert CloseRequest("used") in actions
    assert after(job, Cancelled("Bea"), Tick()) == job
    later = after(job, Tick(), now=TERMS.result_s + 2.0)
    assert (later.state, later.said, later.settled) == ("done", "finished after 2 rounds", True)


def test_rounds_that_are_not_needed_say_nothing_of_one_without_an_owners_word():
    asked = after(replace(JOB, rounds=9), Granted(), Begun(), RoundDone(), Asked("it waits for Bob"), Enough())
    assert (asked.state, asked.said) == ("cancelled", "cancelled by Ann")


def test_a_request_that_nobody_answers_expires_with_its_job():
    job = after(JOB, Asked("it waits for the word of Bea"))
    job, actions = on(job, Tick(), TERMS.undecided_s + 1.0)
    assert (job.state, job.said.partition(";")[0]) == ("expired", "nobody decided about it in time")
    assert CloseRequest("expired", why=f"the job is expired: {job.said}") in actions
