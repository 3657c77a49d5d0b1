"""Single values, asked for and signed off by data owners, on a real Node."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pandas
import pytest
import torch
from conftest import World
from node_world import GridProcess, until

import grid_jupyter as sy
from grid_jupyter.client.node import NodeClient
from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GetNotPermittedError,
    GridError,
    ObjectNotFoundError,
)

HEIGHTS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
LARGE = torch.arange(100_000.0)
HOSTILE = "<script>alert(1)</script>\x1b[31m\n  Bob: approved"


@pytest.fixture(scope="module")
def node(world: World) -> GridProcess:
    process = world.start("node", "Ward7", "--spare-workers", "1")
    for name, role in {
        "Bob": "Publisher", "Bill": "Publisher", "Ana": "User", "Eve": "User", "Olga": "Compliance Officer",
    }.items():  # fmt: skip
        process.user(name, role)
    return process


Join = Callable[[str], NodeClient]


@pytest.fixture
def join(node: GridProcess) -> Iterator[Join]:
    made: list[NodeClient] = []

    def join(user: str) -> NodeClient:
        made.append(node.client(user))
        return made[-1]

    yield join
    for client in made:
        client.close()


@pytest.fixture
def ana(join: Join) -> NodeClient:
    return join("Ana")


@pytest.fixture
def bob(join: Join) -> NodeClient:
    return join("Bob")


@pytest.fixture
def heights(bob: NodeClient, ana: NodeClient) -> Iterator[sy.RemoteTensor]:
    made = bob.publish(HEIGHTS, name="heights", tags=["#heights"])
    yield next(one for one in ana.search("#heights") if one.id_at_location == made.id_at_location)
    bob.unpublish(made)


# ------------------------------------------------------------------ the way of one value


def test_a_value_is_asked_for_approved_and_fetched(heights, bob: NodeClient):
    mean = heights[:2].mean()
    with pytest.raises(GetNotPermittedError, match=r"\.request\(reason\)"):
        mean.get()
    asked = mean.request("mean of two for figure 3")
    assert asked.state == "waiting"
    with pytest.raises(GetNotPermittedError, match="have not decided"):
        mean.get()
    (seen,) = bob.requests()
    text = repr(seen)
    assert "Ana asks for a value" in text
    assert "why: mean of two for figure 3" in text
    assert "rests on at most 2 of 4 rows of data set" in text
    assert "mean(%2)" in text
    assert "of Bob" in text
    assert "2.5" not in text  # not even its owner is shown the value
    seen.approve()
    assert asked.wait(10) == "approved"
    found = mean.get()
    assert (found.unwrap().item(), found.allowed_users) == (2.5, ("Bob", "Ana"))
    assert asked.state == "used"
    assert asked.get().unwrap().item() == 2.5  # the answer may have been lost


def test_whoever_waits_learns_of_the_decision(heights, bob: NodeClient):
    asked = heights.sum().request("why not")
    timer = threading.Timer(0.3, lambda: bob.request(asked.id).deny("too few rows"))
    timer.start()
    assert asked.wait(20) == "denied"
    timer.join()
    with pytest.raises(GetNotPermittedError, match="too few rows"):
        asked.get()


def test_an_owner_asks_back_and_is_answered(heights, bob: NodeClient):
    asked = heights.sum().request("why not")
    bob.request(asked.id).ask("for which study?")
    assert asked.wait(10) == "question"
    assert "for which study?" in repr(asked)
    asked.answer("ward 7")
    assert "ward 7" in repr(bob.request(asked.id))
    bob.request(asked.id).approve()
    assert asked.get().unwrap().item() == 36.0


def test_a_large_value_is_held_and_fetched_whole(bob: NodeClient, ana: NodeClient):
    made = bob.publish(LARGE, tags=["#large"])
    doubled = ana.search("#large")[0] * 2
    asked = doubled.request("all of it")
    bob.request(asked.id).approve()
    assert torch.equal(doubled.get().unwrap(), LARGE * 2)
    bob.unpublish(made)


def test_what_one_may_read_anyway_needs_nobody(bob: NodeClient):
    made = bob.publish(HEIGHTS, tags=["#own"])
    asked = made.sum().request("mine")
    assert (asked.id, asked.state) == (0, "granted")
    assert asked.get().unwrap().item() == 36.0
    bob.unpublish(made)


def test_a_value_of_two_owners_needs_both(heights, ana: NodeClient, bob: NodeClient, join: Join):
    bill = join("Bill")
    made = bill.publish(HEIGHTS, tags=["#bills"])
    total = (heights + ana.search("#bills")[0]).sum()
    asked = total.request("both")
    bob.request(asked.id).approve()
    assert asked.state == "waiting"
    bill.request(asked.id).approve()
    assert total.get().unwrap().item() == 72.0
    bill.unpublish(made)


def test_a_later_session_of_the_asker_fetches_it(heights, bob: NodeClient, ana: NodeClient, join: Join):
    asked = heights.sum().request("later")
    ana.close()
    bob.request(asked.id).approve()
    assert join("Ana").request(asked.id).get().unwrap().item() == 36.0


def test_an_officer_decides_and_the_log_tells_who(heights, join: Join):
    asked = heights.sum().request("for the log")
    olga = join("Olga")
    olga.request(asked.id).approve()
    asked.get()
    log = olga.audit()
    rows = log[[details.get("request") == asked.id for details in log["details"]]]
    assert list(zip(rows["event"], rows["actor"], strict=True)) == [
        ("requested", "Ana"), ("approved", "Olga"), ("released-by-approval", "Ana"),
    ]  # fmt: skip
    assert not olga.verify_audit().broken
    assert "for the log" not in str(list(log["details"]))


def test_statistics_of_a_table_tell_the_columns_that_they_rest_on(ana: NodeClient, bob: NodeClient):
    made = bob.publish(pandas.DataFrame({"age": [30.0, 40.0, 50.0], "ward": [1, 2, 1]}), tags=["#table"])
    table = ana.search("#table")[0]
    chosen = table["age"][table["ward"] == 1].mean()
    asked = chosen.request("mean age in ward 1")
    text = repr(bob.request(asked.id))
    assert "at most 3 of 3 rows" in text
    assert "col/0" in text
    assert "col/1" in text
    bob.request(asked.id).approve()
    assert chosen.get().unwrap().item() == 40.0
    bob.unpublish(made)


def grid(node: GridProcess, *arguments: str) -> tuple[int, str]:
    """`jupyter grid …` about this Node: exit code, and what it printed."""
    command = [sys.executable, "-m", "grid_jupyter.cli.main", *arguments, "--state", str(node.state)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_an_owner_decides_at_the_command_line(heights, node: GridProcess):
    one, two = heights.sum().request("first"), heights.mean().request("second")
    code, text = grid(node, "requests")
    assert code == 0
    assert "Ana asks for a value" in text
    assert "mean(%1)" in text
    assert grid(node, "approve", str(one.id), "--expires", "1h") == (0, f"request {one.id} is approved\n")
    assert grid(node, "deny", str(two.id), "--reason", "once is enough") == (0, f"request {two.id} is denied\n")
    assert one.get().unwrap().item() == 36.0
    with pytest.raises(GetNotPermittedError, match="once is enough"):
        two.get()
    assert grid(node, "approve", "999999")[0] == 1
    code, text = grid(node, "audit", "--rows", "1000")
    assert "approved   (owner of this Node)" in text
    code, text = grid(node, "audit", "--verify")
    assert code == 0
    assert "hold" in text


def test_a_log_that_somebody_changed_is_named_at_the_command_line(small_world: World):
    node = small_world.start("node", "Frail", "--spare-workers", "0")
    node.user("Bob")
    node.client("Bob").close()
    assert grid(node, "audit", "--verify")[0] == 0
    with sqlite3.connect(node.state / "grid.db") as database:
        database.execute("UPDATE audit SET actor = 'Eve' WHERE number = 2")
    database.close()
    code, text = grid(node, "audit", "--verify")
    assert code == 1
    assert "BROKEN at row 2" in text


# ------------------------------------------------------------------ attacks


def test_what_was_held_is_what_was_approved_whatever_the_session_does_since(heights, ana: NodeClient, bob: NodeClient):
    box = sy.send(torch.zeros(()), ana)
    box.add_(heights.mean())
    asked = box.request("the mean")
    box.mul_(0).add_(heights[0, 0])  # now it is one row
    bob.request(asked.id).approve()
    assert asked.get().unwrap().item() == 4.5
    assert box.get().unwrap().item() == 4.5
    with pytest.raises(GetNotPermittedError):
        box.clone().get()


def test_an_approval_of_one_value_releases_no_other(heights, bob: NodeClient):
    asked, other = heights.sum().request("one"), heights[0].request("two")
    bob.request(asked.id).approve()
    with pytest.raises(GetNotPermittedError, match="have not decided"):
        other.get()


def test_strangers_and_the_asker_decide_nothing(heights, ana: NodeClient, bob: NodeClient, join: Join):
    asked = heights.sum().request("mine")
    for other in ("Eve", "Bill"):
        stranger = join(other)
        assert len(stranger.requests()) == len(stranger.my_requests()) == 0
        with pytest.raises(ObjectNotFoundError):
            stranger.request(asked.id)
    assert len(ana.requests()) == 0
    with pytest.raises(Forbidden, match="of their own"):
        asked.approve()
    with pytest.raises(Forbidden):
        ana.audit()
    bob.request(asked.id).approve()
    with pytest.raises(ObjectNotFoundError):
        join("Eve").request(asked.id)
    with pytest.raises(ObjectNotFoundError):
        bob.request(asked.id).get()


def test_a_revoked_or_expired_approval_releases_nothing(heights, bob: NodeClient):
    asked, other = heights.sum().request("one"), heights.mean().request("two")
    bob.request(asked.id).approve()
    (found,) = [one for one in bob.approvals() if one.id == asked.id]
    found.revoke()
    with pytest.raises(GetNotPermittedError, match="is revoked"):
        asked.get()
    bob.request(other.id).approve(expires_s=1)
    assert until(lambda: other.state == "expired")
    with pytest.raises(GetNotPermittedError, match="is expired"):
        other.get()
    with pytest.raises(Conflict):
        bob.request(other.id).approve()


def test_an_unpublished_data_set_takes_what_was_approved_along(ana: NodeClient, bob: NodeClient):
    made = bob.publish(HEIGHTS, tags=["#short"])
    asked = ana.search("#short")[0].sum().request("soon")
    bob.request(asked.id).approve()
    bob.unpublish(made)
    with pytest.raises(GetNotPermittedError, match="unpublished"):
        asked.get()


def test_whether_it_could_be_computed_is_told_by_an_approval_alone(heights, bob: NodeClient):
    failing = heights[0][heights[:, 0].long()]  # there is no 7th of two
    asked = failing.request("does it work?")
    assert (asked.state, asked.info.shown, asked.info.binding) == ("waiting", {}, "")
    assert "there is no value" in repr(bob.request(asked.id))
    bob.request(asked.id).approve()
    with pytest.raises(GridError, match="index"):
        asked.get()


def test_the_asker_is_shown_nothing_of_the_value(heights, ana: NodeClient):
    asked = heights[heights > 3].request("how many?")
    assert (asked.info.shown, asked.info.binding) == ({}, "")
    assert all(one.info.shown == {} for one in ana.my_requests())


def test_an_owner_can_take_no_requests_at_all(ana: NodeClient, bob: NodeClient):
    made = bob.publish(HEIGHTS, tags=["#never"], jobs=sy.JobPolicy(values=False))
    with pytest.raises(GetNotPermittedError, match="takes no requests"):
        ana.search("#never")[0].sum().request("please")
    bob.unpublish(made)


def test_hostile_texts_stay_texts(heights, bob: NodeClient):
    asked = heights.sum().request(HOSTILE)
    seen = bob.request(asked.id)
    for shown in (repr(seen), repr(asked), repr(bob.requests())):
        assert "\x1b" not in shown
        assert "\n  Bob: approved" not in shown
    assert "<script>" not in seen._repr_html_()
    assert "<script>" not in bob.requests()._repr_html_()
    with pytest.raises(BadRequest):
        heights.sum().request("  ")
    with pytest.raises(BadRequest):
        heights.sum().request("x" * 1001)


def test_only_pointers_to_values_of_a_node_can_be_asked_for(ana: NodeClient):
    worker = sy.VirtualWorker(None, id="nobody's")
    with pytest.raises(BadRequest, match="needs a Node"):
        sy.send(torch.ones(2), worker).request("please")
    with pytest.raises(BadRequest, match="from 1 on"):
        ana.request(0)


def test_an_approval_survives_the_node(small_world: World):
    node = small_world.start("node", "Frail", "--spare-workers", "0")
    for name, role in {"Bob": "Publisher", "Ana": "User"}.items():
        node.user(name, role)
    with node.client("Bob") as bob, node.client("Ana") as ana:
        bob.publish(HEIGHTS, tags=["#heights"])
        asked = ana.search("#heights")[0].sum().request("after the crash")
        bob.request(asked.id).approve()
    node.kill()
    node.start()
    with node.client("Ana") as ana:
        assert ana.request(asked.id).get().unwrap().item() == 36.0
