"""What is no job, jobs that come to nothing, Nodes that go away: each says why and what to do, and leaves nothing."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from conftest import World
from job_world import blobs, left_open, model, pointers, rows, submit
from node_world import GridProcess, until
from torch import nn

from grid_jupyter.client.node import NodeClient
from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    GridError,
    InvalidDataError,
    LimitExceededError,
    NodeUnavailableError,
    PlanInvalidError,
)
from grid_jupyter.plans.models import loss_plan
from grid_jupyter.plans.plan import Plan
from grid_jupyter.server.node_process import isolation_text
from grid_jupyter.wire.messages import JobPolicy


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[GridProcess]:
    """Fay's Node, which gives a job little: Gus's jobs run, Hal's ask first."""
    made = world.start(
        "node", "Fay", "--job-time", "10s", "--session-memory", "250M", "--max-jobs", "1", "--job-storage", "64M",
        "--spare-workers", "0",
    )  # fmt: skip
    for name, role in {"Fay": "Owner", "Gus": "User", "Hal": "User"}.items():
        made.user(name, role)
    with made.client("Fay") as fay:
        for part, tag in zip(rows(), ("#x", "#y"), strict=True):
            fay.publish(part, tags=[tag], jobs=JobPolicy(automatic=("Gus",)))
    yield made
    if made.process is not None:
        made.stop()


@pytest.fixture(autouse=True)
def nothing_left(node: GridProcess) -> Iterator[None]:
    """Whatever a test does here, no Worker, job, request or blob is left of it."""
    before = blobs(node)
    yield
    until(lambda: not left_open(node, "Fay"))
    until(lambda: blobs(node) == before)


@pytest.fixture
def fay(node: GridProcess) -> Iterator[NodeClient]:
    with node.client("Fay") as client:
        yield client


@pytest.fixture
def gus(node: GridProcess) -> Iterator[NodeClient]:
    with node.client("Gus") as client:
        yield client


@pytest.fixture
def hal(node: GridProcess) -> Iterator[NodeClient]:
    with node.client("Hal") as client:
        yield client


@pytest.fixture(scope="module")
def warm(node: GridProcess) -> None:
    """What a Node loads with its first job is loaded."""
    with node.client("Gus") as client:
        submit(client).wait(60).cancel()


# ------------------------------------------------------------------ plans that are none

Change = Callable[[dict[str, Any]], object]


def plan_of(made: nn.Module) -> Plan:
    x, y = rows()
    return loss_plan(made, nn.CrossEntropyLoss(), inputs=(x[:5], y[:5]))


def forged(change: Callable[[bytes], bytes]) -> Plan:
    """A plan whose bytes are others than those that this package writes."""
    made = plan_of(model())

    class Forged(Plan):
        def to_bytes(self) -> bytes:
            return change(made.to_bytes())

    plan = Forged.__new__(Forged)
    plan.__dict__.update(made.__dict__)
    return plan


def edited(change: Change) -> Callable[[bytes], bytes]:
    def apply(raw: bytes) -> bytes:
        tree = json.loads(raw)
        change(tree)
        return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()

    return apply


def first(tree: dict[str, Any]) -> int:
    """The number of the first node's result: those of the inputs come before."""
    return len(tree["inputs"])


def make_cycle(tree: dict[str, Any]) -> None:
    """The first node takes what the second one gives, which takes what the first one gives."""
    assert f"%{first(tree)}" in tree["nodes"][1][1]
    tree["nodes"][0][1][0] = f"%{first(tree) + 1}"


def make_own_source(tree: dict[str, Any]) -> None:
    """The first node takes what it gives."""
    tree["nodes"][0][1][0] = f"%{first(tree)}"


