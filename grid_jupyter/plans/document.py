"""A plan as a document: inputs, a flat list of operations, outputs; its bytes and its hash. Knows no engine.

    {"batch": {"max": 4096, "min": 1}, "format": "grid.plan", "version": 1, "kind": "step",
     "inputs": [{"name": "fc.weight", "role": "param", "dtype": "float32", "shape": [10, 64]},
                {"name": "x", "role": "x", "dtype": "float32", "shape": ["B", 64]}, …],
     "nodes": [["permute", ["%0", [1, 0]], [["float32", [64, 10]]]],
               ["mm", ["%1", "%5"], [["float32", ["B", 10]]]], …],
     "outputs": [{"name": "loss", "role": "loss", "value": "%9"}, …]}

Values are numbered: the inputs in their order, then the results of the nodes in theirs. `%5` is the sixth value.
docs/plans.md describes the format completely; `plans/reader.py` reads it from strangers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

import msgspec

from grid_jupyter.plans.expressions import Expression

FORMAT = "grid.plan"
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
VERSION = 1
KINDS = ("average", "forward", "function", "step")
INPUT_ROLES = ("arg", "buffer", "const", "hyper", "noise", "param", "state", "x", "y")
OUTPUT_ROLES = ("buffer", "loss", "metric", "output", "param", "result", "state")
UPDATED = ("buffer", "param", "state")
"""Roles of which an output is the new value of the input with its name."""
DISTRIBUTIONS = ("normal", "uniform")
"""Standard normal; uniform on [0, 1)."""
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


class Ref(int):
    """The number of a value, as an argument of a node."""

    def __repr__(self) -> str:
        return f"%{int(self)}"


Argument = Union[Ref, int, float, bool, str, None, tuple["Argument", ...]]
"""Of a node, by the kind that its operation declares: a value, a number or expression, a dtype, a list of these."""


@dataclass(frozen=True)
class Nest:
    """A list, tuple or dict of a function's arguments or results. `keys`: of a dict, sorted; else none."""

    kind: str
    parts: tuple[Structure, ...]
    keys: tuple[str, ...] = ()


Structure = Union[str, Nest]
""""*" is one tensor."""


@dataclass(frozen=True)
class Spec:
    """What a value is: its dtype and its shape, of which lengths may depend on B."""

    dtype: str
    shape: tuple[Expression, ...]


@dataclass(frozen=True)
class Input:
    """A value that the engine is given. `data` (of constants): little-endian, C order; `distribution`: of noise."""

    name: str
    role: str
    spec: Spec
    data: bytes | None = None
    distribution: str | None = None


@dataclass(frozen=True)
class Node:
    """One operation: all its arguments in the order of its signature (plans/operations.py), and its results."""

    operation: str
    arguments: tuple[Argument, ...]
    results: tuple[Spec, ...]


@dataclass(frozen=True)
class Output:
    """A value that the engine gives back."""

    name: str
    role: str
    value: Ref


@dataclass(frozen=True)
class Document:
    """A whole plan. `takes` and `gives` are the nesting of a function's arguments and results.

    `batch` is the smallest and the largest batch size. Equal documents have equal bytes and so equal hashes.
    """

    kind: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    batch: tuple[int, int] = (1, 4096)
    takes: Structure | None = None
    gives: Structure | None = None

    @cached_property
    def specs(self) -> tuple[Spec, ...]:
        """What each value is, by its number."""
        results = (spec for node in self.nodes for spec in node.results)
        return (*(one.spec for one in self.inputs), *results)

    def inputs_of(self, *roles: str) -> tuple[Input, ...]:
        """The inputs with these roles, in the plan's order."""
        return tuple(one for one in self.inputs if one.role in roles)

    def outputs_of(self, *roles: str) -> tuple[Output, ...]:
        """The outputs with these roles, in the plan's order."""
        return tuple(one for one in self.outputs if one.role in roles)

    def sources_of(self, value: Ref) -> frozenset[int]:
        """The inputs, by number, that a value is computed from."""
        needed = {int(value)}
        end = len(self.specs)
        for node in reversed(self.nodes):
            results = range(end - len(node.results), end)
            end = results.start
            if not needed.isdisjoint(results):
                needed.update(references(node.arguments))
        return frozenset(number for number in needed if number < len(self.inputs))

    def to_bytes(self) -> bytes:
        """The one form in which this plan is sent, stored and hashed: JSON in ASCII, keys sorted, no spaces."""
        return canonical(_to_json(self))

    @cached_property
    def sha256(self) -> str:
        """Hex digest of `to_bytes()`: what an owner approves."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def canonical(tree: dict[str, Any]) -> bytes:
    """JSON in the canonical form. Floats have the fewest digits that read back as the same number, as Python's repr."""
    fields = (f"{_JSON.encode(key)}:{_spelled(value)}" for key, value in sorted(tree.items()))
    return f"{{{','.join(fields)}}}".encode()


