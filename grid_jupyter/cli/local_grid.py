"""The grid of one machine: a Network and some Nodes as supervised processes, with their people and credentials."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from grid_jupyter.cli.places import local_file, log_file
from grid_jupyter.cli.values import GRID_NODES
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.errors import BadRequest, Conflict, NodeUnavailableError, NotAuthenticatedError, NotFound
from grid_jupyter.identity import roles, tokens
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.server.running import Running, listen, read_running
from grid_jupyter.server.socket_places import WORKERS_SOCKET, private_socket
from grid_jupyter.server.supervisor import ChildProcess
from grid_jupyter.store.object_address import VARIABLE as OBJECTS
from grid_jupyter.store.postgres import VARIABLE
from grid_jupyter.wire.files import put_whole
from grid_jupyter.wire.home import private_directory
from grid_jupyter.worker.lending import Lender

START_S = 60.0
"""Time for one process to be ready."""
JOIN_S = 30.0
"""Time for a Node to have joined."""
INVITE_S = 600.0
POLL_S = 0.1
WATCH_S = 0.5
"""How often is looked whether a process came back under another address."""
JOINING_ORDER = ("James", "Alice", "Bill", "Bob")
PEOPLE = {"Bob": roles.PUBLISHER, "Ana": roles.USER, "Alice": roles.PUBLISHER}
"""The users of each Node, besides its owner, who bears the Node's name."""

T = TypeVar("T")


class LocalGrid:
    """The Network and the Nodes in one data directory: all of GRID_NODES, or those that are named. Those in
    `elsewhere` are started by somebody else.

    Ports count up from the ones given; 0 means any, and the same one again after a restart. What the
    processes print goes to `on_line`, with the name of the one that did. Raises BadRequest where the environment names
    a database.
    """

    def __init__(
        self,
        home: Path,
        *,
        network_port: int = 5000,
        node_port: int = 3000,
        nodes: Sequence[str] = GRID_NODES,
        elsewhere: Collection[str] = (),
        verbose: bool = False,
        on_line: Callable[[str, str], None],
    ) -> None:
        for variable, what in ((VARIABLE, "database"), (OBJECTS, "prefix of an object store")):
            if os.environ.get(variable, "").strip():
                raise BadRequest(
                    f"the environment variable {variable} names one {what}, and each Node of this grid needs one of "
                    f"its own: unset {variable}, and they keep what they have in files"
                )
        self.home = home
        self.network_address = ""
        self.node_addresses: dict[str, str] = {}
        self._network_port = network_port or _some_port()
        self._verbose = ["--verbose"] if verbose else []
        self._credentials = Credentials(home / "credentials.json")
        self._before = _read_addresses(home)
        self._ports = {
            name: node_port + number if node_port else _some_port() for number, name in enumerate(GRID_NODES)
        }
        self._lender: Lender | None = None
        self._network = ChildProcess(self.network_dir, "network", on_line=partial(on_line, "Network"))
        self._members = [name for name in JOINING_ORDER if name in nodes]
        self._nodes = {
            name: ChildProcess(self.node_dir(name), "node", on_line=partial(on_line, name))
            for name in self._members
            if name not in elsewhere
        }

    @property
    def network_dir(self) -> Path:
        return self.home / "network"

    def node_dir(self, name: str) -> Path:
        """The state directory of a Node."""
        return self.home / "nodes" / name

    def node_port(self, name: str) -> int:
        """The port that a Node is told to use."""
        return self._ports[name]

    def addresses(self) -> dict[str, Any]:
        """What local.json says, and `jupyter grid up --json`."""
        return {"network": self.network_address, "nodes": dict(self.node_addresses)}

    def node_options(self) -> list[str]:
        """The options that every Node of this grid has."""
        return ["--allow-guests", "--public-tags", "--workers", "shared"]

    async def start_network(self) -> None:
        """Start the Network, and lend the Nodes Workers from here on. Raises NodeUnavailableError, Conflict."""
        self._lender = Lender(private_socket(private_directory(self.home), WORKERS_SOCKET))
        self._lender.start()
        await self._network.start(
            [
                *_COMMAND,
                "network",
                "--port",
                str(self._network_port),
                "--state",
                str(self.network_dir),
                "--allow-guests",
                "--supervised",
                *self._verbose,
            ]
        )
        self.network_address = (await self._network.ready(START_S)).address

    async def start_nodes(self) -> None:
        """Start the Nodes, wait for those that others start, and make their people. Raises GridError."""
        await _all_or_none(self._bring_up(name) for name in self._members)
        self.node_addresses = {name: self.node_addresses[name] for name in GRID_NODES if name in self._members}
        self._forget_old_addresses()
        self._write_addresses()
        if self._lender is not None:
            self._lender.prepare()

    async def watch(self) -> None:
        """Keep local.json true: a process that was started again may have another address. Runs until cancelled."""
        gave_up: set[str] = set()
        while True:
            await asyncio.sleep(WATCH_S)
            for child, name in [(self._network, "the Network"), *((node, name) for name, node in self._nodes.items())]:
                if child.state == "failed" and name not in gave_up:
                    gave_up.add(name)
                    print(f"{name} runs no longer: {child.detail}", file=sys.stderr, flush=True)
            before = self.addresses()
            network = _running_at(self.network_dir, "network")
            if network is not None and network.address != self.network_address:
                self.network_address = network.address
                print(
                    f"the Network is at {network.address} now, its port was taken meanwhile; start the grid again, "
                    f"so that its Nodes find it",
                    file=sys.stderr,
                    flush=True,
                )
            for name, address in list(self.node_addresses.items()):
                running = _running_at(self.node_dir(name), "node")
                if running is not None and running.address != address:
                    await self._meet_people(running)
                    self.node_addresses[name] = running.address
            if self.addresses() != before:
                self._write_addresses()

    async def stop(self) -> None:
        """End all of its processes, the Nodes first."""
        await asyncio.gather(*(node.stop() for node in self._nodes.values()))
        await self._network.stop()
        if self._lender is not None:
            await self._lender.stop()

    # ------------------------------------------------------------------ one Node

    async def invite(self, name: str) -> str:
        """An invite for this Node; one that has its credential does not use it."""
        running = read_running(self.network_dir, "network")
        link, _ = await OwnerClient(running.socket).invite(roles.NODE, INVITE_S, name)
        return link

    async def _bring_up(self, name: str) -> None:
        child = self._nodes.get(name)
        if child is None:
            running = await self._appears(name)
        else:
            command = [*_COMMAND, "node", "--name", name, "--port", str(self._ports[name])]
            command += ["--state", str(self.node_dir(name)), "--network", self.network_address]
            command += [*self.node_options(), "--supervised", *self._verbose]
            place = {"GRID_JUPYTER_HOME": str(self.home), "GRID_JUPYTER_INVITE": await self.invite(name)}
            await child.start(command, {**os.environ, **place})
            running = await child.ready(START_S)
        await self._meet_people(running)
        await self._joins(running)
        self.node_addresses[name] = running.address

    async def _appears(self, name: str) -> Running:
        async def look() -> Running:
            while (running := _running_at(self.node_dir(name), "node")) is None:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)  # another process writes it: there is nothing to wait on
            return running

        return await _within(START_S, look(), f"the Node {name} did not start")

    async def _joins(self, running: Running) -> None:
        owner = OwnerClient(running.socket)

        async def look() -> None:
            while True:
                network = (await owner.status())["network"]
                if network["state"] == "joined":
                    return
                if network["state"] == "refused":
                    raise Conflict(
                        f"the Network refuses the Node {running.name}: {network['detail']}. If the Network's state "
                        f"and the Node's do not belong together, 'jupyter grid reset' begins anew"
                    )
                await asyncio.sleep(POLL_S)

        await _within(JOIN_S, look(), f"the Node {running.name} did not join the Network")

    async def _meet_people(self, running: Running) -> None:
        """The accounts of the Node, and a credential that counts for each of them in the user's file."""
        owner = OwnerClient(running.socket)
        for user, role in {**PEOPLE, running.name: roles.OWNER}.items():
            try:
                await owner.account(user, role)
            except Conflict:
                pass  # the account's role was changed since: that was somebody's wish
            known = self._known_token(running, user)
            if known is None or not await asyncio.to_thread(_counts, running.address, known):
                known = await owner.token(user)
            self._credentials.store(running.address, user, known)

    def _known_token(self, running: Running, user: str) -> str | None:
        """The stored token of this user on this Node, wherever it was the last time."""
        for address in (running.address, self._before.get(running.name)):
            if address is None:
                continue
            try:
                token = self._credentials.get(address, user)
            except NotAuthenticatedError:
                continue
            if tokens.node_of(token) == running.id:
                return token
        return None

    def _forget_old_addresses(self) -> None:
        """Credentials for addresses where other servers may be by now."""
        for address in set(self._before.values()) - set(self.node_addresses.values()):
            self._credentials.forget(address)

    def _write_addresses(self) -> None:
        put_whole(local_file(self.home), json.dumps(self.addresses()).encode())


