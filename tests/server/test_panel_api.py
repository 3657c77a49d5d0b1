"""The panel's API over a real Node: what its owner sees and does, what is told as it happens, and who gets nothing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import psutil
import pytest
from jupyter_process import REAL_NODE
from jupyter_server.serverapp import ServerApp
from test_status_route import start
from tornado.httpclient import HTTPClientError
from tornado.websocket import WebSocketClientConnection

from grid_jupyter.server.extension import GridExtension
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.server.panel_api import GRID_API_RULES

ROUTES = [
    ("GET", "openapi.json"),
    ("GET", "status"),
    ("POST", "node/stop"),
    ("POST", "node/start"),
    ("POST", "node/restart"),
    ("GET", "datasets"),
    ("PATCH", "datasets/1"),
    ("DELETE", "datasets/1"),
    ("GET", "requests"),
    ("POST", "requests/1/approve"),
    ("POST", "requests/1/deny"),
    ("POST", "requests/1/ask"),
    ("POST", "requests/1/revoke"),
    ("GET", "jobs"),
    ("DELETE", "jobs/0123456789abcdef"),
    ("POST", "preview"),
    ("POST", "publish"),
    ("GET", "network"),
    ("GET", "trainings"),
    ("POST", "trainings"),
    ("GET", "trainings/metrics"),
    ("GET", "metrics"),
    ("POST", "network/search"),
]


@pytest.fixture
def jp_server_config(jp_server_config: dict[str, Any]) -> dict[str, Any]:
    jp_server_config["ServerApp"]["allow_unauthenticated_access"] = False
    jp_server_config["GridExtension"]["node_command"] = REAL_NODE
    return jp_server_config


async def running(jp_serverapp: ServerApp) -> GridExtension:
    """The extension, once its Node runs."""
    extension = await start(jp_serverapp)
    await extension.node.ready(60.0)
    return extension


async def told(socket: WebSocketClientConnection, wanted: Any) -> dict[str, Any]:
    """The next event of which `wanted` is true."""
    while True:
        message = await asyncio.wait_for(socket.read_message(), 30.0)
        assert message is not None, "the server hung up"
        event: dict[str, Any] = json.loads(message)
        if wanted(event):
            return event


@pytest.mark.parametrize("header", ["", "token wrong", "Bearer gjt1_a_b"])
async def test_a_stranger_gets_nothing_of_any_route(jp_fetch, header):
    for method, route in ROUTES:
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch(
                "grid", "api", *route.split("/"), method=method, headers={"Authorization": header},
                allow_nonstandard_methods=True,
            )  # fmt: skip
        assert refused.value.code == 403, route
        assert b"datasets" not in refused.value.response.body


@pytest.mark.parametrize("header", ["", "token wrong", "Bearer gjt1_a_b"])
async def test_a_stranger_gets_no_events(jp_ws_fetch, header):
    with pytest.raises(HTTPClientError) as refused:
        await jp_ws_fetch("grid", "api", "events", headers={"Authorization": header})
    assert refused.value.code == 403


def test_no_route_is_missing_in_these_lists():
    for pattern, door in GRID_API_RULES:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
            if method.lower() in vars(door) and not pattern.endswith("/events"):
                named = [route for asked, route in ROUTES if asked == method]
                assert any(re.fullmatch(pattern, f"grid/api/{route}") for route in named), (method, pattern)


async def test_whom_the_authorizer_refuses_gets_nothing(jp_serverapp, jp_fetch, jp_ws_fetch, monkeypatch):
    asked = []

    def is_authorized(handler: Any, user: Any, action: str, resource: str) -> bool:
        asked.append((action, resource))
        return False

    monkeypatch.setattr(jp_serverapp.authorizer, "is_authorized", is_authorized)
    for method, route in ROUTES:
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch("grid", "api", *route.split("/"), method=method, allow_nonstandard_methods=True)
        assert refused.value.code == 403
    with pytest.raises(HTTPClientError):
        await jp_ws_fetch("grid", "api", "events")
    assert set(asked) == {("read", "grid"), ("write", "grid")}


async def test_without_a_node_each_question_says_so(jp_fetch):
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("grid", "api", "datasets")
    answer = json.loads(refused.value.response.body)
    assert refused.value.code == 503
    assert "does not run" in answer["message"]
    assert answer["message"] == answer["error"]


async def test_what_the_node_refuses_is_told_in_its_words(jp_serverapp, jp_fetch):
    await running(jp_serverapp)
    for method, route, status in [
        ("DELETE", "datasets/12345678901", 404),
        ("POST", "requests/7/approve", 404),
        ("DELETE", "jobs/0123456789abcdef", 404),
        ("GET", "requests?state=..%2F", 400),
        ("GET", "trainings/metrics?name=none", 404),
        ("GET", "trainings/metrics?after=x", 400),
    ]:
        path, _, query = route.partition("?")
        params = dict([query.split("=")]) if query else None
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch(
                "grid", "api", *path.split("/"), method=method, params=params, allow_nonstandard_methods=True
            )
        assert refused.value.code == status, route
        assert json.loads(refused.value.response.body)["message"]
        assert b"Traceback" not in refused.value.response.body


async def test_a_body_that_is_no_object_or_too_long_is_refused(jp_serverapp, jp_fetch):
    await running(jp_serverapp)
    for body, status in [(b"[1]", 400), (b"{", 400), (b'{"text": "' + b"x" * (1 << 20) + b'"}', 413)]:
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch("grid", "api", "requests", "1", "deny", method="POST", body=body)
        assert refused.value.code == status


async def test_events_tell_the_status_at_once_and_what_to_ask_for_anew(jp_serverapp, jp_ws_fetch):
    await running(jp_serverapp)
    socket = await jp_ws_fetch("grid", "api", "events")
    event = await told(socket, lambda event: event["changed"])
    assert event["changed"] == ["datasets", "jobs", "node", "requests", "trainings"]
    assert event["status"]["state"] == "running"
    assert event["status"]["node"]["name"] == "Bob"
    socket.close()


async def test_stopping_and_starting_the_node_is_told_while_it_happens(jp_serverapp, jp_fetch, jp_ws_fetch):
    await running(jp_serverapp)
    socket = await jp_ws_fetch("grid", "api", "events")
    first = await told(socket, lambda event: event["changed"])
    stopped = json.loads((await jp_fetch("grid", "api", "node", "stop", method="POST", body="")).body)
    assert (stopped["state"], stopped["node"]) == ("stopped", None)
    assert "until it is started again" in stopped["detail"]
    await told(socket, lambda event: event["status"]["state"] == "stopped")
    await jp_fetch("grid", "api", "node", "start", method="POST", body="")
    again = await told(socket, lambda event: event["changed"])
    assert again["status"]["pid"] != first["status"]["pid"]
    await jp_fetch("grid", "api", "node", "restart", method="POST", body="")
    third = await told(socket, lambda event: event["changed"] and event["status"]["pid"] != again["status"]["pid"])
    assert third["status"]["node"]["id"] == first["status"]["node"]["id"]
    socket.close()


async def test_a_node_that_runs_is_not_started_twice(jp_serverapp, jp_fetch):
    await running(jp_serverapp)
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("grid", "api", "node", "start", method="POST", body="")
    assert refused.value.code == 409


async def test_the_owners_lists_are_those_of_the_owners_door(jp_serverapp, jp_fetch):
    extension = await running(jp_serverapp)
    door = OwnerClient(extension.node.running.socket)
    for route in ("datasets", "requests", "jobs", "trainings"):
        assert json.loads((await jp_fetch("grid", "api", route)).body) == await door.forward("GET", f"/owner/{route}")


async def test_who_closes_the_panel_hangs_up_at_the_node_too(jp_serverapp, jp_ws_fetch):
    extension = await running(jp_serverapp)

    def held() -> int:
        found = psutil.Process(extension.node.running.pid).net_connections("unix")
        return sum(one.laddr == extension.node.running.socket and one.status != "LISTEN" for one in found)

    before = held()
    for _ in range(3):
        socket = await jp_ws_fetch("grid", "api", "events")
        await told(socket, lambda event: event["changed"])
        socket.close()
    end = time.monotonic() + 30.0
    while held() > before and time.monotonic() < end:  # noqa: ASYNC110 - another process's connections
        await asyncio.sleep(0.1)
    assert held() <= before


async def test_a_start_waits_for_the_stop_before_it(jp_serverapp, jp_fetch):
    extension = await running(jp_serverapp)
    before = extension.node.running.pid
    stopping = asyncio.ensure_future(jp_fetch("grid", "api", "node", "stop", method="POST", body=""))
    await asyncio.sleep(0.05)
    await jp_fetch("grid", "api", "node", "start", method="POST", body="")
    await stopping
    again = await extension.node.ready(60.0)
    assert again.pid != before
    status = json.loads((await jp_fetch("grid", "api", "status")).body)
    assert (status["state"], status["pid"]) == ("running", again.pid)
