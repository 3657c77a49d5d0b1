"""A real Dask cluster on loopback: a scheduler and workers as processes, to be killed one by one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
from node_world import PATIENCE_S, until


class DaskCluster:
    """`dask scheduler` and `dask worker` processes, whose state lies in this directory. `options` are for all of them,
    `scheduling` for the scheduler."""

    def __init__(self, home: Path, *scheduling: str, options: tuple[str, ...] = ()) -> None:
        self.home = home
        self._options = options
        self.workers: list[subprocess.Popen[bytes]] = []
        home.mkdir(parents=True)
        file = home / "scheduler.json"
        self._scheduler = self._run(
            "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file), *scheduling
        )

        def described() -> str:
            assert self._scheduler.poll() is None, self.log("dask_scheduler")
            try:
                return str(json.loads(file.read_text())["address"])
            except (FileNotFoundError, ValueError):  # it is being written
                return ""

        self.address = until(described, 60.0)

    def _run(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *self._options, *arguments]
        with (self.home / f"{module}.log").open("a") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """One more worker, of four threads."""
        made = self._run(
            "dask_worker", self.address, "--no-nanny", "--nthreads", "4", "--memory-limit", "0",
            "--local-directory", str(self.home), *arguments,
        )  # fmt: skip
        self.workers.append(made)
        return made

    def log(self, module: str) -> str:
        return (self.home / f"{module}.log").read_text()

    def grid_workers(self) -> dict[int, list[psutil.Process]]:
        """Workers of Nodes, by the process id of the Dask worker that they run on."""
        return {one.pid: workers_below(psutil.Process(one.pid)) for one in self.workers if one.poll() is None}

    def end(self) -> None:
        for process in self.workers:  # before their scheduler: they say goodbye to it
            process.terminate()
        for process in self.workers:
            process.wait(PATIENCE_S)
        self._scheduler.terminate()
        self._scheduler.wait(PATIENCE_S)


def workers_below(top: psutil.Process) -> list[psutil.Process]:
    """Workers of fork servers that a process started."""
    found = []
    try:
        descendants = top.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for one in descendants:
        try:
            is_server = "grid_jupyter.worker.forkserver" in one.cmdline() and not one.name().startswith("bwrap")
            found += [child for child in one.children() if child.status() != psutil.STATUS_ZOMBIE] if is_server else []
        except psutil.Error:  # it ended just now
            continue
    return found
