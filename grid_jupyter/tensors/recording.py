"""Recordings: a function of remote tensors whose commands are sent once, and afterwards run by number.

The first calls really run and are traced (tracing.py). Two that did exactly the same make a recording: from then
on no Python of the function runs, one short command does its work. What Python decides (numbers, modes, layouts)
is checked at each call, as far as it can be seen, and what changed is recorded anew.
"""

from __future__ import annotations

import collections
import copy
import functools
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from grid_jupyter.errors import NotRecordableError, TensorsNotCollocatedException
from grid_jupyter.tensors.calls import Given, Returns, collect
from grid_jupyter.tensors.remote import RemoteTensor, send
from grid_jupyter.tensors.replay import Guards, Replay, Trace
from grid_jupyter.tensors.session import Session
from grid_jupyter.tensors.tracing import Watch, difference, script, watch
from grid_jupyter.wire import commands

P = ParamSpec("P")
R = TypeVar("R")

_tracing = threading.local()

MOST_KEPT = 16
"""Recordings of one function that are kept: one for each layout of its arguments, and each setting."""
_MOST_TRACES = 64


class Recording(Generic[P, R]):
    """A function that is recorded: `recording(function)` makes it. Call it as the function itself."""

    def __init__(self, function: Callable[P, R], *, steady: bool = False) -> None:
        """`steady`: what it does depends on nothing but its arguments, so that one call is enough to record it."""
        functools.update_wrapper(self, function)
        self._function = function
        self._steady = steady
        self._lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """Drop what was recorded; the next calls are traced again."""
        with self._lock:
            self._replays: collections.OrderedDict[Any, list[Replay]] = collections.OrderedDict()
            self._traces: dict[Any, tuple[int, Trace | None]] = {}
            self._refused: dict[Any, str] = {}
            self._optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
            self._session: weakref.ref[Session] | None = None
            self._warned = False

    @property
    def recorded(self) -> int:
        """How many recordings there are: one for each layout of the arguments, and each setting."""
        return sum(len(replays) for replays in self._replays.values())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Trace the call, or run what was recorded. Raises NotRecordableError, and what the function raises."""
        if getattr(_tracing, "on", False):
            return self._function(*args, **kwargs)  # part of another recording
        home = self._home()
        given = Given(args, kwargs, home)
        replay = self._replay(given, home)
        if replay is None:
            with self._lock:
                replay = self._replay(given, home)  # another thread may just have made it
                if replay is None:
                    return self._trace(given)
        result: R = replay.run(given.tensors)
        return result

    def _replay(self, given: Given, home: Session | None) -> Replay | None:
        for replay in self._replays.get(given.key, ()) if given.session is not None else ():
            is_live = replay.session is home or replay.session.place.session is replay.session
            if is_live and replay.trace.guards.hold():
                return replay
        return None

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a method: each object has recordings of its own."""
        if instance is None:
            return self
        bound = Recording(functools.partial(self._function, instance), steady=self._steady)
        functools.update_wrapper(bound, self._function)
        vars(instance)[self._function.__name__] = bound  # found there from now on
        return bound

    def __deepcopy__(self, memo: dict[int, Any]) -> Recording[P, R]:
        return Recording(copy.deepcopy(self._function, memo), steady=self._steady)

    def __repr__(self) -> str:
        name = getattr(self, "__qualname__", repr(self._function))
        return f"<recording of {name}: {self.recorded or 'not yet'} recorded>"

    def _home(self) -> Session | None:
        """Where local arguments go: the session that the function was seen to use, or the one that took its place."""
        session = self._session() if self._session is not None else None
        found: Session | None = None if session is None else session.place.session
        return found

    # -------------------------------------------------------------- tracing

    def _trace(self, given: Given) -> R:
        if given.key in self._refused:
            raise NotRecordableError(self._refused[given.key])
        self._prune(given.key)
        _keep_counters_there(self._optimizers)
        grad_mode = torch.is_grad_enabled()
        leaves = {} if given.session is None else dict(given.session.leaves)
        without_grad = {identity: leaf._grad_pointer is None for identity, leaf in leaves.items()}
        for leaf in leaves.values():
            if isinstance(leaf._grad_pointer, RemoteTensor) and leaf._grad_pointer._leaves is None:
                leaf._grad_pointer = True  # so that the trace looks at the gradient that is there then
        offsets = [tensor._offset for tensor in given.tensors]
        _tracing.on = True
        try:
            with watch() as seen:
                result = self._function(*given.args, **given.kwargs)
        finally:
            _tracing.on = False
        self._optimizers.update(seen.optimizers)
        session = self._session_of(seen, given)
        if given.session is None:  # from here on it is known where local arguments go
            return result
        try:
            trace = self._made(seen, session, given, result, grad_mode, without_grad, offsets)
            self._compare(session, given.key, trace)
        except NotRecordableError as error:
            self._refused[given.key] = f"{self._name()} cannot be recorded: {error}"
            done = "this call did its work, but what it returned is lost"
            raise NotRecordableError(f"{self._refused[given.key]} ({done})") from None
        return result

    def _session_of(self, seen: Watch, given: Given) -> Session:
        if len(seen.sessions) > 1:
            places = " and ".join(str(session.place.id) for session in seen.sessions)
            raise NotRecordableError(f"{self._name()} computes on {places}: a recording belongs to one place")
        if not seen.sessions:
            raise NotRecordableError(
                f"{self._name()} computed nothing on remote tensors, so there is nothing to record"
            )
        (session,) = seen.sessions
        if given.session is not None and given.session is not session:
            raise TensorsNotCollocatedException(
                f"the arguments are on {given.session.place} and {self._name()} computes on {session.place}"
            )
        self._session = weakref.ref(session)
        return session

    def _made(
        self, seen: Watch, session: Session, given: Given, result: Any, grad_mode: bool,
        without_grad: dict[int, bool], offsets: list[int],
    ) -> Trace:  # fmt: skip
        inputs = [tensor._ref.id for tensor in given.tensors]
        pointers: list[Any] = []
        collect(result, pointers)
        if any(pointer._ref.session is not session for pointer in pointers):
            raise NotRecordableError("it returns a tensor of another place")
        if any(type(length) is not int for pointer in pointers for length in pointer._layout.shape):
            raise NotRecordableError(
                "it returns a tensor whose size depends on values, which may be another at each run: return what it "
                "comes to, such as its mean"
            )
        made = script(seen.sessions[session], inputs, [pointer._ref.id for pointer in pointers], grad_mode)
        cleared = {command[1] for command in made.body if command[0] == commands.SET_GRAD}
        slots = {slot: identity for identity, slot in made.slots.items()}
        touched = (seen.reached | {slots[slot] for slot in cleared}) & {*without_grad, *session.leaves}
        outside = [identity for identity in touched if identity in without_grad]
        of_inputs = {
            identity: position for position, tensor in enumerate(given.tensors) for identity in tensor._leaves or ()
        }
        effects = {
            identity: _to_ask_for(session.leaves[identity]._grad_pointer)
            for identity in outside
            if identity not in of_inputs and identity in session.leaves
        }
        guards = Guards(
            list(seen.modules.items()),
            list(seen.optimizers.items()),
            {identity: without_grad[identity] for identity in effects},
            session.leaves,
        )
        returned = Returns(made, given, offsets, of_inputs, set(without_grad)).of(result)
        reached = sorted({of_inputs[identity] for identity in seen.reached if identity in of_inputs})
        return Trace(made, returned, guards, effects, tuple(reached))

    def _compare(self, session: Session, key: Any, trace: Trace) -> None:
        """Record what two calls did alike. Raises NotRecordableError where they should have and did not."""
        count, before = self._traces.get(key, (0, None))
        self._traces[key] = (count + 1, trace)
        if not self._steady and (before is None or before.guards != trace.guards):
            self._warn(count)
            return
        differs = difference(before.script, trace.script) if before is not None else ""
        if not differs and before is not None and before.returned.shown != trace.returned.shown:
            differs = "it returns something else at each call"
        if differs and count < 2:
            return  # the very first call made what the later ones find
        if differs:
            raise NotRecordableError(f"it does not do the same work at each call: {differs}{_advice(trace.guards)}")
        del self._traces[key]
        self._replays.setdefault(key, []).append(Replay(session, trace))
        while self.recorded > MOST_KEPT:
            oldest = next(iter(self._replays))
            del self._replays[oldest][0]
            if not self._replays[oldest]:
                del self._replays[oldest]

    def _prune(self, key: Any) -> None:
        """Forget what belongs to sessions that are gone, and traces that never became recordings."""
        for kept in list(self._replays):
            alive = [one for one in self._replays[kept] if one.session.place.session is one.session]
            if alive:
                self._replays[kept] = alive
            else:
                del self._replays[kept]
        if key not in self._traces and len(self._traces) + len(self._refused) >= _MOST_TRACES:
            self._traces.clear()
            self._refused.clear()
            self._warn(_MOST_TRACES)

    def _warn(self, count: int) -> None:
        if count >= MOST_KEPT and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._name()} was called {count} times and never twice alike, so it is not recorded and runs no "
                f"faster than without: a number among its arguments, a learning rate or a mode changes at every call",
                stacklevel=5,
            )

    def _name(self) -> str:
        return str(getattr(self, "__qualname__", "the function"))


