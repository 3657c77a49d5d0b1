"""Reads a plan from bytes that a stranger sent: each limit is checked before what it limits is built.

What comes out has known operations, arguments of the right kinds and numbers, references that point backwards, one
spelling. Whether shapes fit, and what a run would cost, `plans/check.py` tells for a batch size.
"""

from __future__ import annotations

import base64
import math
import re
from typing import Any

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans.document import (
    DISTRIBUTIONS,
    DTYPES,
    FORMAT,
    INPUT_ROLES,
    KINDS,
    OUTPUT_ROLES,
    UPDATED,
    VERSION,
    Argument,
    Document,
    Input,
    Nest,
    Node,
    Output,
    Ref,
    Spec,
    Structure,
    parsed,
)
from grid_jupyter.plans.expressions import BATCH, MAX_NUMBER, evaluate, has_batch, read_expression
from grid_jupyter.plans.operations import OPERATIONS, Parameter
from grid_jupyter.plans.shapes import MAX_RANK, Value, need

MAX_BYTES = 8 << 20
MAX_BRACKETS = 1_000_000
"""JSON lists and objects of one plan: what keeps its memory below some 200 MB while it is read."""
MAX_NODES = 50_000
MAX_INPUTS = 20_000
MAX_LIST = 10_000
"""Entries of one list among a node's arguments, and results of one node."""
MAX_CONSTANTS = 1 << 20
"""Bytes of all constants together; larger ones are parameters, which travel with the model."""
MAX_BATCH = 1 << 20
MAX_NESTING = 8
"""Lists in lists of a function's arguments."""
NAME = re.compile(r"[A-Za-z0-9_.:/+\[\]-]{1,200}")
"""Names of inputs and outputs: nothing that could be taken for something else where a person reads them."""
REFERENCE = re.compile(r"%(0|[1-9][0-9]{0,8})")

_ROLES_BY_KIND = {
    "forward": ({"param", "buffer", "x", "y", "noise", "const"}, {"output", "loss", "metric", "buffer"}),
    "step": ({"param", "buffer", "state", "x", "y", "hyper", "noise", "const"}, {*UPDATED, "loss", "metric"}),
    "function": ({"arg", "state", "noise", "const"}, {"result", "state"}),
    "average": ({"arg", "state", "noise", "const"}, {"result", "state"}),
}


def read_plan(raw: bytes) -> Document:
    """The plan that these bytes are, in the canonical form. Raises PlanInvalidError for anything else."""
    need(len(raw) <= MAX_BYTES, f"a plan of {len(raw)} bytes is over the limit of {MAX_BYTES}")
    brackets = raw.count(b"[") + raw.count(b"{")
    need(brackets <= MAX_BRACKETS, f"the plan holds more than the limit of {MAX_BRACKETS} lists and objects")
    try:
        raw.decode("ascii")
        tree = parsed(raw)
    except (ValueError, RecursionError):
        raise PlanInvalidError("this is no plan: it is not well-formed JSON in ASCII, or nests too deeply") from None
    document = _document(tree)
    need(document.to_bytes() == raw, "the plan is not in the canonical form, so its hash would not be its own")
    return document


def verify(document: Document) -> None:
    """What `read_plan` checks of a document that was made here; raises PlanInvalidError."""
    read_plan(document.to_bytes())


def _document(tree: Any) -> Document:
    need(isinstance(tree, dict) and tree.get("format") == FORMAT, "this is no plan: its format has another name")
    need(tree.get("version") == VERSION and type(tree["version"]) is int,
         f"this is a plan of another version than {VERSION}; it must be captured again")  # fmt: skip
    fields = {"format", "version", "kind", "batch", "inputs", "nodes", "outputs"}
    need(fields <= tree.keys() <= fields | {"takes", "gives"}, f"a plan has the fields {', '.join(sorted(fields))}")
    kind = tree["kind"]
    need(isinstance(kind, str) and kind in KINDS, f"the plan's kind is none of {', '.join(KINDS)}")
    batch = _batch(tree["batch"])
    inputs = tuple(_input(raw) for raw in _list(tree["inputs"], MAX_INPUTS, "inputs"))
    need(sum(len(one.data or b"") for one in inputs) <= MAX_CONSTANTS, "the plan's constants are over their limit")
    specs = [one.spec for one in inputs]
    nodes: list[Node] = []
    for raw in _list(tree["nodes"], MAX_NODES, "nodes"):
        node = _node(raw, len(specs), len(nodes))
        nodes.append(node)
        specs.extend(node.results)
    outputs = tuple(_output(raw, len(specs)) for raw in _list(tree["outputs"], MAX_INPUTS, "outputs"))
    takes, gives = (_structure(tree[key]) if key in tree else None for key in ("takes", "gives"))
    document = Document(kind, inputs, tuple(nodes), outputs, batch, takes, gives)
    _check_roles(document)
    _check_batch(document)
    _check_pooling(document)
    return document


