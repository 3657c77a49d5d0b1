"""The OpenAPI document of the panel's routes, held against the doors and against what they answer over a real Node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from jupyter_process import REAL_NODE
from openapi_contract import Contract, nameless, routes
from test_panel_api import running, told
from tornado.httpclient import HTTPClientError


@pytest.fixture
def jp_server_config(jp_server_config: dict[str, Any]) -> dict[str, Any]:
    jp_server_config["ServerApp"]["allow_unauthenticated_access"] = False
    jp_server_config["GridExtension"]["node_command"] = REAL_NODE
    return jp_server_config


async def document(jp_fetch: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await jp_fetch("grid", "api", "openapi.json")).body)
    return found


async def test_each_route_of_the_extension_is_in_the_document_and_no_other(jp_serverapp, jp_fetch, jp_base_url):
    contract = Contract(await document(jp_fetch))
    assert contract.document["servers"] == [{"url": jp_base_url}]
    own = [(f"/{pattern}", handler) for pattern, handler in jp_serverapp.web_app.settings["grid_jupyter"].handlers]
    assert nameless(contract.operations()) == set(routes(own, "/grid/api/"))


@pytest.mark.parametrize("header", ["", "token wrong", "Bearer gjt1_a_b"])
async def test_a_stranger_does_not_get_the_document(jp_fetch, header):
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("grid", "api", "openapi.json", headers={"Authorization": header})
    assert refused.value.code == 403
    assert b"paths" not in refused.value.response.body


async def test_what_the_routes_answer_is_as_the_document_says(jp_serverapp, jp_fetch, jp_ws_fetch, jp_root_dir: Path):
    contract = Contract(await document(jp_fetch))
    pandas.DataFrame({"name": ["Ana"], "age": [31.0]}).to_csv(jp_root_dir / "people.csv", index=False)

    async def call(method: str, route: str, body: Any = None, expect: int = 200, **headers: str) -> Any:
        path, _, query = route.partition("?")
        params = dict(part.split("=") for part in query.split("&") if part)
        try:
            answer = await jp_fetch(
                "grid", "api", *path.split("/"), method=method, params=params, headers=headers, request_timeout=90,
                body=None if body is None else json.dumps(body), allow_nonstandard_methods=True,
            )  # fmt: skip
        except HTTPClientError as error:
            answer = error.response
        assert answer.code == expect, answer.body
        media = answer.headers.get("Content-Type", "")
        contract.check(method, f"/grid/api/{route}", answer.code, media, answer.body, body)
        return json.loads(answer.body) if media.startswith("application/json") else answer.body.decode()

    await call("GET", "status")
    await call("GET", "datasets", Authorization="token wrong", expect=403)
    await running(jp_serverapp)
    await call("POST", "node/start", expect=409)
    await call("GET", "status")
    await call("POST", "preview", {"path": "people.csv"})
    await call("POST", "preview", {"path": "none.csv"}, expect=404)
    rules = {"name": "people", "tags": ["#people"], "description": "", "jobs": {"automatic": ["Ann"]}}
    made = await call("POST", "publish", {"path": "people.csv", "publish": rules})
    await call("POST", "publish", {"path": "people.csv", "publish": {"mock": -1}}, expect=400)
    number = made["info"]["id"]
    assert len((await call("GET", "datasets"))["datasets"]) == 1
    await call("PATCH", f"datasets/{number}", {"tags": ["#folk"], "allowed_users": ["Ann"]})
    await call("PATCH", f"datasets/{number}", {"tag": []}, expect=400)
    await call("PATCH", f"datasets/{number + 1}", {"tags": []}, expect=404)
    await call("DELETE", f"datasets/{number}")
    await call("DELETE", f"datasets/{number}", expect=404)
    await call("GET", "network")
    await call("POST", "network/search", {"network": "", "tags": ["#x"]}, expect=404)
    await call("GET", "requests?state=approved")
    await call("GET", "requests?state=.", expect=400)
    await call("POST", "requests/7/approve", {}, expect=404)
    await call("POST", "requests/7/deny", {"text": "x" * (1 << 20)}, expect=413)
    assert "grid_datasets 0.0" in await call("GET", "metrics")
    await call("GET", "jobs")
    await call("DELETE", "jobs/0123456789abcdef", expect=404)
    await call("GET", "trainings")
    await call("POST", "trainings", {"name": "none", "version": "1"}, expect=404)
    await call("GET", "trainings/metrics?name=none", expect=404)
    await call("GET", "trainings/metrics?name=none&after=x", expect=400)
    socket = await jp_ws_fetch("grid", "api", "events")
    contract.component("Event", await told(socket, lambda event: event["changed"]))
    socket.close()
    assert (await call("POST", "node/stop"))["state"] == "stopped"
    await call("GET", "datasets", expect=503)
    asked = {(method, path) for method, path, _ in contract.seen}
    assert contract.operations() - asked == {("GET", "/grid/api/events"), ("GET", "/grid/api/openapi.json")}
