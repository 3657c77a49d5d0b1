"""RemoteTensor: a torch.Tensor whose values live elsewhere.

Locally it has shape, dtype and strides, never values. Each forward ATen operation becomes one short
command in its session's stream; autograd runs where the values are. Reading waits for the values, and
passes the release gate of the Node that holds them.
"""

from __future__ import annotations

import random
import weakref
from typing import Any, NoReturn

import torch

from grid_jupyter.errors import RemoteOperationError
from grid_jupyter.ops.shapes import Layout, layout_of, select, slice_
from grid_jupyter.tensors import dispatch
from grid_jupyter.tensors.dispatch import CACHE, SlowPath, refuse_leaf, seed
from grid_jupyter.tensors.session import Ref, Session
from grid_jupyter.tensors.text import pointer_text
from grid_jupyter.wire import commands

_aten = torch.ops.aten
_DETACH, _SELECT, _SLICE = _aten.detach.default, _aten.select.int, _aten.slice.Tensor
_CPU = torch.device("cpu")
_grad_enabled = torch.is_grad_enabled
_make = torch.Tensor._make_wrapper_subclass
_leaves: weakref.WeakValueDictionary[int, RemoteTensor] = weakref.WeakValueDictionary()
_CONSTANTS = (bool, torch.dtype, str, torch.memory_format, torch.device, torch.layout, type(None))


# torch's own stubs type its attributes as fixed ones, which a pointer answers itself
_Tensor: Any = torch.Tensor


