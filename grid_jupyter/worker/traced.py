"""One run of a recording, watched: the calls that it comes to below autograd, and all that they rest on.

What may be done that way is decided here. A recording that is refused here runs as the stream would.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch

from grid_jupyter.wire import commands
from grid_jupyter.worker.stage import Stage, Step
from grid_jupyter.worker.tape import Noted, Numbers, Ref, Tape, is_plain
from grid_jupyter.worker.templates import Template, storage_of

DIFFERENTIATED = frozenset(
    f"aten.{name}"
    for name in (
        "_adaptive_avg_pool2d.default", "_log_softmax.default", "_softmax.default", "_to_copy.default",
        "_unsafe_view.default", "add.Scalar", "add.Tensor", "addmm.default", "alias.default", "avg_pool2d.default",
        "baddbmm.default", "bmm.default", "cat.default", "clone.default", "convolution.default", "detach.default",
        "div.Scalar", "div.Tensor", "elu.default", "embedding.default", "exp.default", "expand.default",
        "gelu.default", "hardtanh.default", "huber_loss.default", "leaky_relu.default", "log.default",
        "max_pool2d_with_indices.default", "mean.default", "mean.dim", "mm.default", "mse_loss.default", "mul.Scalar",
        "mul.Tensor", "native_group_norm.default", "native_layer_norm.default", "neg.default",
        "nll_loss2d_forward.default", "nll_loss_forward.default", "permute.default", "relu.default",
        "rsqrt.default", "select.int", "sigmoid.default", "silu.default", "slice.Tensor", "smooth_l1_loss.default",
        "softplus.default", "split.Tensor", "sqrt.default", "squeeze.dim", "stack.default", "sub.Scalar", "sub.Tensor",
        "sum.default", "sum.dim_IntList", "t.default", "tanh.default", "transpose.int", "unsqueeze.default",
        "view.default",
    )
)  # fmt: skip
"""Operations whose results a backward pass may go through: what their gradients are computed by depends on layouts
alone, never on values, nor on whether somebody looks on."""


class Cleared(NamedTuple):
    """The gradient of a value from outside is let go of."""

    slot: int


class Published(NamedTuple):
    """A backward pass is over: gradients of values from outside, by slot, and the lineage of what it began with."""

    gradients: dict[int, int]
    sources: int


class Made(NamedTuple):
    """One call, and the numbers of the values that it writes to."""

    noted: Noted
    written: tuple[int, ...]
    traced: bool  # it is autograd's, and without effect where nobody uses what it gives
    lasts: bool  # it writes to memory from outside


class Node(NamedTuple):
    """Something that a run does, for one of the recording's steps."""

    step: int
    what: Made | Cleared | Published


