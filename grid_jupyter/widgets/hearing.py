"""Whether this kernel takes messages of its pages just now, or runs a cell or a callback, behind which they wait."""

from __future__ import annotations

import sys
from typing import Any

_shell: Any = None
_waits = False


def begin() -> None:
    """Follow what the kernel runs; called in a cell, or a callback. Does nothing outside of IPython."""
    global _shell, _waits
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None and shell is not _shell:
        _shell, _waits = shell, True
        shell.events.register("pre_execute", _on_begin)
        shell.events.register("post_execute", _on_end)


def waits() -> bool:
    """Whether messages wait for the end of something."""
    return _waits


def _on_begin() -> None:
    global _waits
    _waits = True


def _on_end() -> None:
    # Also behind a message that another thread took while a cell runs: then messages do not wait.
    global _waits
    _waits = False
