"""One call through the Worker's own executor, and everything that must hold whatever the arguments are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from grid_jupyter.errors import GridError
from grid_jupyter.ops.kernels import kernel
from grid_jupyter.ops.raw import DTYPES, NAMES, to_bytes
from grid_jupyter.wire import commands, frames
from grid_jupyter.worker.executor import Broken, Executor
from grid_jupyter.worker.templates import storage_of

from .arguments import Calls
from .calls import Call, Tensor, encode, operands_of, tensors
from .dice import Dice
from .memory import Arena, Contents, Held, extent, perturb

_FIRST, _RESULT, _SEED, _GRADIENT, _SECOND = (n << 20 for n in range(1, 6))  # ids, far enough apart
_SHOWN = 1 << 16
_ALWAYS_AGAIN = 500  # of further calls a quarter is made twice
_SESSION = 40  # calls in one session
_RAMP = 4096
_MOST_RESULTS = 1 << 14
MARK, _OTHER_MARK = 0xA5, 0x3C
FORWARD, BACKWARD, AGAIN = 1, 2, 3


class Finding(NamedTuple):
    """What went wrong, in a word and a sentence."""

    kind: str
    text: str


class Outcome(NamedTuple):
    """Whether the operation made a result, and what was wrong."""

    ran: bool
    findings: list[Finding]


class Untryable(Exception):
    """An operand that cannot be made, by a client no more than here."""


class _Unsent(Exception):
    """A command that cannot be sent."""


class Bench(NamedTuple):
    """What the trials of a process have in common."""

    arena: Arena
    contents: Contents
    memory_bytes: int


class Trial:
    """All calls of one operation, by number."""

    def __init__(self, calls: Calls, bench: Bench) -> None:
        self._calls = calls
        self._bench = bench
        self._executor = Executor(bench.memory_bytes)
        self._left = _SESSION

    def run(self, index: int, phase: Callable[[int], None]) -> Outcome:
        """Make the call, for a part of those that give a result twice. `phase` is told what is about to be done."""
        call, dice = self._calls.make(index), self._calls.dice
        operands = tensors(call)
        try:
            data = [self._bench.contents.of(operand, dice) for operand in operands]
        except (ValueError, RuntimeError, TypeError):
            return Outcome(False, [])  # an operand that a client could not make either
        again = index < _ALWAYS_AGAIN or index % 4 == 0
        state = dice.getstate() if again else None
        phase(FORWARD)
        try:
            first = self._run(call, operands, data, phase, MARK)
        except (Untryable, MemoryError):
            return Outcome(False, [])
        if not again or not first.shown:
            return Outcome(bool(first.shown), first.findings)
        dice.setstate(state)
        phase(AGAIN)
        perturb(_OTHER_MARK)
        try:
            second = self._run(call, operands, data, phase, _OTHER_MARK)
        except (Untryable, MemoryError):
            return Outcome(True, first.findings)
        finally:
            perturb(MARK)
        findings = first.findings
        for label, shown in first.shown.items():
            if second.shown.get(label, shown) != shown:
                text = f"{label} differs when fresh memory holds something else"
                findings.append(Finding("uninitialised memory", text))
        return Outcome(True, findings)

    def close(self) -> None:
        """Let go of the last session, whose verbs know it: collecting such circles would take longer than the calls."""
        self._executor.verbs.clear()

    def _run(
        self, call: Call, operands: list[Tensor], data: list[bytes], phase: Callable[[int], None], mark: int
    ) -> _Run:
        """The call in a session that a few others were made in, as they are in a client's."""
        self._left -= 1
        if self._left < 0:
            self.close()
            self._executor, self._left = Executor(self._bench.memory_bytes), _SESSION
        made = None
        try:
            made = _Run(self._executor, self._bench.arena, call, operands, self._calls.dice, phase)
            made.go(data, mark)
        finally:
            if made is None or not made.goes_on:
                self._left = 0
            self._executor.earlier()
            self._executor._clear()
        return made