_COMMAND = [sys.executable, "-m", "grid_jupyter.cli.main"]


def _some_port() -> int:
    """A port that is free now, to be named, so that a process that is started again comes back to it."""
    (free,) = listen("127.0.0.1", 0)
    with free:
        return int(free.getsockname()[1])


def to_stderr(name: str, line: str) -> None:
    """Show what a process printed."""
    print(f"[{name}] {line}", file=sys.stderr, flush=True)


def to_log(home: Path) -> Callable[[str, str], None]:
    """Keep what the processes print in a file, which is begun anew."""
    path = log_file(home)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))

    def on_line(name: str, line: str) -> None:
        with path.open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} [{name}] {line}\n")

    return on_line


def _read_addresses(home: Path) -> dict[str, str]:
    """Where the Nodes were the last time; nothing if they never were."""
    try:
        nodes = json.loads(local_file(home).read_text())["nodes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {str(name): str(address) for name, address in nodes.items()} if isinstance(nodes, Mapping) else {}


def _running_at(state_dir: Path, role: str) -> Running | None:
    try:
        return read_running(state_dir, role)
    except NotFound:
        return None


def _counts(address: str, token: str) -> bool:
    """Whether the Node takes this token: a wrong one is refused on every route, also on those open to all."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5.0)
    try:
        connection.request("GET", "/data-centric/identity/", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


async def _within(timeout_s: float, work: Coroutine[Any, Any, T], failure: str) -> T:
    try:
        return await asyncio.wait_for(work, timeout_s)
    except asyncio.TimeoutError:
        raise NodeUnavailableError(f"{failure} within {timeout_s:.0f} s") from None


async def _all_or_none(work: Any) -> None:
    """Run all of it at once; at the first failure the rest is given up."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