def recording(function: Callable[P, R]) -> Recording[P, R]:
    """Record what `function` does with remote tensors, and run it by one message a call. Also a decorator.

    Meant for what repeats, such as a training step. The first two or three calls run as always and are compared;
    then the Python of the function does not run any more. Arguments may be remote or local tensors (which are sent),
    modules, optimisers, and numbers, texts or None; tensors of another layout, or other numbers, are recorded by
    themselves. What it takes from outside (parameters, state of optimisers) is used as it is at each run.

    Raises NotRecordableError for reads of values inside, for work that differs from call to call, for results
    that are not tensors or constants.
    """
    return Recording(function)


# ------------------------------------------------------------------ optimisers


def _keep_counters_there(optimizers: weakref.WeakSet[torch.optim.Optimizer]) -> None:
    """Send the step counters of fused optimisers to where their parameters are: else each step is a new constant.

    torch makes them on the device that a parameter says it is on.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"] if group.get("fused") else ():
                state = optimizer.state.get(parameter, {})
                counter = state.get("step")
                if isinstance(counter, torch.Tensor) and not isinstance(counter, RemoteTensor):
                    state["step"] = send(counter, parameter._ref.session)


def _to_ask_for(gradient: Any) -> Any:
    """What stands for a gradient after a run, when nobody has asked for it yet (autograd.py)."""
    if isinstance(gradient, RemoteTensor):
        return True if gradient._leaves is None else gradient._leaves
    return gradient


def _advice(guards: Guards) -> str:
    for optimizer, _ in guards.optimizers:
        if any("fused" in group and not group["fused"] for group in optimizer.param_groups):
            name = type(optimizer).__name__
            if name != "SGD":
                return f". {name} counts its steps in Python by default: use {name}(…, fused=True), which does not"
    return ""
