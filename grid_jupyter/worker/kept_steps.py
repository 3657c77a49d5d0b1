"""A small plan's step as a fixed list of kernels on memory that is kept, noted while autograd did it once.

A step of a small network is over before autograd has built its graph. The list has the kernels that autograd called,
with the same arguments in the same order, each of which writes where it wrote before: so nothing is looked up, made
or let go of. It is used where it came to the same bits as the ordinary step beside it, and forgotten otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from grid_jupyter.worker.compiled import CAN_COMPILE, below_autograd
from grid_jupyter.worker.tape import Noted, Numbers, Ref, Tape

MOST_BYTES = 1 << 20
"""All values of a step that is kept; what is larger gains little, and should let go of what it has used."""

aten = torch.ops.aten


def _cast(value: torch.Tensor, *, out: torch.Tensor, **_options: Any) -> None:
    out.copy_(value)


def _apart(kernel: Callable[..., torch.Tensor]) -> Callable[..., None]:
    """Of a loss that, told where to write its mean, would take memory for all of its values there."""

    def run(*values: Any, out: torch.Tensor) -> None:
        out.copy_(kernel(*values))

    return run


_mean = aten.mean.dtype_out._op if "dtype_out" in aten.mean.overloads() else _apart(aten.mean.default._op)
"""torch 2.4 has none that is told where to write."""

_VIEWS = frozenset(
    one._op
    for one in (
        aten.alias.default, aten.detach.default, aten.expand.default, aten.permute.default, aten.select.int,
        aten.slice.Tensor, aten.squeeze.dim, aten.squeeze.default, aten.t.default, aten.transpose.int,
        aten.unsqueeze.default, aten.view.default, aten._unsafe_view.default,
    )
)  # fmt: skip
"""What shows the same memory in another way: done once."""
_CONSTANTS = frozenset(one._op for one in (aten.ones_like.default, aten.zeros_like.default))
_INTO: dict[Any, tuple[Callable[..., Any], tuple[str, ...]]] = {
    aten.addmm.default._op: (torch.addmm, ("out",)),
    aten.mm.default._op: (torch.mm, ("out",)),
    aten.add.Tensor._op: (torch.add, ("out",)),
    aten.sub.Tensor._op: (torch.sub, ("out",)),
    aten.mul.Tensor._op: (torch.mul, ("out",)),
    aten.div.Tensor._op: (torch.div, ("out",)),
    aten.neg.default._op: (torch.neg, ("out",)),
    aten.exp.default._op: (torch.exp, ("out",)),
    aten._to_copy.default._op: (_cast, ("out",)),
    aten.sum.dim_IntList._op: (torch.sum, ("out",)),
    aten.mean.default._op: (_mean, ("out",)),
    aten.mean.dim._op: (torch.mean, ("out",)),
    aten.argmax.default._op: (torch.argmax, ("out",)),
    aten.eq.Tensor._op: (torch.eq, ("out",)),
    aten.eq.Scalar._op: (torch.eq, ("out",)),
    aten.ge.Scalar._op: (torch.ge, ("out",)),
    aten.gt.Scalar._op: (torch.gt, ("out",)),
    aten.sigmoid.default._op: (torch.sigmoid, ("out",)),
    aten.tanh.default._op: (torch.tanh, ("out",)),
    aten.relu.default._op: (aten.relu.out._op, ("out",)),
    aten.threshold_backward.default._op: (aten.threshold_backward.grad_input._op, ("grad_input",)),
    aten.sigmoid_backward.default._op: (aten.sigmoid_backward.grad_input._op, ("grad_input",)),
    aten.tanh_backward.default._op: (aten.tanh_backward.grad_input._op, ("grad_input",)),
    aten._log_softmax.default._op: (aten._log_softmax.out._op, ("out",)),
    aten._log_softmax_backward_data.default._op: (aten._log_softmax_backward_data.out._op, ("out",)),
    aten.nll_loss_forward.default._op: (aten.nll_loss_forward.output._op, ("output", "total_weight")),
    aten.nll_loss_backward.default._op: (aten.nll_loss_backward.grad_input._op, ("grad_input",)),
    aten.mse_loss.default._op: (_apart(aten.mse_loss.default._op), ("out",)),
    aten.mse_loss_backward.default._op: (aten.mse_loss_backward.grad_input._op, ("grad_input",)),
    aten.binary_cross_entropy.default._op: (_apart(aten.binary_cross_entropy.default._op), ("out",)),
    aten.binary_cross_entropy_backward.default._op: (
        aten.binary_cross_entropy_backward.grad_input._op,
        ("grad_input",),
    ),
}  # fmt: skip
"""By kernel, which gives memory of its own: the same one writing where it is told to, and the names by which it is
told. None is random, nor of a size that depends on values, and autograd's way through each depends on layouts alone."""
Step = Callable[[Sequence[torch.Tensor]], tuple[Sequence[torch.Tensor | None], Sequence[torch.Tensor]]]
"""The values of a plan's inputs in, those of its outputs and the gradients out."""


