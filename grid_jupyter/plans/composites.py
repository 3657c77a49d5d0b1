"""Functions of torch that are put in place of torch's own while a plan is traced.

torch's own would fix the batch size, hide their randomness or be one opaque operation: linear layers on more than two
dimensions, attention, dropout, recurrent layers (unrolled over time: one input product for all steps of a layer, one
recurrent product for each step).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_functional: Any = torch.nn.functional
_linear = _functional.linear
_lock = threading.RLock()


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Within it torch's functions are those of this module, for this whole process; one thread at a time."""
    layers: Any = torch._VF
    mine: list[tuple[Any, str, Callable[..., Any]]] = [
        (_functional, "linear", linear),
        (_functional, "dropout", dropout),
        *((_functional, name, channel_dropout) for name in ("dropout1d", "dropout2d", "dropout3d")),
        (_functional, "scaled_dot_product_attention", attention),
        (layers, "lstm", _lstm),
        (layers, "gru", _gru),
        (layers, "rnn_tanh", _rnn_tanh),
        (layers, "rnn_relu", _rnn_relu),
    ]
    with _lock:
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in mine]
        try:
            for owner, name, function in mine:
                setattr(owner, name, function)
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002  # torch's name
    """As torch's, as one product of matrices whatever the number of dimensions."""
    if input.dim() <= 2:
        return _linear(input, weight, bias)  # type: ignore[no-any-return]
    rows = math.prod(input.shape[:-1])
    result: Tensor = _linear(input.reshape(rows, input.shape[-1]), weight, bias)
    return result.view(*input.shape[:-1], weight.shape[0])


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002
    """As torch's, of uniform noise."""
    return _dropped(input, list(input.shape), p, training)


def channel_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002
    """Whole channels are kept or dropped."""
    return _dropped(input, [*input.shape[:2], *[1] * (input.dim() - 2)], p, training)


def _dropped(x: Tensor, shape: list[int], p: float, training: bool) -> Tensor:
    if not training or p == 0:
        return x
    if p >= 1:
        return x * 0.0
    return x * (torch.rand(shape, dtype=x.dtype) >= p).to(x.dtype) * (1.0 / (1.0 - p))


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Softmax(q·kᵀ·scale + mask)·v."""
    if enable_gqa:
        raise NotImplementedError("grouped-query attention")
    scores = torch.matmul(query, key.transpose(-2, -1)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        rows, columns = query.shape[-2], key.shape[-2]
        attn_mask = torch.arange(columns)[None, :] <= torch.arange(rows)[:, None]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, torch.full((), float("-inf")))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(dropout(torch.softmax(scores, -1), dropout_p), value)


# ------------------------------------------------------------------ recurrent layers

Cell = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _lstm_cell(given: Tensor, again: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (given + again).chunk(4, 1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_cell(given: Tensor, again: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (gr, gz, gn), (ar, az, an) = given.chunk(3, 1), again.chunk(3, 1)
    n = torch.tanh(gn + torch.sigmoid(gr + ar) * an)
    return (n + torch.sigmoid(gz + az) * (state[0] - n),)


def _plain_cell(activation: Callable[[Tensor], Tensor]) -> Cell:
    return lambda given, again, _state: (activation(given + again),)


def _layers(
    cell: Cell, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], bias: bool, layers: int, drop: float,
    training: bool, both_ways: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    ways, per = (2 if both_ways else 1), (4 if bias else 2)
    if isinstance(weights, Tensor) or len(weights) != layers * ways * per:
        raise NotImplementedError("recurrent layers on packed sequences, or with projections")
    x = x.transpose(0, 1) if batch_first else x
    last: list[list[Tensor]] = [[] for _ in states]
    for layer in range(layers):
        sides: list[Tensor] = []
        for way in range(ways):
            k = layer * ways + way
            of_input, of_state, *biases = weights[k * per : (k + 1) * per]
            first, second = biases or (None, None)
            given = linear(x, of_input, first)
            state = tuple(one[k] for one in states)
            seen: dict[int, Tensor] = {}
            steps = range(x.shape[0])
            for t in steps if way == 0 else reversed(steps):
                state = cell(given[t], _linear(state[0], of_state, second), state)
                seen[t] = state[0]
            sides.append(torch.stack([seen[t] for t in steps]))
            for kept, one in zip(last, state, strict=True):
                kept.append(one)
        x = torch.cat(sides, 2) if both_ways else sides[0]
        if layer < layers - 1:
            x = dropout(x, drop, training)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(kept) for kept in last))


def _lstm(x: Tensor, states: Any, weights: Any, *options: Any) -> tuple[Tensor, ...]:
    return _layers(_lstm_cell, x, states, weights, *options)


def _gru(x: Tensor, state: Tensor, weights: Any, *options: Any) -> tuple[Tensor, ...]:
    return _layers(_gru_cell, x, [state], weights, *options)


def _rnn_tanh(x: Tensor, state: Tensor, weights: Any, *options: Any) -> tuple[Tensor, ...]:
    return _layers(_plain_cell(torch.tanh), x, [state], weights, *options)


def _rnn_relu(x: Tensor, state: Tensor, weights: Any, *options: Any) -> tuple[Tensor, ...]:
    return _layers(_plain_cell(torch.relu), x, [state], weights, *options)
