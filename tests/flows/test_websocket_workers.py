"""Workers in two parts: a server in one process, its handle in another; both go on with their own work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from node_world import GridProcess
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import grid_jupyter as sy
from grid_jupyter import TorchHook, VirtualWorker, WebsocketClientWorker, WebsocketServerWorker
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.errors import BadRequest, NodeUnavailableError
from grid_jupyter.link.http import Address, transfer
from grid_jupyter.wire import commands, frames

SERVER = """
import json, sys, torch
import grid_jupyter as sy
hook = sy.TorchHook(torch)
births = torch.tensor([3.5, 3.7, 3.9]).tag("#births").describe("weights in kg")
with sy.WebsocketServerWorker(hook, "localhost", 0, id="bob", data=[births]) as worker:
    print(json.dumps({"port": worker.port}), flush=True)
    for line in sys.stdin:  # it serves meanwhile, and tells what it holds when it is asked
        worker._tensors[int(line)].mul_(2)  # the owner touches his data while he serves
        print(json.dumps({n: one.tolist() for n, one in worker._tensors.items()}), flush=True)
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait(30) == 0


@pytest.fixture
def here(hook: TorchHook) -> Iterator[WebsocketServerWorker]:
    """A server in this process."""
    with WebsocketServerWorker(hook, id="here") as worker:
        yield worker


def handle(worker: WebsocketServerWorker, **options: Any) -> WebsocketClientWorker:
    return WebsocketClientWorker(None, worker.host, worker.port, id=worker.id, **options)


def test_server_and_client_are_processes_of_their_own_and_the_owner_goes_on(
    server: subprocess.Popen[str], hook: TorchHook
):
    assert server.stdin is not None
    assert server.stdout is not None
    port = json.loads(server.stdout.readline())["port"]
    with WebsocketClientWorker(hook, "localhost", port, id="bob") as bob:
        assert re.fullmatch(r"<WebsocketClientWorker id:bob at http://localhost:\d+>", repr(bob))
        assert [bob.objects_count_remote(), bob.tensors_count_remote()] == [1, 1]
        (births,) = bob.search("#births", "weights")
        assert births.tags == ("#births",)
        assert births.shape == (3,)
        number = births.id_at_location
        assert bob.list_objects_remote() == {number: "float32 (3,)"}
        x = torch.tensor([1.0, 1.0, 1.0]).send(bob)  # type: ignore[attr-defined]
        total = (x + births).sum()
        assert bob.objects_count_remote() == 3  # an answer: what was sent before it is done
        server.stdin.write(f"{number}\n")
        server.stdin.flush()
        held = json.loads(server.stdout.readline())
        assert held[str(number)] == [7, pytest.approx(7.4), pytest.approx(7.8)]
        assert held[str(x.id_at_location)] == [1, 1, 1]
        assert total.get().item() == pytest.approx(14.1)
        assert births.get(deregister_ptr=False).tolist() == [7, pytest.approx(7.4), pytest.approx(7.8)]
        bob.clear_objects_remote()
        assert bob.objects_count_remote() == 0


def test_what_was_sent_is_found_again_after_a_new_connection(here: WebsocketServerWorker):
    bob = handle(here)
    x = torch.tensor([1, 2]).send(bob, garbage_collect_data=False)  # type: ignore[attr-defined]
    number = x.id_at_location
    bob.close()
    assert not bob.connected
    with pytest.raises(sy.SessionLostError, match="search for its tensors"):
        x + 1
    bob.connect()
    (again,) = bob.search(number)
    assert (again * 2).get().tolist() == [2, 4]
    assert here._objects[number].tolist() == [1, 2]
    bob.close()


def test_two_clients_have_templates_and_modes_of_their_own(here: WebsocketServerWorker):
    with handle(here) as one, handle(here) as other:
        x, y = torch.ones(2).send(one), torch.ones(2).send(other)  # type: ignore[attr-defined]
        with torch.no_grad():
            found = x + 1
        results = [(y * 3).get().tolist(), found.get().tolist(), (x * 5).get().tolist()]
        assert results == [[3, 3], [2, 2], [5, 5]]
        z = torch.ones(2, requires_grad=True).send(here)  # type: ignore[attr-defined]
        (z * 2).sum().backward()
        assert z.grad.get().tolist() == [2, 2], "its owner computes on it as well"


