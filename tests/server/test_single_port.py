"""One open port: clients of a Node come through the Jupyter server, with credentials of the Node and no others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy
import psutil
import pytest
import torch
from jupyter_process import REAL_NODE, Jupyter, eventually

import grid_jupyter as sy
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.errors import NodeUnavailableError, NotAuthenticatedError
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.server.running import Running, read_running

LARGE = 64 << 20
"""Values of the largest tensor: 256 MB of float32."""


@dataclass
class World:
    """A Jupyter server whose Node is reached through it."""

    jupyter: Jupyter
    credentials: Credentials

    @property
    def address(self) -> str:
        return f"{self.jupyter.url}grid/public"

    @property
    def running(self) -> Running:
        return read_running(self.jupyter.home / "grid/nodes/Bob", "node")

    def client(self, user: str, address: str = "", role: str = "User") -> sy.NodeClient:
        """A client at this address; the Node gives the credential out by its owner's socket."""
        owner, address = OwnerClient(self.running.socket), address or self.address
        asyncio.run(owner.account(user, role))
        self.credentials.store(address, user, asyncio.run(owner.token(user)))
        return sy.NodeClient(address, user=user, credentials=self.credentials)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """What is answered at a path below the base_url."""
        parts = urlsplit(self.jupyter.url)
        with contextlib.closing(HTTPConnection(str(parts.hostname), parts.port, timeout=20)) as connection:
            connection.request("GET", parts.path + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("single")
    jupyter = Jupyter(home, REAL_NODE, single_port=True, node_arguments=["--session-grace", "60"])
    eventually(lambda: jupyter.status().get("node"), "the start of the Node")
    yield World(jupyter, Credentials(home / "credentials.json"))
    jupyter.close()


def test_a_client_publishes_computes_and_reads_through_the_jupyter_server(world):
    with world.client("Bob", role="Owner") as bob, world.client("Ana") as ana:
        bob.publish(torch.arange(6.0).reshape(2, 3), tags=["#six"], allowed_users=["Ana"])
        (found,) = ana.search("#six")
        assert torch.equal((found * 2).sum(0).get().unwrap(), torch.tensor([6.0, 10.0, 14.0]))
        assert ana.address.url == world.address


def test_256_mb_go_up_and_down_and_never_are_in_jupyters_memory(world):
    server = psutil.Process(world.jupyter.process.pid)
    before, most, done = server.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, server.memory_info().rss)
            done.wait(0.01)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with world.client("Ana") as ana:
            values = torch.arange(LARGE, dtype=torch.float32)
            assert torch.equal(torch.as_tensor(sy.send(values, ana).get()), values)
    finally:
        done.set()
        watching.join()
    assert most - before < 32 << 20


def test_a_session_goes_on_over_a_new_connection(world):
    with world.client("Ana") as ana:
        kept = sy.send(torch.ones(3), ana)
        ana._link._socket._socket.shutdown(2)
        assert torch.equal(torch.as_tensor((kept + 1).get()), torch.full((3,), 2.0))


def test_the_status_says_that_others_come_through_this_server(world):
    assert world.jupyter.status()["public"] == {"path": "/user/x/grid/public", "address": ""}


def test_jupyters_token_opens_nothing_at_the_node_and_the_nodes_nothing_at_jupyter(world):
    jupyters = world.jupyter.token
    for headers in ({"Authorization": f"token {jupyters}"}, {"Authorization": f"Bearer {jupyters}"}):
        status, said = world.get("grid/public/data-centric/datasets", **headers)
        assert (status, json.loads(said)["code"]) == (401, "not-authenticated")
        assert jupyters.encode() not in said
    assert world.get(f"grid/public/data-centric/models?token={jupyters}")[0] == 401
    token = asyncio.run(OwnerClient(world.running.socket).token("Bob"))
    for path in ("api/contents", "grid/api/status", "api/kernels"):
        assert world.get(path, Authorization=f"Bearer {token}")[0] == 403
        assert world.get(path)[0] == 403


def test_without_any_credential_it_is_the_nodes_own_door(world):
    assert world.get("grid/public/data-centric/status/") == (200, b'{"success":true,"status":"OpenGrid"}')
    with pytest.raises(NotAuthenticatedError):
        sy.NodeClient(world.address, credentials=world.credentials).search("#six")


def test_the_owners_door_is_not_behind_it(world):
    token = asyncio.run(OwnerClient(world.running.socket).token("Bob"))
    for path in ("owner/status", "%6fwner/status", "grid/api/status"):
        assert world.get(f"grid/public/{path}", Authorization=f"Bearer {token}")[0] == 404


def test_a_device_trains_a_model_that_is_hosted_through_it(world):
    torch.manual_seed(1)
    model, example = torch.nn.Linear(2, 1), (torch.zeros(4, 2), torch.zeros(4, 1))
    plan = sy.training_plan(
        model, torch.nn.functional.mse_loss, torch.optim.SGD(model.parameters(), 0.1), inputs=example
    )
    world.client("Pat", role="Publisher").close()
    pat = sy.ModelCentricFLClient("pat", world.address, user="Pat", credentials=world.credentials)
    config = {"name": "line", "version": "1.0", "batch_size": 4, "lr": 0.1, "max_updates": 10}
    bounds = {"num_cycles": 1, "min_diffs": 1, "max_diffs": 1, "cycle_length": 60}
    pat.host(model, {"training_plan": plan}, client_config=config, server_config=bounds)
    rows = {"x": numpy.ones((8, 2), "float32"), "y": numpy.ones((8, 1), "float32")}
    (told,) = sy.Device(world.address).participate("line", data=rows)
    assert told.counted
    assert pat.status("line")["completed"] == 1


def test_a_page_of_the_node_is_no_page_of_jupyters(world):
    with urllib.request.urlopen(f"{world.address}/", timeout=20) as answer:
        assert "A Node of a grid" in answer.read().decode()
        assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        assert answer.headers.get_all("Set-Cookie") is None


def test_while_the_node_is_stopped_the_answer_says_so_and_afterwards_all_is_well(world):
    def node(verb: str) -> None:
        url = f"{world.jupyter.url}grid/api/node/{verb}"
        authorized = {"Authorization": f"token {world.jupyter.token}"}
        urllib.request.urlopen(urllib.request.Request(url, b"", authorized, method="POST"), timeout=30).close()

    node("stop")
    with pytest.raises(NodeUnavailableError, match="its owner can start it"):
        sy.NodeClient(world.address, credentials=world.credentials)
    node("start")
    eventually(lambda: world.jupyter.status().get("node"), "the start of the Node")
    with world.client("Ana") as ana:
        assert torch.equal(torch.as_tensor(sy.send(torch.ones(2), ana).get()), torch.ones(2))
