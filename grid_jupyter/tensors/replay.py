"""What a traced call came to, and its replay: one short command that does the same work again."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from grid_jupyter.errors import GridError, NotRecordableError
from grid_jupyter.ops.shapes import Layout
from grid_jupyter.tensors.dispatch import draw_seed
from grid_jupyter.tensors.remote import RemoteTensor, wrap
from grid_jupyter.tensors.session import Session
from grid_jupyter.tensors.tracing import Script, settings
from grid_jupyter.wire import commands, frames
from grid_jupyter.wire.limits import MAX_HEADER_BYTES, MAX_RECORDED_COMMANDS, MAX_RECORDINGS

_PAUSE_S = 0.0005
"""A caller that did something else for so long may have left the Worker idle."""
_PATIENCE_S = 0.003
"""How long runs wait for others to be sent with."""
_LONGEST = MAX_HEADER_BYTES - 1024  # bytes of a definition, which fills a frame of its own


class _Desk:
    """What a session's recordings share: numbers, how many there are, and when runs were asked for and sent."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.kept: dict[int, int] = {}  # number → commands
        self.waiting = 0  # commands of runs that were not sent yet
        self.sent = 0.0
        self.called = 0.0


_desks: weakref.WeakKeyDictionary[Session, _Desk] = weakref.WeakKeyDictionary()


class Result(NamedTuple):
    """A tensor that the function returns, which is not one of its arguments."""

    slot: int  # as the Worker was told
    layout: Layout
    offset: int
    root: int  # the argument that it is a view of, or -1
    leaves: frozenset[int] | None  # from outside
    inputs: tuple[int, ...]  # arguments whose leaves it has, too
    own: bool  # it is a leaf itself
    grad: Any
    root_outside: Any  # the tensor from outside that it is a view of


class Returned(NamedTuple):
    """What the function gives: results, and the structure that they are put into."""

    results: list[Result]
    build: Callable[[list[Any], list[Any]], Any]
    shown: Any  # to compare two traces by


class Trace(NamedTuple):
    """One traced call in the form that is compared."""

    script: Script
    returned: Returned
    guards: Guards
    effects: dict[int, Any]  # leaf from outside → its gradient pointer afterwards
    reached: tuple[int, ...]  # arguments that the backward pass reached


class Guards(NamedTuple):
    """What Python looked at while a call was traced, which must be the same for its recording to do."""

    modules: list[tuple[torch.nn.Module, bool]]
    optimizers: list[tuple[torch.optim.Optimizer, Any]]
    without_grad: dict[int, bool]
    leaves: Any  # of the session, by id

    def hold(self) -> bool:
        """Whether all of that is as it was."""
        for module, training in self.modules:
            if module.training is not training:
                return False
        for optimizer, numbers in self.optimizers:
            if settings(optimizer) != numbers:
                return False
        for identity, without in self.without_grad.items():
            leaf = self.leaves.get(identity)
            if leaf is not None and (leaf._grad_pointer is None) is not without:
                return False
        return True


class Replay:
    """A recording that its session's Worker knows."""

    def __init__(self, session: Session, trace: Trace) -> None:
        self.session = session
        self.trace = trace
        self._desk = desk = _desks.setdefault(session, _Desk())
        self.size = len(trace.script.body)
        number = next(desk.numbers)
        outs = [result.slot for result in trace.returned.results]
        told = [commands.RECORD, number, trace.script.captured, trace.script.inputs, trace.script.told, outs]
        length = len(frames.encode([told]))
        if length > _LONGEST:
            raise NotRecordableError(
                f"it sends {self.size:,} commands of {length >> 10:,} KiB, and a recording has {_LONGEST >> 10:,} KiB "
                f"at most: record a part of it, such as one step"
            )
        if len(desk.kept) >= MAX_RECORDINGS or sum(desk.kept.values()) + self.size > MAX_RECORDED_COMMANDS:
            raise NotRecordableError(
                f"this session keeps {MAX_RECORDINGS} recordings of {MAX_RECORDED_COMMANDS:,} commands in all, and "
                f"that is what it has: drop recorded functions that you do not need, or .forget() theirs"
            )
        with session.lock:
            session.flush()
            session.buffer.append(told)
            session.flush()
        self.number = number
        desk.kept[number] = self.size

    def run(self, tensors: list[Any]) -> Any:
        """Send the run; what the function returns."""
        session, trace = self.session, self.trace
        grad = torch.is_grad_enabled()
        if grad is not session.grad_mode:
            session.set_grad_mode(grad)
        results = trace.returned.results
        fresh = [session.new_id() for _ in results]
        seeds = [draw_seed() for _ in range(trace.script.seeds)]
        session.buffer.append([commands.RUN, self.number, [tensor._ref.id for tensor in tensors], fresh, seeds])
        for identity, pointer in trace.effects.items():
            leaf = session.leaves.get(identity)
            if leaf is not None:
                leaf._grad_pointer = pointer
        for position in trace.reached:
            for identity in tensors[position]._leaves or ():
                leaf = session.leaves.get(identity)
                if leaf is not None:
                    leaf._grad_pointer = True
        made = [self._pointer(result, identity, tensors) for result, identity in zip(results, fresh, strict=True)]
        self._flush()
        return trace.returned.build(made, tensors)

    def _pointer(self, result: Result, identity: int, tensors: list[Any]) -> RemoteTensor:
        leaves = result.leaves
        for position in result.inputs:
            leaves = (leaves or frozenset()) | (tensors[position]._leaves or frozenset())
        if result.own:
            leaves = (leaves or frozenset()) | {identity}
        offset = result.offset + (tensors[result.root]._offset if result.root >= 0 else 0)
        pointer = wrap(result.layout, identity, self.session, offset, leaves)
        pointer._root = result.root_outside
        if result.root >= 0:
            given = tensors[result.root]
            pointer._root = given if given._root is None else given._root
        if result.own:
            self.session.leaves[identity] = pointer
            pointer._grad_pointer = result.grad
        return pointer

    def _flush(self) -> None:
        """Send at once where the Worker may be idle; where steps come quickly, several go together."""
        desk, now = self._desk, time.monotonic()
        desk.waiting += self.size
        if desk.waiting >= self.session.limit or now - desk.called >= _PAUSE_S or now - desk.sent >= _PATIENCE_S:
            desk.waiting = 0
            self.session.flush()
            now = desk.sent = time.monotonic()
        desk.called = now

    def __del__(self) -> None:
        try:
            del self._desk.kept[self.number]
            self.session.buffer.append([commands.FORGET, self.number])
        except (AttributeError, KeyError, TypeError, GridError):  # it was never defined, or its session is gone
            pass
