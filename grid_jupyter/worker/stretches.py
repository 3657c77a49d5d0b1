"""Stretches of a compiled recording as graphs that torch's own interpreter runs: many kernels, one call from Python.

A graph is made of nodes, one for each call that was noted, not of source; each node must stand for the very operation
that was called, which is looked up and compared. Nothing is optimised: the kernels are the same, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from grid_jupyter.worker.calls import Call, Values, numbers_in, taken
from grid_jupyter.worker.tape import Noted, Ref

MOST_BYTES = 32 << 20
"""Of all that a run has to do with: a stretch keeps what it takes to its end, where single calls let go of it."""
SHORTEST = 3
_graph: Callable[[], Any] | None = getattr(torch._C, "Graph", None)
_function: Callable[[str, Any], Any] | None = getattr(torch._C, "_create_function_from_graph", None)
_is_optimising: Callable[[], bool] | None = getattr(torch._C, "_get_graph_executor_optimize", None)
_optimise: Callable[[bool], None] | None = getattr(torch._C, "_set_graph_executor_optimize", None)
_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2, torch.channels_last_3d: 3}
_PLAIN = (bool, int, float, str, torch.dtype, torch.layout, torch.device)


class _Unknown(Exception):
    """Something that is not put into a graph."""


class as_told:  # noqa: N801  # a block, entered at each run: a generator's would cost more
    """Graphs that run in this block, in this thread, do what their nodes say."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = _is_optimising is not None and _is_optimising()
        if self._before and _optimise is not None:
            _optimise(False)

    def __exit__(self, *raised: object) -> None:
        if self._before and _optimise is not None:
            _optimise(True)


def fits_in(noted: Noted) -> bool:
    """Whether a call is one of torch's own operations, without anything around it, that writes to nothing."""
    return noted.overload is not None and not noted.overload._schema.is_mutable


def stretch(calls: Sequence[Noted], wanted: Sequence[int], dead: tuple[int, ...]) -> Call | None:
    """Calls as one: it fills the values `wanted`, and lets go of those that are dead. None where that cannot be."""
    if _graph is None or _function is None or not wanted:
        return None
    made: set[int] = set()
    given: list[int] = []
    for noted in calls:
        given += [number for number in taken(noted) if number not in made and number not in given]
        made.update(numbers_in(noted.outs))
    builder = _Builder(_graph(), given)
    try:
        for noted in calls:
            builder.add(noted)
        run = _function("stretch", builder.done(wanted))
    except (_Unknown, RuntimeError, TypeError):  # torch says in many ways that an operation is not to be found
        return None
    return _call(run, tuple(given), tuple(wanted), tuple(number for number in dead if number not in made))


def _call(run: Callable[..., Any], given: tuple[int, ...], wanted: tuple[int, ...], dead: tuple[int, ...]) -> Call:
    (only,) = wanted if len(wanted) == 1 else (-1,)

    def call(values: Values) -> None:
        results = run(*[values[number] for number in given])
        if only >= 0:
            values[only] = results
        else:
            for number, result in zip(wanted, results, strict=True):
                values[number] = result
        for number in dead:
            values[number] = None

    return call


class _Builder:
    """Puts noted calls into a graph, one node after the other."""

    def __init__(self, graph: Any, given: list[int]) -> None:
        self._graph = graph
        self._places: dict[int, Any] = {number: graph.addInput() for number in given}

    def add(self, noted: Noted) -> None:
        """Append one call. Raises _Unknown."""
        schema = noted.overload._schema
        listed = len(schema.returns) == 1 and str(schema.returns[0].type) == "List[Tensor]"
        if not listed and any(str(one.type) != "Tensor" for one in schema.returns):
            raise _Unknown
        node = self._graph.create(schema.name, self._arguments(noted), len(schema.returns))
        outs = numbers_in(noted.outs)
        if listed:
            node.output().setType(_list_of(torch._C.TensorType.get()))
        self._graph.appendNode(node)
        if node.schema() != str(schema):
            raise _Unknown
        results = list(node.outputs())
        if listed:
            unpacked = self._graph.create("prim::ListUnpack", results, len(outs))
            self._graph.appendNode(unpacked)
            results = list(unpacked.outputs())
        for number, result in zip(outs, results, strict=False):
            if number >= 0:
                self._places[number] = result

    def done(self, wanted: Sequence[int]) -> Any:
        """The graph, which gives these."""
        for number in wanted:
            self._graph.registerOutput(self._places[number])
        if len(wanted) > 1:
            self._graph.makeMultiOutputIntoTuple()
        self._graph.lint()
        return self._graph

    def _arguments(self, noted: Noted) -> list[Any]:
        schema, named = noted.overload._schema, dict(noted.kwargs)
        found = []
        for position, argument in enumerate(schema.arguments):
            if position < len(noted.args):
                value = noted.args[position]
            elif argument.name in named:
                value = named.pop(argument.name)
            elif argument.has_default_value():
                value = argument.default_value
            else:
                raise _Unknown
            found.append(self._argument(value, str(argument.type)))
        if named or len(noted.args) > len(schema.arguments):
            raise _Unknown
        return found

    def _argument(self, value: Any, kind: str) -> Any:
        if isinstance(value, Ref):
            return self._places[value.number]
        if kind == "List[Tensor]":
            if not all(isinstance(one, Ref) for one in value):
                raise _Unknown
            return self._list([self._places[one.number] for one in value], torch._C.TensorType.get())
        if isinstance(value, (list, tuple)):
            for element, of in ((int, torch._C.IntType), (bool, torch._C.BoolType), (float, torch._C.FloatType)):
                if f"List[{element.__name__}]" in kind and all(type(one) is element for one in value):
                    return self._list([self._constant(one) for one in value], of.get())
            raise _Unknown
        if type(value) is int and "float" in kind:
            value = float(value)  # as torch takes it from Python
        return self._constant(value)

    def _constant(self, value: Any) -> Any:
        if type(value) is torch.memory_format:
            value = _FORMATS[value]
        if value is not None and type(value) not in _PLAIN:
            raise _Unknown
        return self._graph.insertConstant(value)

    def _list(self, parts: list[Any], kind: Any) -> Any:
        node = self._graph.create("prim::ListConstruct", parts, 1)
        node.output().setType(_list_of(kind))
        self._graph.appendNode(node)
        return node.output()


def _list_of(kind: Any) -> Any:
    return torch._C.ListType(kind)