def _batch(raw: Any) -> tuple[int, int]:
    need(isinstance(raw, dict) and raw.keys() == {"min", "max"}, "batch has the fields min and max")
    low, high = raw["min"], raw["max"]
    fits = type(low) is int and type(high) is int and 1 <= low <= high <= MAX_BATCH
    need(fits, f"batch sizes are integers from 1 to {MAX_BATCH}")
    return low, high


def _list(raw: Any, most: int, what: str) -> list[Any]:
    need(isinstance(raw, list), f"{what} of the plan are no list")
    need(len(raw) <= most, f"{len(raw)} {what} are over the limit of {most}")
    return list(raw)


# ------------------------------------------------------------------ inputs and outputs


def _input(raw: Any) -> Input:
    need(isinstance(raw, dict), "an input of the plan is no object")
    role = raw.get("role")
    need(isinstance(role, str) and role in INPUT_ROLES, f"an input's role is none of {', '.join(INPUT_ROLES)}")
    more = {"const": {"data"}, "noise": {"distribution"}}.get(str(role), set())
    need(raw.keys() == {"name", "role", "dtype", "shape"} | more, f"an input of role {role} has other fields")
    name, spec = _name(raw["name"]), _spec([raw["dtype"], raw["shape"]])
    if role == "const":
        return Input(name, role, spec, data=_constant(raw["data"], spec))
    if role == "noise":
        distribution = raw["distribution"]
        known = isinstance(distribution, str) and distribution in DISTRIBUTIONS
        need(known and spec.dtype in ("float32", "float64"), "noise is normal or uniform, of float32 or float64")
        return Input(name, role, spec, distribution=distribution)
    return Input(name, str(role), spec)


def _constant(raw: Any, spec: Spec) -> bytes:
    need(isinstance(raw, str) and len(raw) <= 2 * MAX_CONSTANTS, "a constant's data is no text, or over the limit")
    need(not any(map(has_batch, spec.shape)), "a constant's shape depends on the batch size")
    try:
        data = base64.b64decode(raw, validate=True)
    except ValueError:  # binascii.Error, and text that is not ASCII
        raise PlanInvalidError("a constant's data is not base64") from None
    shape = tuple(int(evaluate(length, 1)) for length in spec.shape)
    need(Value(spec.dtype, shape).nbytes == len(data), "a constant's data has another length than its shape")
    if spec.dtype == "bool":
        need(not data.strip(b"\x00\x01"), "a constant of bool holds something else than 0 and 1")
    return data


def _output(raw: Any, count: int) -> Output:
    need(isinstance(raw, dict) and raw.keys() == {"name", "role", "value"}, "an output has name, role and value")
    role = raw["role"]
    need(isinstance(role, str) and role in OUTPUT_ROLES, f"an output's role is none of {', '.join(OUTPUT_ROLES)}")
    return Output(_name(raw["name"]), role, _reference(raw["value"], count))


def _name(raw: Any) -> str:
    need(isinstance(raw, str) and NAME.fullmatch(raw) is not None,
         "a name in the plan is not 1 to 200 ASCII letters, digits and _ . : / + - [ ]")  # fmt: skip
    return str(raw)


def _spec(raw: Any) -> Spec:
    need(isinstance(raw, list) and len(raw) == 2, "a value's dtype and shape are no pair")
    dtype, shape = raw
    need(isinstance(dtype, str) and dtype in DTYPES, f"a dtype is none of {', '.join(DTYPES)}")
    lengths = tuple(read_expression(length) for length in _list(shape, MAX_RANK, "dimensions"))
    need(all(not isinstance(n, float) and not (isinstance(n, int) and n < 0) for n in lengths), "a length is no size")
    return Spec(dtype, lengths)


# ------------------------------------------------------------------ nodes


def _node(raw: Any, count: int, number: int) -> Node:
    need(isinstance(raw, list) and len(raw) == 3 and isinstance(raw[0], str), f"node {number} is no operation")
    name, arguments, results = raw
    operation = OPERATIONS.get(name)
    if operation is None:
        shown = name if NAME.fullmatch(name) and len(name) <= 60 else "a name that no operation has"
        raise PlanInvalidError(f"node {number} asks for an operation that plans may not hold: {shown}")
    parameters = operation.parameters
    fits = isinstance(arguments, list) and len(arguments) == len(parameters)
    need(fits, f"node {number}: {name} takes {len(parameters)} arguments")
    try:
        read = tuple(_argument(one, parameter, count) for one, parameter in zip(arguments, parameters, strict=True))
        specs = tuple(_spec(one) for one in _list(results, MAX_LIST, "results"))
    except PlanInvalidError as error:
        raise PlanInvalidError(f"node {number} ({name}): {error}") from None
    need(len(specs) > 0, f"node {number} ({name}) has no result")
    return Node(name, read, specs)


