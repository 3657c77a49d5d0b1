"""A fork server without torch, whose Workers fold reports of devices.

Run as `python -m grid_jupyter.worker.foldserver FD`, as worker/forkserver.py is.
"""

from __future__ import annotations

import os
import sys


def main(descriptor: int) -> None:
    """Serve fork requests until the channel closes."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy: its threads would not survive a fork, nor are they needed
    from grid_jupyter.aggregation.scaled import kernels
    from grid_jupyter.worker.folds import serve, settle
    from grid_jupyter.worker.forking import serve_forks

    kernels()
    serve_forks(descriptor, settle, serve)


if __name__ == "__main__":
    main(int(sys.argv[1]))
