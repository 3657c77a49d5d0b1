"""What a server does with the mean change of a round: pure functions (weights, state, delta) -> (weights, state).

`delta` is mean(trained) - weights, so that a plain server adds it. All tensors have the weights' names and shapes, and
are computed in their dtype; the state begins empty. `lr` is the server's learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.aggregation.form import Tensors

State = Mapping[str, Tensors]
"""What a strategy keeps from round to round: tensors by name, by what they are for."""
Outcome = tuple[dict[str, NDArray[Any]], dict[str, dict[str, NDArray[Any]]]]
SecondMoment = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


def fedavg(weights: Tensors, state: State, delta: Tensors, *, lr: float) -> Outcome:
    """w <- w + lr * delta (McMahan et al. 2017, algorithm 1, where lr is 1)."""
    return {name: weights[name] + lr * change for name, change in delta.items()}, {}


def fedavgm(weights: Tensors, state: State, delta: Tensors, *, lr: float, momentum: float) -> Outcome:
    """v <- momentum * v + delta;  w <- w + lr * v  (Hsu, Qi, Brown 2019, section 3.3)."""
    before = state.get("momentum", {})
    speed = {name: momentum * before[name] + change if before else change for name, change in delta.items()}
    return {name: weights[name] + lr * speed[name] for name in delta}, {"momentum": speed}


def fedadagrad(weights: Tensors, state: State, delta: Tensors, *, lr: float, beta1: float, tau: float) -> Outcome:
    """v <- v + delta^2  (Reddi et al. 2021, algorithm 2, line FedAdagrad)."""
    return _adaptive(weights, state, delta, lr, beta1, tau, lambda v, change: v + change * change)


def fedyogi(
    weights: Tensors, state: State, delta: Tensors, *, lr: float, beta1: float, beta2: float, tau: float
) -> Outcome:
    """v <- v - (1 - beta2) * delta^2 * sign(v - delta^2)  (Reddi et al. 2021, algorithm 2, line FedYogi)."""

    def second(v: NDArray[Any], change: NDArray[Any]) -> NDArray[Any]:
        square = change * change
        moved: NDArray[Any] = v - (1 - beta2) * square * numpy.sign(v - square)
        return moved

    return _adaptive(weights, state, delta, lr, beta1, tau, second)


def fedadam(
    weights: Tensors, state: State, delta: Tensors, *, lr: float, beta1: float, beta2: float, tau: float
) -> Outcome:
    """v <- beta2 * v + (1 - beta2) * delta^2  (Reddi et al. 2021, algorithm 2, line FedAdam)."""
    return _adaptive(weights, state, delta, lr, beta1, tau, lambda v, change: beta2 * v + (1 - beta2) * change * change)


def _adaptive(
    weights: Tensors,
    state: State,
    delta: Tensors,
    lr: float,
    beta1: float,
    tau: float,
    second: SecondMoment,
) -> Outcome:
    """m <- beta1 * m + (1 - beta1) * delta;  w <- w + lr * m / (sqrt(v) + tau), from m = 0 and v = tau^2 on."""
    firsts, seconds = state.get("first", {}), state.get("second", {})
    new: dict[str, NDArray[Any]] = {}
    first: dict[str, NDArray[Any]] = {}
    second_moment: dict[str, NDArray[Any]] = {}
    for name, change in delta.items():
        before = firsts[name] if firsts else numpy.zeros_like(change)
        v = seconds[name] if seconds else numpy.full_like(change, tau * tau)
        first[name] = beta1 * before + (1 - beta1) * change
        second_moment[name] = second(v, change)
        new[name] = weights[name] + lr * first[name] / (numpy.sqrt(second_moment[name]) + tau)
    return new, {"first": first, "second": second_moment}
