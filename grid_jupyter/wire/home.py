"""Where this user's grid keeps its state: one private directory, outside of what notebooks are served from."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_home() -> Path:
    """`$GRID_JUPYTER_HOME`, or the platform's data directory for grid_jupyter. Not created here."""
    override = os.environ.get("GRID_JUPYTER_HOME")
    return Path(override) if override else Path(platformdirs.user_data_dir("grid_jupyter"))


def private_directory(path: Path) -> Path:
    """Make a directory that only this user can enter, with its parents; returns it."""
    for missing in [folder for folder in reversed(path.parents) if not folder.exists()]:
        missing.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    return path
