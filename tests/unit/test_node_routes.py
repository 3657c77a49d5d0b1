"""The Node's HTTP routes as anyone may call them: closed by default, 0.2.9's shapes, unharmed by bad input."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import save
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler

from grid_jupyter.cycles.service import Cycles
from grid_jupyter.identity.tokens import new_token
from grid_jupyter.link.bulk import upload
from grid_jupyter.link.http import Address
from grid_jupyter.node.service import GridNode, local_workers
from grid_jupyter.server import node_streams
from grid_jupyter.server.door import MAX_BODY_BYTES, MAX_JSON_BYTES, application, http_server
from grid_jupyter.server.node_door import NODE_RULES, node_application
from grid_jupyter.server.pace import Pace
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.wire.worker import WorkerLimits

UPLOAD = "0123456789abcdef" * 2
JUPYTER_TOKEN = "9f" * 24
TABLE = save({"data": torch.arange(6.0).reshape(2, 3)})


@dataclass
class Served:
    """A Node of this process on a port of its own, its loop in a thread."""

    loop: asyncio.AbstractEventLoop
    node: GridNode
    port: int
    tokens: dict[str, str]
    blobs: Path

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def ask(
        self, method: str, path: str, body: object = None, *, token: str = "", headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """One request; the answer has its `.data` and, where it is JSON, its `.json`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, sent)
            answer: Any = connection.getresponse()
            answer.data = answer.read()
        finally:
            connection.close()
        answer.json = json.loads(answer.data) if answer.data.startswith((b"{", b"[")) else None
        return answer  # type: ignore[no-any-return]

    def publish(self, token: str, upload: str = UPLOAD, **fields: Any) -> Any:
        put: Any = self.ask("PUT", f"/data-centric/uploads/{upload}", TABLE, token=token)
        assert put.status == 200, put.json
        body = {"upload": upload, "kind": "tensor", **fields}
        return self.ask("POST", "/data-centric/datasets", body, token=token)


