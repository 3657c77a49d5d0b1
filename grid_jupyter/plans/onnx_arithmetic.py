"""Arithmetic of plans in ONNX: functions element by element, and matrix products, which sums become part of."""

from __future__ import annotations

import math
from collections.abc import Callable

from grid_jupyter.plans.document import Argument, Node, Ref, Spec
from grid_jupyter.plans.expressions import evaluate
from grid_jupyter.plans.onnx_graph import Graph
from grid_jupyter.plans.shapes import FLOATS, Value, result_dtype

Conversion = Callable[..., "str | list[str]"]
_SMALL = ("uint8", "int8", "int16")
"""Integers that the runtime computes with as int32."""


def widened(dtype: str) -> str:
    """What the runtime computes with for this dtype."""
    return "int32" if dtype in _SMALL else dtype


def narrowed(g: Graph, name: str, dtype: str) -> str:
    """The other way."""
    return g.cast(name, dtype) if dtype in _SMALL else name


def _unary(operator: str) -> Conversion:
    def convert(g: Graph, node: Node, x: Argument) -> str:
        dtype = node.results[0].dtype
        return narrowed(g, g.add(operator, g.value(x, widened(dtype))), dtype)

    return convert


def _whole(operator: str) -> Conversion:
    """Rounding, which leaves integers as they are."""

    def convert(g: Graph, node: Node, x: Argument) -> str:
        return g.add(operator, g.value(x)) if node.results[0].dtype in FLOATS else g.value(x)

    return convert


def _trunc(g: Graph, node: Node, x: Argument) -> str:
    value = g.value(x)
    if node.results[0].dtype not in FLOATS:
        return value
    return g.add("Mul", g.add("Sign", value), g.add("Floor", g.add("Abs", value)))


def _relu(g: Graph, node: Node, x: Argument) -> str:
    dtype = node.results[0].dtype
    if dtype in FLOATS:
        return g.add("Relu", g.value(x))
    return narrowed(g, g.add("Max", g.value(x, widened(dtype)), g.number(0, widened(dtype))), dtype)


def _rsqrt(g: Graph, node: Node, x: Argument) -> str:
    return g.add("Reciprocal", g.add("Sqrt", g.value(x)))


def _log1p(g: Graph, node: Node, x: Argument) -> str:
    """log(u)·x/(u-1) with u = 1+x, which keeps the digits of a small x (Higham, Accuracy and Stability, 1.14.1)."""
    value, one = g.value(x), g.number(1, node.results[0].dtype)
    u = g.add("Add", value, one)
    exact = g.add("Div", g.add("Mul", g.add("Log", u), value), g.add("Sub", u, one))
    same = g.add("Or", g.add("Equal", u, one), g.add("IsInf", u))
    return g.add("Where", same, g.add("Where", g.add("Equal", u, one), value, g.add("Log", u)), exact)


def _expm1(g: Graph, node: Node, x: Argument) -> str:
    """2t/(1-t) with t = tanh(x/2) near 0, which keeps the digits of a small x."""
    dtype = node.results[0].dtype
    value, one, half = g.value(x), g.number(1, dtype), g.number(0.5, dtype)
    t = g.add("Tanh", g.add("Mul", value, half))
    near = g.add("Div", g.add("Add", t, t), g.add("Sub", one, t))
    return g.add("Where", g.add("Less", g.add("Abs", value), half), near, g.add("Sub", g.add("Exp", value), one))


def _leaky_relu(g: Graph, node: Node, x: Argument, slope: Argument) -> str:
    value, dtype = g.value(x), node.results[0].dtype
    return g.add(
        "Where", g.add("Greater", value, g.number(0, dtype)), value, g.add("Mul", value, g.value(slope, dtype))
    )