class RemoteTensor(_Tensor):  # type: ignore[misc]
    """A pointer: `(Wrapper)>[PointerTensor | me:… -> Bob:…]`. Made by sending, searching and computing."""

    __slots__ = ("_grad_pointer", "_layout", "_leaves", "_number", "_offset", "_ref", "description", "tags")
    __torch_function__ = torch._C._disabled_torch_function_impl

    _number: int
    _ref: Any  # Ref, or DatasetRef
    _layout: Layout
    _offset: int
    _leaves: frozenset[int] | None  # ids of the leaves that a backward() from here reaches
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
            result = wrap(data[0], identity, session, args[0]._offset + data[1], leaves)
        elif kind == dispatch.IN_PLACE:
            result = args[data] if type(data) is int else kwargs[data]
            if leaves is not None:
                refuse_leaf(func, result)
                result._leaves = leaves
        elif kind == dispatch.PLACED:
            identity = command[1] = session.new_id()
            result = wrap(data[0], identity, session, data[1], leaves)
        elif kind == dispatch.NOTHING:
            result = None
        else:
            result = _slow.many(data, command, session, {**dict(enumerate(args)), **kwargs}, leaves)
        buffer = session.buffer
        buffer.append(command)
        if len(buffer) >= session.limit:
            session.flush()
        return result

    # -------------------------------------------------------------- what it is

    @property
    def id(self) -> int:
        """The pointer's own number on this side."""
        if not self._number:
            self._number = random.randrange(10**9, 10**11)  # noqa: S311 - a name, not a secret
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
        return pointer_text(self.id, self.location.id, self.id_at_location, self.tags, self.description, self.shape)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a remote tensor is never pickled: its values are elsewhere; .get() them if you may read them")

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteTensor:
        made: Any = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        copied: RemoteTensor = made
        return copied

    def copy(self) -> RemoteTensor:
        """A new remote value with the same elements."""
        made: RemoteTensor = self.clone()
        return made

    def tag(self, *tags: str) -> RemoteTensor:
        """Name this pointer on this side; what is published keeps its own tags."""
        self.tags = (*self.tags, *tags)
        return self

    def describe(self, description: str) -> RemoteTensor:
        """Describe this pointer on this side."""
        self.description = description
        return self

    # -------------------------------------------------------------- autograd, which runs at the location

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can reach this value, or passes through it."""
        return self._leaves is not None

    @requires_grad.setter
    def requires_grad(self, on: bool) -> None:
        self.requires_grad_(on)

    @property
    def is_leaf(self) -> bool:
        """Whether gradients accumulate here."""
        return self._leaves is None or self._ref.id in self._leaves

    @property
    def grad_fn(self) -> None:
        """None: the graph is where the values are."""
        return None

    def requires_grad_(self, requires_grad: bool = True) -> RemoteTensor:
        """As torch's: the gradient accumulates at the location."""
        identity = self._ref.id
        if requires_grad and self._leaves is None:
            if not (self.dtype.is_floating_point or self.dtype.is_complex):
                raise RuntimeError("only Tensors of floating point and complex dtype can require gradients")
            self._ref.session.buffer.append([commands.REQUIRE_GRAD, identity, True])
            self._leaves = frozenset((identity,))
            _leaves[identity] = self
        elif not requires_grad and self._leaves is not None:
            if not self.is_leaf:
                raise RuntimeError("you can only change requires_grad flags of leaf variables; use .detach()")
            self._ref.session.buffer.append([commands.REQUIRE_GRAD, identity, False])
            self._leaves = None
        return self

    def retain_grad(self) -> None:
        """As torch's, for a value that is not a leaf."""
        identity = self._ref.id
        self._ref.session.buffer.append([commands.RETAIN_GRAD, identity])
        self._leaves = (self._leaves or frozenset()) | {identity}
        _leaves[identity] = self

    @property
    def grad(self) -> Any:
        """A pointer to the gradient, or None before backward()."""
        if self._grad_pointer is True:
            session = self._ref.session
            identity = session.new_id()
            session.buffer.append([commands.GRAD_OF, identity, self._ref.id])
            self._grad_pointer = wrap(self._layout, identity, session)
        return self._grad_pointer

    @grad.setter
    def grad(self, value: RemoteTensor | None) -> None:
        self._ref.session.buffer.append([commands.SET_GRAD, self._ref.id, 0 if value is None else value._ref.id])
        self._grad_pointer = value

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> Any:
        """Compute gradients where the values are: one command. With the hook, returns a pointer, as 0.2.9 did."""
        if inputs is not None:
            raise RemoteOperationError("backward(inputs=…) is not served remotely; use torch.autograd.grad")
        if self._leaves is None:
            raise RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn")
        if gradient is None and self.numel() != 1:
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        session = self._ref.session
        seed_ref = self._local_to_remote(gradient, session)
        retain = create_graph if retain_graph is None else retain_graph
        session.buffer.append(
            [commands.BACKWARD, self._ref.id, 0 if seed_ref is None else seed_ref.id, bool(retain), create_graph]
        )
        for identity in self._leaves:
            leaf = _leaves.get(identity)
            if leaf is not None and leaf._grad_pointer is None:
                leaf._grad_pointer = True
        if len(session.buffer) >= session.limit:
            session.flush()
        return self if RETURNS_POINTER_FROM_BACKWARD.get("on") else None

    @staticmethod
    def _local_to_remote(gradient: Any, session: Session) -> Any:
        if gradient is None:
            return None
        return gradient._ref if type(gradient) is RemoteTensor else session.put(gradient)

    def register_hook(self, hook: Any) -> NoReturn:
        """Refused: gradients are computed elsewhere, where no code of ours may run."""
        raise RemoteOperationError("hooks do not run on remote gradients; read .grad after backward()")

    # -------------------------------------------------------------- reading: the release gate

    def get(self, user: str | None = None, deregister_ptr: bool = True) -> Any:
        """Fetch the value; the remote one is removed (published data stays). Its gradient comes along.

        `user` presents the stored credential of that user for this one call. What derives from published
        data comes as a PrivateTensor that keeps the users who may read it.

        Raises GetNotPermittedError, ObjectNotFoundError, SessionLostError, RemoteOperationError.
        """
        from grid_jupyter.tensors.private import PrivateTensor

        reference = self._ref
        grad = self.grad if self.requires_grad and self.is_leaf else None
        removable = deregister_ptr and isinstance(reference, Ref)
        fetched_grad = None if grad is None else grad._ref.session.read(grad._ref.id, user)[0]
        identity = reference.id
        tensor, readers = reference.session.read(identity, user, remove=removable)
        if self.requires_grad:
            tensor.requires_grad_(True)
            tensor.grad = fetched_grad
        return tensor if readers is None else PrivateTensor(tensor, readers)

    def _read(self) -> torch.Tensor:
        identity = self._ref.id
        tensor: torch.Tensor = self._ref.session.read(identity)[0]
        return tensor

    def item(self) -> Any:
        """The one element, as a Python number: a read."""
        if self.numel() != 1:
            raise RuntimeError("a Tensor with more than one element cannot be converted to Scalar")
        return self._read().item()

    def tolist(self) -> Any:
        """The values as nested lists: a read."""
        return self._read().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """The values as an array: a read."""
        return self._read().numpy(*args, **kwargs)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        array = self._read().numpy()
        return array if dtype is None else array.astype(dtype)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        return self._read().__index__()

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __len__(self) -> int:
        if not self._layout.shape:
            raise TypeError("len() of a 0-d tensor")
        return self._layout.shape[0]


