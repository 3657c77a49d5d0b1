"""Push end to end: a Node, devices that listen by its WebSocket, and what an owner may have sent to them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import World
from fcm_server import FcmServer, fcm_server
from node_world import GridProcess, until
from websockets.sync.client import ClientConnection, connect

from grid_jupyter import FLClient, FLJob, ModelCentricFLClient, func2plan, training_plan
from grid_jupyter.errors import GridError, NotFound

HOUR = 3600
INVITES = {"goal_count": 2, "min_workers": 2, "cycle_length": HOUR, "min_diffs": 2, "max_diffs": 2}


@pytest.fixture(scope="module")
def google() -> Iterator[FcmServer]:
    with pytest.MonkeyPatch.context() as patch, fcm_server() as made:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield made


@pytest.fixture(scope="module")
def node(world: World, google: FcmServer) -> GridProcess:
    """A Node that pushes by Firebase, on which Pat may host and Olga is an owner."""
    world.home.mkdir(parents=True, exist_ok=True)
    key = google.key(world.home / "firebase.json")
    made = world.start("node", "Waker", "--push-credentials", str(key), "--push-endpoint", google.url)
    made.user("Pat", "Publisher")
    made.user("Olga", "Owner")
    return made


@pytest.fixture(scope="module")
def pat(node: GridProcess) -> ModelCentricFLClient:
    return ModelCentricFLClient("pat", node.address, user="Pat").connect()


def host(pat: ModelCentricFLClient, name: str, **server_config: Any) -> None:
    @func2plan(args_shape=[(-1, 3), (3, 1)])
    def forward(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    config = {"name": name, "version": "1.0"}
    pat.host({"w": torch.ones(3, 1)}, {"forward": forward}, client_config=config, server_config=server_config)


def authenticate(node: GridProcess, name: str, **facts: Any) -> str:
    status, told = node.call("POST", "/model-centric/authenticate", {"model_name": name, **facts})
    assert status == 200, told
    return str(told["worker_id"])


class Socket:
    """0.2.9's WebSocket by hand."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.notices: list[dict[str, Any]] = []

    def say(self, kind: str, **data: Any) -> Any:
        self._connection.send(json.dumps({"type": f"model-centric/{kind}", "data": data}))
        while (told := json.loads(self._connection.recv(20)))["type"] == "push":
            self.notices.append(told["data"])
        return told["data"]

    def next(self, *, acknowledge: bool = True) -> dict[str, Any]:
        if not self.notices:
            told = json.loads(self._connection.recv(20))
            assert told["type"] == "push", told
            self.notices.append(told["data"])
        notice = self.notices.pop(0)
        if acknowledge:
            assert self.say("notice-received", id=notice["id"]) == {"status": "success"}
        return notice


def test_devices_that_listen_are_invited_and_get_again_what_they_did_not_acknowledge(
    node: GridProcess, pat: ModelCentricFLClient
):
    host(pat, "listened to", **INVITES)
    workers = [authenticate(node, "listened to") for _ in range(2)]
    with connect(node.address.replace("http", "ws") + "/") as connection:
        socket = Socket(connection)
        for worker in workers:
            assert socket.say("listen", worker_id=worker) == {"status": "success"}
        notice = socket.next(acknowledge=False)
        other = socket.next()
        assert {notice["worker_id"], other["worker_id"]} == set(workers)
        assert (notice["type"], notice["model"], notice["cycle_id"]) == ("request_for_cycle", "listened to", 1)
        key = notice["cycle_start_request_key"]
        asked = {"worker_id": workers[0], "model": "listened to", "cycle_start_request_key": key}
        assert socket.say("cycle-request", **asked)["status"] == "accepted"
        assert socket.say("listen", worker_id="nobody")["code"] == "not-found"
        assert socket.say("save-fcm-token", worker_id=workers[0], fcm_device_token="t")["message"] == (
            "token has been saved"
        )
        assert socket.say("update-worker-status", worker_id=workers[0]) == {"status": "success"}
    with connect(node.address.replace("http", "ws") + "/") as connection:  # it was never acknowledged
        socket = Socket(connection)
        assert socket.say("listen", worker_id=notice["worker_id"]) == {"status": "success"}
        assert socket.next() == notice


