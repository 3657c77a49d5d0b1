"""From a function of tensors to a document: traced at three batch sizes, compared, checked, tried.

What three traces agree on stays as it is; a number in which they differ must be an expression in the batch size, or
the capture fails. So a model that does different things for different batches, or has one batch size built in,
never becomes a plan that is wrong. torch is needed here, and in the version that capture was tested with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from grid_jupyter.errors import NotCapturableError, PlanInvalidError
from grid_jupyter.plans import composites, decompositions
from grid_jupyter.plans.aten import value_of
from grid_jupyter.plans.check import Limits, check
from grid_jupyter.plans.document import Argument, Document, Input, Node, Output, Spec, Structure
from grid_jupyter.plans.drafts import Draft
from grid_jupyter.plans.expressions import Expression, fit
from grid_jupyter.plans.lowering import Lowering
from grid_jupyter.plans.operations import OPERATIONS
from grid_jupyter.plans.reader import verify

BATCHES = (5, 7, 11)
"""Batch sizes of the traces."""
TRIED = (1, 2, 3, 64)
"""Batch sizes at which a plan is checked before it is given to anybody."""


@dataclass(frozen=True)
class Example:
    """One argument of a traced function: its name and role in the plan, a tensor, and whether its first length is B."""

    name: str
    role: str
    tensor: Tensor
    batched: bool = False

    def at(self, batch: int) -> Tensor:
        """The tensor for a batch of this size, made of its own rows."""
        if not self.batched:
            return self.tensor.detach().clone().requires_grad_(self.tensor.requires_grad)
        rows = torch.arange(batch) % self.tensor.shape[0]
        return self.tensor.detach()[rows].contiguous().requires_grad_(self.tensor.requires_grad)


Function = Callable[[list[Tensor]], Sequence[tuple[str, str, Tensor]]]
"""Takes the examples' tensors; gives outputs as (name, role, tensor)."""


def capture(
    function: Function, examples: Sequence[Example], kind: str, *, batch: tuple[int, int] = (1, 4096),
    whole: bool = False, functional: bool = True, nesting: Callable[[], tuple[Structure, Structure]] | None = None,
) -> Document:  # fmt: skip
    """The document of a function. `whole` keeps layers that have one operation in plans, which have no gradient there;
    `nesting` tells, after the traces, what the function takes and gives.

    Raises NotCapturableError naming the operation, or the number that is no expression in the batch size.
    """
    for example in examples:
        value_of(example.tensor)
        if example.batched and (example.tensor.dim() == 0 or example.tensor.shape[0] == 0):
            raise NotCapturableError(f"{example.name} has no rows; give an example with at least one")
    batched = any(example.batched for example in examples)
    frame = Document(kind, (), (), (), batch)
    traced = [
        _traced(function, examples, size, frame, whole, functional) for size in (BATCHES if batched else BATCHES[:1])
    ]
    document = _unified(traced, BATCHES) if batched else traced[0]
    if nesting is not None:
        takes, gives = nesting()
        document = replace(document, takes=takes, gives=gives)
    document = _possible(document)
    verify(document)
    return document


def _traced(
    function: Function, examples: Sequence[Example], batch: int, frame: Document, whole: bool, functional: bool
) -> Document:
    names: list[tuple[str, str]] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        outputs = function(list(tensors))
        names[:] = [(name, role) for name, role, _ in outputs]
        return [tensor for _, _, tensor in outputs]

    graph = _trace(functionalize(flat, remove="mutations") if functional else flat,
                   [example.at(batch) for example in examples], whole)  # fmt: skip
    draft = Draft()
    inputs = [draft.add_input(one.name, one.role, value_of(one.at(batch))) for one in examples]
    results = Lowering(draft, inputs).run(graph)
    outputs = [Output(name, role, ref) for (name, role), ref in zip(names, results, strict=True)]
    return draft.finish(frame, outputs)


def _trace(function: Callable[..., Any], tensors: list[Tensor], whole: bool) -> GraphModule:
    table = decompositions.table(whole)
    try:
        with warnings.catch_warnings(), enable_python_dispatcher(), composites.in_place(whole):
            warnings.simplefilter("ignore")
            graph = make_fx(function, decomposition_table=table, tracing_mode="real")(*tensors)
    except NotImplementedError as error:
        raise NotCapturableError(f"this cannot become part of a plan: {error}") from error
    except RuntimeError as error:
        if "autograd.Function" in str(error):
            raise NotCapturableError(
                "the function calls a torch.autograd.Function without setup_context, whose gradient no plan can have"
            ) from error
        if "_local_scalar_dense" not in str(error):
            raise
        raise NotCapturableError(
            "the function reads a value (by .item(), int(), a comparison in an if, or packed sequences); what a plan "
            "does cannot depend on values"
        ) from error
    graph.graph.eliminate_dead_code()
    return graph