def _refuse_memory(name: str) -> None:
    def refused(self: RemoteTensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{name} needs the memory of a tensor, which is elsewhere: .get() the values if you may read them"
        )

    setattr(RemoteTensor, name, refused)


for _name in ("__dlpack__", "__dlpack_device__", "apply_", "map2_", "map_", "share_memory_"):
    _refuse_memory(_name)  # torch would follow a null pointer

RETURNS_POINTER_FROM_BACKWARD: dict[str, bool] = {}
"""TorchHook sets "on": there, backward() returned a pointer."""


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
    pointer._grad_pointer = None
    pointer._number = 0  # drawn when somebody asks
    pointer.tags = ()
    pointer.description = ""
    made: RemoteTensor = pointer
    return made


def send(tensor: torch.Tensor, session: Session) -> RemoteTensor:
    """Copy a local tensor into a session; requires_grad goes along, the graph does not."""
    if type(tensor) is RemoteTensor:
        raise RemoteOperationError(f"the tensor is already on {tensor.location}; .get() it first to send it elsewhere")
    values = tensor.detach().contiguous()
    made = point(layout_of(values), session.put(values))
    return made.requires_grad_() if tensor.requires_grad else made


def gradients(
    outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None, create_graph: bool = False
) -> tuple[RemoteTensor, ...]:
    """torch.autograd.grad for remote tensors: one command."""
    outs: list[Any] = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    ins: list[Any] = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    seeds: list[Any] = [None] * len(outs)
    if grad_outputs is not None:
        seeds = [grad_outputs] if isinstance(grad_outputs, torch.Tensor) else list(grad_outputs)
    session = outs[0]._ref.session
    held = [RemoteTensor._local_to_remote(one, session) for one in seeds]
    identities = [session.new_id() for _ in ins]
    retain = create_graph if retain_graph is None else retain_graph
    session.buffer.append(
        [
            commands.GRADIENTS, identities, [o._ref.id for o in outs], [0 if h is None else h.id for h in held],
            [i._ref.id for i in ins], bool(retain), create_graph,
        ]
    )  # fmt: skip
    leaves: frozenset[int] | None = None
    for out in outs if create_graph else ():
        leaves = out._leaves if leaves is None else leaves | (out._leaves or frozenset())
    return tuple(wrap(i._layout, identity, session, 0, leaves) for i, identity in zip(ins, identities, strict=True))


def _row(func: Any, args: Any, command: list[Any], session: Session, leaves: Any) -> RemoteTensor | None:
    """`x[i]` and `x[a:b]` in loops: their integers differ each time, so no cache would help."""
    template = _row_templates.get((func, len(args)))
    if template is None or not all(type(a) is int for a in args[1:]):
        return None
    source = args[0]
    found = (select if func is _SELECT else slice_)(source._layout, source._offset, args)
    if found is None:
        return None
    if template not in session.known:
        session.define(template)
    command[0] = template
    identity = command[1] = session.new_id()
    session.buffer.append(command)
    if len(session.buffer) >= session.limit:
        session.flush()
    return wrap(found[0], identity, session, found[1], leaves)


_slow = SlowPath(RemoteTensor, wrap)
_row_templates: dict[tuple[Any, int], int] = {
    (_SELECT, 3): dispatch.template("aten.select.int", ["r", "d", "d"]),
    (_SLICE, 4): dispatch.template("aten.slice.Tensor", ["r", "d", "d", "d"]),
    (_SLICE, 5): dispatch.template("aten.slice.Tensor", ["r", "d", "d", "d", "d"]),
}
