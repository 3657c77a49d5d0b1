"""Runs plans by torch: each operation is one of the functions in `plans/torch_kernels.py`, found once, when loaded.

A program is a flat list of calls for each batch size that occurs, with all sizes computed and values let go after
their last use. Autograd sees what runs, so gradients of a forward plan are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.ops.raw import DTYPES, NAMES, from_bytes
from grid_jupyter.plans.check import Limits, check, concrete
from grid_jupyter.plans.document import Document, references
from grid_jupyter.plans.engine import batch_of, check_range
from grid_jupyter.plans.expressions import size_of
from grid_jupyter.plans.operations import OPERATIONS
from grid_jupyter.plans.torch_kernels import KERNELS

Call = Callable[[list[Any]], None]
MAX_BATCH_SIZES = 8
"""Batch sizes for which the calls of one program are kept."""


class TorchEngine:
    """Runs plans by torch on one device."""

    name = "torch"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def load(
        self, document: Document, limits: Limits | None = None, wanted: Callable[[str], bool] = lambda role: True
    ) -> TorchProgram:
        """As Engine.load."""
        check_range(document, limits)
        return TorchProgram(document, self.device, limits, wanted)


class TorchProgram:
    """A plan as calls of torch's functions. A run inside `torch.no_grad()` costs less where no gradient is wanted."""

    def __init__(
        self, document: Document, device: torch.device, limits: Limits | None, wanted: Callable[[str], bool]
    ) -> None:
        self.document = document
        self.inputs = tuple(one for one in document.inputs if one.role != "const")
        self._device = device
        self._limits = limits
        self._kernels = KERNELS
        self._calls: dict[int, tuple[list[tuple[torch.dtype, tuple[int, ...]]], list[Call]]] = {}
        self._size = len(document.specs)
        self._outputs = [int(output.value) for output in document.outputs]
        self._wanted = {int(output.value) for output in document.outputs if wanted(output.role)}
        numbers = [k for k, one in enumerate(document.inputs) if one.role != "const"]
        self._slots = numbers if numbers != list(range(len(numbers))) else None
        self.constants = [
            (k, from_bytes(bytearray(one.data), one.spec.dtype, _lengths(one.spec.shape)).to(device))
            for k, one in enumerate(document.inputs)
            if one.data is not None
        ]

    def native(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """As Program.native."""
        return torch.from_numpy(np.array(array, order="C")).to(self._device)

    def run(self, values: Sequence[torch.Tensor]) -> list[Any]:
        """As Program.run. An output that is not wanted is None."""
        expected, calls = self._for_batch(batch_of(self.inputs, [value.shape for value in values]))
        for value, (dtype, shape) in zip(values, expected, strict=True):
            if value.dtype != dtype or value.shape != shape:
                raise PlanInvalidError(self._misfit(values, expected))
        slots: list[Any]
        if self._slots is None:
            slots = [*values, *[None] * (self._size - len(values))]
        else:
            slots = [None] * self._size
            for k, value in zip(self._slots, values, strict=True):
                slots[k] = value
        for k, constant in self.constants:
            slots[k] = constant
        for call in calls:
            call(slots)
        return [slots[k] for k in self._outputs]

    def _for_batch(self, batch: int | None) -> tuple[list[tuple[torch.dtype, tuple[int, ...]]], list[Call]]:
        size = self.document.batch[0] if batch is None else batch
        found = self._calls.get(size)
        if found is None:
            checked = check(self.document, size, self._limits)
            every = [
                value for value, one in zip(checked.values, self.document.inputs, strict=False) if one.role != "const"
            ]
            expected = [(DTYPES[value.dtype], value.shape) for value in every]
            if len(self._calls) == MAX_BATCH_SIZES:
                self._calls.pop(next(iter(self._calls)))
            found = self._calls[size] = expected, self._compiled(size)
        return found

    def _compiled(self, batch: int) -> list[Call]:
        needed = set(self._wanted)
        nodes: list[tuple[Any, range, tuple[int, ...]]] = []
        end = self._size
        for node in reversed(self.document.nodes):
            results = range(end - len(node.results), end)
            end = results.start
            if needed.isdisjoint(results):
                continue
            used = set(references(node.arguments))
            dead = {*used, *results} - needed
            needed |= used
            nodes.append((node, results, tuple(sorted(dead - self._wanted))))
        calls: list[Call] = []
        for node, results, dead in reversed(nodes):
            parameters = OPERATIONS[node.operation].parameters
            pairs = zip(node.arguments, parameters, strict=True)
            arguments = [_native(concrete(argument, parameter, batch), parameter.kind) for argument, parameter in pairs]
            function = self._kernels[node.operation](arguments, self._device)
            calls.append(_call(function, references(node.arguments), results, dead))
        return calls

    def _misfit(self, values: Sequence[torch.Tensor], expected: Sequence[tuple[torch.dtype, tuple[int, ...]]]) -> str:
        for one, value, (dtype, shape) in zip(self.inputs, values, expected, strict=True):
            if value.dtype != dtype or value.shape != shape:
                given = f"{NAMES.get(value.dtype)}{list(value.shape)}"
                return f"{one.role} {one.name} is {given}; the plan takes {one.spec.dtype}{list(shape)}"
        return "a value does not fit the plan"


def _lengths(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(size_of(length, 1) for length in shape)


def _native(argument: Any, kind: str) -> Any:
    return DTYPES[argument] if kind == "dtype" else argument


def _call(function: Callable[..., Any], sources: Sequence[int], results: range, dead: Sequence[int]) -> Call:
    """One entry of a program. The commonest numbers of arguments are written out: a loop over them would cost as much
    as a small operation does."""
    first = results[0]
    if len(results) > 1:
        return _call_many(function, tuple(sources), results, tuple(dead))
    if len(sources) == 1:
        return _call_one(function, sources[0], first, tuple(dead))
    if len(sources) == 2:
        return _call_two(function, sources[0], sources[1], first, tuple(dead))

    def call(slots: list[Any]) -> None:
        slots[first] = function(*[slots[k] for k in sources])
        for k in dead:
            slots[k] = None

    return call


def _call_one(function: Callable[..., Any], a: int, result: int, dead: tuple[int, ...]) -> Call:
    def call(slots: list[Any]) -> None:
        slots[result] = function(slots[a])

    def call_and_free(slots: list[Any]) -> None:
        slots[result] = function(slots[a])
        slots[a] = None

    return call_and_free if dead == (a,) else call if not dead else _then_free(call, dead)


def _call_two(function: Callable[..., Any], a: int, b: int, result: int, dead: tuple[int, ...]) -> Call:
    def call(slots: list[Any]) -> None:
        slots[result] = function(slots[a], slots[b])

    def call_and_free(slots: list[Any]) -> None:
        slots[result] = function(slots[a], slots[b])
        slots[one] = None

    (one, *more) = dead or (0,)
    return call if not dead else call_and_free if not more else _then_free(call, dead)


def _call_many(function: Callable[..., Any], sources: tuple[int, ...], results: range, dead: tuple[int, ...]) -> Call:
    def call(slots: list[Any]) -> None:
        slots[results.start : results.stop] = function(*[slots[k] for k in sources])
        for k in dead:
            slots[k] = None

    return call


def _then_free(call: Call, dead: tuple[int, ...]) -> Call:
    def freed(slots: list[Any]) -> None:
        call(slots)
        for k in dead:
            slots[k] = None

    return freed
