"""What recurrent layers and losses give, and refuse, as plans/rules.py does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grid_jupyter.plans.shapes import Results, Value, broadcast, is_floating, is_index, need, one

NONE, MEAN, SUM = 0, 1, 2
"""What a loss does with its elements, in torch's numbers."""

# ------------------------------------------------------------------ losses


def _reduced(x: Value, reduction: int) -> Results:
    need(reduction in (NONE, MEAN, SUM), "the reduction of a loss is 0 (none), 1 (mean) or 2 (sum)")
    return (x,) if reduction == NONE else one(x.dtype, ())


def _alike(x: Value, target: Value, *weights: Value | None) -> None:
    is_floating(x, "a loss")
    need(target == x, f"a loss of {x.dtype}{list(x.shape)} for {target.dtype}{list(target.shape)}")
    for weight in weights:
        if weight is not None:
            need(weight.dtype == x.dtype and broadcast((x, weight)) == x.shape, "the weights of a loss do not fit")


def mse_loss(x: Value, target: Value, reduction: int) -> Results:
    _alike(x, target)
    return _reduced(x, reduction)


def binary_cross_entropy(x: Value, target: Value, weight: Value | None, reduction: int) -> Results:
    _alike(x, target, weight)
    return _reduced(x, reduction)


def binary_cross_entropy_with_logits(
    x: Value, target: Value, weight: Value | None, positive: Value | None, reduction: int
) -> Results:
    _alike(x, target, weight, positive)
    return _reduced(x, reduction)


def nll_loss(x: Value, target: Value, weight: Value | None, reduction: int, _ignored: int) -> Results:
    is_floating(x, "a loss")
    is_index(target)
    need(len(x.shape) in (1, 2) and x.shape[-1] > 0 and target.shape == x.shape[:-1],
         f"nll_loss of {x.shape} for {target.shape}")  # fmt: skip
    need(weight in (None, Value(x.dtype, x.shape[-1:])), "nll_loss has one weight for each class")
    return _reduced(Value(x.dtype, target.shape), reduction)


# ------------------------------------------------------------------ recurrent layers


def _recurrent(
    gates: int, x: Value, states: Sequence[Value], input_weight: Value, state_weight: Value, *biases: Value | None
) -> Results:
    is_floating(x, "a recurrent layer")
    need(len(x.shape) == 3 and all(x.shape), "a recurrent layer takes steps of batches of numbers, and at least one")
    steps, batch, width = x.shape
    state = states[0]
    need(len(state.shape) == 2 and state.shape[1] > 0, "a recurrent layer's state is no matrix")
    hidden = state.shape[1]
    need(all(one == Value(x.dtype, (batch, hidden)) for one in states), "a recurrent layer's state does not fit")
    need(input_weight == Value(x.dtype, (gates * hidden, width)), "a recurrent layer's weights do not fit its input")
    need(state_weight == Value(x.dtype, (gates * hidden, hidden)), "a recurrent layer's weights do not fit its state")
    need(len({bias is None for bias in biases}) == 1, "a recurrent layer has two biases or none")
    need(all(bias in (None, Value(x.dtype, (gates * hidden,))) for bias in biases), "a recurrent layer's biases")
    return (Value(x.dtype, (steps, batch, hidden)), *states)


def lstm(
    x: Value, h: Value, c: Value, input_weight: Value, state_weight: Value, input_bias: Value | None,
    state_bias: Value | None, _reverse: bool,
) -> Results:  # fmt: skip
    return _recurrent(4, x, (h, c), input_weight, state_weight, input_bias, state_bias)


def gru(
    x: Value, h: Value, input_weight: Value, state_weight: Value, input_bias: Value | None, state_bias: Value | None,
    _reverse: bool,
) -> Results:  # fmt: skip
    return _recurrent(3, x, (h,), input_weight, state_weight, input_bias, state_bias)


def rnn(
    x: Value, h: Value, input_weight: Value, state_weight: Value, input_bias: Value | None, state_bias: Value | None,
    _relu: bool, _reverse: bool,
) -> Results:  # fmt: skip
    return _recurrent(1, x, (h,), input_weight, state_weight, input_bias, state_bias)


def recurrent_work(arguments: Sequence[Any], results: Results) -> int:
    """Two matrix products for each step of time: 2·steps·batch·(numbers of both weights)."""
    weights = [value for value in arguments[1:] if isinstance(value, Value) and len(value.shape) == 2][-2:]
    steps, batch, _ = results[0].shape
    return 2 * steps * batch * sum(weight.elements for weight in weights)
