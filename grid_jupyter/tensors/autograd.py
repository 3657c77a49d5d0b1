"""Autograd of remote tensors: it runs where the values are; here are only the flags that torch's users look at."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from grid_jupyter.errors import RemoteOperationError
from grid_jupyter.ops.shapes import Layout
from grid_jupyter.tensors.session import Session
from grid_jupyter.wire import commands

LEAVES: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

RETURNS_POINTER_FROM_BACKWARD: dict[str, bool] = {}
"""TorchHook sets "on": there, backward() returned a pointer."""


class Autograd:
    """What RemoteTensor answers of requires_grad, grad and backward."""

    dtype: torch.dtype
    numel: Callable[[], int]
    _ref: Any
    _layout: Layout
    _leaves: frozenset[int] | None
    _grad_pointer: Any
    _make: Callable[..., Any]

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

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """As torch's: the gradient accumulates at the location."""
        identity = self._ref.id
        if requires_grad and self._leaves is None:
            if not (self.dtype.is_floating_point or self.dtype.is_complex):
                raise RuntimeError("only Tensors of floating point and complex dtype can require gradients")
            self._ref.session.buffer.append([commands.REQUIRE_GRAD, identity, True])
            self._leaves = frozenset((identity,))
            LEAVES[identity] = self
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
        LEAVES[identity] = self

    @property
    def grad(self) -> Any:
        """A pointer to the gradient, or None before backward()."""
        if self._grad_pointer is True:
            session = self._ref.session
            identity = session.new_id()
            session.buffer.append([commands.GRAD_OF, identity, self._ref.id])
            self._grad_pointer = self._make(self._layout, identity, session)
        return self._grad_pointer

    @grad.setter
    def grad(self, value: Any) -> None:
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
        number = -session.new_id()
        session.sites.note(number, sys._getframe(1))
        session.buffer.append(
            [
                commands.BACKWARD, self._ref.id, 0 if seed_ref is None else seed_ref.id, bool(retain), create_graph,
                number,
            ]
        )  # fmt: skip
        if session.traced:
            session.traced.get(threading.get_ident(), set()).update(self._leaves)
        for identity in self._leaves:
            leaf = LEAVES.get(identity)
            if leaf is not None and leaf._grad_pointer is None:
                leaf._grad_pointer = True
        if len(session.buffer) >= session.limit:
            session.flush()
        return self if RETURNS_POINTER_FROM_BACKWARD.get("on") else None

    @staticmethod
    def _local_to_remote(gradient: Any, session: Session) -> Any:
        if gradient is None:
            return None
        return gradient._ref if isinstance(gradient, Autograd) else session.put(gradient)

    def register_hook(self, hook: Any) -> NoReturn:
        """Refused: gradients are computed elsewhere, where no code of ours may run."""
        raise RemoteOperationError("hooks do not run on remote gradients; read .grad after backward()")


def gradients(
    outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None, create_graph: bool = False
) -> tuple[Any, ...]:
    """torch.autograd.grad for remote tensors: one command."""
    outs: list[Any] = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    ins: list[Any] = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    seeds: list[Any] = [None] * len(outs)
    if grad_outputs is not None:
        seeds = [grad_outputs] if isinstance(grad_outputs, torch.Tensor) else list(grad_outputs)
    session = outs[0]._ref.session
    held = [Autograd._local_to_remote(one, session) for one in seeds]
    identities = [session.new_id() for _ in ins]
    session.sites.note(identities[0] if identities else 0, sys._getframe(1))
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
    return tuple(i._make(i._layout, identity, session, 0, leaves) for i, identity in zip(ins, identities, strict=True))
