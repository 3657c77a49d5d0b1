"""Autograd of remote tensors: it runs where the values are; here are only the flags that torch's users look at."""

from __future__ import annotations

import functools
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch.utils.weak import WeakIdKeyDictionary

from grid_jupyter.errors import RemoteOperationError, TensorsNotCollocatedException
from grid_jupyter.ops.shapes import Layout, layout, layout_of
from grid_jupyter.tensors.session import Session
from grid_jupyter.wire import commands

RETURNS_POINTER_FROM_BACKWARD: dict[str, bool] = {}
"""TorchHook sets "on": there, backward() returned a pointer."""

_accumulated: Any = WeakIdKeyDictionary()  # leaf → functions to call with it after a backward pass
# the attributes as torch's C++ has them, which know nothing of the graph elsewhere
_set_data: Any = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_flag: Any = torch.Tensor.requires_grad
_flag_is_leaf: Any = torch.Tensor.is_leaf


class GraphNode:
    """What stands for `grad_fn` on this side; the graph itself is where the values are."""

    next_functions: tuple[Any, ...] = ()
    metadata: dict[str, Any] = {}  # noqa: RUF012 - torch's nodes have it, ours is always empty

    def name(self) -> str:
        """As torch's nodes have one."""
        return "RemoteBackward"

    def register_hook(self, hook: Any) -> NoReturn:
        """Refused, as hooks on tensors are."""
        raise RemoteOperationError("hooks do not run on remote gradients; read .grad after backward()")

    register_prehook = register_hook

    def __repr__(self) -> str:
        return "<RemoteBackward>"


_NODE = GraphNode()


class Autograd:
    """What RemoteTensor answers of requires_grad, grad and backward."""

    dtype: torch.dtype
    shape: torch.Size
    numel: Callable[[], int]
    detach: Callable[[], Any]
    _ref: Any
    _layout: Layout
    _offset: int
    _leaves: frozenset[int] | None
    _root: Any
    _grad_pointer: Any
    _make: Callable[..., Any]

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can reach this value, or passes through it."""
        if self._leaves is None and _flag.__get__(self) and _flag_is_leaf.__get__(self):
            _flag.__set__(self, False)  # torch.zeros_like(x, requires_grad=True) says so behind our back
            self._become_leaf()
        return self._leaves is not None

    @requires_grad.setter
    def requires_grad(self, on: bool) -> None:
        self.requires_grad_(on)

    @property
    def is_leaf(self) -> bool:
        """Whether gradients accumulate here."""
        return self._leaves is None or self._leaves == {self._ref.id}

    @property
    def grad_fn(self) -> GraphNode | None:
        """None for a leaf, else something that stands for the graph, which is where the values are."""
        return None if self.is_leaf else _NODE

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """As torch's: the gradient accumulates at the location."""
        if requires_grad and self._leaves is None:
            if not (self.dtype.is_floating_point or self.dtype.is_complex):
                raise RuntimeError("only Tensors of floating point and complex dtype can require gradients")
            self._become_leaf()
        elif not requires_grad and self._leaves is not None:
            if not self.is_leaf:
                raise RuntimeError("you can only change requires_grad flags of leaf variables; use .detach()")
            self._ref.session.buffer.append([commands.REQUIRE_GRAD, self._ref.id, False])
            self._leaves = None
        return self

    def _become_leaf(self) -> None:
        identity, session = self._ref.id, self._ref.session
        session.buffer.append([commands.REQUIRE_GRAD, identity, True])
        self._leaves = frozenset((identity,))
        session.leaves[identity] = self

    def retain_grad(self) -> None:
        """As torch's, for a value that is not a leaf."""
        if self._leaves is None:
            raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
        if self.is_leaf:
            return
        identity, session = self._ref.id, self._ref.session
        session.buffer.append([commands.RETAIN_GRAD, identity])
        self._leaves = self._leaves | {identity}
        session.leaves[identity] = self

    @property
    def retains_grad(self) -> bool:
        """Whether this is not a leaf and keeps its gradient all the same."""
        return self._leaves is not None and not self.is_leaf and self._ref.id in self._leaves

    @property
    def grad(self) -> Any:
        """A pointer to the gradient, or None before backward()."""
        found = self._grad_pointer
        if found is True or type(found) is frozenset:  # there is one, which nobody has asked for yet
            session = self._ref.session
            identity = session.new_id()
            session.buffer.append([commands.GRAD_OF, identity, self._ref.id])
            of = gradient_layout(self._layout, leaf=self.is_leaf)
            self._grad_pointer = self._make(of, identity, session, 0, None if found is True else found)
        return self._grad_pointer

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"assigned grad expected to be a Tensor or None but got grad of {type(value).__name__}")
            if value.shape != self.shape or value.dtype != self.dtype:
                raise RuntimeError(
                    f"a gradient of shape {tuple(value.shape)} and {value.dtype} does not fit a tensor of shape "
                    f"{tuple(self.shape)} and {self.dtype}"
                )
            if not isinstance(value, Autograd):
                value = self._make(layout_of(value.contiguous()), upload(value, self._ref.session))
        self._assign_grad(value)

    @grad.deleter
    def grad(self) -> None:
        self._assign_grad(None)

    def _assign_grad(self, value: Any) -> None:
        held = None if value is None else upload(value, self._ref.session)
        self._ref.session.buffer.append([commands.SET_GRAD, self._ref.id, 0 if held is None else held.id])
        self._grad_pointer = value

    @property
    def data(self) -> Any:
        """The same value outside of the graph."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        """Show another value from here on. Graphs made before keep the old one, which no client can change."""
        if not isinstance(value, Autograd):
            raise TypeError("the data of a remote tensor is a remote tensor: send the values first")
        if not self.is_leaf:
            raise RuntimeError("the data of a value that was computed cannot be replaced; compute a new one")
        requires, kept = self.requires_grad, self.grad
        fresh = value.detach()
        _set_data(self, fresh)  # shape, strides and dtype
        self._ref, self._layout, self._offset, self._root = fresh._ref, fresh._layout, fresh._offset, fresh._root
        session, self._leaves = self._ref.session, None
        if requires:
            self._become_leaf()
            self._grad_pointer = None
            if kept is not None and kept.shape == self.shape and kept.dtype == self.dtype:
                self._assign_grad(kept)
            else:
                self._grad_pointer = kept  # torch's modules change its data next
        for leaf in list(session.leaves.values()):
            if leaf._grad_pointer is self:
                leaf._assign_grad(self)

    def detach_(self) -> Any:
        """Leave the graph: from here on this is a leaf that requires no gradient."""
        if self._root is not None:
            raise RuntimeError("Can't detach views in-place: use detach() instead")
        self._ref, self._leaves, self._grad_pointer = self.detach()._ref, None, None
        return self

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> Any:
        """Compute gradients where the values are: one command. With the hook, returns a pointer, as 0.2.9 did."""
        if inputs is not None:
            torch.autograd.backward(self, gradient, retain_graph, create_graph, inputs=inputs)  # type: ignore[arg-type]
            return self if RETURNS_POINTER_FROM_BACKWARD.get("on") else None
        if self._leaves is None:
            raise RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn")
        if gradient is None and self.numel() != 1:
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        if gradient is not None and gradient.shape != self.shape:
            raise RuntimeError(
                f"Mismatch in shape: grad_output[0] has a shape of {gradient.shape} and output[0] has a shape of "
                f"{self.shape}."
            )
        session = self._ref.session
        held = upload(gradient, session)
        retain = create_graph if retain_graph is None else retain_graph
        number = -session.new_id()
        session.sites.note(number, sys._getframe(1))
        session.buffer.append(
            [commands.BACKWARD, self._ref.id, 0 if held is None else held.id, bool(retain), create_graph, number]
        )
        reached = self._leaves
        if create_graph and isinstance(gradient, Autograd) and gradient._leaves is not None:
            reached |= gradient._leaves
        after_backward(session, self._leaves, reached, create_graph)
        return self if RETURNS_POINTER_FROM_BACKWARD.get("on") else None

    def register_hook(self, hook: Any) -> NoReturn:
        """Refused: gradients are computed elsewhere, where no code of ours may run."""
        raise RemoteOperationError("hooks do not run on remote gradients; read .grad after backward()")

    def register_post_accumulate_grad_hook(self, hook: Callable[[Any], None]) -> Any:
        """As torch's: `hook(self)` is called after each backward pass that reaches this leaf, when it was asked for."""
        if self._leaves is None or not self.is_leaf:
            raise RuntimeError("post accumulate grad hooks are for leaf tensors that require grad")
        hooks = _accumulated.setdefault(self, OrderedDict())
        handle = torch.utils.hooks.RemovableHandle(hooks)
        hooks[handle.id] = hook
        return handle


