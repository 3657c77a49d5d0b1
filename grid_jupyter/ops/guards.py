"""Checks around the allowed kernels that trust their caller, or say too little of what they do.

ATen checks in its public wrappers; some kernels below them crash, or read out of bounds, on arguments
that no wrapper would pass. Some return memory that they never wrote to, which holds what was computed before,
or write to an argument without a new version of it. Fuzzing found these (docs/operations.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from grid_jupyter.ops.numeric_guards import NUMERIC_GUARDS
from grid_jupyter.ops.numeric_guards import need as _need

aten = torch.ops.aten
MAX_PIECES = 100_000
"""Tensors that one operation takes another apart into."""
_FAR = 1e9
_INDEX = (torch.int64, torch.int32)
_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)


def _batch_norm(kernel: Any) -> Callable[..., Any]:
    def guarded(x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, *options: Any) -> Any:
        training = len(options) == 2 or options[0]
        _need(x.dim() >= 2 and x.is_floating_point() and x.numel() > 0, "batch norm takes a floating [N, C, …] input")
        for t in (weight, bias, mean, var):
            _need(
                t is None or (t.dim() == 1 and t.numel() == x.shape[1] and t.is_floating_point() and t.is_contiguous()),
                "per-channel tensors have one value a channel",
            )
        _need(training or mean is not None, "running statistics are needed in eval mode")
        _need((mean is None) == (var is None), "running_mean and running_var go together")
        if mean is None:
            return kernel(x, weight, bias, None, None, *options)
        # the kernel writes the statistics behind autograd's back: let it, to copies. Autograd keeps those
        # in eval mode, too: else a backward pass would be refused because the statistics count as written to.
        new_mean, new_var = mean.detach().clone(), var.detach().clone()
        result = kernel(x, weight, bias, new_mean, new_var, *options)
        if training:
            with torch.no_grad():
                mean.copy_(new_mean)
                var.copy_(new_var)
        return result

    return guarded


def _batch_norm_without_statistics(
    x: torch.Tensor, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> Any:
    _need(training, "running statistics are needed in eval mode")
    return _batch_norm(aten.native_batch_norm.default)(x, weight, bias, None, None, True, momentum, eps)


def _rrelu(
    x: torch.Tensor, noise: torch.Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False,
    generator: None = None,
) -> Any:  # fmt: skip
    _need(x.is_floating_point() and noise.shape == x.shape and noise.dtype == x.dtype, "noise is like the input")
    drawn = torch.zeros_like(x)
    result = aten.rrelu_with_noise.default(x, drawn, lower, upper, training, generator)
    with torch.no_grad():
        noise.copy_(drawn)
    return result


def _embedding(
    weight: torch.Tensor, indices: torch.Tensor, padding: int = -1, scale: bool = False, sparse: bool = False
) -> Any:
    _need(not sparse, "only dense gradients")
    return aten.embedding.default(weight, indices, padding, scale, False)


def _lstm_layer(
    x: torch.Tensor, w0: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor, hx: torch.Tensor,
    cx: torch.Tensor, reverse: bool, batch_sizes: list[int], mode: int, hidden: int, layers: int, has_biases: bool,
    bidirectional: bool, batch_first: bool, train: bool,
) -> Any:  # fmt: skip
    _need(mode == 2 and not batch_sizes and hidden > 0 and w0.dim() == 2, "only plain LSTM layers")
    if not has_biases:  # torch then gives tensors of another shape in their place, and reads zeros
        w2 = w3 = w0.new_zeros(w0.shape[0])
    tensors = (x, w0, w1, w2, w3, hx, cx)
    _need(all(t.dtype == x.dtype and t.dtype in (torch.float32, torch.bfloat16) for t in tensors), "one float dtype")
    _need(x.dim() == 3 and x.numel() > 0, "an LSTM layer takes a [T, N, F] input")
    _need(
        w0.shape == (4 * hidden, x.shape[2])
        and w1.shape == (4 * hidden, hidden)
        and w2.shape == w3.shape == (4 * hidden,),
        "weights fit the input and the hidden size",
    )
    _need(
        hx.numel() == cx.numel() == x.shape[1] * hidden and hx.shape[-1] == cx.shape[-1] == hidden,
        "states fit the batch and the hidden size",
    )
    *results, workspace = aten.mkldnn_rnn_layer.default(
        *(t.contiguous() for t in tensors), reverse, batch_sizes, mode, hidden, layers, True,
        bidirectional, batch_first, train,
    )  # fmt: skip
    # autograd keeps the workspace itself; most of its bytes were never written
    return (*results, workspace if workspace is None else torch.zeros_like(workspace))


def _fused(kernel: Any, lists: int) -> Callable[..., Any]:
    names = [argument.name for argument in kernel._schema.arguments]

    def guarded(*args: Any, **kwargs: Any) -> Any:
        params = args[0]
        _need(all(p.is_floating_point() and p.is_contiguous() for p in params), "parameters are dense floats")
        for name, tensors in zip(names[1:lists], args[1:lists], strict=True):
            if name in ("max_exp_avg_sqs", "momentum_buffer_list") and not tensors:
                continue
            _need(len(tensors) == len(params), f"{name} has one tensor a parameter")
            for p, t in zip(params, tensors, strict=True):
                if name == "state_steps":
                    _need(t.numel() == 1 and t.dtype == torch.float32, "steps are single float32 values")
                else:
                    _need((p.shape, p.dtype, p.stride()) == (t.shape, t.dtype, t.stride()), f"{name} fits")
        _need(all(v.numel() == 1 for v in kwargs.values() if isinstance(v, torch.Tensor)), "options are single values")
        _need(not kwargs.get("amsgrad") or len(args[4]) == len(params), "amsgrad needs max_exp_avg_sqs")
        _need(
            not kwargs.get("momentum") or names[2] != "momentum_buffer_list" or len(args[2]) == len(params),
            "momentum needs its buffers",
        )
        return kernel(*args, **kwargs)

    return guarded


def _embedding_bag(
    weight: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor, scale: bool = False, mode: int = 0,
    sparse: bool = False, per_sample: Any = None, include_last: bool = False, padding: int = -1,
) -> Any:  # fmt: skip
    _need(weight.dim() == 2 and weight.is_floating_point() and weight.numel() > 0, "weight is a [V, E] float tensor")
    _need(indices.dim() == offsets.dim() == 1 and indices.dtype == offsets.dtype in _INDEX, "1-d integer indices")
    _need(mode in (0, 1, 2) and not sparse and -weight.shape[0] <= padding < weight.shape[0], "mode and padding")
    _need(
        per_sample is None or (per_sample.shape == indices.shape and per_sample.dtype == weight.dtype and mode == 0),
        "one weight an index, in mode sum",
    )
    _need(offsets.numel() > 0 and int(offsets[0]) == 0 and int(offsets.max()) <= indices.numel(), "offsets start at 0")
    _need(bool((offsets[1:] >= offsets[:-1]).all()), "offsets rise")
    _need(not include_last or int(offsets[-1]) == indices.numel(), "the last offset is the number of indices")
    if indices.numel():
        _need(int(indices.min()) >= 0 and int(indices.max()) < weight.shape[0], "indices within the table")
    weights = None if per_sample is None else per_sample.contiguous()
    weight, indices, offsets = (
        weight.contiguous(),
        indices.contiguous(),
        offsets.contiguous(),
    )  # the kernel relies on it
    return aten._embedding_bag.default(weight, indices, offsets, scale, mode, sparse, weights, include_last, padding)


def _ctc(
    log_probs: torch.Tensor, targets: torch.Tensor, inputs: torch.Tensor, lengths: torch.Tensor, blank: int = 0,
    zero_infinity: bool = False,
) -> Any:  # fmt: skip
    _need(log_probs.dim() == 3 and log_probs.is_floating_point() and log_probs.numel() > 0, "[T, N, C] input")
    steps, batch, classes = log_probs.shape
    _need(targets.dim() in (1, 2) and targets.dtype in _INDEX and targets.numel() > 0, "integer targets")
    _need(0 <= blank < classes and int(targets.min()) >= 0 and int(targets.max()) < classes, "targets are classes")
    _need(inputs.shape == lengths.shape == (batch,), "one length a row")
    _need({inputs.dtype, lengths.dtype} <= set(_INDEX), "integer lengths")
    _need(int(inputs.min()) > 0 and int(inputs.max()) <= steps and int(lengths.min()) >= 0, "lengths within the input")
    if targets.dim() == 2:
        _need(targets.shape[0] == batch and int(lengths.max()) <= targets.shape[1], "target lengths within the targets")
    else:
        _need(int(lengths.sum()) == targets.numel(), "target lengths add up to the targets")
    loss, alphas = aten._ctc_loss.Tensor(
        log_probs, targets.contiguous(), inputs.contiguous(), lengths.contiguous(), blank, zero_infinity
    )
    return loss, torch.zeros_like(alphas)  # autograd keeps them itself; beyond the lengths they were never written


def _plain(t: torch.Tensor) -> bool:
    """Whether rows lie one behind the other, and none in another's place: the result is strided as they are."""
    return t.stride(3) == 1 and torch._debug_has_internal_overlap(t) == 0


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0, causal: bool = False, *,
    attn_mask: torch.Tensor | None = None, scale: float | None = None,
) -> Any:  # fmt: skip
    _need(all(t.dim() == 4 and t.numel() > 0 for t in (query, key, value)), "attention takes [N, heads, L, E] inputs")
    _need(query.dtype == key.dtype == value.dtype and query.is_floating_point(), "one float dtype")
    _need(key.shape == value.shape, "as many values as keys")
    _need(query.shape[:2] == key.shape[:2] and query.shape[3] == key.shape[3], "queries fit the keys")
    if attn_mask is not None:
        wanted = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        _need(attn_mask.dtype in (torch.bool, query.dtype) and attn_mask.dim() in (2, 4), "a mask of bools or floats")
        attn_mask = attn_mask.expand(wanted if attn_mask.dim() == 4 else wanted[2:])
    query, key, value = (t if _plain(t) else t.contiguous() for t in (query, key, value))
    return aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, dropout, causal, attn_mask=attn_mask, scale=scale
    )


