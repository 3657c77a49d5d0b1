"""An ONNX graph that grows while a plan is converted: names of values, constants, sizes that depend on the batch.

Nodes that nothing needs are left out at the end, so that a conversion may look behind its arguments and compute a
result another way. Every node has a name of its own: ONNX Runtime 1.20 refuses graphs without.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans import onnx_model
from grid_jupyter.plans.document import Argument, Document, Input, Node, Output, Ref, Spec, references
from grid_jupyter.plans.expressions import BATCH, Expression, evaluate, expression_text, has_batch
from grid_jupyter.plans.onnx_model import Array, Attribute

_OPERATORS = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "//": "Div", "%": "Mod"}
# ONNX has no bfloat16 in NumPy; the runtime for CPUs computes next to nothing with it either.
NUMPY_TYPES = {
    "bool": np.bool_, "uint8": np.uint8, "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "float16": np.float16, "float32": np.float32, "float64": np.float64,
}  # fmt: skip


_WRITTEN_OUT = 64
"""Elements of a constant that has one number everywhere, at most; larger ones are made when the model runs."""


class _Step(NamedTuple):
    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Attribute]


class Graph:
    """Of one document and those of its `outputs` that are wanted. `names[number]` is what a value is called here."""

    def __init__(self, document: Document, outputs: Sequence[Output]) -> None:
        self.document, self._outputs = document, outputs
        self.names: dict[int, str] = {}
        self.made_by: dict[int, Node] = {}
        self.pooled: dict[str, tuple[str, str]] = {}
        """Of each max pooling: its result and the positions as ONNX counts them, by the positions as torch does."""
        self.uses = Counter(number for node in document.nodes for number in references(node.arguments))
        self.uses.update(int(output.value) for output in document.outputs)
        self._steps: list[_Step] = []
        self._constants: dict[str, Array] = {}
        self._known: dict[object, str] = {}
        for number, one in enumerate(document.inputs):
            self.names[number] = input_name(one) if one.data is None else self.constant(_data(one))

    # -------------------------------------------------------------- what is there

    def spec(self, reference: Argument) -> Spec:
        """Of a value that is an argument."""
        return self.document.specs[_number(reference)]

    def behind(self, argument: Argument, operation: str) -> tuple[Argument, ...] | None:
        """The arguments of the operation that made a value, if it was this one."""
        node = self.made_by.get(_number(argument)) if isinstance(argument, Ref) else None
        return node.arguments if node is not None and node.operation == operation else None

    def once(self, argument: Argument) -> bool:
        """Whether a value has one use only."""
        return self.uses[_number(argument)] == 1

    # -------------------------------------------------------------- adding

    def add(self, operator: str, *inputs: str, **attributes: Attribute) -> str:
        """Add an operation with one result; returns the name of that. The same twice is one."""
        shown = {
            key: value.tobytes() if isinstance(value, np.ndarray) else repr(value) for key, value in attributes.items()
        }
        key = (operator, inputs, tuple(sorted(shown.items())))
        if key not in self._known:
            (self._known[key],) = self.add_many(operator, inputs, 1, **attributes)
        return self._known[key]

    def add_many(self, operator: str, inputs: Sequence[str], count: int, **attributes: Attribute) -> list[str]:
        """Add an operation with several results."""
        outputs = [f"v{len(self._steps)}" if count == 1 else f"v{len(self._steps)}.{index}" for index in range(count)]
        self._steps.append(_Step(operator, inputs, outputs, attributes))
        return outputs

    # -------------------------------------------------------------- constants and sizes

    def constant(self, array: Array) -> str:
        """The name of an array; equal ones are one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = name = f"c{len(self._constants)}"
            self._constants[name] = array
        return self._known[key]

    def number(self, value: Any, dtype: str) -> str:
        """A scalar of a dtype."""
        return self.constant(np.array(value, dtype=numpy_type(dtype)))

    def integers(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.array(values, dtype=np.int64))

    def size(self, expression: Expression, dtype: str = "int64") -> str:
        """A number that may depend on the batch size, as a vector of one."""
        if not has_batch(expression):
            return self.constant(np.array([evaluate(expression, 1)], dtype=numpy_type(dtype)))
        if isinstance(expression, tuple):
            operator, left, right = expression
            if operator in ("//", "%") and dtype != "int64":
                return self.cast(self.size(expression), dtype)
            if operator == "/" and dtype == "int64":
                raise PlanInvalidError("a length of the plan is divided with a rest")
            return self.add(_OPERATORS[operator], self.size(left, dtype), self.size(right, dtype))
        size = self._batch()
        return size if dtype == "int64" else self.cast(size, dtype)

    def shape(self, lengths: Sequence[Expression]) -> str:
        """A shape as a vector of int64."""
        if not any(map(has_batch, lengths)):
            return self.integers(*(int(evaluate(length, 1)) for length in lengths))
        return self.add("Concat", *(self.size(length) for length in lengths), axis=0)

    def _batch(self) -> str:
        for one in self.document.inputs_of("x", "y", "arg"):
            if one.spec.shape[:1] == (BATCH,):
                return self.add("Shape", input_name(one), start=0, end=1)
        raise PlanInvalidError("the plan depends on a batch size that none of its inputs has as first length")

    # -------------------------------------------------------------- arguments

    def cast(self, name: str, dtype: str) -> str:
        """A value in another dtype."""
        return self.add("Cast", name, to=onnx_model.ELEMENT_TYPES[dtype])

    def value(self, argument: Argument, dtype: str | None = None) -> str:
        """An argument as a tensor, of this dtype if one is given; numbers and expressions become scalars."""
        if isinstance(argument, Ref):
            name = self.names[int(argument)]
            return name if dtype in (None, self.spec(argument).dtype) else self.cast(name, str(dtype))
        if dtype is None:
            raise PlanInvalidError("a tensor of the plan is a number")
        if isinstance(argument, tuple) or argument == BATCH:
            return self.add("Squeeze", self.size(argument, dtype))  # type: ignore[arg-type]
        return self.number(argument, dtype)

    def spread(self, argument: Argument, result: Spec, dtype: str, other: Argument, taken: str | None = None) -> str:
        """An argument of an operation element by element, as `value`: what it was before it was expanded, where the
        other argument has the whole shape anyway, and was `taken` with it; ONNX expands by itself."""
        whole = isinstance(other, Ref) and self.spec(other).shape == result.shape
        if whole and taken in (None, self.value(other, dtype)):
            if (expanded := self.behind(argument, "expand")) is not None:
                return self.value(expanded[0], dtype)
            if (filled := self.behind(argument, "full")) is not None and filled[2] == dtype:
                return self.value(filled[1], dtype)
        return self.value(argument, dtype)

    def filled(self, spec: Spec, value: Any) -> str:
        """A tensor with one number everywhere."""
        number = np.array([value], dtype=numpy_type(spec.dtype))
        count = count_of(spec.shape)
        if isinstance(count, int) and count <= _WRITTEN_OUT:
            return self.constant(np.full(static(spec.shape), number[0]))
        return self.add("ConstantOfShape", self.shape(spec.shape), value=number)

    def add_at(self, operator: str, dtype: str, whole: str, where: str, parts: str, **attributes: Attribute) -> str:
        """Parts added to a whole at indices, by one of the scatter operators, which are not there for float16."""
        if dtype != "float16":
            return self.add(operator, whole, where, parts, reduction="add", **attributes)
        whole, parts = self.cast(whole, "float32"), self.cast(parts, "float32")
        return self.cast(self.add(operator, whole, where, parts, reduction="add", **attributes), dtype)

    def zeros(self, spec: Spec) -> str:
        """A tensor of zeros."""
        return self.filled(spec, 0)

    # -------------------------------------------------------------- the end

    def to_bytes(self, metadata: Mapping[str, str]) -> bytes:
        """The model: what the document's outputs need, and nothing else."""
        nodes, constants = self.parts()
        inputs = [described(input_name(one), one.spec) for one in self.document.inputs if one.data is None]
        outputs = [described(output_name(one), self.spec(one.value)) for one in self._outputs]
        return onnx_model.model(onnx_model.graph(nodes, constants, inputs, outputs), metadata)

    def parts(self) -> tuple[list[bytes], list[bytes]]:
        """The operations that the document's outputs need, which take its inputs by their names, and the constants."""
        outputs = [(output_name(one), self.names[int(one.value)]) for one in self._outputs]
        needed = {name for _, name in outputs}
        kept = []
        for step in reversed(self._steps):
            if not needed.isdisjoint(step.outputs):
                needed.update(step.inputs)
                kept.append(step)
        kept.reverse()
        kept += [_Step("Identity", (name,), (output,), {}) for output, name in outputs]
        shown = [_without_positions(step) if needed.isdisjoint(step.outputs[1:]) else step for step in kept]
        nodes = [
            onnx_model.node(step.operator, f"n{at}", step.inputs, step.outputs, step.attributes)
            for at, step in enumerate(shown)
        ]
        return nodes, [onnx_model.tensor(name, array) for name, array in self._constants.items() if name in needed]


