"""Ana on another machine: TLS, an invite, her own credential, and what she may then do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from grid_jupyter import GetNotPermittedError, NodeClient, owner, private_tensor
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.errors import (
    ComputeNotPermittedError,
    GridError,
    NodeUnavailableError,
    NotAuthenticatedError,
    SendNotPermittedError,
)
from grid_jupyter.server.owner_client import OwnerClient


@dataclass
class SecureNode:
    """A Node behind TLS that lets no guest compute."""

    address: str
    owner_socket: str
    ca_file: Path

    def invite(self, role: str = "User") -> str:
        return asyncio.run(OwnerClient(self.owner_socket).invite(role, 60.0))[0]

    def client(self, home: Path, user: str | None = None) -> NodeClient:
        """A client on a machine whose credentials lie in `home`."""
        return NodeClient(None, self.address, user=user, ca_file=self.ca_file, credentials=Credentials(home / "c.json"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNode]:
    folder = tmp_path_factory.mktemp("secure")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "node", "--name", "Clinic", "--port", "0"]
    command += ["--state", str(folder / "state"), "--certfile", str(cert), "--keyfile", str(key), "--json"]
    with subprocess.Popen([*command, "--supervised"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        running: dict[str, Any] = json.loads(process.stdout.readline())
        yield SecureNode(running["address"], running["socket"], cert)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


def test_an_invite_lets_somebody_in_over_tls_once(node: SecureNode, tmp_path: Path):
    invite = node.invite()
    assert invite.startswith("https://")
    with node.client(tmp_path) as ana:
        assert ana.caller.user == ""
        assert ana.accept_invite(invite, "Ana").user == "Ana"
        assert ana.caller.user == "Ana"
    with node.client(tmp_path, user="Ana") as again:
        assert again.caller.user == "Ana"
        assert torch.equal(again.receive(torch.ones(3)).get(), torch.ones(3))
    with node.client(tmp_path / "mallory") as mallory, pytest.raises(NotAuthenticatedError):
        mallory.accept_invite(invite, "Mallory")


def test_large_tensors_go_both_ways_over_tls(node: SecureNode, tmp_path: Path):
    with node.client(tmp_path) as carl:
        carl.accept_invite(node.invite(), "Carl")
        values = torch.arange(300_000.0)
        assert torch.equal((carl.receive(values) * 2).get(), values * 2)


def test_a_guest_is_told_to_log_in_where_guests_are_off(node: SecureNode, tmp_path: Path):
    with node.client(tmp_path) as guest:
        with pytest.raises(NotAuthenticatedError, match="login"):
            guest.search()
        with pytest.raises(GridError):
            guest.receive(torch.ones(2)).get()


def test_publishing_needs_the_right_to_publish(node: SecureNode, tmp_path: Path):
    with node.client(tmp_path) as dora:
        dora.accept_invite(node.invite(), "Dora")
        with pytest.raises(SendNotPermittedError, match="Publisher"):
            dora.publish(torch.ones(2), tags=["#no"])


def test_a_data_set_for_named_computers_is_not_there_for_others(node: SecureNode, tmp_path: Path):
    with node.client(tmp_path) as eve, node.client(tmp_path) as olga, node.client(tmp_path) as fred:
        olga.accept_invite(node.invite("Publisher"), "Olga")
        fred.accept_invite(node.invite(), "Fred")
        eve.accept_invite(node.invite(), "Eve")
        data = private_tensor(torch.ones(4), "Fred").tag("#named")
        pointer = olga.publish(data, compute_users="Fred")
        assert fred.search("#named")[0].sum().get().unwrap().item() == 4
        assert eve.search("#named") == []
        stolen = fred.search("#named")[0]
        stolen._ref.place = eve  # the number is no capability
        with pytest.raises(GridError) as refused:
            stolen.sum().get()
        assert not isinstance(refused.value, (ComputeNotPermittedError, GetNotPermittedError))
        olga.unpublish(pointer)
        assert fred.search("#named") == []


def test_a_client_that_does_not_know_the_certificate_does_not_connect(node: SecureNode, tmp_path: Path):
    with pytest.raises(NodeUnavailableError, match="ca_file"):
        NodeClient(None, node.address, credentials=Credentials(tmp_path / "c.json"))


def test_the_owner_at_his_machine_needs_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRID_JUPYTER_HOME", str(tmp_path))
    with pytest.raises(NodeUnavailableError, match="jupyter lab"):
        owner()
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "node", "--name", "Ward", "--port", "0"]
    command += ["--state", str(tmp_path / "nodes" / "Ward"), "--json", "--supervised"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline()
        with owner() as mine, owner("Ward") as again:
            assert mine.caller.user == again.caller.user == "Ward"
            assert mine.caller.roles == ("Owner",)
            pointer = mine.publish(torch.ones(2), tags="#mine")
            assert pointer.get().unwrap().tolist() == [1.0, 1.0]
        process.stdin.close()
        assert process.wait(20) == 0
