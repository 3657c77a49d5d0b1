"""Jobs: submitted, signed off, run in a Worker, watched, cancelled, released."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import World
from job_world import ROWS, model, pointers, rows, same, sgd, submit
from node_world import GridProcess, until
from torch import nn

from grid_jupyter.client.jobs import Job
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.requests import Request
from grid_jupyter.errors import (
    Conflict,
    GetNotPermittedError,
    GridError,
    InvalidMessageError,
    ObjectNotFoundError,
    RemoteOperationError,
)
from grid_jupyter.link.http import transfer
from grid_jupyter.plans.models import training_plan
from grid_jupyter.wire.messages import JobPolicy, Round


class Screen(io.StringIO):
    """A terminal, as far as a bar looks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def node(world: World, backend: tuple[str, ...]) -> Iterator[GridProcess]:
    """Bea's Node: her data, open to Ann's jobs; Cem's ask first."""
    made = world.start("node", "Bea", *backend)
    made.user("Bea", "Owner")
    made.user("Ann")
    made.user("Cem")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def data(node: GridProcess) -> dict[str, Any]:
    x, y = rows()
    with node.client("Bea") as bea:
        policy = JobPolicy(automatic=("Ann",))
        return {
            "x": bea.publish(x, tags=["#x"], jobs=policy)._ref.dataset.id,
            "y": bea.publish(y, tags=["#y"], jobs=policy)._ref.dataset.id,
        }


def plain_loop(epochs: int, batch: int, momentum: float = 0.0) -> nn.Module:
    made = model()
    x, y = rows()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=momentum)
    for _ in range(epochs):
        for begin in range(0, ROWS, batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(x[begin : begin + batch]), y[begin : begin + batch]).backward()
            optimizer.step()
    return made


def workers_of(node: GridProcess) -> int:
    """Jobs of the Node that have a Worker, as the owner sees it: none is left behind by one that is over."""
    with node.client("Bea") as bea:
        return sum(job.info.state == "running" for job in bea.jobs())


# ------------------------------------------------------------------ to the end


def test_a_job_trains_what_the_plain_loop_trains(node, data):
    with node.client("Ann") as ann:
        job = submit(ann, epochs=3, batch_size=64, shuffle=False, reason="to try it")
        assert job.wait(60).info.state == "done", job.log()
        assert same(job.result(), plain_loop(3, 64))
        history = job.history()
        assert list(history.columns) == ["loss", "accuracy"]
        assert len(history) == 3
        assert job.progress == 1.0
        assert job.log()[0].endswith("submitted")


def test_the_same_seed_trains_the_same_and_momentum_is_torchs(node, data):
    with node.client("Ann") as ann:
        one, other = (submit(ann, epochs=2, seed=7, optimizer=sgd(momentum=0.9)) for _ in range(2))
        plain = submit(ann, epochs=2, batch_size=64, shuffle=False, optimizer=sgd(momentum=0.9))
        assert same(one.result(60), other.result(60), 0.0)
        assert same(plain.result(60), plain_loop(2, 64, 0.9))


def test_a_job_of_many_rounds_trains_from_what_each_round_brings(node, data):
    with node.client("Ann") as ann:
        job = submit(ann, rounds=3, batch_size=ROWS, shuffle=False)
        job.wait(60, until=frozenset({"running"}))
        weights = dict(model().state_dict())
        for _ in range(3):
            weights, metrics, count, steps = job.round(weights)
            assert (count, steps) == (ROWS, 1)
            assert set(metrics) == {"loss", "accuracy"}
        trained = model()
        trained.load_state_dict(weights)
        assert same(trained, plain_loop(3, ROWS))
        assert job.state == "done"
        assert len(job.history()) == 3
        with pytest.raises(Conflict, match="done"):
            job.round(weights)


def test_rounds_whose_weights_are_too_many_for_a_frame_go_by_http_and_bring_and_take_what_they_should(node, data):
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(8, 60_000), nn.ReLU(), nn.Linear(60_000, 3))
    with node.client("Ann") as ann:
        job, other = (
            ann.submit(wide, loss=nn.CrossEntropyLoss(), data=pointers(ann), rounds=9, batch_size=ROWS)
            for _ in range(2)
        )
        job.wait(60, until=frozenset({"running"}))
        other.wait(60, until=frozenset({"running"}))
        weights = dict(wide.state_dict())
        trained = []
        for number in (1, 2, 1):  # the file of a round is that of the next one
            answer = job.round(weights, number=number).weights
            trained.append({name: one.clone() for name, one in answer.items()})
            weights = trained[-1] if number == 1 and len(trained) == 1 else dict(wide.state_dict())
        assert all(torch.equal(trained[0][name], trained[2][name]) for name in weights)
        again = other.round(trained[0], number=2).weights
        assert all(torch.equal(trained[1][name], again[name]) for name in weights)
        assert not torch.equal(trained[0]["0.weight"], trained[1]["0.weight"])
        job.begin_round(weights, number=3)
        link = job._link
        assert link is not None
        job.end_round()
        where, secret = f"/data-centric/jobs/rounds/4?job={other.id}", {"X-Grid-Session": link.welcome.session}
        sent = bytes(sum(one.numel() * 4 for one in weights.values()))
        transfer(ann.address, "PUT", where, sent, headers=secret)
        with pytest.raises(InvalidMessageError, match="these weights came for another job"):
            link.answer(link.ask_later(Round(job=job.id, number=4, bulk=True)))
        job.cancel()
        other.cancel()


