"""`grid.submit` over a Network of real Nodes: one job a Node, and none that hides the others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import World
from node_world import GridProcess, until
from torch import nn

from grid_jupyter import GridJobs, JobPolicy, PrivateGridNetwork, PublicGridNetwork, VirtualWorker
from grid_jupyter.client.grid_jobs import Submits
from grid_jupyter.client.submitting import Submitting
from grid_jupyter.errors import BadRequest, GridError, InvalidDataError, ObjectNotFoundError

NAMES = ("Alma", "Ben", "Cleo")
HOSTILE = "<script>alert(1)</script>\x1b[31m"
DATA = {"x": ("#moons", "#X"), "y": ("#moons", "#Y")}


def model(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(width, 2)


@pytest.fixture(scope="module")
def nodes(world: World, network: GridProcess) -> Iterator[dict[str, GridProcess]]:
    """Alma's and Ben's data have four columns, Cleo's has three; Alma lets Sam's jobs run, the others are asked."""
    started = {}
    for name in NAMES:
        invite = network.owner("POST", "/owner/invites", {"role": "Node", "expires_s": 600.0})["invite"]
        joined = ("--public-tags", "--network", network.address, "--invite", invite)
        node = started[name] = world.start("node", name, *joined)
        node.user(name, "Owner")
        node.user("Sam")
        policy = JobPolicy(automatic=("Sam",) if name == "Alma" else ())
        random = torch.Generator().manual_seed(len(name))
        rows = torch.randn(40, 3 if name == "Cleo" else 4, generator=random)
        with node.client(name) as owner:
            owner.publish(rows, tags=["#moons", "#X"], jobs=policy)
            owner.publish((rows[:, 0] > 0).long(), tags=["#moons", "#Y"], jobs=policy)
    yield started
    for node in started.values():
        if node.process is not None:
            node.stop()


@pytest.fixture
def grid(nodes: dict[str, GridProcess], network: GridProcess) -> Iterator[PublicGridNetwork]:
    made = PublicGridNetwork(network.address, user="Sam")
    until(lambda: set(made.search("#moons")) == set(NAMES))
    yield made
    made.close()


def submit(grid: Any, **options: Any) -> GridJobs:
    return grid.submit(model(), loss=nn.CrossEntropyLoss(), **{"data": DATA, "reason": "for a figure", **options})


def decide(node: GridProcess, owner: str, deny: str = "") -> None:
    with node.client(owner) as client:
        for request in client.requests():
            if deny:
                request.deny(deny)
            else:
                request.approve()


def test_each_node_that_has_the_data_gets_a_job_and_none_hides_the_others(grid, nodes):
    jobs = submit(grid, epochs=2)
    assert jobs.nodes == list(NAMES)
    assert [job.info.node for job in jobs] == ["Alma", "Ben"]
    assert jobs.state["Cleo"] == "no job"
    assert "['rows', 3]" in jobs.said["Cleo"]
    decide(nodes["Ben"], "Ben", deny=HOSTILE)
    found = jobs.results(60)
    assert jobs.state == {"Alma": "done", "Ben": "denied", "Cleo": "no job"}
    assert list(found) == ["Alma"]
    assert set(jobs.weights(60)["Alma"]) == {"weight", "bias"}
    assert jobs.progress == {"Alma": 1.0, "Ben": None}
    assert [len(jobs.history().loc["Alma"]), jobs.log()["Ben"][0][-9:]] == [2, "submitted"]
    assert HOSTILE[:20] in jobs.said["Ben"]
    assert "\x1b" not in repr(jobs)
    assert "<script>" not in jobs._repr_html_()
    assert "&lt;script&gt;" in jobs._repr_html_()
    with pytest.raises(ObjectNotFoundError, match="Cleo has no job of these: model and loss"):
        jobs["Cleo"]


def test_what_nobody_foresaw_at_one_node_loses_no_job_of_the_others(grid, monkeypatch):
    def submit_nothing(*arguments: Any, **options: Any) -> None:
        raise ValueError("not foreseen")

    monkeypatch.setattr(grid.search("#moons", "#X")["Ben"][0].location, "submit", submit_nothing)
    jobs = submit(grid)
    assert [job.info.node for job in jobs.wait(60)] == ["Alma"]
    assert jobs.said["Ben"] == "ValueError: not foreseen"


def test_what_searches_found_says_where_and_a_node_without_a_part_is_left_out(grid, nodes):
    rows, targets = grid.search("#moons", "#X"), grid.search("#moons", "#Y")
    targets.pop("Ben")
    for data in ({"x": rows, "y": targets}, {name: (rows[name][0], targets[name][0]) for name in ("Alma",)}):
        jobs = submit(grid, data=data)
        assert [job.info.node for job in jobs.wait(60)] == ["Alma"]
        assert jobs.state["Alma"] == "done"
    jobs = submit(grid, data={"x": rows, "y": targets})
    assert "nothing for y" in jobs.said["Ben"]
    jobs.cancel()


def test_a_node_that_is_away_is_told_and_its_job_goes_on_when_it_is_back(grid, nodes):
    jobs = submit(grid)
    nodes["Ben"].kill()
    assert jobs.wait(1.0).state["Ben"] == "lost"
    assert "goes on when its Node is back" in jobs.said["Ben"]
    assert "Ben: lost" in repr(jobs)
    assert list(jobs.results(5.0)) == ["Alma"]
    nodes["Ben"].start()
    assert jobs.state["Ben"] == "waiting"
    decide(nodes["Ben"], "Ben")
    assert list(jobs.results(60)) == ["Alma", "Ben"]


def test_all_of_them_are_cancelled_at_once(grid, nodes):
    jobs = submit(grid, epochs=100_000)
    jobs["Alma"].wait(60, until=frozenset({"running"}))
    assert list(jobs.cancel().state.values()) == ["cancelled", "cancelled", "no job"]
    with nodes["Ben"].client("Ben") as ben:
        assert not len(ben.requests())


def test_what_no_node_can_take_is_said_at_once(grid, nodes):
    with pytest.raises(InvalidDataError, match="nothing was found anywhere"):
        submit(grid, data={"x": "#nowhere", "y": "#nowhere"})
    with pytest.raises(InvalidDataError, match=r"no Node has all of the data x, y \(Alma: it has nothing for y"):
        submit(grid, data={"x": ("#moons", "#X"), "y": "#nowhere"})
    with pytest.raises(InvalidDataError, match="Alma has 2 data sets with these tags: add a tag"):
        submit(grid, data={"x": "#moons", "y": ("#moons", "#Y")})
    with pytest.raises(BadRequest, match="tags, what a search found"):
        submit(grid, data={"x": "#moons", "y": 3})
    with pytest.raises(BadRequest, match="submitted with its loss"):
        grid.submit(model(), data=DATA)
    with pytest.raises(InvalidDataError, match=r"no Node took the job. Alma: .*Ben: .*Cleo: "):
        grid.submit(model(width=9), loss=nn.CrossEntropyLoss(), data=DATA)
    here = PrivateGridNetwork(VirtualWorker(id="nobody's", auto_add=False))
    for tag in ("#X", "#Y"):
        here.load(here.workers["nobody's"], torch.ones(3, 4), "#moons", tag)
    with pytest.raises(InvalidDataError, match="jobs run on Nodes"):
        submit(here)


def test_it_takes_the_arguments_of_a_nodes_own_submit():
    assert list(inspect.signature(Submits.submit).parameters) == list(inspect.signature(Submitting.submit).parameters)


def test_a_device_that_no_node_has_is_refused_by_each_with_the_reason(grid):
    with pytest.raises(GridError, match=r"(?s)Alma.*cuda.*Ben.*cuda"):
        grid.submit(model(), data=DATA, loss=nn.CrossEntropyLoss(), device="cuda")