def add_constant(shape: list[int]) -> Change:
    constant = {"data": "", "dtype": "float32", "name": "huge", "role": "const", "shape": shape}
    return lambda tree: tree["inputs"].append(constant)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (edited(lambda tree: tree["nodes"][2].__setitem__(0, "exec_")), "operation that plans may not hold: exec_"),
        (edited(make_cycle), r"node 0 \(permute\).*before"),
        (edited(make_own_source), r"node 0 \(permute\).*before"),
        (edited(add_constant([10 * 2**30 // 4])), "constant"),
        (lambda raw: raw.replace(b'"nodes":[', b'"nodes":[' + b"[]," * 10_000_000), "over the limit"),
    ],
    ids=["unknown operation", "cycle", "own source", "constant of 10 GB", "10 million nodes"],
)
@pytest.mark.usefixtures("warm")
def test_a_plan_that_is_none_is_refused_at_once_and_costs_no_memory(node, gus, change, says):
    before = peak(node)
    with pytest.raises(PlanInvalidError, match=says):
        gus.submit(forged(change), model(), data=pointers(gus))
    assert peak(node) - before < 16 << 20


def peak(node: GridProcess) -> int:
    """The most that the Node's process ever had of memory, in bytes."""
    [line] = [one for one in Path(f"/proc/{node.pid}/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) << 10


# ------------------------------------------------------------------ data and models that do not fit


def test_data_that_does_not_fit_a_plan_is_refused_at_once(fay, gus):
    narrow = nn.Sequential(nn.Linear(4, 3))
    x, y = rows()
    plan = loss_plan(narrow, nn.CrossEntropyLoss(), inputs=(x[:5, :4], y[:5]))
    with pytest.raises(BadRequest, match="shape"):
        gus.submit(plan, narrow, data=pointers(gus))
    found = pointers(gus)
    with pytest.raises(BadRequest, match="takes the data"):
        gus.submit(plan_of(model()), model(), data={"x": found["x"]})
    with pytest.raises(BadRequest):
        gus.submit(plan_of(model()), model(), data={"x": found["y"], "y": found["x"]})
    with pytest.raises(InvalidDataError, match=r"model and loss do not take the data, which is .*'rows', 8"):
        gus.submit(narrow, loss=nn.CrossEntropyLoss(), data=found)


def test_empty_data_and_data_with_other_columns_are_refused_at_once(fay):
    x = fay.publish(torch.zeros(0, 8), tags=["#none"])
    y = fay.publish(torch.zeros(0, dtype=torch.int64), tags=["#none"])
    with pytest.raises(BadRequest, match="empty"):
        fay.submit(plan_of(model()), model(), data={"x": x, "y": y})
    frame = pandas.DataFrame({name: [0.5, 1.5, 2.5] for name in "abc"} | {"kind": [0, 1, 2]})
    table = fay.publish(frame, tags=["#table"])
    with pytest.raises(BadRequest, match=r"x with the shape \['rows', 8\], and the data has \['rows', 3\]"):
        fay.submit(plan_of(model()), model(), data={"x": (table, list("abc")), "y": table["kind"]})
    for one in (x, y, table):
        fay.unpublish(one)


def test_a_model_with_nan_is_refused_at_once(gus):
    made = model()
    with torch.no_grad():
        made[0].weight[0, 0] = float("nan")
    with pytest.raises(InvalidDataError, match=r"NaN.*train from others"):
        gus.submit(made, loss=nn.CrossEntropyLoss(), data=pointers(gus))


# ------------------------------------------------------------------ jobs that come to nothing


def test_a_job_that_takes_too_long_fails_and_both_sides_are_told(gus, fay):
    job = submit(gus, epochs=100_000)
    assert job.wait(60).info.state == "failed"
    assert "ask the Node's owner to raise --job-time" in job.said
    assert "--job-time" in fay.job(job.id).said


def test_a_job_that_takes_too_much_memory_fails_and_both_sides_are_told(gus, fay):
    wide = nn.Sequential(nn.Linear(8, 600_000), nn.ReLU(), nn.Linear(600_000, 3))
    job = gus.submit(
        wide, loss=nn.CrossEntropyLoss(), data=pointers(gus), optimizer=torch.optim.Adam(wide.parameters())
    )
    assert job.wait(60).info.state == "failed", job.log()
    assert "memory" in job.said
    assert "smaller" in job.said
    assert fay.job(job.id).said == job.said
    wider = nn.Sequential(nn.Linear(8, 2_000_000), nn.ReLU(), nn.Linear(2_000_000, 3))
    with pytest.raises(GridError, match=r"memory|limit"):
        gus.submit(wider, loss=nn.CrossEntropyLoss(), data=pointers(gus))


def test_data_that_goes_takes_jobs_and_their_requests_along(fay, hal):
    gone = fay.publish(rows()[0], tags=["#gone"])
    job = hal.submit(plan_of(model()), model(), data={"x": hal.search("#gone")[0], "y": hal.search("#y")[0]})
    [request] = fay.requests()
    fay.unpublish(gone)
    assert job.wait(10).info.state == "failed"
    assert "unpublished" in job.said
    assert fay.request(request.id).state in ("withdrawn", "revoked")


def test_a_job_that_is_cancelled_while_it_waits_takes_its_request_along(fay, hal):
    job = submit(hal, reason="on second thoughts")
    [request] = fay.requests()
    job.cancel()
    assert len(fay.requests()) == 0
    assert fay.request(request.id).state == "withdrawn"
    assert "the job is cancelled: cancelled by Hal" in repr(fay.request(request.id))
    log = fay.audit()
    [row] = [one for one in log.itertuples() if one.details.get("request") == request.id and one.event == "withdrawn"]
    assert row.actor == "Hal"


# ------------------------------------------------------------------ owners who never answer, Nodes that go away


def test_a_job_whose_owner_never_answers_expires_on_both_sides(node, fay, hal):
    job = submit(hal, reason="anybody there?")
    [request] = fay.requests()
    node.stop()
    with sqlite3.connect(node.state / "grid.db") as database:  # two weeks go by
        (text,) = database.execute("SELECT machine FROM job WHERE id = ?", (job.id,)).fetchone()
        database.execute(
            "UPDATE job SET machine = ? WHERE id = ?", (json.dumps({**json.loads(text), "expires": 1.0}), job.id)
        )
    database.close()
    node.start()
    assert job.wait(30).info.state == "expired"
    assert "ask the owners of its data, then submit it again" in job.said
    until(lambda: fay.request(request.id).state == "expired")
    assert "nobody decided about it in time" in repr(fay.request(request.id))
    assert "expired" in set(fay.audit()["event"])


def test_an_approved_job_goes_on_after_its_node_was_killed_before_it_ran(node, fay, gus, hal):
    before = submit(gus, epochs=100_000)  # takes the only place
    before.wait(60, until=frozenset({"running"}))
    job = submit(hal, reason="after that one")
    fay.requests()[0].approve()
    assert job.wait(10, until=frozenset({"queued"})).info.state == "queued"
    node.kill()
    with pytest.raises(
        NodeUnavailableError, match=r"does not answer.*goes on when its Node is back.*gone for good, submit"
    ):
        job.wait(10)
    node.start()
    assert before.cancel().state == "cancelled"
    assert job.wait(60).info.state == "done", job.log()
    assert job.result() is not None
    assert fay.request(fay.requests(state="used")[0].id).state == "used"
    job.cancel()


# ------------------------------------------------------------------ too much of it all


def test_who_floods_a_node_with_requests_is_told_what_to_do_and_nobody_else_is(node, fay, gus, hal):
    plan, found = plan_of(model()), pointers(hal)
    jobs = [hal.submit(plan, model(), data=found) for _ in range(100)]
    with pytest.raises(Conflict, match="100 jobs here that have not ended; cancel one"):
        hal.submit(plan, model(), data=found)
    with pytest.raises(LimitExceededError, match=r"100 requests of yours wait already; withdraw some"):
        found["x"].sum().request("and this")
    assert submit(gus).wait(60).cancel() is not None  # others go on
    hal.my_requests()[0].withdraw()
    assert jobs[-1].wait(10).info.state == "denied"
    assert "its request was withdrawn" in jobs[-1].said
    asked = found["x"].sum().request("now there is room")
    assert asked.state == "waiting"
    asked.withdraw()
    for job in jobs[:-1]:
        job.cancel()


def test_who_fills_the_disk_with_jobs_is_told_what_to_do_and_others_submit_on(gus, hal):
    large = nn.Linear(8, 1_000_000)  # 36 MB
    loss = nn.CrossEntropyLoss()
    job = hal.submit(large, loss=loss, data=pointers(hal), batch_size=1)
    with pytest.raises(LimitExceededError, match=r"your jobs here keep .* bytes.*job.cancel\(\).*--job-storage"):
        hal.submit(large, loss=loss, data=pointers(hal), batch_size=1)
    assert submit(gus).wait(60).cancel() is not None
    job.cancel()
    hal.submit(large, loss=loss, data=pointers(hal), batch_size=1).cancel()  # there is room again


def test_a_node_that_requires_a_sandbox_and_has_none_says_so_in_its_status_and_to_jobs(small_world: World):
    node = small_world.start("node", "Bare", "--require-isolation", wrapper=("env", "PATH=/nowhere"))
    told = node.status()
    assert told["isolation_required"] is True
    assert re.search("^reduced: .*; required, so nothing is computed here: install bubblewrap", told["isolation"])
    node.user("Fay", "Owner")
    with node.client("Fay") as fay:
        for part, tag in zip(rows(), ("#x", "#y"), strict=True):
            fay.publish(part, tags=[tag])
        job = submit(fay).wait(60)
        assert job.info.state == "failed"
        assert "nothing is computed here" in job.said
        assert "install bubblewrap" in job.said


def test_status_says_whether_isolation_is_required_and_what_happens_otherwise(node: GridProcess):
    assert node.status()["isolation_required"] is False
    assert "; not required" in node.status()["isolation"]
    for found in ("reduced: no sandbox", "sandboxed: no network"):
        assert "nothing is computed" in isolation_text(found, required=True)
        assert "Workers run all the same" in isolation_text(found, required=False)
