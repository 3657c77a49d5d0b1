"""Programs as people write them, through a Node: the same lines, the same bits as in one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from both_ways import Here, There, both, fetched
from node_world import GridProcess
from test_torch_unchanged import as_many_threads_as_a_worker  # noqa: F401
from torch import func, nn, optim
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils import data
from torch.utils.checkpoint import checkpoint

from grid_jupyter import NodeClient

torch.manual_seed(3)
IMAGES, CLASSES = torch.randn(24, 1, 8, 8), torch.randint(0, 3, (24,))


@pytest.fixture(scope="module")
def client(bob: GridProcess) -> Iterator[NodeClient]:
    with bob.client() as made:
        yield made


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh()),
        nn.Sequential(nn.Conv2d(6, 6, 3), nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten()),
        nn.Linear(96, 3),
    )


def images_in_mixed_precision(where: Any) -> Any:
    """Epochs over a loader, bfloat16 forward, one half recomputed backward, two schedules, a best model kept."""
    model, best = where.module(network()), None
    rows = data.TensorDataset(where.tensor(IMAGES), where.tensor(CLASSES))
    loader = data.DataLoader(rows, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    schedule = lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer, total_iters=4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )
    losses = []
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = functional.cross_entropy(model[2](checkpoint(model[1], model[0](x), use_reentrant=False)), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        best = copy.deepcopy(model.state_dict())
    assert best is not None
    return [*losses, *model.state_dict().values(), *best.values()]


def gradients_that_are_bounded(where: Any) -> Any:
    """A penalty on the gradient of the input: backward through backward, with batch statistics."""
    model, x, y = where.module(network()), where.tensor(IMAGES[:8]).requires_grad_(), where.tensor(CLASSES[:8])
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + (slope.flatten(1).norm(dim=1) - 1).square().mean()).backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *model.state_dict().values()]


def gradients_of_each_row(where: Any) -> Any:
    """Per-sample gradients by vmap, cut to one length, as differential privacy takes them."""
    torch.manual_seed(0)
    model = where.module(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)))
    x, y = where.tensor(IMAGES[:8]), where.tensor(CLASSES[:8])
    weights = {name: one.detach() for name, one in model.named_parameters()}

    def loss(weights: Any, row: Any, target: Any) -> Any:
        return functional.cross_entropy(func.functional_call(model, weights, (row[None],)), target[None])

    each = func.vmap(func.grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    norms = torch.stack([one.flatten(1).norm(dim=1) for one in each.values()]).norm(dim=0)
    cut = (1.0 / norms).clamp(max=1.0)
    return [norms, *[(one * cut.view(-1, *[1] * (one.dim() - 1))).mean(0) for one in each.values()]]


@pytest.mark.parametrize(
    "lines", [images_in_mixed_precision, gradients_that_are_bounded], ids=lambda lines: lines.__name__
)
def test_a_whole_program_gives_the_same_bits(client: NodeClient, lines: Any):
    both(client, lines)


def test_gradients_of_each_row_are_the_local_ones(client: NodeClient):
    both(client, gradients_of_each_row, tolerance=1e-5)  # the formulas of vmap are made of other kernels


def test_a_batch_norm_below_a_checkpoint_counts_each_batch_once(client: NodeClient):
    """Here nothing is computed again; torch counts twice what it runs a second time for backward()."""

    def counted(where: Any) -> Any:
        norm = where.module(nn.BatchNorm1d(64))
        x = where.tensor(IMAGES.flatten(1)).requires_grad_()
        checkpoint(norm, x, use_reentrant=False).square().sum().backward()
        return [norm.num_batches_tracked, x.grad]

    (there, slope), (here, expected) = fetched(counted(There(client))), fetched(counted(Here()))
    assert (int(there), int(here)) == (1, 2)
    assert slope.equal(expected)
