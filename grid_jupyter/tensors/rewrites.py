"""Operations that become others before anything is sent: reads, and what no Node runs but allowed operations can say.

Each takes the operation's arguments and gives its result, or NotImplemented where the operation itself is to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from grid_jupyter.errors import OperationNotAllowedError, RemoteOperationError
from grid_jupyter.ops.allowed import why_refused

aten = torch.ops.aten


def _item(args: Any, kwargs: Any) -> Any:
    return args[0].item()


def _equal(args: Any, kwargs: Any) -> bool:
    return args[0].shape == args[1].shape and bool((args[0] == args[1]).all())


def _allclose(args: Any, kwargs: Any) -> bool:
    # torch.isclose and & are made of other operations, which nobody takes apart below autograd
    options = {**dict(zip(("rtol", "atol", "equal_nan"), args[2:], strict=False)), **kwargs}
    a, b = args[:2]
    apart = (a - b).abs()
    near = apart <= b.abs() * options.get("rtol", 1e-5) + options.get("atol", 1e-8)
    close = torch.logical_or(torch.logical_and(near, apart < float("inf")), a == b)
    if options.get("equal_nan"):
        close = torch.logical_or(close, torch.logical_and(a != a, b != b))
    return bool(close.all())


def _same(args: Any, kwargs: Any) -> Any:
    return args[0]


def _same_size(args: Any, kwargs: Any) -> bool:
    return bool(args[0].shape == args[1].shape)


def _lengths(args: Any, kwargs: Any) -> Any:
    _settle(args[0])
    return args[0]._layout.shape if len(args) == 1 else args[0]._layout.shape[args[1]]


def _strides(args: Any, kwargs: Any) -> Any:
    _settle(args[0])
    return args[0]._layout.stride


def _settle(pointer: Any) -> None:
    from grid_jupyter.tensors import sizes  # which itself sends operations

    sizes.settle(pointer)


def _never(args: Any, kwargs: Any) -> bool:
    return False


def _frames(args: Any, kwargs: Any) -> Any:
    """`as_strided` as torch.stft uses it, for frames that overlap: that is `unfold`, which stays within its tensor."""
    x, size, stride = args[:3]
    offset = args[3] if len(args) > 3 else kwargs.get("storage_offset")
    outer, rank = len(size) - 2, x.dim()
    frames = (
        rank == outer + 1
        and offset in (None, x.storage_offset())
        and list(size[:outer]) == list(x.shape[:outer])
        and list(stride[:outer]) == list(x.stride()[:outer])
        and stride[-1] == x.stride(-1) > 0
        and stride[-2] >= stride[-1]
        and stride[-2] % stride[-1] == 0
        and 0 < size[-1] <= x.shape[-1]
    )
    if frames:
        hop = stride[-2] // stride[-1]
        if size[-2] == (x.shape[-1] - size[-1]) // hop + 1:
            return aten.unfold.default(x, rank - 1, size[-1], hop)
    name = "aten.as_strided.default"
    raise OperationNotAllowedError(f"{name} does not run on remote tensors: {why_refused(name)}")


def _overlap_add(args: Any, kwargs: Any) -> Any:
    """`unfold_backward` as torch.istft uses it, to add frames that overlap."""
    frames, sizes, dim, size, step = args
    if not sizes:
        return aten.squeeze.dim(frames, 0)
    dim %= len(sizes)
    index = torch.arange(sizes[dim]).unfold(0, size, step).flatten()
    order = [*range(dim + 1), frames.dim() - 1, *range(dim + 1, frames.dim() - 1)]
    rows = aten.permute.default(frames, order)
    flat = aten.clone.default(rows, memory_format=torch.contiguous_format)
    flat = aten.view.default(flat, [*rows.shape[:dim], index.numel(), *rows.shape[dim + 2 :]])
    return aten.index_add.default(aten.new_zeros.default(frames, sizes), dim, index, flat)


def _embedding(args: Any, kwargs: Any) -> Any:
    given: list[Any] = [*args, *(-1, False, False)[len(args) - 2 :]]
    weight, indices, padding, scale, sparse = given
    if not sparse:
        return NotImplemented
    _dense_gradient(weight)
    return aten.embedding.default(weight, indices, padding, scale, False)


def _dense_gradient(weight: torch.Tensor) -> None:
    if weight.requires_grad and torch.is_grad_enabled():
        raise RemoteOperationError("gradients on a Node are dense: make the layer with sparse=False")


def _embedding_bag(args: Any, kwargs: Any) -> Any:
    # torch chooses the one without gradients, because it sees none required: those are kept elsewhere
    rest = [*args[3:]]
    if len(rest) > 2 and rest[2]:
        _dense_gradient(args[0])
        rest[2] = False
    return aten._embedding_bag.default(*args[:3], *rest, **kwargs)


def _ctc_loss(args: Any, kwargs: Any) -> Any:
    log_probs, targets, inputs, lengths, *rest = args
    return aten._ctc_loss.Tensor(log_probs, targets, torch.tensor(inputs), torch.tensor(lengths), *rest, **kwargs)


def _attention(args: Any, kwargs: Any) -> Any:
    """A mask that requires a gradient gets none from the fused kernel, so torch does not choose that for it."""
    mask = kwargs.get("attn_mask")
    if mask is None or not mask.requires_grad or not torch.is_grad_enabled():
        return NotImplemented
    given: list[Any] = [*args, *(0.0, False)[len(args) - 3 :]]
    query, key, value, dropout, causal = given
    return aten._scaled_dot_product_attention_math.default.decompose(
        query, key, value, mask, dropout, causal, None, scale=kwargs.get("scale")
    )


REWRITES: dict[Any, Callable[[Any, Any], Any]] = {
    # operations that return Python values are reads, made of allowed operations and a read
    aten._local_scalar_dense.default: _item,
    aten.equal.default: _equal,
    aten.allclose.default: _allclose,
    aten.is_pinned.default: _never,
    aten.is_same_size.default: _same_size,
    aten._has_same_storage_numel.default: _same_size,
    aten.lift_fresh.default: _same,
    # torch asks for sizes in this way where they are symbols, and an operation needs the numbers
    aten.size.default: _lengths,
    aten.stride.default: _strides,
    # what no Node runs, or not in this form
    aten.as_strided.default: _frames,
    aten.unfold_backward.default: _overlap_add,
    aten.embedding.default: _embedding,
    aten._embedding_bag_forward_only.default: _embedding_bag,
    aten._ctc_loss.default: _ctc_loss,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
}
"""The operation → what is done instead."""

UNSTEADY = frozenset({aten._scaled_dot_product_flash_attention_for_cpu.default})
"""Of these, the layouts of the arguments do not tell whether they become others."""
