"""A Jupyter server with the extension as a process of its own, and the Nodes that it may be given."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
from jupyter_server.auth import passwd

FAKE_NODE = [sys.executable, str(Path(__file__).with_name("fake_node.py"))]
REAL_NODE = [sys.executable, "-m", "grid_jupyter.cli.main", "node"]
DEADLINE_S = 60.0

T = TypeVar("T")


def eventually(look: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Look again and again until there is something to be seen; fail with `what` if that takes too long."""
    end = time.monotonic() + deadline_s
    while not (seen := look()):
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s:.0f} s"
        time.sleep(0.05)
    return seen


def _listens(port: int) -> bool:
    """Whether a server takes connections: Jupyter tells where it is before it does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Jupyter:
    """A Jupyter server as a process, under a base_url and with directories of its own.

    `python`: that of another environment, where the extension is on because it is installed. With a `password` it has
    no token; an empty one: it asks nobody who he is.
    """

    def __init__(
        self,
        home: Path,
        node_command: list[str],
        module: str = "jupyter_server",
        python: Path | None = None,
        password: str | None = None,
        **settings: object,
    ) -> None:
        self.home = home
        self.token = secrets.token_hex(16)
        self.log = home / "jupyter.log"
        for folder in ("root", "config", "settings/@jupyterlab/apputils-extension"):
            (home / folder).mkdir(parents=True)
        configuration = {
            "ServerApp": {
                "allow_root": True,
                "allow_unauthenticated_access": False,
                "base_url": "/user/x/",
                "ip": "127.0.0.1",
                "jpserver_extensions": {} if python else {"grid_jupyter": True},
                "open_browser": False,
                "port": 0,
                "root_dir": str(home / "root"),
            },
            "IdentityProvider": {"token": self.token if password is None else ""},
            "PasswordIdentityProvider": {"hashed_password": passwd(password) if password else ""},
            "JupyterNotebookApp": {"expose_app_in_browser": True},
            "LabApp": {"expose_app_in_browser": True},
            "GridExtension": {"node_command": node_command, "node_name": "Bob", "node_port": 0, **settings},
        }
        no_news = {"fetchNews": "false", "checkForUpdates": False}
        news = home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        news.write_text(json.dumps(no_news))
        (home / "config/jupyter_server_config.json").write_text(json.dumps(configuration))
        env = {
            "GRID_JUPYTER_HOME": "grid",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python or sys.executable, "-m", module],
                cwd=home if python else None,  # or else the checkout is what is imported
                env={**os.environ, **{name: str(home / folder) for name, folder in env.items()}},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.url = eventually(self._find_url, "the start of Jupyter")

    def _find_url(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        texts = [file.read_text() for file in (self.home / "runtime").glob("jpserver-*.json")]
        found = [json.loads(text) for text in texts if text.endswith("}")]
        return next((str(info["url"]) for info in found if _listens(info["port"])), "")

    def status(self) -> dict[str, Any]:
        """The answer of the status route; {} while nothing answers."""
        request = urllib.request.Request(f"{self.url}grid/api/status", headers={"Authorization": f"token {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return dict(json.load(response))
        except urllib.error.URLError:
            return {}

    def node(self) -> psutil.Process:
        """The Node's process, once it runs."""
        pid = eventually(lambda: self.status().get("pid"), "the start of the Node")
        return psutil.Process(pid)

    def family(self) -> list[psutil.Process]:
        """This server and all processes below it."""
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def close(self) -> None:
        for process in reversed(self.family()) if self.process.poll() is None else []:
            process.kill()
        self.process.wait(10)
