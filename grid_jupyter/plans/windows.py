"""What products, convolutions, poolings, embeddings and norms give, and refuse, as plans/rules.py does the rest."""

from __future__ import annotations

from collections.abc import Sequence

from grid_jupyter.plans.expressions import MAX_NUMBER
from grid_jupyter.plans.shapes import Results, Value, at_dim, broadcast, is_floating, is_index, need, one


def mm(a: Value, b: Value) -> Results:
    need(len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[0], f"a product of {a.shape} and {b.shape}")
    is_floating(a)
    need(a.dtype == b.dtype, f"a product of {a.dtype} and {b.dtype}")
    return one(a.dtype, (a.shape[0], b.shape[1]))


def bmm(a: Value, b: Value) -> Results:
    need(len(a.shape) == len(b.shape) == 3 and a.shape[0] == b.shape[0], f"products of {a.shape} and {b.shape}")
    (result,) = mm(Value(a.dtype, a.shape[1:]), Value(b.dtype, b.shape[1:]))
    return one(a.dtype, (a.shape[0], *result.shape))


def addmm(bias: Value, a: Value, b: Value) -> Results:
    (result,) = mm(a, b)
    need(bias.dtype == result.dtype, f"a product of {result.dtype} and a bias of {bias.dtype}")
    need(broadcast((bias, result)) == result.shape, f"a bias of {bias.shape} for {result.shape}")
    return (result,)


def _window(*parts: tuple[Sequence[int], int, int]) -> None:
    for numbers, count, least in parts:
        need(len(numbers) == count and all(least <= n <= 1 << 20 for n in numbers), "a window's numbers do not fit")


