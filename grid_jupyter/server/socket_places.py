"""Where the unix sockets of this user's processes lie: in private directories, at paths short enough for the kernel."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from grid_jupyter.errors import Conflict

WORKERS_SOCKET = "workers.sock"
"""Where Nodes ask for Workers of the fork server that they share; its state is the data home."""


def socket_place(state: Path, name: str) -> Path:
    """The path of a socket that belongs to a state directory; nothing is made."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) else Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > 50:  # the kernel's limit for the whole path is some 100 bytes
        base = Path("/tmp")  # noqa: S108 - the directory made in it is private, and checked
    mark = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:16]
    return base / f"grid-jupyter-{os.getuid()}-{mark}" / name


def private_socket(state: Path, name: str) -> Path:
    """The same, in a directory of mode 0700 that is there now; a socket that was left over is gone.

    Raises Conflict where the directory is somebody else's.
    """
    path = socket_place(state, name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    found = path.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Conflict(f"{path.parent} belongs to somebody else; set XDG_RUNTIME_DIR to a directory of yours")
    path.parent.chmod(0o700)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return path
