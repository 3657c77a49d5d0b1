"""Real processes to measure: Networks, Nodes and the baseline server, on free ports in a home that is forgotten.

Every process ends with the `with` block, and also when this process dies without leaving it: each holds
our end of a pipe as its standard input, and goes when that closes.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import psutil

from grid_jupyter.client.credentials import Credentials
from grid_jupyter.server.owner_client import OwnerClient

START_S = 60.0
END_S = 15.0
HOME = "GRID_JUPYTER_HOME"


class Server:
    """A process that says in one line of JSON when it is ready. Raises RuntimeError if it never is."""

    sandboxed_cpu_s: ClassVar[float] = 0.0
    """CPU seconds used in the sandboxes of all Nodes that have ended: bubblewrap tells no parent of them."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        began = time.perf_counter()
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._seen = psutil.Process(self.process.pid)
        watchdog = threading.Timer(START_S, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline() if self.process.stdout else ""
        self.ready_s = time.perf_counter() - began
        watchdog.cancel()
        if not line:
            self.end()
            raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text()[-2000:]}")
        self.said: dict[str, Any] = json.loads(line)

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self.said["address"])

    @property
    def owner(self) -> OwnerClient:
        """The owner's door of a Node or Network."""
        return OwnerClient(str(self.said["socket"]))

    def rss(self) -> int:
        """Resident memory of the process itself, in bytes."""
        return int(self._seen.memory_info().rss)

    def cpu_s(self) -> float:
        """CPU seconds of the process itself so far."""
        return _cpu_s(self._seen)

    def below(self) -> list[psutil.Process]:
        """The processes below it: of a Node, the fork server and the Workers."""
        return self._seen.children(recursive=True)

    def below_cpu_s(self) -> float:
        """CPU seconds of the processes below it that live, so far."""
        return sum(_cpu_s(process) for process in self.below())

    def end(self) -> None:
        """End it in order, or else by force."""
        Server.sandboxed_cpu_s += self._sandboxed()
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _sandboxed(self) -> float:
        try:
            below = self.below()
            if all(process.name() != "bwrap" for process in below):
                return 0.0
        except psutil.NoSuchProcess:
            return 0.0
        return sum(_cpu_s(process, reaped=True) for process in below)


class Grid:
    """Starts servers, and gives people accounts. In the `with` block $GRID_JUPYTER_HOME is the forgotten home."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="grid-benchmark-")
        self.home = Path(self._folder.name)
        self.credentials = Credentials(self.home / "credentials.json")
        self._servers: list[Server] = []
        self._before = os.environ.get(HOME)

    def __enter__(self) -> Grid:
        os.environ[HOME] = str(self.home)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for server in reversed(self._servers):
                server.end()
        finally:
            if self._before is None:
                os.environ.pop(HOME, None)
            else:
                os.environ[HOME] = self._before
            self._folder.cleanup()

    def network(self) -> Server:
        """A Network."""
        return self._start("grid_jupyter.cli.main", "network", *_SERVED, "--state", str(self.home / "network"))

    def node(self, name: str, *arguments: str, module: str = "grid_jupyter.cli.main") -> Server:
        """A Node without a Network. Started again under a name that was there, it has its state."""
        state = str(self.home / "nodes" / name)
        return self._start(module, "node", "--name", name, *_SERVED, "--state", state, *arguments)

    def baseline(self) -> Server:
        """The server that does nothing but carry bytes (benchmarks/baseline.py)."""
        return self._start("benchmarks.baseline")

    def account(self, node: Server, user: str, role: str) -> str:
        """Make an account on a Node and store its credential; the token."""

        async def make() -> str:
            await node.owner.account(user, role)
            return await node.owner.token(user)

        token = asyncio.run(make())
        self.credentials.store(node.address, user, token)
        return token

    def end(self, server: Server) -> None:
        """End one server early."""
        self._servers.remove(server)
        server.end()

    def _start(self, module: str, *arguments: str) -> Server:
        server = Server([sys.executable, "-m", module, *arguments], self.home / "log.txt")
        self._servers.append(server)
        return server


_SERVED = ("--port", "0", "--supervised", "--json")


def _cpu_s(process: psutil.Process, *, reaped: bool = False) -> float:
    """CPU seconds of a process, and with `reaped` of its children that have ended; none if it is gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    children = times.children_user + times.children_system if reaped else 0.0
    return float(times.user + times.system + children)
