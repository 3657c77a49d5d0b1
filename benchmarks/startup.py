"""How long things take to start, and what they weigh at rest: imports, Network, Node, Workers, the Jupyter extension."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.grid import HOME, Grid, Server
from benchmarks.results import Result
from benchmarks.scale import Scale
from benchmarks.timing import Timings, in_turns
from grid_jupyter.client.node import NodeClient
from grid_jupyter.tensors.remote import send

MEANING = """\
Only what computes loads torch: importing the package, the extension, a Node and a Network do without. The first \
session of a Node waits for its fork server to load torch, once; every further session gets a Worker by a fork. \
Jupyter is timed until it serves, with the extension and without; the Node, which starts beside it, takes its share \
of the cores meanwhile."""

_ADDED_S = 0.3  # the extension's allowance
_NODE_MIB = 120.0  # the Node's allowance at rest
_PATIENCE_S = 60.0
MIB = 1 << 20


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    return [*_imports(scale), *_jupyter(scale), *_servers(scale)]


# ------------------------------------------------------------------ imports


def _imports(scale: Scale) -> list[Result]:
    statements = {
        "nothing": "pass",
        "package": "import grid_jupyter",
        "client": "from grid_jupyter import DataCentricFLClient",
        "extension": "import grid_jupyter.server.extension",
        "torch": "import torch",
        "tornado": "import tornado.web, tornado.websocket",
        "jupyter": "import jupyter_server.serverapp",
    }
    took = in_turns({name: _python(statement) for name, statement in statements.items()}, scale(5, 1))
    compared = (
        ("import grid_jupyter", "package", "nothing", "python -c pass"),
        ("import grid_jupyter", "package", "tornado", "import tornado"),
        ("its clients, which compute", "client", "torch", "import torch"),
        ("import of the Jupyter extension", "extension", "jupyter", "import jupyter_server"),
    )
    return [_seconds(what, took[one], took[other], against) for what, one, other, against in compared]


def _python(statement: str) -> Callable[[], object]:
    """A whole process from its start to its end."""
    return lambda: subprocess.run([sys.executable, "-c", statement], check=True)


def _seconds(what: str, took: Timings, base: Timings, against: str) -> Result:
    return Result(
        what=what,
        value=took.median * 1e3,
        best=took.best * 1e3,
        unit="ms",
        baseline=base.median * 1e3,
        baseline_best=base.best * 1e3,
        against=against,
    )


# ------------------------------------------------------------------ Jupyter


def _jupyter(scale: Scale) -> list[Result]:
    took = in_turns({"with": lambda: _serve_jupyter(True), "without": lambda: _serve_jupyter(False)}, scale(4, 1))
    ready = {name: Timings(walls=[_ready_s.pop(0) for _ in ()] or t.walls) for name, t in took.items()}
    added = Result(
        what="what the extension adds to Jupyter's start",
        value=ready["with"].best - ready["without"].best,
        unit="s",
        baseline=ready["without"].best,
        against="Jupyter's start without it",
        at_most=_ADDED_S,
    )
    return [added]