def _gelu(g: Graph, node: Node, x: Argument, tanh: Argument) -> str:
    value, dtype = g.value(x), node.results[0].dtype
    half, one = g.number(0.5, dtype), g.number(1, dtype)
    if tanh:
        cube = g.add("Mul", g.add("Mul", value, value), value)
        inner = g.add("Add", value, g.add("Mul", cube, g.number(0.044715, dtype)))
        bent = g.add("Tanh", g.add("Mul", inner, g.number(math.sqrt(2 / math.pi), dtype)))
        return g.add("Mul", g.add("Mul", value, half), g.add("Add", bent, one))
    bent = g.add("Erf", g.add("Div", value, g.number(math.sqrt(2), dtype)))
    return g.add("Mul", g.add("Mul", value, g.add("Add", bent, one)), half)


def _arithmetic(operator: str) -> Conversion:
    def convert(g: Graph, node: Node, a: Argument, b: Argument) -> str:
        result = node.results[0]
        dtype = widened(result.dtype)
        left = g.spread(a, result, dtype, b)
        return narrowed(g, g.add(operator, left, g.spread(b, result, dtype, a, left)), result.dtype)

    return convert


def _add(g: Graph, node: Node, a: Argument, b: Argument) -> str:
    """A sum with a matrix product that nothing else needs is one operation."""
    result = node.results[0]
    for product, other in ((a, b), (b, a)):
        parts = g.behind(product, "mm")
        whole = isinstance(other, Ref) and g.spec(other) == result
        if parts is not None and whole and g.once(product) and g.spec(product) == result:
            return _product(g, parts[0], parts[1], g.value(other))
    return str(_arithmetic("Add")(g, node, a, b))


def _pow(g: Graph, node: Node, a: Argument, b: Argument) -> str:
    if b in (2, 2.0) and isinstance(a, Ref) and not isinstance(b, Ref):
        value = g.value(a, node.results[0].dtype)
        return g.add("Mul", value, value)
    return str(_arithmetic("Pow")(g, node, a, b))


def _fmod(g: Graph, node: Node, a: Argument, b: Argument) -> str:
    dtype = node.results[0].dtype
    return g.add("Mod", g.value(a, dtype), g.value(b, dtype), fmod=1)


def _remainder(g: Graph, node: Node, a: Argument, b: Argument) -> str:
    """fmod with the sign of the divisor."""
    dtype = node.results[0].dtype
    rest, divisor, zero = _fmod(g, node, a, b), g.value(b, dtype), g.number(0, dtype)
    other_sign = g.add("Xor", g.add("Less", rest, zero), g.add("Less", divisor, zero))
    add = g.add("And", g.add("Not", g.add("Equal", rest, zero)), other_sign)
    return g.add("Where", add, g.add("Add", rest, divisor), rest)


def _clamp(g: Graph, node: Node, x: Argument, low: Argument, high: Argument) -> str:
    dtype = widened(node.results[0].dtype)
    value = g.value(x, dtype)
    if low is not None:
        value = g.add("Max", value, g.value(low, dtype))
    if high is not None:
        value = g.add("Min", value, g.value(high, dtype))
    return narrowed(g, value, node.results[0].dtype)


def _comparison(operator: str, negated: bool = False) -> Conversion:
    def convert(g: Graph, node: Node, a: Argument, b: Argument) -> str:
        dtype = widened(result_dtype((_operand(g, a), _operand(g, b))))
        if dtype == "bool" and operator != "Equal":
            dtype = "int32"
        left = g.spread(a, node.results[0], dtype, b)
        found = g.add(operator, left, g.spread(b, node.results[0], dtype, a, left))
        return g.add("Not", found) if negated else found

    return convert


def _operand(g: Graph, argument: Argument) -> Value | int | float:
    if isinstance(argument, Ref):
        spec = g.spec(argument)
        return Value(spec.dtype, (1,) * len(spec.shape))
    return evaluate(argument, g.document.batch[0])  # type: ignore[arg-type]


def _logical(operator: str) -> Conversion:
    return lambda g, node, a, b: g.add(operator, g.value(a, "bool"), g.value(b, "bool"))