def test_push_tokens_and_availability_over_http_and_what_is_wrong_with_them_is_said(
    node: GridProcess, pat: ModelCentricFLClient
):
    host(pat, "by http", **INVITES)
    worker = authenticate(node, "by http", fcm_device_token="one")
    path = "/model-centric/save-fcm-token"
    body = {"worker_id": worker, "model": "by http", "version": "1.0", "ram_size": 1.5, "cpu_cores": 8}
    assert node.call("POST", path, {**body, "fcm_device_token": "two"}) == (
        200,
        {"status": "success", "message": "token has been saved"},
    )
    told = {"worker_id": worker, "auth_token": "", "model": "by http", "version": "1.0", "fcm_push_token": "three"}
    assert node.call("POST", "/model-centric/update-worker-status", told) == (200, {"status": "success"})
    for wrong, status in (
        ({**body, "fcm_device_token": "a b"}, 400),
        ({**body, "fcm_device_token": ""}, 400),
        ({**body, "fcm_device_token": "x" * 5000}, 400),
        (body, 400),
        ({**body, "fcm_device_token": "t", "ram_size": -1}, 400),
        ({**body, "fcm_device_token": "t", "worker_id": "nobody"}, 404),
        ({**body, "fcm_device_token": "t", "model": "another"}, 409),
    ):
        found, answer = node.call("POST", path, wrong)
        assert found == status, answer
        assert "x" * 50 not in str(answer)
    assert node.call("POST", "/model-centric/update-worker-status", {"worker_id": "nobody"})[0] == 404


def test_only_an_owner_pushes_and_nobody_is_shown_a_token_or_the_key(
    node: GridProcess, pat: ModelCentricFLClient, google: FcmServer
):
    host(pat, "pushed")
    worker = authenticate(node, "pushed", fcm_device_token="a-secret-token")
    path, body = "/model-centric/send_push_event", {"model": "pushed", "title": "Hello", "workers": [worker]}
    assert node.call("POST", path, body)[0] == 401
    assert node.call("POST", path, body, token=node.user("Pat", "Publisher"))[0] == 403
    assert node.call("GET", path, token=node.user("Pat", "Publisher"))[0] == 403
    olga = node.user("Olga", "Owner")
    assert node.call("POST", path, body, token=olga) == (200, {"status": "success", "devices": 1})
    assert node.call("POST", path, {**body, "txt": "?"}, token=olga)[0] == 400
    assert node.owner("POST", "/owner/push", {"model": "pushed", "text": "to all"})["devices"] == 1
    until(lambda: node.owner("GET", "/owner/push")["waiting"] == 0)
    stands = node.call("GET", path, token=olga)[1]
    assert stands["push"] == "fcm"
    assert {"title": "Hello"} in [message.get("notification") for message in google.messages]
    assert {message["token"] for message in google.messages if message["data"]["model"] == "pushed"} == {
        "a-secret-token"
    }
    assert stands["sent"] >= 3
    assert "a-secret-token" not in json.dumps(stands)
    assert worker not in json.dumps(stands)
    for secret in ("a-secret-token", "access-", "PRIVATE KEY"):
        assert secret not in node.log.read_text()
    rows = node.owner("GET", "/owner/audit")["rows"]
    pushed = [row for row in rows if row["event"] == "pushed"]
    assert {row["actor"] for row in pushed} >= {"Olga"}
    assert "Hello" not in json.dumps(pushed)


def test_devices_as_processes_sleep_until_they_are_invited_and_train_though_the_node_is_killed(
    small_world: World, tmp_path: Path
):
    node = small_world.start("node", "Waker")
    node.user("Pat", "Publisher")
    pat = ModelCentricFLClient("pat", node.address, user="Pat")
    model = torch.nn.Linear(4, 1)
    plan = training_plan(model, torch.nn.functional.mse_loss, torch.optim.SGD(model.parameters(), 0.1),
                         inputs=(torch.zeros(2, 4), torch.zeros(2, 1)))  # fmt: skip
    config = {"name": "asleep", "version": "1.0", "batch_size": 8, "lr": 0.1}
    pat.host(model, {"training_plan": plan}, client_config=config, server_config=INVITES | {"num_cycles": 3})
    devices = []
    for k in range(2):
        x = numpy.random.default_rng(k).normal(size=(16, 4)).astype(numpy.float32)
        numpy.savez(tmp_path / f"{k}.npz", x=x, y=x.sum(axis=1, keepdims=True))
        command = [sys.executable, "-m", "grid_jupyter.cli.main", "device", node.address, "--model", "asleep"]
        command += ["--data", str(tmp_path / f"{k}.npz"), "--json", "--listen"]
        devices.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        if k == 0:  # it asked once, and is told by nobody that there is another one
            until(lambda: "/model-centric/cycle-request" in node.log.read_text())
    until(lambda: pat.status("asleep")["completed"] >= 1)
    node.kill()
    node.start()
    *_, last = pat.follow("asleep")
    assert (last["phase"], last["completed"]) == ("over", 3)
    for device in devices:
        out, err = device.communicate(timeout=60)
        assert device.returncode == 0, err
        assert [json.loads(line)["cycle"] for line in out.splitlines()] == [1, 2, 3]
    asked = node.log.read_text().count("POST /model-centric/cycle-request")
    assert asked <= 24  # a cycle: the first question, that of the invitation, and some at its end