def _argument(raw: Any, parameter: Parameter, count: int) -> Argument:
    if raw is None and parameter.optional:
        return None
    kind = parameter.kind
    if kind == "tensor":
        return _reference(raw, count)
    if kind == "operand":
        return _reference(raw, count) if isinstance(raw, str) and raw.startswith("%") else _number(raw)
    if kind == "number":
        return _number(raw)
    if kind == "integer":
        need(type(raw) is int and abs(raw) <= MAX_NUMBER, f"{parameter.name} is no integer")
        return int(raw)
    if kind == "size":
        return _size(raw)
    if kind == "flag":
        need(type(raw) is bool, f"{parameter.name} is neither true nor false")
        return bool(raw)
    if kind == "dtype":
        need(isinstance(raw, str) and raw in DTYPES, f"{parameter.name} is none of {', '.join(DTYPES)}")
        return str(raw)
    of = Parameter(parameter.name, kind.removesuffix("s"), optional=False)
    return tuple(_argument(one, of, count) for one in _list(raw, MAX_LIST, parameter.name))


def _reference(raw: Any, count: int) -> Ref:
    need(
        isinstance(raw, str) and raw[:1] == "%" and raw[1:].isdecimal() and len(raw) <= 10, "a reference is no %number"
    )
    number = int(raw[1:])
    need(number < count, f"%{number} is referred to before it is computed")
    return Ref(number)


def _number(raw: Any) -> Argument:
    return math.copysign(math.inf, -1 if raw == "-inf" else 1) if raw in ("inf", "-inf") else read_expression(raw)


def _size(raw: Any) -> Argument:
    expression = read_expression(raw)
    need(not isinstance(expression, float), "a size is no integer")
    return expression


# ------------------------------------------------------------------ the whole


def _check_roles(document: Document) -> None:
    takes, gives = _ROLES_BY_KIND[document.kind]
    for what, ends, allowed in (("input", document.inputs, takes), ("output", document.outputs, gives)):
        keys = [(one.role, one.name) for one in ends]
        need(len(set(keys)) == len(keys), f"two {what}s of the plan have the same role and name")
        for role in {role for role, _ in keys} - allowed:
            raise PlanInvalidError(f"a plan of kind {document.kind} has no {what} of role {role}")
    need(len(document.outputs) > 0, "the plan has no outputs")
    inputs = {(one.role, one.name): one.spec for one in document.inputs}
    for output in document.outputs_of(*UPDATED):
        need(inputs.get((output.role, output.name)) is not None, "an output renews something that is no input")
    losses = document.outputs_of("loss")
    need(
        len(losses) <= 1 and (document.kind != "step" or len(losses) == 1), "a step has one loss, a forward one or none"
    )
    for structure, ends in (
        (document.takes, document.inputs_of("arg")),
        (document.gives, document.outputs_of("result")),
    ):
        functional = document.kind in ("function", "average")
        need((structure is not None) == functional, "takes and gives are for plans of kind function and average")
        need(structure is None or _leaves(structure) == len(ends), "takes or gives has another number of tensors")


def _check_batch(document: Document) -> None:
    """Where anything depends on B, some input must tell what B is."""
    told = any(one.spec.shape[:1] == (BATCH,) for one in document.inputs_of("x", "y", "arg"))
    if not told:
        depends = any(has_batch(length) for spec in document.specs for length in spec.shape)
        depends = depends or any(_mentions_batch(argument) for node in document.nodes for argument in node.arguments)
        need(not depends, "the plan depends on a batch size that none of its inputs has as first length")


def _mentions_batch(argument: Argument) -> bool:
    return argument == BATCH or (isinstance(argument, tuple) and any(map(_mentions_batch, argument)))


def _check_pooling(document: Document) -> None:
    """Positions that max_pool2d_backward writes to must come from the max_pool2d that it belongs to: no kernel of any
    engine checks them, and forged ones would write outside of the result."""
    pooled: dict[int, tuple[Argument, ...]] = {}
    number = len(document.inputs)
    for node in document.nodes:
        if node.operation == "max_pool2d" and len(node.results) == 2:
            pooled[number + 1] = node.arguments
        elif node.operation == "max_pool2d_backward":
            *same, indices = node.arguments[1:]
            known = isinstance(indices, Ref) and pooled.get(int(indices)) == tuple(same)
            need(known, "max_pool2d_backward takes the indices of its own max_pool2d")
        number += len(node.results)


def _structure(raw: Any, depth: int = 0) -> Structure:
    need(depth <= MAX_NESTING, f"takes and gives nest deeper than the limit of {MAX_NESTING}")
    if raw == "*" and isinstance(raw, str):
        return "*"
    need(isinstance(raw, dict) and len(raw) == 1, "takes and gives are made of *, list, tuple and dict")
    ((kind, parts),) = raw.items()
    if kind == "dict":
        need(isinstance(parts, dict) and len(parts) <= MAX_LIST, "a dict in takes or gives is none")
        keys = tuple(_name(key) for key in sorted(parts))
        return Nest(kind, tuple(_structure(parts[key], depth + 1) for key in keys), keys)
    need(kind in ("list", "tuple"), "takes and gives are made of *, list, tuple and dict")
    return Nest(kind, tuple(_structure(part, depth + 1) for part in _list(parts, MAX_LIST, "parts")))


def _leaves(structure: Structure) -> int:
    return 1 if isinstance(structure, str) else sum(map(_leaves, structure.parts))
