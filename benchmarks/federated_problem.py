"""The two trainings by which federated systems are compared, and the plain loop of each.

Needs torch, NumPy and scikit-learn alone: Flower's processes, which have an environment of their own, train by it too.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

NODES = 10
BATCH = 32
LR = 0.1
SEED = 0

Rows = tuple[torch.Tensor, torch.Tensor]
"""Inputs [n, columns] float32, classes [n] int64."""
Order = Callable[[int, int], torch.Tensor]
"""Of so many rows, in a round: which comes when. [n] int64."""
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One training: a shard for each participant, some rounds of one local epoch of SGD, an accuracy to look at."""

    name: str
    shown: str
    rounds: int
    network: Callable[[], torch.nn.Module]
    """The model, with the same first weights each time."""
    shards: tuple[Rows, ...]
    held_out: Rows


def small(nodes: int = NODES) -> Case:
    """scikit-learn's digits, 1,797 × 64, a fifth of them held out, the rest split evenly; 64-64-10."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    inputs = torch.tensor(found.data / 16.0, dtype=torch.float32)
    classes = torch.tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(SEED))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    shards = tuple((inputs[part], classes[part]) for part in rest.tensor_split(nodes))
    return Case("small", "digits, 64-64-10", 50, lambda: _network(64, 64, 10), shards, (inputs[held], classes[held]))


def large(nodes: int = NODES) -> Case:
    """Rows made up, one batch for each; 512-2048-2048-10, 5.3 million parameters, 21 MB."""
    random = torch.Generator().manual_seed(SEED)
    centres = torch.randn(10, 512, generator=random)

    def rows(count: int) -> Rows:
        classes = torch.randint(10, (count,), generator=random)
        return centres[classes] + 4.0 * torch.randn(count, 512, generator=random), classes

    shards = tuple(rows(BATCH) for _ in range(nodes))
    return Case("large", "5.3M parameters", 10, lambda: _network(512, 2048, 2048, 10), shards, rows(500))


CASES = {"small": small, "large": large}


def _network(*widths: int) -> torch.nn.Module:
    torch.manual_seed(SEED)
    layers: list[torch.nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def local_epoch(model: torch.nn.Module, shard: Rows, round_: int, order: Order | None = None) -> None:
    """What a participant does in a round: an epoch of SGD on its shard, in the order that the round says."""
    inputs, classes = shard
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for batch in (order or _order)(len(inputs), round_).split(BATCH):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[batch]), classes[batch]).backward()
        optimizer.step()


def plain_rounds(
    model: torch.nn.Module, shards: Sequence[Rows], rounds: int, first: int = 1, order: Order | None = None
) -> None:
    """Federated averaging (McMahan et al. 2017, algorithm 1) in one process: shard after shard."""
    total = sum(len(classes) for _, classes in shards)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for round_ in range(first, first + rounds):
        mean = {name: torch.zeros_like(value) for name, value in weights.items()}
        for shard in shards:
            model.load_state_dict(weights)
            local_epoch(model, shard, round_, order)
            for name, value in model.state_dict().items():
                mean[name].add_(value, alpha=len(shard[1]) / total)
        weights = mean
    model.load_state_dict(weights)


def accuracy(model: torch.nn.Module, rows: Rows) -> float:
    """Of all rows, how many are classified as they should be."""
    with torch.no_grad():
        return float((model(rows[0]).argmax(1) == rows[1]).float().mean())


def _order(count: int, round_: int) -> torch.Tensor:
    """The order of rows that a job has in this round (worker/training.py): so the sums are the same everywhere."""
    digest = hashlib.sha256(f"{SEED}/{round_}/1".encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
