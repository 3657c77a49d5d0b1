"""The escape attempts once more, on Workers of an ordinary user: CI runs as root, and owners should not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_escapes

import grid_jupyter

NOBODY = 65534
ROOT = Path(grid_jupyter.__file__).parent.parent

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not (shutil.which("bwrap") and shutil.which("setpriv")),
    reason="only root can become somebody else; needs bubblewrap and setpriv",
)


def shown(*needed: Path) -> list[str]:
    """bubblewrap's arguments for a view of this machine in which anybody may go to these folders."""
    made = ["--dev-bind", "/", "/"]
    opened: set[Path] = set()
    for path in dict.fromkeys(path.resolve() for path in needed):
        above = list(reversed(path.parents))
        shut = next((number for number, one in enumerate(above) if not one.stat().st_mode & 0o001), None)
        if shut is None:
            continue
        for number, one in enumerate(above[shut:]):
            if one not in opened:
                made += ["--perms", "0755", "--dir" if number else "--tmpfs", str(one)]
                opened.add(one)
        made += ["--ro-bind", str(path), str(path)]
    return made


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of the user's own, where the user can go to."""
    made = Path(tempfile.mkdtemp(prefix="grid-user-"))
    os.chown(made, NOBODY, NOBODY)
    yield made
    shutil.rmtree(made)


def test_an_ordinary_users_workers_are_held_by_the_same_walls(home: Path):
    ordinary = ["bwrap", *shown(Path(sys.prefix), Path(sys.base_prefix), ROOT), "--chdir", str(home), "--"]
    ordinary += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    ordinary += ["--inh-caps=-all", "--ambient-caps=-all", sys.executable]
    environment = {
        "HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip

    tried = subprocess.run(["bwrap", "--dev-bind", "/", "/", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"bubblewrap does not work here: {tried.stderr}")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*ordinary, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = run("-c", "print(open('/proc/self/status').read())")
    assert f"Uid:\t{NOBODY}\t{NOBODY}" in told
    assert "CapEff:\t0000000000000000" in told
    said = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), test_escapes.__file__
    )
    if "reduced: " in said:
        pytest.skip(f"an ordinary user has no sandbox on this machine: {said[-300:]}")
    assert "passed" in said
