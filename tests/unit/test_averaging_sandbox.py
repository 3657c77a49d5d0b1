"""A host's averaging plan runs where Workers do: behind a sandbox, without the Node's files and environment."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from grid_jupyter.cycles.fold_worker import FoldWorker, fold_workers


def test_averaging_plans_see_no_file_and_no_variable_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_NODE", "x")
    (tmp_path / "grid.db").write_text("rows")
    behind, environment = asyncio.run(FoldWorker(fold_workers()).sandboxed())
    if not behind:
        pytest.skip("no bubblewrap here")
    look = f"import os; assert not os.path.exists({str(tmp_path)!r}); assert 'SECRET_OF_THE_NODE' not in os.environ"
    assert subprocess.run([*behind, sys.executable, "-c", look], env=environment, check=False).returncode == 0
