"""A plan while it is made, at one batch size: nodes are added one by one, and what computes nothing new is not added.

Whatever is an input for the trace (parameters, noise that turns up, constants) and whatever is computed gets a number
when it appears; `finish` numbers anew, with the inputs first and without what nothing needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from grid_jupyter.plans.check import infer
from grid_jupyter.plans.document import Argument, Document, Input, Node, Output, Ref, Spec, references
from grid_jupyter.plans.shapes import Value


@dataclass
class _Step:
    operation: str
    arguments: tuple[Argument, ...]
    results: tuple[int, ...]


class Draft:
    """`values` are the dtypes and shapes of all values so far, by their numbers in the draft."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self._inputs: list[tuple[int, Input]] = []
        self._steps: list[_Step] = []
        self._known: dict[tuple[str, str], tuple[Ref, ...]] = {}
        self._made: dict[int, _Step] = {}

    def add_input(self, name: str, role: str, value: Value, data: bytes | None = None, noise: str | None = None) -> Ref:
        """One more input."""
        number = self._new(value)
        self._inputs.append((number, Input(name, role, Spec(value.dtype, value.shape), data, noise)))
        return number

    def count(self, role: str) -> int:
        """How many inputs have this role."""
        return sum(one.role == role for _, one in self._inputs)

    def add(self, operation: str, *arguments: Argument) -> Ref:
        """The result of an operation that has one."""
        (result,) = self.add_all(operation, *arguments)
        return result

    def add_all(self, operation: str, *arguments: Argument) -> tuple[Ref, ...]:
        """The results of an operation; of the same one on the same arguments those that are there already.

        Raises PlanInvalidError where the operation is not for these arguments.
        """
        arguments = self._folded(operation, arguments)
        _, results = infer(operation, arguments, self.values, 1)
        same = self._unchanged(operation, arguments, results)
        if same is not None:
            return (same,)
        key = operation, repr(arguments)  # repr tells 1 from 1.0 and from %1, which == does not
        if key not in self._known:
            numbers = tuple(self._new(result) for result in results)
            step = _Step(operation, arguments, numbers)
            self._steps.append(step)
            self._known[key] = numbers
            self._made.update(dict.fromkeys(numbers, step))
        return self._known[key]

    def _new(self, value: Value) -> Ref:
        self.values.append(value)
        return Ref(len(self.values) - 1)

    def _folded(self, operation: str, arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
        """A reshape of a reshape is one; so is a permute of a permute."""
        if operation not in ("reshape", "permute") or not isinstance(arguments[0], Ref):
            return arguments
        before = self._made.get(arguments[0])
        if before is None or before.operation != operation:
            return arguments
        if operation == "reshape":
            return before.arguments[0], arguments[1]
        order, inner = arguments[1], before.arguments[1]
        return before.arguments[0], tuple(inner[d] for d in order)  # type: ignore[index, union-attr]

    def _unchanged(self, operation: str, arguments: Sequence[Argument], results: Sequence[Value]) -> Ref | None:
        """The argument that the result is equal to, where the operation changes nothing."""
        source = arguments[0] if arguments else None
        if not isinstance(source, Ref) or len(results) != 1 or self.values[source] != results[0]:
            return None
        plain = operation in ("reshape", "expand", "cast")
        plain |= operation == "permute" and list(arguments[1]) == sorted(arguments[1])  # type: ignore[arg-type, type-var]
        plain |= operation == "slice" and arguments[4] == 1
        plain |= operation == "pad" and not any(arguments[1])  # type: ignore[arg-type]
        plain |= operation in ("mul", "div") and not isinstance(arguments[1], Ref) and arguments[1] == 1
        plain |= operation in ("sum", "mean", "amax", "amin") and arguments[1] == ()
        return source if plain else None

    def finish(self, document: Document, outputs: Sequence[Output]) -> Document:
        """`document` with these inputs, the nodes that the outputs need, and the outputs."""
        live = {int(output.value) for output in outputs}
        kept: list[_Step] = []
        for step in reversed(self._steps):
            if live.intersection(step.results):
                kept.append(step)
                live.update(references(step.arguments))
        named = [(number, one) for number, one in self._inputs if number in live or one.role not in ("const", "noise")]
        numbers = {number: Ref(k) for k, (number, _) in enumerate(named)}
        nodes: list[Node] = []
        for step in reversed(kept):
            arguments = tuple(_renumbered(argument, numbers) for argument in step.arguments)
            results = tuple(Spec(*self.values[number]) for number in step.results)
            nodes.append(Node(step.operation, arguments, results))
            for number in step.results:
                numbers[number] = Ref(len(numbers))
        renamed = tuple(replace(output, value=numbers[output.value]) for output in outputs)
        return replace(document, inputs=tuple(one for _, one in named), nodes=tuple(nodes), outputs=renamed)


def _renumbered(argument: Argument, numbers: dict[int, Ref]) -> Argument:
    if isinstance(argument, Ref):
        return numbers[argument]
    if isinstance(argument, tuple):
        return tuple(_renumbered(part, numbers) for part in argument)
    return argument
