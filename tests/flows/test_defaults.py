"""What a Node and a Network do that were told nothing: the table of defaults in docs/security.md, line by line."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import World
from node_world import GridProcess, until

from grid_jupyter import send
from grid_jupyter.errors import GetNotPermittedError, GridError


@pytest.fixture(scope="module")
def plain(world: World) -> Iterator[GridProcess]:
    """A Node without an option of its own, and three users whom its owner let in."""
    node = world.start("node", "plain")
    for name, role in (("Bob", "Owner"), ("Ana", "User"), ("Zed", "User")):
        node.user(name, role)
    yield node
    node.stop()


def connections(node: GridProcess) -> list[Any]:
    """The TCP and UDP sockets of all its processes."""
    found = []
    for process in node.processes():
        try:
            found += process.net_connections(kind="inet")
        except psutil.Error:  # it ended just now
            continue
    return found


def is_here(address: Any) -> bool:
    return address.ip in ("127.0.0.1", "::1")


def test_node_and_network_listen_on_this_machine_alone(plain: GridProcess, small_world: World):
    for one in (plain, small_world.start("network", "plain")):
        listening = [found for found in connections(one) if found.status == psutil.CONN_LISTEN]
        assert len(listening) == 1
        assert is_here(listening[0].laddr)


def test_nothing_is_sent_to_anybody_who_did_not_ask(plain: GridProcess):
    with plain.client("Bob") as bob, plain.client("Ana") as ana:
        data = bob.publish(torch.arange(4.0), tags=["#told-nobody"])
        assert until(lambda: ana.search("#told-nobody"))[0].sum() is not None
        for found in connections(plain):
            assert not found.raddr or is_here(found.raddr), found
        bob.unpublish(data)


def test_nothing_is_there_before_it_is_published_and_then_its_publisher_alone_reads_it(plain: GridProcess):
    assert plain.status()["datasets"] == 0
    with plain.client("Bob") as bob, plain.client("Ana") as ana:
        assert ana.search() == []
        data = bob.publish(torch.tensor([47.5]), tags=["#age"])
        (seen,) = ana.search("#age")
        with pytest.raises(GetNotPermittedError):
            seen.get()
        with pytest.raises(GetNotPermittedError):
            (seen * 2).sum().get()
        assert bob.search("#age")[0].get().unwrap().item() == 47.5
        bob.unpublish(data)


def test_without_a_credential_nobody_computes_searches_or_sees_a_tag(plain: GridProcess):
    with plain.client("Bob") as bob, plain.client() as guest:
        data = bob.publish(torch.ones(3), tags=["#hidden"])
        for ask in (lambda: guest.search("#hidden"), lambda: send(torch.ones(1), guest).get()):
            with pytest.raises(GridError, match="does not let guests"):
                ask()
        for route in ("/data-centric/datasets", "/data-centric/models", "/data-centric/jobs", "/users", "/roles"):
            assert plain.call("GET", route)[0] == 401
        status, tags = plain.call("GET", "/data-centric/dataset-tags")
        assert status == 401 or tags == []
        bob.unpublish(data)


def test_there_is_no_account_and_no_password_before_the_owner_made_one(small_world: World):
    fresh = small_world.start("node", "fresh")
    for username in ("admin", "owner", "fresh", "root", ""):
        for password in ("admin", "owner", "password", "fresh", ""):
            body = {"username": username, "email": username, "password": password}
            assert fresh.call("POST", "/users/login", body)[0] in (400, 401, 403, 429)
    assert fresh.call("GET", "/metrics")[0] == 404
    with pytest.raises(GridError), fresh.client() as guest:
        guest.publish(torch.ones(1))


def test_what_is_kept_is_for_the_users_own_eyes(plain: GridProcess):
    socket = Path(plain.running["socket"])
    for path in (plain.state, *plain.state.rglob("*"), socket, socket.parent):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_jupyter_server_passes_nobody_on_to_the_node(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GRID_JUPYTER_SINGLE_PORT", raising=False)
    from grid_jupyter.server.extension import GridExtension

    assert GridExtension().single_port is False