def test_a_round_with_weights_that_are_no_numbers_fails_and_says_why(node, data):
    with node.client("Ann") as ann:
        job = submit(ann, rounds=3)
        job.wait(60, until=frozenset({"running"}))
        weights = {name: torch.full_like(value, float("nan")) for name, value in model().state_dict().items()}
        with pytest.raises(RemoteOperationError, match="not a number"):
            job.round(weights)
        job.round(dict(model().state_dict()))
        job.cancel()


# ------------------------------------------------------------------ who may


def test_a_job_whose_owner_was_not_asked_waits_and_nothing_of_it_is_shown(node, data):
    with node.client("Cem") as cem:
        job = submit(cem, reason="please")
        assert job.state == "waiting"
        assert "Bea" in job.said
        assert job.info.history is None
        assert job.info.progress is None
        with pytest.raises(GetNotPermittedError):
            job.history()
        with pytest.raises(GetNotPermittedError):
            cem_result(node, job)
        job.cancel()
        assert job.state == "cancelled"


def cem_result(node: GridProcess, job: Job) -> None:
    token = job.node.token_of(None)
    transfer(job.node.address, "GET", f"/data-centric/jobs/{job.id}/result", token=token)


def test_what_the_owner_approves_runs_and_is_released_and_what_she_denies_does_not(node, data):
    with node.client("Cem") as cem, node.client("Bea") as bea:
        job, other = submit(cem, reason="please"), submit(cem, reason="and this")
        asked = {one.info.shown["job"]: one for one in bea.requests()}
        assert "log_softmax" in asked[job.id].info.shown["plan"]
        assert ">log_softmax</text>" in asked[job.id].info.shown["graph"]
        assert "the graph of the plan" in asked[job.id]._repr_html_()
        assert "<svg" not in repr(asked[job.id]) + asked[job.id]._repr_html_()
        asked[job.id].approve()
        assert job.wait(60).info.state == "done", job.log()
        assert len(job.history()) == 1
        asked[other.id].deny("not this one")
        assert other.wait(10).info.state == "denied"
        assert other.said == "not this one"


def test_an_owner_waits_for_the_first_request_and_the_log_has_that_rounds_leave_by_her_word(node, data):
    with node.client("Cem") as cem, node.client("Bea") as bea, ThreadPoolExecutor(1) as thread:
        with pytest.raises(IndexError, match="0 requests to decide on"):
            bea.requests(wait_s=0.3)[0]
        waiting = thread.submit(bea.requests, wait_s=60)
        job = submit(cem, rounds=5, reason="for the log")
        [request] = waiting.result()
        request.approve()
        job.wait(60, until=frozenset({"running"}))
        weights = dict(model().state_dict())
        for _ in range(2):
            weights = job.round(weights).weights
        log = bea.audit()
        told = [event for event, more in zip(log["event"], log["details"], strict=True) if more.get("key") == job.id]
        assert told == ["requested", "releases-by-approval"]
        job.cancel()


