"""How a job's parameters move by their gradients: SGD in calls for all of them at once, Adam by torch's optimiser.

torch's own SGD takes as long as a small network's whole backward pass. What is here does the same operations in the
same order, so that weights are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Union

import torch

from grid_jupyter.wire.jobs import Arguments

Tensors = Union[list[torch.Tensor], tuple[torch.Tensor, ...]]


class Update(Protocol):
    """Moves parameters, in place, and remembers what it must for the next step."""

    def move(self, grads: Tensors) -> None:
        """One step. Gradients are in the order of the parameters; they are not written to."""
        ...

    def clear(self) -> None:
        """Forget all steps."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """What is remembered, by number of the parameter and torch's name for it."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Remember it again."""
        ...


def update_of(params: Tensors, arguments: Arguments) -> Update:
    """The update that a job asks for. Its numbers were checked where the job was taken (node/job_documents.py)."""
    return Descent(params, arguments) if arguments.optimizer == "sgd" else Adaptive(params, arguments)


class Descent:
    """SGD: d = g + decay·p; v = momentum·v + (1 − dampening)·d, at first d; p = p − lr·v, or with Nesterov's
    momentum p − lr·(d + momentum·v)."""

    def __init__(self, params: Tensors, arguments: Arguments) -> None:
        numbers = arguments.numbers
        self._params = list(params)
        self._lr, self._decay = numbers["lr"], numbers.get("weight_decay", 0.0)
        self._momentum, self._dampening = numbers.get("momentum", 0.0), numbers.get("dampening", 0.0)
        self._nesterov = bool(numbers.get("nesterov", 0.0))
        self._velocity: list[torch.Tensor] = []

    def move(self, grads: Tensors) -> None:
        """As Update.move."""
        if self._decay:
            grads = torch._foreach_add(grads, self._params, alpha=self._decay)
        if self._momentum:
            if self._velocity:
                torch._foreach_mul_(self._velocity, self._momentum)
                torch._foreach_add_(self._velocity, grads, alpha=1 - self._dampening)
            else:
                self._velocity = [grad.clone() for grad in grads]
            velocity = self._velocity
            grads = torch._foreach_add(grads, velocity, alpha=self._momentum) if self._nesterov else velocity
        torch._foreach_add_(self._params, grads, alpha=-self._lr)

    def clear(self) -> None:
        """As Update.clear."""
        self._velocity = []

    def state(self) -> dict[str, torch.Tensor]:
        """As Update.state."""
        return {f"{number}.momentum_buffer": one for number, one in enumerate(self._velocity)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """As Update.restore."""
        if state:
            self._velocity = [state[f"{number}.momentum_buffer"].clone() for number in range(len(self._params))]


class Adaptive:
    """Adam and AdamW."""

    def __init__(self, params: Tensors, arguments: Arguments) -> None:
        numbers = arguments.numbers
        kind = torch.optim.AdamW if arguments.optimizer == "adamw" else torch.optim.Adam
        self._params = list(params)
        self._torch = kind(
            self._params,
            lr=numbers["lr"],
            betas=(numbers.get("beta1", 0.9), numbers.get("beta2", 0.999)),
            eps=numbers.get("eps", 1e-8),
            weight_decay=numbers.get("weight_decay", 0.01 if arguments.optimizer == "adamw" else 0.0),
            foreach=True,
        )

    def move(self, grads: Tensors) -> None:
        """As Update.move."""
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad
        self._torch.step()

    def clear(self) -> None:
        """As Update.clear."""
        self._torch.state.clear()

    def state(self) -> dict[str, torch.Tensor]:
        """As Update.state."""
        return {
            f"{number}.{name}": value
            for number, param in enumerate(self._params)
            for name, value in self._torch.state.get(param, {}).items()
            if isinstance(value, torch.Tensor)
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """As Update.restore."""
        for name, value in state.items():
            number, _, field = name.partition(".")
            self._torch.state[self._params[int(number)]][field] = value.clone()
