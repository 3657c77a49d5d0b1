"""Model-centric training end to end: a Node, devices as processes of their own, what strangers may not do."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import World
from node_world import GridProcess, until
from safetensors.numpy import load, save
from sklearn.datasets import load_digits
from websockets.sync.client import connect

from grid_jupyter import Device, FLClient, FLJob, ModelCentricFLClient, Plan, func2plan, training_plan
from grid_jupyter.aggregation.diffs import packed
from grid_jupyter.client.residual import Pending, Residual
from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GridError,
    InvalidDataError,
    NotAuthenticatedError,
    NotFound,
)


def network() -> torch.nn.Sequential:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


@pytest.fixture(scope="module")
def plan() -> Plan:
    example = torch.zeros(4, 64), torch.zeros(4, dtype=torch.int64)
    return training_plan(network(), torch.nn.functional.cross_entropy, torch.optim.SGD(network().parameters(), 0.1),
                         inputs=example)  # fmt: skip


@pytest.fixture(scope="module")
def node(world: World) -> GridProcess:
    """A Node on which Pat may host and Ann has an account."""
    made = world.start("node", "Trainer")
    made.user("Pat", "Publisher")
    made.user("Ann", "User")
    return made


@pytest.fixture(scope="module")
def pat(node: GridProcess) -> ModelCentricFLClient:
    return ModelCentricFLClient("pat", node.address, user="Pat").connect()


def host(pat: ModelCentricFLClient, plan: Plan, name: str, **server_config: Any) -> Any:
    config = {"name": name, "version": "1.0", "batch_size": 32, "lr": 0.2, "max_updates": 100}
    return pat.host(network(), {"training_plan": plan}, client_config=config, server_config=server_config)


def accuracy(tensors: dict[str, Any]) -> float:
    images, labels = load_digits(return_X_y=True)
    x = (images / 16.0).astype(numpy.float32)
    hidden = numpy.maximum(x @ tensors["0.weight"].T + tensors["0.bias"], 0)
    output = hidden @ tensors["2.weight"].T + tensors["2.bias"]
    return float((output.argmax(axis=1) == labels).mean())


def start_device(node: GridProcess, data: Path, name: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "device", node.address, "--model", name]
    return subprocess.Popen(
        [*command, "--data", str(data), "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_three_devices_train_a_model_on_digits_that_never_leave_them_though_the_node_is_killed(
    small_world: World, plan: Plan, tmp_path: Path
):
    node = small_world.start("node", "Trainer")
    node.user("Pat", "Publisher")
    pat = ModelCentricFLClient("pat", node.address, user="Pat")
    host(pat, plan, "digits", num_cycles=6, min_diffs=3, max_diffs=3, max_workers=3, cycle_length=60)
    images, labels = load_digits(return_X_y=True)
    topk = ["--diff", "topk", "--keep", "0.3", "--residual", str(tmp_path / "residual")]
    forms = [["--diff", "int8"], ["--gzip"], topk]
    devices = []
    for k in range(3):
        data = tmp_path / f"device-{k}.npz"
        numpy.savez(data, x=(images[k::3] / 16.0).astype(numpy.float32), y=labels[k::3].astype(numpy.int64))
        devices.append(start_device(node, data, "digits", "--seed", str(k), *forms[k]))
    until(lambda: pat.status("digits")["completed"] >= 2)
    node.kill()
    node.start()
    *_, last = pat.follow("digits")
    assert (last["phase"], last["completed"], last["checkpoint"]) == ("over", 6, 7)
    for device in devices:
        out, err = device.communicate(timeout=60)
        assert device.returncode == 0, err
        told = [json.loads(line) for line in out.splitlines()]
        assert [one["cycle"] for one in told if one["counted"]] == [1, 2, 3, 4, 5, 6]
        assert told[-1]["loss"] < told[0]["loss"]
        assert told[0]["samples"] == 599
    reached = [accuracy(pat.retrieve("digits", checkpoint=number)) for number in (1, 3, 7)]
    assert reached[0] < 0.3 < reached[1] < reached[2]
    assert reached[2] > 0.85


# ------------------------------------------------------------------ by hand, as a client of another language does


def test_the_whole_protocol_by_plain_http(node: GridProcess, pat: ModelCentricFLClient, plan: Plan):
    assert host(pat, plan, "plain", max_diffs=2, num_cycles=1, minimum_upload_speed=1)["status"] == "success"
    workers = []
    for _ in range(2):
        status, told = node.call("POST", "/model-centric/authenticate", {"model_name": "plain"})
        assert (status, told["status"], told["requires_speed_test"]) == (200, "success", True)
        workers.append(told["worker_id"])
    where = f"/model-centric/speed-test?worker_id={workers[0]}&random=1"
    assert node.call("GET", f"{where}&is_ping=1") == (200, {})
    assert node.call("POST", where, b"x" * 100_000) == (200, {})
    ask = {"worker_id": workers[0], "model": "plain", "version": "1.0", "ping": 8, "download": 46.3, "upload": 23.7}
    for wrong in (-1, "23.7", None, True):
        status, told = node.call("POST", "/model-centric/cycle-request", {**ask, "upload": wrong})
        assert status == 400
        assert "'upload'" in told["error"]
    raw = json.dumps({**ask, "upload": float("nan")}).encode()
    assert node.call("POST", "/model-centric/cycle-request", raw)[0] == 400
    places = []
    for worker in workers:
        status, told = node.call("POST", "/model-centric/cycle-request", {**ask, "worker_id": worker})
        assert (status, told["status"], told["model"], told["version"]) == (200, "accepted", "plain", "1.0")
        assert told["client_config"]["batch_size"] == 32
        places.append(f"worker_id={worker}&request_key={told['request_key']}")
    status, again = node.call("POST", "/model-centric/cycle-request", ask)
    assert (status, again["status"]) == (200, "rejected")
    assert again["timeout"] >= 1
    model = node.call("GET", f"/model-centric/get-model?{places[0]}&model_id={told['model_id']}")[1].encode("latin-1")
    tensors = load(model)
    assert node.call("GET", f"/model-centric/get-protocol?{places[0]}&protocol_id=1")[0] == 404
    assert node.call("GET", f"/model-centric/get-protocol?{places[0][:-8]}00000000&protocol_id=1")[0] == 401
    assert node.call("GET", "/model-centric/req-join?model_name=plain")[0] == 200
    assert node.call("GET", "/model-centric/req-join?model_name=nobody's")[0] == 404
    query = f"{places[0]}&plan_id={told['plans']['training_plan']}"
    status, document = node.call("GET", f"/model-centric/get-plan?{query}&receive_operations_as=list")
    assert (status, document["format"]) == (200, "grid.plan")
    assert b"pytorch" not in node.call("GET", f"/model-centric/get-plan?{query}&receive_operations_as=onnx")[1].encode()
    status, refused = node.call("GET", f"/model-centric/get-plan?{query}&receive_operations_as=tfjs")
    assert (status, refused["code"]) == (501, "translation-unavailable")
    ones = save({name: numpy.ones_like(one) for name, one in tensors.items()})
    threes = save({name: 3 * numpy.ones_like(one) for name, one in tensors.items()})
    zipped = {"Content-Encoding": "gzip"}
    path = f"/model-centric/report?{places[0]}&num_samples=3"
    assert node.call("POST", path, gzip.compress(ones), headers=zipped) == (200, {"status": "success"})
    assert node.call("POST", path, ones) == (200, {"status": "success"})  # sent again, as it is
    key = places[1].partition("request_key=")[2]
    body = {"worker_id": workers[1], "request_key": key, "diff": base64.b64encode(threes).decode()}
    sent = {"Content-Type": "application/json"}
    assert node.call("POST", "/model-centric/report", {**body, "train_num_samples": 1}, headers=sent)[0] == 200
    until(lambda: pat.status("plain")["phase"] == "over")
    status, told = node.call("POST", "/model-centric/cycle-request", ask)
    assert (status, told) == (200, {"status": "rejected", "reason": "training is over"})
    assert node.call("GET", "/model-centric/req-join?model_name=plain&model_version=1.0") == (status, told)
    found = pat.retrieve("plain")
    assert list(found) == list(network().state_dict())
    for name, one in tensors.items():
        numpy.testing.assert_allclose(found[name], one - 1.5, rtol=1e-6)


def test_the_same_by_the_websocket_of_0_2_9(node: GridProcess, pat: ModelCentricFLClient, plan: Plan):
    host(pat, plan, "socket", max_diffs=1, num_cycles=1)
    with connect(node.address.replace("http", "ws") + "/") as socket:

        def say(kind: str, **data: Any) -> Any:
            socket.send(json.dumps({"type": kind, "data": data, "request_id": 5}))
            answer = json.loads(socket.recv())
            assert (answer["type"], answer["request_id"]) == (kind, 5)
            return answer.get("data", answer)

        assert say("socket-ping")["alive"] == "True"
        assert say("get-id")["id"] == "Trainer"
        worker = say("model-centric/authenticate", model_name="socket")["worker_id"]
        place = say("model-centric/cycle-request", worker_id=worker, model="socket")
        tensors = {name: array.numpy() for name, array in network().state_dict().items()}
        diff = base64.b64encode(save({name: numpy.zeros_like(one) for name, one in tensors.items()})).decode()
        report = {"worker_id": worker, "request_key": place["request_key"], "diff": diff}
        assert say("model-centric/report", **report) == {"status": "success"}
        until(lambda: pat.status("socket")["phase"] == "over")
        assert say("model-centric/report", **{**report, "diff": "?"})["code"] == "invalid-data"
        assert (
            say("model-centric/host-training", model="0" * 32, plans={}, client_config={}, server_config={})["code"]
            == "not-authenticated"
        )
        assert say("model-centric/authenticate", model_name="nobody's")["code"] == "not-found"
        assert "messages here are" in say("delete-everything")["error"]
        socket.send(b"\x00")
        assert "takes JSON" in json.loads(socket.recv())["data"]["error"]
        socket.send("{")
        assert json.loads(socket.recv())["data"]["code"] == "bad-request"


def test_hosting_by_the_websocket(node: GridProcess, pat: ModelCentricFLClient, plan: Plan):
    token = node.user("Pat", "Publisher")
    headers = {"Authorization": f"Bearer {token}"}
    data = save({name: one.numpy() for name, one in network().state_dict().items()})
    key = "ab" * 16
    assert node.call("PUT", f"/model-centric/uploads/{key}", data, token=token)[0] == 200
    body = {
        "model": key, "plans": {"training_plan": json.loads(plan.to_bytes())}, "server_config": {},
        "client_config": {"name": "by socket", "version": "1"},
    }  # fmt: skip
    with connect(node.address.replace("http", "ws") + "/", additional_headers=headers) as socket:
        for _ in range(2):
            socket.send(json.dumps({"type": "model-centric/host-training", "data": body}))
            answer = json.loads(socket.recv())
            if _ == 0:
                assert answer["data"]["status"] == "success"
        assert "the model is not here" in answer["data"]["error"]
    assert pat.status("by socket")["cycle"] == 1


def test_who_hosts_or_owns_the_node_ends_and_deletes_and_nobody_else(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan
):
    ann = ModelCentricFLClient("ann", node.address, user="Ann")
    host(pat, plan, "brief")
    for call in (ann.end, ann.delete):
        with pytest.raises(Forbidden, match="who hosts a training ends it"):
            call("brief", "1.0")
    assert node.call("POST", "/model-centric/end-training", {"name": "brief"})[0] == 401
    assert node.call("DELETE", "/model-centric/training?name=brief&version=1.0")[0] == 401
    assert pat.end("brief")["phase"] == "over"
    pat.delete("brief", "1.0")
    with pytest.raises(NotFound):
        pat.status("brief")

    def cli(*options: str) -> Any:
        command = [sys.executable, "-m", "grid_jupyter.cli.main", "trainings", "--state", str(node.state), *options]
        return subprocess.run(command, capture_output=True, text=True)

    host(pat, plan, "owned")
    assert "owned 1.0: open, 0 cycles complete, 0 devices" in cli().stdout
    assert "--version" in cli("--end", "owned").stderr
    assert "is over; its checkpoints stay" in cli("--end", "owned", "--version", "1.0").stdout
    assert len(pat.retrieve("owned")) == 4
    assert json.loads(cli("--delete", "owned", "--version", "1.0", "--json").stdout) == {"status": "success"}
    with pytest.raises(NotFound):
        pat.retrieve("owned")


def test_a_socket_that_was_opened_with_a_credential_hosts_no_more_when_it_is_revoked(node: GridProcess):
    token = node.user("Zoe", "Publisher")
    body = {"model": "0" * 32, "plans": {}, "client_config": {}, "server_config": {}}
    sent = json.dumps({"type": "model-centric/host-training", "data": body})
    headers = {"Authorization": f"Bearer {token}"}
    with connect(node.address.replace("http", "ws") + "/", additional_headers=headers) as socket:
        socket.send(sent)
        assert "the model is not here" in json.loads(socket.recv())["data"]["error"]
        node.owner("DELETE", "/owner/tokens", {"username": "Zoe"})
        socket.send(sent)
        assert json.loads(socket.recv())["data"]["code"] == "not-authenticated"


def test_only_publishers_host_and_only_accounts_follow_and_retrieve(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan
):
    host(pat, plan, "mine")
    ann, nobody = ModelCentricFLClient("ann", node.address, user="Ann"), ModelCentricFLClient("x", node.address)
    with pytest.raises(GridError, match="no right to publish"):
        host(ann, plan, "other")
    with pytest.raises(NotAuthenticatedError):
        host(nobody, plan, "other")
    assert len(list(ann.retrieve("mine"))) == 4
    with pytest.raises(NotAuthenticatedError):
        nobody.retrieve("mine")
    with pytest.raises(NotAuthenticatedError):
        nobody.status("mine")
    with pytest.raises(NotFound):
        ann.retrieve("other")
    with pytest.raises(Conflict, match="already exists"):
        host(pat, plan, "mine")
    with pytest.raises(BadRequest, match="has no key max_dif; known are"):
        host(pat, plan, "other", max_dif=3)


def test_reports_that_are_cut_too_large_or_for_another_model_are_refused_and_change_nothing(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan
):
    host(pat, plan, "careful", max_diffs=1)
    _, told = node.call("POST", "/model-centric/authenticate", {"model_name": "careful"})
    worker = told["worker_id"]
    _, told = node.call("POST", "/model-centric/cycle-request", {"worker_id": worker, "model": "careful"})
    path = f"/model-centric/report?worker_id={worker}&request_key={told['request_key']}"
    good = save({name: numpy.zeros_like(one.numpy()) for name, one in network().state_dict().items()})
    bomb = gzip.compress(bytes(100 * len(good) + (4 << 20)))
    zipped, text = {"Content-Encoding": "gzip"}, {"Content-Type": "application/json"}
    inside = {"worker_id": worker, "request_key": told["request_key"]}
    for data, headers, status, said in (
        (bytes(100 * len(good) + (4 << 20)), {}, 413, "over the limit"),
        (bomb, zipped, 413, "at most"),
        (gzip.compress(good)[:-9], zipped, 400, "ends early"),
        (good, zipped, 400, "is said to be gzip'ed"),
        (gzip.compress(good) + b"x", zipped, 400, "more behind the end"),
        (gzip.compress(good) + bytes(3 << 20), zipped, 413, "over the limit"),
        (gzip.compress(good) + bytes(1 << 20), zipped, 400, "more behind the end"),
        (good, {"Content-Encoding": "br"}, 400, "Content-Encoding: gzip"),
        (good[:-4], {}, 400, "send it whole"),
        (b"x" * len(good), {}, 400, "is no safetensors file"),
        (save({"w": numpy.zeros(3, numpy.float32)}), {}, 400, "no tensor"),
        (json.dumps({**inside, "diff": "ä"}).encode(), text, 400, "base64"),
        (json.dumps({**inside, "diff": "", "num_samples": 0}).encode(), text, 400, "num_samples"),
        (b"[", text, 400, "Invalid JSON"),
    ):
        found, told = node.call("POST", path, data, headers=headers)
        assert found == status, (said, told)
        assert said in told["error"]
    for number in ("0", "-3", "many", "1.5", str(10**30)):
        assert node.call("POST", f"{path}&num_samples={number}", good)[0] == 400
    assert node.call("GET", f"/model-centric/get-model?{path.partition('?')[2]}&model_id=%C2%B2")[0] == 400
    first = node.connection()
    first.putrequest("POST", path)
    first.putheader("Content-Length", str(len(good)))
    first.putheader("Expect", "100-continue")
    first.endheaders()
    until(lambda: b"100" in first.sock.recv(64, socket.MSG_PEEK))  # the Node waits for its body
    first.send(good[:99])
    assert node.call("POST", path, good[:-4])[0] == 400
    answer = first.getresponse()  # it gave way to the newer one, and left nothing
    assert (answer.status, "begun again" in answer.read().decode()) == (409, True)
    first.close()
    until(lambda: not list(node.state.glob("training/*.part")))
    wrong = path.replace(worker, "0" * 8)
    assert node.call("POST", wrong, good)[1]["error"].startswith("Worker ID not found!")
    assert node.call("POST", path[:-8] + "00000000", good)[0] == 401
    assert node.call("POST", "/model-centric/report", good)[0] == 400
    stands = pat.status("careful")
    assert (stands["reports"], stands["completed"]) == (0, 0)
    assert node.call("POST", path, good)[0] == 200
    until(lambda: pat.status("careful")["completed"] == 1)
    status, told = node.call("POST", path, save({n: one.numpy() for n, one in network().state_dict().items()}))
    assert (status, told["code"]) == (409, "conflict")


def test_the_listeners_of_0_2_9_train_with_a_plan_of_a_function(node: GridProcess, pat: ModelCentricFLClient):
    @func2plan(args_shape=[(-1, 3), (3, 1)])
    def forward(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    weights = {"w": torch.ones(3, 1)}
    config = {"name": "listened", "version": "2", "lr": 0.5}
    pat.host(weights, {"forward": forward}, client_config=config,
             server_config={"max_diffs": 1, "num_cycles": 1, "diff_forms": ["int8", "topk"]})  # fmt: skip
    seen: list[Any] = []

    def accepted(job: FLJob) -> None:
        (w,) = job.model.tensors()
        seen.append(job.plans["forward"](torch.ones(2, 3), w).tolist())
        with pytest.raises(InvalidDataError, match="1 tensors, and 0"):
            job.report([])
        for form in ("topk", "float16"):  # a rest is not a job's to keep, and this training takes no float16
            with pytest.raises(BadRequest, match=f"no diff as {form}; this training takes int8, topk"):
                job.report([w], diff=form)
        job.report([w - job.client_config["lr"]], diff="int8")

    for _ in range(2):
        job = FLClient(node.address.replace("http", "ws")).new_job("listened")
        job.add_listener(job.EVENT_ACCEPTED, accepted)
        job.add_listener(job.EVENT_REJECTED, lambda job, timeout: seen.append(timeout))
        job.start()
        until(lambda: pat.status("listened")["phase"] == "over")
    assert seen == [[[3.0], [3.0]], None]
    torch.testing.assert_close(pat.get_model("listened").read()[0], torch.full((3, 1), 0.5))
    job = FLClient(node.address).new_job("unknown")
    job.add_listener(job.EVENT_ERROR, lambda job, text: seen.append(text))
    job.start()
    assert "not found" in seen[-1]
    with pytest.raises(BadRequest, match="no place to report for"):
        job.report([])
    with pytest.raises(BadRequest, match="no event"):
        job.add_listener("done", accepted)


def test_a_device_that_was_killed_before_it_knew_whether_its_report_counts_sends_it_again_and_it_counts_once(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan, tmp_path: Path
):
    host(pat, plan, "sparse", max_diffs=2, num_cycles=2, diff_forms=["float16", "topk"])
    images, labels = load_digits(return_X_y=True)
    data = {"x": (images / 16.0).astype(numpy.float32), "y": labels.astype(numpy.int64)}
    zero = {name: numpy.zeros_like(one.numpy()) for name, one in network().state_dict().items()}

    def left(path: Path, *, sent: bool) -> None:
        """What a device leaves that was killed before its report was sent, or before the answer came."""
        _, told = node.call("POST", "/model-centric/authenticate", {"model_name": "sparse"})
        worker = told["worker_id"]
        _, told = node.call("POST", "/model-centric/cycle-request", {"worker_id": worker, "model": "sparse"})
        report = save(packed(zero, "topk"))
        with Residual(path) as kept:
            kept.check("sparse", "1.0", zero)
            kept.begin(
                Pending(worker, told["request_key"], 9, report), {**zero, "2.bias": numpy.ones_like(zero["2.bias"])}
            )
        if sent:
            query = f"worker_id={worker}&request_key={told['request_key']}&num_samples=9"
            assert node.call("POST", f"/model-centric/report?{query}", report)[0] == 200

    def take_part(path: Path) -> None:
        with Device(node.address) as device:
            (trained,) = device.participate("sparse", data=data, diff="topk", residual=path, cycles=1)
            assert trained.counted
        with Residual(path) as kept:
            assert kept.pending is None
            assert any(array.any() for array in kept.values.values())

    left(tmp_path / "a", sent=True)
    assert pat.status("sparse")["reports"] == 1
    take_part(tmp_path / "a")  # what it sends again counted already; what it trains makes the second
    until(lambda: pat.status("sparse")["completed"] == 1)
    left(tmp_path / "b", sent=False)
    take_part(tmp_path / "b")
    until(lambda: pat.status("sparse")["phase"] == "over")
    host(pat, plan, "more", diff_forms=["float16", "topk"])
    for kind, said in (("int8", "no diffs as int8, but as float16, topk"), ("topk", "a file for it"), ("int4", "as")):
        with Device(node.address) as device, pytest.raises(BadRequest, match=said):
            device.participate("more", data=data, diff=kind)


def test_a_device_says_what_is_wrong_with_its_data(
    node: GridProcess, pat: ModelCentricFLClient, plan: Plan, tmp_path: Path
):
    host(pat, plan, "strict")
    good = {"x": numpy.zeros((5, 64), numpy.float32), "y": numpy.zeros(5, numpy.int64)}
    for name, data, said in (
        ("names", {"x": good["x"]}, "the plan takes the data x, y"),
        ("shape", {**good, "x": good["x"][:, :3]}, "of shape (5, 3)"),
        ("rows", {**good, "y": good["y"][:3]}, "all of them as many"),
        ("dtype", {**good, "y": good["y"].astype(numpy.float32)}, "of float32"),
    ):
        numpy.savez(tmp_path / f"{name}.npz", **data)
        device = start_device(node, tmp_path / f"{name}.npz", "strict", "--cycles", "1")
        _, err = device.communicate(timeout=60)
        assert device.returncode == 1
        assert said in err
    device = start_device(node, tmp_path / "nowhere.npz", "strict")
    assert "cannot be read" in device.communicate(timeout=60)[1]