# ------------------------------------------------------------------ one document from three


def _unified(documents: Sequence[Document], batches: Sequence[int]) -> Document:
    first = documents[0]
    shapes = {tuple(node.operation for node in document.nodes) for document in documents}
    if len(shapes) != 1 or len({len(document.inputs) for document in documents}) != 1:
        raise NotCapturableError("the function does different things for batches of different sizes")
    inputs = tuple(_one_input(ones, batches) for ones in zip(*(document.inputs for document in documents), strict=True))
    nodes = tuple(_one_node(ones, batches) for ones in zip(*(document.nodes for document in documents), strict=True))
    if any(document.outputs != first.outputs for document in documents):
        raise NotCapturableError("the function gives different things for batches of different sizes")
    return replace(first, inputs=inputs, nodes=nodes)


def _one_input(ones: Sequence[Input], batches: Sequence[int]) -> Input:
    first = ones[0]
    spec = _one_spec([one.spec for one in ones], batches)
    if any(replace(one, spec=first.spec) != first for one in ones):
        raise NotCapturableError(f"the {first.role} {first.name} is another one for batches of different sizes")
    return replace(first, spec=spec)


def _one_spec(specs: Sequence[Spec], batches: Sequence[int]) -> Spec:
    if len({(spec.dtype, len(spec.shape)) for spec in specs}) != 1:
        raise NotCapturableError("a value has another dtype or rank for batches of different sizes")
    shape = tuple(_one_number(values, batches) for values in zip(*(spec.shape for spec in specs), strict=True))
    if _DIFFERENT in shape:
        raise NotCapturableError("the length of a value depends on the batch size in a way that plans cannot say")
    return Spec(specs[0].dtype, shape)


def _one_node(nodes: Sequence[Node], batches: Sequence[int]) -> Node:
    first = nodes[0]
    arguments: list[Argument] = []
    for k, parameter in enumerate(OPERATIONS[first.operation].parameters):
        values = [node.arguments[k] for node in nodes]
        found = _one_argument(values, batches, parameter.kind in ("number", "operand", "size", "sizes"))
        if found is _DIFFERENT:
            text = ", ".join(f"{value} for {batch}" for value, batch in zip(values, batches, strict=True))
            what = f"{parameter.name} of {first.operation}"
            raise NotCapturableError(f"{what} depends on the batch size in a way that plans cannot say: {text}")
        arguments.append(found)
    results = zip(*(node.results for node in nodes), strict=True)
    return Node(first.operation, tuple(arguments), tuple(_one_spec(specs, batches) for specs in results))


_DIFFERENT: Any = object()


def _one_argument(values: Sequence[Argument], batches: Sequence[int], expressible: bool) -> Any:
    first = values[0]
    if isinstance(first, tuple) and all(isinstance(value, tuple) and len(value) == len(first) for value in values):
        parts = [_one_argument(list(ones), batches, expressible) for ones in zip(*values, strict=True)]
        return _DIFFERENT if any(part is _DIFFERENT for part in parts) else tuple(parts)
    if all(type(value) is type(first) and value == first for value in values):
        return first
    if expressible and all(type(value) in (int, float) for value in values):
        return _one_number(values, batches)
    return _DIFFERENT


def _one_number(values: Sequence[Any], batches: Sequence[int]) -> Expression:
    found = fit(values, batches)
    return _DIFFERENT if found is None else found


# ------------------------------------------------------------------ tried before it is given away


def _possible(document: Document) -> Document:
    """The document with the smallest batch size that works, checked at several.

    Batch norm divides by the number of rows less one, so a plan that trains with it starts at 2.
    """
    least, most = document.batch
    error: PlanInvalidError | None = None
    for start in range(least, min(least + 2, most) + 1):
        tried = replace(document, batch=(start, most))
        try:
            for size in sorted({start, *(size for size in TRIED if start <= size <= most)}):
                check(tried, size, Limits(memory_bytes=1 << 50, work=1 << 60))
            return tried
        except PlanInvalidError as found:
            error = error or found
    raise NotCapturableError(f"the function does not work for every batch size: {error}")
