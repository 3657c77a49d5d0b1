"""From a graph that torch traced at one batch size to the nodes of a plan, one ATen operation at a time.

An operation that plans/aten.py does not have is named, and nothing is captured.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx import Node as Traced

from grid_jupyter.errors import NotCapturableError, PlanInvalidError
from grid_jupyter.ops.raw import to_bytes
from grid_jupyter.plans.aten import LOWERED, NOISE, SAME, Given, Results, as_argument, value_of
from grid_jupyter.plans.document import Ref
from grid_jupyter.plans.drafts import Draft


class Lowering:
    """Lowers one traced graph into a draft. `inputs` are the draft's numbers of the graph's placeholders."""

    def __init__(self, draft: Draft, inputs: Sequence[Ref]) -> None:
        self.draft = draft
        self._inputs = iter(inputs)
        self._known: dict[Traced, Results] = {}

    def run(self, graph: GraphModule) -> list[Ref]:
        """The graph's outputs. Raises NotCapturableError naming what has no place in a plan."""
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self._known[node] = (next(self._inputs),)
            elif node.op == "get_attr":
                self._known[node] = (self._constant(getattr(graph, str(node.target))),)
            elif node.op == "call_function":
                self._known[node] = self._call(node)
            elif node.op == "output":
                return [self._value(value) for value in node.args[0]]
        raise NotCapturableError("the trace has no outputs")

    def _value(self, value: Any) -> Ref:
        if not isinstance(value, Traced):
            raise NotCapturableError("a result is no tensor; a plan gives tensors")
        return self._one(value)

    def _constant(self, tensor: torch.Tensor) -> Ref:
        value = value_of(tensor)
        return self.draft.add_input(f"const.{self.draft.count('const')}", "const", value, bytes(to_bytes(tensor)))

    def _call(self, node: Traced) -> Results:
        if node.target is operator.getitem:
            source, position = node.args
            known = self._known[source]  # type: ignore[index]
            return (known[position] if position < len(known) else None,)  # type: ignore[index, operator]
        name = str(node.target).removeprefix("aten.").removesuffix(".default")
        given = self._given(node)
        try:
            results = self._lowered(name, given, node)
        except PlanInvalidError as error:
            raise NotCapturableError(f"{name} cannot become part of a plan: {error}") from None
        self._compare(name, results, node.meta.get("val"))
        return results

    def _lowered(self, name: str, given: Given, node: Traced) -> Results:
        if name in SAME:
            operation, names = SAME[name]
            return self.draft.add_all(operation, *(as_argument(given[one]) for one in names))
        if name in LOWERED:
            made = LOWERED[name](self.draft, given, node.meta.get("val"))
            return made if isinstance(made, tuple) else (made,)
        if name in NOISE:
            value = value_of(node.meta["val"])
            label = f"noise.{self.draft.count('noise')}"
            return (self.draft.add_input(label, "noise", value, noise=NOISE[name]),)
        if name.startswith(("_native_batch_norm_legit", "native_batch_norm")):
            return self._batch_norm(given, node)
        if name == "copy_" and _is_alone(node.args[0]):
            return self._copy(given, node)
        raise NotCapturableError(
            f"the operation {node.target} has no place in a plan (docs/plans.md#what-can-be-captured lists what has)"
        )

    def _batch_norm(self, given: Given, node: Traced) -> Results:
        mean, variance = given.get("running_mean"), given.get("running_var")
        training = given.get("training", given.get("train", False))
        momentum = float(given["momentum"])
        weights = given["input"], given["weight"], given["bias"], mean, variance
        results = self.draft.add_all("batch_norm", *weights, training, momentum, float(given["eps"]))
        for position, name in enumerate(("running_mean", "running_var")):
            source = dict(zip(_names(node), node.args, strict=False)).get(name)
            if training and isinstance(source, Traced):
                # The operation writes to its argument: whatever is computed later means what was written.
                self._known[source] = (results[1 + position],)
        return results[:1]

    def _copy(self, given: Given, node: Traced) -> Results:
        """A result that is written over: whatever is computed later means what was written."""
        before = self.draft.values[given["self"]]
        written = self.draft.add("expand", self.draft.add("cast", given["src"], before.dtype), before.shape)
        self._known[node.args[0]] = (written,)  # type: ignore[index]
        return (written,)

    def _given(self, node: Traced) -> Given:
        defaults = {one.name: one.default_value for one in node.target._schema.arguments}  # type: ignore[union-attr]
        passed = {**dict(zip(_names(node), node.args, strict=False)), **node.kwargs}
        return {name: self._plain(value) for name, value in {**defaults, **passed}.items()}

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Traced):
            return self._one(value)
        if isinstance(value, (list, tuple)):
            return tuple(map(self._plain, value))
        return value

    def _one(self, node: Traced) -> Ref:
        found = self._known[node]
        if len(found) != 1 or found[0] is None:
            raise NotCapturableError(f"a result of {node.target} is used that plans do not have")
        return found[0]

    def _compare(self, name: str, results: Results, traced: Any) -> None:
        """What the rules of plans say must be what torch gave; a difference is a capture that would be wrong."""
        values = traced if isinstance(traced, (list, tuple)) else [traced]
        for ref, tensor in zip(results, values, strict=False):
            if ref is not None and isinstance(tensor, torch.Tensor) and self.draft.values[ref] != value_of(tensor):
                raise NotCapturableError(f"{name} gives {value_of(tensor)} in torch, {self.draft.values[ref]} in plans")


def _is_alone(node: Any) -> bool:
    """Whether no other value of the trace is the same memory: neither input, nor view, nor seen through a view."""
    return node.op == "call_function" and not any(map(_is_view, (node, *node.users)))


def _is_view(node: Traced) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(one.alias_info and not one.alias_info.is_write for one in schema.returns)


def _names(node: Traced) -> list[str]:
    return [one.name for one in node.target._schema.arguments]  # type: ignore[union-attr]
