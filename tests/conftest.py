"""What all tests share: a state directory of their own, so that no test sees or touches a real user's grid."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background: children would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def grid_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """$GRID_JUPYTER_HOME of this run and of every process that it starts."""
    home = tmp_path_factory.mktemp("grid-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRID_JUPYTER_HOME", str(home))
        yield home