def convolution(
    x: Value, weight: Value, bias: Value | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Results:  # fmt: skip
    spatial = len(x.shape) - 2
    need(spatial in (1, 2) and len(weight.shape) == len(x.shape), "a convolution of other than one or two dimensions")
    _window((stride, spatial, 1), (padding, spatial, 0), (dilation, spatial, 1), (output_padding, spatial, 0))
    is_floating(x, "a convolution")
    need(weight.dtype == x.dtype and all(x.shape[1:]) and all(weight.shape), "a convolution of nothing")
    inner, outer = weight.shape[:2] if transposed else weight.shape[1::-1]
    channels = outer * groups if transposed else outer
    given = inner if transposed else inner * groups
    need(groups >= 1 and channels % groups == 0 and given % groups == 0, "channels that groups do not divide")
    need(x.shape[1] == given, f"a convolution of {x.shape[1]} channels with weights for {given}")
    need(bias is None or bias == Value(x.dtype, (channels,)), "a convolution's bias does not fit")
    lengths: list[int] = []
    for d in range(spatial):
        reach = dilation[d] * (weight.shape[2 + d] - 1)
        if transposed:
            need(output_padding[d] < max(stride[d], dilation[d]), "an output padding as large as the stride")
            lengths.append((x.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d] + 1)
        else:
            lengths.append((x.shape[2 + d] + 2 * padding[d] - reach - 1) // stride[d] + 1)
    need(all(length >= 1 for length in lengths), "a convolution's kernel is larger than its input")
    return one(x.dtype, (x.shape[0], channels, *lengths))


def convolution_backward(
    gradient: Value, x: Value, weight: Value, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, wanted: Sequence[bool],
) -> Results:  # fmt: skip
    (result,) = convolution(x, weight, None, stride, padding, dilation, transposed, output_padding, groups)
    need(gradient == result, "the gradient of a convolution has another shape than its result")
    need(len(wanted) == 3 and any(wanted), "convolution_backward gives one to three gradients")
    bias = Value(x.dtype, (result.shape[1],))
    return tuple(value for value, want in zip((x, weight, bias), wanted, strict=True) if want)


def _pooled(
    x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil: bool
) -> tuple[int, ...]:
    is_floating(x, "pooling")
    need(len(x.shape) == 4 and all(x.shape[1:]), "pooling of other than images in batches")
    _window((kernel, 2, 1), (stride, 2, 1), (padding, 2, 0), (dilation, 2, 1))
    lengths: list[int] = []
    for length, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True):
        need(2 * p <= k, "a pooling's padding is more than half of its kernel")
        span = length + 2 * p - d * (k - 1) - 1
        steps = -(-span // s) if ceil else span // s
        if ceil and steps * s >= length + p:  # the last window must begin inside
            steps -= 1
        need(steps >= 0 and span >= 0, "a pooling's kernel is larger than its input")
        lengths.append(steps + 1)
    return (*x.shape[:2], *lengths)


def max_pool2d(
    x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil: bool
) -> Results:
    shape = _pooled(x, kernel, stride, padding, dilation, ceil)
    return Value(x.dtype, shape), Value("int64", shape)


def max_pool2d_backward(
    gradient: Value, x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], ceil: bool, indices: Value,
) -> Results:  # fmt: skip
    result, positions = max_pool2d(x, kernel, stride, padding, dilation, ceil)
    need(gradient == result and indices == positions, "the gradient of a pooling has another shape than its result")
    return (x,)


def avg_pool2d(
    x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool, _include: bool,
    divisor: int | None,
) -> Results:  # fmt: skip
    need(divisor is None or 1 <= divisor <= MAX_NUMBER, "a pooling's divisor is not positive")
    return one(x.dtype, _pooled(x, kernel, stride, padding, (1, 1), ceil))


def avg_pool2d_backward(
    gradient: Value, x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool,
    include: bool, divisor: int | None,
) -> Results:  # fmt: skip
    (result,) = avg_pool2d(x, kernel, stride, padding, ceil, include, divisor)
    need(gradient == result, "the gradient of a pooling has another shape than its result")
    return (x,)


def embedding(weight: Value, indices: Value) -> Results:
    is_index(indices)
    need(len(weight.shape) == 2, "an embedding's weights are no matrix")
    return one(weight.dtype, (*indices.shape, weight.shape[1]))


def embedding_backward(gradient: Value, indices: Value, rows: int, padding: int) -> Results:
    is_index(indices)
    is_floating(gradient, "a gradient")
    need(gradient.shape[:-1] == indices.shape and len(gradient.shape) >= 1, "an embedding's gradient does not fit")
    need(0 <= rows <= MAX_NUMBER and -1 <= padding < max(rows, 1), "an embedding's padding row is not there")
    return one(gradient.dtype, (rows, gradient.shape[-1]))


def softmax(x: Value, dim: int) -> Results:
    is_floating(x, "softmax")
    at_dim(x, dim)
    return (x,)


def layer_norm(x: Value, dims: int, weight: Value | None, bias: Value | None, _eps: float) -> Results:
    is_floating(x, "layer_norm")
    need(1 <= dims <= len(x.shape), "layer_norm over more dimensions than there are")
    part = Value(x.dtype, x.shape[-dims:])
    need(part.elements > 0, "layer_norm of nothing")
    need(weight in (None, part) and bias in (None, part), "layer_norm's weights do not fit")
    return (x,)


def batch_norm(
    x: Value, weight: Value | None, bias: Value | None, mean: Value | None, variance: Value | None,
    training: bool, _momentum: float, _eps: float,
) -> Results:  # fmt: skip
    """The normalised x; while training with running statistics also their new mean and variance."""
    is_floating(x, "batch_norm")
    need(len(x.shape) >= 2 and x.shape[1] > 0, "batch_norm of something without channels")
    channel = Value(x.dtype, (x.shape[1],))
    need(all(part in (None, channel) for part in (weight, bias, mean, variance)), "batch_norm's weights do not fit")
    need((mean is None) == (variance is None), "batch_norm has one running statistic without the other")
    if not training:
        need(mean is not None, "batch_norm without training needs its running statistics")
        return (x,)
    need(x.elements // x.shape[1] >= 2, "batch_norm while training needs two values of each channel")
    return (x,) if mean is None else (x, channel, channel)