def _without_positions(step: _Step) -> _Step:
    """A pooling of which nobody needs the positions is twenty times faster without."""
    return step._replace(outputs=step.outputs[:1]) if step.operator == "MaxPool" else step


def input_name(one: Input) -> str:
    """What an input is called in ONNX."""
    return f"{one.role}:{one.name}"


def output_name(one: Output) -> str:
    """What an output is called in ONNX."""
    return f"out:{one.role}:{one.name}"


def numpy_type(dtype: str) -> type[np.generic]:
    """NumPy's name for a dtype; raises PlanInvalidError where it has none."""
    if dtype not in NUMPY_TYPES:
        raise PlanInvalidError(f"the plan computes with {dtype}, which ONNX Runtime does not; use the torch engine")
    return NUMPY_TYPES[dtype]


def static(lengths: Sequence[Expression]) -> list[int]:
    """Lengths that do not depend on the batch; raises PlanInvalidError where one does."""
    if any(map(has_batch, lengths)):
        raise PlanInvalidError("a length of the plan depends on the batch size where ONNX needs a fixed one")
    return [int(evaluate(length, 1)) for length in lengths]


def count_of(lengths: Sequence[Expression]) -> Expression:
    """How many elements a shape has."""
    fixed = math.prod(int(length) for length in lengths if isinstance(length, int))
    total: Expression = fixed
    for length in lengths:
        if not isinstance(length, int):
            total = length if total == 1 else ("*", total, length)
    return total


def _number(reference: Argument) -> int:
    if not isinstance(reference, Ref):
        raise PlanInvalidError("an argument of the plan is a number where a value belongs")
    return int(reference)


def _data(one: Input) -> Array:
    dtype = np.dtype(numpy_type(one.spec.dtype))
    return np.frombuffer(one.data or b"", dtype.newbyteorder("<")).astype(dtype).reshape(static(one.spec.shape))


def described(name: str, spec: Spec) -> bytes:
    """An input or output of a graph."""
    lengths = [length if isinstance(length, int) else expression_text(length) for length in spec.shape]
    return onnx_model.described(name, spec.dtype, lengths)
