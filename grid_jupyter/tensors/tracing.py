"""A trace: what one call of a function sends to a session, in the form that a recording of it would have.

The call really runs: its commands go out as always, and a tap on the session's buffer notes those of the
calling thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from grid_jupyter.errors import NotRecordableError
from grid_jupyter.ops.kernels import kernel, overload
from grid_jupyter.tensors.session import Session, sessions
from grid_jupyter.tensors.stream import TEMPLATES, references
from grid_jupyter.wire import commands, frames

Noted = tuple[list[Any], bool]
"""A command, and whether gradients were on when it was given."""
_UNSEEN = frozenset({commands.DEFINE, commands.FREE, commands.GRAD_MODE, commands.FORGET})
_MOST_SHOWN = 60


class _Tap:
    """Takes the place of a session's buffer while threads are traced. Commands go on to where they went before."""

    def __init__(self, behind: list[Any]) -> None:
        self.behind = behind
        self.noted: dict[int, list[Noted]] = {}

    def append(self, command: list[Any]) -> None:
        self.behind.append(command)
        noted = self.noted.get(threading.get_ident())
        if noted is not None:
            noted.append((command, torch.is_grad_enabled()))

    def __len__(self) -> int:
        return len(self.behind)

    def __getitem__(self, part: slice) -> list[Any]:
        return self.behind[part]

    def __delitem__(self, part: slice) -> None:
        del self.behind[part]


class Watch:
    """What a traced call does besides sending commands: the modules that it calls, the optimisers that step."""

    def __init__(self) -> None:
        self.sessions: dict[Session, list[Noted]] = {}
        self.modules: dict[torch.nn.Module, bool] = {}
        self.optimizers: dict[torch.optim.Optimizer, Any] = {}
        self.reached: set[int] = set()
        self._thread = threading.get_ident()

    def module(self, module: torch.nn.Module, *_: Any) -> None:
        """A hook of torch: the module is about to run."""
        if threading.get_ident() == self._thread:
            self.modules.setdefault(module, module.training)

    def optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """A hook of torch: the optimiser is about to step."""
        if threading.get_ident() == self._thread:
            self.optimizers.setdefault(optimizer, settings(optimizer))


def settings(optimizer: torch.optim.Optimizer) -> Any:
    """The numbers that an optimiser takes from Python at each step, such as its learning rate."""
    return [
        (len(group["params"]), [_plain(value) for name, value in group.items() if name != "params"])
        for group in optimizer.param_groups
    ]


_NUMBERS = frozenset({bool, int, float, type(None)})
"""What most settings are, which is quicker to see than that they are no tensors."""


def _plain(value: Any) -> Any:
    if type(value) in _NUMBERS or not isinstance(value, torch.Tensor):
        return value
    return id(value) if hasattr(value, "_ref") else value.tolist()


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """Trace what the calling thread does within the block, on all sessions of this process."""
    seen, thread = Watch(), threading.get_ident()
    watched = sessions()
    handles = [
        register_module_forward_pre_hook(seen.module),
        register_optimizer_step_pre_hook(seen.optimizer),
    ]
    taps = [(session, _open(session, thread, seen.reached)) for session in watched]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for session, tap in taps:
            noted = _close(session, tap, thread)
            if any(command[0] not in _UNSEEN for command, _ in noted):
                seen.sessions[session] = noted


def _open(session: Session, thread: int, reached: set[int]) -> _Tap:
    with session.lock:
        buffer: Any = session.buffer
        if type(buffer) is not _Tap:
            session.buffer = buffer = _Tap(buffer)  # type: ignore[assignment]
        buffer.noted[thread] = []
        session.traced[thread] = reached
        tap: _Tap = buffer
        return tap


def _close(session: Session, tap: _Tap, thread: int) -> list[Noted]:
    with session.lock:
        session.traced.pop(thread, None)
        noted = tap.noted.pop(thread)
        # where the session was lost meanwhile it has another buffer; a thread that still holds the tap may use it
        if not tap.noted and session.buffer is tap:  # type: ignore[comparison-overlap]
            session.buffer = tap.behind
        return noted


class Script(NamedTuple):
    """The commands of a trace on slots: 1 … for `captured`, then the inputs, then the results in order.

    `told` is the same for the Worker: there a result's slot is the id that it had, by which a failure is traced to
    its line (sites.py).
    """

    captured: list[int]
    inputs: int
    body: list[list[Any]]
    told: list[list[Any]]
    slots: dict[int, int]  # id → slot
    seeds: int
    roots: dict[int, int]  # ids of views of an input → its id


