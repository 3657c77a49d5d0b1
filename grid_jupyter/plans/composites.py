"""Functions of torch that are put in place of torch's own while a plan is traced.

torch's own would fix the batch size, hide their randomness or be one opaque operation: linear layers on more than two
dimensions, attention, dropout, recurrent layers: one operation for each layer and direction in plans that have them
whole, else unrolled over time (one input product for all steps of a layer, one recurrent product for each step).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_functional: Any = torch.nn.functional
_linear = _functional.linear
_lock = threading.RLock()


@contextlib.contextmanager
def in_place(whole: bool = False) -> Iterator[None]:
    """Within it torch's functions are those of this module, for this thread; one thread at a time. `whole` leaves
    recurrent layers and losses that plans have as one operation as they are."""
    layers: Any = torch._VF
    mine: list[tuple[Any, str, Callable[..., Any]]] = [
        (_functional, "linear", linear),
        (_functional, "dropout", dropout),
        *((_functional, name, channel_dropout) for name in ("dropout1d", "dropout2d", "dropout3d")),
        (_functional, "scaled_dot_product_attention", attention),
        *((layers, name, _stacked(kind, whole)) for name, kind in _KINDS.items()),
        *([(torch, "binary_cross_entropy_with_logits", _bce_with_logits)] if whole else ()),
    ]
    thread = threading.get_ident()

    def here(function: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: (function if threading.get_ident() == thread else otherwise)(*given, **named)

    with _lock:
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in mine]
        try:
            for (owner, name, function), (_, _, otherwise) in zip(mine, before, strict=True):
                setattr(owner, name, here(function, otherwise))
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

Layer = Callable[..., tuple[Tensor, ...]]
"""One layer in one direction: x (steps first), states, weights and biases, whether backwards in time → y, states."""
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


def _unrolled(cell: Cell) -> Layer:
    def layer(
        x: Tensor, state: tuple[Tensor, ...], of_input: Tensor, of_state: Tensor, first: Any, second: Any, reverse: bool
    ) -> tuple[Tensor, ...]:
        given = linear(x, of_input, first)
        seen: dict[int, Tensor] = {}
        steps = range(x.shape[0])
        for t in reversed(steps) if reverse else steps:
            state = cell(given[t], _linear(state[0], of_state, second), state)
            seen[t] = state[0]
        return (torch.stack([seen[t] for t in steps]), *state)

    return layer


_library = torch.library.Library("grid_plan", "DEF")
"""What a trace shows as one operation, by the name that it has in plans. It has no gradient: a forward plan needs
none."""
_WEIGHTS = "Tensor input_weight, Tensor state_weight, Tensor? input_bias, Tensor? state_bias"
_library.define(f"lstm(Tensor x, Tensor h, Tensor c, {_WEIGHTS}, bool reverse) -> (Tensor, Tensor, Tensor)")
_library.define(f"gru(Tensor x, Tensor h, {_WEIGHTS}, bool reverse) -> (Tensor, Tensor)")
_library.define(f"rnn(Tensor x, Tensor h, {_WEIGHTS}, bool relu, bool reverse) -> (Tensor, Tensor)")
_library.define(
    "binary_cross_entropy_with_logits(Tensor x, Tensor target, Tensor? weight, Tensor? positive, int reduction)"
    " -> Tensor"
)
_whole: Any = torch.ops.grid_plan


@dataclass(frozen=True)
class _Kind:
    """A kind of recurrent layer, with so many states: unrolled, and as one operation with `more` arguments."""

    states: int
    unrolled: Layer
    operation: Callable[..., tuple[Tensor, ...]]
    more: tuple[bool, ...] = ()

    def whole(self, x: Tensor, state: tuple[Tensor, ...], *weights_and_reverse: Any) -> tuple[Tensor, ...]:
        *weights, reverse = weights_and_reverse
        return self.operation(x, *state, *weights, *self.more, reverse)

    def compute(self, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """What the operation does, without `more`."""
        return self.unrolled(x, rest[: self.states], *rest[self.states :])


_KINDS = {
    "lstm": _Kind(2, _unrolled(_lstm_cell), _whole.lstm),
    "gru": _Kind(1, _unrolled(_gru_cell), _whole.gru),
    "rnn_tanh": _Kind(1, _unrolled(_plain_cell(torch.tanh)), _whole.rnn, (False,)),
    "rnn_relu": _Kind(1, _unrolled(_plain_cell(torch.relu)), _whole.rnn, (True,)),
}
"""By the names of torch's functions."""
_bce_of_torch = torch.binary_cross_entropy_with_logits


def _rnn(*given: Any) -> tuple[Tensor, ...]:
    *values, relu, reverse = given
    return _KINDS["rnn_relu" if relu else "rnn_tanh"].compute(*values, reverse)


for _name, _compute in (
    ("lstm", _KINDS["lstm"].compute),
    ("gru", _KINDS["gru"].compute),
    ("rnn", _rnn),
    ("binary_cross_entropy_with_logits", _bce_of_torch),
):
    _library.impl(_name, _compute, "CompositeExplicitAutograd")


def _bce_with_logits(
    input: Tensor, target: Tensor, weight: Any = None, pos_weight: Any = None, reduction: int = 1  # noqa: A002
) -> Tensor:  # fmt: skip
    made: Tensor = _whole.binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction)
    return made


def _stacked(kind: _Kind, whole: bool) -> Callable[..., tuple[Tensor, ...]]:
    layer = kind.whole if whole else kind.unrolled

    def run(x: Tensor, states: Any, *rest: Any) -> tuple[Tensor, ...]:
        return _layers(layer, x, states if kind.states > 1 else [states], *rest)

    return run


def _layers(
    layer: Layer, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], bias: bool, layers: int, drop: float,
    training: bool, both_ways: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    ways, per = (2 if both_ways else 1), (4 if bias else 2)
    if isinstance(weights, Tensor) or len(weights) != layers * ways * per:
        raise NotImplementedError("recurrent layers on packed sequences, or with projections")
    x = x.transpose(0, 1) if batch_first else x
    last: list[list[Tensor]] = [[] for _ in states]
    for number in range(layers):
        sides: list[Tensor] = []
        for way in range(ways):
            k = number * ways + way
            of_input, of_state, *biases = weights[k * per : (k + 1) * per]
            first, second = biases or (None, None)
            y, *state = layer(x, tuple(one[k] for one in states), of_input, of_state, first, second, way == 1)
            sides.append(y)
            for kept, one in zip(last, state, strict=True):
                kept.append(one)
        x = torch.cat(sides, 2) if both_ways else sides[0]
        if number < layers - 1:
            x = dropout(x, drop, training)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(kept) for kept in last))
