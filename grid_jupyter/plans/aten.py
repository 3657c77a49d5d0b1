"""What each ATen operation of a traced graph becomes in a plan.

`SAME` has the operations that become one node with the same arguments, `LOWERED` functions for those that need more.
An operation that is in neither has no place in a plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Union

import torch

from grid_jupyter.errors import NotCapturableError, PlanInvalidError
from grid_jupyter.ops.raw import NAMES
from grid_jupyter.plans.document import DTYPES as PLANNED
from grid_jupyter.plans.document import Argument, Ref
from grid_jupyter.plans.drafts import Draft
from grid_jupyter.plans.shapes import Value

Results = tuple[Union[Ref, None], ...]
"""None: a result that is not computed."""
Given = dict[str, Any]
"""Arguments of one traced operation by the names of its schema: Refs for tensors, the rest as torch has it."""


def value_of(tensor: torch.Tensor) -> Value:
    """dtype and shape. Raises NotCapturableError for a dtype that plans do not have."""
    name = NAMES.get(tensor.dtype)
    if name not in PLANNED:
        raise NotCapturableError(f"tensors of {tensor.dtype} have no place in a plan; it has {', '.join(PLANNED)}")
    return Value(str(name), tuple(tensor.shape))


def as_argument(value: Any) -> Argument:
    """What torch has as an argument, as a plan has it. Raises PlanInvalidError for nan."""
    if isinstance(value, torch.dtype):
        return NAMES[value]
    if isinstance(value, float) and math.isnan(value):
        raise PlanInvalidError("it takes a number that is none (nan)")
    return value  # type: ignore[no-any-return]


# ------------------------------------------------------------------ one node, the same arguments

_UNARY = """
    neg abs sign floor ceil round trunc relu exp log log1p expm1 sqrt rsqrt reciprocal sigmoid tanh erf sin cos
    logical_not bitwise_not
