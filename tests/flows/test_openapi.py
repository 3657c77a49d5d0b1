"""The OpenAPI document of training, held against the Node's doors and against all that they really answer."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from conftest import World
from node_world import GridProcess, until
from openapi_contract import Contract, nameless, routes
from safetensors.numpy import save
from websockets.sync.client import ClientConnection, connect

from grid_jupyter import training_plan
from grid_jupyter.server.node_door import NODE_RULES
from grid_jupyter.server.training_api import training_document

BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def node(world: World) -> GridProcess:
    """A Node on which Pat may host, Ann may not, and Olga is an owner."""
    made = world.start("node", "Described")
    for name, role in (("Pat", "Publisher"), ("Ann", "User"), ("Olga", "Owner")):
        made.user(name, role)
    return made


@pytest.fixture(scope="module")
def contract(node: GridProcess) -> Contract:
    """What the running Node says of itself, to anybody."""
    status, told = node.call("GET", "/model-centric/openapi.json")
    assert status == 200
    return Contract(told)


@pytest.fixture(scope="module")
def model() -> dict[str, numpy.ndarray]:
    torch.manual_seed(7)
    return {name: one.numpy() for name, one in torch.nn.Linear(4, 2).state_dict().items()}


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    module = torch.nn.Linear(4, 2)
    made = training_plan(module, torch.nn.functional.cross_entropy, torch.optim.SGD(module.parameters(), 0.1),
                         inputs=(torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64)))  # fmt: skip
    told: dict[str, Any] = json.loads(made.to_bytes())
    return told


class Caller:
    """Asks the Node, and holds what comes back against the document."""

    def __init__(self, node: GridProcess, contract: Contract) -> None:
        self._node, self._contract = node, contract
        self._tokens = {name: node.user(name, role) for name, role in ROLES.items()}

    def __call__(
        self, method: str, path: str, body: Any = None, *, user: str = "", expect: int = 200, **headers: str
    ) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if user:
            sent["Authorization"] = f"Bearer {self._tokens.get(user, 'gjt1_a_b')}"
        connection = self._node.connection()
        try:
            connection.request(method, f"/model-centric/{path}", data, sent)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        assert answer.status == expect, text[:300]
        media = answer.headers.get("Content-Type", "")
        json_sent = None if data is None or isinstance(body, bytes) else body
        self._contract.check(method, f"/model-centric/{path}", answer.status, media, text, json_sent)
        return json.loads(text) if media.startswith("application/json") and text else text


ROLES = {"Pat": "Publisher", "Ann": "User", "Olga": "Owner"}


@pytest.fixture(scope="module")
def call(node: GridProcess, contract: Contract) -> Caller:
    return Caller(node, contract)


@pytest.fixture
def socket(node: GridProcess) -> Iterator[ClientConnection]:
    with connect(node.address.replace("http", "ws") + "/") as made:
        yield made


def test_each_route_of_the_doors_is_in_the_document_and_no_other(contract: Contract):
    assert nameless(contract.operations()) == set(routes(NODE_RULES, "/model-centric/"))


def test_the_node_serves_the_document_that_its_code_makes(contract: Contract):
    assert contract.document == json.loads(json.dumps(training_document()))


def test_what_needs_a_credential_is_refused_without_one_and_nothing_else(contract: Contract, node: GridProcess):
    for method, path in sorted(contract.operations()):
        asked = path.replace("{upload_id}", "0" * 32)
        status, _ = node.call(method, asked, b"{}" if method in ("POST", "PUT", "PATCH") else None)
        closed = contract.document["paths"][path][method.lower()].get("security") != []
        assert not closed or status == 401, f"{method} {path} is said to need a credential, and answers {status}"
        assert closed or status != 401 or "worker_id" in str(contract.document["paths"][path]), f"{method} {path}"


def test_a_whole_cycle_and_its_refusals_are_as_the_document_says(
    call: Caller, contract: Contract, model: dict[str, numpy.ndarray], plan: dict[str, Any]
):
    file = save(model)
    config = {"name": "told", "version": "1.0", "lr": 0.1}
    server = {"max_diffs": 1, "num_cycles": 1, "minimum_upload_speed": 1, "cycle_length": 600, "max_workers": 4}
    upload = secrets.token_hex(16)
    hosting = {"model": upload, "plans": {"training_plan": plan}, "client_config": config, "server_config": server}

    # hosting
    call("PUT", f"uploads/{upload}", file, expect=401, **BYTES)
    call("PUT", f"uploads/{upload}", file, user="Ann", expect=403, **BYTES)
    call("HEAD", f"uploads/{upload}", user="Pat", expect=404)
    call("PATCH", f"uploads/{upload}", file, user="Pat", expect=404, Upload_Offset="0")
    call("POST", "host-training", hosting, user="Pat", expect=400)
    call("PUT", f"uploads/{upload}", file, user="Pat", **BYTES)
    call("HEAD", f"uploads/{upload}", user="Pat")
    call("POST", "host-training", hosting, user="Ann", expect=403)
    call("POST", "host-training", hosting, expect=401)
    call("POST", "host-training", {**hosting, "server_config": {"max_diff": 1}}, user="Pat", expect=400)
    call("PUT", f"uploads/{upload}", file, user="Pat", **BYTES)
    call("POST", "host-training", hosting, user="Pat")
    call("PUT", f"uploads/{upload}", file, user="Pat", **BYTES)
    call("POST", "host-training", hosting, user="Pat", expect=409)

    # a device comes
    call("POST", "authenticate", {"model_name": "nobody's"}, expect=404)
    call("POST", "authenticate", {"model": 1}, expect=400)
    call("POST", "authenticate", {"model_name": "told"}, user="a stranger", expect=401)
    call("POST", "authenticate", b" " * ((1 << 20) + 1), expect=413)
    worker = call("POST", "authenticate", {"model_name": "told", "ram_size": 1.5})["worker_id"]
    where = f"speed-test?worker_id={worker}&random=1"
    call("GET", f"{where}&is_ping=1")
    call("GET", "speed-test?worker_id=none", expect=404)
    call("GET", "speed-test", expect=400)
    call("POST", where, b"x" * 10_000, **BYTES)
    call("POST", where, b"", expect=413, Content_Length=str(65 << 20), **BYTES)
    assert call("GET", "req-join?model_name=told")["status"] == "accepted"
    call("GET", "req-join?model_name=none", expect=404)
    ask = {"worker_id": worker, "model": "told", "upload": 20, "download": 20.5, "ping": 3, "nonce": "a"}
    call("POST", "cycle-request", {**ask, "upload": -1}, expect=400)
    call("POST", "cycle-request", {**ask, "worker_id": "none"}, expect=404)
    assert "timeout" in call("POST", "cycle-request", {**ask, "upload": 0.5})
    place = call("POST", "cycle-request", ask)
    assert call("POST", "cycle-request", {**ask, "inline_bytes": 1 << 20}).endswith(file[8:])
    call("POST", "cycle-request", {**ask, "inline_bytes": -1}, expect=400)
    key = f"worker_id={worker}&request_key={place['request_key']}"
    wrong = f"worker_id={worker}&request_key=wrong"
    call("GET", f"get-model?{key}&model_id={place['model_id']}")
    call("GET", f"get-model?{key}&model_id={place['model_id'] + 1}", expect=404)
    call("GET", f"get-model?{wrong}&model_id=1", expect=401)
    call("GET", f"get-model?{key}&model_id=x", expect=400)
    number = place["plans"]["training_plan"]
    call("GET", f"get-plan?{key}&plan_id={number}&receive_operations_as=onnx")
    call("GET", f"get-plan?{key}&plan_id={number}&receive_operations_as=tfjs", expect=501)
    call("GET", f"get-plan?{key}&plan_id={number + 1}", expect=404)
    call("GET", f"get-protocol?{key}&protocol_id=1", expect=404)
    call("POST", "save-fcm-token", {"worker_id": worker, "fcm_device_token": "token"})
    call("POST", "save-fcm-token", {"worker_id": worker, "fcm_device_token": "t", "model": "other"}, expect=409)
    call("POST", "update-worker-status", {"worker_id": worker})
    call("POST", "update-worker-status", {"worker_id": "none"}, expect=404)

    # it measures, and reports
    tells = {"worker_id": worker, "request_key": place["request_key"]}
    call("POST", "metrics", {**tells, "metrics": {"loss": 1.5}})
    call("POST", "metrics", {**tells, "metrics": {"loss": 2.5}}, expect=409)
    call("POST", "metrics", {**tells, "metrics": {}}, expect=400)
    call("POST", "metrics", {**tells, "request_key": "wrong", "metrics": {"loss": 1}}, expect=401)
    stat = {**tells, "cycle_id": place["cycle_id"], "loss": 1.5}
    call("POST", "upload_stats", {"stats": [stat]})
    call("POST", "upload_stats", {"stats": [{**stat, "cycle_id": 9}]}, expect=400)
    call("POST", "upload_stats", {"stats": []}, expect=400)
    diff = save({name: numpy.ones_like(one) for name, one in model.items()})
    call("HEAD", f"report?{key}", expect=404)
    call("PATCH", f"report?{key}", diff, expect=404, Upload_Offset="0")
    call("POST", f"report?{wrong}", diff, expect=401, **BYTES)
    call("POST", f"report?{key}", diff[:-4], expect=400, **BYTES)
    call("POST", f"report?{key}", b"", expect=413, Content_Length=str(1 << 30), **BYTES)
    call("POST", "report", {**tells, "diff": "?"}, expect=400, Content_Type="application/json")
    text = base64.b64encode(diff).decode()
    call("POST", "report", {**tells, "diff": text, "num_samples": 3}, Content_Type="application/json")
    call("HEAD", f"report?{key}")
    call("POST", f"report?{key}&num_samples=3", diff, **BYTES)
    call("POST", f"report?{key}&next=1", diff, expect=400, **BYTES)
    contract.component("NextPlace", {"upload": 20, "nonce": "b"})
    asked = "%7B%22upload%22:20,%22download%22:20,%22ping%22:3%7D"
    assert call("POST", f"report?{key}&next={asked}", diff, **BYTES)["next"]["status"] == "rejected"
    call("POST", f"report?{key}", save({name: 2 * one for name, one in model.items()}), expect=409, **BYTES)

    # those who host follow
    until(lambda: call("GET", "cycle?name=told", user="Pat")["phase"] == "over")
    call("GET", "cycle?name=told&version=1.0&after=0&wait_s=1", user="Pat")
    call("GET", "cycle?name=none", user="Pat", expect=404)
    assert "timeout" not in call("POST", "cycle-request", ask)
    call("GET", "retrieve-model?name=told&checkpoint=2", user="Pat")
    call("GET", "retrieve-model?name=told&checkpoint=3", user="Pat", expect=404)
    call("GET", "retrieve-model?name=told&checkpoint=x", user="Pat", expect=400)
    for route in ("metrics", "training-metrics"):
        call("GET", f"{route}?name=told&version=1.0&after=0", user="Pat")
        call("GET", f"{route}?name=told&format=csv", user="Olga")
        call("GET", f"{route}?name=told&format=xml", user="Pat", expect=400)
        call("GET", f"{route}?name=told", user="Ann", expect=403)
    push = {"model": "told", "title": "Hello", "data": {"a": "b"}}
    call("POST", "send_push_event", push, user="Olga")
    call("POST", "send_push_event", {"model": "told"}, user="Olga", expect=400)
    call("POST", "send_push_event", push, user="Pat", expect=403)
    call("GET", "send_push_event", user="Olga")
    call("GET", "send_push_event", user="Pat", expect=403)
    call("POST", "end-training", {"name": "told"}, user="Ann", expect=403)
    call("POST", "end-training", {"name": "told"}, user="Pat")
    call("DELETE", "training?name=told&version=1.0", user="Ann", expect=403)
    call("DELETE", "training?name=told&version=1.0", user="Pat")
    call("DELETE", "training?name=told&version=1.0", user="Pat", expect=404)

    answered = {(method, path) for method, path, status in contract.seen if status == 200}
    never = {("GET", "/model-centric/get-protocol"), ("GET", "/model-centric/openapi.json")}
    # what was cut is tried where uploads and reports are (test_resumed_transfers.py)
    cut = {("PATCH", "/model-centric/uploads/{upload_id}"), ("PATCH", "/model-centric/report")}
    assert contract.operations() - answered == never | cut
    assert {status for _, _, status in contract.seen} == {200, 400, 401, 403, 404, 409, 413, 501}


def test_messages_of_the_websocket_have_the_schemas_that_the_document_names(
    call: Caller, contract: Contract, socket: ClientConnection, model: dict[str, numpy.ndarray], plan: dict[str, Any]
):
    upload = secrets.token_hex(16)
    call("PUT", f"uploads/{upload}", save(model), user="Pat", **BYTES)
    config = {"name": "heard", "version": "1"}
    call("POST", "host-training", {"model": upload, "plans": {"p": plan}, "client_config": config,
                                   "server_config": {}}, user="Pat")  # fmt: skip

    def say(kind: str, body: str, answer: str, **data: Any) -> Any:
        contract.component(body, data)
        socket.send(json.dumps({"type": kind, "data": data}))
        told = json.loads(socket.recv(30))
        contract.component(answer, told["data"])
        return told["data"]

    say("model-centric/authenticate", "Authenticate", "Failed", model_name="none")
    worker = say("model-centric/authenticate", "Authenticate", "Authenticated", model_name="heard")["worker_id"]
    say("model-centric/cycle-request", "CycleRequest", "Accepted", worker_id=worker, model="heard")
    say("model-centric/cycle-request", "CycleRequest", "Rejected", worker_id=worker, model="heard")
    say("model-centric/listen", "Listen", "Done", worker_id=worker)
    call("POST", "send_push_event", {"model": "heard", "text": "Hello"}, user="Olga")
    pushed = json.loads(socket.recv(30))
    assert pushed["type"] == "push"
    contract.component("Notice", pushed["data"])
    say("model-centric/notice-received", "Received", "Done", id=pushed["data"]["id"])


def test_the_document_names_the_keys_of_a_server_config(contract: Contract):
    contract.component("ServerConfig", {"min_diffs": 2, "strategy": {"name": "FedAdam"}, "max_diffs": None})
    with pytest.raises(Exception, match="min_diff"):
        contract.component("ServerConfig", {"min_diff": 2})
