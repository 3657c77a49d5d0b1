"""JupyterLab beside the local grid: its notebook server is one of the Nodes, and its token is in one URL."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import secrets
import sys
from pathlib import Path
from typing import IO

from grid_jupyter.cli.leash import GRACE_S
from grid_jupyter.cli.local_grid import LocalGrid
from grid_jupyter.cli.places import lab_log
from grid_jupyter.errors import NodeUnavailableError
from grid_jupyter.server.running import listen

LAB_NODE = "Bob"
"""The Node that JupyterLab's server starts and supervises."""
START_S = 90.0
FIRST_NOTEBOOK = Path("notebooks/tutorials/00-start-here.ipynb")
TAIL_LINES = 15


class Lab:
    """One JupyterLab process. `url` opens it."""

    def __init__(self, grid: LocalGrid, *, port: int, verbose: bool) -> None:
        self.url = ""
        self._grid = grid
        self._port = port
        self._log = None if verbose else lab_log(grid.home)
        self._token = secrets.token_urlsafe(24)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it. The Network runs already. Raises GridError."""
        root, notebook = _root()
        for taken in (sockets := listen("127.0.0.1", self._port)):
            self._port = taken.getsockname()[1]
        for free in sockets:
            free.close()
        self.url = f"http://127.0.0.1:{self._port}/lab{notebook}?token={self._token}"
        environment = {
            **os.environ,
            "GRID_JUPYTER_HOME": str(self._grid.home),
            "GRID_JUPYTER_INVITE": await self._grid.invite(LAB_NODE),
            "JUPYTERLAB_SETTINGS_DIR": str(_settings(self._grid.home / "lab-settings")),
            "JUPYTER_TOKEN": self._token,  # on a command line, every user of the machine could read it
        }
        with contextlib.ExitStack() as files:
            log = None if self._log is None else files.enter_context(_private(self._log))
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "grid_jupyter.cli.leash"),
                *(sys.executable, "-m", "jupyterlab", "--no-browser"),
                *self._options(root),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us, who end it in order
            )

    async def ready(self) -> None:
        """Wait until it answers. Raises NodeUnavailableError with the last lines of its log."""
        if self._process is None:
            raise NodeUnavailableError("JupyterLab was not started")
        ended = asyncio.create_task(self._process.wait())
        try:
            for _ in range(int(START_S / 0.2)):
                if ended.done():
                    raise NodeUnavailableError(f"JupyterLab ended while it started.{self._tail()}")
                if await asyncio.to_thread(_answers, self._port, self._token):
                    return
                await asyncio.wait([ended], timeout=0.2)
            raise NodeUnavailableError(f"JupyterLab does not answer after {START_S:.0f} s.{self._tail()}")
        finally:
            ended.cancel()

    async def ended(self) -> None:
        """Wait until it has ended."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """End it, and the Node that it supervises."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), GRACE_S + 5.0)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()

    def _options(self, root: Path) -> list[str]:
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self._port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": root,
            "GridExtension.node_name": LAB_NODE,
            "GridExtension.node_port": self._grid.node_port(LAB_NODE),
            "GridExtension.state_dir": self._grid.node_dir(LAB_NODE),
            "GridExtension.network_url": self._grid.network_address,
        }
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options["ServerApp.allow_root"] = True
        more = [f"--GridExtension.node_arguments={argument}" for argument in self._grid.node_options()]
        return [*(f"--{name}={value}" for name, value in options.items()), *more]

    def _tail(self) -> str:
        if self._log is None:
            return ""
        lines = self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return f" The end of {self._log}:\n" + "\n".join(f"  {line}" for line in lines)


def _root() -> tuple[Path, str]:
    """What JupyterLab serves: the checkout that this runs from, with its first notebook, or else the current folder."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / FIRST_NOTEBOOK).is_file():
        return checkout, f"/tree/{FIRST_NOTEBOOK.as_posix()}"
    return Path.cwd(), ""


def _answers(port: int, token: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", "/api/status", headers={"Authorization": f"token {token}"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _settings(folder: Path) -> Path:
    """Settings of this JupyterLab, kept between starts; at the first one it asks nobody for news."""
    notification = folder / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    if not notification.exists():
        notification.parent.mkdir(parents=True, exist_ok=True)
        notification.write_text('{"fetchNews": "false", "checkForUpdates": false}\n')
    return folder


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