def test_whoever_watches_sees_epochs_go_by_and_what_is_released_of_them(node, data, monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with node.client("Ann") as ann, node.client("Cem") as cem:
        assert submit(ann, epochs=3).watch(60).state == "done"
        assert "done: 100%" in screen.getvalue()
        assert "3/3" in screen.getvalue()
        assert "accuracy=" in screen.getvalue()
        screen.truncate(0)
        job = submit(cem)
        assert job.watch(0.5).state == "waiting"
        assert "waiting:   0%" in screen.getvalue()
        job.cancel()
        assert job.watch().state == "cancelled"


def test_an_owner_who_looks_first_sees_the_result_and_then_lets_it_go(node, data):
    with node.client("Cem") as cem, node.client("Bea") as bea:
        job = submit(cem)
        diverges = submit(cem, optimizer=sgd(lr=1e30), epochs=50)
        for request in bea.requests():
            request.approve(review=True)
        for one in (job, diverges):
            assert one.wait(60, until=frozenset({"held"})).info.state == "held", one.log()
            assert one.info.history is None
            with pytest.raises(GetNotPermittedError):
                cem_result(node, one)
        assert set(Job(bea, bea.job(job.id).info).weights()) == set(model().state_dict())  # who may read all of it
        for request in bea.requests():
            request.approve()
        assert job.wait(60).info.state == "done"
        assert job.result() is not None
        assert diverges.wait(60).info.state == "failed"  # told no sooner than a result would be


def test_a_whole_step_is_never_accepted_by_a_policy(node, data):
    x, y = rows()
    made = model()
    plan = training_plan(made, nn.CrossEntropyLoss(), torch.optim.SGD(made.parameters(), lr=0.1), inputs=(x[:5], y[:5]))
    with node.client("Ann") as ann:
        job = ann.submit(plan, made, data=pointers(ann))
        assert job.state == "waiting"
        job.cancel()
    with node.client("Bea") as bea:  # who may read all of it anyway
        job = bea.submit(plan, made, data=pointers(bea), batch_size=ROWS, shuffle=False)
        assert job.wait(60).info.state == "done", job.log()
        assert same(job.result(), plain_loop(1, ROWS))


def test_the_name_of_a_job_leads_nowhere_for_others_and_the_owner_sees_and_ends_all(node, data):
    with node.client("Ann") as ann, node.client("Cem") as cem, node.client("Bea") as bea:
        job = submit(ann, rounds=5)
        assert job.id not in [one.id for one in cem.jobs()]
        for ask in (cem.job, lambda name: Job(cem, job.info).cancel(), lambda name: Job(cem, job.info).plan()):
            with pytest.raises(ObjectNotFoundError):
                ask(job.id)
        with pytest.raises(ObjectNotFoundError):
            Job(cem, job.info).round(dict(model().state_dict()))
        [seen] = [one for one in bea.jobs() if one.id == job.id]
        assert "by Ann" in repr(seen)
        seen.cancel()
        assert job.wait(10).info.state == "cancelled"
        assert "Bea" in job.said


def test_a_reason_is_shown_as_text(node, data):
    with node.client("Ann") as ann:
        job = submit(ann, rounds=2, reason="<script>alert(1)</script>")
        assert "<script>" not in job._repr_html_()
        job.cancel()


def test_a_changed_argument_is_another_binding(node, data):
    with node.client("Cem") as cem:
        one, again, other = submit(cem, epochs=2), submit(cem, epochs=2), submit(cem, epochs=3)
        assert one.info.binding == again.info.binding != other.info.binding
        for job in (one, again, other):
            job.cancel()


def test_a_policy_that_changes_ends_what_it_let_run(node, data):
    with node.client("Ann") as ann, node.client("Bea") as bea:
        job = submit(ann, rounds=9)
        job.wait(60, until=frozenset({"running"}))
        job.round(dict(model().state_dict()))
        bea.edit(data["x"], jobs=JobPolicy(jobs=False))
        try:
            with pytest.raises(Conflict, match="takes no jobs"):
                job.round(dict(model().state_dict()))
            assert job.state == "denied"
        finally:
            bea.edit(data["x"], jobs=JobPolicy(automatic=("Ann",)))


def asked_for(owner: NodeClient, job: Job, state: str = "") -> Request:
    [found] = [one for one in owner.requests(state) if one.info.shown["job"] == job.id]
    return found


def test_an_owner_asks_back_about_a_job_and_is_answered(node, data):
    with node.client("Cem") as cem, node.client("Bea") as bea:
        job = submit(cem, reason="please")
        asked_for(bea, job).ask("for which study?")
        until(lambda: "an owner asks: for which study?" in job.refresh().said)
        [question] = [one for one in cem.my_requests() if one.state == "question"]
        question.answer("of the moon")
        asked = asked_for(bea, job)
        assert "Cem, answer: of the moon" in repr(asked)
        asked.approve()
        assert job.wait(60).info.state == "done"


def test_an_approval_that_is_taken_back_ends_a_job_that_runs_and_one_whose_result_is_held(node, data):
    with node.client("Cem") as cem, node.client("Bea") as bea:
        runs, held = submit(cem, rounds=9), submit(cem)
        approvals = asked_for(bea, runs), asked_for(bea, held)
        approvals[0].approve()
        approvals[1].approve(review=True)
        runs.wait(60, until=frozenset({"running"}))
        runs.round(dict(model().state_dict()))
        held.wait(60, until=frozenset({"held"}))
        for one in approvals:
            one.revoke()
        for job in (runs, held):
            assert job.wait(10).info.state == "denied"
            assert re.search("approval .*was taken back.*submit it again", job.said)
            with pytest.raises(RemoteOperationError, match="denied"):
                job.weights()
        with pytest.raises((Conflict, ObjectNotFoundError)):
            runs.round(dict(model().state_dict()))
        with pytest.raises(GetNotPermittedError):
            cem_result(node, held)
        until(lambda: not len(bea.requests()) and not len(bea.approvals()))


def test_an_approval_that_is_over_ends_the_job_that_ran_by_it(node, data):
    with node.client("Cem") as cem, node.client("Bea") as bea:
        job = submit(cem, rounds=9)
        asked_for(bea, job).approve(expires_s=1)
        job.wait(60, until=frozenset({"running", "expired"}))
        until(lambda: bea.requests() is not None and job.state == "expired")
        assert "ask Bea, then submit it again" in job.said


def test_metrics_of_each_epoch_are_seen_while_it_runs_where_every_owner_says_so_and_not_before(node, data):
    with node.client("Ann") as ann, node.client("Bea") as bea:
        job = submit(ann, epochs=100_000)
        job.wait(60, until=frozenset({"running"}))
        until(lambda: bea.job(job.id).progress)  # who may read all of it sees it
        assert job.progress is None
        with pytest.raises(GetNotPermittedError, match="not released: it is running"):
            job.history()
        job.cancel()
        for one in data.values():
            bea.edit(one, jobs=JobPolicy(automatic=("Ann",), epoch_metrics=True))
        try:
            job = submit(ann, epochs=100_000)
            until(lambda: (job.progress or 0.0) > 0.0)
            assert "loss" in job.history()
            job.cancel()
        finally:
            for one in data.values():
                bea.edit(one, jobs=JobPolicy(automatic=("Ann",)))


# ------------------------------------------------------------------ cancelled, killed, started again


def test_a_job_is_cancelled_within_a_second(node, data):
    with node.client("Ann") as ann:
        job = submit(ann, epochs=100_000)
        job.wait(60, until=frozenset({"running"}))
        before = time.monotonic()
        job.cancel()
        assert time.monotonic() - before < 1.0
        assert job.state == "cancelled"
        until(lambda: workers_of(node) == 0)


def test_a_job_goes_on_where_it_was_when_its_node_is_started_again(small_world: World, backend: tuple[str, ...]):
    node = small_world.start("node", "Dan", *backend)
    node.user("Dan", "Owner")
    x, y = rows()
    with node.client("Dan") as dan:
        dan.publish(x, tags=["#x"])
        dan.publish(y, tags=["#y"])
        job = submit(dan, epochs=800, batch_size=ROWS, optimizer=sgd(0.01, momentum=0.9), seed=3)
        until(lambda: (job.progress or 0.0) > 0.02)
        node.kill()
        node.start()
        assert job.wait(90).info.state == "done", job.log()
        assert any("started again" in line for line in job.log())
        straight = submit(dan, epochs=800, batch_size=ROWS, optimizer=sgd(0.01, momentum=0.9), seed=3)
        assert same(job.result(), straight.result(90), 0.0)


# ------------------------------------------------------------------ that come to nothing (test_jobs_refused has more)


def test_training_that_diverges_fails_and_says_what_to_do(node, data):
    with node.client("Ann") as ann:
        job = submit(ann, epochs=50, optimizer=sgd(lr=1e30))
        assert job.wait(60).info.state == "failed"
        assert "smaller learning rate" in job.said
        with pytest.raises(RemoteOperationError, match="learning rate"):
            job.result()


def test_a_job_that_takes_too_long_or_too_much_fails_and_leaves_nothing_running(
    small_world: World, backend: tuple[str, ...]
):
    node = small_world.start("node", "Eve", "--job-time", "2s", "--session-memory", "200M", *backend)
    node.user("Eve", "Owner")
    x, y = rows()
    with node.client("Eve") as eve:
        eve.publish(x, tags=["#x"])
        eve.publish(y, tags=["#y"])
        job = submit(eve, epochs=100_000)
        assert job.wait(60).info.state == "failed"
        assert "--job-time" in job.said
        wide = nn.Sequential(nn.Linear(8, 900_000), nn.ReLU(), nn.Linear(900_000, 3))
        with pytest.raises(GridError, match=r"memory|limit"):
            eve.submit(wide, loss=nn.CrossEntropyLoss(), data=pointers(eve)).result(60)
        until(lambda: all(one.info.state != "running" for one in eve.jobs()))


def test_data_that_goes_ends_the_jobs_that_it_is_for(node, data):
    with node.client("Bea") as bea, node.client("Cem") as cem:
        gone = bea.publish(rows()[0], tags=["#gone"])
        found = {"x": cem.search("#gone")[0], "y": cem.search("#y")[0]}
        job = cem.submit(model(), loss=nn.CrossEntropyLoss(), data=found)
        bea.unpublish(gone)
        assert job.wait(10).info.state == "failed"
        assert "unpublished" in job.said
