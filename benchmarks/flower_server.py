"""Flower's server over gRPC, and the clients that it starts.

`python -m benchmarks.flower_server CASE ROUNDS CLIENTS`.
Runs in Flower's own environment (benchmarks/flower.sh), which has no grid. The last line that it prints is JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerConfig, start_server
from flwr.server.strategy import FedAvg

from benchmarks.federated_problem import CASES, accuracy

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class _Timed(FedAvg):
    """FedAvg that reads clocks behind the first round, which is there to warm up, and behind the last."""

    def __init__(self, rounds: int, clients: list[subprocess.Popen[bytes]], **options: Any) -> None:
        super().__init__(**options)
        self.rounds = rounds
        self.clients = clients
        self.marks: list[tuple[float, float]] = []
        self.parameters: Any = None
        self.memory: list[int] = []

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        if failures:
            raise RuntimeError(f"a client failed: {failures[0]}")
        found = super().aggregate_fit(server_round, results, failures)
        if server_round in (1, self.rounds + 1):
            self.marks.append((time.perf_counter(), time.process_time() + sum(_cpu_s(one.pid) for one in self.clients)))
        if server_round == self.rounds + 1:
            self.memory = [_bytes(pid) for pid in (os.getpid(), *(one.pid for one in self.clients))]
        self.parameters = found[0]
        return found


def main(name: str, rounds: int, count: int) -> dict[str, Any]:
    """Train, and tell what was measured."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    case = CASES[name](count)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    module = "benchmarks.flower_client"
    clients = [
        subprocess.Popen([sys.executable, "-m", module, name, str(count), str(one), address]) for one in range(count)
    ]
    try:
        model = case.network()
        strategy = _Timed(
            rounds,
            clients,
            fraction_evaluate=0.0,
            min_fit_clients=count,
            min_available_clients=count,
            initial_parameters=ndarrays_to_parameters([value.numpy() for value in model.state_dict().values()]),
        )
        start_server(server_address=address, config=ServerConfig(num_rounds=rounds + 1), strategy=strategy)
    finally:
        for one in clients:
            one.kill()
    trained = parameters_to_ndarrays(strategy.parameters)
    model.load_state_dict(
        {key: torch.from_numpy(value) for key, value in zip(model.state_dict(), trained, strict=True)}
    )
    (first, cpu), (last, cpu_last) = strategy.marks
    return {
        "version": version("flwr"),
        "first_s": first - began,
        "wall_s": last - first,
        "cpu_s": cpu_last - cpu,
        "accuracy": accuracy(model, case.held_out),
        "server_bytes": strategy.memory[0],
        "client_bytes": max(strategy.memory[1:]),
    }


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _bytes(pid: int) -> int:
    """Memory of a process, each page divided by how many share it (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))), flush=True)
