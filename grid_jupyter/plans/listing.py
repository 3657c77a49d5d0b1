"""A plan as a person reads it: a text with one line for each input, operation and output.

Names in plans are plain ASCII words (`plans/reader.py` holds them to it), so no name can look like another line.
"""

from __future__ import annotations

import hashlib
from typing import TypeGuard

from grid_jupyter.plans.document import Argument, Document, Input, Node, Ref, Spec
from grid_jupyter.plans.expressions import BATCH, OPERATORS, Expression, expression_text
from grid_jupyter.plans.operations import OPERATIONS


def code(document: Document) -> str:
    """The whole plan as text."""
    low, high = document.batch
    batched = any(one.spec.shape[:1] == (BATCH,) for one in document.inputs_of("x", "y", "arg"))
    sizes = f"for batches B of {low} to {high}" if batched else "for these sizes alone"
    lines = [f"plan {document.sha256}", f"a {document.kind} {sizes}", "", "takes"]
    for number, one in enumerate(document.inputs):
        lines.append(f"    %{number}: {spec_text(one.spec)} = {_input_text(one)}")
    lines += ["", "does"]
    number = len(document.inputs)
    for node in document.nodes:
        results = ", ".join(f"%{number + k}: {spec_text(spec)}" for k, spec in enumerate(node.results))
        lines.append(f"    {results} = {_node_text(node)}")
        number += len(node.results)
    lines += ["", "gives"]
    lines += [f"    {one.role} {one.name} = {one.value!r}" for one in document.outputs]
    return "\n".join(lines) + "\n"


def spec_text(spec: Spec) -> str:
    """Such as `float32[B, 10]`."""
    return f"{spec.dtype}[{', '.join(map(expression_text, spec.shape))}]"


def _input_text(one: Input) -> str:
    if one.data is not None:
        return f"{one.role} {one.name}, {len(one.data)} bytes with SHA-256 {hashlib.sha256(one.data).hexdigest()[:16]}"
    return f"{one.role} {one.name}" + (f", {one.distribution}" if one.distribution else "")


def _node_text(node: Node) -> str:
    parts: list[str] = []
    for argument, parameter in zip(node.arguments, OPERATIONS[node.operation].parameters, strict=True):
        if argument is None:
            continue
        text = _argument_text(argument)
        plain = parameter.kind in ("tensor", "tensors", "operand") and not parameter.optional
        parts.append(text if plain else f"{parameter.name}={text}")
    return f"{node.operation}({', '.join(parts)})"


def _argument_text(argument: Argument) -> str:
    if isinstance(argument, Ref):
        return repr(argument)
    if _is_expression(argument):
        return expression_text(argument)
    if isinstance(argument, tuple):
        return f"[{', '.join(map(_argument_text, argument))}]"
    return str(argument)


def _is_expression(argument: Argument) -> TypeGuard[Expression]:
    return isinstance(argument, tuple) and len(argument) == 3 and argument[0] in OPERATORS
