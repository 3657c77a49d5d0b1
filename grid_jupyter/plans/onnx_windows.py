"""Convolutions, pooling and their gradients in ONNX, which has operators for the forward half only.

dL/dx of a convolution    the transposed convolution of the gradient
dL/dw of a convolution    windows of x as columns, times the gradient, summed over the batch
dL/dx of max pooling      the gradient added where the largest elements were
dL/dx of average pooling  the transposed convolution with a kernel of ones
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans.document import Argument, Node, Spec
from grid_jupyter.plans.onnx_graph import Graph, count_of, numpy_type, static

Ints = tuple[int, ...]
_LARGEST_KERNEL = 1024
"""Elements of a convolution's kernel, at most, where its gradient is wanted: each is an operation."""
_LARGEST_MEAN = 1 << 16
"""Windows of an average pooling with padding or a rest, at most: the model says how many elements each has."""
_MOST_TAPS = 16
"""Elements of a window for which max pooling's gradient is written out, at most."""


@dataclass(frozen=True)
class _Windows:
    """Two dimensions of windows: how a convolution walks."""

    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int


def _convolution(
    g: Graph, node: Node, x: Argument, weight: Argument, bias: Argument, stride: Ints, padding: Ints, dilation: Ints,
    transposed: bool, output_padding: Ints, groups: int,
) -> str:  # fmt: skip
    inputs = [g.value(x), g.value(weight), *([] if bias is None else [g.value(bias)])]
    kernel = static(g.spec(weight).shape[2:])
    if transposed:
        return g.add(
            "ConvTranspose", *inputs, strides=stride, pads=padding * 2, dilations=dilation, group=groups,
            output_padding=output_padding, kernel_shape=kernel,
        )  # fmt: skip
    return g.add(
        "Conv", *inputs, strides=stride, pads=padding * 2, dilations=dilation, group=groups, kernel_shape=kernel
    )


