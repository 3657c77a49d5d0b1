"""The operations that a plan may hold: their arguments, what they give, and what they cost. Knows no engine.

Each has the meaning of the ATen operation of its name (docs/plans.md says where the two differ). All arguments are
written, in the order below; there are no defaults. Kinds of arguments:

    tensor    a value            number    a number, an expression, "inf" or "-inf"     flag   true or false
    tensors   a list of values   integer   an integer that does not depend on B         flags  a list of flags
    operand   a value or number  size      an integer or expression (perhaps negative)  dtype  the name of a dtype
                                 integers, sizes   lists of these

`?` behind a kind: null may stand for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grid_jupyter.plans import layers, rules, shapes, windows
from grid_jupyter.plans.shapes import Value

Rule = Callable[..., tuple[Value, ...]]


@dataclass(frozen=True)
class Parameter:
    """One argument of an operation; `kind` without the `?`."""

    name: str
    kind: str
    optional: bool


@dataclass(frozen=True)
class Operation:
    """One operation. `rule` gives the results for concrete arguments, `work` the multiplications and additions."""

    name: str
    parameters: tuple[Parameter, ...]
    rule: Rule
    work: Callable[[tuple[Any, ...], tuple[Value, ...]], int] = shapes.elements


def _operation(name: str, signature: str, rule: Rule, **more: Any) -> Operation:
    pairs = (text.split(":") for text in signature.split())
    return Operation(name, tuple(Parameter(n, k.removesuffix("?"), k.endswith("?")) for n, k in pairs), rule, **more)


def _table() -> dict[str, Operation]:
    found: list[Operation] = []

    def add(names: str, signature: str, rule: Rule, **more: Any) -> None:
        found.extend(_operation(name, signature, rule, **more) for name in names.split())

    add("neg abs sign floor ceil round trunc relu", "x:tensor", rules.same)
    add("exp log log1p expm1 sqrt rsqrt reciprocal sigmoid tanh erf sin cos", "x:tensor", rules.floating)
    add("leaky_relu", "x:tensor slope:number", rules.floating)
    add("gelu", "x:tensor tanh:flag", rules.floating)
    add("add sub mul", "a:operand b:operand", rules.arithmetic)
    add("maximum minimum", "a:tensor b:tensor", rules.arithmetic)
    add("div pow", "a:operand b:operand", rules.real_arithmetic)
    add("fmod remainder", "a:tensor b:operand", rules.real_arithmetic)
    add("clamp", "x:tensor low:number? high:number?", rules.clamp)
    add("eq ne lt le gt ge", "a:tensor b:operand", rules.comparison)
    add("logical_and logical_or", "a:tensor b:tensor", rules.comparison)
    add("logical_not", "x:tensor", rules.truth)
    add("bitwise_and bitwise_or", "a:tensor b:tensor", rules.bits)
    add("bitwise_not", "x:tensor", rules.bits)
    add("where", "condition:tensor a:operand b:operand", rules.where)
    add("cast", "x:tensor dtype:dtype", rules.cast)

    add("mm", "a:tensor b:tensor", windows.mm, work=shapes.product_work)
    add("bmm", "a:tensor b:tensor", windows.bmm, work=shapes.product_work)
    add("addmm", "bias:tensor a:tensor b:tensor", windows.addmm, work=shapes.addmm_work)
    window = "stride:integers padding:integers dilation:integers"
    convolution = f"{window} transposed:flag output_padding:integers groups:integer"
    add("convolution", f"x:tensor weight:tensor bias:tensor? {convolution}", windows.convolution,
        work=shapes.convolution_work)  # fmt: skip
    add("convolution_backward", f"gradient:tensor x:tensor weight:tensor {convolution} wanted:flags",
        windows.convolution_backward, work=shapes.convolution_backward_work)  # fmt: skip
    pool = f"kernel:integers {window} ceil:flag"
    add("max_pool2d", f"x:tensor {pool}", windows.max_pool2d, work=shapes.pool_work)
    add("max_pool2d_backward", f"gradient:tensor x:tensor {pool} indices:tensor", windows.max_pool2d_backward)
    average = "kernel:integers stride:integers padding:integers ceil:flag include_padding:flag divisor:integer?"
    add("avg_pool2d", f"x:tensor {average}", windows.avg_pool2d, work=shapes.pool_work)
    add("avg_pool2d_backward", f"gradient:tensor x:tensor {average}", windows.avg_pool2d_backward,
        work=shapes.pool_work)  # fmt: skip
    add("embedding", "weight:tensor indices:tensor", windows.embedding)
    add("embedding_backward", "gradient:tensor indices:tensor rows:integer padding:integer",
        windows.embedding_backward)  # fmt: skip
    add("softmax log_softmax", "x:tensor dim:integer", windows.softmax)
    add("layer_norm", "x:tensor dims:integer weight:tensor? bias:tensor? eps:number", windows.layer_norm)
    add("batch_norm", "x:tensor weight:tensor? bias:tensor? mean:tensor? variance:tensor? training:flag "
        "momentum:number eps:number", windows.batch_norm)  # fmt: skip
    weights = "input_weight:tensor state_weight:tensor input_bias:tensor? state_bias:tensor?"
    recurrent: dict[str, Any] = {"work": layers.recurrent_work}
    add("lstm", f"x:tensor h:tensor c:tensor {weights} reverse:flag", layers.lstm, **recurrent)
    add("gru", f"x:tensor h:tensor {weights} reverse:flag", layers.gru, **recurrent)
    add("rnn", f"x:tensor h:tensor {weights} relu:flag reverse:flag", layers.rnn, **recurrent)
    loss: dict[str, Any] = {"work": shapes.argument_elements}
    add("mse_loss", "x:tensor target:tensor reduction:integer", layers.mse_loss, **loss)
    add("binary_cross_entropy", "x:tensor target:tensor weight:tensor? reduction:integer",
        layers.binary_cross_entropy, **loss)  # fmt: skip
    add("binary_cross_entropy_with_logits", "x:tensor target:tensor weight:tensor? positive:tensor? reduction:integer",
        layers.binary_cross_entropy_with_logits, **loss)  # fmt: skip
    add("nll_loss", "x:tensor target:tensor weight:tensor? reduction:integer ignored:integer", layers.nll_loss, **loss)

    add("sum", "x:tensor dims:integers keep:flag", rules.summed, work=shapes.argument_elements)
    add("mean", "x:tensor dims:integers keep:flag", rules.mean, work=shapes.argument_elements)
    add("amax amin", "x:tensor dims:integers keep:flag", rules.extremum, work=shapes.argument_elements)
    add("any", "x:tensor dims:integers keep:flag", rules.any_of, work=shapes.argument_elements)
    add("argmax argmin", "x:tensor dim:integer keep:flag", rules.position, work=shapes.argument_elements)
    add("cumsum", "x:tensor dim:integer", rules.cumsum)

    add("reshape", "x:tensor shape:sizes", rules.reshape)
    add("permute", "x:tensor dims:integers", rules.permute)
    add("expand", "x:tensor shape:sizes", rules.expand)
    add("cat", "parts:tensors dim:integer", rules.cat)
    add("slice", "x:tensor dim:integer start:size end:size step:integer", rules.sliced)
    add("select", "x:tensor dim:integer index:size", rules.select)
    add("split", "x:tensor lengths:sizes dim:integer", rules.split)
    add("pad", "x:tensor amounts:sizes value:number", rules.pad)
    add("flip", "x:tensor dims:integers", rules.flip)
    add("tril triu", "x:tensor diagonal:size", rules.triangle)

    add("index_select", "x:tensor dim:integer indices:tensor", rules.index_select)
    add("index_add", "x:tensor dim:integer indices:tensor source:tensor", rules.index_add)
    add("gather", "x:tensor dim:integer indices:tensor", rules.gather)
    add("scatter", "x:tensor dim:integer indices:tensor source:operand", rules.scatter)
    add("scatter_add", "x:tensor dim:integer indices:tensor source:tensor", rules.scatter)
    add("full", "shape:sizes value:number dtype:dtype", rules.full)
    add("arange", "start:number end:number step:number dtype:dtype", rules.arange)
    return {operation.name: operation for operation in found}


OPERATIONS: dict[str, Operation] = _table()
"""Every operation by its name. docs/plans.md has the list."""