"""
_BINARY = "mul div eq ne lt le gt ge fmod remainder bitwise_and bitwise_or"
_PLACES = ("self", "ScalarSelf", "ScalarOther", "Scalar")
_WEIGHTS = ("input_weight", "state_weight", "input_bias", "state_bias")
_WINDOW = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")

SAME: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, ("self",)) for name in _UNARY.split()},
    **{f"{name}.{kind}": (name, ("self", "other")) for name in _BINARY.split() for kind in ("Tensor", "Scalar")},
    **{name: (name, ("self", "other")) for name in ("maximum", "minimum", "logical_and", "logical_or")},
    **{f"pow.{kind}": ("pow", ("self", "exponent")) for kind in ("Tensor_Tensor", "Tensor_Scalar", "Scalar")},
    **{f"where.{kind}": ("where", ("condition", "self", "other")) for kind in _PLACES},
    "leaky_relu": ("leaky_relu", ("self", "negative_slope")),
    "clamp": ("clamp", ("self", "min", "max")),
    "mm": ("mm", ("self", "mat2")),
    "bmm": ("bmm", ("self", "mat2")),
    "convolution": ("convolution", ("input", "weight", "bias", *_WINDOW)),
    "embedding": ("embedding", ("weight", "indices")),
    "constant_pad_nd": ("pad", ("self", "pad", "value")),
    "grid_plan.lstm": ("lstm", ("x", "h", "c", *_WEIGHTS, "reverse")),
    "grid_plan.gru": ("gru", ("x", "h", *_WEIGHTS, "reverse")),
    "grid_plan.rnn": ("rnn", ("x", "h", *_WEIGHTS, "relu", "reverse")),
}
"""ATen operations that are one operation of a plan on these of their arguments."""
NOISE = {"rand": "uniform", "rand_like": "uniform", "randn": "normal", "randn_like": "normal"}

# ------------------------------------------------------------------ what needs more

Lowered = Callable[[Draft, Given, Any], Union[Ref, Results]]


def _scaled(operation: str) -> Lowered:
    def lowered(draft: Draft, given: Given, _traced: Any) -> Ref:
        other = given["other"]
        if given["alpha"] != 1:
            other = draft.add("mul", other, given["alpha"]) if isinstance(other, Ref) else other * given["alpha"]
        return draft.add(operation, given["self"], other)

    return lowered


def _addmm(draft: Draft, given: Given, _traced: Any) -> Ref:
    if given["alpha"] == given["beta"] == 1:
        return draft.add("addmm", given["self"], given["mat1"], given["mat2"])
    product = draft.add("mul", draft.add("mm", given["mat1"], given["mat2"]), given["alpha"])
    return draft.add("add", draft.add("mul", given["self"], given["beta"]), product)


def _divided(draft: Draft, given: Given, _traced: Any) -> Ref:
    quotient = draft.add("div", given["self"], given["other"])
    return draft.add(given["rounding_mode"], quotient) if given["rounding_mode"] else quotient


def _clamped(draft: Draft, given: Given, _traced: Any) -> Ref:
    result: Ref = given["self"]
    if given["min"] is not None:
        result = draft.add("maximum", result, given["min"])
    return result if given["max"] is None else draft.add("minimum", result, given["max"])


def _cast(draft: Draft, given: Given, traced: Any) -> Ref:
    return draft.add("cast", given["self"], value_of(traced).dtype)


def _same_value(_draft: Draft, given: Given, _traced: Any) -> Ref:
    found: Ref = given["self"]
    return found


def _reshaped(draft: Draft, given: Given, traced: Any) -> Ref:
    return draft.add("reshape", given["self"], tuple(traced.shape))


def _permuted(draft: Draft, given: Given, _traced: Any) -> Ref:
    rank = _rank(draft, given)
    return draft.add("permute", given["self"], tuple(d % rank for d in given["dims"]))


def _expanded(draft: Draft, given: Given, traced: Any) -> Ref:
    return draft.add("expand", given["self"], tuple(traced.shape))


def _rank(draft: Draft, given: Given) -> int:
    return len(draft.values[given["self"]].shape)


def _dim(draft: Draft, given: Given) -> int:
    rank = _rank(draft, given)
    return int(given["dim"]) % rank if rank else 0


def _along(operation: str, *names: str) -> Lowered:
    """The operation on its tensor, one dimension, and these arguments."""

    def lowered(draft: Draft, given: Given, _traced: Any) -> Ref:
        return draft.add(operation, given["self"], _dim(draft, given), *(given[name] for name in names))

    return lowered


def _reduced(operation: str) -> Lowered:
    def lowered(draft: Draft, given: Given, traced: Any) -> Ref:
        rank = _rank(draft, given)
        dim = given.get("dim")
        dims = [dim] if isinstance(dim, int) else list(dim) if dim is not None else []
        every = tuple(sorted(d % rank for d in dims)) if dims and rank else tuple(range(rank))
        result = draft.add(operation, given["self"], every, bool(given.get("keepdim", False)))
        # sum and mean of another dtype than theirs: the sum of integers is int64 in plans as in torch
        return draft.add("cast", result, value_of(traced).dtype)

    return lowered


def _position(operation: str) -> Lowered:
    def lowered(draft: Draft, given: Given, traced: Any) -> Ref:
        if given["dim"] is None:
            whole = draft.add("reshape", given["self"], (draft.values[given["self"]].elements,))
            return draft.add("reshape", draft.add(operation, whole, 0, False), tuple(traced.shape))
        return draft.add(operation, given["self"], _dim(draft, given), bool(given["keepdim"]))

    return lowered


def _running_sum(draft: Draft, given: Given, traced: Any) -> Ref:
    return draft.add("cumsum", draft.add("cast", given["self"], value_of(traced).dtype), _dim(draft, given))


def _softmax(operation: str) -> Lowered:
    def lowered(draft: Draft, given: Given, _traced: Any) -> Ref:
        return draft.add(operation, given["self"], _dim(draft, given))

    return lowered


def _pair(numbers: Sequence[int], otherwise: Sequence[int]) -> tuple[int, ...]:
    numbers = numbers or otherwise
    return tuple(numbers) * 2 if len(numbers) == 1 else tuple(numbers)


def _pool(draft: Draft, given: Given, _traced: Any) -> Results:
    kernel = _pair(given["kernel_size"], ())
    window = [kernel, _pair(given["stride"], kernel), _pair(given["padding"], ()), _pair(given["dilation"], ())]
    if "indices" in given:
        arguments = [given["grad_output"], given["self"], *window, given["ceil_mode"], given["indices"]]
        return draft.add_all("max_pool2d_backward", *arguments)
    return draft.add_all("max_pool2d", given["self"], *window, given["ceil_mode"])


def _avg_pool(draft: Draft, given: Given, _traced: Any) -> Ref:
    kernel = _pair(given["kernel_size"], ())
    window = [kernel, _pair(given["stride"], kernel), _pair(given["padding"], ())]
    rest = [given["ceil_mode"], given["count_include_pad"], given["divisor_override"]]
    if "grad_output" in given:
        return draft.add("avg_pool2d_backward", given["grad_output"], given["self"], *window, *rest)
    return draft.add("avg_pool2d", given["self"], *window, *rest)


def _convolution_backward(draft: Draft, given: Given, _traced: Any) -> Results:
    wanted = tuple(given["output_mask"])
    window = [given[name] for name in _WINDOW]
    made = draft.add_all("convolution_backward", given["grad_output"], given["input"], given["weight"], *window, wanted)
    results = iter(made)
    return tuple(next(results) if want else None for want in wanted)


def _embedding_backward(draft: Draft, given: Given, _traced: Any) -> Ref:
    if given["scale_grad_by_freq"]:
        raise PlanInvalidError("scale_grad_by_freq")
    padding = max(int(given["padding_idx"]), -1)
    return draft.add("embedding_backward", given["grad_output"], given["indices"], given["num_weights"], padding)


def _layer_norm(draft: Draft, given: Given, _traced: Any) -> Ref:
    dims = len(given["normalized_shape"])
    return draft.add("layer_norm", given["input"], dims, given["weight"], given["bias"], float(given["eps"]))


def _gelu(draft: Draft, given: Given, _traced: Any) -> Ref:
    return draft.add("gelu", given["self"], given["approximate"] == "tanh")


def _loss(operation: str, *names: str) -> Lowered:
    """The loss of these tensors, all of one dtype, as it is, its mean or its sum."""

    def lowered(draft: Draft, given: Given, traced: Any) -> Ref:
        dtype = value_of(traced).dtype
        tensors = (None if given[name] is None else draft.add("cast", given[name], dtype) for name in names)
        return draft.add(operation, *tensors, int(given["reduction"]))

    return lowered


def _nll_loss(draft: Draft, given: Given, _traced: Any) -> Results:
    numbers = int(given["reduction"]), int(given["ignore_index"])
    return draft.add("nll_loss", given["self"], given["target"], given["weight"], *numbers), None


def _slice(draft: Draft, given: Given, _traced: Any) -> Ref:
    dim = _dim(draft, given)
    length = draft.values[given["self"]].shape[dim]
    start, end, step = slice(given["start"], given["end"], given["step"]).indices(length)
    return draft.add("slice", given["self"], dim, start, max(start, end), step)


def _select(draft: Draft, given: Given, _traced: Any) -> Ref:
    dim = _dim(draft, given)
    index = int(given["index"])
    return draft.add("select", given["self"], dim, index + draft.values[given["self"]].shape[dim] * (index < 0))


def _split(draft: Draft, given: Given, _traced: Any) -> Results:
    return draft.add_all("split", given["self"], tuple(given["split_sizes"]), _dim(draft, given))


def _cat(draft: Draft, given: Given, _traced: Any) -> Ref:
    parts = tuple(part for part in given["tensors"] if draft.values[part].shape != (0,))  # torch skips these
    dtype = NAMES[_traced.dtype]
    parts = tuple(draft.add("cast", part, dtype) for part in parts)
    return draft.add("cat", parts, int(given["dim"]) % len(draft.values[parts[0]].shape))


def _flipped(draft: Draft, given: Given, _traced: Any) -> Ref:
    rank = _rank(draft, given)
    return draft.add("flip", given["self"], tuple(d % rank for d in given["dims"]))


def _index_add(draft: Draft, given: Given, _traced: Any) -> Ref:
    source = given["source"] if given["alpha"] == 1 else draft.add("mul", given["source"], given["alpha"])
    return draft.add("index_add", given["self"], _dim(draft, given), given["index"], source)


def _full(draft: Draft, given: Given, traced: Any) -> Ref:
    value = given.get("fill_value", given.get("s", given.get("value")))
    return draft.add("full", tuple(traced.shape), as_argument(value), value_of(traced).dtype)


def _arange(draft: Draft, given: Given, traced: Any) -> Ref:
    value = value_of(traced)
    start, end, step = given.get("start", 0), given["end"], given.get("step", 1)
    return draft.add("arange", start, end, step, value.dtype)


def _triangle(operation: str) -> Lowered:
    return lambda draft, given, _traced: draft.add(operation, given["self"], int(given["diagonal"]))


LOWERED: dict[str, Lowered] = {
    **{f"{name}.{kind}": _scaled(name) for name in ("add", "sub") for kind in ("Tensor", "Scalar")},
    "addmm": _addmm,
    "div.Tensor_mode": _divided,
    "clamp.Tensor": _clamped,
    "_to_copy": _cast,
    **dict.fromkeys(("clone", "alias", "detach", "lift_fresh_copy", "view_of"), _same_value),
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _reshaped),
    **dict.fromkeys(("unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims"), _reshaped),
    "permute": _permuted,
    "expand": _expanded,
    **{f"{name}{kind}": _reduced(name)
       for name in ("sum", "mean", "amax", "amin", "any") for kind in ("", ".dim", ".dims", ".dim_IntList")},
    "argmax": _position("argmax"),
    "argmin": _position("argmin"),
    "cumsum": _running_sum,
    "_softmax": _softmax("softmax"),
    "_log_softmax": _softmax("log_softmax"),
    "max_pool2d_with_indices": _pool,
    "max_pool2d_with_indices_backward": _pool,
    "avg_pool2d": _avg_pool,
    "avg_pool2d_backward": _avg_pool,
    "convolution_backward": _convolution_backward,
    "embedding_dense_backward": _embedding_backward,
    "native_layer_norm": _layer_norm,
    "gelu": _gelu,
    "mse_loss": _loss("mse_loss", "self", "target"),
    "binary_cross_entropy": _loss("binary_cross_entropy", "self", "target", "weight"),
    "grid_plan.binary_cross_entropy_with_logits": _loss(
        "binary_cross_entropy_with_logits", "x", "target", "weight", "positive"
    ),
    "nll_loss_forward": _nll_loss,
    "slice.Tensor": _slice,
    "select.int": _select,
    "split_with_sizes": _split,
    "cat": _cat,
    "flip": _flipped,
    "index_select": _along("index_select", "index"),
    "index_add": _index_add,
    "gather": _along("gather", "index"),
    "scatter.value": _along("scatter", "index", "value"),
    "scatter.src": _along("scatter", "index", "src"),
    "scatter_add": _along("scatter_add", "index", "src"),
    **dict.fromkeys(("full", "full_like", "scalar_tensor"), _full),
    **dict.fromkeys(("arange", "arange.start", "arange.start_step"), _arange),
    "tril": _triangle("tril"),
    "triu": _triangle("triu"),
}  # fmt: skip