def _convolution_backward(
    g: Graph, node: Node, gradient: Argument, x: Argument, weight: Argument, stride: Ints, padding: Ints,
    dilation: Ints, transposed: bool, output_padding: Ints, groups: int, wanted: tuple[bool, bool, bool],
) -> list[str]:  # fmt: skip
    names = [g.value(one) for one in (gradient, x, weight)]
    of_gradient, of_x, of_weight = (static(g.spec(one).shape[1:]) for one in (gradient, x, weight))
    lines = len(of_x) == 2
    if lines:  # images of one row
        names = [g.add("Unsqueeze", name, g.integers(2)) for name in names]
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        of_gradient, of_x, of_weight = ([one[0], 1, *one[1:]] for one in (of_gradient, of_x, of_weight))
    windows = _Windows(stride, padding, dilation, groups)
    kernel, size = of_weight[1:], of_x[1:]
    made: list[str] = []
    if wanted[0] and transposed:
        made.append(
            g.add("Conv", names[0], names[2], strides=stride, pads=padding * 2, dilations=dilation, group=groups,
                  kernel_shape=kernel)
        )  # fmt: skip
    elif wanted[0]:
        reached = [
            (of_gradient[1 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + 1 for d in (0, 1)
        ]
        made.append(
            g.add("ConvTranspose", names[0], names[2], strides=stride, pads=padding * 2, dilations=dilation,
                  group=groups, output_padding=[size[d] - reached[d] for d in (0, 1)], kernel_shape=kernel)
        )  # fmt: skip
    if wanted[1]:
        # a transposed convolution has the two roles swapped
        small, large = (1, 0) if transposed else (0, 1)
        shapes = (of_gradient, of_x)
        first = static(g.spec(weight).shape[:1])
        made.append(
            _weight_gradient(g, names[small], names[large], shapes[small], shapes[large], [*first, *of_weight], windows)
        )
    if lines:
        made = [g.add("Squeeze", name, g.integers(2)) for name in made]
    if wanted[2]:
        made.append(g.add("ReduceSum", names[0], g.integers(0, 2, 3), keepdims=0))
    return made


def _weight_gradient(
    g: Graph, gradient: str, x: str, of_gradient: Sequence[int], of_x: Sequence[int], weight: Sequence[int],
    windows: _Windows,
) -> str:  # fmt: skip
    """[n, co, pixels] times [n, pixels, taps · ci], summed over n: one column for each tap of the kernel.

    Shapes are without the batch; groups are one more dimension behind it.
    """
    outer, inner, *kernel = weight
    pixels, groups = of_gradient[1:], windows.groups
    taps = _taps(g, x, of_x, pixels, kernel, windows)
    count, area = len(taps), math.prod(pixels)
    if groups == 1:
        columns = g.add("Concat", *taps, axis=1) if count > 1 else taps[0]
        columns = g.add("Reshape", columns, g.integers(0, count * inner, area))
        rows = g.add("Reshape", gradient, g.integers(0, outer, area))
        turn: Ints = (0, 2, 1)
    else:
        apart = [g.add("Reshape", tap, g.integers(0, groups, inner, area)) for tap in taps]
        columns = g.add("Concat", *apart, axis=2) if count > 1 else apart[0]
        rows = g.add("Reshape", gradient, g.integers(0, groups, outer // groups, area))
        turn = (0, 1, 3, 2)
    each = g.add("MatMul", rows, g.add("Transpose", columns, perm=turn))
    total = g.add("ReduceSum", each, g.integers(0), keepdims=0)
    if count > 1:
        total = g.add("Transpose", g.add("Reshape", total, g.integers(outer, count, inner)), perm=(0, 2, 1))
    return g.add("Reshape", total, g.integers(*weight))


def _taps(
    g: Graph, x: str, of_x: Sequence[int], pixels: Sequence[int], kernel: Sequence[int], windows: _Windows
) -> list[str]:
    """For each place in the kernel the elements of x that it meets, each of the shape of the result."""
    if math.prod(kernel) > _LARGEST_KERNEL:
        raise PlanInvalidError(f"a kernel of {list(kernel)} has too many elements for its gradient in ONNX")
    stride, before = windows.stride, windows.padding
    reach = [
        max((n - 1) * s + d * (k - 1) + 1, length + 2 * p)
        for n, s, d, k, length, p in zip(pixels, stride, windows.dilation, kernel, of_x[1:], before, strict=True)
    ]
    padded = [-(-length // s) * s for length, s in zip(reach, stride, strict=True)]
    behind = [n - length - p for n, length, p in zip(padded, of_x[1:], before, strict=True)]
    if any([*before, *behind]):
        x = g.add("Pad", x, g.integers(0, 0, *before, 0, 0, *behind))
    # steps of more than one are slow: elements that are a stride apart are laid side by side first
    size = [n // s for n, s in zip(padded, stride, strict=True)]
    planes = _apart(g, x, stride, size)
    whole = g.integers(-1, of_x[0], *size)
    taps = []
    for place in np.ndindex(*kernel):
        steps = [divmod(at * d, s) for at, d, s in zip(place, windows.dilation, stride, strict=True)]
        (row, top), (column, left) = ((phase, start) for start, phase in steps)
        plane = planes[column][row]
        if stride != (1, 1):
            plane = g.add("Reshape", plane, whole)
        if size != list(pixels):
            ends = (top + pixels[0], left + pixels[1])
            plane = g.add("Slice", plane, g.integers(top, left), g.integers(*ends), g.integers(2, 3))
        taps.append(plane)
    return taps


def _apart(g: Graph, x: str, step: Sequence[int], size: Sequence[int]) -> list[list[str]]:
    """Images taken apart: `made[c][r]` has every `step`th element from row r and column c on, `size` of them, as
    [1, lines, 1, columns]; x itself for a step of one."""
    (rows, columns), width = step, size[1]
    if rows == columns == 1:
        return [[x]]
    turned = g.add("Transpose", g.add("Reshape", x, g.integers(-1, columns)), perm=(1, 0))
    lines = g.add("Reshape", turned, g.integers(columns, -1, rows, width))
    return [_split(g, plane, rows, 2) for plane in _split(g, lines, columns, 0)]


def _split(g: Graph, name: str, parts: int, axis: int) -> list[str]:
    """Equal parts along a dimension."""
    return [name] if parts == 1 else g.add_many("Split", [name], parts, axis=axis, num_outputs=parts)


# ------------------------------------------------------------------ pooling


def _ends(length: int, result: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Padding behind, so that the last window of a pooling that rounds up is a whole one."""
    return padding + max(0, (result - 1) * stride + dilation * (kernel - 1) + 1 - length - 2 * padding)


def _pads(g: Graph, x: Argument, result: Spec, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> list[int]:
    lengths, results = static(g.spec(x).shape[2:]), static(result.shape[2:])
    behind = [_ends(*each) for each in zip(lengths, results, kernel, stride, padding, dilation, strict=True)]
    return [*padding, *behind]


def _max_pool2d(
    g: Graph, node: Node, x: Argument, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool
) -> list[str]:
    """ONNX counts positions over the batch and channels too; torch within one image."""
    pads = _pads(g, x, node.results[0], kernel, stride, padding, dilation)
    made, flat = g.add_many(
        "MaxPool", [g.value(x)], 2, kernel_shape=kernel, strides=stride, pads=pads, dilations=dilation
    )
    within = g.add("Mod", flat, g.number(math.prod(static(g.spec(x).shape[2:])), "int64"))
    g.pooled[within] = made, flat
    return [made, within]


def _max_pool2d_backward(
    g: Graph, node: Node, gradient: Argument, x: Argument, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints,
    ceil: bool, indices: Argument,
) -> str:  # fmt: skip
    spec, pixels = node.results[0], static(g.spec(gradient).shape[2:])
    made, flat = g.pooled[g.value(indices)]  # of its own max_pool2d: plans/reader.py sees to that
    covered = [n * k for n, k in zip(pixels, kernel, strict=True)]
    beside = kernel == stride and not any(padding) and set(dilation) == {1} and math.prod(kernel) <= _MOST_TAPS
    if beside and all(n <= length for n, length in zip(covered, static(spec.shape[2:]), strict=True)):
        return _beside(g, spec, g.value(gradient), g.value(x), made, kernel, pixels)
    whole = g.zeros(Spec(spec.dtype, (count_of(spec.shape),)))
    places, parts = (g.add("Reshape", one, g.integers(-1)) for one in (flat, g.value(gradient)))
    added = g.add_at("ScatterElements", spec.dtype, whole, places, parts, axis=0)
    return g.add("Reshape", added, g.shape(spec.shape))


def _beside(g: Graph, spec: Spec, gradient: str, x: str, largest: str, kernel: Ints, pixels: Sequence[int]) -> str:
    """Windows side by side: each gradient goes to the first of its window's elements that is the largest.

    Without positions, which make the runtime's MaxPool twenty times slower. The window's elements are taken apart
    into one plane each, [columns of the kernel, lines of the result, rows of the kernel, columns of the result].
    """
    (rows, columns), (height, width) = kernel, pixels
    size, covered = static(spec.shape[2:]), [height * rows, width * columns]
    if covered != size:
        x = g.add("Slice", x, g.integers(0, 0), g.integers(*covered), g.integers(2, 3))
    planes = _apart(g, x, kernel, pixels)
    flat = g.integers(1, -1, 1, width)
    maxima, left = g.add("Reshape", largest, flat), g.add("Reshape", gradient, flat)
    zero = g.add("ConstantOfShape", g.add("Shape", maxima), value=np.zeros(1, numpy_type(spec.dtype)))
    taken: list[list[str]] = [[] for _ in range(columns)]
    for row in range(rows):  # the order in which torch looks for the first
        for column in range(columns):
            found = g.add("Equal", planes[column][row], maxima)
            taken[column].append(g.add("Where", found, left, zero))
            left = g.add("Where", found, zero, left)
    woven = [g.add("Concat", *parts, axis=2) for parts in taken]
    whole = g.add("Reshape", g.add("Concat", *woven, axis=0), g.integers(columns, -1))
    made = g.add(
        "Reshape", g.add("Transpose", whole, perm=(1, 0)), g.integers(-1, static(spec.shape[1:2])[0], *covered)
    )
    return _uncovered(g, made, covered, size)


def _uncovered(g: Graph, name: str, covered: Sequence[int], size: Sequence[int]) -> str:
    """A gradient with the zeros behind it where windows side by side leave a rest."""
    if list(covered) == list(size):
        return name
    rest = (n - m for n, m in zip(size, covered, strict=True))
    return g.add("Pad", name, g.integers(0, 0, 0, 0, 0, 0, *rest))


def _divisors(length: int, result: int, kernel: int, stride: int, padding: int, include: bool) -> list[int]:
    """How many elements of each window count, along one dimension."""
    starts = [at * stride - padding for at in range(result)]
    ends = [min(start + kernel, length + padding) for start in starts]
    if include:
        return [end - start for start, end in zip(starts, ends, strict=True)]
    return [min(end, length) - max(start, 0) for start, end in zip(starts, ends, strict=True)]


def _shares(
    g: Graph,
    x: Argument,
    result: Spec,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil: bool,
    include: bool,
    divisor: int | None,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What an element is multiplied with in each window: [1, 1, height, width], or one number if all are equal."""
    if divisor is not None:
        return np.full((1, 1, 1, 1), 1 / divisor)
    if not any(padding) and not ceil:
        return np.full((1, 1, 1, 1), 1 / math.prod(kernel))
    lengths, results = static(g.spec(x).shape[2:]), static(result.shape[2:])
    if math.prod(results) > _LARGEST_MEAN:
        raise PlanInvalidError(f"an average pooling with {results} windows has too many of them for ONNX")
    rows, columns = (
        np.array(_divisors(*each, include)) for each in zip(lengths, results, kernel, stride, padding, strict=True)
    )
    shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = 1 / (rows[:, None] * columns[None, :])
    return shares[None, None] if np.ptp(shares) else shares[None, None, :1, :1]


def _avg_pool2d(
    g: Graph, node: Node, x: Argument, kernel: Ints, stride: Ints, padding: Ints, ceil: bool, include: bool,
    divisor: int | None,
) -> str:  # fmt: skip
    spec = node.results[0]
    pads = _pads(g, x, spec, kernel, stride, padding, (1, 1))
    value = g.add("AveragePool", g.value(x), kernel_shape=kernel, strides=stride, pads=pads, count_include_pad=1)
    factors = _shares(g, x, spec, kernel, stride, padding, ceil, include, divisor) * math.prod(kernel)
    if np.allclose(factors, 1, rtol=1e-12):
        return value
    return g.add("Mul", value, g.constant(factors.astype(numpy_type(spec.dtype))))


def _avg_pool2d_backward(
    g: Graph, node: Node, gradient: Argument, x: Argument, kernel: Ints, stride: Ints, padding: Ints, ceil: bool,
    include: bool, divisor: int | None,
) -> str:  # fmt: skip
    spec, result = node.results[0], g.spec(gradient)
    shares = _shares(g, x, result, kernel, stride, padding, ceil, include, divisor).astype(numpy_type(spec.dtype))
    each = g.add("Mul", g.value(gradient), g.constant(shares))
    channels, *size = static(spec.shape[1:])
    pixels = static(result.shape[2:])
    covered = [n * k for n, k in zip(pixels, kernel, strict=True)]
    if kernel == stride and not any(padding) and all(n <= m for n, m in zip(covered, size, strict=True)):
        # windows side by side: every element has one
        apart = g.add("Reshape", each, g.integers(-1, channels * pixels[0], 1, pixels[1], 1))
        wide = g.add("Expand", apart, g.integers(1, 1, kernel[0], 1, kernel[1]))
        return _uncovered(g, g.add("Reshape", wide, g.integers(-1, channels, *covered)), covered, size)
    planes = g.add("Reshape", each, g.integers(-1, 1, *pixels))
    ones = g.constant(np.ones((1, 1, *kernel), numpy_type(spec.dtype)))
    reached = [(n - 1) * s + k for n, s, k in zip(pixels, stride, kernel, strict=True)]
    before, behind = list(padding), [r - n - p for r, n, p in zip(reached, size, padding, strict=True)]
    spread = g.add(
        "ConvTranspose", planes, ones, strides=stride, kernel_shape=kernel,
        pads=[*before, *(max(0, n) for n in behind)], output_padding=[max(0, -n) for n in behind],
    )  # fmt: skip
    return g.add("Reshape", spread, g.shape(spec.shape))


CONVERSIONS: dict[str, Callable[..., str | list[str]]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "max_pool2d": _max_pool2d,
    "max_pool2d_backward": _max_pool2d_backward,
    "avg_pool2d": _avg_pool2d,
    "avg_pool2d_backward": _avg_pool2d_backward,
}
