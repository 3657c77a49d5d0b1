"""Runs a fresh plan beside the function that it came from and compares: what differs is never given to anybody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grid_jupyter.errors import NotCapturableError
from grid_jupyter.plans import composites
from grid_jupyter.plans.capture import Example, Function
from grid_jupyter.plans.check import Limits
from grid_jupyter.plans.document import Document
from grid_jupyter.plans.engine import Feed
from grid_jupyter.plans.torch_engine import TorchEngine, TorchProgram

SIZES = (3, 6)
"""Batch sizes that are compared, of those that the plan is for."""
RELATIVE = 1e-4
"""Largest difference, relative to the largest magnitude of a value; float32 sums differ by 1e-6 or so."""

aten = torch.ops.aten


class _Noise(TorchDispatchMode):
    """Gives tensors from a list wherever torch would draw random numbers, in order."""

    def __init__(self, drawn: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._drawn = iter(drawn)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in (aten.rand, aten.rand_like, aten.randn, aten.randn_like):
            return next(self._drawn)
        if packet is aten.bernoulli_ and len(args) > 1:
            return args[0].copy_(next(self._drawn) < args[1])
        if packet is aten.bernoulli and len(args) > 1:
            return (next(self._drawn) < args[1]).to(args[0].dtype)
        return func(*args, **(kwargs or {}))


def compare(
    document: Document, function: Function, examples: Sequence[Example], skipped: Callable[[str], bool],
    sizes: Sequence[int] = SIZES,
) -> None:  # fmt: skip
    """Raises NotCapturableError where an output differs from the function's, for batches of these sizes. Outputs of a
    role `skipped` are not compared (parameters behind Adam, which turns a gradient that is zero but for rounding into a
    whole step)."""
    program = _program(document)
    for batch in _within(document, sizes):
        tensors, values, noise = _case(program, examples, batch)
        with torch.no_grad():
            found = program.run(values)
        expected = _expected(function, tensors, noise)
        for value, (name, role, tensor) in zip(found, expected, strict=True):
            if not skipped(role) and not _alike(value, tensor.detach()):
                raise NotCapturableError(
                    f"the plan's {role} {name} differs from torch's for a batch of {batch}; this is a fault of the "
                    "capture, please report it with the model"
                )


def compare_gradients(document: Document, function: Function, examples: Sequence[Example]) -> None:
    """Raises NotCapturableError where the loss of a forward plan has another gradient than the function's: who derives
    a step from the plan would train something else."""
    program = _program(document)
    for batch in _within(document, SIZES):
        tensors, values, noise = _case(program, examples, batch)
        of_params = [k for k, one in enumerate(program.inputs) if one.role == "param" and values[k].is_floating_point()]
        for k in of_params:
            values[k].requires_grad_()
        names = [program.inputs[k].name for k in of_params]
        by_name = {example.name: k for k, example in enumerate(examples) if example.role == "param"}
        for name in names:
            tensors[by_name[name]] = tensors[by_name[name]].detach().clone().requires_grad_()
        with torch.enable_grad():
            losses = [
                next(
                    value
                    for value, one in zip(program.run(values), document.outputs, strict=True)
                    if one.role == "loss"
                ),
                next(tensor for _, role, tensor in _expected(function, tensors, noise) if role == "loss"),
            ]
        leaves = [values[k] for k in of_params], [tensors[by_name[name]] for name in names]
        ours, theirs = (
            torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)
            for loss, given in zip(losses, leaves, strict=True)
        )
        for name, grad, expected in zip(names, ours, theirs, strict=True):
            if not _alike(grad, expected):
                raise NotCapturableError(
                    f"the gradient of {name} is not that of forward and loss: the model stops or changes gradients on "
                    "their way (detach(), no_grad(), a Function of its own). Capture the whole step with training_plan"
                )


def _program(document: Document) -> TorchProgram:
    return TorchEngine().load(document, Limits(memory_bytes=1 << 50, work=1 << 60))


def _within(document: Document, sizes: Sequence[int]) -> list[int]:
    least, most = document.batch
    return [size for size in sizes if least <= size <= most] or [most]


def _case(
    program: TorchProgram, examples: Sequence[Example], batch: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """A batch as the function takes it and as the program does, and the noise that is among the latter."""
    tensors = [example.at(batch) for example in examples]
    given: dict[str, dict[str, torch.Tensor]] = {}
    for example, tensor in zip(examples, tensors, strict=True):
        given.setdefault(example.role, {})[example.name] = tensor.detach().clone()
    values = Feed(program, seed=batch).values(given, batch)
    noise = [value for value, one in zip(values, program.inputs, strict=True) if one.role == "noise"]
    return tensors, values, noise


def _expected(
    function: Function, tensors: list[torch.Tensor], noise: Sequence[torch.Tensor]
) -> Sequence[tuple[str, str, torch.Tensor]]:
    try:
        with composites.in_place(), _Noise(noise):
            return function(tensors)
    except StopIteration:
        raise NotCapturableError("the function draws random numbers that the plan does not have") from None


def _alike(value: torch.Tensor, expected: torch.Tensor) -> bool:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        return False
    if not value.is_floating_point():
        return bool((value == expected).all())
    same = (value == expected) | (value.isnan() & expected.isnan())
    finite = expected[expected.isfinite()].abs()
    scale = max(1e-2, float(finite.max())) if finite.numel() else 1.0
    return bool((same | ((value - expected).abs() <= RELATIVE * scale)).all())