def test_a_job_of_0_2_9_sleeps_until_it_is_invited(node: GridProcess, pat: ModelCentricFLClient):
    host(pat, "sleepy job", **INVITES | {"num_cycles": 1, "min_diffs": 1, "max_diffs": 1})
    seen: list[Any] = []

    def accepted(job: FLJob) -> None:
        seen.append(job.cycle)
        job.report(job.model.tensors())

    def take_part() -> None:
        job = FLClient(node.address, push_token="of-a-job").new_job("sleepy job")
        job.add_listener(job.EVENT_ACCEPTED, accepted)
        job.add_listener(job.EVENT_REJECTED, lambda job, timeout: seen.append(timeout))
        job.start(listen=True)

    first = threading.Thread(target=take_part)
    first.start()
    until(lambda: node.owner("GET", "/owner/push")["listening"] >= 1)
    assert seen == []
    authenticate(node, "sleepy job")
    first.join(30)
    assert seen == [1]
    take_part()
    assert seen == [1, None]


def test_an_owner_pushes_from_python_and_from_the_command_line(
    node: GridProcess, pat: ModelCentricFLClient, google: FcmServer
):
    host(pat, "by hand")
    worker = authenticate(node, "by hand", fcm_device_token="hand")
    node.user("Olga", "Owner")
    olga = ModelCentricFLClient("olga", node.address, user="Olga")
    assert olga.push("by hand", text="from Python", data={"a": "b"}, workers=[worker]) == 1
    with pytest.raises(GridError, match="only an owner"):
        pat.push("by hand", text="?")
    with pytest.raises(NotFound):
        olga.push("nobody's", text="?")
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "push", "--state", str(node.state)]
    words = ["--model", "by hand", "--title", "Thanks", "--text", "from a shell", "--data", "k=v=w"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "on its way to 1 devices\n"), done.stderr
    until(lambda: olga.pushes()["waiting"] == 0)
    bodies = [
        one["notification"]["body"] for one in google.messages if one["token"] == "hand" and "notification" in one
    ]
    assert sorted(bodies) == ["from Python", "from a shell"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "tokens: by fcm" in shown
    assert "hand" not in shown.replace("by hand", "")
    wrong = subprocess.run([*command, "--text", "whose?"], capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, "--model" in wrong.stderr) == (1, True)


def test_20_a_plan_that_is_not_there_for_tfjs_is_hosted_all_the_same(node: GridProcess, pat: ModelCentricFLClient):
    host(pat, "no tfjs")
    worker = authenticate(node, "no tfjs")
    _, told = node.call("POST", "/model-centric/cycle-request", {"worker_id": worker, "model": "no tfjs"})
    place = f"worker_id={worker}&request_key={told['request_key']}&plan_id={told['plans']['forward']}"
    status, answer = node.call("GET", f"/model-centric/get-plan?{place}&receive_operations_as=tfjs")
    assert (status, answer["code"]) == (501, "translation-unavailable")
    assert node.call("GET", f"/model-centric/get-plan?{place}&receive_operations_as=list")[0] == 200


def test_a_node_does_not_start_with_a_key_that_others_can_read(google: FcmServer, tmp_path: Path):
    key = google.key(tmp_path / "firebase.json")
    key.chmod(0o644)
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "node", "--name", "Open", "--state", str(tmp_path / "s")]
    for options, said in (
        (["--push-credentials", str(key)], "others can read"),
        (["--push-endpoint", google.url], "needs --push-credentials"),
    ):
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert said in done.stderr
        assert "PRIVATE" not in done.stderr
