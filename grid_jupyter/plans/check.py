"""What a run of a plan would take, found without data and without an engine; refuses what does not fit.

Goes through the nodes with the sizes of one batch size: shapes and dtypes must be what the plan says they are, and
memory and work must stay within limits that the caller sets. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans.document import UPDATED, Argument, Document, Ref, Spec, last_uses
from grid_jupyter.plans.expressions import evaluate, size_of
from grid_jupyter.plans.operations import OPERATIONS, Parameter
from grid_jupyter.plans.shapes import FLOATS, Value, need


@dataclass(frozen=True)
class Limits:
    """What one run of a plan may take. `work` counts multiplications and additions."""

    memory_bytes: int = 2 << 30
    work: int = 10**12


@dataclass(frozen=True)
class Checked:
    """What one run takes. `memory_bytes`: all values that live at one time, at most; `values`: each, by its number."""

    batch: int
    memory_bytes: int
    work: int
    values: tuple[Value, ...]


def check(document: Document, batch: int | None = None, limits: Limits | None = None) -> Checked:
    """Checks a plan for a batch of this size (its smallest one, if none is given) and says what a run takes.

    Raises PlanInvalidError where the batch size is not the plan's, a shape or dtype is not as declared, or a limit is
    passed.
    """
    least, most = document.batch
    size = least if batch is None else batch
    need(least <= size <= most, f"the plan is for batches of {least} to {most}, not of {size}")
    bounds = limits or Limits()
    values = [_value(one.spec, size) for one in document.inputs]
    memory = live = _bounded_memory(sum(value.nbytes for value in values), bounds)
    work = 0
    for number, (node, dead) in enumerate(zip(document.nodes, last_uses(document), strict=True)):
        try:
            arguments, results = infer(node.operation, node.arguments, values, size)
            declared = tuple(_value(spec, size) for spec in node.results)
            need(results == declared, f"the plan says that this gives {_text(declared)}; it gives {_text(results)}")
        except PlanInvalidError as error:
            raise PlanInvalidError(f"node {number} ({node.operation}), batch {size}: {error}") from None
        values.extend(results)
        live += sum(result.nbytes for result in results)
        memory = max(memory, _bounded_memory(live, bounds))
        work += OPERATIONS[node.operation].work(arguments, results)
        need(work <= bounds.work, f"a run of the plan takes more work than the limit of {bounds.work:.1e} operations")
        live -= sum(values[k].nbytes for k in dead)
    _check_outputs(document, values)
    return Checked(size, memory, work, tuple(values))


def _bounded_memory(nbytes: int, limits: Limits) -> int:
    need(nbytes <= limits.memory_bytes, f"a run of the plan takes more memory than the limit of {limits.memory_bytes}")
    return nbytes


def _value(spec: Spec, batch: int) -> Value:
    return Value(spec.dtype, tuple(size_of(length, batch) for length in spec.shape))


def infer(
    name: str, arguments: Sequence[Argument], values: Sequence[Value], batch: int
) -> tuple[tuple[Any, ...], tuple[Value, ...]]:
    """Arguments of an operation with their numbers computed, and its results. Raises PlanInvalidError."""
    operation = OPERATIONS[name]
    pairs = zip(arguments, operation.parameters, strict=True)
    numbers = [concrete(argument, parameter, batch) for argument, parameter in pairs]
    known = tuple(_known(argument, values) for argument in numbers)
    results = operation.rule(*known)
    need(all(size >= 0 for result in results for size in result.shape), "a result has a negative length")
    return known, results


def _known(argument: Any, values: Sequence[Value]) -> Any:
    if isinstance(argument, Ref):
        return values[argument]
    if isinstance(argument, tuple) and argument and isinstance(argument[0], Ref):
        return [values[one] for one in argument]
    return argument


def _text(values: Sequence[Value]) -> str:
    return ", ".join(f"{value.dtype}{list(value.shape)}" for value in values[:4])


def concrete(argument: Argument, parameter: Parameter, batch: int) -> Any:
    """An argument for one batch size: numbers computed, lists of them too, values as they are."""
    kind = parameter.kind
    if argument is None or kind in ("integer", "integers", "flag", "flags", "dtype", "tensor", "tensors"):
        return argument
    if isinstance(argument, Ref):
        return argument
    if kind == "sizes":
        return [_size(one, batch) for one in argument]  # type: ignore[union-attr]
    if kind == "size":
        return _size(argument, batch)
    return evaluate(argument, batch)  # type: ignore[arg-type]


def _size(argument: Argument, batch: int) -> int:
    value = evaluate(argument, batch)  # type: ignore[arg-type]
    need(isinstance(value, int), "a size is no integer")
    return int(value)


def _check_outputs(document: Document, values: Sequence[Value]) -> None:
    inputs = {(one.role, one.name): value for one, value in zip(document.inputs, values, strict=False)}
    for output in document.outputs:
        value = values[output.value]
        if output.role in UPDATED:
            need(value == inputs[output.role, output.name], f"{output.name} changes its shape or dtype")
        elif output.role in ("loss", "metric"):
            need(value.shape == () and value.dtype in FLOATS, f"the {output.role} {output.name} is no floating scalar")