def _encoder_layer(
    x: torch.Tensor, width: int, heads: int, qkv: torch.Tensor, qkv_bias: torch.Tensor, proj: torch.Tensor,
    proj_bias: torch.Tensor, use_gelu: bool, norm_first: bool, eps: float, *parts: Any,
    mask: torch.Tensor | None = None, mask_type: int | None = None,
) -> Any:  # fmt: skip
    if len(parts) > 8:
        _need(mask is None and mask_type is None and len(parts) <= 10, "one mask of one type")
        parts, mask, mask_type = parts[:8], parts[8], parts[9] if len(parts) > 9 else None
    _need(len(parts) == 8, "a layer has eight weights after its attention")
    _need(x.dim() == 3 and x.numel() > 0 and x.is_floating_point(), "a floating [N, L, E] input")
    _need(x.shape[2] == width and heads > 0 and width % heads == 0, "the width is the input's, and a multiple of heads")
    hidden = parts[4].shape[0] if parts[4].dim() == 2 else 0
    _need(hidden > 0, "the first linear layer is a matrix")
    vector, weights = (width,), (qkv, qkv_bias, proj, proj_bias, *parts)
    shapes = (
        (3 * width, width), (3 * width,), (width, width), vector, vector, vector, vector, vector,
        (hidden, width), (hidden,), (width, hidden), vector,
    )  # fmt: skip
    _need(all(w.shape == shape and w.dtype == x.dtype for w, shape in zip(weights, shapes, strict=True)), "weights fit")
    _need((mask is None) == (mask_type is None), "a mask and its type go together")
    if mask is not None:
        rows, length = x.shape[0], x.shape[1]
        known = {0: (length, length), 1: (rows, length), 2: (rows, heads, length, length)}
        _need(mask.dtype == torch.bool and known.get(mask_type or 0) == mask.shape, "a mask of bools of that type")
        mask = mask.contiguous()
    qkv, qkv_bias, proj, proj_bias, *rest = (w.contiguous() for w in weights)
    return aten._transformer_encoder_layer_fwd.default(
        x.contiguous(), width, heads, qkv, qkv_bias, proj, proj_bias, use_gelu, norm_first, eps, *rest, mask, mask_type
    )


