"""A plugin of `pytest --nbval`: a grid runs while the tutorials do, and is forgotten afterwards.

Beside a tutorial that two play its other side runs, in a kernel of its own; what that shows is compared when its own
turn comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from notebook_pairs import other_side

OTHER_SIDE_S = 120
"""How long the other side has to end after the one that is compared."""
_home = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()
_grid = pytest.StashKey["subprocess.Popen[str]"]()
_beside = pytest.StashKey["tuple[Path, subprocess.Popen[str]]"]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start `jupyter grid up`; the notebooks' kernels find it through the environment."""
    home = session.config.stash[_home] = tempfile.TemporaryDirectory(prefix="grid-tutorials-")
    os.environ["GRID_JUPYTER_HOME"] = home.name
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "up", "--json"]
    grid = session.config.stash[_grid] = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    first = grid.stdout.readline() if grid.stdout else ""
    if not first:
        pytest.exit(f"the grid of the tutorials did not start (exit code {grid.wait()})", returncode=1)
    json.loads(first)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the other side of a notebook run beside it, from its first cell on."""
    path, stash = Path(item.path), item.config.stash
    other = other_side(path)
    if other is not None and stash.get(_beside, (None, None))[0] != path:
        arguments = ["--timeout=300", "--NbClientApp.log_level=ERROR", str(other)]
        command = [sys.executable, "-m", "jupyter", "execute", *arguments]
        stash[_beside] = path, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Behind the last cell the other side has to come to its end as well."""
    path, beside = Path(item.path), item.config.stash.get(_beside, (None, None))[1]
    if beside is None or (nextitem is not None and Path(nextitem.path) == path):
        return
    del item.config.stash[_beside]
    try:
        printed, _ = beside.communicate(timeout=OTHER_SIDE_S)
    except subprocess.TimeoutExpired:
        beside.terminate()
        printed, _ = beside.communicate()
    if beside.returncode:
        pytest.fail(f"the other side of {path.name} failed ({beside.returncode}):\n{printed[-4000:]}", pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the grid in order; whatever it stored goes with its directory."""
    beside = session.config.stash.get(_beside, None)
    if beside is not None:
        beside[1].terminate()
        beside[1].communicate()
    grid = session.config.stash.get(_grid, None)
    if grid is not None:
        grid.terminate()
        grid.wait(60)
        if grid.stdout:
            grid.stdout.close()
        session.config.stash[_home].cleanup()
