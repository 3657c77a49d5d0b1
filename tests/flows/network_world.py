"""A real Network process, and Nodes that are nothing but their membership, for the tests of the Network."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grid_jupyter.link.peer import JOINED, Membership
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.wire.network import (
    Answer,
    Datasets,
    DatasetTags,
    FindDatasets,
    Heartbeat,
    HostedModel,
    ListTags,
    Models,
    Question,
    Tags,
)

HEARTBEAT_S = 0.2
PATIENCE_S = 15.0


@dataclass
class NetworkProcess:
    """`jupyter grid network` as a process of its own."""

    state_dir: Path
    arguments: tuple[str, ...] = ()
    heartbeat_s: float = HEARTBEAT_S
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    running: dict[str, Any] = field(default_factory=dict)

    def start(self) -> NetworkProcess:
        command = [sys.executable, "-m", "grid_jupyter.cli.main", "network", "--state", str(self.state_dir)]
        command += ["--port", str(self.port), "--heartbeat", f"{self.heartbeat_s}s", "--json", "--supervised"]
        self.process = subprocess.Popen(
            [*command, *self.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the Network did not start"
        self.running = json.loads(line)
        self.port = urlsplit(self.address).port or 0
        return self

    @property
    def address(self) -> str:
        return str(self.running["address"])

    @property
    def owner(self) -> OwnerClient:
        return OwnerClient(self.running["socket"])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self._ended(self.process)

    def stop(self) -> int:
        """End of standard input is what tells it that its parent is gone."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._ended(self.process)

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        code = process.wait(PATIENCE_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return code

    async def user(self, name: str, role: str = "User") -> str:
        """A token of a user of the Network."""
        await self.owner.account(name, role)
        return await self.owner.token(name)

    async def node_invite(self, name: str | None = None) -> str:
        link, _ = await self.owner.invite("Node", 60.0, name)
        return link.partition("#")[2]

    async def forget(self, name: str) -> None:
        """Strike a Node off, whether or not it was there, so that a test finds its name free."""
        await call(self.address, "DELETE", "/delete-node", {"node-id": name}, token=await self.user("Root", "Owner"))

    async def connected(self) -> list[str]:
        _, answer = await call(self.address, "GET", "/connected-nodes")
        return list(answer["grid-nodes"])


@dataclass
class FakeNode:
    """What a Node is to the Network: a name, an address, a credential it keeps, and answers."""

    name: str
    network: str
    invite: str | None = None
    address: str = "http://127.0.0.1:3999"
    datasets: tuple[DatasetTags, ...] = ()
    public: bool = False
    models: tuple[HostedModel, ...] = ()
    credential: str | None = None
    answer_delay_s: float = 0.0
    beats: int = 0
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    membership: Membership | None = None

    async def join(self) -> FakeNode:
        self.begin()
        await self.reached(JOINED)
        return self

    def begin(self) -> None:
        self.membership = Membership(
            self.network,
            name=self.name,
            node_id=self.id,
            address=lambda: self.address,
            load=self._load,
            save=self._save,
            answer=self._answer,
            beat=self._beat,
            invite=self.invite,
            heartbeat_s=HEARTBEAT_S,
        )
        self.membership.start()

    async def reached(self, *states: str) -> str:
        assert self.membership is not None
        return await self.membership.reached(*states, timeout_s=PATIENCE_S)

    async def leave(self) -> None:
        assert self.membership is not None
        await self.membership.stop()

    async def _load(self) -> str | None:
        return self.credential

    async def _save(self, token: str) -> None:
        self.credential = token

    async def _beat(self) -> Heartbeat:
        self.beats += 1
        return Heartbeat(address=self.address, tags=0, datasets=len(self.datasets), models=0, cpu=1.0, memory=2.0)

    async def _answer(self, question: Question) -> Answer:
        await asyncio.sleep(self.answer_delay_s)
        if isinstance(question, FindDatasets):
            shown = () if question.public and not self.public else self.datasets
            wanted = set(question.query)
            return Datasets(id=question.id, datasets=tuple(one for one in shown if wanted <= set(one.tags)))
        if isinstance(question, ListTags):
            shown = () if question.public and not self.public else self.datasets
            return Tags(id=question.id, tags=tuple(tag for one in shown for tag in one.tags))
        return Models(id=question.id, models=self.models)


async def call(
    address: str,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """One request; status and decoded JSON (or the text, where it is not JSON)."""
    return await asyncio.to_thread(_call, address, method, path, body, token, headers or {})


def _call(
    address: str, method: str, path: str, body: object, token: str | None, headers: dict[str, str]
) -> tuple[int, Any]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    credential = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        connection.request(method, path, body=data, headers={**credential, **headers})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = PATIENCE_S) -> float:
    """Poll until the condition holds; returns how long that took."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < timeout_s, "this did not happen in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - began
