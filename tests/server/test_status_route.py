"""The route of the panel: closed to strangers, honest about the Node."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jupyter_server.serverapp import ServerApp
from tornado.httpclient import HTTPClientError

from grid_jupyter.server.extension import GridExtension, missing_packages


def extension_of(serverapp: ServerApp) -> GridExtension:
    (app,) = serverapp.extension_manager.extension_apps["grid_jupyter"]
    assert isinstance(app, GridExtension)
    return app


async def start(serverapp: ServerApp) -> GridExtension:
    """The fixture does not call the hook that Jupyter calls once its loop runs."""
    extension = extension_of(serverapp)
    await extension._start_jupyter_server_extension(serverapp)
    return extension


async def test_the_status_merges_the_supervisors_view_with_the_nodes_own(jp_serverapp, jp_fetch):
    extension = await start(jp_serverapp)
    running = await extension.node.ready(60.0)
    status = json.loads((await jp_fetch("grid", "api", "status")).body)
    assert status["state"] == "running"
    assert status["detail"] == ""
    assert status["pid"] == running.pid
    assert status["node"]["name"] == "Bob"
    assert status["node"]["address"] == running.address
    assert status["node"]["network"]["state"] == "none"


async def test_the_status_before_the_start_says_that_no_node_runs(jp_fetch):
    status = json.loads((await jp_fetch("grid", "api", "status")).body)
    assert (status["state"], status["node"]) == ("stopped", None)


async def test_a_stranger_gets_no_status(jp_fetch):
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("grid", "api", "status", headers={"Authorization": ""})
    assert refused.value.code == 403


async def test_a_wrong_token_gets_no_status(jp_fetch):
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("grid", "api", "status", headers={"Authorization": "token wrong"})
    assert refused.value.code == 403


async def test_the_authorizer_is_asked_about_the_grid_and_obeyed(jp_serverapp, jp_fetch, monkeypatch):
    asked = []

    def is_authorized(handler: Any, user: Any, action: str, resource: str) -> bool:
        asked.append((action, resource))
        return False

    monkeypatch.setattr(jp_serverapp.authorizer, "is_authorized", is_authorized)
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("grid", "api", "status")
    assert refused.value.code == 403
    assert asked == [("read", "grid")]


async def test_the_node_never_sees_jupyters_tokens(jp_serverapp, jp_fetch, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    extension = await start(jp_serverapp)
    await extension.node.ready(60.0)
    status = json.loads((await jp_fetch("grid", "api", "status")).body)
    assert [name for name in status["node"]["environment"] if name.startswith("JUPYTER")] == []


async def test_missing_packages_are_named_with_the_command_that_installs_them(jp_serverapp, jp_fetch, monkeypatch):
    monkeypatch.setattr("grid_jupyter.server.extension.NODE_NEEDS", ("json", "a_package_that_nobody_has"))
    assert missing_packages() == "a_package_that_nobody_has not installed: pip install 'grid-jupyter[node]'"
    await start(jp_serverapp)
    status = json.loads((await jp_fetch("grid", "api", "status")).body)
    assert status["state"] == "failed"
    assert "pip install 'grid-jupyter[node]'" in status["detail"]


class TestWithoutUnauthenticatedAccess:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        jp_server_config["ServerApp"]["allow_unauthenticated_access"] = False
        return jp_server_config

    async def test_a_stranger_gets_no_status_either(self, jp_fetch):
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch("grid", "api", "status", headers={"Authorization": ""})
        assert refused.value.code == 403

    async def test_the_owner_does(self, jp_fetch):
        assert (await jp_fetch("grid", "api", "status")).code == 200


class TestSwitchedOff:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        jp_server_config["GridExtension"]["enabled"] = False
        return jp_server_config

    async def test_no_node_is_started_and_the_status_says_why(self, jp_serverapp, jp_fetch):
        await start(jp_serverapp)
        status = json.loads((await jp_fetch("grid", "api", "status")).body)
        assert status["state"] == "stopped"
        assert "GridExtension.enabled" in status["detail"]