def script(noted: list[Noted], inputs: list[int], returned: list[int], grad_mode: bool) -> Script:
    """The normal form of a trace that began in that grad mode. Raises NotRecordableError."""
    kept = _without_idle([one for one in noted if one[0][0] not in _UNSEEN], returned)
    made = dict.fromkeys(identity for command, _ in kept for identity in _ids(command, _results(command)))
    operands = [identity for command, _ in kept for identity in _ids(command, _operands(command))]
    outside = dict.fromkeys([*operands, *returned])
    captured = [identity for identity in outside if identity not in made and identity not in inputs]
    slots = {identity: slot for slot, identity in enumerate([*captured, *inputs, *made], 1)}
    inside = slots | {identity: identity for identity in made}
    body: list[list[Any]] = []
    told: list[list[Any]] = []
    roots: dict[int, int] = {identity: identity for identity in inputs}
    seeds = 0
    for command, grad in kept:
        if command[0] >= 0 and grad is not grad_mode:
            body.append([commands.GRAD_MODE, grad])
            told.append(body[-1])
            grad_mode = grad
        if command[0] == commands.SEED:
            body.append([commands.SEED])
            told.append(body[-1])
            seeds += 1
            continue
        if command[0] >= 0:
            _follow_views(command, roots, inputs, captured)
        body.append(_placed(command, slots))
        told.append(_placed(command, inside))
        if command[0] >= 0 and type(command[1]) is int and command[1] <= 0:
            body[-1][1], told[-1][1] = 0, command[1]  # the number by which its failure is told
        elif command[0] in (commands.BACKWARD, commands.BACKWARD_MANY):
            body[-1][-1] = 0
    return Script(captured, len(inputs), body, told, slots, seeds, roots)


def _placed(command: list[Any], slots: dict[int, int]) -> list[Any]:
    places = {*_results(command), *_operands(command)}
    return [_on_slots(part, slots) if at in places else part for at, part in enumerate(command)]


def _without_idle(noted: list[Noted], returned: list[int]) -> list[Noted]:
    """Without looks at gradients that nothing uses: torch looks at each of them before it lets go of it."""
    for command, _ in noted:
        if command[0] < 0 and command[0] not in commands.IN_RECORDINGS:
            raise NotRecordableError("values of the session are all forgotten inside: do that outside of it")
    used = {*returned, *(identity for command, _ in noted for identity in _ids(command, _operands(command)))}
    return [one for one in noted if one[0][0] != commands.GRAD_OF or one[0][1] in used]


def _on_slots(part: Any, slots: dict[int, int]) -> Any:
    if type(part) is list:
        return [slots[identity] if identity > 0 else 0 for identity in part]
    return slots[part] if part > 0 else 0


def _ids(command: list[Any], places: tuple[int, ...]) -> list[int]:
    found: list[int] = []
    for place in places:
        part = command[place]
        found += [identity for identity in (part if type(part) is list else [part]) if identity > 0]
    return found


def _results(command: list[Any]) -> tuple[int, ...]:
    return (1,) if command[0] >= 0 else commands.IN_RECORDINGS[command[0]][0]


def _operands(command: list[Any]) -> tuple[int, ...]:
    return references(command[0]) if command[0] >= 0 else commands.IN_RECORDINGS[command[0]][1]


def _follow_views(command: list[Any], roots: dict[int, int], inputs: list[int], captured: list[int]) -> None:
    name = TEMPLATES[command[0]][0]
    places = references(command[0])
    if not places:
        return
    source = command[places[0]]
    if torch.Tag.inplace_view in overload(name).tags and (source in inputs or source in captured):
        raise NotRecordableError(
            f"{name} changes the shape of a tensor from outside, at each call: work on a view of it"
        )
    if 0 in kernel(name).views and source in roots:
        for identity in _ids(command, (1,)):
            roots[identity] = roots[source]


# ------------------------------------------------------------------ comparing two traces


def difference(before: Script, after: Script) -> str:
    """What two traces do differently, in words; empty if nothing."""
    for old, new in zip(before.body, after.body, strict=False):
        if frames.encode(old) == frames.encode(new):
            continue
        if old[0] != new[0] or len(old) != len(new):
            return f"{_name(new)} runs at one call where {_name(old)} ran at the one before"
        if new[0] == commands.PUT:
            return (
                "a tensor of this side, sent from inside, has other values at each call: pass it as an argument, or "
                "keep it on the Node"
            )
        number, other = next((pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]), (0, 0))
        if _operands(new) and any(old[place] != new[place] for place in _operands(new)):
            return f"{_name(new)} takes another tensor at each call"
        return f"{_name(new)} takes another number at each call ({_shown(number)}, then {_shown(other)})"
    if len(before.body) != len(after.body):
        return f"it sent {len(before.body)} commands at one call and {len(after.body)} at the next"
    if before.captured != after.captured:
        return (
            "it takes a remote tensor from outside that is another one at each call: pass it as an argument, and "
            "return what the next call needs"
        )
    return ""


def _shown(number: Any) -> str:
    text = repr(number)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"


def _name(command: list[Any]) -> str:
    if command[0] >= 0:
        return str(TEMPLATES[command[0]][0])
    names = {
        commands.PUT: "sending a tensor", commands.SEED: "a random operation", commands.BACKWARD: "backward()",
        commands.BACKWARD_MANY: "backward()",
        commands.GRAD_MODE: "no_grad", commands.REQUIRE_GRAD: "requires_grad_()", commands.RETAIN_GRAD: "retain_grad()",
        commands.GRAD_OF: "reading .grad", commands.SET_GRAD: "setting .grad",
    }  # fmt: skip
    return names.get(command[0], "autograd.grad")
