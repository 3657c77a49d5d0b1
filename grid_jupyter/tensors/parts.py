"""Operations off the list that are made of operations on it: here they are taken apart, and the parts are sent.

torch takes most composite operations apart above autograd, before they come here. What is left are those
that torch.func and forward-mode autograd call below it, the formulas of gradients first of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from grid_jupyter.errors import RemoteOperationError
from grid_jupyter.ops.allowed import ALLOWED
from grid_jupyter.tensors.rewrites import REWRITES
from grid_jupyter.tensors.scaling import unscale, update
from grid_jupyter.tensors.writing import plain_form, writing

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_RANDOM = getattr(aten.random_, "from")  # a word of Python's


@functools.cache
def in_parts(op: Any) -> Callable[..., Any] | None:
    """A function of the same arguments that calls other operations instead; None if torch has none."""
    own = _OWN.get(op)
    if own is not None:
        return own
    if op.namespace == "prims":
        meant: Callable[..., Any] = op.impl_aten  # what torch's own formulas are written in
        return meant
    if op.has_kernel_for_dispatch_key(_COMPOSITE):
        decompose: Callable[..., Any] = op.decompose
        return decompose
    if "as_strided" in op._schema.name:
        return None  # torch's decomposition of the one is the other
    if any(argument.alias_info is not None for argument in op._schema.arguments):
        plain = plain_form(op)
        return writing(op, plain) if plain is not None and _runs(plain) else None  # views are the pointers' own
    if op.is_view:
        return None
    from torch._decomp import decomposition_table  # a part of torch that is loaded late

    found: Callable[..., Any] | None = decomposition_table.get(op)
    return found


def _runs(op: Any) -> bool:
    if str(op) in ALLOWED or op in REWRITES or in_parts(op) is not None:
        return True
    return not any("Tensor" in str(argument.type) for argument in op._schema.arguments)  # a factory, of this side


def _convolution_backward(
    grad: Any,
    x: Any,
    weight: Any,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Any, Any, Any]:
    """Gradients of a convolution, as convolutions."""
    if transposed:
        raise RemoteOperationError("torch.func gives no gradients of remote transposed convolutions: use .backward()")
    spatial = range(2, x.dim())
    grad_x = grad_weight = grad_bias = None
    if mask[0]:
        short = [
            x.shape[d]
            - ((grad.shape[d] - 1) * stride[d - 2] - 2 * padding[d - 2] + dilation[d - 2] * (weight.shape[d] - 1) + 1)
            for d in spatial
        ]
        grad_x = aten.convolution(grad, weight, None, stride, padding, dilation, True, short, groups)
    if mask[1]:
        batch = x.shape[0]
        outputs, per_group = weight.shape[:2]
        # in each group the batch takes the place of the channels, and stride that of dilation
        columns = x.reshape(batch, groups, per_group, *x.shape[2:]).transpose(0, 2)
        columns = columns.reshape(per_group, groups * batch, *x.shape[2:])
        kernels = grad.reshape(batch, groups, outputs // groups, *grad.shape[2:]).transpose(0, 1)
        kernels = kernels.transpose(1, 2).reshape(outputs, batch, *grad.shape[2:])
        none = [0] * len(stride)
        grad_weight = aten.convolution(columns, kernels, None, dilation, padding, stride, False, none, groups)
        for d in spatial:
            grad_weight = aten.slice(grad_weight, d, 0, weight.shape[d])
        grad_weight = grad_weight.transpose(0, 1)
    if mask[2]:
        grad_bias = grad.sum([0, *spatial])
    return grad_x, grad_weight, grad_bias


def _random(target: Any, below: int | None = None, *, generator: Any = None) -> Any:
    return _RANDOM(target, 0, below, generator=generator)  # None: up to the last number that the dtype can tell apart


def _bernoulli(target: Any, p: Any, *, generator: Any = None) -> Any:
    return aten.copy_.default(target, aten.bernoulli.default(aten.expand.default(p, target.shape), generator=generator))


def _polygamma(target: Any, n: int) -> Any:
    return aten.copy_.default(target, aten.polygamma.default(n, target))  # the arguments are the other way round


def _rate_as_number(op: Any) -> Callable[..., Any]:
    """An optimiser's step whose learning rate comes as a tensor; of a remote one that is a read."""

    def step(*args: Any, lr: Any, **kwargs: Any) -> Any:
        return op(*args, lr=float(lr), **kwargs)

    return step


def _left(x: Any, bits: int) -> Any:
    return aten.bitwise_left_shift.Tensor(x, torch.tensor(bits, dtype=x.dtype))


def _right(x: Any, bits: int) -> Any:
    return aten.bitwise_right_shift.Tensor(x, torch.tensor(bits, dtype=x.dtype))


def _all_true(x: Any) -> Any:
    return aten.all.default(x)


def _any_true(x: Any) -> Any:
    return aten.any.default(x)


_OWN: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: _convolution_backward,
    aten.random_.default: _random,
    aten.random_.to: _random,
    aten.bernoulli_.Tensor: _bernoulli,
    aten.polygamma_.default: _polygamma,
    aten._fused_sgd_.tensor_lr: _rate_as_number(aten._fused_sgd_.default),
    aten._fused_adagrad_.tensor_lr: _rate_as_number(aten._fused_adagrad_.default),
    aten._amp_foreach_non_finite_check_and_unscale_.default: unscale,
    aten._amp_update_scale_.default: update,
    aten.__lshift__.Scalar: _left,
    aten.__rshift__.Scalar: _right,
    aten._is_all_true.default: _all_true,
    aten._is_any_true.default: _any_true,
}
