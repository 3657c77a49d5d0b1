"""How parameters move: SGD with momentum, Adam and AdamW as data, and as pure functions that a plan can hold.

With p a parameter, g its gradient, t the number of the step (from 1):

    SGD     d = g + weight_decay·p;  v = momentum·v + d;  d = d + momentum·v (nesterov) or v;  p = p − lr·d
    Adam    d = g + weight_decay·p;  m = β₁·m + (1−β₁)·d;  s = β₂·s + (1−β₂)·d²
            p = p − lr/(1−β₁ᵗ) · m / (√s/√(1−β₂ᵗ) + eps)
    AdamW   as Adam with d = g, and p = p − lr·weight_decay·p before

They are torch.optim's (https://docs.pytorch.org/docs/stable/optim.html), without amsgrad, dampening and maximize.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Union

import torch
from torch import Tensor

from grid_jupyter.errors import NotCapturableError

Tensors = dict[str, Tensor]


class Rule(Protocol):
    """An optimiser as data: a frozen dataclass whose fields are its settings."""

    lr: float

    def init(self, params: Mapping[str, Tensor]) -> Tensors:
        """The state before the first step, by name."""
        ...

    def update(
        self, params: Mapping[str, Tensor], gradients: Mapping[str, Tensor], state: Mapping[str, Tensor], lr: Tensor
    ) -> tuple[Tensors, Tensors]:
        """New parameters and new state; changes nothing in place."""
        ...

    def build(self, params: Iterable[Tensor]) -> torch.optim.Optimizer:
        """torch's own optimiser with these settings."""
        ...

    def state_of(self, optimiser: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Tensors:
        """The state of torch's optimiser, by the names of `init`; before the first step that of `init`."""
        ...

    def restore(
        self, optimiser: torch.optim.Optimizer, params: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        """The other way: torch's optimiser goes on from this state. An empty one leaves it at its beginning."""
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent."""

    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def init(self, params: Mapping[str, Tensor]) -> Tensors:
        # torch starts with v = d at the first step, which 0·momentum + d is too
        return {f"momentum.{name}": torch.zeros_like(p) for name, p in params.items()} if self.momentum else {}

    def update(
        self, params: Mapping[str, Tensor], gradients: Mapping[str, Tensor], state: Mapping[str, Tensor], lr: Tensor
    ) -> tuple[Tensors, Tensors]:
        moved: Tensors = {}
        kept: Tensors = {}
        for name, p in params.items():
            d = gradients[name] + self.weight_decay * p if self.weight_decay else gradients[name]
            if self.momentum:
                v = kept[f"momentum.{name}"] = self.momentum * state[f"momentum.{name}"] + d
                d = d + self.momentum * v if self.nesterov else v
            moved[name] = p - lr * d
        return moved, kept

    def build(self, params: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            params, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )

    def state_of(self, optimiser: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Tensors:
        state = self.init(params)
        for name, p in params.items():
            buffer = optimiser.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                state[f"momentum.{name}"] = buffer
        return state

    def restore(
        self, optimiser: torch.optim.Optimizer, params: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        for name, p in params.items():
            if f"momentum.{name}" in state:
                optimiser.state[p]["momentum_buffer"] = state[f"momentum.{name}"].to(p).clone()


@dataclass(frozen=True)
class Adam:
    """Adam; AdamW where `decoupled`."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def init(self, params: Mapping[str, Tensor]) -> Tensors:
        state = {"step": torch.zeros(())}
        for name, p in params.items():
            state[f"mean.{name}"], state[f"square.{name}"] = torch.zeros_like(p), torch.zeros_like(p)
        return state

    def update(
        self, params: Mapping[str, Tensor], gradients: Mapping[str, Tensor], state: Mapping[str, Tensor], lr: Tensor
    ) -> tuple[Tensors, Tensors]:
        first, second = self.betas
        t = state["step"] + 1
        moved: Tensors = {}
        kept: Tensors = {"step": t}
        rate, scale = lr / (1 - torch.pow(first, t)), torch.sqrt(1 - torch.pow(second, t))
        for name, p in params.items():
            d, before = gradients[name], p
            if self.weight_decay and self.decoupled:
                before = p - lr * self.weight_decay * p
            elif self.weight_decay:
                d = d + self.weight_decay * p
            m = kept[f"mean.{name}"] = first * state[f"mean.{name}"] + (1 - first) * d
            s = kept[f"square.{name}"] = second * state[f"square.{name}"] + (1 - second) * d * d
            moved[name] = before - rate * m / (torch.sqrt(s) / scale + self.eps)
        return moved, kept

    def build(self, params: Iterable[Tensor]) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        return kind(params, self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    def state_of(self, optimiser: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Tensors:
        state = self.init(params)
        for name, p in params.items():
            kept = optimiser.state.get(p)
            if kept:
                state["step"] = kept["step"].to(state["step"])
                state[f"mean.{name}"], state[f"square.{name}"] = kept["exp_avg"], kept["exp_avg_sq"]
        return state

    def restore(
        self, optimiser: torch.optim.Optimizer, params: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        for name, p in params.items():
            if f"mean.{name}" in state:
                optimiser.state[p] = {
                    "step": state["step"].detach().cpu().clone(),
                    "exp_avg": state[f"mean.{name}"].to(p).clone(),
                    "exp_avg_sq": state[f"square.{name}"].to(p).clone(),
                }


Optimiser = Union[SGD, Adam]


def optimiser_of(given: torch.optim.Optimizer | Optimiser) -> Optimiser:
    """An optimiser of torch's as data; ours as it is. Raises NotCapturableError for what neither of ours is."""
    if isinstance(given, (SGD, Adam)):
        return given
    if len(given.param_groups) != 1:
        raise NotCapturableError("an optimiser with several groups of parameters cannot be captured; use one group")
    group: dict[str, Any] = given.param_groups[0]
    for option in ("amsgrad", "dampening", "maximize"):
        if group.get(option):
            raise NotCapturableError(f"the option {option} of optimisers cannot be captured; leave it out")
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    if type(given) is torch.optim.SGD:
        return SGD(lr, float(group["momentum"]), decay, bool(group["nesterov"]))
    if type(given) in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = type(given) is torch.optim.AdamW or bool(group.get("decoupled_weight_decay"))
        return Adam(lr, tuple(map(float, group["betas"])), float(group["eps"]), decay, decoupled)  # type: ignore[arg-type]
    raise NotCapturableError(f"{type(given).__name__} cannot be captured; use SGD, Adam or AdamW")


def moved_by(given: torch.optim.Optimizer | Optimiser, model: torch.nn.Module) -> frozenset[str]:
    """The parameters of a model that an optimiser moves: those that it has; or all, where it is one of ours, or one
    over other parameters, of which only the settings count."""
    named = dict(model.named_parameters())
    if isinstance(given, torch.optim.Optimizer):
        has = {id(one) for group in given.param_groups for one in group["params"]}
        moved = frozenset(name for name, one in named.items() if id(one) in has)
        if moved:
            return moved
    return frozenset(named)