def test_what_the_owner_changed_is_there_for_what_others_compute_next(here: WebsocketServerWorker):
    with handle(here) as bob:
        mine: Any = torch.ones(2).send(here)  # type: ignore[attr-defined]
        (theirs,) = bob.search(mine.id_at_location)
        theirs.sum().get()
        for _ in range(3):
            mine += 1
        assert (theirs * 10).get().tolist() == [40, 40]


def test_large_tensors_go_beside_the_stream(here: WebsocketServerWorker):
    with handle(here) as bob:
        large = torch.arange(100_000.0)
        assert torch.equal(large.send(bob).get(), large)  # type: ignore[attr-defined]
        with pytest.raises(BadRequest, match="do not fit"):
            transfer(
                bob.address, "PUT", "/data-centric/values/5?dtype=float32&shape=[3]", b"1234", length=4,
                headers={"X-Grid-Session": bob._link.welcome.session},  # type: ignore[union-attr]
            )  # fmt: skip


def test_values_move_between_workers_of_all_kinds(here: WebsocketServerWorker, bob: GridProcess, hook: TorchHook):
    alice = VirtualWorker(hook, id="alice")
    with handle(here) as far, bob.client("Ana") as node:
        pointer: Any = torch.tensor([1, 2]).send(alice)  # type: ignore[attr-defined]
        assert pointer.move(far).location is far
        assert alice._objects == {}
        pointer.remote_send(alice)
        assert pointer.location is far
        assert pointer.remote_get().get().tolist() == [1, 2]
        chain = torch.tensor([3]).send(far).send(alice)  # type: ignore[attr-defined]
        assert chain.get().get().tolist() == [3]
        owner = bob.client("Bob")
        owner.publish(torch.tensor([9]), tags=["#for-ana"], allowed_users="Ana")
        owner.close()
        with pytest.raises(sy.SendNotPermittedError, match="cannot protect"):
            (node.search("#for-ana")[0] + 1).move(far)
        with pytest.raises(sy.SendNotPermittedError, match="cannot protect"):
            sy.private_tensor(torch.ones(1), ("Ana",)).send(far)


def test_a_failure_comes_back_as_an_error(here: WebsocketServerWorker):
    with handle(here) as bob:
        x = torch.zeros(2, 2).send(bob)  # type: ignore[attr-defined]
        with pytest.raises(sy.GridError, match="singular"):
            torch.linalg.inv(x).get()
        with pytest.raises(sy.ObjectNotFoundError):
            bob.session.read(12345)
        with pytest.raises(sy.NotAuthenticatedError, match="no accounts"):
            x.get(user="Bob")


# ------------------------------------------------------------------ who gets in


def test_nobody_gets_in_without_the_token(here: WebsocketServerWorker):
    with pytest.raises(sy.NotAuthenticatedError, match="token"):
        handle(here, token="another token, which is wrong")
    address = Address(here.address)
    for method, path in (("GET", "/data-centric/session"), ("GET", "/data-centric/released/1")):
        with pytest.raises(sy.NotAuthenticatedError):
            transfer(address, method, path)
    with pytest.raises(sy.NotAuthenticatedError):
        transfer(address, "PUT", "/data-centric/values/5?dtype=float32&shape=[1]", b"1234", length=4)
    assert here._objects == {}


def test_the_token_that_is_made_is_this_users_and_ends_with_the_server(hook: TorchHook):
    with WebsocketServerWorker(hook, id="brief") as worker:
        address = worker.address
        assert Credentials().users(address) == ["worker brief"]
    assert Credentials().users(address) == []
    with pytest.raises(NodeUnavailableError):
        WebsocketClientWorker(hook, "localhost", int(address.rpartition(":")[2]), id="brief")


def test_beyond_this_machine_it_asks_for_a_token(hook: TorchHook):
    with pytest.raises(BadRequest, match="lets other machines in"):
        WebsocketServerWorker(hook, "0.0.0.0", id="open")  # noqa: S104
    with pytest.raises(BadRequest, match="16 characters"):
        WebsocketServerWorker(hook, "0.0.0.0", id="open", token="short")  # noqa: S104
    token = "a text that nobody guesses"
    with (
        WebsocketServerWorker(hook, "127.0.0.1", id="mine", token=token) as worker,
        handle(worker, token=token) as found,
    ):
        assert found.objects_count_remote() == 0
    with (
        WebsocketServerWorker(hook, "127.0.0.1", id="mine", token=token) as worker,
        pytest.raises(sy.NotAuthenticatedError, match="needs its token"),
    ):
        handle(worker)


