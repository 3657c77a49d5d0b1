"""What torch's larger operations are made of, in the operations that plans have: used while a step is traced.

torch's own table does most of it. What is here is what it lacks, or does by operations that are not in plans.
Names and argument orders are those of the ATen schemas. What keeps one operation in a plan (convolution, pooling,
softmax and their gradients) has a fast kernel in every engine and is not taken apart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import core_aten_decompositions, get_decompositions

aten = torch.ops.aten
Tensor = torch.Tensor

_OF_TORCH = """
    addcdiv addcmul binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits clamp_max
    clamp_min detach elu_backward empty_like fill.Scalar full_like gelu gelu_backward hardtanh_backward huber_loss
    huber_loss_backward leaky_relu_backward linalg_vector_norm _log_softmax_backward_data mish mish_backward mse_loss
    mse_loss_backward native_dropout native_layer_norm_backward new_empty new_full new_ones new_zeros nll_loss_backward
    nll_loss_forward ones ones_like rsub.Scalar sigmoid_backward silu silu_backward smooth_l1_loss
    smooth_l1_loss_backward _softmax_backward_data softplus softplus_backward split.Tensor squeeze.default squeeze.dim
    stack std.correction std_mean.correction t tanh_backward threshold_backward transpose.int unbind.int unsafe_chunk
    unsafe_split.Tensor zeros zeros_like
"""
_KEPT = """
    avg_pool2d_backward convolution_backward embedding_dense_backward fmod.Scalar index_add index_select _log_softmax
    max_pool2d_with_indices_backward remainder.Scalar _softmax
"""
_WHOLE = """
    gelu native_layer_norm _native_batch_norm_legit _native_batch_norm_legit_no_training native_batch_norm
    binary_cross_entropy mse_loss nll_loss_forward
"""
"""One operation in a forward plan; engines that derive gradients have their fast kernels. So are those of
plans/composites.py."""


@functools.cache
def table(whole: bool) -> dict[Any, Callable[..., Any]]:
    """For `make_fx`. `whole` keeps the layers that a forward plan has as one operation."""
    found: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    found.update(get_decompositions([_overload(name) for name in _OF_TORCH.split()]))
    for name in _KEPT.split():
        found.pop(_overload(name), None)
    found.update({_overload(name): function for name, function in _OURS.items()})
    for name in _WHOLE.split() if whole else ():
        found.pop(_overload(name), None)
    return found


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")  # names of the tables above alone


# ------------------------------------------------------------------ norms


def _channels(of: Tensor, like: Tensor) -> Any:
    """One number for each channel, in a shape that broadcasts to `like`."""
    return aten.view(of, [1, like.shape[1]] + [1] * (like.dim() - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _count(x: Tensor, dims: Sequence[int]) -> int:
    return math.prod(x.shape[d] for d in dims)


def _normalised(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Result, mean and 1/deviation that were used, new running mean and variance."""
    dims = _all_but_channels(x)
    if training:
        used = aten.mean.dim(x, dims)
        centred = x - _channels(used, x)
        spread = aten.mean.dim(centred * centred, dims)
        if mean is not None and variance is not None:
            n = _count(x, dims)
            mean = mean * (1 - momentum) + used * momentum
            variance = variance * (1 - momentum) + spread * (momentum * n / (n - 1))
    else:
        if mean is None or variance is None:
            raise NotImplementedError("batch norm without training and without running statistics")
        used, spread = mean, variance
        centred = x - _channels(used, x)
    rstd = aten.rsqrt(spread + eps)
    result = centred * _channels(rstd, x)
    if weight is not None:
        result = result * _channels(weight, x)
    if bias is not None:
        result = result + _channels(bias, x)
    return result, used, rstd, mean, variance


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    result, used, rstd, new_mean, new_variance = _normalised(x, weight, bias, mean, variance, training, momentum, eps)
    if training and mean is not None:
        aten.copy_(mean, new_mean)
        aten.copy_(variance, new_variance)
    return result, used, rstd