def parsed(text: bytes) -> Any:
    """What `json.loads` makes of it, an entry of a list at a time as well. Raises ValueError, RecursionError."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return {key: _parsed(bytes(value)) for key, value in fields.items()}
    except msgspec.MsgspecError:  # it is no object, or nothing at all
        return json.loads(text)


def _parsed(text: bytes) -> Any:
    if not text.startswith(b"["):
        return json.loads(text)
    return [json.loads(bytes(one)) for one in msgspec.json.decode(text, type=list[msgspec.Raw])]


def _spelled(value: Any) -> str:
    """An entry of a list at a time: one call for thousands of nodes would keep the interpreter from all others."""
    return f"[{','.join(map(_JSON.encode, value))}]" if isinstance(value, list) else _JSON.encode(value)


def last_uses(document: Document) -> tuple[tuple[int, ...], ...]:
    """For each node the values that nothing after it needs, so that an engine can free them; outputs never are."""
    kept = {int(output.value) for output in document.outputs}
    dead: list[tuple[int, ...]] = []
    end = len(document.specs)
    for node in reversed(document.nodes):
        begin = end - len(node.results)
        used = {*references(node.arguments), *range(begin, end)}
        dead.append(tuple(sorted(used - kept)))
        kept |= used
        end = begin
    return tuple(reversed(dead))


def references(arguments: tuple[Argument, ...]) -> list[int]:
    """The numbers of all values among arguments."""
    found: list[int] = []
    for argument in arguments:
        if isinstance(argument, Ref):
            found.append(int(argument))
        elif isinstance(argument, tuple):
            found.extend(references(argument))
    return found


# ------------------------------------------------------------------ writing


def _to_json(document: Document) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "kind": document.kind,
        "batch": {"min": document.batch[0], "max": document.batch[1]},
        "inputs": [_input_to_json(one) for one in document.inputs],
        "nodes": [
            [node.operation, _argument_to_json(node.arguments), [_spec_to_json(spec) for spec in node.results]]
            for node in document.nodes
        ],
        "outputs": [{"name": one.name, "role": one.role, "value": repr(one.value)} for one in document.outputs],
    }
    if document.takes is not None and document.gives is not None:
        tree["takes"], tree["gives"] = structure_to_json(document.takes), structure_to_json(document.gives)
    return tree


def _input_to_json(one: Input) -> dict[str, Any]:
    dtype, shape = _spec_to_json(one.spec)
    tree: dict[str, Any] = {"name": one.name, "role": one.role, "dtype": dtype, "shape": shape}
    if one.data is not None:
        tree["data"] = base64.b64encode(one.data).decode()
    if one.distribution is not None:
        tree["distribution"] = one.distribution
    return tree


def _spec_to_json(spec: Spec) -> list[Any]:
    return [spec.dtype, [_argument_to_json(length) for length in spec.shape]]


def _argument_to_json(argument: Any) -> Any:
    if isinstance(argument, Ref):
        return repr(argument)
    if isinstance(argument, tuple):
        return [_argument_to_json(part) for part in argument]
    if isinstance(argument, float) and math.isinf(argument):
        return "inf" if argument > 0 else "-inf"
    return argument


def structure_to_json(structure: Structure) -> Any:
    """A structure as JSON: "*", {"list": […]}, {"tuple": […]}, {"dict": {…}}."""
    if isinstance(structure, str):
        return structure
    parts = [structure_to_json(part) for part in structure.parts]
    return {structure.kind: dict(zip(structure.keys, parts, strict=True)) if structure.kind == "dict" else parts}
