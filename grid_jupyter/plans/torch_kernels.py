"""For each operation of a plan the function of torch that computes it, with everything but the tensors bound.

`KERNELS[name](arguments, device)` takes the arguments of one node, with `Ref`s where values go and numbers computed,
and gives a function of these values in their order. It is a closed table: no name of a plan reaches torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from grid_jupyter.plans.document import Ref

Kernel = Callable[..., Any]
Maker = Callable[[Sequence[Any], torch.device], Kernel]

aten = torch.ops.aten
_nn: Any = torch._C._nn
_layers: Any = torch._VF  # looked up when it runs: a trace has others in their place (plans/composites.py)


def _bound(function: Kernel) -> Maker:
    """The function on the arguments in their order, with what is no value filled in."""

    def make(arguments: Sequence[Any], _device: torch.device) -> Kernel:
        places = [k for k, argument in enumerate(arguments) if isinstance(argument, Ref)]
        rest = tuple(arguments[len(places) :])
        if places == list(range(len(places))):
            if not rest:
                return function
            if len(places) == 1:
                return lambda x: function(x, *rest)
            return lambda *values: function(*values, *rest)
        if len(places) == 1 and places[0] == 1:
            first, behind = arguments[0], tuple(arguments[2:])
            return lambda x: function(first, x, *behind)

        def filled(*values: Any) -> Any:
            given = list(arguments)
            for k, value in zip(places, values, strict=True):
                given[k] = value
            return function(*given)

        return filled

    return make


def _reduction(function: Kernel) -> Maker:
    """torch takes no dimensions for all of them; a plan means none."""
    reduce = _bound(function)

    def make(arguments: Sequence[Any], device: torch.device) -> Kernel:
        return reduce(arguments, device) if arguments[1] else lambda x: x

    return make


def _sum(x: torch.Tensor, dims: Sequence[int], keep: bool) -> torch.Tensor:
    return torch.sum(x, dims, keep)  # type: ignore[call-overload, no-any-return]


def _sum_maker(arguments: Sequence[Any], device: torch.device) -> Kernel:
    if arguments[1]:
        return _bound(_sum)(arguments, device)
    return lambda x: x if x.is_floating_point() else x.to(torch.int64)


def _any_maker(arguments: Sequence[Any], device: torch.device) -> Kernel:
    if arguments[1]:
        return _bound(torch.any)(arguments, device)
    return lambda x: x.to(torch.bool)


def _cat(arguments: Sequence[Any], _device: torch.device) -> Kernel:
    dim = arguments[1]
    return lambda *parts: torch.cat(parts, dim)


def _full(arguments: Sequence[Any], device: torch.device) -> Kernel:
    shape, value, dtype = arguments
    return lambda: torch.full(shape, value, dtype=dtype, device=device)


def _arange(arguments: Sequence[Any], device: torch.device) -> Kernel:
    start, end, step, dtype = arguments
    return lambda: torch.arange(start, end, step, dtype=dtype, device=device)


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype)


def _clamp(x: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
    return torch.clamp(x, low, high)


def _where(condition: torch.Tensor, a: Any, b: Any) -> torch.Tensor:
    return torch.where(condition, a, b)


def _gelu(x: torch.Tensor, tanh: bool) -> torch.Tensor:
    return _nn.gelu(x, approximate="tanh" if tanh else "none")  # type: ignore[no-any-return]


def _convolution_backward(arguments: Sequence[Any], _device: torch.device) -> Kernel:
    *window, wanted = arguments[3:]

    def run(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        bias = [gradient.shape[1]]
        results = aten.convolution_backward.default(gradient, x, weight, bias, *window, wanted)
        return [result for result, want in zip(results, wanted, strict=True) if want]

    return _first_alone(run, sum(wanted))


def _first_alone(run: Kernel, results: int) -> Kernel:
    """A program takes the result itself of an operation that has one."""
    return (lambda *values: run(*values)[0]) if results == 1 else run


def _max_pool2d_backward(
    gradient: torch.Tensor, x: torch.Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool,
    indices: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    return aten.max_pool2d_with_indices_backward.default(  # type: ignore[no-any-return]
        gradient, x, kernel, stride, padding, dilation, ceil, indices
    )


def _embedding_backward(gradient: torch.Tensor, indices: torch.Tensor, rows: int, padding: int) -> torch.Tensor:
    return aten.embedding_dense_backward.default(gradient, indices, rows, padding, False)  # type: ignore[no-any-return]


def _layer_norm(x: torch.Tensor, dims: int, weight: Any, bias: Any, eps: float) -> torch.Tensor:
    return torch.layer_norm(x, x.shape[-dims:], weight, bias, eps)


def _batch_norm(arguments: Sequence[Any], device: torch.device) -> Kernel:
    updates = bool(arguments[5]) and arguments[3] is not None

    def run(
        x: torch.Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
    ) -> Any:
        if not updates:
            return torch.batch_norm(x, weight, bias, mean, variance, training, momentum, eps, False)
        mean, variance = mean.clone(), variance.clone()
        result = torch.batch_norm(x, weight, bias, mean, variance, training, momentum, eps, False)
        return result, mean, variance

    return _bound(run)(arguments, device)


def _expand(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return x.expand(shape)


def _slice(x: torch.Tensor, dim: int, start: int, end: int, step: int) -> torch.Tensor:
    if step == 1:
        return torch.narrow(x, dim, start, end - start)
    return x[(slice(None),) * dim + (slice(start, end, step),)]  # mypy for 3.10


def _split(arguments: Sequence[Any], device: torch.device) -> Kernel:
    return _first_alone(_bound(torch.split)(arguments, device), len(arguments[1]))


def _pad(x: torch.Tensor, amounts: Sequence[int], value: float) -> torch.Tensor:
    return torch.constant_pad_nd(x, amounts, value)


def _bce(x: torch.Tensor, target: torch.Tensor, weight: Any, reduction: int) -> torch.Tensor:
    return _nn.binary_cross_entropy(x, target, weight, reduction)  # type: ignore[no-any-return]


def _lstm(
    x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, input_weight: torch.Tensor, state_weight: torch.Tensor,
    input_bias: Any, state_bias: Any, reverse: bool,
) -> Any:  # fmt: skip
    weights = _weights(input_weight, state_weight, input_bias, state_bias)
    states = (h.unsqueeze(0), c.unsqueeze(0))
    x = x.flip(0) if reverse else x
    # one layer, no dropout; "training", without which a GPU gives no gradient
    y, h, c = _layers.lstm(x, states, weights, len(weights) == 4, 1, 0.0, True, False, False)
    return (y.flip(0) if reverse else y), h.squeeze(0), c.squeeze(0)


def _recurrent(layer: Callable[[], Kernel]) -> Kernel:
    def run(
        x: torch.Tensor, h: torch.Tensor, input_weight: torch.Tensor, state_weight: torch.Tensor, input_bias: Any,
        state_bias: Any, reverse: bool,
    ) -> Any:  # fmt: skip
        weights = _weights(input_weight, state_weight, input_bias, state_bias)
        x = x.flip(0) if reverse else x
        y, h = layer()(x, h.unsqueeze(0), weights, len(weights) == 4, 1, 0.0, True, False, False)
        return (y.flip(0) if reverse else y), h.squeeze(0)

    return run


def _weights(*given: torch.Tensor | None) -> list[torch.Tensor]:
    return [weight for weight in given if weight is not None]


def _rnn(arguments: Sequence[Any], device: torch.device) -> Kernel:
    *values, relu, reverse = arguments
    layer = _recurrent(lambda: _layers.rnn_relu if relu else _layers.rnn_tanh)
    return _bound(layer)([*values, reverse], device)


_PLAIN: dict[str, Kernel] = {
    "neg": torch.neg, "abs": torch.abs, "sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil,
    "round": torch.round, "trunc": torch.trunc, "relu": torch.relu, "exp": torch.exp, "log": torch.log,
    "log1p": torch.log1p, "expm1": torch.expm1, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "erf": torch.erf, "sin": torch.sin,
    "cos": torch.cos, "leaky_relu": _nn.leaky_relu, "gelu": _gelu, "add": operator.add, "sub": operator.sub,
    "mul": operator.mul, "div": operator.truediv, "maximum": torch.maximum, "minimum": torch.minimum,
    "pow": torch.pow, "fmod": torch.fmod, "remainder": torch.remainder, "clamp": _clamp, "eq": torch.eq,
    "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_not": torch.logical_not,
    "bitwise_and": torch.bitwise_and, "bitwise_or": torch.bitwise_or, "bitwise_not": torch.bitwise_not,
    "where": _where, "cast": _cast, "mm": torch.mm, "bmm": torch.bmm, "addmm": torch.addmm,
    "convolution": torch.convolution, "max_pool2d": _nn.max_pool2d_with_indices,
    "max_pool2d_backward": _max_pool2d_backward, "avg_pool2d": _nn.avg_pool2d,
    "avg_pool2d_backward": aten.avg_pool2d_backward.default, "embedding": torch.embedding,
    "embedding_backward": _embedding_backward, "softmax": torch.softmax, "log_softmax": torch.log_softmax,
    "layer_norm": _layer_norm, "argmax": torch.argmax, "argmin": torch.argmin, "cumsum": torch.cumsum,
    "reshape": torch.reshape, "permute": torch.permute, "expand": _expand, "slice": _slice, "select": torch.select,
    "pad": _pad, "flip": torch.flip, "tril": torch.tril, "triu": torch.triu, "index_select": torch.index_select,
    "index_add": torch.index_add, "gather": torch.gather, "scatter": torch.scatter,
    "scatter_add": torch.scatter_add, "mse_loss": _nn.mse_loss, "binary_cross_entropy": _bce,
    "binary_cross_entropy_with_logits": torch.binary_cross_entropy_with_logits, "nll_loss": _nn.nll_loss_nd,
    "lstm": _lstm, "gru": _recurrent(lambda: _layers.gru),
}  # fmt: skip

KERNELS: dict[str, Maker] = {
    **{name: _bound(function) for name, function in _PLAIN.items()},
    "mean": _reduction(torch.mean),
    "amax": _reduction(torch.amax),
    "amin": _reduction(torch.amin),
    "sum": _sum_maker,
    "any": _any_maker,
    "convolution_backward": _convolution_backward,
    "batch_norm": _batch_norm,
    "rnn": _rnn,
    "split": _split,
    "cat": _cat,
    "full": _full,
    "arange": _arange,
}  # fmt: skip
"""Operation → maker of its function."""
