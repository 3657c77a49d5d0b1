"""The fork server: loads torch once, then forks a Worker in some tens of milliseconds for each session.

Run as `python -m grid_jupyter.worker.forkserver FD`: FD is its end of a channel to the Node. It ends, with
all its Workers, when the Node does.
"""

from __future__ import annotations

import importlib
import sys

from grid_jupyter.aggregation.scaled import kernels
from grid_jupyter.worker.forking import serve_forks
from grid_jupyter.worker.session import serve, settle


def main(descriptor: int) -> None:
    """Serve fork requests until the channel closes."""
    kernels()
    serve_forks(descriptor, settle, serve, _complete)


def _complete() -> None:
    """Load what torch's optimisers and some gradients load at their first use: a second and a half of every job."""
    importlib.import_module("torch._dynamo")


if __name__ == "__main__":
    main(int(sys.argv[1]))
