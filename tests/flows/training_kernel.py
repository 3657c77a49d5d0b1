"""A kernel that trains over Nodes and says which round it has reached, until somebody kills it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from grid_jupyter import FedAdam, Fit, NodeClient, PrivateGridNetwork
from grid_jupyter.plans.optimisers import SGD

ROUNDS = 40  # so many that it is killed long before the last one


def network() -> torch.nn.Module:
    """The model of these tests: 4-6-2 with tanh."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))


def train(grid: PrivateGridNetwork, **options: Any) -> Fit:
    """Three rounds over what is tagged #moons, unless told otherwise."""
    given: dict[str, Any] = {
        "data": grid.search("#X", "#moons"),
        "rounds": 3,
        "optimizer": SGD(lr=0.2),
        "batch_size": 16,
        "deadline_s": 60.0,
    }
    return grid.train(network(), torch.nn.functional.cross_entropy, **{**given, **options})


def train_on(grid: PrivateGridNetwork, path: Path, say: Any = None) -> Fit:
    """The training that is cut and goes on."""
    return train(grid, rounds=ROUNDS, strategy=FedAdam(), checkpoint=path, after_round=say)


if __name__ == "__main__":
    path, *addresses = sys.argv[1:]
    there = PrivateGridNetwork(*(NodeClient(None, address, user="Sam") for address in addresses))
    train_on(there, Path(path), lambda found: print(len(found.records), flush=True))