class Given(NamedTuple):
    """What a value from outside was, and must be."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    requires_grad: bool
    is_view: bool
    sources: int
    frozen: bool


class Trace(NamedTuple):
    """All that is known of a run."""

    given: tuple[Given, ...]  # by slot, from 1
    grad_mode: bool
    nodes: list[Node]
    modes: list[bool]  # the grad mode before each step
    numbers: dict[int, int]  # slot → value
    width: int  # how many values there are
    constants: dict[int, Any]
    sources: dict[int, int]  # slot → lineage, of values made inside
    changed: frozenset[int]  # slots from outside that are written to
    bare: dict[int, int]  # slots whose gradient a backward pass makes, and nobody cleared → its lineage before
    leaves: dict[int, int]  # slots whose gradient a backward pass makes → its lineage at the end
    grown: dict[int, int]  # the same → the most that it came to before
    nbytes: int  # of all that it had to do with


def is_traceable(body: list[list[Any]], templates: dict[int, Any], outside: int, outs: list[int]) -> bool:
    """Whether a recording may be done below autograd, as far as its commands tell."""
    backward = [number for number, command in enumerate(body) if command[0] == commands.BACKWARD]
    if len(backward) > 1 or any(slot <= outside for slot in outs):
        return False
    before = backward[0] if backward else -1
    filled: set[int] = set()
    for number, command in enumerate(body):
        code = command[0]
        for slot in _filled_by(command):
            if slot in filled:  # by its number alone it could not be told which value it stands for
                return False
            filled.add(slot)
        if code >= 0:
            template = templates[code]
            if not isinstance(template, Template) or template.kernel.seeded or template.kernel.sized:
                return False
            if number < before and template.written(command):
                return False
        elif code == commands.SET_GRAD:
            if command[2] != 0 or not 0 < command[1] <= outside:
                return False
        elif code == commands.BACKWARD:
            if command[4]:  # create_graph
                return False
        elif code == commands.GRAD_OF:
            if number < before or not backward or not 0 < command[2] <= outside:
                return False
        elif code not in (commands.GRAD_MODE, commands.PUT):
            return False
    return True


def _filled_by(command: list[Any]) -> list[int]:
    """The slots that a command gives values to, as often as it names them."""
    out = command[1] if command[0] >= 0 or command[0] in (commands.PUT, commands.GRAD_OF) else 0
    return out if type(out) is list else [out] if out > 0 else []


class Watch:
    """Runs a recording as always, on the stage as it stands, and notes what it does."""

    def __init__(self, stage: Stage, steps: tuple[Step, ...], body: list[list[Any]], outside: int) -> None:
        self._stage = stage
        self._steps = steps
        self._body = body
        self._outside = outside
        self._numbers = Numbers()
        self._where: dict[int, int] = {}
        self._nodes: list[Node] = []
        self._constants: dict[int, Any] = {}
        self._sources: dict[int, int] = {}
        self._changed: set[int] = set()
        self._published: dict[int, int] = {}
        self._grown: dict[int, int] = {}
        self._fits = True

    def run(self, outs: tuple[int, ...]) -> Trace | None:
        """Run it; what was noted, or None where it cannot be done otherwise, this time at least."""
        stage = self._stage
        values: dict[int, Any] = {slot: stage.values.get(slot) for slot in range(1, self._outside + 1)}
        given = self._given(values)
        before = {slot: stage.gradients.sources(value) for slot, value in values.items()} if self._fits else {}
        grad_mode, faults, modes = stage.grad_mode, stage.faults, []
        for number, (call, arguments, ended) in enumerate(self._steps):
            modes.append(stage.grad_mode)
            tape = None
            if self._fits and self._body[number][0] == commands.BACKWARD:
                leaves = {slot: value for slot, value in values.items() if value.requires_grad}
                stage.around_backward = tape = Tape(self._numbers, leaves)
            mode = torch.is_grad_enabled()
            try:
                call(*arguments)
            finally:
                stage.around_backward = contextlib.nullcontext()
            self._fits = self._fits and stage.faults == faults
            if self._fits:
                self._note(number, tape, mode)
            self._follow_lineage(values)
            if ended:
                stage.free(*ended)
        if not self._fits or self._given(values) != given or not self._may_leave(outs, values):
            return None
        made, bare = self._gradients_made()
        return Trace(
            tuple(given), grad_mode, self._nodes, modes, self._where, self._numbers.count, self._constants,
            self._sources, frozenset(self._changed), {slot: before[slot] for slot in bare},
            {slot: stage.gradients.sources(values[slot]) for slot in made}, self._grown, self._numbers.nbytes,
        )  # fmt: skip

    def _given(self, values: dict[int, Any]) -> list[Given]:
        """What the values from outside are; they get numbers when this is asked first."""
        found = []
        storages = set()
        for slot, value in values.items():
            if type(value) is not torch.Tensor or not is_plain(value) or not value.is_leaf:
                self._fits = False
                return []
            box = self._stage.boxes[slot]
            found.append(
                Given(
                    value.dtype, value.shape, value.stride(), value.requires_grad, value._is_view(), box.sources,
                    box.frozen,
                )
            )  # fmt: skip
            storages.add(storage_of(value))
            self._fits = self._fits and not box.hidden and value is self._stage.values.get(slot)
            if slot not in self._where:
                self._where[slot] = self._numbers.add(value, unbound=not value._is_view())
        self._fits = self._fits and len(storages) == len(values) and not self._stage.memory.split
        return found

    def _follow_lineage(self, values: dict[int, Any]) -> None:
        """Lineage may grow while a value lives: where something fails, it counts as what it comes to."""
        for slot in self._sources:
            if slot in self._stage.boxes:
                self._sources[slot] = self._stage.boxes[slot].sources
        for slot in self._published:
            self._grown[slot] = self._grown.get(slot, 0) | self._stage.gradients.sources(values[slot])

    def _gradients_made(self) -> tuple[set[int], set[int]]:
        """Slots whose gradients a backward pass made, and those of them that were not cleared before."""
        cleared: set[int] = set()
        made: set[int] = set()
        bare: set[int] = set()
        for node in self._nodes:
            if isinstance(node.what, Cleared):
                cleared.add(node.what.slot)
            elif isinstance(node.what, Published):
                made.update(node.what.gradients)
                bare.update(node.what.gradients.keys() - cleared)
        return made, bare

    def _may_leave(self, outs: tuple[int, ...], values: dict[int, Any]) -> bool:
        """Whether what the recording gives has no graph, and is not the memory of values from outside."""
        outside = {storage_of(value) for value in values.values()}
        found = [self._stage.values.get(slot) for slot in outs]
        return all(
            type(value) is torch.Tensor
            and not value.requires_grad
            and not value._is_view()
            and storage_of(value) not in outside
            for value in found
        )

    # -------------------------------------------------------------- steps

    def _note(self, number: int, tape: Tape | None, grad_mode: bool) -> None:
        command = self._body[number]
        code = command[0]
        if code >= 0:
            self._operation(number, command, self._steps[number][1][0], grad_mode)
        elif code == commands.PUT:
            slot, tensor = self._steps[number][1]
            constant = self._numbers.fresh()
            self._constants[constant] = tensor
            self._result(slot)
            noted = Noted(torch.clone, [Ref(constant)], {}, self._where.get(slot), grad_mode)
            self._nodes.append(Node(number, Made(noted, (), False, False)))
        elif code == commands.SET_GRAD:
            self._published.pop(command[1], None)
            self._nodes.append(Node(number, Cleared(command[1])))
        elif code == commands.GRAD_OF:
            if command[2] in self._published:
                self._where[command[1]] = self._published[command[2]]
                self._sources[command[1]] = self._stage.boxes[command[1]].sources
            else:
                self._fits = False
        elif tape is not None:
            self._backward(number, command, tape)

    def _operation(self, number: int, command: list[Any], template: Template, grad_mode: bool) -> None:
        args, kwargs = template.arguments(command, lambda slot: Ref(self._where.get(slot, -1)))
        written = template.written(command)
        storages = {storage_of(self._stage.values[slot]) for slot in written}
        changed = [one for one in range(1, self._outside + 1) if storage_of(self._stage.values[one]) in storages]
        self._changed.update(changed)
        self._fits = self._fits and all(is_free(self._stage.values[slot]) for slot in changed)
        self._fits = self._fits and not any(self._stage.boxes[slot].frozen for slot in written)
        out, listed = command[1], template.kernel.name in DIFFERENTIATED
        outs: int | list[int] | None = None
        if type(out) is list:
            fresh = template.fresh_results(len(out))
            if len(fresh) != len(out) or not fresh:
                self._fits = False
                return
            outs = [-1] * (fresh[-1] + 1)
            for slot, place in zip(out, fresh, strict=True):
                if slot in self._stage.values:
                    self._result(slot, listed)
                    outs[place] = self._where.get(slot, -1)
        elif out > 0:
            self._result(out, listed)
            outs = self._where.get(out)
        noted = Noted(template.kernel.again, args, kwargs, outs, grad_mode, template.kernel.overload)
        places = tuple(self._where.get(slot, -1) for slot in written)
        self._nodes.append(Node(number, Made(noted, places, False, bool(changed))))

    def _result(self, slot: int, is_differentiated: bool = True) -> None:
        value = self._stage.values[slot]
        if type(value) is not torch.Tensor or not is_plain(value):
            self._fits = False
            return
        self._fits = self._fits and (is_differentiated or not value.requires_grad)
        self._where[slot] = self._numbers.add(value, unbound=not value._is_view())
        self._sources[slot] = self._stage.boxes[slot].sources

    def _backward(self, number: int, command: list[Any], tape: Tape) -> None:
        if not tape.whole:
            self._fits = False
            return
        self._nodes += [Node(number, Made(noted, (), True, False)) for noted in tape.calls]
        for slot, gradient in tape.gradients.items():
            self._published[slot] = gradient
            if id(self._stage.values[slot].grad) != tape.handed[slot]:  # it was copied, not to be shared
                copied = self._published[slot] = self._numbers.fresh()
                noted = Noted(torch.clone, [Ref(gradient)], {}, copied, torch.is_grad_enabled())
                self._nodes.append(Node(number, Made(noted, (), False, False)))
        sources = 0
        for slot in command[1:3]:
            sources |= self._stage.boxes[slot].sources if slot else 0
        self._nodes.append(Node(number, Published(dict(self._published), sources)))


def is_free(tensor: torch.Tensor) -> bool:
    """Whether autograd has nothing to say where this is written to without it: what it is a view of has no graph."""
    base = tensor._base
    return base is None or not base.requires_grad