def _batch_norm_of_the_batch(
    x: Tensor, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _normalised(x, weight, bias, None, None, True, momentum, eps)[:3]


def _batch_norm_no_training(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _normalised(x, weight, bias, mean, variance, False, momentum, eps)[:3]


def _batch_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Any, variance: Any, used: Any, rstd: Any,
    training: bool, eps: float, wanted: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    dims = _all_but_channels(x)
    if not training:
        used, rstd = mean, aten.rsqrt(variance + eps)
    unit = (x - _channels(used, x)) * _channels(rstd, x)
    of_weight = aten.sum.dim_IntList(gradient * unit, dims) if wanted[1] else None
    of_bias = aten.sum.dim_IntList(gradient, dims) if wanted[2] else None
    inner = gradient if weight is None else gradient * _channels(weight, x)
    if training:
        inner = inner - aten.mean.dim(inner, dims, True) - unit * aten.mean.dim(inner * unit, dims, True)
    return inner * _channels(rstd, x), of_weight, of_bias


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = aten.mean.dim(x, dims, True)
    centred = x - mean
    rstd = aten.rsqrt(aten.mean.dim(centred * centred, dims, True) + eps)
    result = centred * rstd
    result = result if weight is None else result * weight
    return (result if bias is None else result + bias), mean, rstd


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, pixels: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    parts = aten.reshape(x, [n, groups, (c // groups) * pixels])
    mean = aten.mean.dim(parts, [2], True)
    centred = parts - mean
    rstd = aten.rsqrt(aten.mean.dim(centred * centred, [2], True) + eps)
    result = aten.reshape(centred * rstd, list(x.shape))
    if weight is not None:
        result = result * _channels(weight, x)
    if bias is not None:
        result = result + _channels(bias, x)
    return result, aten.squeeze.dims(mean, [2]), aten.squeeze.dims(rstd, [2])


def _group_norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, n: int, c: int, pixels: int,
    groups: int, wanted: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    def grouped(t: Tensor) -> Any:
        return aten.reshape(t, [n, groups, c // groups, pixels])

    ones = [n, groups, 1, 1]
    unit = (grouped(x) - aten.view(mean, ones)) * aten.view(rstd, ones)
    outer = grouped(gradient)
    inner = outer if weight is None else outer * aten.view(weight, [1, groups, c // groups, 1])
    of_x = inner - aten.mean.dim(inner, [2, 3], True) - unit * aten.mean.dim(inner * unit, [2, 3], True)
    of_x = aten.reshape(of_x * aten.view(rstd, ones), list(x.shape))
    of_weight = aten.reshape(aten.sum.dim_IntList(outer * unit, [0, 3]), [c]) if wanted[1] else None
    of_bias = aten.reshape(aten.sum.dim_IntList(outer, [0, 3]), [c]) if wanted[2] else None
    return of_x, of_weight, of_bias


def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    mean = aten.mean.dim(x, dims, True)
    divisor = _count(x, dims) - (1 if correction is None else correction)
    variance = aten.sum.dim_IntList((x - mean) * (x - mean), dims, keepdim) / divisor
    return variance, (mean if keepdim else aten.squeeze.dims(mean, dims))


def _var(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


# ------------------------------------------------------------------ parts of tensors


def _padded(gradient: Tensor, rank: int, dim: int, before: int, after: int) -> Any:
    amounts = [0, 0] * rank
    amounts[2 * (rank - 1 - dim)], amounts[2 * (rank - 1 - dim) + 1] = before, after
    return aten.constant_pad_nd(gradient, amounts, 0.0)


def _slice_backward(gradient: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Any:
    if step != 1:
        raise NotImplementedError("the gradient of a slice with a step")
    rank, length = len(sizes), sizes[dim]
    start = start + length if start < 0 else start
    return _padded(gradient, rank, dim % rank, start, length - gradient.shape[dim] - start)


def _select_backward(gradient: Tensor, sizes: Sequence[int], dim: int, index: int) -> Any:
    rank, dim = len(sizes), dim % len(sizes)
    index = index + sizes[dim] if index < 0 else index
    return _padded(aten.unsqueeze(gradient, dim), rank, dim, index, sizes[dim] - 1 - index)


def _repeat(x: Tensor, repeats: Sequence[int]) -> Any:
    shape = [1] * (len(repeats) - x.dim()) + list(x.shape)
    apart = [part for length in shape for part in (1, length)]
    spread = [part for n, length in zip(repeats, shape, strict=True) for part in (n, length)]
    whole = [n * length for n, length in zip(repeats, shape, strict=True)]
    return aten.reshape(aten.expand(aten.reshape(x, apart), spread), whole)


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
    if not dims:
        return aten.reshape(_roll(aten.reshape(x, [x.numel()]), shifts, [0]), list(x.shape))
    for shift, dim in zip(shifts, dims, strict=True):
        length = x.shape[dim]
        at = -shift % length if length else 0
        x = aten.cat([aten.slice.Tensor(x, dim, at, length), aten.slice.Tensor(x, dim, 0, at)], dim)
    return x


def _xlogy(x: Tensor, y: Tensor) -> Any:
    """x·log(y), and 0 where x is, whatever y is."""
    return aten.where.self(aten.eq.Scalar(x, 0), aten.full([], 0.0, dtype=x.dtype), x * aten.log(y))


def _extremum(position: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
        index = position(x, dim, True)
        value = aten.gather(x, dim, index)
        return (value, index) if keepdim else (aten.squeeze.dims(value, [dim]), aten.squeeze.dims(index, [dim]))

    return along


def _outer(indices: Sequence[Tensor | None]) -> list[tuple[int, Tensor]] | None:
    """Dimensions with one list of indices each, if `x[indices]` is the outer product of such lists."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if any(index.dtype == torch.bool for _, index in given):
        raise NotImplementedError("indexing by a mask, whose result is as long as values say")
    if [dim for dim, _ in given] != list(range(given[0][0], given[0][0] + len(given))):
        return None
    found: list[tuple[int, Tensor]] = []
    for k, (dim, index) in enumerate(given):  # shapes [n, 1, 1], [m, 1], [p]
        if index.dim() != len(given) - k or any(length != 1 for length in index.shape[1:]):
            return None
        found.append((dim, aten.reshape(index, [index.shape[0]])))
    return found


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    lists = _outer(indices)
    if lists is None:
        return NotImplemented
    for dim, index in lists:
        x = aten.index_select(x, dim, index)
    return x


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    lists = _outer(indices)
    if lists is None or not accumulate:
        return NotImplemented
    shapes = [list(x.shape)]
    for dim, index in lists:
        shapes.append([*shapes[-1][:dim], index.shape[0], *shapes[-1][dim + 1 :]])
    values = aten.expand(values, shapes[-1])
    for (dim, index), shape in reversed(list(zip(lists, shapes[:-1], strict=True))):
        values = aten.index_add(aten.full(shape, 0.0, dtype=values.dtype), dim, index, values)
    return x + values


# ------------------------------------------------------------------ pooling, activations, noise


def _divided(x: Tensor, out: Sequence[int]) -> list[int]:
    if x.shape[-2] % out[0] or x.shape[-1] % out[1]:
        raise NotImplementedError("adaptive pooling to a size that does not divide the image")
    return [x.shape[-2] // out[0], x.shape[-1] // out[1]]


def _adaptive_avg(x: Tensor, out: Sequence[int]) -> Any:
    return aten.avg_pool2d(x, _divided(x, out))


def _adaptive_avg_backward(gradient: Tensor, x: Tensor) -> Any:
    kernel = _divided(x, gradient.shape[-2:])
    return aten.avg_pool2d_backward(gradient, x, kernel, kernel, [0, 0], False, True, None)


def _adaptive_max(x: Tensor, out: Sequence[int]) -> Any:
    return aten.max_pool2d_with_indices(x, _divided(x, out))


def _adaptive_max_backward(gradient: Tensor, x: Tensor, indices: Tensor) -> Any:
    kernel = _divided(x, gradient.shape[-2:])
    return aten.max_pool2d_with_indices_backward(gradient, x, kernel, kernel, [0, 0], [1, 1], False, indices)


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    below = aten.expm1(aten.clamp(x, None, 0.0) * input_scale) * (alpha * scale)
    return aten.where.self(x > 0, x * scale, below)


def _bernoulli(x: Tensor, p: float = 0.5, *, generator: Any = None) -> Any:
    return (aten.rand_like(x) < p).to(x.dtype)


def _bernoulli_(x: Tensor, p: float = 0.5, generator: Any = None) -> Any:
    return aten.copy_(x, _bernoulli(x, p))


def _empty(size: Sequence[int], *, dtype: Any = None, **_: Any) -> Any:
    return aten.full(size, 0, dtype=dtype or torch.get_default_dtype())


_OURS: dict[str, Callable[..., Any]] = {
    "_adaptive_avg_pool2d": _adaptive_avg,
    "_adaptive_avg_pool2d_backward": _adaptive_avg_backward,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit.no_stats": _batch_norm_of_the_batch,
    "_native_batch_norm_legit_functional": _normalised,
    "_native_batch_norm_legit_no_training": _batch_norm_no_training,
    "_unsafe_index.Tensor": _index,
    "_unsafe_index_put": _index_put,
    "adaptive_max_pool2d": _adaptive_max,
    "adaptive_max_pool2d_backward": _adaptive_max_backward,
    "bernoulli.p": _bernoulli,
    "bernoulli_.float": _bernoulli_,
    "elu": _elu,
    "empty.memory_format": _empty,
    "empty_permuted": lambda size, physical_layout, *, dtype=None, **_: _empty(size, dtype=dtype),
    "hardtanh": lambda x, low=-1.0, high=1.0: aten.clamp(x, low, high),
    "index.Tensor": _index,
    "index_put": _index_put,
    "isnan": lambda x: aten.ne.Tensor(x, x),
    "lift_fresh_copy": lambda x: aten.clone(x),
    "max.dim": _extremum(aten.argmax),
    "min.dim": _extremum(aten.argmin),
    "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm_backward,
    "native_group_norm": _group_norm,
    "native_group_norm_backward": _group_norm_backward,
    "native_layer_norm": _layer_norm,
    "repeat": _repeat,
    "roll": _roll,
    "select_backward": _select_backward,
    "slice_backward": _slice_backward,
    "var.correction": _var,
    "var_mean.correction": _var_mean,
    "xlogy.Tensor": _xlogy,
}
