"""One call through the Worker's own executor, and everything that must hold whatever the arguments are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from grid_jupyter.errors import GridError
from grid_jupyter.ops.kernels import kernel
from grid_jupyter.ops.raw import NAMES, to_bytes
from grid_jupyter.wire import commands, frames
from grid_jupyter.worker.executor import Broken, Executor
from grid_jupyter.worker.templates import Box, storage_of

from .arguments import call_of
from .calls import Call, Tensor, encode, operands_in, tensors
from .memory import Arena, content, extent, perturb

_FIRST, _RESULT, _SEED, _GRADIENT, _SECOND = 1000, 2000, 3000, 4000, 5000
_SHOWN = 1 << 20
_ALWAYS_AGAIN = 500  # of further calls a quarter is made twice
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


class Trial:
    """All calls of one operation, by number."""

    def __init__(self, name: str, seed: int, recorded: Sequence[Call], arena: Arena, memory_bytes: int) -> None:
        self._name = name
        self._seed = seed
        self._recorded = recorded
        self._arena = arena
        self._memory_bytes = memory_bytes

    def call(self, index: int) -> Call:
        """The call of that number."""
        return call_of(self._name, self._seed, index, self._recorded)

    def run(self, index: int, phase: Callable[[int], None]) -> Outcome:
        """Make the call, twice where it gives a result. `phase` is told what is about to be done."""
        call = self.call(index)
        generator = torch.Generator()
        generator.manual_seed(index * 1_000_003 + self._seed)
        try:
            data = [content(operand, generator) for operand in tensors(call)]
        except (ValueError, RuntimeError, TypeError):
            return Outcome(False, [])  # an operand that a client could not make either
        plan = random.Random(f"plan:{self._seed}:{self._name}:{index}")  # noqa: S311
        state = plan.getstate()
        phase(FORWARD)
        try:
            first = _Run(self._arena, self._memory_bytes, call, data, plan, 0xA5, phase)
        except (Untryable, MemoryError):
            return Outcome(False, [])
        if not first.shown or (index >= _ALWAYS_AGAIN and index % 4):
            return Outcome(bool(first.shown), first.findings)
        plan.setstate(state)
        phase(AGAIN)
        try:
            second = _Run(self._arena, self._memory_bytes, call, data, plan, 0x3C, phase)
        except MemoryError:
            return Outcome(True, first.findings)
        findings = first.findings
        for label, shown in first.shown.items():
            if second.shown.get(label, shown) != shown:
                text = f"{label} differs when fresh memory holds something else"
                findings.append(Finding("uninitialised memory", text))
        return Outcome(True, findings)


class _Run:
    """The call in a session of its own, whose fresh memory holds a mark."""

    def __init__(
        self, arena: Arena, memory_bytes: int, call: Call, data: list[bytes], plan: random.Random, mark: int,
        phase: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.findings: list[Finding] = []
        self.shown: dict[str, Any] = {}
        self._executor = Executor(memory_bytes)
        self._plan = plan
        self._phase = phase
        self._before: dict[int, bytes] = {}
        self._bases: list[torch.Tensor] = []
        self._versions: dict[int, int] = {}
        perturb(0)
        arena.reset(mark)
        self._put(call, data, arena)
        perturb(mark)
        try:
            self._forward(call)
            if self._results:
                self._backward()
        except (GridError, MemoryError):
            pass  # ends the session in words: so it should
        except _Unsent as error:
            raise Untryable from error
        except BaseException as error:  # whatever it is, the Worker would end with it
            self._find("escaped", f"{type(error).__name__} left the executor: {str(error)[:200]}")
        perturb(0)
        self._look_at_operands(call, arena)
        self._look_at_results(call)

    def _find(self, kind: str, text: str) -> None:
        self.findings.append(Finding(kind, text))

    # -------------------------------------------------------------- what is done

    def _put(self, call: Call, data: list[bytes], arena: Arena) -> None:
        executor, plan = self._executor, self._plan
        self._operands = tensors(call)
        flat: list[torch.Tensor] = []
        for number, operand in enumerate(self._operands):
            identity = _FIRST + number
            base, owner = arena.place(data[number], operand.dtype, plan.random() < 0.5), number
            dtype, stride = base.dtype, operand.stride
            if operand.alias >= 0 and operand.alias < number:
                other = flat[operand.alias]
                if _fits(operand, other):
                    base, owner, dtype = other, self._owners[operand.alias], other.dtype
            if number == 0:
                self._owners: list[int] = []
            self._owners.append(owner)
            flat.append(base)
            try:
                view = base.view(dtype).as_strided(operand.shape, stride or _dense(operand.shape), operand.offset)
            except (RuntimeError, TypeError, ValueError) as error:
                raise Untryable from error
            if owner == number:
                frozen = plan.random() < 0.08
                sources = 0 if plan.random() < 0.2 else 1 << number % 40
                executor.put(identity, view, sources, frozen)
            else:
                executor.values[identity] = view
                executor.boxes[identity] = executor.boxes[_FIRST + owner]
        self._bases = flat
        self._before = {n: bytes(base.view(torch.uint8).numpy()) for n, base in enumerate(flat) if self._owners[n] == n}
        wanting = plan.random() < 0.5
        asked = []
        for number, view in enumerate(self._views()):
            if wanting and view.dtype.is_floating_point and plan.random() < 0.6 and not self._aliased(number):
                asked.append([commands.REQUIRE_GRAD, _FIRST + number, True])
        if asked:
            executor.feed(frames.encode(asked))
        # the executor gives a published tensor an object of its own before it asks for its gradient
        self._versions = {number: view._version for number, view in enumerate(self._views())}
        self._sources = 0
        for number in range(len(self._operands)):
            self._sources |= executor.boxes[_FIRST + number].sources

    def _aliased(self, number: int) -> bool:
        return self._owners.count(self._owners[number]) > 1

    def _views(self) -> list[torch.Tensor]:
        return [self._executor.values[_FIRST + n] for n in range(len(self._operands))]

    def _forward(self, call: Call) -> None:
        facts = kernel(call.name)
        args, kwargs, slots = encode(call, [_FIRST + n for n in range(len(self._operands))])
        out: Any = _RESULT
        if facts.returns_list:
            out = [_RESULT + i for i in range(self._list_length(call))]
        elif facts.results > 1:
            out = [_RESULT + i for i in range(facts.results - len(facts.writes))]
        elif facts.results == 0:
            out = 0
        self._results: list[int] = []
        batch = [
            [commands.GRAD_MODE, self._plan.random() < 0.9],
            [commands.DEFINE, 1, call.name, args, kwargs],
            [1, out, *slots],
        ]
        torch.default_generator.manual_seed(11)  # in place of a SEED command, which is slow
        try:
            frame = frames.encode(batch)
        except OverflowError as error:
            raise _Unsent from error  # a number that no frame can hold
        self._executor.feed(frame)
        wanted = [out] if type(out) is int else out
        self._results = [i for i in wanted if i and isinstance(self._executor.values.get(i), torch.Tensor)]
        if out == 0 and not self._executor.earlier():
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
        seed = torch.linspace(-1, 2, max(value.numel(), 1)).to(value.dtype)[: value.numel()].reshape(value.shape)
        hostile = plan.random()
        if hostile < 0.05:
            seed = torch.ones(3)
        elif hostile < 0.15:
            seed = torch.full((), plan.choice((float("nan"), 1e38, 1.0))).to(value.dtype).expand(value.shape)
        elif hostile < 0.2 and value.dim() > 1:
            seed = seed.transpose(0, 1).contiguous().transpose(0, 1)
        executor.put(_SEED, seed.clone() if hostile >= 0.2 else seed, 1 << 50)
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
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
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

    def _look_at_operands(self, call: Call, arena: Arena) -> None:
        executor = self._executor
        if arena.trespassed():
            self._find("wrote outside", "memory beside an operand was changed")
        written = kernel(call.name).mutates
        declared = {self._owners[n] for n in _slots_of(call, written)}
        for number, before in self._before.items():
            now = bytes(self._bases[number].view(torch.uint8).numpy())
            if now == before:
                continue
            box = executor.boxes[_FIRST + number]
            if box.frozen:
                self._find("changed published data", f"operand {number}")
            if number not in declared:
                self._find("undeclared write", f"operand {number} was changed")
            if self._sources & ~(1 << 50) & ~box.sources:
                self._find("lost lineage", f"operand {number} was written to and does not derive from all others")
            group = [n for n, owner in enumerate(self._owners) if owner == number]
            if not any(self._views()[n]._version > self._versions[n] for n in group):
                self._find("hidden write", f"operand {number} was written to without a new version")

    def _look_at_results(self, call: Call) -> None:
        executor = self._executor
        boxes: list[tuple[str, torch.Tensor, Box]] = []
        for number, view in enumerate(self._views()):
            boxes.append((f"operand {number}", view, executor.boxes[_FIRST + number]))
        of_operands = self._sources & ~(1 << 50)
        for identity in getattr(self, "_results", ()):
            value, box = executor.values[identity], executor.boxes[identity]
            expected = of_operands if identity < _SEED else self._sources
            if expected & ~box.sources:
                self._find("lost lineage", f"result {identity} does not derive from all operands")
            if value.layout != torch.strided:
                continue
            if value.untyped_storage().nbytes() > self._limit():
                self._find("over the limit", f"result {identity} has {value.untyped_storage().nbytes()} bytes")
            for label, other, its in boxes:
                if its is not box and _overlap(value, other):
                    self._find(
                        "shared storage", f"result {identity} shows the memory of {label} and has another lineage"
                    )
            boxes.append((f"result {identity}", value, box))

    def _limit(self) -> int:
        return self._executor._memory_bytes or 1 << 40


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.insert(0, step)
        step *= max(length, 1)
    return tuple(strides)


def _fits(operand: Tensor, base: torch.Tensor) -> bool:
    return extent(operand) <= base.numel()


def _slots_of(call: Call, positions: frozenset[int]) -> list[int]:
    """Numbers of the operands that stand at these arguments."""
    names = kernel(call.name).parameters
    found: list[int] = []
    number = 0
    placed = [*enumerate(call.args), *((names.index(name), item) for name, item in call.kwargs if name in names)]
    for position, item in placed:
        for _ in operands_in(item):
            if position in positions:
                found.append(number)
            number += 1
    return found


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    if storage_of(a) == storage_of(b):
        return True
    one, other = a.untyped_storage(), b.untyped_storage()
    start, end = max(one.data_ptr(), other.data_ptr()), 0
    end = min(one.data_ptr() + one.nbytes(), other.data_ptr() + other.nbytes())
    return one.nbytes() > 0 and other.nbytes() > 0 and start < end
