"""Runs a training of benchmarks/federated_problem.py on Flower, in the environment that benchmarks/flower.sh made."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PYTHON = _ROOT / "build" / "flower" / "bin" / "python"
_LONGEST_S = 600.0


@dataclass(frozen=True)
class Told:
    """What Flower's processes measured."""

    version: str
    first_s: float
    """From the start of the processes to the end of the first round."""
    wall_s: float
    """Of the rounds behind that."""
    cpu_s: float
    """Of server and clients, in that time."""
    accuracy: float
    server_bytes: int
    client_bytes: int
    """Each page divided by how many processes share it; of the clients, the largest."""


def is_installed() -> bool:
    """Whether the environment is there."""
    return _PYTHON.exists()


def train(case: str, rounds: int, clients: int) -> Told:
    """One round to warm up, and `rounds` more. Raises RuntimeError where Flower fails."""
    command = [str(_PYTHON), "-m", "benchmarks.flower_server", case, str(rounds), str(clients)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=_LONGEST_S, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ended.stderr[-2000:]}")
    return Told(**json.loads(ended.stdout.splitlines()[-1]))