def test_a_worker_of_another_name_is_not_taken_for_it(here: WebsocketServerWorker):
    token = Credentials().get(here.address, "worker here")
    with pytest.raises(sy.GridError, match="is 'here', not 'there'"):
        WebsocketClientWorker(None, here.host, here.port, id="there", token=token)


def test_a_port_that_is_taken_is_told_of(here: WebsocketServerWorker, hook: TorchHook):
    with pytest.raises(BadRequest, match="choose another"):
        WebsocketServerWorker(hook, here.host, here.port, id="second").start()


def test_a_server_with_a_certificate_serves_tls(tmp_path: Path, hook: TorchHook):
    pem = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-out", str(pem[0]), "-keyout", str(pem[1])],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl that makes certificates")
    with (
        WebsocketServerWorker(hook, id="safe", cert_path=pem[0], key_path=pem[1]) as worker,
        handle(worker, secure=True, ca_file=pem[0]) as safe,
    ):
        assert worker.address.startswith("https://")
        assert torch.arange(40_000).send(safe).sum().get().item() == 799_980_000  # type: ignore[attr-defined]
        with pytest.raises(NodeUnavailableError):
            handle(worker, secure=True)
    with pytest.raises(BadRequest, match="cert_path"):
        WebsocketServerWorker(hook, id="safe", key_path=pem[1])


def test_a_slow_answer_is_given_up(here: WebsocketServerWorker):
    release = threading.Event()
    with handle(here, timeout=0.2) as slow:
        x = torch.ones(2).send(slow)  # type: ignore[attr-defined]
        slow.session.flush()
        busy = threading.Thread(target=here.shelf.run, args=(release.wait, 30))  # its one thread has other work
        busy.start()
        try:
            with pytest.raises(sy.SessionLostError, match=r"within 0\.2 s"):
                x.get()
        finally:
            release.set()
            busy.join()
        slow.connect()
        assert (torch.ones(2).send(slow) + 1).get().tolist() == [2, 2]  # type: ignore[attr-defined]


def until_closed(stranger: ClientConnection) -> None:
    """Take what comes until the other side ends the connection."""
    try:
        while True:
            stranger.recv(30)
    except ConnectionClosed:
        return


@pytest.mark.parametrize("frame", ["text", b"", b"\x00" * 3, b"\xff" * 64, b"nonsense that is no frame at all"])
def test_what_is_no_frame_ends_its_connection_and_nothing_else(here: WebsocketServerWorker, frame: Any):
    headers = {"Authorization": f"Bearer {Credentials().get(here.address, 'worker here')}"}
    url = here.address.replace("http", "ws", 1) + "/data-centric/session"
    with handle(here) as other, connect(url, additional_headers=headers, proxy=None, compression=None) as stranger:
        x = torch.ones(2).send(other)  # type: ignore[attr-defined]
        stranger.send(frame)
        until_closed(stranger)
        assert (x + 1).get().tolist() == [2, 2]


def test_a_connection_that_did_not_greet_computes_nothing(here: WebsocketServerWorker):
    headers = {"Authorization": f"Bearer {Credentials().get(here.address, 'worker here')}"}
    url = here.address.replace("http", "ws", 1) + "/data-centric/session"
    with connect(url, additional_headers=headers, proxy=None, compression=None) as stranger:
        stranger.send(frames.pack(frames.OPERATIONS, frames.encode([[commands.CLEAR]])))
        until_closed(stranger)


def test_a_page_of_a_browser_is_refused(here: WebsocketServerWorker):
    headers = {
        "Authorization": f"Bearer {Credentials().get(here.address, 'worker here')}",
        "Origin": "http://evil.example",
    }
    with pytest.raises(InvalidStatus, match="403"):
        connect(here.address.replace("http", "ws", 1) + "/data-centric/session", additional_headers=headers, proxy=None)
