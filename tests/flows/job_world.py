"""Jobs as the tests submit them: a small model, rows for it; and what a Node must have left when they are over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from node_world import GridProcess, workers
from torch import nn

from grid_jupyter.client.jobs import WAITING, Job
from grid_jupyter.client.node import NodeClient

ROWS = 200


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((ROWS, 8), generator=generator)
    return x, (x[:, :3].argmax(1)).long()


def pointers(client: NodeClient) -> dict[str, Any]:
    return {"x": client.search("#x")[0], "y": client.search("#y")[0]}


def submit(client: NodeClient, **options: Any) -> Job:
    given = {
        "data": pointers(client),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
    }
    return client.submit(model(), **{**given, **options})


def sgd(lr: float = 0.1, momentum: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=momentum)


def same(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=tolerance) for a, b in pairs)


def blobs(node: GridProcess) -> set[Path]:
    """All that the Node keeps beside its database: data, uploads, checkpoints, results."""
    return {path for path in (node.state / "blobs").rglob("*") if path.is_file()}


def left_open(node: GridProcess, owner: str) -> list[str]:
    """What is not over on a Node without spare Workers: Workers, jobs, requests, approvals."""
    with node.client(owner) as client:
        found = [f"job {job.id} is {job.info.state}" for job in client.jobs() if job.info.state in WAITING]
        asked = [*client.requests(), *client.approvals()]
        found += [f"request {one.id} is {one.info.state}" for one in asked]
    return [*found, *(f"Worker {pid}" for pid in workers(node))]
