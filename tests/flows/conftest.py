"""A small real grid for the flows: a Network, Nodes and their users, as processes, once for the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from dask_world import DaskCluster
from node_world import GridProcess
from raw_session import RawSession

from grid_jupyter import NodeClient, TorchHook, VirtualWorker

SECRETS = torch.tensor([[1, 3.5, 47.3], [0, 3.7, 48.1], [0, 3.9, 50.0], [1, 4.1, 52.3], [0, 4.1, 49.7]])
"""The birth records of seed 002."""


@dataclass
class World:
    """Starts processes for tests and ends them all."""

    home: Path
    started: list[GridProcess] = field(default_factory=list)

    def start(self, role: str, name: str, *arguments: str, wrapper: tuple[str, ...] = ()) -> GridProcess:
        made = GridProcess(role, name, self.home / f"{name}-{len(self.started)}", arguments, wrapper)
        self.started.append(made)
        return made.start()

    def end(self) -> None:
        running = [process for process in reversed(self.started) if process.process is not None]
        for process in running:
            process.let_go()
        for process in running:
            process.stop()


@pytest.fixture(scope="session")
def hook() -> TorchHook:
    """The verbs of 0.2.9 on torch, as notebooks have them."""
    return TorchHook(torch)


@pytest.fixture(scope="session")
def world(grid_home: Path) -> Iterator[World]:
    """Processes that live as long as the run."""
    made = World(grid_home / "world")
    yield made
    made.end()


@pytest.fixture
def small_world(tmp_path: Path) -> Iterator[World]:
    """Processes of one test."""
    made = World(tmp_path / "world")
    yield made
    made.end()


@pytest.fixture(scope="session")
def network(world: World) -> GridProcess:
    """A Network that lets guests search."""
    return world.start("network", "Network", "--allow-guests")


@pytest.fixture(scope="session")
def bob(world: World, network: GridProcess) -> GridProcess:
    """Bob's Node, joined to the Network: guests may compute, tags are public. Users Bob, Ana, Alice and Zed."""
    invite = network.owner("POST", "/owner/invites", {"role": "Node", "expires_s": 600.0})["invite"]
    node = world.start(
        "node", "Bob", "--allow-guests", "--public-tags", "--network", network.address, "--invite", invite
    )
    for name, role in (("Bob", "Owner"), ("Ana", "User"), ("Alice", "Publisher"), ("Zed", "User")):
        node.user(name, role)
    return node


@pytest.fixture(scope="session")
def alice(world: World) -> GridProcess:
    """Alice's Node: no guests, no public tags, joined to nothing."""
    node = world.start("node", "Alice")
    for name, role in (("Alice", "Owner"), ("Ana", "User"), ("Bob", "Publisher")):
        node.user(name, role)
    return node


@pytest.fixture(scope="session")
def cluster(grid_home: Path) -> Iterator[DaskCluster]:
    """A Dask scheduler and two workers of four threads. Whoever kills one starts another."""
    made = DaskCluster(grid_home / "dask")
    try:
        made.worker()
        made.worker()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def backend() -> tuple[str, ...]:
    """Options that say where the Workers of a Node run: on its own machine. A module may have others."""
    return ()


@pytest.fixture
def connect() -> Iterator[Callable[..., NodeClient]]:
    """Makes clients: `connect(bob)` is a guest's, `connect(bob, "Ana")` Ana's; all are closed at the end."""
    with ExitStack() as stack:
        yield lambda node, user=None: stack.enter_context(node.client(user))


@pytest.fixture(scope="module")
def client(bob: GridProcess, hook: TorchHook) -> Iterator[NodeClient]:
    """One session of a guest on Bob's Node, for all tests of a module."""
    with bob.client() as made:
        yield made


@pytest.fixture(scope="module", params=["Node", "VirtualWorker"])
def place(request: pytest.FixtureRequest, client: NodeClient, hook: TorchHook) -> Any:
    """The two places where a remote tensor can be: both run the same commands."""
    return client if request.param == "Node" else VirtualWorker(hook, id="bob")


@pytest.fixture
def intrude() -> Iterator[Callable[..., RawSession]]:
    """Makes sessions by hand: `intrude(bob)` is a guest's; all are closed at the end."""
    with ExitStack() as stack:
        yield lambda node, *args, **options: stack.enter_context(RawSession(node, *args, **options))
