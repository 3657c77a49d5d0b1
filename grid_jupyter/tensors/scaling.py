"""What torch.amp.GradScaler does to remote gradients: two operations off the list, made of ones on it.

The scaler itself asks whether all gradients were finite before it steps. That is a read, and passes the release gate.
"""

from __future__ import annotations

from typing import Any

import torch

from grid_jupyter.tensors.autograd import Autograd

aten = torch.ops.aten


def unscale(gradients: list[Any], found: Any, inverse: Any) -> None:
    """`_amp_foreach_non_finite_check_and_unscale_`: divides by the scale, and notes in `found` what is not finite."""
    odd = [aten.any.default(aten.logical_or.default(aten.isinf.default(g), aten.isnan.default(g))) for g in gradients]
    for gradient in gradients:
        aten.mul_.Tensor(gradient, inverse)
    if not odd:
        return
    some = aten.any.default(aten.stack.default(odd))
    if isinstance(found, Autograd):
        aten.copy_.default(found, aten.maximum.default(found, aten._to_copy.default(some, dtype=found.dtype)))
    elif some.item():
        found.fill_(1.0)


def update(scale: Any, steps: Any, found: Any, growth: float, backoff: float, interval: int) -> Any:
    """`_amp_update_scale_`: a smaller scale after gradients that were not finite, a larger one after many that were."""
    odd = aten.gt.Scalar(found, 0)
    count = aten.masked_fill.Scalar(aten.add.Scalar(steps, 1), odd, 0)
    due = aten.eq.Scalar(count, interval)
    larger = aten.mul.Scalar(scale, growth)
    grown = aten.where.self(
        aten.logical_and.default(due, aten.logical_not.default(aten.isinf.default(larger))), larger, scale
    )
    aten.copy_.default(scale, aten.where.self(odd, aten.mul.Scalar(scale, backoff), grown))
    aten.copy_.default(steps, aten.masked_fill.Scalar(count, due, 0))
    return scale
