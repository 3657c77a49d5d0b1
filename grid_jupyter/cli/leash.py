"""A program on a leash: it is ended when this process's standard input ends, however the parent went.

    python -m grid_jupyter.cli.leash PROGRAM ARGUMENT …

For programs that know nothing of `--supervised`, such as JupyterLab.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

GRACE_S = 15.0
"""Time that the program has to end before it is killed."""


def main(command: Sequence[str]) -> int:
    """Run the program; returns its exit code, as a shell counts it where a signal ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - what our own command line says
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: process.terminate())
    threading.Thread(target=_watch, args=(process,), name="stdin", daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


def _watch(process: subprocess.Popen[bytes]) -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # stdin was closed: the same as its end
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
