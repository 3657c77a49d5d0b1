"""Files that Jupyter serves, as places on the disk: those of its file browser, and nothing beside them."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from jupyter_core.paths import is_hidden

from grid_jupyter.errors import BadRequest, Forbidden, NotFound


def place_of(contents: Any, path: str) -> Path:
    """Where the file is that the file browser calls `path`; with all symbolic links followed, which must not lead out.

    `contents` is Jupyter's contents manager. Raises NotFound, Forbidden, BadRequest. Asks the disk: off the event loop.
    """
    served = str(getattr(contents, "root_dir", ""))
    if not served or not Path(served).is_absolute():
        raise BadRequest("this Jupyter keeps its files elsewhere than on a disk: publish from a notebook")
    parts = [part for part in path.split("/") if part]
    if not parts or "\0" in path or any(part in (".", "..") for part in parts):
        raise BadRequest("the path of a file is as the file browser has it, without '..'")
    missing = NotFound("there is no such file in the directory that Jupyter serves")
    try:
        root = Path(served).resolve(strict=True)
        found = root.joinpath(*parts).resolve(strict=True)
        mode = found.stat().st_mode
    except (OSError, RuntimeError, ValueError):
        raise missing from None
    if not found.is_relative_to(root):
        raise Forbidden("this is a link that leads out of the directory that Jupyter serves; copy the file into it")
    if not getattr(contents, "allow_hidden", False) and is_hidden(str(found), str(root)):
        raise missing
    if not stat.S_ISREG(mode):
        raise BadRequest("this is a folder, or no ordinary file; publish one CSV, Parquet, NPZ or safetensors file")
    return found
