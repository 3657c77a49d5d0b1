"""How a job's parameters move by their gradients: SGD, Adam and AdamW, in calls for all parameters at once.

torch's own optimisers take as long as a small network's whole backward pass. What is here does the same operations in
the same order, so that weights are the same to the bit.
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
            self._velocity = [
                state[f"{number}.momentum_buffer"].clone().to(param.device) for number, param in enumerate(self._params)
            ]


class Adaptive:
    """Adam and AdamW: m = β₁·m + (1 − β₁)·d; s = β₂·s + (1 − β₂)·d²; p = p − lr/(1 − β₁ᵗ)·m/(√s/√(1 − β₂ᵗ) + eps),
    where d = g + decay·p, or of AdamW d = g and p = (1 − lr·decay)·p before."""

    def __init__(self, params: Tensors, arguments: Arguments) -> None:
        numbers = arguments.numbers
        self._params = list(params)
        self._apart = arguments.optimizer == "adamw"
        self._lr, self._eps = numbers["lr"], numbers.get("eps", 1e-8)
        self._betas = numbers.get("beta1", 0.9), numbers.get("beta2", 0.999)
        self._decay = numbers.get("weight_decay", 0.01 if self._apart else 0.0)
        self._steps = 0
        self._mean: list[torch.Tensor] = []
        self._square: list[torch.Tensor] = []

    def move(self, grads: Tensors) -> None:
        """As Update.move."""
        first, second = self._betas
        if not self._steps:
            self._mean = [torch.zeros_like(param) for param in self._params]
            self._square = [torch.zeros_like(param) for param in self._params]
        self._steps += 1
        if self._decay and self._apart:
            torch._foreach_mul_(self._params, 1 - self._lr * self._decay)
        elif self._decay:
            grads = torch._foreach_add(grads, self._params, alpha=self._decay)
        torch._foreach_lerp_(self._mean, grads, 1 - first)
        torch._foreach_mul_(self._square, second)
        torch._foreach_addcmul_(self._square, grads, grads, 1 - second)
        below = torch._foreach_sqrt(self._square)
        torch._foreach_div_(below, (1 - second**self._steps) ** 0.5)
        torch._foreach_add_(below, self._eps)
        torch._foreach_addcdiv_(self._params, self._mean, below, -self._lr / (1 - first**self._steps))

    def clear(self) -> None:
        """As Update.clear."""
        self._steps = 0
        self._mean, self._square = [], []

    def state(self) -> dict[str, torch.Tensor]:
        """As Update.state."""
        found: dict[str, torch.Tensor] = {}
        for number, (mean, square) in enumerate(zip(self._mean, self._square, strict=True)):
            found[f"{number}.step"] = torch.tensor(float(self._steps))
            found[f"{number}.exp_avg"], found[f"{number}.exp_avg_sq"] = mean, square
        return found

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """As Update.restore."""
        if state:
            self._steps = int(state["0.step"].item())
            self._mean = [state[f"{at}.exp_avg"].clone().to(one.device) for at, one in enumerate(self._params)]
            self._square = [state[f"{at}.exp_avg_sq"].clone().to(one.device) for at, one in enumerate(self._params)]
