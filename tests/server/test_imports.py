"""Jupyter starts as fast as before: the extension loads little, and nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"alembic", "argon2", "matplotlib", "numpy", "pandas", "pyarrow", "sklearn", "sqlalchemy", "torch"}

LOOK = """
import json, sys, time
import jupyter_server.serverapp, jupyter_server.extension.application
before = set(sys.modules)
began = time.process_time()
import grid_jupyter
for point in grid_jupyter._jupyter_server_extension_points():
    point["app"]
took = time.process_time() - began
print(json.dumps({"took": took, "loaded": sorted(set(sys.modules)), "added": len(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, object]:
    answer = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    return dict(json.loads(answer.stdout))


def test_the_extension_loads_nothing_heavy(seen):
    assert HEAVY & {name.partition(".")[0] for name in seen["loaded"]} == set()


def test_the_extension_adds_at_most_three_tenths_of_a_second(seen):
    assert seen["took"] <= 0.3
