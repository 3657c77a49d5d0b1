"""Local training on a worker of this process: what a job is on a Node, to try a training out in a sandbox."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

import torch

from grid_jupyter.client.participants import Answer, Weights
from grid_jupyter.errors import GridError, InvalidDataError, RemoteOperationError, SessionLostError

if TYPE_CHECKING:
    from grid_jupyter.client.federation import LocalSteps


class LocalJob:
    """Epochs of ordinary torch on rows [n, …] and targets [n, …] that a VirtualWorker holds."""

    def __init__(self, model: torch.nn.Module, loss: Any, rows: Any, targets: Any, steps: LocalSteps) -> None:
        """`steps` says how to train (`LocalSteps`). Raises InvalidDataError for no rows, or other many targets."""
        if len(rows) != len(targets) or not len(rows):
            raise InvalidDataError(f"{rows.location.id} has {len(rows)} rows for {len(targets)} targets")
        self.id = f"local at {rows.location.id}"
        self._model = copy.deepcopy(model)
        self._loss = loss
        self._pointers = rows, targets
        self._steps = steps
        self._cancelled = False

    def ready(self, timeout_s: float) -> bool:
        """A worker of this process has no owner to ask."""
        return True

    def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
        """Train from these weights on, by the seed and the number of the round alone."""
        rows, targets = (one._ref.session.read(one._ref.id, None)[0] for one in self._pointers)
        steps, model = self._steps, self._model
        model.load_state_dict(weights)
        model.train()
        trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        start = {name: one.detach().clone() for name, one in trained} if steps.proximal else {}
        optimizer = steps.optimizer.build([one for _, one in trained])
        done, loss = 0, torch.zeros(())
        for epoch in range(1, steps.epochs + 1):
            loss = torch.zeros(())
            order = torch.arange(len(rows))
            if steps.shuffle:
                order = torch.randperm(len(rows), generator=_generator(steps.seed, number, epoch))
            for batch in order.split(steps.batch_size):
                if self._cancelled:
                    raise SessionLostError("the training was cancelled")
                optimizer.zero_grad()
                part = self._of(model, rows[batch], targets[batch])
                part.backward()
                for name, one in trained:
                    if one.grad is not None and steps.proximal:
                        one.grad.add_(one.detach() - start[name], alpha=steps.proximal)
                    if one.grad is not None and correction is not None:
                        one.grad.add_(correction[name])
                optimizer.step()
                loss += part.detach() * len(batch) / len(rows)
                done += 1
        found = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if not all(torch.isfinite(value).all() for value in found.values() if value.is_floating_point()):
            raise RemoteOperationError("training diverged: the weights are no numbers any more. Try a smaller lr")
        return Answer(found, len(rows), done, {"loss": float(loss)})

    def cancel(self) -> None:
        """End it at the next batch."""
        self._cancelled = True

    def finish(self) -> None:
        """There is nothing to be told of it afterwards."""
        self.cancel()

    def _of(self, model: torch.nn.Module, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        try:
            found: torch.Tensor = self._loss(model(rows), targets)
        except (RuntimeError, TypeError, IndexError) as error:
            raise GridError(f"model and loss do not fit the rows at {self.id}: {error}") from None
        return found


def _generator(*numbers: int) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
