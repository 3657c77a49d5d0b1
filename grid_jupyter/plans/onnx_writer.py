"""A plan as an ONNX model, opset 18: standard operators only, no control flow, no data outside of the file.

Reads documents only, never ONNX. Each conversion takes the graph, the node, and the node's arguments in the order of
plans/operations.py, and returns the names of the results. Arithmetic is in plans/onnx_arithmetic.py,
convolutions and pooling are in plans/onnx_windows.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans import onnx_arithmetic, onnx_layers, onnx_windows
from grid_jupyter.plans.document import Argument, Document, Node, Ref, Spec
from grid_jupyter.plans.expressions import BATCH, evaluate, has_batch
from grid_jupyter.plans.onnx_arithmetic import Conversion, narrowed, widened
from grid_jupyter.plans.onnx_graph import Graph, count_of, numpy_type, static
from grid_jupyter.plans.shapes import FLOATS

_WRITTEN_OUT = 4096
"""Elements of an arange that is written into the model, at most; longer ones are made when it runs."""


def to_onnx(document: Document, wanted: Callable[[str], bool] = lambda role: True) -> bytes:
    """The plan's ONNX model. Inputs are named `role:name`, outputs `out:role:name`, in the document's order; of them
    only those whose role is `wanted`.

    The document has been checked (plans/check.py). Raises PlanInvalidError for what ONNX cannot say, by its name.
    """
    return converted(document, wanted).to_bytes({"grid.plan.sha256": document.sha256})


def converted(document: Document, wanted: Callable[[str], bool] = lambda role: True) -> Graph:
    """The same as a graph that is not written yet."""
    graph = Graph(document, [output for output in document.outputs if wanted(output.role)])
    for spec in document.specs:
        numpy_type(spec.dtype)
    number = len(document.inputs)
    for node in document.nodes:
        conversion = CONVERSIONS.get(node.operation)
        if conversion is None:
            raise PlanInvalidError(f"{node.operation} has no form in ONNX; use the torch engine")
        made = conversion(graph, node, *node.arguments)
        for name in [made] if isinstance(made, str) else made:
            graph.names[number] = name
            graph.made_by[number] = node
            number += 1
    return graph


# ------------------------------------------------------------------ normalisation


def _softmax(operator: str) -> Conversion:
    return lambda g, node, x, dim: g.add(operator, g.value(x), axis=int(dim))


def _layer_norm(g: Graph, node: Node, x: Argument, dims: int, weight: Argument, bias: Argument, eps: Argument) -> str:
    spec = node.results[0]
    if not isinstance(eps, (int, float)) or not 0 <= eps < 1e30:
        raise PlanInvalidError("the eps of a layer_norm is no number that ONNX can say; use the torch engine")
    scale = g.filled(Spec(spec.dtype, spec.shape[-dims:]), 1) if weight is None else g.value(weight)
    inputs = [g.value(x), scale, *([] if bias is None else [g.value(bias)])]
    return g.add("LayerNormalization", *inputs, axis=len(spec.shape) - dims, epsilon=float(eps))


def _batch_norm(
    g: Graph, node: Node, x: Argument, weight: Argument, bias: Argument, mean: Argument, variance: Argument,
    training: bool, momentum: Argument, eps: Argument,
) -> list[str]:  # fmt: skip
    """Written out: the runtime has no training mode of its own operator."""
    spec = node.results[0]
    dtype, rank = spec.dtype, len(spec.shape)
    others = [0, *range(2, rank)]
    beside = [1, -1] + [1] * (rank - 2)

    def channels(name: str) -> str:
        return g.add("Reshape", name, g.integers(*beside))

    def flat(name: str) -> str:
        return g.add("Reshape", name, g.integers(-1))

    value = g.value(x)
    if training:
        centre = g.add("ReduceMean", value, g.integers(*others), keepdims=1)
        away = g.add("Sub", value, centre)
        spread = g.add("ReduceMean", g.add("Mul", away, away), g.integers(*others), keepdims=1)
    else:
        centre, spread = channels(g.value(mean)), channels(g.value(variance))
        away = g.add("Sub", value, centre)
    scale = g.add("Reciprocal", g.add("Sqrt", g.add("Add", spread, g.value(eps, dtype))))
    if weight is not None:
        scale = g.add("Mul", scale, channels(g.value(weight)))
    made = g.add("Mul", away, scale)
    if bias is not None:
        made = g.add("Add", made, channels(g.value(bias)))
    if len(node.results) == 1:
        return [made]
    part = g.value(momentum, dtype)
    rest = g.add("Sub", g.number(1, dtype), part)
    count = g.add("Squeeze", g.size(count_of((spec.shape[0], *spec.shape[2:])), dtype))
    unbiased = g.add("Div", g.add("Mul", part, count), g.add("Sub", count, g.number(1, dtype)))
    new = [
        g.add("Add", g.add("Mul", g.value(old), rest), g.add("Mul", flat(seen), weight_of))
        for old, seen, weight_of in ((mean, centre, part), (variance, spread, unbiased))
    ]
    return [made, *new]


# ------------------------------------------------------------------ along dimensions


def _reduced(operator: str) -> Conversion:
    def convert(g: Graph, node: Node, x: Argument, dims: tuple[int, ...], keep: bool) -> str:
        dtype = node.results[0].dtype
        value = g.value(x, widened(dtype))
        if dims:
            value = g.add(operator, value, g.integers(*dims), keepdims=int(keep))
        return narrowed(g, value, dtype)

    return convert


def _any(g: Graph, node: Node, x: Argument, dims: tuple[int, ...], keep: bool) -> str:
    truth = g.value(x, "bool")
    if not dims:
        return truth
    return g.cast(g.add("ReduceMax", g.cast(truth, "int32"), g.integers(*dims), keepdims=int(keep)), "bool")


def _position(operator: str) -> Conversion:
    def convert(g: Graph, node: Node, x: Argument, dim: int, keep: bool) -> str:
        return g.add(operator, g.value(x, widened(g.spec(x).dtype)), axis=dim, keepdims=int(keep))

    return convert


def _cumsum(g: Graph, node: Node, x: Argument, dim: int) -> str:
    return g.add("CumSum", g.value(x, node.results[0].dtype), g.number(dim, "int64"))


# ------------------------------------------------------------------ shape and place


def _reshape(g: Graph, node: Node, x: Argument, shape: tuple[Any, ...]) -> str:
    unknown = [at for at, length in enumerate(shape) if has_batch(length)]
    if len(unknown) == 1 and 0 not in shape:
        return g.add(
            "Reshape", g.value(x), g.integers(*(-1 if at in unknown else int(n) for at, n in enumerate(shape)))
        )
    return g.add("Reshape", g.value(x), g.shape(shape), allowzero=1)


def _permute(g: Graph, node: Node, x: Argument, dims: tuple[int, ...]) -> str:
    return g.add("Transpose", g.value(x), perm=dims) if dims else g.value(x)


def _expand(g: Graph, node: Node, x: Argument, shape: tuple[Any, ...]) -> str:
    return g.add("Expand", g.value(x), g.shape(shape))


def _cat(g: Graph, node: Node, parts: tuple[Argument, ...], dim: int) -> str:
    return g.add("Concat", *map(g.value, parts), axis=dim)


def _slice(g: Graph, node: Node, x: Argument, dim: int, start: Any, end: Any, step: int) -> str:
    return g.add("Slice", g.value(x), g.size(start), g.size(end), g.integers(dim), g.integers(step))


def _select(g: Graph, node: Node, x: Argument, dim: int, index: Any) -> str:
    return g.add("Gather", g.value(x), g.value(index, "int64"), axis=dim)


def _split(g: Graph, node: Node, x: Argument, lengths: tuple[Any, ...], dim: int) -> list[str]:
    return g.add_many("Split", (g.value(x), g.shape(lengths)), len(lengths), axis=dim)


def _pad(g: Graph, node: Node, x: Argument, amounts: tuple[Any, ...], value: Argument) -> str:
    rank = len(node.results[0].shape)
    whole = [*amounts, *[0] * (2 * rank - len(amounts))]
    pads = [*whole[-2::-2], *whole[::-2]]  # all of what goes before, then all of what goes after; first dimension first
    return g.add("Pad", g.value(x), g.shape(pads), g.value(value, node.results[0].dtype))


def _flip(g: Graph, node: Node, x: Argument, dims: tuple[int, ...]) -> str:
    count = len(dims)
    if not count:
        return g.value(x)
    last, before = g.integers(*[-1] * count), g.integers(*[-(2**63) + 1] * count)
    return g.add("Slice", g.value(x), last, before, g.integers(*dims), last)


def _triangle(upper: int) -> Conversion:
    def convert(g: Graph, node: Node, x: Argument, diagonal: Argument) -> str:
        dtype = node.results[0].dtype
        computed = dtype if dtype in FLOATS else "int64"
        found = g.add("Trilu", g.value(x, computed), g.value(diagonal, "int64"), upper=upper)
        return found if computed == dtype else g.cast(found, dtype)

    return convert


# ------------------------------------------------------------------ by indices


def _embedding(g: Graph, node: Node, weight: Argument, indices: Argument) -> str:
    return g.add("Gather", g.value(weight), g.value(indices), axis=0)


def _embedding_backward(g: Graph, node: Node, gradient: Argument, indices: Argument, rows: int, padding: int) -> str:
    spec = node.results[0]
    (width,) = static(spec.shape[1:])
    each = g.add("Reshape", g.value(gradient), g.integers(-1, width))
    where = g.add("Reshape", g.value(indices), g.integers(-1, 1))
    if padding >= 0:
        padded = g.add("Equal", where, g.number(padding, "int64"))
        each = g.add("Where", padded, g.number(0, spec.dtype), each)
    return g.add_at("ScatterND", spec.dtype, g.zeros(spec), where, each)


def _index_select(g: Graph, node: Node, x: Argument, dim: int, indices: Argument) -> str:
    return g.add("Gather", g.value(x), g.value(indices), axis=dim)


def _index_add(g: Graph, node: Node, x: Argument, dim: int, indices: Argument, source: Argument) -> str:
    shape, dtype = g.spec(source).shape, node.results[0].dtype
    along = g.add("Reshape", g.value(indices), g.integers(*(-1 if d == dim else 1 for d in range(len(shape)))))
    each = g.add("Expand", along, g.shape(shape))
    return g.add_at("ScatterElements", dtype, g.value(x), each, g.value(source), axis=dim)


def _gather(g: Graph, node: Node, x: Argument, dim: int, indices: Argument) -> str:
    return g.add("GatherElements", g.value(x), g.value(indices), axis=dim)


def _scatter(g: Graph, node: Node, x: Argument, dim: int, indices: Argument, source: Argument) -> str:
    where, given = g.value(indices), g.value(source, node.results[0].dtype)
    if not isinstance(source, Ref):
        given = g.add("Expand", given, g.add("Shape", where))
    return g.add("ScatterElements", g.value(x), where, given, axis=dim)


def _scatter_add(g: Graph, node: Node, x: Argument, dim: int, indices: Argument, source: Argument) -> str:
    dtype = node.results[0].dtype
    return g.add_at("ScatterElements", dtype, g.value(x), g.value(indices), g.value(source), axis=dim)


# ------------------------------------------------------------------ from nothing


def _full(g: Graph, node: Node, shape: tuple[Any, ...], value: Any, dtype: str) -> str:
    if isinstance(value, tuple) or value == BATCH:
        return g.add("Expand", g.value(value, dtype), g.shape(shape))
    return g.filled(Spec(dtype, shape), value)


def _arange(g: Graph, node: Node, start: Any, end: Any, step: Any, dtype: str) -> str:
    count = node.results[0].shape[0]
    if isinstance(count, int) and count <= _WRITTEN_OUT and not any(map(has_batch, (start, end, step))):
        numbers = np.arange(*(evaluate(one, 1) for one in (start, end, step)), dtype=numpy_type(dtype))
        return g.constant(numbers)
    return g.cast(g.add("Range", *(g.value(one, widened(dtype)) for one in (start, end, step))), dtype)


CONVERSIONS: dict[str, Conversion] = {
    **onnx_arithmetic.CONVERSIONS,
    "softmax": _softmax("Softmax"), "log_softmax": _softmax("LogSoftmax"),
    "layer_norm": _layer_norm, "batch_norm": _batch_norm, **onnx_windows.CONVERSIONS,
    **onnx_layers.CONVERSIONS,
    "embedding": _embedding, "embedding_backward": _embedding_backward,
    "sum": _reduced("ReduceSum"), "mean": _reduced("ReduceMean"), "amax": _reduced("ReduceMax"),
    "amin": _reduced("ReduceMin"), "any": _any, "argmax": _position("ArgMax"), "argmin": _position("ArgMin"),
    "cumsum": _cumsum,
    "reshape": _reshape, "permute": _permute, "expand": _expand, "cat": _cat, "slice": _slice, "select": _select,
    "split": _split, "pad": _pad, "flip": _flip, "tril": _triangle(0), "triu": _triangle(1),
    "index_select": _index_select, "index_add": _index_add, "gather": _gather, "scatter": _scatter,
    "scatter_add": _scatter_add, "full": _full, "arange": _arange,
}  # fmt: skip
"""How each operation of plans/operations.py is said in ONNX."""
