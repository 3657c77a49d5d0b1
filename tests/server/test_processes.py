"""A real Jupyter server and its Node: what dies is replaced, and nothing outlives Jupyter."""

from __future__ import annotations

import http.client
import json
import signal
import time
from contextlib import closing
from urllib.parse import urlsplit

import psutil
import pytest
from jupyter_process import DEADLINE_S, FAKE_NODE, REAL_NODE, eventually
from test_panel_api import ROUTES

from grid_jupyter.cli.main import main
from grid_jupyter.client.jupyter_node import jupyter_node
from grid_jupyter.errors import NotAuthenticatedError
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.server.running import read_running

NODES = {"bare": FAKE_NODE, "real": REAL_NODE}


@pytest.fixture(params=NODES.values(), ids=NODES.keys())
def node_command(request: pytest.FixtureRequest) -> list[str]:
    command: list[str] = request.param
    return command


def test_jupyter_starts_the_node_and_tells_where_it_is(start_jupyter, node_command):
    jupyter = start_jupyter(node_command)
    node = jupyter.node()
    status = jupyter.status()
    assert status["state"] == "running"
    assert status["node"]["name"] == "Bob"
    assert status["node"]["address"].startswith("http://127.0.0.1:")
    assert node in jupyter.family()


def test_the_command_line_does_what_the_buttons_of_the_panel_do(start_jupyter, monkeypatch, capsys):
    jupyter = start_jupyter(FAKE_NODE)
    first = jupyter.node()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(jupyter.home / "runtime"))
    assert main(["server", "stop"]) == 0
    assert "is stopped: It was stopped here" in capsys.readouterr().out
    assert not first.is_running()
    assert main(["server", "start", "--url", jupyter.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] in ("starting", "running")
    assert jupyter.node() != first
    assert main(["server", "start"]) == 1
    assert main(["server", "stop", "--url", "http://localhost:1/"]) == 1
    said = capsys.readouterr().err
    assert "already kept running" in said
    assert "no such Jupyter server of yours" in said


def test_a_server_with_a_password_alone_is_logged_in_to(start_jupyter, monkeypatch, capsys):
    jupyter = start_jupyter(FAKE_NODE, password="a word")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(jupyter.home / "runtime"))
    pid = eventually(lambda: jupyter_node("status", password="a word")["pid"], "the start of the Node")
    with pytest.raises(NotAuthenticatedError, match="does not take this password"):
        jupyter_node("stop", password="another word")
    assert psutil.pid_exists(pid)
    assert main(["server", "stop"]) == 1  # nobody is there to be asked
    assert "jupyter_node(…, password=…)" in capsys.readouterr().err
    assert jupyter_node("stop", url=jupyter.url, password="a word")["state"] == "stopped"
    assert not psutil.pid_exists(pid)
    assert jupyter_node("restart", password="a word")["state"] in ("starting", "running")


def test_who_is_logged_in_needs_what_only_pages_of_the_server_know_to_change_or_hear_something(start_jupyter):
    """A page of somebody else's that the owner's browser shows sends his cookies along, and nothing more."""
    jupyter = start_jupyter(FAKE_NODE, password="a word")
    address = urlsplit(jupyter.url)

    def ask(method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, list[str]]:
        connection = http.client.HTTPConnection(address.netloc, timeout=10)
        connection.request(method, address.path + path, body, {"Cookie": cookies, **headers})
        with closing(connection), connection.getresponse() as answer:
            return answer.status, answer.headers.get_all("Set-Cookie", [])

    cookies, repeated = "_xsrf=0123456789abcdef", {"X-XSRFToken": "0123456789abcdef"}
    form = {"Content-Type": "application/x-www-form-urlencoded", **repeated}
    _, made = ask("POST", "login", "password=a+word", **form)
    cookies = "; ".join([cookies, *(one.partition(";")[0] for one in made)])
    assert ask("GET", "grid/api/status", **repeated)[0] == 200
    for method, path in ROUTES:
        if method != "GET":
            assert ask(method, f"grid/api/{path}")[0] == 403, path
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "A" * 24,
    }
    assert ask("GET", "grid/api/events", **upgrade, Origin="http://elsewhere.example")[0] == 403
    assert ask("GET", "grid/api/events", **upgrade, Origin=f"http://{address.netloc}")[0] == 101
    assert ask("POST", "grid/api/node/stop", **repeated)[0] == 200


def test_a_server_that_asks_nobody_who_he_is_needs_no_password(start_jupyter, monkeypatch):
    jupyter = start_jupyter(FAKE_NODE, password="")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(jupyter.home / "runtime"))
    assert jupyter_node("stop")["state"] == "stopped"


def test_a_killed_node_comes_back_as_a_new_process(start_jupyter, node_command):
    jupyter = start_jupyter(node_command)
    node = jupyter.node()
    node.kill()
    eventually(lambda: jupyter.status().get("pid") not in (None, node.pid), "the restart")
    status = jupyter.status()
    assert (status["state"], status["restarts"]) == ("running", 1)
    assert status["node"]["name"] == "Bob"


async def test_accounts_outlive_a_killed_node(start_jupyter, tmp_path):
    jupyter = start_jupyter(REAL_NODE)
    node = jupyter.node()
    state = tmp_path / "grid" / "nodes" / "Bob"
    owner = OwnerClient(read_running(state, "node").socket)
    await owner.account("Ana", "User")
    await owner.token("Ana")
    node.kill()
    eventually(lambda: jupyter.status().get("pid") not in (None, node.pid), "the restart")
    assert await OwnerClient(read_running(state, "node").socket).revoke("Ana") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_outlives_jupyter(start_jupyter, node_command, number):
    jupyter = start_jupyter(node_command)
    jupyter.node()
    family = jupyter.family()
    assert len(family) >= 2
    jupyter.process.send_signal(number)
    jupyter.process.wait(DEADLINE_S)
    _, alive = psutil.wait_procs(family[1:], timeout=15.0)
    assert alive == []
    assert not (jupyter.home / "grid" / "nodes" / "Bob" / "running.json").exists()


def test_a_node_that_ignores_every_request_to_end_does_not_outlive_an_orderly_jupyter(start_jupyter, monkeypatch):
    monkeypatch.setenv("FAKE_NODE", "stubborn")
    jupyter = start_jupyter(FAKE_NODE, stop_grace_s=1.0)
    node = jupyter.node()
    began = time.monotonic()
    jupyter.process.terminate()
    jupyter.process.wait(DEADLINE_S)
    assert not node.is_running()
    assert time.monotonic() - began >= 1.0


def test_every_route_asks_for_authentication(start_jupyter):
    """Where unauthenticated access is off, Jupyter names the routes that forgot to ask (other extensions' too)."""
    jupyter = start_jupyter(FAKE_NODE)
    jupyter.node()
    assert [line for line in jupyter.log.read_text().splitlines() if "registered for" in line and "/grid" in line] == []


def test_a_node_that_another_program_runs_is_shown_and_left_running(start_jupyter, tmp_path):
    state = tmp_path / "grid" / "nodes" / "Bob"
    options = ["--name", "Bob", "--host", "127.0.0.1", "--port", "0", "--state", str(state)]
    other = psutil.Popen([*FAKE_NODE, *options])
    try:
        eventually((state / "running.json").exists, "the start of the other Node")
        jupyter = start_jupyter(FAKE_NODE)
        assert jupyter.node().pid == other.pid
        status = jupyter.status()
        assert status["attached"]
        jupyter.process.terminate()
        jupyter.process.wait(DEADLINE_S)
        assert other.is_running()
    finally:
        other.terminate()
        other.wait(DEADLINE_S)
