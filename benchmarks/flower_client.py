"""One of Flower's clients: `python -m benchmarks.flower_client CASE CLIENTS NUMBER ADDRESS`. See flower_server.py."""

from __future__ import annotations

import sys
from typing import Any

import torch
from flwr.client import NumPyClient, start_client

from benchmarks.federated_problem import CASES, local_epoch


class _Client(NumPyClient):
    def __init__(self, name: str, clients: int, number: int) -> None:
        case = CASES[name](clients)
        self._shard = case.shards[number]
        self._model = case.network()
        self._round = 0

    def fit(self, parameters: Any, config: Any) -> Any:
        """A round, as the plain loop has it."""
        names = self._model.state_dict()
        self._model.load_state_dict(
            {name: torch.from_numpy(value) for name, value in zip(names, parameters, strict=True)}
        )
        self._round += 1
        local_epoch(self._model, self._shard, self._round)
        return [value.numpy() for value in self._model.state_dict().values()], len(self._shard[1]), {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    start_client(
        server_address=sys.argv[4], client=_Client(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).to_client()
    )