class KeptStep:
    """A step of one batch size. `inputs` are to be filled, by their place; `run` leaves `outputs` and `gradients`."""

    def __init__(
        self,
        inputs: dict[int, torch.Tensor],
        calls: list[Callable[[], Any]],
        outputs: list[torch.Tensor | None],
        gradients: list[torch.Tensor],
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.gradients = gradients
        self._calls = calls

    def run(self) -> None:
        """One step on what the inputs hold, and on the weights as they are. Raises what its kernels do."""
        with below_autograd():
            for call in self._calls:
                call()


def kept(step: Step, values: Sequence[torch.Tensor], filled: Sequence[int]) -> KeptStep | None:
    """Do a step on these values, and keep what it did; None where that cannot be. `filled` are the places of what each
    step brings; the other values stay where they are, whatever is written to them."""
    if not CAN_COMPILE:
        return None
    numbers = Numbers()
    at = [numbers.add(value) for value in values]
    if len({number for value in values if (number := numbers.of(value)) is not None}) < len(values):
        return None
    with Tape(numbers, {}) as tape:
        outputs, gradients = step(values)
    wanted = [None if one is None else numbers.of(one) for one in outputs]
    moves = [numbers.of(one) for one in gradients]
    missing = any(number is None and one is not None for number, one in zip(wanted, outputs, strict=True))
    if not tape.whole or missing or None in moves:
        return None
    inputs = {place: values[place].detach().clone(memory_format=torch.contiguous_format) for place in filled}
    tensors = {number: inputs[place] if place in inputs else values[place].detach() for place, number in enumerate(at)}
    with torch.no_grad(), below_autograd():
        calls = _calls(tape.calls, tensors)
        if calls is None:
            return None
        made = KeptStep(
            inputs,
            calls,
            [None if number is None else tensors[number] for number in wanted],
            [tensors[number] for number in moves if number is not None],
        )
    made.run()
    pairs = [*zip(made.outputs, outputs, strict=True), *zip(made.gradients, gradients, strict=True)]
    return made if all(one is None or other is None or _is_same(one, other) for one, other in pairs) else None


def _calls(noted: list[Noted], tensors: dict[int, torch.Tensor]) -> list[Callable[[], Any]] | None:
    """The calls on tensors that stay, which are added by their numbers as they are made."""
    calls: list[Callable[[], Any]] = []
    taken = sum(map(_bytes, tensors.values()))
    for one in noted:
        arguments = [_native(part, tensors) for part in one.args]
        keywords = {name: _native(part, tensors) for name, part in one.kwargs.items()}
        known = _INTO.get(one.call)
        if known is None and one.call not in _VIEWS and one.call not in _CONSTANTS:
            return None
        result = one.call(*arguments, **keywords)
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        if known is not None:
            results = [part if part.untyped_storage().nbytes() == _bytes(part) else part.clone() for part in results]
        outs = one.outs if isinstance(one.outs, list) else [one.outs]
        tensors |= {number: tensor for number, tensor in zip(outs, results, strict=True) if number is not None}
        if known is not None:
            taken += sum(map(_bytes, results))
            if taken > MOST_BYTES:
                return None
            into, names = known
            calls.append(partial(into, *arguments, **keywords, **dict(zip(names, results, strict=True))))
    return calls


def _native(part: Any, tensors: dict[int, torch.Tensor]) -> Any:
    if isinstance(part, Ref):
        return tensors[part.number]
    return [_native(one, tensors) for one in part] if isinstance(part, list) else part


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are the same; with NaN they are not."""
    return one.dtype == other.dtype and torch.equal(one, other.detach())
