"""How long things take to start, and what they weigh at rest: imports, Network, Node, Workers, the extension."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from benchmarks.grid import HOME, Grid, Server
from benchmarks.results import Result, milliseconds
from benchmarks.scale import Scale
from benchmarks.sessions import adds
from benchmarks.timing import Timings, in_turns
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.virtual import local_worker
from grid_jupyter.tensors.remote import send

MEANING = """\
Only what computes loads torch: importing the package, the extension, a Node and a Network do without. The first \
session of a Node waits for its fork server to load torch, once, unless the Node was started with --warm; for every \
further session a spare Worker waits. \
Jupyter is timed until it serves, with the extension and without; the Node, which starts beside it, takes its share \
of the cores meanwhile."""

PATIENCE_S = 60.0
_ADDED_MS = 300.0  # what the extension may add to Jupyter's start
_NODE_MIB = 120.0  # what the Node may weigh at rest
_FIRST_MS = 100.0  # what the first operation of a session may take
_SPARES = 2  # a Node's default
MIB = 1 << 20


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    took = _imports(scale)
    compared = (
        ("import grid_jupyter", "package", "nothing", "python -c pass"),
        ("import of a client", "client", "torch", "import torch"),
        ("import of a Node's control process", "node", "tornado", "import tornado"),
        ("import of the Jupyter extension", "extension", "jupyter", "import jupyter_server"),
    )
    imports = [milliseconds(what, took[one], took[other], against) for what, one, other, against in compared]
    return [*imports, *_jupyter(scale), *_servers(scale, took["torch"])]


# ------------------------------------------------------------------ imports


def _imports(scale: Scale) -> dict[str, Timings]:
    statements = {
        "nothing": "pass",
        "package": "import grid_jupyter",
        "client": "from grid_jupyter import DataCentricFLClient",
        "extension": "import grid_jupyter.server.extension",
        "torch": "import torch",
        "node": "import grid_jupyter.server.node_process",
        "tornado": "import tornado.web, tornado.websocket",
        "jupyter": "import jupyter_server.serverapp",
    }
    return in_turns({name: _python(statement) for name, statement in statements.items()}, scale(3, 1))


def _python(statement: str) -> Callable[[], object]:
    """A whole process from its start to its end."""
    return lambda: subprocess.run([sys.executable, "-c", statement], check=True)


# ------------------------------------------------------------------ Jupyter


def _jupyter(scale: Scale) -> list[Result]:
    with_it, without = Timings(), Timings()
    for _ in range(scale(3, 1)):
        with_it.walls.append(_jupyter_ready_s(extension=True))
        without.walls.append(_jupyter_ready_s(extension=False))
    return [
        milliseconds("Jupyter server ready, with the extension", with_it, without, "the same without it"),
        Result(
            what="what the extension adds to that (of the best)",
            value=(with_it.best - without.best) * 1e3,
            unit="ms",
            baseline=without.best * 1e3,
            against="Jupyter server ready, without",
            at_most=_ADDED_MS,
        ),
    ]


def _jupyter_ready_s(*, extension: bool) -> float:
    """Seconds from the start of a Jupyter server until it serves; it has ended when this returns."""
    with tempfile.TemporaryDirectory(prefix="grid-benchmark-") as folder:
        home = Path(folder)
        for name in ("root", "config"):
            (home / name).mkdir()
        settings = {
            "ServerApp": {
                "allow_root": True,
                "ip": "127.0.0.1",
                "jpserver_extensions": {"grid_jupyter": extension},
                "open_browser": False,
                "port": 0,
                "root_dir": str(home / "root"),
            },
            "GridExtension": {"node_name": "Bob", "node_port": 0},
        }
        (home / "config" / "jupyter_server_config.json").write_text(json.dumps(settings))
        places = {
            HOME: "grid",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "run",
        }
        began = time.perf_counter()
        with (home / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "jupyter_server"],
                env={**os.environ, **{name: str(home / place) for name, place in places.items()}},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            while not any((home / "run").glob("jpserver-*.json")):
                if process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                    raise RuntimeError(f"Jupyter did not start:\n{(home / 'log.txt').read_text()[-2000:]}")
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()  # its Node sees the end of its input and goes too
                process.wait()


# ------------------------------------------------------------------ Network, Node, Workers


def _servers(scale: Scale, loading: Timings) -> list[Result]:
    ready = {name: Timings() for name in ("Network", "Node, first start", "Node, started again", "baseline")}
    runs = scale(3, 1)
    with Grid() as grid:
        for number in range(runs):
            started = {
                "baseline": grid.baseline(),
                "Network": grid.network(),
                "Node, first start": grid.node(f"Bob{number}"),
            }
            grid.end(started["Node, first start"])
            started["Node, started again"] = grid.node(f"Bob{number}")
            for name, server in started.items():
                ready[name].walls.append(server.ready_s)
            if number < runs - 1:
                for name in ("baseline", "Network", "Node, started again"):
                    grid.end(started[name])
        base = ready.pop("baseline")
        results = [
            milliseconds(f"{name}: ready", took, base, "a bare tornado server ready") for name, took in ready.items()
        ]
        node, bare = started["Node, started again"], started["baseline"].rss()
        weights = [
            _weight("Network at rest", started["Network"].rss(), bare, None),
            _weight("Node at rest", node.rss(), bare, _NODE_MIB),
        ]
        workers = _workers(scale, grid, node, loading)
        weights.append(_weight("Node at rest, after its sessions", node.rss(), bare, _NODE_MIB))
        return [*results, *workers, *weights]


def _weight(what: str, size: int, base: int, at_most: float | None, against: str = "a bare tornado server") -> Result:
    return Result(
        what=f"{what}: memory", value=size / MIB, unit="MiB", baseline=base / MIB, against=against, at_most=at_most
    )


def _workers(scale: Scale, grid: Grid, node: Server, loading: Timings) -> list[Result]:
    grid.account(node, "Ana", "User")
    adds(send(torch.ones(5), local_worker().session), 1).tolist()  # the client knows the operation from here on
    connected, first, later = Timings(), Timings(), Timings()
    sizes: list[tuple[int, int]] = []
    for number in range(scale(12, 3)):
        if number:
            _wait_for_spares(node)
        began = time.perf_counter()
        with NodeClient(None, node.address, user="Ana", credentials=grid.credentials) as client:
            connected.walls.append(time.perf_counter() - began)
            for took in (first, later):
                began = time.perf_counter()
                adds(send(torch.ones(5), client.session), 1).tolist()
                took.walls.append(time.perf_counter() - began)
            sizes.append(_worker_sizes(node))
    fork_server = Timings(walls=first.walls[:1])
    first.walls = first.walls[1:]
    warm = Timings()
    for number in range(scale(3, 1)):
        ready = grid.node(f"Warm{number}", "--warm")
        grid.account(ready, "Ana", "User")
        _wait_for_spares(ready)
        with NodeClient(None, ready.address, user="Ana", credentials=grid.credentials) as client:
            began = time.perf_counter()
            adds(send(torch.ones(5), client.session), 1).tolist()
            warm.walls.append(time.perf_counter() - began)
        grid.end(ready)
    return [
        milliseconds("connecting to a Node", connected, later, _WORKING),
        milliseconds("first operation and read on a Node: it loads torch", fork_server, loading, "import torch"),
        dataclasses.replace(
            milliseconds("first operation and read on a Node started with --warm", warm, later, _WORKING),
            at_most=_FIRST_MS,
        ),
        dataclasses.replace(
            milliseconds("first operation and read in a later session", first, later, _WORKING), at_most=_FIRST_MS
        ),
        _weight(
            "a Worker's own",
            round(statistics.median(own for own, _ in sizes)),
            round(statistics.median(all_of_it for _, all_of_it in sizes)),
            None,
            "all that it sees, shared with the fork server",
        ),
    ]


_WORKING = "operation and read in a session that has its Worker"


def _wait_for_spares(node: Server) -> None:
    """Until the Workers for the next sessions are there: those who came before took theirs a moment ago."""
    patience = time.perf_counter() + PATIENCE_S
    while len(_below(node)) < _SPARES:
        if time.perf_counter() > patience:
            raise RuntimeError("a Node has no spare Workers")
        time.sleep(0.02)


def _below(node: Server) -> list[psutil.Process]:
    """The Workers of a Node: nothing is below them."""
    found = []
    for process in node.below():
        with contextlib.suppress(psutil.NoSuchProcess):  # one whose session ended may be on its way out
            if not process.children():
                found.append(process)
    return found


def _worker_sizes(node: Server) -> tuple[int, int]:
    """Own memory of the Worker that computes, and all that is resident in it: spares have less."""
    sizes = [(0, 0)]
    for process in _below(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = process.memory_full_info()
            sizes.append((int(memory.uss), int(memory.rss)))
    return max(sizes)
