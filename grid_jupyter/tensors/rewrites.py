"""Operations that become others before anything is sent: reads, and what no Node runs but allowed operations can say.

Each takes the operation's arguments and gives its result, or NotImplemented where the operation itself is to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from grid_jupyter.errors import OperationNotAllowedError, RemoteOperationError
from grid_jupyter.ops.allowed import why_refused
from grid_jupyter.tensors.packing import pack

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


def _within(args: Any, kwargs: Any) -> Any:
    """`as_strided` as torch itself uses it, where a view that stays within its tensor is the same.

    `fill_diagonal_` asks for the diagonal, torch.stft for frames that overlap: that is `unfold`.
    """
    x, size, stride = args[:3]
    offset = args[3] if len(args) > 3 else kwargs.get("storage_offset")
    alike = len(size) == 1 < x.dim() and size[0] == min(x.shape) and stride[0] == sum(x.stride())
    if alike and offset in (None, x.storage_offset()):
        while x.dim() > 1:
            x = aten.diagonal.default(x)
        return x
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


def _to_meta(args: Any, kwargs: Any) -> Any:
    """A tensor without values is of this side: torch asks for one to learn shapes, in forward mode."""
    device = kwargs.get("device")
    if device is None or torch.device(device).type != "meta":
        return NotImplemented
    _settle(args[0])
    of = args[0]._layout
    return torch.empty_strided(of.shape, of.stride, dtype=kwargs.get("dtype") or of.dtype, device="meta")


def _folded(args: Any, kwargs: Any) -> Any:
    """A batch of products with one matrix that requires a gradient is one product, as it is in local `matmul`.

    torch asks whether the matrix requires one, and here sees that of none: gradients are kept elsewhere.
    """
    x, y = args
    if not torch.is_grad_enabled() or not _has_numbers(x) or not _has_numbers(y):
        return NotImplemented
    if is_one_matrix(y) and y.requires_grad:
        batch, rows, inner = x.shape
        folded = aten.mm.default(_as_rows(x, [batch * rows, inner]), _matrix(y))
        return aten.view.default(folded, [batch, rows, y.shape[2]])
    if is_one_matrix(x) and x.requires_grad:
        batch, inner, columns = y.shape
        turned = aten.transpose.int(y, 1, 2)
        folded = aten.mm.default(_as_rows(turned, [batch * columns, inner]), aten.t.default(_matrix(x)))
        turned = aten.transpose.int(aten.view.default(folded, [batch, columns, x.shape[1]]), 1, 2)
        return aten.clone.default(turned, memory_format=torch.contiguous_format)
    return NotImplemented


def is_one_matrix(tensor: Any) -> bool:
    """Whether a remote batch of matrices is one matrix, again and again."""
    return _has_numbers(tensor) and tensor._layout.stride[0] == 0 and tensor._layout.shape[0] > 1


def _has_numbers(tensor: Any) -> bool:
    """Whether it is a remote tensor without symbols in its lengths (sizes.py)."""
    found = getattr(tensor, "_layout", None)
    return found is not None and all(type(part) is int for part in (*found.shape, *found.stride))


def _as_rows(x: Any, shape: list[int]) -> Any:
    if x.stride(0) != x.shape[1] * x.stride(1):
        x = aten.clone.default(x, memory_format=torch.contiguous_format)
    return aten.view.default(x, shape)


def _matrix(many: Any) -> Any:
    """The matrix that was expanded; of what is a view of it, since the gradient of an expansion is as large as that."""
    root, shape, stride = many._root, many.shape[1:], many.stride()[1:]
    alike = root is not None and root.dtype == many.dtype and not root.is_complex()  # that may be conjugated lazily
    if alike and _has_numbers(root) and root._offset == many._offset and root.requires_grad:
        if (root.shape, root.stride()) == (shape, stride):
            return root
        if (root.shape[::-1], root.stride()[::-1]) == (shape, stride):
            return aten.t.default(root)
    return aten.select.int(many, 0, 0)


REWRITES: dict[Any, Callable[[Any, Any], Any]] = {
    # operations that return Python values are reads, made of allowed operations and a read
    aten._local_scalar_dense.default: _item,
    aten.equal.default: _equal,
    aten.allclose.default: _allclose,
    aten.is_pinned.default: _never,
    aten.is_same_size.default: _same_size,
    aten._to_copy.default: _to_meta,
    aten.bmm.default: _folded,
    aten._pack_padded_sequence.default: pack,
    aten._has_same_storage_numel.default: _same_size,
    aten.lift_fresh.default: _same,
    # torch asks for sizes in this way where they are symbols, and an operation needs the numbers
    aten.size.default: _lengths,
    aten.stride.default: _strides,
    # what no Node runs, or not in this form
    aten.as_strided.default: _within,
    aten.unfold_backward.default: _overlap_add,
    aten.embedding.default: _embedding,
    aten._embedding_bag_forward_only.default: _embedding_bag,
    aten._ctc_loss.default: _ctc_loss,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
}
"""The operation → what is done instead."""


def is_unsteady(op: Any, args: Any) -> bool:
    """Whether the layouts of the arguments do not tell if the operation becomes another one."""
    if op is aten.bmm.default:
        return any(map(is_one_matrix, args))
    return op is aten._scaled_dot_product_flash_attention_for_cpu.default