def _grid_sampler(x: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align: bool) -> Any:
    _need(mode in (0, 1, 2) and padding in (0, 1, 2), "a known interpolation and padding")  # else nothing is written
    # padding by border and reflection makes places in the input of any grid, and the gradient writes there
    _need(padding == 0 or bool((grid.abs() < _FAR).all()), "a grid without NaN and infinity")
    return aten.grid_sampler_2d.default(x, grid, mode, padding, align)


def _reduced(kernel: Any) -> Callable[..., Any]:
    """A loss that returns what was never written for a reduction that there is not."""
    position = [argument.name for argument in kernel._schema.arguments].index("reduction")

    def guarded(x: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = args[position - 2] if len(args) > position - 2 else kwargs.get("reduction", 1)
        _need(found in (0, 1, 2), "a known reduction")
        _need(kernel is not aten.binary_cross_entropy.default or x.shape == target.shape, "a target like the input")
        return kernel(x, target, *args, **kwargs)

    return guarded


def _whole(kernel: Any) -> Callable[..., Any]:
    """The smallest integer has no absolute value: dividing it by what comes out ends the process."""

    def guarded(x: torch.Tensor, other: torch.Tensor) -> Any:
        common = torch.result_type(x, other)
        for t in (x, other):
            fits = common not in _SIGNED or not bool((t.to(common) == torch.iinfo(common).min).any())
            _need(fits, "integers that have an absolute value")
        return kernel(x, other)

    return guarded


def _truncated(kernel: Any) -> Callable[..., Any]:
    """The smallest integer by -1 has no result, and ends the process."""

    def guarded(x: torch.Tensor, other: Any, *, rounding_mode: str | None = None) -> Any:
        common = torch.result_type(x, other)
        if rounding_mode == "trunc" and common in _SIGNED:
            divisor = other if isinstance(other, torch.Tensor) else torch.tensor(other)
            smallest = bool((x.to(common) == torch.iinfo(common).min).any())
            _need(not smallest or not bool((divisor.to(common) == -1).any()), "a division that has a result")
        return kernel(x, other, rounding_mode=rounding_mode)

    return guarded


def _scaled_each(kernel: Any) -> Callable[..., Any]:
    """The kernel takes it for granted that there is a number for each tensor."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        lengths = {len(given) for given in (*args, *kwargs.values()) if isinstance(given, list)}
        _need(len(lengths) == 1, "lists of one length")
        return kernel(*args, **kwargs)

    return guarded


def _group_norm(
    x: torch.Tensor, weight: Any, bias: Any, rows: int, channels: int, area: int, groups: int, eps: float
) -> Any:
    _need(all(t is None or t.numel() == channels for t in (weight, bias)), "one weight a channel")
    weight, bias = (t if t is None else t.contiguous() for t in (weight, bias))
    return aten.native_group_norm.default(x, weight, bias, rows, channels, area, groups, eps)


def _adaptive_pool(kernel: Any) -> Callable[..., Any]:
    def guarded(x: torch.Tensor, size: list[int]) -> Any:
        _need(all(n >= 0 for n in size), "an output size that is not negative")
        return kernel(x, size)

    return guarded


def _columns(kernel: Any, lists: int) -> Callable[..., Any]:
    """Sizes are multiplied without a look at what comes out."""

    def guarded(x: torch.Tensor, *sizes: list[int]) -> Any:
        _need(len(sizes) == lists and all(0 <= n <= 1 << 20 for size in sizes for n in size), "sizes up to a million")
        return kernel(x, *sizes)

    return guarded


def _dense_first(kernel: Any) -> Callable[..., Any]:
    """The kernel walks a copy of its input by the strides of the input itself, which need not fit the copy."""

    def guarded(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return kernel(x.contiguous(), *args, **kwargs)

    return guarded


def _pieces(kernel: Any, count: Callable[..., int]) -> Callable[..., Any]:
    """Memory that ends while torch makes a list of tensors ends the process."""

    def guarded(x: torch.Tensor, *args: Any) -> Any:
        _need(count(x, *args) <= MAX_PIECES, f"a tensor comes apart into {MAX_PIECES:,} pieces at most")
        return kernel(x, *args)

    return guarded


def _by_size(x: torch.Tensor, size: int, dim: int = 0) -> int:
    return -(-_each(x, dim) // size) if size > 0 else 0


def _by_sizes(x: torch.Tensor, sizes: list[int], dim: int = 0) -> int:
    return len(sizes)


def _each(x: torch.Tensor, dim: int = 0) -> int:
    return x.shape[dim] if -x.dim() <= dim < x.dim() else 0  # what does not fit, torch refuses in its own words


GUARDS: dict[str, Callable[..., Any]] = {
    "aten.native_batch_norm.default": _batch_norm(aten.native_batch_norm.default),
    "aten._native_batch_norm_legit.default": _batch_norm(aten._native_batch_norm_legit.default),
    "aten._native_batch_norm_legit.no_stats": _batch_norm_without_statistics,
    "aten._batch_norm_with_update.default": _batch_norm(aten._batch_norm_with_update.default),
    "aten.rrelu_with_noise.default": _rrelu,
    "aten.embedding.default": _embedding,
    "aten.mkldnn_rnn_layer.default": _lstm_layer,
    "aten._fused_adam_.default": _fused(aten._fused_adam_.default, 6),
    "aten._fused_adamw_.default": _fused(aten._fused_adamw_.default, 6),
    "aten._fused_sgd_.default": _fused(aten._fused_sgd_.default, 3),
    "aten._fused_adagrad_.default": _fused(aten._fused_adagrad_.default, 4),
    "aten._embedding_bag.default": _embedding_bag,
    "aten._ctc_loss.Tensor": _ctc,
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _attention,
    "aten._transformer_encoder_layer_fwd.default": _encoder_layer,
    "aten.grid_sampler_2d.default": _grid_sampler,
    "aten.binary_cross_entropy.default": _reduced(aten.binary_cross_entropy.default),
    "aten.soft_margin_loss.default": _reduced(aten.soft_margin_loss.default),
    "aten.div.Tensor_mode": _truncated(aten.div.Tensor_mode),
    "aten.div_.Tensor_mode": _truncated(aten.div_.Tensor_mode),
    "aten.div.Scalar_mode": _truncated(aten.div.Scalar_mode),
    "aten.div_.Scalar_mode": _truncated(aten.div_.Scalar_mode),
    "aten._foreach_addcdiv_.ScalarList": _scaled_each(aten._foreach_addcdiv_.ScalarList),
    "aten._foreach_addcmul_.ScalarList": _scaled_each(aten._foreach_addcmul_.ScalarList),
    "aten.lcm.default": _whole(aten.lcm.default),
    "aten.native_group_norm.default": _group_norm,
    "aten._adaptive_avg_pool2d.default": _adaptive_pool(aten._adaptive_avg_pool2d.default),
    "aten.im2col.default": _columns(aten.im2col.default, 4),
    "aten.col2im.default": _columns(aten.col2im.default, 5),
    "aten.kthvalue.default": _dense_first(aten.kthvalue.default),
    "aten.median.dim": _dense_first(aten.median.dim),
    "aten.nanmedian.dim": _dense_first(aten.nanmedian.dim),
    "aten.split.Tensor": _pieces(aten.split.Tensor, _by_size),
    "aten.split_with_sizes.default": _pieces(aten.split_with_sizes.default, _by_sizes),
    "aten.split_with_sizes_copy.default": _pieces(aten.split_with_sizes_copy.default, _by_sizes),
    "aten.unbind.int": _pieces(aten.unbind.int, _each),
    "aten.unbind_copy.int": _pieces(aten.unbind_copy.int, _each),
    **NUMERIC_GUARDS,
}
"""Full name of an operation → the callable that checks its arguments and then runs it."""
if "ScalarList" in aten._foreach_lerp_.overloads():  # not before torch 2.6
    GUARDS["aten._foreach_lerp_.ScalarList"] = _scaled_each(aten._foreach_lerp_.ScalarList)

BY_LAYOUT = frozenset(f"aten.{name}.default" for name in ("_fused_adam_", "_fused_adamw_", "_fused_sgd_"))
"""Those of them that look at shapes, strides, dtypes and numbers alone: found good once, the same are good again."""
