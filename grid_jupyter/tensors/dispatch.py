"""The slow path of a remote operation: infer its result, define its template, upload local operands.

Runs once for each new combination of operation and layouts; what it finds goes to a bounded cache that
the fast path (remote.py) reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._mode_utils import no_dispatch

from grid_jupyter.errors import OperationNotAllowedError, RemoteOperationError, TensorsNotCollocatedException
from grid_jupyter.ops.allowed import ALLOWED, why_refused
from grid_jupyter.ops.kernels import kernel
from grid_jupyter.ops.raw import named
from grid_jupyter.ops.shapes import DYNAMIC, Layout, infer, layout_of
from grid_jupyter.tensors.autograd import spread
from grid_jupyter.tensors.parts import in_parts
from grid_jupyter.tensors.rewrites import REWRITES, is_unsteady
from grid_jupyter.tensors.session import Session
from grid_jupyter.tensors.stream import TEMPLATES
from grid_jupyter.wire import commands

aten = torch.ops.aten

NEW, IN_PLACE, MANY, NOTHING, VIEW, PLACED, FRESH = range(7)
"""Kinds of outcome: a new tensor · an argument changed · several results · none · a view of the first
argument, at an offset from it · a new tensor at an offset of its own · a new tensor that no gradient goes through."""


_ONLY_READ = torch.ops.aten._fused_adagrad_.default, "state_steps"
"""Said to be written to, and never is: the optimiser counts its steps itself, on this side."""


_DRAWS_NOTHING = frozenset({aten._scaled_dot_product_flash_attention_for_cpu.default})
"""Said to take random numbers, and never does: with dropout torch takes attention apart."""


class Outcome(NamedTuple):
    """What running an operation on these layouts gives."""

    kind: int
    template: int
    data: Any
    seeded: bool


class Fresh(Layout):
    """The layout of what a factory has just made, interned nowhere, so that its first use comes here: by then
    torch has said whether it requires a gradient (`requires_grad=True` is no argument of the operation)."""

    __slots__ = ()

    @classmethod
    def of(cls, layout: Layout) -> Fresh:
        """The same shape, strides and dtype."""
        return cls(layout.shape, layout.stride, layout.dtype)


CACHE: dict[Any, Outcome] = {}
_MAX_CACHE = 50_000
_templates: dict[Any, int] = {}
_FORMATS = {
    getattr(torch, name): name
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}  # fmt: skip
_DEVICE_OPTIONS = ("device", "pin_memory", "layout", "generator")

Tensors = dict[Any, Any]


class SlowPath:
    """Dispatches an operation the long way. `remote` is the pointer class, `wrap` makes one."""

    def __init__(self, remote: Any, wrap: Callable[..., Any]) -> None:
        self._remote = remote
        self._wrap = wrap

    def __call__(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fast_key: Any = None) -> Any:
        rewritten = REWRITES.get(op)
        if rewritten is not None:
            made = rewritten(args, kwargs)
            if made is not NotImplemented:
                return made
            if is_unsteady(op, args):
                fast_key = None
        if op in _INDEXED:
            args = self._integer_indices(args)
        if _is_open(self._remote, args) or (kwargs and _is_open(self._remote, list(kwargs.values()))):
            args, kwargs = _sizes().close(op, args, kwargs)
        name = str(op)
        if name not in ALLOWED:
            parts = in_parts(op)
            if parts is not None:
                return parts(*args, **kwargs)
            raise OperationNotAllowedError(f"{name} does not run on remote tensors: {why_refused(name)}")
        call = _Call(self._remote, args, kwargs)
        session = call.session
        if session is None:
            raise RemoteOperationError(f"{name} was given no remote tensor")
        self._refuse_local_targets(op, args, kwargs)
        leaves = call.leaves
        grad = torch.is_grad_enabled()
        if grad is not session.grad_mode:
            session.set_grad_mode(grad)
        if not grad or op is aten.detach.default:
            leaves = None
        if _is_open(self._remote, call.operands):
            if _is_factory(op):
                leaves = None
            return _sizes().run(self, op, template(name, call.args, call.kwargs), call, args, kwargs, leaves)
        options = tuple((k, _key(self._remote, v)) for k, v in kwargs.items())
        key: tuple[Any, ...] = (op, _key(self._remote, args), options)
        if op in _RETYPING:  # the view's offset counts other elements than its base's
            key, fast_key = (*key, args[0]._offset), None
        outcome = CACHE.get(key)
        if outcome is None:
            number = template(name, call.args, call.kwargs)
            try:
                result = infer(op, self._layouts(args), {k: self._layouts(v) for k, v in kwargs.items()})
            except DYNAMIC:
                return _sizes().run(self, op, number, call, args, kwargs, leaves)
            outcome = self._outcome(op, number, args, kwargs, result)
            if len(CACHE) >= _MAX_CACHE:
                CACHE.clear()
            CACHE[key] = outcome
            reusable = all(not isinstance(v, torch.Tensor) or type(v) is self._remote for v in call.operands)
            if fast_key is not None and reusable and torch.Tag.inplace_view not in op.tags:
                CACHE[fast_key] = outcome
        return self._send(op, outcome, call, args, kwargs, leaves)

    # -------------------------------------------------------------- sending

    def _send(
        self, op: Any, outcome: Outcome, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: Any
    ) -> Any:
        session = call.session
        if session is None:
            raise RemoteOperationError(f"{op} was given no remote tensor")
        if outcome.seeded:
            seed(session)
        if outcome.template not in session.known:
            session.define(outcome.template)
        command, uploaded = self._command(outcome.template, call, session)
        given: Tensors = {**dict(enumerate(args)), **kwargs}
        result: Any = None
        if outcome.kind == NEW:
            result = self._result(outcome.data, 0, command, session, leaves)
        elif outcome.kind == FRESH:
            result = self._result(Fresh.of(outcome.data), 0, command, session, None)
        elif outcome.kind == VIEW:
            result = self._result(outcome.data[0], args[0]._offset + outcome.data[1], command, session, leaves)
            if op is not aten.detach.default:
                result._root = args[0] if args[0]._root is None else args[0]._root
        elif outcome.kind == PLACED:
            result = self._result(outcome.data[0], outcome.data[1], command, session, leaves)
        elif outcome.kind in (IN_PLACE, NOTHING):
            command[1] = -session.new_id()
        if outcome.kind == IN_PLACE:
            result = self.changed(op, given[outcome.data], leaves)
        elif outcome.kind == MANY:
            result = self.many(outcome.data, command, session, given, leaves)
        self._note(session, command)
        session.buffer.append(command)
        if torch.Tag.inplace_view in op.tags:
            self._reshape_in_place(op, args, kwargs)
        if len(session.buffer) >= session.limit:
            session.flush()
        del uploaded  # they must live until the command is in the stream
        return result

    @staticmethod
    def _note(session: Session, command: list[Any]) -> None:
        first = command[1] if type(command[1]) is int else next(iter(command[1]), 0)
        session.sites.note(first, sys._getframe(1))

    def _command(self, number: int, call: _Call, session: Session) -> tuple[list[Any], list[Any]]:
        command: list[Any] = [number, 0]
        uploaded: list[Any] = []
        for value in call.operands:
            if type(value) is self._remote:
                command.append(value._ref.id)
            elif isinstance(value, torch.Tensor):
                if value.requires_grad and torch.is_grad_enabled():
                    raise RemoteOperationError(
                        "a local tensor that requires grad meets remote ones, and no gradient would come back to it: "
                        ".send() it as well, or .detach() it"
                    )
                ref = session.put(value)
                uploaded.append(ref)
                command.append(ref.id)
            else:
                command.append(value)
        return command, uploaded

    def _result(self, of: Layout, offset: int, command: list[Any], session: Session, leaves: Any) -> Any:
        identity = command[1] = session.new_id()
        return self._wrap(of, identity, session, offset, _kept(of, leaves))

    def many(self, specs: Any, command: list[Any], session: Session, given: Tensors, leaves: Any) -> Any:
        """Pointers for several results; their ids go into the command as a list."""
        identities: list[int] = []
        command[1] = identities

        def make(spec: Any) -> Any:
            if isinstance(spec, list):
                return [make(part) for part in spec]
            if spec is not None and spec[0] == "argument":
                return given[spec[1]]
            identity = session.new_id()
            identities.append(identity)
            if spec is None:
                return None
            if spec[0] == "view":
                part = self._wrap(spec[1], identity, session, given[0]._offset + spec[2], leaves)
                part._root = given[0] if given[0]._root is None else given[0]._root
                return part
            return self._wrap(spec[0], identity, session, spec[1], _kept(spec[0], leaves))

        made = [make(spec) for spec in specs]
        return made[0] if len(specs) == 1 and isinstance(specs[0], list) else tuple(made)

    def append(self, number: int, call: _Call, out: Any, seeded: bool) -> None:
        """Put an operation into the stream whose results were made elsewhere: `out` are their ids, 0: none."""
        session = call.session
        if session is None:
            raise RemoteOperationError("the operation was given no remote tensor")
        if seeded:
            seed(session)
        if number not in session.known:
            session.define(number)
        command, uploaded = self._command(number, call, session)
        command[1] = out or -session.new_id()
        self._note(session, command)
        session.buffer.append(command)
        if len(session.buffer) >= session.limit:
            session.flush()
        del uploaded  # they must live until the command is in the stream

    def changed(self, op: Any, target: Any, leaves: Any) -> Any:
        """The argument that an operation changed in place."""
        if leaves is not None:
            refuse_leaf(op, target)
            spread(target, leaves)
        return target

    def measured(self, op: Any, number: int, call: _Call, session: Session, leaves: Any) -> Any:
        """A result of which even the number of dimensions is unknown here: it is read through the release gate."""
        if number not in session.known:
            session.define(number)
        command, uploaded = self._command(number, call, session)
        count = len(op._schema.returns)
        identities = [session.new_id() for _ in range(count)]
        command[1] = identities[0] if count == 1 else identities
        self._note(session, command)
        session.buffer.append(command)
        found = session.sizes(identities)
        del uploaded
        made = [
            self._wrap(of, identity, session, offset, _kept(of, leaves))
            for identity, (of, offset) in zip(identities, found, strict=True)
        ]
        return made[0] if count == 1 else tuple(made)

    # -------------------------------------------------------------- inferring

    def _layouts(self, argument: Any) -> Any:
        if type(argument) is self._remote:
            pointer: Any = argument
            return pointer._layout, pointer._offset
        if isinstance(argument, torch.Tensor):
            return layout_of(argument), argument.storage_offset()
        if isinstance(argument, (list, tuple)):
            return [self._layouts(part) for part in argument]
        return argument

    def _outcome(self, op: Any, number: int, args: Any, kwargs: Any, result: Any) -> Outcome:
        facts = kernel(str(op))
        parameters = facts.parameters
        seeded = torch.Tag.nondeterministic_seeded in op.tags and op not in _DRAWS_NOTHING
        targets = {r: (p if p < len(args) else parameters[p]) for r, p in facts.writes.items()}
        outs = result if facts.results > 1 else [result]
        if torch.Tag.inplace_view not in op.tags:
            for result_number, target in targets.items():
                pointer: Any = args[target] if isinstance(target, int) else kwargs[target]
                if type(pointer) is self._remote and outs[result_number][0].shape != pointer._layout.shape:
                    raise RuntimeError(
                        f"{op}: the output has shape {tuple(pointer._layout.shape)} but the result needs "
                        f"{tuple(outs[result_number][0].shape)}; remote tensors are not resized"
                    )
        if op in _APART:
            result = [(of, 0) for of, _ in result]
        if facts.results == 0:
            return Outcome(NOTHING, number, None, seeded)
        if facts.results == 1:
            if 0 in targets:
                return Outcome(IN_PLACE, number, targets[0], seeded)
            first: Any = args[0] if args and type(args[0]) is self._remote else None
            viewed = 0 in facts.views and first is not None
            if facts.returns_list:
                specs = [("view", of, at - first._offset) if viewed else (of, at) for of, at in result]
                return Outcome(MANY, number, [specs], seeded)
            of, at = result
            if viewed and first is not None:
                return Outcome(VIEW, number, (of, at - first._offset), seeded)
            if not at and _is_factory(op):
                return Outcome(FRESH, number, of, seeded)
            return Outcome(PLACED if at else NEW, number, (of, at) if at else of, seeded)
        specs = [("argument", targets[n]) if n in targets else spec for n, spec in enumerate(outs)]
        return Outcome(MANY, number, specs, seeded)

    def _refuse_local_targets(self, op: Any, args: Any, kwargs: Any) -> None:
        for position, argument in enumerate(op._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            if (op, argument.name) == _ONLY_READ:
                continue
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, torch.Tensor) and type(tensor) is not self._remote:
                    raise RuntimeError(
                        f"{op}: a local tensor cannot be changed by a remote value; call .get() on the remote one first"
                    )

    def _reshape_in_place(self, op: Any, args: Any, kwargs: Any) -> None:
        """`t_`, `unsqueeze_` and the like: the pointer's own metadata follows."""
        with no_dispatch():
            op(*args, **kwargs)
        pointer = args[0]
        pointer._layout, pointer._offset = layout_of(pointer), pointer.storage_offset()

    # -------------------------------------------------------------- operations that become others

    def _integer_indices(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A local boolean mask becomes integer indices here, where its values are known."""
        indices: list[Any] = []
        for index in args[1]:
            local = index is not None and type(index) is not self._remote
            if local and index.dtype in (torch.bool, torch.uint8):
                indices.extend(index.nonzero(as_tuple=True))
            elif index is not None and index.dtype is torch.uint8:
                indices.append(index.ne(0))  # a mask as well, which torch's rule for shapes does not know
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])


def _is_factory(op: Any) -> bool:
    base: str = op._schema.name.removeprefix("aten::")
    return base.endswith("_like") or base.startswith("new_")


_INDEXED = frozenset({aten.index.Tensor, aten.index_put_.default, aten.index_put.default})
_RETYPING = frozenset({aten.view.dtype, aten.view_as_real.default, aten.view_as_complex.default})
# Nodes give copies where torch gives views that do not say so (ops/kernels.py).
_APART = frozenset({aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default})


class _Call:
    """The arguments of one call, taken apart: structure, operands in order, session, leaves."""

    def __init__(self, remote: type[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._remote = remote
        self.operands: list[Any] = []
        self.session: Session | None = None
        self.leaves: frozenset[int] | None = None
        self.args = [self._item(argument) for argument in args]
        self.kwargs = [
            [name, self._item(value)]
            for name, value in kwargs.items()
            if name not in _DEVICE_OPTIONS or isinstance(value, torch.Tensor)
        ]

    def _item(self, argument: Any) -> Any:
        kind = type(argument)
        if isinstance(argument, torch.Tensor):
            self.operands.append(argument)
            if kind is self._remote:
                self._meet(argument)
            return "r"
        if argument is None or kind is bool or kind is str:
            return ["c", argument]
        if kind is int or kind is float:
            self.operands.append(argument)
            return "d"
        if kind is complex:
            self.operands += [argument.real, argument.imag]
            return "z"
        if kind is torch.dtype:
            return ["t", named(argument)]
        if kind is torch.memory_format:
            return ["m", _FORMATS[argument]]
        if kind is torch.layout or kind is torch.device or isinstance(argument, torch.Generator):
            return ["c", None]
        if isinstance(argument, (list, tuple)):
            if all(type(part) is int for part in argument) or all(type(part) is float for part in argument):
                self.operands.append(list(argument))
                return "d"
            return ["L", [self._item(part) for part in argument]]
        raise TypeError(f"{kind.__name__} cannot be an argument of a remote operation")

    def _meet(self, pointer: Any) -> None:
        if type(pointer._layout) is Fresh:
            pointer._layout = layout_of(pointer)
            pointer.requires_grad  # noqa: B018  # makes a leaf of it if the factory was asked to
        reference = pointer._ref
        reference.id  # noqa: B018  # opens a data set that is used for the first time
        session = reference.session
        if self.session is not None and session is not self.session:
            raise TensorsNotCollocatedException(
                f"one tensor is on {self.session.place} and another on {session.place}: "
                f"bring them together first, with .get() or by sending both to the same place"
            )
        self.session = session
        if pointer._leaves is not None:
            self.leaves = pointer._leaves if self.leaves is None else self.leaves | pointer._leaves


def refuse_leaf(op: Any, target: Any) -> None:
    """Raises RuntimeError, as torch does, for a leaf that requires grad and would be changed in place."""
    for tensor in (target, target._root):
        if tensor is not None and tensor._leaves is not None and tensor.is_leaf:
            raise RuntimeError(f"{op}: a leaf that requires grad cannot be changed in place; use torch.no_grad()")


def seed(session: Session) -> None:
    """Seed the Worker's next random operation."""
    session.buffer.append([commands.SEED, draw_seed()])


def draw_seed() -> int:
    """A seed from the local generator, so that torch.manual_seed works."""
    return int(torch.randint(0, 2**31 - 1, ()).item())


def template(name: str, args: list[Any], kwargs: list[Any] | None = None) -> int:
    """The number of the template with that operation and argument structure."""
    key = (name, _frozen(args), _frozen(kwargs or []))
    number = _templates.get(key)
    if number is None:
        TEMPLATES.append((name, args, kwargs or []))
        number = _templates[key] = len(TEMPLATES) - 1
    return number


def _is_open(remote: type[torch.Tensor], argument: Any) -> bool:
    """Whether there are lengths without a number (sizes.py) among the arguments."""
    kind = type(argument)
    if kind is remote:
        return type(argument._layout) is not Layout
    if kind is torch.SymInt:
        return True
    return kind in (list, tuple) and any(_is_open(remote, part) for part in argument)


def _sizes() -> Any:
    """Loaded where there is the first such length: it takes a part of torch that takes half a second."""
    from grid_jupyter.tensors import sizes

    return sizes


def _frozen(part: Any) -> Any:
    if isinstance(part, (list, tuple)):
        return tuple(_frozen(item) for item in part)
    return (bool, part) if isinstance(part, bool) else part


def _key(remote: type[torch.Tensor], argument: Any) -> Any:
    if type(argument) is remote:
        pointer: Any = argument
        return pointer._layout, True
    if isinstance(argument, torch.Tensor):
        return layout_of(argument), False
    if isinstance(argument, (list, tuple)):
        return tuple(_key(remote, part) for part in argument)
    if isinstance(argument, float):
        return float
    return type(argument), argument


def _kept(of: Layout, leaves: Any) -> Any:
    return leaves if of.dtype.is_floating_point or of.dtype.is_complex else None