def after_backward(session: Session, reached: Iterable[int], leaves: frozenset[int], create: bool) -> None:
    """Note where a backward pass that is in the stream leaves gradients; `leaves` are those of the gradients."""
    if session.traced:
        session.traced.get(threading.get_ident(), set()).update(reached)
    hooked: list[Any] = []
    for identity in reached:
        leaf = session.leaves.get(identity)
        if leaf is None:
            continue
        if create:
            leaf._grad_pointer = leaves  # autograd adds them up in a new tensor, which has a graph
        elif leaf._grad_pointer is None:
            leaf._grad_pointer = True
        if _accumulated and leaf in _accumulated:
            hooked.append(leaf)
    if len(session.buffer) >= session.limit:
        session.flush()
    for leaf in hooked:
        for hook in list(_accumulated[leaf].values()):
            hook(leaf)


def upload(gradient: Any, session: Session) -> Any:
    """The reference of a gradient in that session; a local one is sent there."""
    if gradient is None:
        return None
    if not isinstance(gradient, Autograd):
        return session.put(gradient)
    if gradient._ref.session is not session:
        raise TensorsNotCollocatedException("the gradient is in another place than the tensor that it belongs to")
    return gradient._ref


@functools.lru_cache(4096)
def gradient_layout(of: Layout, rows: tuple[int, ...] = (), leaf: bool = True) -> Layout:
    """How the Worker lays out a gradient: as its tensor if that is dense, else (or with `rows` of them) contiguous."""
    like = torch.empty_strided(of.shape, of.stride, dtype=of.dtype, device="meta")
    if leaf and not rows and torch.empty_like(like).stride() == like.stride():
        return of
    made = torch.empty((*rows, *of.shape), dtype=of.dtype, device="meta")
    return layout(made.shape, made.stride(), of.dtype)


def spread(target: Any, leaves: frozenset[int]) -> None:
    """A change in place brings its graph to the tensor, and to the one that it is a view of."""
    target._leaves = leaves
    root = target._root
    if root is not None:
        root._leaves = leaves if root._leaves is None else root._leaves | leaves


def follow(old: Any, new: Any) -> None:
    """Let `new`, another pointer to the same value, be the one whose .grad backward() fills in."""
    replace(old, new)
    if old._leaves is not None:
        new._grad_pointer = None if old._grad_pointer is None else True


def replace(old: Any, new: Any) -> None:
    """Where `old` was known as the pointer of a leaf, `new` is from now on."""
    for identity in new._leaves or ():
        leaves = new._ref.session.leaves
        if leaves.get(identity) is old:
            leaves[identity] = new
