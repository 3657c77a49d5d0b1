"""Two users of one JupyterHub: one publishes, the other finds it and computes, through the hub's one port."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_process import eventually
from playwright.sync_api import Page, expect
from test_panel import PATIENCE_MS, TAB

from grid_jupyter.server.running import Running, is_running, read_running

ROOT = Path(__file__).parents[2]
PASSWORD = "one-for-all-in-this-test"
CLI = [sys.executable, "-m", "grid_jupyter.cli.main"]


@dataclass
class Hub:
    """A hub with the configuration of docs/jupyterhub.md, and what a test needs besides."""

    home: Path
    url: str
    token: str

    def environment(self, user: str) -> dict[str, str]:
        """What a kernel of this user has."""
        hidden = ("JUPYTER", "GRID_JUPYTER", "XDG_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        return {**kept, "HOME": str(self.home / user), "USER": user}

    def public(self, user: str) -> str:
        """The address of the user's Node."""
        return f"{self.url}user/{user}/grid/public"

    def running(self, user: str) -> Running | None:
        """The user's Node, once it runs."""
        state = self.home / user / f".local/share/grid_jupyter/nodes/{user}"
        return read_running(state, "node") if is_running(state, "node") and (state / "running.json").exists() else None

    def start(self, user: str) -> Running:
        """Log the user in and start the server; the Node that comes with it."""
        request = urllib.request.Request(
            f"{self.url}hub/api/users/{user}/server", b"", {"Authorization": f"token {self.token}"}, method="POST"
        )
        urllib.request.urlopen(request, timeout=60).close()
        found = eventually(lambda: self.running(user), f"the Node of {user}")
        assert found is not None
        return found

    def run(self, user: str, code: str) -> Any:
        """What a cell of this user says, as JSON."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=self.environment(user), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def grid(self, user: str, *command: str) -> Any:
        """What `jupyter grid` tells this user."""
        env = self.environment(user)
        done = subprocess.run([*CLI, *command, "--json"], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """JupyterHub's proxy: the one on PATH, or the one of hub/package-lock.json."""
    found = shutil.which("configurable-http-proxy")
    if found:
        return found
    npm = shutil.which("npm", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if npm is None:
        if os.environ.get("CI") == "true":
            pytest.fail("neither configurable-http-proxy nor npm is there")
        pytest.skip("JupyterHub's proxy needs Node.js")
    folder = tmp_path_factory.mktemp("proxy")
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(Path(__file__).parent / "hub" / name, folder)
    env = {**os.environ, "PATH": f"{Path(npm).parent}:{os.environ['PATH']}"}
    subprocess.run([npm, "ci"], cwd=folder, env=env, check=True, capture_output=True, timeout=300)
    return str(folder / "node_modules/.bin/configurable-http-proxy")


@pytest.fixture(scope="module")
def hub(proxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    home, port = tmp_path_factory.mktemp("hub"), free_port()
    made = Hub(home, f"http://127.0.0.1:{port}/clinic/", secrets.token_hex(16))
    (documented,) = re.findall(
        r"^```python\n(import json\n.*?)^```", (ROOT / "docs/jupyterhub.md").read_text(), re.DOTALL | re.MULTILINE
    )
    ours = f"""
        c.JupyterHub.public_url = {made.url!r}
        c.JupyterHub.bind_url = {made.url!r}
        c.JupyterHub.hub_port = {free_port()}
        c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{free_port()}"
        c.ConfigurableHTTPProxy.command = {proxy!r}
        c.JupyterHub.authenticator_class = "dummy"
        c.DummyAuthenticator.password = {PASSWORD!r}
        c.Authenticator.allow_all = True
        c.JupyterHub.spawner_class = "simple"
        c.SimpleLocalProcessSpawner.home_dir_template = {str(home / "{username}")!r}
        c.Spawner.default_url = "/lab"
        c.Spawner.args += ["--ServerApp.allow_unauthenticated_access=False", "--allow-root"]
        c.Spawner.env_keep.append("JUPYTER_PATH")
        c.JupyterHub.services = [{{"name": "test", "api_token": {made.token!r}}}]
        c.JupyterHub.load_roles = [{{"name": "test", "services": ["test"], "scopes": ["admin:users", "admin:servers"]}}]
        c.JupyterHub.load_groups = {{"all": {{"users": ["ana", "bob"]}}}}
    """
    (home / "jupyterhub_config.py").write_text(f"{documented}\n{textwrap.dedent(ours)}")
    env = {**os.environ, "GRID_JUPYTER_HOME": str(home / "network-home")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    network = subprocess.Popen(
        [*CLI, "network", "--port", "0", "--allow-guests", "--heartbeat", "0.2s", "--supervised", "--json"],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert network.stdin is not None
    assert network.stdout is not None
    network.stdout.readline()
    log = (home / "hub.log").open("w")
    running = subprocess.Popen(
        [sys.executable, "-m", "jupyterhub", "-f", "jupyterhub_config.py"],
        cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip

    def answers() -> bool:
        assert running.poll() is None, (home / "hub.log").read_text()
        try:
            urllib.request.urlopen(f"{made.url}hub/api/", timeout=5).close()
        except OSError:
            return False
        return True

    try:
        eventually(answers, "the start of the hub")
        yield made
    finally:
        if running.poll() is None:
            family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
            for process in reversed(family):
                process.kill()
            psutil.wait_procs(family[1:], 20)
        running.wait(20)
        network.stdin.close()
        network.wait(20)
        network.stdout.close()
        log.close()


@pytest.fixture(scope="module")
def nodes(hub: Hub) -> dict[str, Running]:
    return {user: hub.start(user) for user in ("ana", "bob")}


def test_nodes_of_users_of_one_machine_share_nothing(hub: Hub, nodes: dict[str, Running]):
    ana, bob = nodes["ana"], nodes["bob"]
    assert (ana.address, bob.address) == (hub.public("ana"), hub.public("bob"))
    for part in ("id", "socket", "public_socket", "pid"):
        assert getattr(ana, part) != getattr(bob, part)


def test_one_user_publishes_and_another_finds_it_and_computes_through_the_hub(hub: Hub, nodes: dict[str, Running]):
    hub.grid("ana", "token", "issue", "ana", "--role", "Owner", "--store")
    published = hub.run("ana", f"""
        import json, torch, grid_jupyter as sy
        node = sy.NodeClient({hub.public("ana")!r}, user="ana")
        node.publish(torch.arange(6.0).reshape(2, 3), tags=["#births"], allowed_users=["bob"])
        print(json.dumps(node.id))
    """)  # fmt: skip
    invite = hub.grid("ana", "invite", "--for", "bob")["invite"]
    network = read_running(hub.home / "network-home/network", "network").address
    told = hub.run("bob", f"""
        import json, torch, grid_jupyter as sy
        node = sy.NodeClient({hub.public("ana")!r})
        node.accept_invite({invite!r}, "bob")
        means = node.search("#births")[0].mean(0).get()
        large = torch.ones(8_000_000)
        back = sy.send(large, node).get()
        print(json.dumps([means.unwrap().tolist(), bool(torch.equal(back, large))]))
    """)  # fmt: skip
    assert published == "ana"
    assert told == [[1.5, 2.5, 3.5], True]
    asked = urllib.request.Request(f"{network}/search", b'{"query": ["#births"]}', method="POST")
    with urllib.request.urlopen(asked, timeout=20) as answer:
        assert json.load(answer) == [["ana", hub.public("ana")]]


def test_the_hubs_own_credentials_open_nothing_at_a_node(hub: Hub, nodes: dict[str, Running]):
    for headers in ({"Authorization": f"token {hub.token}"}, {"Authorization": f"Bearer {hub.token}"}):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(
                urllib.request.Request(f"{hub.public('ana')}/data-centric/datasets", headers=headers), timeout=20
            )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{hub.url}user/ana/grid/api/status", timeout=20)


def test_the_panel_works_below_the_hub(hub: Hub, nodes: dict[str, Running], page: Page, artefacts: Path):
    page.goto(f"{hub.url}hub/login?next=/clinic/user/ana/lab")
    page.get_by_label("Username").fill("ana")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#jp-main-dock-panel")).to_be_visible(timeout=PATIENCE_MS)
    page.click(TAB)
    expect(page.get_by_test_id("grid-node-public")).to_have_text(hub.public("ana"), timeout=PATIENCE_MS)
    expect(page.get_by_test_id("grid-node-status")).to_be_visible()
    page.screenshot(path=artefacts / "hub.png")
