"""What federated training does with models and optimisers: one optimiser's state a worker, sums and means of models."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from grid_jupyter.errors import InvalidDataError

M = TypeVar("M", bound=torch.nn.Module)


class Optims:
    """An optimiser for each worker, so that momentum and the like stay where they are.

    `Optims(["bob", "alice"], Adam(model.parameters()))`: the settings are copied, the state is each worker's own.
    """

    def __init__(self, workers: Iterable[Any], optim: torch.optim.Optimizer) -> None:
        """`workers` are workers, or their ids. Raises TypeError for what is no optimiser, such as its class."""
        if not isinstance(optim, torch.optim.Optimizer):
            raise TypeError("Optims copies an optimiser's settings; make one: (workers, Adam(model.parameters()))")
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for worker in workers:
            made = copy.copy(optim)
            made.__dict__ = dict(optim.__dict__)
            made.param_groups = [{**group, "params": list(group["params"])} for group in optim.param_groups]
            made.state = type(optim.state)(dict)
            self.optimizers[worker if isinstance(worker, str) else worker.id] = made

    @property
    def workers(self) -> list[str]:
        """Ids of the workers."""
        return list(self.optimizers)

    def count(self) -> int:
        """How many workers there are."""
        return len(self.optimizers)

    def get_optim(self, worker: str, parameters: Iterable[torch.Tensor] | None = None) -> torch.optim.Optimizer:
        """The worker's optimiser. `parameters` are those of the model as it is now: a model that was sent has new ones.

        Raises InvalidDataError for an unknown worker, or another number of parameters.
        """
        found = self.optimizers.get(worker)
        if found is None:
            raise InvalidDataError(f"there is no optimiser for {worker!r}; there are: {', '.join(self.workers)}")
        if parameters is not None:
            _point(found, list(parameters))
        return found


def _point(optim: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> None:
    """Let an optimiser go on with other parameters in place of its own, in their order."""
    before = [one for group in optim.param_groups for one in group["params"]]
    if len(before) != len(parameters):
        raise InvalidDataError(f"the optimiser has {len(before)} parameters, and here are {len(parameters)}")
    later = {id(old): new for old, new in zip(before, parameters, strict=True)}
    for group in optim.param_groups:
        group["params"] = [later[id(one)] for one in group["params"]]
    for old, new in zip(before, parameters, strict=True):
        if new is not old and old in optim.state:
            optim.state[new] = optim.state.pop(old)


def federated_avg(models: Mapping[Any, M] | Sequence[M]) -> M:
    """A new model whose floating parameters and buffers are the means of the given ones', each counted once:

        mean[p] = sum_k model_k[p] / K

    All are at one place. Raises InvalidDataError for none, or for models of different names and shapes.
    """
    given = list(models.values()) if isinstance(models, Mapping) else list(models)
    if not given:
        raise InvalidDataError("there is no mean of no models")
    total = copy.deepcopy(given[0])
    for model in given[1:]:
        add_model(total, model)
    return scale_model(total, 1 / len(given))


def add_model(dst_model: M, src_model: torch.nn.Module) -> M:
    """Add the other model's floating parameters and buffers to the first one's, in place. Raises InvalidDataError."""
    ours, theirs = dst_model.state_dict(), src_model.state_dict()
    if {name: tensor.shape for name, tensor in ours.items()} != {n: t.shape for n, t in theirs.items()}:
        raise InvalidDataError("the models differ in the names or shapes of their parameters")
    with torch.no_grad():
        for name, tensor in ours.items():
            if tensor.is_floating_point():
                tensor.add_(theirs[name])
    return dst_model


def scale_model(model: M, scale: float) -> M:
    """Multiply a model's floating parameters and buffers by a number, in place."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(scale)
    return model


def accuracy(pred_softmax: torch.Tensor, target: torch.Tensor) -> Any:
    """The share of rows [n, classes] whose largest entry is at the target [n]: a number of 0 to 1.

    Of pointers it is a pointer.
    """
    hits = (pred_softmax.argmax(dim=1) == target.reshape(-1)).float().mean()
    return hits if type(hits) is not torch.Tensor else hits.item()
