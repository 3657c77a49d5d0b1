"""What lies in the data directory: the state of Nodes and of the Network, and the local grid's own files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grid_jupyter.errors import NotFound
from grid_jupyter.server.running import Running, is_running, read_running
from grid_jupyter.wire.home import data_home

NETWORK = "network"
NODE = "node"


@dataclass(frozen=True)
class Place:
    """The state directory of one Node or Network."""

    role: str
    name: str
    state_dir: Path
    state: str  # running, starting, stopped
    running: Running | None


def places(home: Path | None = None) -> list[Place]:
    """Every state directory, the Network's first."""
    home = home or data_home()
    found = [_place(NETWORK, home / "network")] if (home / "network").is_dir() else []
    nodes = home / "nodes"
    if nodes.is_dir():
        found += [_place(NODE, path) for path in sorted(nodes.glob("[!.]*")) if path.is_dir()]
    return found


def _place(role: str, state_dir: Path) -> Place:
    try:
        running = read_running(state_dir, role)
    except NotFound:
        state = "starting" if is_running(state_dir, role) else "stopped"
        return Place(role=role, name=state_dir.name, state_dir=state_dir, state=state, running=None)
    return Place(role=role, name=running.name, state_dir=state_dir, state="running", running=running)


def local_file(home: Path) -> Path:
    """Where the addresses of the local grid are written."""
    return home / "local.json"


def log_file(home: Path) -> Path:
    """Where the output of the local grid's processes goes when it is not shown."""
    return home / "grid.log"


def lab_log(home: Path) -> Path:
    """Where JupyterLab's own log goes when it is not shown."""
    return home / "lab.log"


def grid_lock(home: Path) -> Path:
    """The file that one `jupyter grid up` at a time holds."""
    return home / "up.lock"
