"""A recording's work as a flat list of calls below autograd, made from a run that was watched (traced.py).

It does what the ordinary run does, bit for bit, and leaves the same lineage, gradients and versions; decision 0014
says why that is so. Where anything is not as it was when it was watched, `fits` says no.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from grid_jupyter.errors import GridError
from grid_jupyter.ops.raw import to_bytes
from grid_jupyter.worker.calls import Call, Calls, Values, numbers_in, set_grad_mode, switch, taken
from grid_jupyter.worker.stage import Stage
from grid_jupyter.worker.stretches import MOST_BYTES, SHORTEST, as_told, fits_in, stretch
from grid_jupyter.worker.tape import Noted, is_plain
from grid_jupyter.worker.templates import Box, storage_of
from grid_jupyter.worker.traced import Cleared, Given, Made, Node, Published, Trace, is_free

_guard: Callable[[], Any] | None = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
CAN_COMPILE = _guard is not None
"""Whether this torch lets kernels be called as its autograd calls them."""
below_autograd: Callable[[], Any] = _guard or contextlib.nullcontext
_ERRORS = (
    RuntimeError, TypeError, ValueError, LookupError, AttributeError, MemoryError, ArithmeticError, GridError,
)  # fmt: skip


class Failed(Exception):
    """A call failed. `step` is the one of the recording, with the cause; None: nothing was done that lasts."""

    def __init__(self, step: int | None, error: BaseException) -> None:
        super().__init__()
        self.step = step
        self.error = error


class Program:
    """The calls of one recording. Holds no tensor of the session.

    One that is for rehearsals keeps gradients until its end.
    """

    def __init__(self, trace: Trace, outs: tuple[int, ...], *, rehearses: bool = False) -> None:
        self._trace = trace
        self._rehearses = rehearses
        self._outside = [(slot, trace.numbers[slot]) for slot in range(1, len(trace.given) + 1)]
        self._expected = [(given.sources, given.frozen, given.requires_grad) for given in trace.given]
        # values from outside that were found to fit: as long as nobody writes to one, it does
        self._seen: list[Callable[[], Any]] = [_nothing] * len(trace.given)
        self._versions = [0] * len(trace.given)
        self._published = {
            slot: number
            for node in trace.nodes
            if isinstance(node.what, Published)
            for slot, number in node.what.gradients.items()
        }
        self._given = [(slot, trace.numbers[slot]) for slot in outs]
        told = 0
        for node in trace.nodes:
            told |= node.what.sources if isinstance(node.what, Published) else 0
        # whose lineage the backward pass would change if they were gradients (Gradients.tell_nothing)
        self._exposed = [slot for slot, given in enumerate(trace.given, 1) if told & ~given.sources]
        self._changed_views = [slot for slot in trace.changed if trace.given[slot - 1].is_view]
        self._stage_at = trace.width  # where among the values the stage itself stands
        self._empty: Values = [None] * (trace.width + 1)
        for number, constant in trace.constants.items():
            self._empty[number] = constant
        self._calls: list[Call] = []
        self._steps: list[int] = []  # by call: the recording's step that it is part of
        self._kernels: list[bool] = []  # by call: whether it calls a kernel; else it changes the session's gradients
        self._lasting = 0  # the first call with an effect that lasts
        self._build()

    # -------------------------------------------------------------- making it

    def _build(self) -> None:
        nodes = self._needed()
        ended = self._ended(nodes)
        grad_mode, lasting = self._trace.grad_mode, -1
        calls = Calls(self._empty)
        stretches = self._stretches(nodes, ended)
        passed = 0
        for at, node in enumerate(nodes):
            what = node.what
            if at < passed:
                continue
            if isinstance(what, Made) and what.noted.grad_mode is not grad_mode:
                grad_mode = what.noted.grad_mode
                self._add(node.step, True, switch(grad_mode))
            if at in stretches:
                passed, call = stretches[at]
                self._add(node.step, True, call)
                continue
            if lasting < 0 and _lasts(node):
                lasting = len(self._calls)
            if isinstance(what, Cleared):
                self._add(node.step, False, self._clear(what))
            elif isinstance(what, Published):
                self._add(node.step, False, self._publish(what, tuple(ended[at])))
            else:
                self._add(node.step, True, calls.of(what.noted, what.written, tuple(ended[at])))
        self._lasting = len(self._calls) if lasting < 0 else lasting

    def _stretches(self, nodes: list[Node], ended: list[list[int]]) -> dict[int, tuple[int, Call]]:
        """By first node: where a stretch of calls that are made as one ends, and that call. None has an effect that
        lasts, so that what fails within is done again as an ordinary run."""
        found: dict[int, tuple[int, Call]] = {}
        if self._trace.nbytes > MOST_BYTES:
            return found
        last = {number: at for at, numbers in enumerate(ended) for number in numbers}
        lasting = (at for at, node in enumerate(nodes) if _lasts(node))
        begin, most = 0, next(lasting, len(nodes))
        while begin < most:
            noted: list[Noted] = []
            for node in nodes[begin:most]:
                what = node.what
                if not isinstance(what, Made) or what.written or not fits_in(what.noted):
                    break
                if noted and what.noted.grad_mode is not noted[0].grad_mode:
                    break
                noted.append(what.noted)
            end = begin + len(noted)
            if len(noted) >= SHORTEST:
                made = [number for one in noted for number in numbers_in(one.outs) if number >= 0]
                wanted = [number for number in made if last.get(number, len(nodes)) >= end]
                dead = tuple(number for numbers in ended[begin:end] for number in numbers)
                call = stretch(noted, wanted, dead)
                if call is not None:
                    found[begin] = end, call
            begin = max(end, begin + 1)
        return found

    def _add(self, step: int, kernel: bool, call: Call) -> None:
        self._calls.append(call)
        self._steps.append(step)
        self._kernels.append(kernel)

    def _needed(self) -> list[Node]:
        """Without what autograd does for itself alone, such as looks at what it kept."""
        wanted = {number for _, number in self._given} | set(self._published.values())
        found = []
        for node in reversed(self._trace.nodes):
            what = node.what
            if isinstance(what, Made):
                if what.traced and wanted.isdisjoint(numbers_in(what.noted.outs)):
                    continue
                wanted.update(taken(what.noted))
            found.append(node)
        return found[::-1]

    def _ended(self, nodes: list[Node]) -> list[list[int]]:
        """By node: the values made inside that nothing uses afterwards."""
        stay = {-1, *self._trace.constants, *(number for _, number in (*self._outside, *self._given))}
        if self._rehearses:
            stay.update(self._published.values())
        last: dict[int, int] = {}
        for at, node in enumerate(nodes):
            if isinstance(node.what, Made):
                last.update(dict.fromkeys((*taken(node.what.noted), *numbers_in(node.what.noted.outs)), at))
            elif isinstance(node.what, Published):
                last.update(dict.fromkeys(node.what.gradients.values(), at))
        ended: list[list[int]] = [[] for _ in nodes]
        for number, at in last.items():
            if number not in stay:
                ended[at].append(number)
        return ended

    def _clear(self, what: Cleared) -> Call:
        stage_at, leaf = self._stage_at, self._trace.numbers[what.slot]

        def call(values: Values) -> None:
            values[stage_at].gradients.assign(values[leaf], None, Box())

        return call

    def _publish(self, what: Published, dead: tuple[int, ...]) -> Call:
        stage_at, sources = self._stage_at, what.sources
        pairs = [(self._trace.numbers[slot], number) for slot, number in what.gradients.items()]

        def call(values: Values) -> None:
            stage: Stage = values[stage_at]
            for leaf, gradient in pairs:
                stage.gradients.receive(values[leaf], values[gradient], sources)
            for number in dead:
                values[number] = None
            stage.settle(sources)

        return call

    # -------------------------------------------------------------- whether it may run

    def fits(self, stage: Stage) -> bool:
        """Whether the values from outside are what they were, and all else that the calls rest on."""
        trace, values, boxes = self._trace, stage.values, stage.boxes
        if len(values) != len(trace.given) or stage.grad_mode is not trace.grad_mode or stage.memory.split:
            return False
        storages = set()
        seen, versions = self._seen, self._versions
        for at, (sources, frozen, requires_grad) in enumerate(self._expected):
            box = boxes.get(at + 1)
            if box is None or box.sources != sources or box.frozen is not frozen or box.hidden:
                return False
            value = values[at + 1]
            if seen[at]() is not value or versions[at] != value._version:
                if not _is_as(value, trace.given[at]):
                    return False
                seen[at], versions[at] = weakref.ref(value), value._version
            if value.requires_grad is not requires_grad:
                return False
            storages.add(box.storage)
        if len(storages) != len(values) or not all(is_free(values[slot]) for slot in self._changed_views):
            return False
        if self._exposed and not stage.gradients.holds_none(boxes[slot] for slot in self._exposed):
            return False
        for slot, sources in trace.bare.items():
            held = stage.gradients.held(values[slot])
            if values[slot].grad is not None or held is None or held.box.sources != sources:
                return False
        return True

    # -------------------------------------------------------------- running

    def run(self, stage: Stage) -> None:
        """Do the work on the stage's values, and put there what the recording gives.

        Raises Failed, with the stage as the ordinary run has it where that step fails.
        """
        values = self._filled(stage)
        at = 0
        try:
            with below_autograd(), as_told():
                for at, call in enumerate(self._calls):  # noqa: B007
                    call(values)
        except _ERRORS as error:
            raise self._failed(stage, values, at, error) from error
        finally:
            set_grad_mode(stage.grad_mode)
        for slot in self._trace.changed:
            self._versions[slot - 1] = stage.values[slot]._version
        self._grow(stage, self._trace.leaves)
        self._keep(stage, values, self._given, {})

    def _grow(self, stage: Stage, lineage: dict[int, int]) -> None:
        """What is written to in place, such as by an optimiser, derives from what is written."""
        for slot, sources in lineage.items():
            held = stage.gradients.held(stage.values[slot])
            if held is not None:
                held.box.sources |= sources

    def _filled(self, stage: Stage) -> Values:
        values = self._empty.copy()
        for slot, number in self._outside:
            values[number] = stage.values[slot]
        values[self._stage_at] = stage
        return values

    def _keep(self, stage: Stage, values: Values, wanted: list[tuple[int, int]], boxes: dict[int, Box]) -> None:
        """Values made inside become the stage's, each with the box of its storage."""
        for slot in self._trace.leaves:
            held = stage.gradients.held(stage.values[slot])
            if held is not None and held.gradient is not None:
                boxes[held.box.storage] = held.box
        for slot, number in wanted:
            value = values[number]
            storage = storage_of(value)
            box = boxes.get(storage)
            if box is None:
                box = boxes[storage] = Box(self._trace.sources[slot], storage=storage)
            else:  # a slot that ended early knows less than one that was written to later
                box.sources |= self._trace.sources[slot]
            stage.values[slot], stage.boxes[slot] = value, box

    def _failed(self, stage: Stage, values: Values, at: int, error: BaseException) -> Failed:
        """Where nothing was done that lasts, all of it may run again. Else what there is stays, and goes on."""
        if at < self._lasting:
            return Failed(None, error)
        self._grow(stage, self._trace.grown)
        boxes = {box.storage: box for box in stage.boxes.values()}
        inside = [
            (slot, number)
            for slot, number in self._trace.numbers.items()
            if slot > len(self._outside) and values[number] is not None
        ]
        self._keep(stage, values, inside, boxes)
        step = self._steps[at]
        stage.set_grad_mode(self._trace.modes[step])
        return Failed(step, error)

    # -------------------------------------------------------------- rehearsing

    def rehearse(self, stage: Stage) -> Rehearsal | None:
        """Make the calls on copies of what they change; None where that cannot be."""
        values = self._filled(stage)
        copies: dict[int, torch.Tensor] = {}
        try:
            for slot in self._trace.changed:
                original = stage.values[slot]
                copy = original.detach().clone().requires_grad_(original.requires_grad)
                if copy.stride() != original.stride():
                    return None
                values[self._trace.numbers[slot]] = copies[slot] = copy
            with below_autograd(), as_told():
                for call, kernel in zip(self._calls, self._kernels, strict=True):
                    if kernel:
                        call(values)
        except _ERRORS:
            return None
        finally:
            set_grad_mode(stage.grad_mode)
        unbound = [values[number] for _, number in self._given] + [values[k] for k in self._published.values()]
        if any(one._is_view() or one.requires_grad for one in unbound):
            return None
        return Rehearsal(
            {slot: _bits(copy) for slot, copy in copies.items()},
            {slot: _bits(values[number]) for slot, number in self._given},
            {slot: _bits(values[number]) for slot, number in self._published.items()},
        )


