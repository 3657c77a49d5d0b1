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
from grid_jupyter.plans.torch_engine import TorchEngine

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
    program = TorchEngine().load(document, Limits(memory_bytes=1 << 50, work=1 << 60))
    least, most = document.batch
    for batch in [size for size in sizes if least <= size <= most] or [most]:
        tensors = [example.at(batch) for example in examples]
        given: dict[str, dict[str, torch.Tensor]] = {}
        for example, tensor in zip(examples, tensors, strict=True):
            given.setdefault(example.role, {})[example.name] = tensor.detach().clone()
        values = Feed(program, seed=batch).values(given, batch)
        noise = [value for value, one in zip(values, program.inputs, strict=True) if one.role == "noise"]
        with torch.no_grad():
            found = program.run(values)
        try:
            with composites.in_place(), _Noise(noise):
                expected = function(tensors)
        except StopIteration:
            raise NotCapturableError("the function draws random numbers that the plan does not have") from None
        for output, value, (name, role, tensor) in zip(document.outputs, found, expected, strict=True):
            if not skipped(role) and not _alike(value, tensor.detach()):
                raise NotCapturableError(
                    f"the plan's {role} {name} differs from torch's for a batch of {batch}; this is a fault of the "
                    "capture, please report it with the model"
                )
            del output


def _alike(value: torch.Tensor, expected: torch.Tensor) -> bool:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        return False
    if not value.is_floating_point():
        return bool((value == expected).all())
    same = (value == expected) | (value.isnan() & expected.isnan())
    finite = expected[expected.isfinite()].abs()
    scale = max(1e-2, float(finite.max())) if finite.numel() else 1.0
    return bool((same | ((value - expected).abs() <= RELATIVE * scale)).all())
