"""Real Nodes and Networks as processes, driven from tests: start, ask as the owner, kill, start again."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import psutil

from grid_jupyter.client.credentials import Credentials
from grid_jupyter.client.node import NodeClient

PATIENCE_S = 30.0

T = TypeVar("T")


class OwnerConnection(http.client.HTTPConnection):
    """HTTP over the owner's unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("owner", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class GridProcess:
    """`jupyter grid node` or `jupyter grid network` as a process of its own."""

    role: str
    name: str
    home: Path
    arguments: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()  # what the command is run by: prlimit and the like
    port: int = 0
    process: subprocess.Popen[str] | None = None
    running: dict[str, Any] = field(default_factory=dict)

    def start(self) -> GridProcess:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [*self.wrapper, sys.executable, "-m", "grid_jupyter.cli.main", self.role, "--name", self.name]
        command += ["--state", str(self.state), "--port", str(self.port), "--json", "--supervised", "--verbose"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=dict(os.environ),
            )  # fmt: skip
        line = self._pipe(self.process.stdout).readline()
        assert line, f"{self.name} did not start: {self.log.read_text()}"
        self.running = json.loads(line)
        self.port = urlsplit(self.address).port or 0
        return self

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def log(self) -> Path:
        return self.home / "stderr.log"

    @property
    def address(self) -> str:
        return str(self.running["address"])

    @property
    def pid(self) -> int:
        return int(self.running["pid"])

    def processes(self) -> list[psutil.Process]:
        """The process and all that it started."""
        found = psutil.Process(self.pid)
        return [found, *found.children(recursive=True)]

    def kill(self) -> None:
        """SIGKILL, as the kernel would do it for want of memory."""
        assert self.process is not None
        self.process.kill()
        self._wait()

    def signal(self, number: int) -> int:
        """Send a signal that it answers by ending; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self._wait()

    def stop(self) -> int:
        """End of standard input: its parent is gone."""
        self.let_go()
        return self._wait()

    def let_go(self) -> None:
        """As `stop`, which then waits for its end."""
        assert self.process is not None
        self._pipe(self.process.stdin).close()

    def _wait(self) -> int:
        assert self.process is not None
        code = self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            self._pipe(pipe).close()
        self.process = None
        return code

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    # ------------------------------------------------------------------ as its owner

    def owner(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        connection = OwnerConnection(self.running["socket"])
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            found: dict[str, Any] = json.loads(answer.read())
            assert answer.status == 200, found
        finally:
            connection.close()
        return found

    def status(self) -> dict[str, Any]:
        return self.owner("GET", "/owner/status")

    def user(self, name: str, role: str = "User", expires_s: float | None = None) -> str:
        """An account and a token of it, which is stored as `name`'s credential."""
        self.owner("POST", "/owner/accounts", {"username": name, "role": role})
        token = str(self.owner("POST", "/owner/tokens", {"username": name, "expires_s": expires_s})["token"])
        Credentials().store(self.address, name, token)
        return token

    # ------------------------------------------------------------------ as anyone

    def client(self, user: str | None = None) -> NodeClient:
        return NodeClient(None, self.address, user=user)

    def call(
        self, method: str, path: str, body: object = None, *, token: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """One HTTP request: status, and the JSON or the text of the answer."""
        connection = self.connection()
        sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text.decode("latin-1")

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def tcp(self) -> socket.socket:
        """A bare connection to the public port."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)


def workers(node: GridProcess) -> set[int]:
    """Process ids of the fork server's children, spare ones included."""
    for process in node.processes():
        try:
            if "grid_jupyter.worker.forkserver" in process.cmdline() and not process.name().startswith("bwrap"):
                return {child.pid for child in process.children() if child.status() != psutil.STATUS_ZOMBIE}
        except psutil.Error:  # it ended just now
            continue
    return set()


def until(condition: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
    """Poll until the condition gives something true; returns that."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.02)