def _serve(state: Path, pace: Callable[[], Pace] = Pace, **options: Any) -> Iterator[Served]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> tuple[GridNode, Cycles, Any, int, dict[str, str]]:
        limits = WorkerLimits(memory_bytes=1 << 30, operation_s=10.0, threads=1)
        workers = local_workers(limits, spare_workers=2)
        node = await GridNode.open(state, name="Bob <b>", workers=workers, max_upload_bytes=8 << 20, **options)
        await node.start()
        tokens = {}
        for name, role in (("Bob", "Owner"), ("Ana", "User"), ("Alice", "Publisher"), ("Paul", "Publisher")):
            await node.accounts.ensure(name, role)
            tokens[name] = await node.accounts.issue_token(name)
        cycles = Cycles(node.database, BlobStore(state / "training"))
        await cycles.start()
        server = http_server(node_application(node, lambda: "http://127.0.0.1:3000", cycles, pace=pace))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        return node, cycles, server, sockets[0].getsockname()[1], tokens

    async def end() -> None:
        server.stop()
        await cycles.stop()
        await node.stop()
        await server.close_all_connections()

    try:
        node, cycles, server, port, tokens = asyncio.run_coroutine_threadsafe(begin(), loop).result(60)
        yield Served(loop, node, port, tokens, state / "blobs")
        asyncio.run_coroutine_threadsafe(end(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """No guests, no public tags."""
    yield from _serve(tmp_path_factory.mktemp("closed"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Guests may search and compute, tags are public."""
    yield from _serve(tmp_path_factory.mktemp("opened"), guests=True, public_tags=True)


def test_an_upload_that_comes_too_slowly_is_kept_and_the_client_goes_on_where_it_was(tmp_path: Path):
    data, starts = save({"x": torch.zeros(250_000)}), []

    def pieces(offset: int) -> Iterator[memoryview]:
        starts.append(offset)
        for at in range(offset, len(data), 1 << 16):
            if len(starts) == 1 and at > 400_000:
                time.sleep(0.5)  # a line that is slow from here on
            yield memoryview(data)[at : at + (1 << 16)]

    serving = _serve(tmp_path, partial(Pace, 200_000, 0.5))
    served = next(serving)
    try:
        address, token = Address(f"http://127.0.0.1:{served.port}"), served.tokens["Bob"]
        path, head = f"/data-centric/uploads/{UPLOAD}", {"Authorization": f"Bearer {token}"}
        upload(address, path, "", pieces, len(data), head, "a table")
        assert len(starts) == 2, starts
        assert starts[1] > 400_000
        [kept] = served.blobs.iterdir()
        assert kept.read_bytes() == data
    finally:
        next(serving, None)


# ------------------------------------------------------------------ who may call what

OPEN = {
    ("GET", "/"),
    ("GET", "/data-centric/identity/?"),
    ("GET", "/data-centric/status/?"),
    ("GET", "/data-centric/dataset-tags/?"),
    ("GET", "/data-centric/session/?"),
    ("GET", "/data-centric/moved/([A-Za-z0-9_-]{1,64})"),
    ("POST", "/users/login/?"),
    ("POST", "/invites/accept/?"),
    ("POST", "/model-centric/authenticate/?"),  # of devices: what counts there is their worker_id and request_key
    ("POST", "/model-centric/cycle-request/?"),
    ("POST", "/model-centric/report/?"),
    ("PATCH", "/model-centric/report/?"),
    ("GET", "/model-centric/get-protocol/?"),
    ("GET", "/model-centric/req-join/?"),
    ("GET", "/model-centric/openapi.json"),
    ("POST", "/model-centric/metrics/?"),
    ("POST", "/model-centric/upload_stats/?"),
    ("POST", "/model-centric/save-fcm-token/?"),
    ("POST", "/model-centric/update-worker-status/?"),
    ("GET", "/model-centric/get-model/?"),
    ("GET", "/model-centric/get-plan/?"),
    ("GET", "/model-centric/speed-test/?"),
    ("POST", "/model-centric/speed-test/?"),
}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
OPEN_TO_GUESTS = {
    ("GET", "/data-centric/datasets/?"),
    ("POST", "/data-centric/search/?"),
    ("GET", "/data-centric/datasets/([0-9]{1,18})/([0-9]{1,18})/mock"),  # 404: there is no such data set
}


def _routes() -> list[tuple[str, str, str]]:
    """Every method of every route, with a path that fits it."""
    found = []
    for pattern, handler in NODE_RULES:
        path = pattern.replace("/?", "")
        for group, text in (
            ("([0-9a-f]{32})", UPLOAD),
            ("([0-9a-f]{16})", UPLOAD[:16]),
            ("(email|password|role|groups)", "role"),
            ("(approve|deny|ask|answer|revoke|withdraw)", "approve"),
            ("([A-Za-z0-9_-]{1,64})", "ticket"),
            ("([^/]{1,384})", "model"),
            ("([0-9]{1,18})", "1"),
            ("([0-9]+)", "1"),
        ):
            path = path.replace(group, text)
        assert re.fullmatch(pattern, path or "/"), f"{pattern} needs an example here"
        own = [m for m in METHODS if getattr(handler, m.lower()) is not getattr(RequestHandler, m.lower())]
        found += [(method, pattern, path or "/") for method in own]
    return found


@pytest.mark.parametrize(("method", "pattern", "path"), _routes())
def test_a_route_asks_strangers_for_a_credential(closed: Served, method: str, pattern: str, path: str):
    answer = closed.ask(method, path, b"{}")
    if (method, pattern) in OPEN:
        assert answer.status in (200, 400, 401), "reached without a credential"
    else:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json["code"] == "not-authenticated"


@pytest.mark.parametrize(("method", "pattern", "path"), _routes())
def test_where_guests_compute_only_searching_is_open_besides(opened: Served, method: str, pattern: str, path: str):
    answer = opened.ask(method, path, b'{"query": []}')
    if (method, pattern) in OPEN_TO_GUESTS:
        assert answer.status == (404 if pattern.endswith("/mock") else 200)
    elif (method, pattern) not in OPEN:
        assert answer.status == 401


@pytest.mark.parametrize(("method", "pattern", "path"), _routes())
def test_a_wrong_credential_is_refused_even_where_none_is_needed(opened: Served, method: str, pattern: str, path: str):
    answer = opened.ask(method, path, b"{}", token=new_token(opened.node.node_id))
    assert answer.status in (401, 429)
    assert answer.json["code"] in ("not-authenticated", "too-many-attempts")


def _wrong_credentials(served: Served) -> dict[str, str]:
    expired = served.run(served.node.accounts.issue_token("Ana", expires_s=1e-6))
    served.run(served.node.accounts.ensure("Gone", "User"))
    revoked = served.run(served.node.accounts.issue_token("Gone"))
    served.run(served.node.accounts.revoke_tokens("Gone"))
    own = served.tokens["Ana"]
    return {
        "unknown": new_token(served.node.node_id),
        "revoked": revoked,
        "expired": expired,
        "of another Node": new_token("0123456789abcdef"),
        "Jupyter's": JUPYTER_TOKEN,
        "nonsense": "gjt1_x",
        "one letter off": own[:-1] + ("a" if own[-1] != "a" else "b"),
        "upper case": own.upper(),
        "a JWT": "eyJhbGciOiJub25lIn0.eyJpZCI6MX0.",
        "very long": "x" * 10_000,
    }


def test_every_wrong_credential_is_answered_401_with_the_remedy_and_none_is_told_apart_from_unknown(tmp_path: Path):
    for served in _serve(tmp_path):
        wrong = _wrong_credentials(served)
        texts = {}
        for name, token in wrong.items():
            served.node.accounts._lockouts.__init__()  # each stands for itself here; the lock-out has tests of its own
            answer = served.ask("GET", "/data-centric/models", token=token)
            assert answer.status == 401, name
            assert token not in answer.data.decode()
            texts[name] = answer.json["error"]
        assert texts["unknown"] == texts["revoked"] == texts["one letter off"]
        assert "expired" in texts["expired"]
        assert "0123456789abcdef" in texts["of another Node"]
        assert "Jupyter" in texts["Jupyter's"]
        assert all("jupyter grid" in text or "owner" in text or "gave out" in text for text in texts.values())


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "TOKEN"},
        {"Authorization": "Basic TOKEN"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer  "},
        {"Authorization": "Bearer TOKEN TOKEN"},
        {"Authorization": ""},
        {"X-Token": "TOKEN"},
        {"private-key": "TOKEN"},
        {"Cookie": "token=TOKEN; _xsrf=TOKEN"},
        {"X-Grid-Session": "TOKEN"},
        {"X-Forwarded-User": "Bob"},
        {"X-XSRFToken": "TOKEN"},
    ],
)
def test_a_token_in_the_wrong_place_is_none(closed: Served, headers: dict[str, str]):
    token = closed.tokens["Bob"]
    sent = {name: value.replace("TOKEN", token) for name, value in headers.items()}
    for method, path in (
        ("GET", "/data-centric/models"),
        ("PUT", f"/data-centric/uploads/{UPLOAD}"),
        ("GET", "/users"),
    ):
        assert closed.ask(method, path, b"", headers=sent).status == 401


@pytest.mark.parametrize("query", ["?token=TOKEN", "?access_token=TOKEN", "?Authorization=Bearer%20TOKEN"])
def test_a_token_in_the_address_is_none(closed: Served, query: str):
    assert closed.ask("GET", "/data-centric/models" + query.replace("TOKEN", closed.tokens["Bob"])).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer TOKEN"},
        {"authorization": "bearer TOKEN"},
        {"token": "TOKEN"},
        {"Authorization": "token TOKEN"},
    ],
)
def test_a_token_is_taken_from_the_header_of_today_and_that_of_0_2_9(closed: Served, headers: dict[str, str]):
    sent = {name: value.replace("TOKEN", closed.tokens["Ana"]) for name, value in headers.items()}
    assert closed.ask("GET", "/data-centric/models", headers=sent).status == 200


# ------------------------------------------------------------------ shapes of 0.2.9


def test_identity_and_status_answer_as_in_0_2_9(closed: Served):
    assert closed.ask("GET", "/data-centric/identity/").json == {"success": True, "identity": "Bob <b>"}
    assert closed.ask("GET", "/data-centric/status/").json == {"success": True, "status": "OpenGrid"}


def test_the_card_shows_name_and_address_and_runs_no_foreign_markup(closed: Served):
    answer = closed.ask("GET", "/")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "Bob &lt;b&gt;" in answer.data.decode()
    assert "<b>" not in answer.data.decode()
    assert "http://127.0.0.1:3000" in answer.data.decode()
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_models_are_served_listed_downloaded_and_deleted(closed: Served):
    token = closed.tokens["Alice"]
    form = b"&".join([b"model_id=linear", b"allow_download=True", b"encoding=ISO-8859-1", b"model=" + _quoted(TABLE)])
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    served = closed.ask("POST", "/data-centric/serve-model/", form, token=token, headers=headers)
    assert served.json == {"success": True, "message": "Model saved with id: linear"}
    again = closed.ask("POST", "/data-centric/serve-model/", form, token=token, headers=headers)
    assert (again.status, again.json["code"]) == (409, "id-not-unique")
    assert closed.ask("GET", "/data-centric/models/", token=token).json == {"success": True, "models": ["linear"]}
    detailed = closed.ask("GET", "/data-centric/detailed-models-list/", token=token).json["models"]
    assert detailed == [
        {
            "id": "linear",
            "model_size": f"{len(TABLE) / 1000:g}KB",
            "allow_download": True,
            "allow_remote_inference": False,
            "mpc": False,
        }
    ]
    download = closed.ask("GET", "/data-centric/models/linear", token=closed.tokens["Ana"])
    assert download.data == TABLE
    assert download.headers["Content-Disposition"] == "attachment"
    assert closed.ask("DELETE", "/data-centric/models/linear", token=closed.tokens["Paul"]).status == 403
    assert closed.ask("DELETE", "/data-centric/models/linear", token=token).status == 200
    assert closed.ask("GET", "/data-centric/models/linear", token=token).status == 404


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model_id": ""}, 400),
        ({"model_id": "x" * 500}, 400),
        ({"mpc": "True"}, 400),
        ({"allow_remote_inference": "True"}, 400),
        ({"encoding": "utf-7"}, 400),
        ({"model": "not a model"}, 400),
        ({"model": "no"}, 400),
        ({"model": ""}, 400),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_and_nothing_is_kept(
    closed: Served, fields: dict[str, str], status: int
):
    form = {"model_id": "bad", "model": _quoted(TABLE).decode(), **fields}
    answer = closed.ask(
        "POST", "/data-centric/serve-model/", "&".join(f"{k}={v}" for k, v in form.items()).encode(),
        token=closed.tokens["Alice"], headers={"Content-Type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    assert answer.status == status
    assert closed.ask("GET", "/data-centric/models/", token=closed.tokens["Ana"]).json["models"] == []
    assert list(closed.blobs.iterdir()) == []


def _quoted(data: bytes) -> bytes:
    return quote(data.decode("latin-1")).encode()


def test_who_may_not_publish_serves_no_model_and_no_data(closed: Served):
    ana = closed.tokens["Ana"]
    assert closed.ask("PUT", f"/data-centric/uploads/{UPLOAD}", TABLE, token=ana).status == 403
    assert closed.ask("POST", "/data-centric/datasets", {"upload": UPLOAD, "kind": "tensor"}, token=ana).status == 403
    form = b"model_id=x&model=" + _quoted(TABLE)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert closed.ask("POST", "/data-centric/serve-model", form, token=ana, headers=headers).status == 403
    assert list(closed.blobs.iterdir()) == []


def test_a_shared_model_is_never_found(closed: Served):
    answer = closed.ask("POST", "/data-centric/search-encrypted-models", {"model_id": "x"}, token=closed.tokens["Ana"])
    assert (answer.status, answer.json["error"]) == (404, "Model ID not found!")


def test_workers_are_listed_for_their_own_callers(closed: Served):
    assert closed.ask("GET", "/data-centric/workers/", token=closed.tokens["Ana"]).json == {
        "success": True,
        "workers": [],
    }


# ------------------------------------------------------------------ data sets over HTTP


def test_a_data_set_goes_from_upload_to_publication_to_its_end(opened: Served):
    alice, ana = opened.tokens["Alice"], opened.tokens["Ana"]
    made = opened.publish(alice, tags=["#a", "#b"], description="two rows", allowed_users=["Ana"]).json
    assert (made["owner"], made["tags"], made["allowed_users"]) == ("Alice", ["#a", "#b"], ["Ana"])
    assert made["tensors"] == [{"name": "data", "dtype": "float32", "shape": [2, 3]}]
    assert opened.ask("GET", "/data-centric/dataset-tags").json == ["#a", "#b"]
    assert opened.ask("POST", "/data-centric/search", {"query": ["#b", "#a"]}).json == {"content": True}
    assert opened.ask("POST", "/data-centric/search", {"query": ["#b", "#c"]}).json == {"content": False}
    assert opened.ask("GET", "/data-centric/datasets", token=ana).json == [made]
    [as_guest] = opened.ask("GET", "/data-centric/datasets").json
    assert as_guest["allowed_users"] is None, "who may read is for readers to know"
    again = opened.ask("POST", "/data-centric/datasets", {"upload": UPLOAD, "kind": "tensor"}, token=alice).json
    assert again["id"] == made["id"], "a retry publishes nothing twice"
    where = f"/data-centric/datasets/{made['id']}"
    for other, status in (("Ana", 403), ("Paul", 403)):
        assert opened.ask("PATCH", where, {"allowed_users": [other]}, token=opened.tokens[other]).status == status
        assert opened.ask("DELETE", where, token=opened.tokens[other]).status == status
    assert opened.ask("PATCH", where, {"tags": ["#c"], "allowed_users": []}, token=alice).json["tags"] == ["#c"]
    assert opened.ask("GET", "/data-centric/datasets", token=ana).json[0]["allowed_users"] is None
    gone = opened.ask("DELETE", where, token=opened.tokens["Bob"])
    assert gone.json == {"dataset": made["id"], "versions": 1, "nbytes": len(TABLE), "sessions_ended": 0}
    assert list(opened.blobs.iterdir()) == []
    assert opened.ask("DELETE", where, token=alice).status == 404


def test_tags_are_private_where_their_owner_did_not_make_them_public(closed: Served):
    alice = closed.tokens["Alice"]
    made = closed.publish(alice, tags=["#secret-study"]).json
    assert closed.ask("GET", "/data-centric/dataset-tags").json == []
    assert closed.ask("GET", "/data-centric/dataset-tags", token=closed.tokens["Ana"]).json == ["#secret-study"]
    closed.ask("DELETE", f"/data-centric/datasets/{made['id']}", token=alice)


def test_a_data_set_of_others_cannot_be_seen_changed_or_ended_by_its_number(opened: Served):
    alice, ana, paul = (opened.tokens[name] for name in ("Alice", "Ana", "Paul"))
    made = opened.publish(alice, tags=["#hidden"], compute_users=["Ana"], public_tags=False).json
    where = f"/data-centric/datasets/{made['id']}"
    assert opened.ask("GET", "/data-centric/datasets", token=paul).json == []
    assert opened.ask("GET", "/data-centric/datasets").json == []
    assert opened.ask("POST", "/data-centric/search", {"query": ["#hidden"]}).json == {"content": False}
    assert opened.ask("GET", "/data-centric/dataset-tags", token=paul).json == []
    there = opened.ask("DELETE", where, token=paul)
    nowhere = opened.ask("DELETE", "/data-centric/datasets/10000000001", token=paul)
    assert (there.status, there.json) == (nowhere.status, nowhere.json) == (404, nowhere.json)
    assert opened.ask("PATCH", where, {"compute_users": ["Paul"]}, token=paul).status == 404
    assert opened.ask("GET", "/data-centric/datasets", token=ana).json[0]["id"] == made["id"]
    opened.ask("DELETE", where, token=alice)


def test_what_an_owner_says_about_jobs_is_kept_and_shown_without_the_names_of_others(opened: Served):
    alice, ana = opened.tokens["Alice"], opened.tokens["Ana"]
    said = {"automatic": ["Ana", "Paul"], "min_rows": 100, "epoch_metrics": True}
    made = opened.publish(alice, jobs=said).json
    assert (made["jobs"]["automatic"], made["jobs"]["min_rows"]) == (["Ana", "Paul"], 100)
    (seen,) = opened.ask("GET", "/data-centric/datasets", token=ana).json
    assert (seen["jobs"]["automatic"], seen["jobs"]["epoch_metrics"]) == (["Ana"], True)
    assert opened.ask("GET", "/data-centric/datasets").json[0]["jobs"]["automatic"] == []
    where = f"/data-centric/datasets/{made['id']}"
    second = opened.publish(alice, upload="b" * 32, dataset=made["id"]).json
    assert second["jobs"] == made["jobs"]  # a next version keeps it
    assert opened.ask("PATCH", where, {"jobs": {"jobs": False}}, token=ana).status == 403
    assert opened.ask("PATCH", where, {"description": "new"}, token=alice).json["jobs"] == made["jobs"]
    assert opened.ask("PATCH", where, {"jobs": {"jobs": False}}, token=alice).json["jobs"]["jobs"] is False
    assert opened.ask("PATCH", where, {"jobs": {"min_rows": 0}}, token=alice).status == 400
    opened.ask("DELETE", where, token=alice)


def test_a_list_of_requests_has_a_limit_and_says_where_the_rest_is(closed: Served):
    from grid_jupyter.node.policy import Rules
    from grid_jupyter.node.verdicts import JOB, Asked

    sources = (Rules(1, "Bob", (), None),)
    for number in range(20):
        shown = {"plan": "x" * (900 << 10)}
        asked = Asked(kind=JOB, key=f"{number}", asker="Ana", binding="0" * 64, sources=sources, shown=shown)
        closed.run(closed.node.requests.decide(asked))
    found = closed.ask("GET", "/data-centric/requests", token=closed.tokens["Bob"])
    assert len(found.data) < 17 << 20
    assert [next(iter(one["shown"])) for one in found.json] == ["plan"] * 18 + ["shown by"] * 2
    last = closed.ask("GET", f"/data-centric/requests/{found.json[-1]['id']}", token=closed.tokens["Bob"]).json
    assert len(last["shown"]["plan"]) == 900 << 10


def test_changes_of_accounts_and_attempts_at_them_are_in_the_audit_log(closed: Served):
    ana, bob = closed.tokens["Ana"], closed.tokens["Bob"]
    assert closed.ask("POST", "/groups", {"name": "ward 7"}, token=bob).status == 200
    for number in range(20):
        assert closed.ask("DELETE", f"/groups/{number + 1000}", token=ana).status == 403
        assert closed.ask("DELETE", f"/users/{number + 1000}").status == 401
    assert closed.ask("POST", "/users/search", {"username": "Ana"}, token=bob).status == 200

    async def log() -> list[Any]:
        await closed.node.audit.flush()
        return [row for row in await closed.node.audit.table.listed() if row.event.startswith("accounts")]

    found = [(row.event, row.actor, row.details["method"], row.details["path"]) for row in closed.run(log())]
    assert ("accounts", "Bob", "POST", "/groups") in found
    assert found.count(("accounts-refused", "Ana", "DELETE", "GroupDoor")) == 1  # the others are counted
    assert found.count(("accounts-refused", "", "DELETE", "User")) == 1
    assert not [one for one in found if "search" in one[3].lower()]


def test_only_its_owner_publishes_versions_of_a_data_set(opened: Served):
    made = opened.publish(opened.tokens["Alice"]).json
    stolen = opened.publish(opened.tokens["Paul"], upload="a" * 32, dataset=made["id"])
    assert (stolen.status, stolen.json["code"]) == (403, "send-not-permitted")
    second = opened.publish(opened.tokens["Alice"], upload="b" * 32, dataset=made["id"]).json
    assert (second["id"], second["version"]) == (made["id"], 2)
    gone = opened.ask("DELETE", f"/data-centric/datasets/{made['id']}", token=opened.tokens["Alice"]).json
    assert gone["versions"] == 2


def test_an_upload_is_published_by_nobody_but_the_one_who_sent_it(opened: Served):
    assert opened.ask("PUT", f"/data-centric/uploads/{'c' * 32}", TABLE, token=opened.tokens["Alice"]).status == 200
    body = {"upload": "c" * 32, "kind": "tensor"}
    assert opened.ask("POST", "/data-centric/datasets", body, token=opened.tokens["Paul"]).status == 404
    made = opened.ask("POST", "/data-centric/datasets", body, token=opened.tokens["Alice"]).json
    opened.ask("DELETE", f"/data-centric/datasets/{made['id']}", token=opened.tokens["Alice"])


HOSTILE_TEXT = "<img src=x onerror=alert(1)>\x1b[31m\x00‮ '; DROP TABLE dataset; -- é 漢"


def test_tags_and_descriptions_are_kept_as_text_whatever_they_hold(opened: Served):
    made = opened.publish(opened.tokens["Alice"], tags=[HOSTILE_TEXT], description=HOSTILE_TEXT, name=HOSTILE_TEXT).json
    assert (made["tags"], made["description"], made["name"]) == ([HOSTILE_TEXT], HOSTILE_TEXT, HOSTILE_TEXT)
    answer = opened.ask("GET", "/data-centric/dataset-tags")
    assert answer.json == [HOSTILE_TEXT]
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    opened.ask("DELETE", f"/data-centric/datasets/{made['id']}", token=opened.tokens["Alice"])


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"tags": [""]}, 400, "empty"),
        ({"tags": ["  \t"]}, 400, "empty"),
        ({"tags": ["x" * 10_000]}, 413, "256"),
        ({"tags": [f"#{n}" for n in range(65)]}, 413, "64"),
        ({"tags": "#one", "upload": "e" * 32}, 400, "Invalid JSON"),
        ({"tags": [1], "upload": "e" * 32}, 400, "Invalid JSON"),
        ({"description": "x" * 20_001}, 413, "20000"),
        ({"name": "x" * 129}, 413, "128"),
        ({"allowed_users": [""]}, 400, "1 to 128"),
        ({"allowed_users": ["x" * 129]}, 400, "1 to 128"),
        ({"allowed_users": [f"u{n}" for n in range(1001)]}, 413, "1000"),
        ({"allowed_users": "Alice", "upload": "e" * 32}, 400, "Invalid JSON"),
        ({"compute_users": ["", "Ana"]}, 400, "1 to 128"),
        ({"jobs": {"automatic": [""]}}, 400, "1 to 128"),
        ({"jobs": {"automatic": [f"u{n}" for n in range(1001)]}}, 413, "1000"),
        ({"jobs": {"min_rows": 0}}, 400, "min_rows"),
        ({"jobs": {"min_steps": -1}}, 400, "min_steps"),
        ({"jobs": {"anyone": True}, "upload": "e" * 32}, 400, "anyone"),
        ({"jobs": None, "upload": "e" * 32}, 400, "Invalid JSON"),
        ({"kind": "pickle"}, 400, "one of"),
        ({"kind": "table", "columns": [{"name": "a", "dtype": "int64"}]}, 400, "col/"),
        ({"kind": "tensor", "columns": [{"name": "a", "dtype": "int64"}]}, 400, "table"),
        ({"kind": "table", "columns": [{"name": f"c{n}", "dtype": "int64"} for n in range(10_001)]}, 413, "10000"),
        ({"owner": "Bob", "upload": "e" * 32}, 400, "owner"),
        ({"dataset": -1}, 404, ""),
        ({"dataset": 1 << 63}, 404, ""),
        ({"dataset": (1 << 63) - 1}, 404, ""),
        ({"upload": "d" * 32}, 404, "send the bytes again"),
        ({"upload": "../../grid.db"}, 404, ""),
    ],
)  # fmt: skip
def test_a_publication_that_does_not_hold_is_refused_with_the_limit_or_the_reason(
    opened: Served, fields: dict[str, Any], status: int, says: str
):
    alice = opened.tokens["Alice"]
    if "upload" in fields:  # nothing was uploaded
        answer = opened.ask("POST", "/data-centric/datasets", {"kind": "tensor", **fields}, token=alice)
    else:
        answer = opened.publish(alice, **{"kind": "tensor", **fields})
    assert answer.status == status, answer.json
    assert says in answer.json["error"]
    assert opened.ask("GET", "/data-centric/datasets").json == []
    assert list(opened.blobs.iterdir()) == [], "nothing half-published"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"5", b'"x"', b"{}", b'{"upload": 1}', b'{"upload":"\xff"}', b'{"upload":"\\ud800"}',
        b"[" * 100_000, b'{"a":' * 100_000, b'{"upload": "' + b"x" * 1000 + b'"', b"\x00" * 100, b"<xml/>",
    ],
)  # fmt: skip
def test_a_body_that_is_no_such_json_is_answered_400(opened: Served, body: bytes):
    for method, path in (
        ("POST", "/data-centric/datasets"),
        ("POST", "/data-centric/search"),
        ("POST", "/users/login"),
    ):
        answer = opened.ask(method, path, body, token=opened.tokens["Alice"])
        assert answer.status == 400
        assert answer.json["error"].startswith("Invalid JSON format.")


def test_a_body_over_the_limit_is_refused(opened: Served):
    answer = opened.ask("POST", "/data-centric/search", b" " * (MAX_JSON_BYTES + 1), token=opened.tokens["Ana"])
    assert answer.status == 413
    with socket.create_connection(("127.0.0.1", opened.port), 30) as raw:
        raw.sendall(
            f"POST /data-centric/search HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
        )
        assert raw.recv(100).startswith((b"HTTP/1.1 4", b""))
    assert opened.ask("GET", "/data-centric/status").status == 200


# ------------------------------------------------------------------ uploads


def _upload_head(token: str) -> str:
    return f"PUT /data-centric/uploads/{UPLOAD} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 32, "0" * 31, "0" * 33, UPLOAD + "/x", "%2e%2e", ""])
def test_an_upload_has_an_id_of_the_right_form(opened: Served, name: str):
    assert opened.ask("PUT", f"/data-centric/uploads/{name}", TABLE, token=opened.tokens["Alice"]).status == 404


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        TABLE[:-1],
        TABLE + b"x",
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95" + bytes(100),
        b"\xff" * 8 + b"{}",
    ],
)
def test_bytes_that_are_no_safetensors_are_refused_and_not_kept(opened: Served, data: bytes):
    answer = opened.ask("PUT", f"/data-centric/uploads/{UPLOAD}", data, token=opened.tokens["Alice"])
    assert answer.status in (400, 413)
    assert list(opened.blobs.iterdir()) == []


def test_an_upload_over_the_limit_is_refused_before_its_bytes_are_taken(opened: Served):
    with socket.create_connection(("127.0.0.1", opened.port), 30) as raw:
        head = _upload_head(opened.tokens["Alice"])
        raw.sendall(f"{head}Content-Length: {9 << 20}\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    assert list(opened.blobs.iterdir()) == []


@pytest.mark.parametrize("length", ["", "Content-Length: -1", "Content-Length: x", f"Content-Length: {1 << 70}",
                                    "Transfer-Encoding: chunked", "Content-Length: 5, 6"])  # fmt: skip
def test_an_upload_says_its_length(opened: Served, length: str):
    with socket.create_connection(("127.0.0.1", opened.port), 30) as raw:
        head = _upload_head(opened.tokens["Alice"])
        raw.sendall(f"{head}{length}\r\n\r\n".encode())
        assert raw.recv(100)[:10] in (b"HTTP/1.1 4", b"")
    assert list(opened.blobs.iterdir()) == []


def test_an_upload_that_is_broken_off_and_not_taken_up_again_leaves_nothing_behind(
    opened: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(opened.node.datasets.uploads, "unfinished_s", 0.1)
    with socket.create_connection(("127.0.0.1", opened.port), 30) as raw:
        head = _upload_head(opened.tokens["Alice"])
        raw.sendall(f"{head}Content-Length: {4 << 20}\r\n\r\n".encode() + bytes(1 << 20))
        _until(lambda: any(one.stat().st_size for one in opened.blobs.iterdir()))
    _until(lambda: not list(opened.blobs.iterdir()))


def test_an_upload_that_is_sent_again_replaces_the_first(opened: Served):
    alice = opened.tokens["Alice"]
    other = save({"data": torch.zeros(7)})
    opened.ask("PUT", f"/data-centric/uploads/{UPLOAD}", other, token=alice)
    made = opened.publish(alice).json
    assert made["tensors"][0]["shape"] == [2, 3]
    assert len(list(opened.blobs.iterdir())) == 1
    opened.ask("DELETE", f"/data-centric/datasets/{made['id']}", token=alice)


# ------------------------------------------------------------------ bulk transfers of sessions


@pytest.mark.parametrize("secret", ["", "x", "x" * 43, "../", "gjt1_x"])
def test_bulk_transfers_ask_for_the_secret_of_a_session(opened: Served, secret: str):
    headers = {"X-Grid-Session": secret}
    assert opened.ask("GET", "/data-centric/released/x", headers=headers).status == 401
    put = opened.ask("PUT", "/data-centric/values/1?dtype=float32&shape=[1]", bytes(4), headers=headers)
    assert put.status == 401


def test_a_session_is_not_opened_by_a_web_page(opened: Served):
    upgrade = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Origin": "http://evil.example",
    }  # fmt: skip
    assert opened.ask("GET", "/data-centric/session", headers=upgrade).status == 403


# ------------------------------------------------------------------ what an answer shows


def test_answers_name_no_server_set_no_cookie_and_are_not_stored(opened: Served):
    for method, path in (("GET", "/"), ("GET", "/data-centric/models"), ("GET", "/nowhere"), ("POST", "/users/login")):
        headers = opened.ask(method, path, b"{").headers
        assert headers["Server"] is None
        assert headers["Set-Cookie"] is None
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/nowhere", "/data-centric/", "/data-centric/datasets/x", "/data-centric/datasets/-1", "//", "/%00",
             "/data-centric/datasets/" + "9" * 19, "/owner/status", "/static/../grid.db", "/..%2fgrid.db"]
)  # fmt: skip
def test_what_is_not_here_is_a_404_in_json(opened: Served, path: str):
    answer = opened.ask("GET", path, token=opened.tokens["Bob"])
    assert (answer.status, answer.json["code"]) == (404, "not-found")


def test_a_method_that_a_route_lacks_is_a_405(opened: Served):
    assert opened.ask("DELETE", "/data-centric/status", token=opened.tokens["Bob"]).status == 405


def test_a_fault_of_ours_is_a_500_that_tells_nothing(opened: Served, monkeypatch: pytest.MonkeyPatch):
    async def fails(*args: Any, **options: Any) -> Any:
        raise RuntimeError("a secret in /home/bob")

    monkeypatch.setattr(opened.node.models, "list", fails)
    answer = opened.ask("GET", "/data-centric/models", token=opened.tokens["Ana"])
    assert answer.status == 500
    assert answer.json == {"error": "internal error", "code": "grid-error"}


def test_pipelined_garbage_closes_its_own_connection_only(opened: Served):
    for garbage in (
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" + bytes(200),
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
    ):
        with socket.create_connection(("127.0.0.1", opened.port), 30) as raw:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            try:
                raw.recv(1000)
            except ConnectionResetError:
                pass
        assert opened.ask("GET", "/data-centric/status").status == 200


def _until(condition: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(3000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("this did not happen in time")


@pytest.mark.parametrize("size", [24 << 20, 250 << 10])
def test_a_reader_who_takes_nothing_is_cut_off_and_one_who_takes_his_time_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
):
    monkeypatch.setattr(node_streams, "STALL_S", 0.5)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(size)
    sent: list[str] = []

    class Large(node_streams.NodeDoor):
        open_to_all = frozenset({"GET"})

        async def get(self) -> None:
            await self.send_blob(os.open(large, os.O_RDONLY), size)
            sent.append(self.request.path)

    async def take(port: int, path: str, pause_s: float) -> int:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        narrow.connect(("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=narrow, limit=min(1 << 16, size >> 6))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        taken = 0
        try:
            while pause_s and (data := await reader.read(1 << 20)):
                taken += len(data)
                await asyncio.sleep(pause_s)
            deadline = time.monotonic() + 20
            while path not in sent:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            while not pause_s and (data := await reader.read(1 << 20)):
                taken += len(data)
        except ConnectionError:
            pass
        finally:
            writer.close()
        return taken

    async def work() -> list[int]:
        server = http_server(application([("/.*", Large)], None))  # type: ignore[arg-type]
        (listening,) = bind_sockets(0, "127.0.0.1")
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        server.add_sockets([listening])
        port = listening.getsockname()[1]
        try:
            return list(await asyncio.gather(take(port, "/deaf", 0), take(port, "/slow", 0.002)))
        finally:
            server.stop()
            await server.close_all_connections()

    deaf, slow = asyncio.run(work())
    assert deaf < size < slow
