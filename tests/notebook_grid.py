"""A plugin of `pytest --nbval`: a grid runs while the tutorials do, and is forgotten afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

_home = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()
_grid = pytest.StashKey["subprocess.Popen[str]"]()


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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the grid in order; whatever it stored goes with its directory."""
    grid = session.config.stash.get(_grid, None)
    if grid is not None:
        grid.terminate()
        grid.wait(60)
        if grid.stdout:
            grid.stdout.close()
        session.config.stash[_home].cleanup()
