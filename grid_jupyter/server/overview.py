"""How a Node or Network stands, in figures: versions, disk, sessions, Workers, jobs, trainings. Names nobody."""

from __future__ import annotations

import asyncio
import platform
import shutil
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grid_jupyter import __version__
from grid_jupyter.cycles.service import Cycles
from grid_jupyter.network.service import GridNetwork
from grid_jupyter.node.service import GridNode
from grid_jupyter.server.running import NodeOptions
from grid_jupyter.store.migrations import HEAD
from grid_jupyter.wire.limits import PROTOCOL


class NetworkOverview:
    """Of a Network."""

    role = "network"

    def __init__(self, network: GridNetwork, state_dir: Path) -> None:
        self._network = network
        self._state_dir = state_dir

    async def tell(self) -> dict[str, Any]:
        """versions, disk, nodes (how many live)."""
        return {
            "versions": _versions(),
            "disk": await asyncio.to_thread(_disk, self._state_dir),
            "nodes": len(await self._network.alive()),
        }


class NodeOverview:
    """Of a Node."""

    role = "node"

    def __init__(self, node: GridNode, cycles: Cycles, state_dir: Path, options: NodeOptions) -> None:
        self._node, self._cycles, self._state_dir, self._options = node, cycles, state_dir, options

    async def tell(self) -> dict[str, Any]:
        """versions, isolation, disk, objects (null without an object store), quotas, sessions, workers, jobs (by
        state), datasets, trainings, reports, joined."""
        node, options = self._node, self._options
        hosted = self._cycles.ending.hosted()
        workers, spare = node.pool.count()
        return {
            "versions": {**_versions(), "torch": _torch() if options.computes_here else None},
            "isolation": node.pool.isolation.partition(":")[0],
            "disk": await asyncio.to_thread(_disk, self._state_dir),
            "objects": node.kept.describe(),
            "quotas": {
                "upload": options.max_upload_bytes,
                "jobs_of_one_user": options.job_storage_bytes,
                "trainings": options.training_storage_bytes,
                "trainings_of_one_host": options.of_one_host(),
            },
            "sessions": {
                "connected": node.sessions.connected(),
                "computing": len(node.sessions.working()),
                "at_most": node.sessions.max_sessions,
            },
            "workers": {"used": workers - spare, "spare": spare},
            "jobs": await node.jobs.counts(),
            "datasets": len(await node.datasets.all()),
            "trainings": {
                "phases": dict(Counter(one["phase"] for one in hosted)),
                "completed": sum(one["completed"] for one in hosted),
                "devices": sum(one["workers"] for one in hosted),
                "reports": sum(one["reports"] for one in hosted),
            },
            "reports": {"counted": self._cycles.counted, "refused": self._cycles.refused},
            "joined": node.membership is not None and node.membership.state == "joined",
        }


def _versions() -> dict[str, Any]:
    return {"grid_jupyter": __version__, "protocol": PROTOCOL, "schema": HEAD, "python": platform.python_version()}


def _torch() -> str | None:
    """What Workers load, without loading it."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def _disk(state_dir: Path) -> dict[str, Any]:
    usage = shutil.disk_usage(state_dir)
    used = {"database": sum(file.stat().st_size for file in state_dir.glob("grid.db*"))}
    for folder in ("blobs", "training"):
        if (state_dir / folder).is_dir():
            used[folder] = _size(state_dir / folder)
    return {"used": used, "free": usage.free, "size": usage.total}


def _size(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        try:
            total += file.lstat().st_size
        except FileNotFoundError:
            continue  # it was just deleted
    return total