class _Run:
    """One call, in fresh memory that holds a mark."""

    def __init__(
        self, executor: Executor, arena: Arena, call: Call, operands: list[Tensor], dice: Dice,
        phase: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.findings: list[Finding] = []
        self.shown: dict[str, Any] = {}
        self.goes_on = False
        self._executor = executor
        self._arena = arena
        self._call = call
        self._kernel = kernel(call.name)
        self._operands = operands
        self._ids = range(_FIRST, _FIRST + len(operands))
        self._plan = dice
        self._phase = phase
        self._held: list[Held] = []
        self._owners: list[int] = []
        self._versions: list[int] = []
        self._results: list[int] = []
        self._sources = 0

    def go(self, data: list[bytes], mark: int) -> None:
        """Make the call and look at all that it touched. Raises Untryable for one that cannot be made."""
        asked = self._put(data, mark)
        try:
            self._forward(asked)
            if self._results:
                self._backward()
            self.goes_on = True
        except (GridError, MemoryError):
            pass  # ends the session in words: so it should
        except _Unsent as error:
            raise Untryable from error
        except BaseException as error:  # whatever it is, the Worker would end with it
            self._find("escaped", f"{type(error).__name__} left the executor: {str(error)[:200]}")
        self._look_at_operands()
        self._look_at_results()

    def _find(self, kind: str, text: str) -> None:
        self.findings.append(Finding(kind, text))

    # -------------------------------------------------------------- what is done

    def _put(self, data: list[bytes], mark: int) -> list[list[Any]]:
        """Place the operands. Returns commands that ask for the gradients of some."""
        executor, plan, arena = self._executor, self._plan, self._arena
        arena.reset(mark)
        asked: list[list[Any]] = []
        wanting = plan.random() < 0.5
        for number, operand in enumerate(self._operands):
            dtype, owner = DTYPES[operand.dtype], number
            held = arena.place(data[number], dtype, plan.random() < 0.5)
            base = held.base
            if 0 <= operand.alias < number and extent(operand) <= self._held[operand.alias].base.numel():
                base, owner = self._held[operand.alias].base, self._owners[operand.alias]
            self._owners.append(owner)
            self._held.append(held if owner == number else self._held[operand.alias])
            try:
                view = base.as_strided(operand.shape, operand.stride or _dense(operand.shape), operand.offset)
            except (RuntimeError, TypeError, ValueError) as error:
                raise Untryable from error
            identity = _FIRST + number
            if owner == number:
                sources = 0 if plan.random() < 0.2 else 1 << number % 40
                executor.put(identity, view, sources, plan.random() < 0.08)
            else:
                executor.values[identity] = view
                executor.boxes[identity] = executor.boxes[_FIRST + owner]
            self._versions.append(view._version)
            self._sources |= executor.boxes[identity].sources
            if wanting and view.dtype.is_floating_point and plan.random() < 0.6:
                asked.append([commands.REQUIRE_GRAD, identity, True])
        if len(set(self._owners)) < len(self._owners):
            asked = [command for command in asked if self._owners.count(self._owners[command[1] - _FIRST]) == 1]
        return asked

    def _views(self) -> list[torch.Tensor]:
        values = self._executor.values
        return [values[identity] for identity in self._ids]

    def _forward(self, asked: list[list[Any]]) -> None:
        call, facts, executor = self._call, self._kernel, self._executor
        args, kwargs, slots = encode(call, list(self._ids))
        out: Any = _RESULT
        if facts.returns_list:
            out = [_RESULT + i for i in range(min(self._list_length(call), _MOST_RESULTS))]
        elif facts.results > 1:
            out = [_RESULT + i for i in range(facts.results - len(facts.writes))]
        elif facts.results == 0:
            out = 0
        batch = [
            *asked,
            [commands.GRAD_MODE, self._plan.random() < 0.9],
            [commands.DEFINE, 1, call.name, args, kwargs],
            [1, out, *slots],
        ]
        torch.default_generator.manual_seed(11)  # in place of a SEED command, which is slow
        try:
            frame = frames.encode(batch)
        except OverflowError as error:
            raise _Unsent from error  # a number that no frame can hold
        executor.templates.clear()
        executor.feed(frame)
        wanted = [out] if type(out) is int else out
        self._results = [i for i in wanted if i and isinstance(executor.values.get(i), torch.Tensor)]
        if out == 0 and not executor.earlier():
            self.shown["done"] = True
        for number, identity in enumerate(self._results):
            self._show(f"result {number}", identity)

    def _list_length(self, call: Call) -> int:
        """How many results a list-returning call has: what a client's shape inference tells it."""
        if "_foreach" in call.name and call.args and hasattr(call.args[0], "parts"):
            return len(call.args[0].parts)
        try:
            first = self._executor.values[_FIRST]
            numbers = [item.value for item in call.args[1:] if hasattr(item, "value")]
            if "unbind" in call.name:
                return int(first.shape[numbers[0] if numbers else 0])
            if "with_sizes" in call.name or "bin_edges" in call.name:
                return len(numbers[0])
            dim = numbers[1] if len(numbers) > 1 else 0
            return max(1, -(-int(first.shape[dim]) // int(numbers[0])))
        except (LookupError, TypeError, ValueError, ArithmeticError):
            return 2

    def _backward(self) -> None:
        executor, plan = self._executor, self._plan
        leaves = [_FIRST + n for n, v in enumerate(self._views()) if v.requires_grad and v.is_leaf]
        differentiable = [i for i in self._results if executor.values[i].requires_grad]
        if not leaves or not differentiable:
            return
        self._phase(BACKWARD)
        result = plan.choice(differentiable)
        value = executor.values[result]
        if value.numel() > _SHOWN or any(length < 0 for length in value.shape):
            return
        seed = _ramp(value.dtype, value.numel()).clone().reshape(value.shape)
        hostile = plan.random()
        if hostile < 0.05:
            seed = torch.ones(3)
        elif hostile < 0.15:
            seed = torch.full((), plan.choice((float("nan"), 1e38, 1.0))).to(value.dtype).expand(value.shape)
        elif hostile < 0.2 and value.dim() > 1:
            seed = seed.transpose(0, 1).contiguous().transpose(0, 1)
        executor.put(_SEED, seed, 1 << 50)
        self._sources |= 1 << 50
        twice = plan.random() < 0.25
        outs = [_GRADIENT + i for i in range(len(leaves))]
        executor.feed(frames.encode([[commands.GRADIENTS, outs, [result], [_SEED], leaves, True, twice]]))
        made = [i for i in outs if isinstance(executor.values.get(i), torch.Tensor)]
        for number, identity in enumerate(made):
            self._show(f"gradient {number}", identity)
        again = [i for i in made if executor.values[i].requires_grad]
        if twice and again:
            seconds = [_SECOND + i for i in range(len(leaves))]
            ones = torch.ones_like(executor.values[again[0]])
            executor.put(_SEED + 1, ones, 0)
            executor.feed(frames.encode([[commands.GRADIENTS, seconds, [again[0]], [_SEED + 1], leaves, True, False]]))
            for number, identity in enumerate(seconds):
                if isinstance(executor.values.get(identity), torch.Tensor):
                    self._show(f"second gradient {number}", identity)
        self._results += made

    def _show(self, label: str, identity: int) -> None:
        """What a reader would get."""
        found = self._executor.read(identity)
        if isinstance(found, Broken):
            return
        value = found.tensor
        if value.layout != torch.strided or not value.is_cpu or value.is_quantized:
            self._find("not a dense tensor", f"{label} is {value.layout} {value.dtype} on {value.device}")
            return
        if value.dtype not in NAMES:
            return  # float16 and a complex number make a dtype that never leaves
        self._executor.layouts((identity,))
        if value.numel() > _SHOWN:
            self.shown[label] = tuple(value.shape)
            return
        try:
            self.shown[label] = (tuple(value.shape), value.dtype, bytes(to_bytes(value)))
        except (RuntimeError, MemoryError, ValueError):
            self.shown[label] = tuple(value.shape)

    # -------------------------------------------------------------- what must hold

    def _look_at_operands(self) -> None:
        for number, held in enumerate(self._held):
            if self._owners[number] == number and not held.untouched():
                self._look_at(number, held)

    def _look_at(self, number: int, held: Held) -> None:
        """An operand that is another than before, or something beside it."""
        if held.trespassed():
            self._find("wrote outside", f"memory beside operand {number} was changed")
        if not held.changed():
            return
        box = self._executor.boxes[_FIRST + number]
        if box.frozen:
            self._find("changed published data", f"operand {number}")
        if number not in {self._owners[n] for n in _slots_of(self._call, self._kernel.mutates)}:
            self._find("undeclared write", f"operand {number} was changed")
        if self._sources & ~(1 << 50) & ~box.sources:
            self._find("lost lineage", f"operand {number} was written to and does not derive from all others")
        group = [n for n, owner in enumerate(self._owners) if owner == number]
        views = self._views()
        if not any(views[n]._version > self._versions[n] for n in group):
            self._find("hidden write", f"operand {number} was written to without a new version")

    def _look_at_results(self) -> None:
        if not self._results:
            return
        executor = self._executor
        boxes = [(value, executor.boxes[i], *_span(value)) for i, value in zip(self._ids, self._views(), strict=True)]
        of_operands = self._sources & ~(1 << 50)
        for identity in self._results:
            value, box = executor.values[identity], executor.boxes[identity]
            expected = of_operands if identity < _SEED else self._sources
            if expected & ~box.sources:
                self._find("lost lineage", f"result {identity} does not derive from all operands")
            if value.layout != torch.strided:
                continue
            start, end = _span(value)
            if end - start > self._limit():
                self._find("over the limit", f"result {identity} has {end - start} bytes")
            for other, its, first, last in boxes:
                if its is not box and (storage_of(value) == storage_of(other) or (max(start, first) < min(end, last))):
                    self._find(
                        "shared storage", f"result {identity} shows the memory of another value and has another lineage"
                    )
            boxes.append((value, box, start, end))

    def _limit(self) -> int:
        return self._executor._memory_bytes or 1 << 40


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.insert(0, step)
        step *= max(length, 1)
    return tuple(strides)


_ramps: dict[torch.dtype, torch.Tensor] = {}


def _ramp(dtype: torch.dtype, count: int) -> torch.Tensor:
    """Numbers from -1 to 2."""
    if count > _RAMP:
        return torch.linspace(-1, 2, count).to(dtype)
    found = _ramps.get(dtype)
    if found is None:
        found = _ramps[dtype] = (torch.arange(_RAMP) * 7 % 31 / 10 - 1).to(dtype)
    return found[:count]


def _slots_of(call: Call, positions: frozenset[int]) -> list[int]:
    """Numbers of the operands that stand at these arguments."""
    names = kernel(call.name).parameters
    found: list[int] = []
    number = 0
    placed = [*enumerate(call.args), *((names.index(name), item) for name, item in call.kwargs if name in names)]
    for position, item in placed:
        inside: list[Tensor] = []
        operands_of([item], inside)
        if position in positions:
            found.extend(range(number, number + len(inside)))
        number += len(inside)
    return found


def _span(of: torch.Tensor) -> tuple[int, int]:
    """The memory of its storage."""
    storage = of.untyped_storage()
    start = storage.data_ptr()
    return start, start + storage.nbytes()
