"""A template: one allowed operation with the structure of its arguments, ready to run on values by id.

Templates are built from closures over a closed table of kernels; nothing that a client sends becomes code.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import torch

from grid_jupyter.errors import InvalidMessageError, OperationNotAllowedError
from grid_jupyter.ops.allowed import STRINGS
from grid_jupyter.ops.kernels import Kernel, kernel
from grid_jupyter.ops.raw import DTYPES
from grid_jupyter.worker.gpu import seed
from grid_jupyter.worker.halves import SIZED, Halves

MEMORY_FORMATS: dict[str, torch.memory_format] = {
    name: getattr(torch, name)
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}  # fmt: skip

_CPU = torch.device("cpu")
Getter = Callable[[dict[int, Any], list[Any]], Any]
_NUMBERS = (int, float)
_NAMES = ("t", "m")
_MASKS = (torch.bool, torch.uint8)
_increment: Callable[..., None] = torch.autograd.graph.increment_version


def _increments_many() -> bool:
    try:
        _increment([torch.zeros(1)])
    except TypeError:  # torch took one at a time before
        return False
    return True


_MANY = _increments_many()


def show_versions(tensors: list[torch.Tensor], versions: list[int]) -> None:
    """Let tensors that were written to show a version that they had not before, where the kernel did not see to it."""
    same = [tensor for tensor, version in zip(tensors, versions, strict=True) if tensor._version == version]
    if not same:
        return
    if _MANY:
        _increment(same)
        return
    for tensor in same:
        _increment(tensor)


UNLIMITED = Halves()
"""The memory of an executor in a process without a limit."""


class Box:
    """The lineage of one storage: every view of it shares this object.

    `sources` has one bit for each data set of the session that the bytes derive from. A frozen storage
    is published data: mapped read-only, never written to. `storage` tells which one it is while it lives.
    """

    __slots__ = ("frozen", "hidden", "sources", "storage")

    def __init__(self, sources: int = 0, frozen: bool = False, storage: int = 0) -> None:
        self.sources = sources
        self.frozen = frozen
        self.storage = storage
        self.hidden = sources >= SIZED  # which half of the memory it was taken from (halves.py)


def storage_of(tensor: torch.Tensor) -> int:
    """Which storage a tensor shows: the same number for all of its views."""
    return int(tensor.untyped_storage()._cdata)


class Template:
    """`run(values, boxes, command)` executes one command of this template's operation."""

    def __init__(self, name: object, args: object, kwargs: object, device: torch.device = _CPU) -> None:
        if not isinstance(name, str) or not isinstance(args, list) or not isinstance(kwargs, list):
            raise InvalidMessageError("a template is [DEFINE, id, operation, arguments, keywords]")
        self.kernel: Kernel = kernel(name)
        self._device = device
        self.form = (name, args, kwargs)
        self.refs: list[int] = []
        self._argument_refs: dict[int, list[int]] = {}
        self._slots = iter(range(2, 1 << 30))
        parameters = self.kernel.parameters
        if len(args) > len(parameters):
            raise InvalidMessageError(f"{name} takes {len(parameters)} arguments, not {len(args)}")
        self._positional = [self._item(item, position) for position, item in enumerate(args)]
        self._keywords: dict[str, Getter] = {}
        for pair in kwargs:
            if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in parameters:
                raise InvalidMessageError(f"{name} has no such keyword")
            self._keywords[pair[0]] = self._item(pair[1], parameters.index(pair[0]))
        self._mutated = [p for position in sorted(self.kernel.mutates) for p in self._argument_refs.get(position, ())]
        self.length = next(self._slots)
        self._call = _caller(self.kernel.run, args, self._positional)
        # one new tensor from arguments that stay as they are, and nothing else to be seen to
        self._plain = not (
            self._keywords or self.kernel.mutates or self.kernel.seeded or self.kernel.sized or self.kernel.returns_list
        )

    def _item(self, item: Any, position: int, depth: int = 0) -> Getter:
        if item == "r":
            if position not in self.kernel.tensors:
                # torch takes a tensor of one element for a number: a view would show it by where and how long it is
                raise OperationNotAllowedError(f"{self.kernel.name} takes a number there, not a tensor")
            slot = next(self._slots)
            self.refs.append(slot)
            self._argument_refs.setdefault(position, []).append(slot)
            return lambda values, command: values[command[slot]]
        if (
            position in self.kernel.named
            and item != ["c", None]
            and (not isinstance(item, list) or item[0] not in _NAMES)
        ):
            raise OperationNotAllowedError(f"{self.kernel.name} takes dtypes and the like by name only")
        if item == "d":
            return self._number(next(self._slots))
        if item == "z":
            slot = next(self._slots)
            next(self._slots)
            return lambda values, command: complex(command[slot], command[slot + 1])
        if isinstance(item, list) and len(item) == 2 and depth < 2:
            kind, content = item
            if kind == "L" and isinstance(content, list):
                if position not in self.kernel.lists:  # torch would print all that is in it into its refusal
                    raise OperationNotAllowedError(f"{self.kernel.name} takes no list there")
                parts = [self._item(part, position, depth + 1) for part in content]
                return lambda values, command: [part(values, command) for part in parts]
            if kind == "t" and content in DTYPES:
                return _constant(DTYPES[content])
            if kind == "m" and content in MEMORY_FORMATS:
                return _constant(MEMORY_FORMATS[content])
            if kind == "c" and (content is None or isinstance(content, bool)):
                return _constant(content)
            if kind == "c" and isinstance(content, str):
                if content not in STRINGS:
                    raise OperationNotAllowedError(f"{self.kernel.name} does not take this text as an argument")
                return _constant(content)
        raise InvalidMessageError(f"{self.kernel.name}: an argument is not in the protocol's form")

    def _number(self, slot: int) -> Getter:
        name = self.kernel.name  # not the template itself, which would then be in a circle

        def number(values: dict[int, Any], command: list[Any]) -> Any:
            value = command[slot]
            if type(value) in _NUMBERS or (type(value) is list and all(type(part) in _NUMBERS for part in value)):
                return value
            raise InvalidMessageError(f"{name} takes numbers where something else was given")

        return number

    def run(
        self,
        values: dict[int, Any],
        boxes: dict[int, Box],
        command: list[Any],
        closed: int = 0,
        memory: Halves = UNLIMITED,
    ) -> None:
        """Execute one command: results into `values`, lineage into `boxes`.

        `closed` are the sources that the caller may not read. Where they say how large a result is, that is part of
        its lineage, and of that of all that is made of it: these live in a memory of their own.

        The lineage of a result is the union of the arguments' ones. A result that shares an argument's
        storage shares its box, whatever the schema says of it. Storages that are written to show a new
        version to autograd, whether or not the kernel cares: else a graph made before would take in what
        its lineage does not know of.
        """
        sources = 0
        for slot in self.refs:
            sources |= boxes[command[slot]].sources
        if self.kernel.sized and sources & closed and self._is_sized(values, command):
            sources |= SIZED
        if (sources >= SIZED) is not memory.hidden or memory.split:
            memory.enter(sources >= SIZED or _replaces_hidden(boxes, command[1]))
        out = command[1]
        if self._plain and type(out) is int and out > 0:  # what most operations are: the same as below, in short
            values[out] = result = self._call(values, command)
            storage = storage_of(result)
            for slot in self.refs:
                if boxes[command[slot]].storage == storage:
                    boxes[out] = boxes[command[slot]]
                    return
            boxes[out] = Box(sources, False, storage)
            return
        for slot in self._mutated:
            box = boxes[command[slot]]
            if box.frozen:
                raise OperationNotAllowedError(
                    f"{self.kernel.name} would change published data in place; work on a .copy() of it"
                )
            box.sources |= sources
        written = [values[command[slot]] for slot in self._mutated]
        versions = [tensor._version for tensor in written]
        try:
            result = self.kernel.run(
                *[get(values, command) for get in self._positional],
                **{name: get(values, command) for name, get in self._keywords.items()},
            )
        finally:
            show_versions(written, versions)
            if sources and self.kernel.seeded:
                # how much randomness it took may depend on values: what is drawn next must not tell
                seed(self._device, secrets.randbits(63))
        if type(out) is int:
            if out > 0:
                values[out] = result
                boxes[out] = self._box(result, sources, boxes, command)
        else:
            if self.kernel.results == 1 and not self.kernel.returns_list:
                raise ValueError("one result has one id")  # its rows would be values of their own, over each other
            results = result if self.kernel.returns_list else self._fresh(result)
            made: dict[int, Box] = {}
            for identity, value in zip(out, results, strict=True):
                if value is None:
                    values.pop(identity, None)
                    boxes.pop(identity, None)
                    continue
                box = self._box(value, sources, boxes, command)
                values[identity] = value
                boxes[identity] = made.setdefault(box.storage, box)

    def arguments(self, command: list[Any], place: Callable[[int], Any]) -> tuple[list[Any], dict[str, Any]]:
        """What the kernel is called with for a command, with `place(id)` where the value of an id stands.

        Raises InvalidMessageError for what is no number where one belongs.
        """
        placed = {command[slot]: place(command[slot]) for slot in self.refs}
        return (
            [get(placed, command) for get in self._positional],
            {name: get(placed, command) for name, get in self._keywords.items()},
        )

    def written(self, command: list[Any]) -> list[int]:
        """The ids of the values that a command writes to."""
        return [command[slot] for slot in self._mutated]

    def fresh_results(self, count: int) -> list[int]:
        """Where among the kernel's results the `count` are that a command with a list of ids gets."""
        if self.kernel.returns_list:
            return list(range(count))
        return [index for index in range(self.kernel.results) if index not in self.kernel.writes]

    def _is_sized(self, values: dict[int, Any], command: list[Any]) -> bool:
        if self.kernel.name != "aten.index.Tensor":
            return True
        return any(values[command[slot]].dtype in _MASKS for slot in self._argument_refs.get(1, ()))

    def _fresh(self, result: Any) -> Iterator[Any]:
        """Results of several, without those that are arguments written to."""
        return (value for index, value in enumerate(result) if index not in self.kernel.writes)

    def _box(self, value: torch.Tensor, sources: int, boxes: dict[int, Box], command: list[Any]) -> Box:
        storage = storage_of(value)
        for slot in self.refs:
            box = boxes[command[slot]]
            if box.storage == storage:
                return box
        return Box(sources, storage=storage)


def _replaces_hidden(boxes: dict[int, Box], out: Any) -> bool:
    """Whether a result takes the place of a value whose memory must not be felt to be free."""
    return any(box is not None and box.hidden for box in map(boxes.get, out if type(out) is list else (out,)))


def _caller(run: Callable[..., Any], args: list[Any], getters: list[Getter]) -> Getter:
    """Calls a kernel with its positional arguments; values by id, of which most have no other, the shortest way."""
    if args == ["r"]:
        return lambda values, command: run(values[command[2]])
    if args == ["r", "r"]:
        return lambda values, command: run(values[command[2]], values[command[3]])
    if args == ["r", "r", "r"]:
        return lambda values, command: run(values[command[2]], values[command[3]], values[command[4]])
    return lambda values, command: run(*[get(values, command) for get in getters])


def _constant(value: Any) -> Getter:
    return lambda values, command: value