class Rehearsal(NamedTuple):
    """What the calls came to, by slot: the bits of values from outside, of results, and of gradients."""

    changed: dict[int, Any]
    made: dict[int, Any]
    gradients: dict[int, Any]

    def agrees(self, values: dict[int, Any]) -> bool:
        """Whether an ordinary run, which left these values, came to the same bits."""
        pairs = [(found, values.get(slot)) for slot, found in (*self.changed.items(), *self.made.items())]
        gradients = [(found, values[slot].grad) for slot, found in self.gradients.items()]
        pairs += [(found, gradient) for found, gradient in gradients if gradient is not None]
        return all(type(one) is torch.Tensor and found == _bits(one) for found, one in pairs)


def _bits(tensor: torch.Tensor) -> Any:
    """All of a value in short: no copy of it is kept while the ordinary run needs the memory."""
    digest = hashlib.blake2b(to_bytes(tensor.detach())).digest()
    return tensor.dtype, tensor.shape, tensor.stride(), digest


def _nothing() -> object:
    """In place of a weak reference to a value: gives what is never one."""
    return _nothing


def _lasts(node: Node) -> bool:
    return isinstance(node.what, Published) or (isinstance(node.what, Made) and node.what.lasts)


def _is_as(value: Any, given: Given) -> bool:
    return (
        type(value) is torch.Tensor
        and is_plain(value)
        and value.dtype is given.dtype
        and value.shape == given.shape
        and value.stride() == given.stride
        and value.is_leaf
        and value._is_view() is given.is_view
    )
