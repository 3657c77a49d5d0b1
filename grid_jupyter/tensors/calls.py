"""What goes into a call of a recorded function and what comes out: tensors, within tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from grid_jupyter.errors import NotRecordableError, TensorsNotCollocatedException
from grid_jupyter.tensors.remote import RemoteTensor, send
from grid_jupyter.tensors.replay import Result, Returned
from grid_jupyter.tensors.session import Session
from grid_jupyter.tensors.tracing import Script

_CONSTANTS = (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)


class Given:
    """The arguments of one call: its remote tensors in order, and what a recording of it goes by."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], home: Session | None) -> None:
        self.tensors: list[Any] = []
        self.session: Session | None = None
        self._home = home
        self._parts: list[Any] = [torch.is_grad_enabled(), torch.get_default_dtype()]
        if torch.is_autocast_enabled("cpu"):
            self._parts.append(torch.get_autocast_dtype("cpu"))
        self._find_session((*args, *kwargs.values()))
        if self.session is None:
            self.session = home
        self.args = tuple(self._take(argument) for argument in args)
        self.kwargs = {name: self._take(argument, name) for name, argument in kwargs.items()}
        identities = [id(tensor) for tensor in self.tensors]
        if len(set(identities)) < len(identities):
            self._parts.append(tuple(identities.index(identity) for identity in identities))
        self.key = (self.session, *self._parts)

    def _find_session(self, parts: Any) -> None:
        for part in parts:
            if type(part) is RemoteTensor:
                session = part._ref.session
                if self.session is not None and self.session is not session:
                    raise TensorsNotCollocatedException(
                        f"one argument is on {self.session.place} and another on {session.place}"
                    )
                self.session = session
            elif type(part) in (tuple, list):
                self._find_session(part)
            elif type(part) is dict:
                self._find_session(part.values())

    def _take(self, argument: Any, name: str = "") -> Any:
        if name:
            self._parts.append(name)
        kind = type(argument)
        if kind is RemoteTensor:
            self._add(argument)
            return argument
        if kind in _CONSTANTS:
            self._parts.append((kind, argument))
            return argument
        if isinstance(argument, torch.Tensor):
            if self.session is None:
                return argument
            sent = send(argument, self.session)
            self._add(sent)
            return sent
        if kind in (tuple, list):
            self._parts.append((kind, len(argument)))
            return kind(self._take(part) for part in argument)
        if kind is dict:
            self._parts.append((kind, tuple(argument)))
            return {key: self._take(part) for key, part in argument.items()}
        if isinstance(argument, (torch.nn.Module, torch.optim.Optimizer)):
            self._parts.append(argument)
            return argument
        raise NotRecordableError(
            f"a {kind.__name__} cannot be an argument of a recording: give tensors, modules, optimisers, numbers and "
            f"texts, or let the function use it from outside"
        )

    def _add(self, pointer: Any) -> None:
        self.tensors.append(pointer)
        self._parts.append(pointer._layout)
        if pointer._leaves is not None:
            self._parts.append((pointer.is_leaf, pointer._grad_pointer is None))


def collect(result: Any, pointers: list[Any]) -> None:
    """The remote tensors within what a function returned."""
    kind = type(result)
    if kind is RemoteTensor:
        pointers.append(result)
    elif isinstance(result, tuple) or kind is list:
        for part in result:
            collect(part, pointers)
    elif kind is dict:
        for part in result.values():
            collect(part, pointers)
    elif kind not in _CONSTANTS:
        remedy = "it is on this side; return remote ones" if isinstance(result, torch.Tensor) else "return tensors"
        raise NotRecordableError(f"it returns a {kind.__name__}, which a run of the recording would not make: {remedy}")


class Returns:
    """Takes what a traced call returned apart, so that a run can put the same together."""

    def __init__(
        self, made: Script, given: Given, offsets: list[int], of_inputs: dict[int, int], outside: set[int]
    ) -> None:
        self._script = made
        self._positions = {tensor._ref.id: position for position, tensor in enumerate(given.tensors)}
        self._offsets = offsets
        self._of_inputs = of_inputs
        self._outside = outside
        self._results: list[Result] = []
        self._seen: dict[int, int] = {}  # identity of a pointer → which result it is

    def of(self, result: Any) -> Returned:
        """The structure of a result. Raises NotRecordableError for what a run could not give."""
        build, shown = self._take(result)
        return Returned(self._results, build, shown)

    def _take(self, part: Any) -> tuple[Callable[[list[Any], list[Any]], Any], Any]:
        kind = type(part)
        if kind is RemoteTensor:
            return self._pointer(part)
        if kind in (tuple, list):
            items = [self._take(item) for item in part]
            builds = [build for build, _ in items]
            return lambda made, given: kind(build(made, given) for build in builds), [kind, [s for _, s in items]]
        if isinstance(part, tuple):  # a named one
            items = [self._take(item) for item in part]
            builds = [build for build, _ in items]
            return lambda made, given: kind(*[build(made, given) for build in builds]), [kind, [s for _, s in items]]
        if kind is dict:
            entries = {key: self._take(item) for key, item in part.items()}
            return (
                lambda made, given: {key: build(made, given) for key, (build, _) in entries.items()},
                [kind, {key: shown for key, (_, shown) in entries.items()}],
            )
        return lambda made, given: part, [kind, part]

    def _pointer(self, pointer: Any) -> tuple[Callable[[list[Any], list[Any]], Any], Any]:
        identity = pointer._ref.id
        position = self._positions.get(identity)
        if position is not None:
            return lambda made, given: given[position], ["argument", position]
        slot = self._script.slots[identity]
        if slot <= len(self._script.captured):
            return lambda made, given: pointer, ["outside", slot]
        if id(pointer) not in self._seen:
            self._seen[id(pointer)] = len(self._results)
            self._results.append(self._result(pointer))
        number = self._seen[id(pointer)]
        result = self._results[number]
        shown = ["result", slot, result.layout, result.offset, result.root, result.leaves is None, result.own]
        return lambda made, given: made[number], shown

    def _result(self, pointer: Any) -> Result:
        root = self._positions.get(self._script.roots.get(pointer._ref.id, 0), -1)
        leaves: frozenset[int] = pointer._leaves or frozenset()
        kept = frozenset(
            identity for identity in leaves if identity in self._outside and identity not in self._of_inputs
        )
        return Result(
            pointer._ref.id,
            pointer._layout,
            pointer._offset - (self._offsets[root] if root >= 0 else 0),
            root,
            None if pointer._leaves is None else kept,
            tuple(sorted({self._of_inputs[identity] for identity in leaves if identity in self._of_inputs})),
            pointer._ref.id in leaves,
            None if pointer._grad_pointer is None else True,
            self._outside_root(pointer),
        )

    def _outside_root(self, pointer: Any) -> Any:
        """Of a view of a captured tensor: that tensor."""
        root = pointer._root
        slot = 0 if root is None else self._script.slots.get(root._ref.id, 0)
        return root if 0 < slot <= len(self._script.captured) else None
