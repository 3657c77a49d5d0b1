"""RemoteTensor: a torch.Tensor whose values live elsewhere.

Locally it has shape, dtype and strides, never values. Each forward ATen operation becomes one short
command in its session's stream; autograd runs where the values are. Reading waits for the values, and
passes the release gate of the Node that holds them.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, NoReturn

import torch

from grid_jupyter.errors import RemoteObjectFoundError
from grid_jupyter.ops.shapes import Layout, check_dense, layout_of, select, slice_
from grid_jupyter.tensors import dispatch
from grid_jupyter.tensors.autograd import Autograd, spread
from grid_jupyter.tensors.device import OnDevice
from grid_jupyter.tensors.dispatch import CACHE, SlowPath, refuse_leaf, seed
from grid_jupyter.tensors.reading import Reading
from grid_jupyter.tensors.session import NUMBERS, Ref, Session
from grid_jupyter.tensors.text import as_html, pointer_text, printed
from grid_jupyter.tensors.verbs import Verbs

_aten = torch.ops.aten
_DETACH, _SELECT, _SLICE = _aten.detach.default, _aten.select.int, _aten.slice.Tensor
_CPU = torch.device("cpu")
_frame = sys._getframe
_grad_enabled = torch.is_grad_enabled
_make = torch.Tensor._make_wrapper_subclass
_CONSTANTS = (bool, torch.dtype, str, torch.memory_format, torch.device, torch.layout, type(None))


# torch's own stubs type its attributes as fixed ones, which a pointer answers itself
_Tensor: Any = torch.Tensor


class RemoteTensor(Autograd, OnDevice, Reading, Verbs, _Tensor):  # type: ignore[misc]
    """A pointer: `(Wrapper)>[PointerTensor | me:… -> Bob:…]`. Made by sending, searching and computing."""

    __slots__ = ("_grad_pointer", "_layout", "_leaves", "_number", "_offset", "_ref", "_root", "description", "tags")
    __torch_function__ = torch._C._disabled_torch_function_impl

    _number: int
    _ref: Any  # Ref, or DatasetRef
    _layout: Layout
    _offset: int
    _leaves: frozenset[int] | None  # ids of the leaves that a backward() from here reaches
    _root: Any  # of a view: the tensor that it is a view of
    _grad_pointer: Any
    tags: tuple[str, ...]
    description: str

    # -------------------------------------------------------------- the fast path

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key: list[Any] = [func]
        given = args
        if kwargs:
            key.append(tuple(kwargs))
            given = (*args, *kwargs.values())
        else:
            kwargs = {}
        command: list[Any] = [0, 0]
        session: Any = None
        leaves: Any = None
        for argument in given:
            kind: Any = type(argument)
            if kind is RemoteTensor:
                key.append(argument._layout)
                reference = argument._ref
                command.append(reference.id)
                reached = argument._leaves
                if reached is not None and reached is not leaves:
                    leaves = reached if leaves is None else leaves | reached
                if session is not reference.session:
                    if session is not None:
                        return _slow(func, args, kwargs)
                    session = reference.session
            elif kind is int:
                key.append(argument)
                command.append(argument)
            elif kind is float:
                key.append(float)
                command.append(argument)
            elif kind in _CONSTANTS:
                key.append((kind, argument))
            elif kind is list and argument and all(type(part) is int for part in argument):
                key.append(tuple(argument))
                command.append(argument)
            else:
                return _slow(func, args, kwargs)
        if session is None:
            return _slow(func, args, kwargs)
        grad = _grad_enabled()
        if grad is not session.grad_mode:
            session.set_grad_mode(grad)
        if not grad or func is _DETACH:
            leaves = None
        outcome = CACHE.get(tuple(key))
        if outcome is None:
            if (func is _SELECT or func is _SLICE) and len(command) == len(args) + 2 and not kwargs:
                made = _row(func, args, command, session, leaves)
                if made is not None:
                    return made
            return _slow(func, args, kwargs, tuple(key))
        kind, template, data, seeded = outcome
        if seeded:
            seed(session)
        if template not in session.known:
            session.define(template)
        command[0] = template
        result: Any
        if kind == dispatch.NEW:
            identity = command[1] = session.new_id()
            floating = data.dtype.is_floating_point or data.dtype.is_complex
            result = wrap(data, identity, session, 0, leaves if floating else None)
        elif kind == dispatch.VIEW:
            identity = command[1] = session.new_id()
            source = args[0]
            result = wrap(data[0], identity, session, source._offset + data[1], leaves)
            if func is not _DETACH:
                root = source._root
                result._root = source if root is None else root
        elif kind == dispatch.IN_PLACE:
            result = args[data] if type(data) is int else kwargs[data]
            identity = command[1] = -session.new_id()
            if leaves is not None:
                refuse_leaf(func, result)
                spread(result, leaves)
        elif kind == dispatch.PLACED:
            identity = command[1] = session.new_id()
            result = wrap(data[0], identity, session, data[1], leaves)
        elif kind == dispatch.FRESH:
            identity = command[1] = session.new_id()
            result = wrap(dispatch.Fresh.of(data), identity, session)
        elif kind == dispatch.NOTHING:
            result = None
            identity = command[1] = -session.new_id()
        else:
            result = _slow.many(data, command, session, {**dict(enumerate(args)), **kwargs}, leaves)
            identity = command[1][0] if command[1] else 0
        session.sites.note(identity, _frame(1))
        buffer = session.buffer
        buffer.append(command)
        if identity >= session.due:
            session.made(identity, command, result)
        if len(buffer) >= session.limit:
            session.flush()
        return result

    # -------------------------------------------------------------- what it is

    @property
    def id(self) -> int:
        """The pointer's own number on this side."""
        if not self._number:
            self._number = NUMBERS.randrange(10**9, 10**11)
        return self._number

    @property
    def location(self) -> Any:
        """Where the values are: a Node's client or a VirtualWorker."""
        return self._ref.place

    @property
    def id_at_location(self) -> int:
        """The number of the value, or of the data set, at its location."""
        return int(self._ref.label)

    @property
    def owner(self) -> Any:
        """Who holds the pointer: this process."""
        return self._ref.place.local_worker

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return pointer_text(
            self.id,
            self.location.id,
            self.id_at_location,
            self.tags,
            self.description,
            self.shape,
            getattr(self._ref, "attribute", ""),
        )

    def __str__(self) -> str:
        return printed(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a remote tensor is never pickled: its values are elsewhere; .get() them if you may read them")

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteTensor:
        made: Any = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        elif not self.is_leaf:
            raise RuntimeError("only leaf tensors can be copied deeply; use .detach() or .clone()")
        memo[id(self)] = made
        if self.grad is not None and not isinstance(self, torch.nn.Parameter):  # as torch has it
            made.grad = copy.deepcopy(self.grad, memo)
        copied: RemoteTensor = made
        return copied

    def __copy__(self) -> RemoteTensor:
        made: Any = self.detach()
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        copied: RemoteTensor = made.requires_grad_(self.requires_grad)
        return copied


def _refuse_memory(name: str) -> None:
    def refused(self: RemoteTensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{name} needs the memory of a tensor, which is elsewhere: .get() the values if you may read them"
        )

    setattr(RemoteTensor, name, refused)


for _name in ("__dlpack__", "__dlpack_device__", "apply_", "map2_", "map_", "share_memory_"):
    _refuse_memory(_name)  # torch would follow a null pointer


def wrap(
    of: Layout, identity: int, session: Session, offset: int = 0, leaves: frozenset[int] | None = None
) -> RemoteTensor:
    """A pointer to the value `identity` of a session."""
    return point(of, Ref(identity, session), offset, leaves)


def point(of: Layout, reference: Any, offset: int = 0, leaves: frozenset[int] | None = None) -> RemoteTensor:
    """A pointer with that reference, which owns the remote value."""
    pointer: Any = _make(RemoteTensor, of.shape, strides=of.stride, storage_offset=offset, dtype=of.dtype, device=_CPU)
    pointer._ref = reference
    pointer._layout = of
    pointer._offset = offset
    pointer._leaves = leaves
    pointer._root = None
    pointer._grad_pointer = None
    pointer._number = 0  # drawn when somebody asks
    pointer.tags = ()
    pointer.description = ""
    made: RemoteTensor = pointer
    return made


def send(tensor: torch.Tensor, session: Session) -> RemoteTensor:
    """Copy a local tensor into a session; requires_grad goes along, the graph does not."""
    if type(tensor) is RemoteTensor:
        raise RemoteObjectFoundError(f"the tensor is on {tensor.location} already; .send(place) makes a chain")
    check_dense(tensor)
    values = tensor.detach().contiguous()
    made = point(layout_of(values), session.put(values))
    return made.requires_grad_() if tensor.requires_grad else made


def _row(func: Any, args: Any, command: list[Any], session: Session, leaves: Any) -> RemoteTensor | None:
    """`x[i]` and `x[a:b]` in loops: their integers differ each time, so no cache would help."""
    template = _row_templates.get((func, len(args)))
    if template is None or not all(type(a) is int for a in args[1:]):
        return None
    source = args[0]
    if type(source._layout) is not Layout:
        return None
    found = (select if func is _SELECT else slice_)(source._layout, source._offset, args)
    if found is None:
        return None
    if template not in session.known:
        session.define(template)
    command[0] = template
    identity = command[1] = session.new_id()
    session.sites.note(identity, _frame(1))
    session.buffer.append(command)
    if len(session.buffer) >= session.limit:
        session.flush()
    result = wrap(found[0], identity, session, found[1], leaves)
    result._root = source if source._root is None else source._root
    return result


RemoteTensor._make = staticmethod(wrap)  # the parts of the class make further pointers with these
RemoteTensor._point = staticmethod(point)
_slow = SlowPath(RemoteTensor, wrap)
_row_templates: dict[tuple[Any, int], int] = {
    (_SELECT, 3): dispatch.template("aten.select.int", ["r", "d", "d"]),
    (_SLICE, 4): dispatch.template("aten.slice.Tensor", ["r", "d", "d", "d"]),
    (_SLICE, 5): dispatch.template("aten.slice.Tensor", ["r", "d", "d", "d", "d"]),
}