def _bits(operator: str) -> Conversion:
    def convert(g: Graph, node: Node, *operands: Argument) -> str:
        dtype = node.results[0].dtype
        return g.add(operator if dtype == "bool" else f"Bitwise{operator}", *(g.value(one, dtype) for one in operands))

    return convert


def _where(g: Graph, node: Node, condition: Argument, a: Argument, b: Argument) -> str:
    """The runtime is six times slower where an operand is one number, so that these are spread first."""
    result = node.results[0]
    dtype = widened(result.dtype)

    def whole(operand: Argument) -> str:
        if isinstance(operand, Ref):
            filled = g.behind(operand, "full")
            if filled is None or g.spec(operand).shape:
                return g.value(operand, dtype)
            operand = filled[1]
        if isinstance(operand, (int, float)) and not isinstance(operand, Ref):
            return g.filled(Spec(dtype, result.shape), operand)
        return g.value(operand, dtype)

    return narrowed(g, g.add("Where", g.value(condition), whole(a), whole(b)), result.dtype)


def _cast(g: Graph, node: Node, x: Argument, dtype: Argument) -> str:
    return g.value(x, str(dtype))


# ------------------------------------------------------------------ products


def _product(g: Graph, a: Argument, b: Argument, *bias: str) -> str:
    """Gemm, which transposes by itself."""
    left, right = g.behind(a, "permute"), g.behind(b, "permute")
    return g.add(
        "Gemm",
        g.value(left[0] if left else a),
        g.value(right[0] if right else b),
        *bias,
        transA=int(left is not None and left[1] == (1, 0)),
        transB=int(right is not None and right[1] == (1, 0)),
    )


def _mm(g: Graph, node: Node, a: Argument, b: Argument) -> str:
    return _product(g, a, b)


def _addmm(g: Graph, node: Node, bias: Argument, a: Argument, b: Argument) -> str:
    return _product(g, a, b, g.value(bias))


def _bmm(g: Graph, node: Node, a: Argument, b: Argument) -> str:
    return g.add("MatMul", g.value(a), g.value(b))


CONVERSIONS: dict[str, Conversion] = {
    "neg": _unary("Neg"), "abs": _unary("Abs"), "sign": _unary("Sign"), "exp": _unary("Exp"), "log": _unary("Log"),
    "sqrt": _unary("Sqrt"), "reciprocal": _unary("Reciprocal"), "sigmoid": _unary("Sigmoid"), "tanh": _unary("Tanh"),
    "erf": _unary("Erf"), "sin": _unary("Sin"), "cos": _unary("Cos"), "relu": _relu, "rsqrt": _rsqrt,
    "floor": _whole("Floor"), "ceil": _whole("Ceil"), "round": _whole("Round"), "trunc": _trunc,
    "log1p": _log1p, "expm1": _expm1, "leaky_relu": _leaky_relu, "gelu": _gelu,
    "add": _add, "sub": _arithmetic("Sub"), "mul": _arithmetic("Mul"), "div": _arithmetic("Div"), "pow": _pow,
    "maximum": _arithmetic("Max"), "minimum": _arithmetic("Min"), "fmod": _fmod, "remainder": _remainder,
    "clamp": _clamp, "eq": _comparison("Equal"), "ne": _comparison("Equal", negated=True), "lt": _comparison("Less"),
    "le": _comparison("LessOrEqual"), "gt": _comparison("Greater"), "ge": _comparison("GreaterOrEqual"),
    "logical_and": _logical("And"), "logical_or": _logical("Or"),
    "logical_not": lambda g, node, x: g.add("Not", g.value(x, "bool")),
    "bitwise_and": _bits("And"), "bitwise_or": _bits("Or"), "bitwise_not": _bits("Not"),
    "where": _where, "cast": _cast,
    "mm": _mm, "bmm": _bmm, "addmm": _addmm,
}  # fmt: skip
