"""Recurrent layers and losses in ONNX: its own operators for the layers, whose gates are in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans.document import Argument, Node, Spec
from grid_jupyter.plans.layers import MEAN, NONE
from grid_jupyter.plans.onnx_arithmetic import Conversion
from grid_jupyter.plans.onnx_graph import Graph

_LEAST = -100.0
"""Of a logarithm in binary cross entropy, as in torch."""

# ------------------------------------------------------------------ recurrent layers


def _recurrent(operator: str, gates: Sequence[int], states: int, **attributes: Any) -> Conversion:
    """`gates`: torch's, in the order of ONNX."""

    def convert(g: Graph, node: Node, x: Argument, *rest: Any) -> list[str]:
        if node.results[0].dtype != "float32":
            raise PlanInvalidError(
                f"{node.operation} of {node.results[0].dtype} has no form in ONNX Runtime; use the torch engine"
            )
        weights, (*more, reverse) = rest[states : states + 4], rest[states + 4 :]
        axis = g.integers(0)
        of_input, of_state, *biases = [_in_order(g, g.value(one), gates) for one in weights if one is not None]
        inputs = [g.value(x), g.add("Unsqueeze", of_input, axis), g.add("Unsqueeze", of_state, axis)]
        inputs.append(g.add("Unsqueeze", g.add("Concat", *biases, axis=0), axis) if biases else "")
        inputs += ["", *(g.add("Unsqueeze", g.value(state), axis) for state in rest[:states])]
        how = {"hidden_size": node.results[0].shape[2], **attributes}
        if more:
            how["activations"] = ["Relu" if more[0] else "Tanh"]
        if reverse:
            how["direction"] = "reverse"
        y, *last = g.add_many(operator, inputs, 1 + states, **how)
        return [g.add("Squeeze", y, g.integers(1)), *(g.add("Squeeze", one, axis) for one in last)]

    return convert


def _in_order(g: Graph, weights: str, gates: Sequence[int]) -> str:
    if len(gates) == 1:
        return weights
    parts = g.add_many("Split", (weights,), len(gates), axis=0, num_outputs=len(gates))
    return g.add("Concat", *(parts[gate] for gate in gates), axis=0)


# ------------------------------------------------------------------ losses


def _reduced(g: Graph, name: str, spec: Spec, reduction: int) -> str:
    if reduction == NONE or not spec.shape:
        return name
    operator = "ReduceMean" if reduction == MEAN else "ReduceSum"
    return g.add(operator, name, g.integers(*range(len(spec.shape))), keepdims=0)


def _mse_loss(g: Graph, node: Node, x: Argument, target: Argument, reduction: int) -> str:
    away = g.add("Sub", g.value(x), g.value(target))
    return _reduced(g, g.add("Mul", away, away), g.spec(x), reduction)


def _binary_cross_entropy(g: Graph, node: Node, x: Argument, target: Argument, weight: Argument, reduction: int) -> str:
    spec = g.spec(x)
    value, wanted, one = g.value(x), g.value(target), g.number(1, spec.dtype)
    least = g.number(_LEAST, spec.dtype)
    right = g.add("Mul", wanted, g.add("Max", g.add("Log", value), least))
    wrong = g.add("Mul", g.add("Sub", one, wanted), g.add("Max", g.add("Log", g.add("Sub", one, value)), least))
    made = g.add("Neg", g.add("Add", right, wrong))
    made = made if weight is None else g.add("Mul", made, g.value(weight))
    return _reduced(g, made, spec, reduction)


def _binary_cross_entropy_with_logits(
    g: Graph, node: Node, x: Argument, target: Argument, weight: Argument, positive: Argument, reduction: int
) -> str:
    """(1 − y)·x + (1 + (p − 1)·y)·log(1 + exp(−x)), of which the logarithm is max(−x, 0) + log(1 + exp(−|x|))."""
    spec = g.spec(x)
    value, wanted, one = g.value(x), g.value(target), g.number(1, spec.dtype)
    away = g.add("Neg", value)
    shrunk = g.add("Exp", g.add("Neg", g.add("Abs", value)))
    soft = g.add("Add", g.add("Max", away, g.number(0, spec.dtype)), g.add("Log", g.add("Add", one, shrunk)))
    if positive is not None:
        more = g.add("Mul", g.add("Sub", g.value(positive), one), wanted)
        soft = g.add("Mul", g.add("Add", one, more), soft)
    made = g.add("Add", g.add("Mul", g.add("Sub", one, wanted), value), soft)
    made = made if weight is None else g.add("Mul", made, g.value(weight))
    return _reduced(g, made, spec, reduction)


def _nll_loss(
    g: Graph, node: Node, x: Argument, target: Argument, weight: Argument, reduction: int, ignored: int
) -> str:
    spec, dtype = g.spec(target), g.spec(x).dtype
    classes, none, axis = g.value(target), g.number(0, dtype), g.integers(-1)
    counted = g.add("Not", g.add("Equal", classes, g.number(ignored, "int64")))
    known = g.add("Where", counted, classes, g.number(0, "int64"))
    each = g.add("Neg", g.add("Squeeze", g.add("GatherElements", g.value(x), g.add("Unsqueeze", known, axis),
                                               axis=len(spec.shape)), axis))  # fmt: skip
    share = g.number(1, dtype) if weight is None else g.add("Gather", g.value(weight), known, axis=0)
    share = g.add("Where", counted, share, none)
    made = g.add("Where", counted, g.add("Mul", each, share), none)
    if reduction != MEAN:
        return _reduced(g, made, spec, reduction)
    whole = Spec(dtype, spec.shape)
    return g.add("Div", _reduced(g, made, whole, 2), _reduced(g, share, whole, 2))


CONVERSIONS: dict[str, Conversion] = {
    "lstm": _recurrent("LSTM", (0, 3, 1, 2), 2),
    "gru": _recurrent("GRU", (1, 0, 2), 1, linear_before_reset=1),
    "rnn": _recurrent("RNN", (0,), 1),
    "mse_loss": _mse_loss,
    "binary_cross_entropy": _binary_cross_entropy,
    "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
    "nll_loss": _nll_loss,
}  # fmt: skip
