"""Executes a session's commands on real tensors, and knows what every value derives from.

Knows nothing of callers, Nodes or permissions: it answers "this value, from these data sets", and the
Node decides whether that leaves. The commands are those of wire/commands.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import torch

from grid_jupyter.errors import (
    GridError,
    InvalidMessageError,
    LimitExceededError,
    ObjectNotFoundError,
    OperationNotAllowedError,
    RemoteOperationError,
    from_wire,
)
from grid_jupyter.ops.raw import NAMES, from_bytes
from grid_jupyter.wire import commands, frames
from grid_jupyter.wire.limits import MAX_INLINE_BYTES, MAX_VALUES
from grid_jupyter.wire.messages import Layout
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker import gpu
from grid_jupyter.worker.gradients import Gradients
from grid_jupyter.worker.halves import SIZED, Halves
from grid_jupyter.worker.recordings import Recordings
from grid_jupyter.worker.templates import Box, Template, storage_of

# What a kernel may raise about its arguments. Anything else is a fault of ours and ends the session.
_KERNEL_ERRORS = (
    RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, MemoryError, ArithmeticError, GridError,
)  # fmt: skip
_MAX_TEMPLATES = 50_000
_decoder = msgspec.msgpack.Decoder(list[list[Any]])


class Poison(NamedTuple):
    """In place of a value whose computation failed: whatever is computed from it fails alike."""

    code: str
    text: str
    origin: int = 0  # the operation that failed, by the id of its result


class Read(NamedTuple):
    """A value as it would be released: the tensor, and the data sets that it derives from, as bits."""

    tensor: torch.Tensor
    sources: int


class Broken(NamedTuple):
    """What came instead of a value, and what it derives from: that something failed may tell of the data, too."""

    error: GridError
    sources: int


class Executor:
    """The values of one session. Not thread-safe: one thread feeds it, with grad mode of its own."""

    def __init__(self, memory_bytes: int = 0, limits: WorkerLimits | None = None) -> None:
        self.device = torch.device("cpu" if limits is None else limits.device)
        self.values: dict[int, Any] = {}
        self.boxes: dict[int, Box] = {}
        self.closed = 0  # the sources that the caller may not read, as bits
        self.memory = Halves(memory_bytes, on_gpu=self.device.type != "cpu")
        self._memory_bytes = memory_bytes
        self._limits = limits
        self.templates: dict[int, Template | Poison] = {}
        self.grad_mode = True
        self.gradients = Gradients()
        self.around_backward: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._grad_error: tuple[Poison, int] | None = None
        self.faults = 0  # how many commands failed
        self._errors: dict[int, Poison] = {}  # by what it derives from: one must not hide that there is another
        self.verbs: dict[int, Callable[..., None]] = {
            commands.DEFINE: self._define,
            commands.FREE: self.free,
            commands.CLEAR: self._clear,
            commands.PUT: self._put,
            commands.SEED: self.seed,
            commands.GRAD_MODE: self.set_grad_mode,
            commands.REQUIRE_GRAD: self._require_grad,
            commands.RETAIN_GRAD: self._retain_grad,
            commands.BACKWARD: self._backward,
            commands.GRAD_OF: self._grad_of,
            commands.SET_GRAD: self._set_grad,
            commands.GRADIENTS: self._gradients,
            commands.BACKWARD_MANY: self._backward_many,
        }
        recordings = Recordings(self)
        self.verbs |= {
            commands.RECORD: recordings.define,
            commands.RUN: recordings.run,
            commands.FORGET: recordings.forget,
        }

    # -------------------------------------------------------------- the stream

    def feed(self, header: bytes | memoryview) -> None:
        """Run one OPERATIONS header. A failing operation poisons its results and the rest goes on.

        Raises InvalidMessageError for what is not a list of commands, LimitExceededError for too many
        values: both end the session.
        """
        # Autograd must stay on: some kernels return no workspace without it and their gradients are then wrong.
        torch.set_grad_enabled(self.grad_mode)
        try:
            templates, values, boxes, memory = self.templates, self.values, self.boxes, self.memory
            for command in frames.decode(header, _decoder):
                template = templates.get(command[0]) if command and type(command[0]) is int else None
                if type(template) is not Template or len(command) != template.length or type(command[1]) is not int:
                    self._one(command)
                    continue
                try:  # most commands: the same as `_one` does, in short
                    template.run(values, boxes, command, self.closed, memory)
                except _KERNEL_ERRORS as error:
                    self._failed(command, template, error)
        finally:
            torch.set_grad_enabled(True)
            self.memory.enter(False)
        if len(self.values) > MAX_VALUES:
            raise LimitExceededError(
                f"the session holds more than {MAX_VALUES} values; drop pointers you do not "
                f"need: node.values() lists them, node.clear() forgets all"
            )

    def _one(self, command: list[Any]) -> None:
        code = command[0] if command else None
        if type(code) is not int:
            raise InvalidMessageError("a command starts with a code")
        try:
            if code >= 0:
                self._run(code, command)
                return
            verb = self.verbs.get(code)
            if verb is None:
                raise InvalidMessageError(f"there is no command {code}")
            verb(*command[1:])
        except (InvalidMessageError, LimitExceededError, MemoryError):
            raise
        except _KERNEL_ERRORS as error:
            raise InvalidMessageError(f"command {code} has wrong arguments") from error

    def _failed(self, command: list[Any], template: Template, error: BaseException) -> None:
        try:
            self.fail(template, command, error)
        except (InvalidMessageError, LimitExceededError, MemoryError):
            raise
        except _KERNEL_ERRORS as worse:
            raise InvalidMessageError(f"command {command[0]} has wrong arguments") from worse

    def _run(self, number: int, command: list[Any]) -> None:
        template = self.templates.get(number)
        if template is None:
            raise InvalidMessageError(f"template {number} was never defined")
        if isinstance(template, Poison):
            self.mark(command[1], template, 0)
            return
        if len(command) != template.length:
            raise InvalidMessageError(f"a command of {template.kernel.name} has the wrong length")
        out = command[1]
        if type(out) is not int and not (type(out) is list and all(type(identity) is int for identity in out)):
            raise InvalidMessageError("ids are integers")
        self.perform(template, command)

    def perform(self, template: Template, command: list[Any]) -> None:
        """Run one operation whose command was looked at; if it fails, its results are poisoned."""
        try:
            template.run(self.values, self.boxes, command, self.closed, self.memory)
        except _KERNEL_ERRORS as error:
            self.fail(template, command, error)

    def fail(self, template: Template, command: list[Any], error: BaseException) -> None:
        """Mark what a failed command would have made. Text of private origin says no more than its class."""
        if isinstance(error, OperationNotAllowedError):  # so it is whatever the values are: nobody learns of these
            self.mark(command[1], Poison(error.code, str(error)), 0)
            return
        sources, cause = 0, None
        for slot in template.refs:
            value = self.values.get(command[slot])
            if value is None:
                text = f"{template.kernel.name}: a value that it takes is no longer there"
                cause = cause or Poison(ObjectNotFoundError.code, text)
                continue
            sources |= self.boxes[command[slot]].sources
            if isinstance(value, Poison):
                cause = cause or value
        self.mark(command[1], cause or self._reason(template.kernel.name, error, sources), sources)

    def _reason(self, what: str, error: BaseException, sources: int) -> Poison:
        if isinstance(error, GridError):
            return Poison(error.code, str(error), error.value)
        text = str(error)
        if gpu.is_lost(error):
            raise LimitExceededError(f"{what}: the Worker's {self.device} failed, so the session ends here")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
            gpu.let_go(self.device)
            if self.memory.split and not self.memory.hidden:
                raise LimitExceededError(
                    f"{what}: half of the session's memory of {self._memory_bytes >> 20} MB is used up, and the other "
                    f"half is kept for values of sizes that nobody is to know: the session ends here"
                )
            limit = gpu.memory_of(self._limits) if self._limits else "memory"
            return Poison(
                LimitExceededError.code,
                f"{what}: the result does not fit into the session's {limit}; "
                f"node.values() lists what it holds, node.clear() forgets all of it",
            )
        detail = "" if sources else f": {text.splitlines()[0][:400] if text else ''}"
        return Poison(RemoteOperationError.code, f"{what} failed with {type(error).__name__}{detail}")

    def mark(self, out: Any, poison: Poison, sources: int) -> None:
        """Put `poison` in place of results: one id, a list of ids, or 0 for an operation without results."""
        self.faults += 1
        identities = out if isinstance(out, list) else [out]
        if identities and not poison.origin and type(identities[0]) is int:
            poison = poison._replace(origin=identities[0])
        if not identities or (type(out) is int and out <= 0):
            self._errors.setdefault(sources, poison)  # an operation without results: the next read tells
            return
        for identity in identities:
            if type(identity) is not int:
                raise InvalidMessageError("ids are integers")
            self.keep(identity, poison, Box(sources))

    # -------------------------------------------------------------- verbs

    def _define(self, template: int, name: str, args: list[Any], kwargs: list[Any]) -> None:
        if type(template) is not int or template < 0 or len(self.templates) >= _MAX_TEMPLATES:
            raise InvalidMessageError("a template has a non-negative number, and there are not endlessly many")
        try:
            self.templates[template] = Template(name, args, kwargs, self.device)
        except InvalidMessageError:
            raise
        except GridError as error:
            self.templates[template] = Poison(error.code, str(error))

    def free(self, *identities: int) -> None:
        """Forget values; unknown ids are fine."""
        for identity in identities:
            box = self.boxes.pop(identity, None)
            if self.memory.split and box is not None:
                self.memory.enter(box.hidden)
            self.values.pop(identity, None)

    def _clear(self) -> None:
        self.free(*(identity for identity, box in list(self.boxes.items()) if box.hidden))
        self.memory.enter(False)
        self.values.clear()
        self.boxes.clear()

    def _put(self, identity: int, dtype: str, shape: list[int], data: bytes) -> None:
        if len(data) > MAX_INLINE_BYTES:
            raise LimitExceededError(f"a tensor of {len(data)} bytes goes over HTTP, not inside a frame")
        self.put(identity, from_bytes(data, dtype, tuple(shape)))

    def put(self, identity: int, tensor: torch.Tensor, sources: int = 0, frozen: bool = False) -> None:
        """Take in a tensor under an id of the client's."""
        if type(identity) is not int:
            raise InvalidMessageError("ids are integers")
        tensor = self.here(tensor)
        self.keep(identity, tensor, Box(sources, frozen, storage_of(tensor)))

    def here(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the device of the session; the same one where that is the CPU."""
        try:
            return tensor.to(self.device)
        except torch.OutOfMemoryError:
            raise MemoryError from None

    def keep(self, identity: int, value: Any, box: Box) -> None:
        """Let an id stand for a value. One that it stood for before is freed as what it was."""
        before = self.boxes.get(identity)
        if before is not None and before.hidden and not box.hidden:
            self.free(identity)
        self.values[identity] = value
        self.boxes[identity] = box

    def seed(self, seed: int) -> None:
        """Seed the generator for the next random operation."""
        gpu.seed(self.device, seed)

    def set_grad_mode(self, on: bool) -> None:
        """Whether operations are recorded for gradients from here on."""
        self.grad_mode = bool(on)
        torch.set_grad_enabled(self.grad_mode)

    def _require_grad(self, identity: int, on: bool) -> None:
        value = self.values.get(identity)
        if isinstance(value, torch.Tensor):
            if self.boxes[identity].frozen and on:
                # the flag is the tensor object's, not the storage's: give the session an object of its own
                value = self.values[identity] = value.detach()
            try:
                value.requires_grad_(bool(on))
            except RuntimeError as error:
                self.mark(identity, self._reason("requires_grad_", error, 0), self.boxes[identity].sources)
                return
            if on:
                self.gradients.watch(value)

    def _retain_grad(self, identity: int) -> None:
        value = self.values.get(identity)
        if isinstance(value, torch.Tensor) and value.requires_grad:
            value.retain_grad()
            self.gradients.watch(value)

    def _backward(self, identity: int, gradient: int, retain: bool, create: bool, number: int = 0) -> None:
        self._backward_many([identity], [gradient], [], retain, create, number)

    def _backward_many(
        self,
        identities: list[int],
        gradients: list[int],
        inputs: list[int],
        retain: bool,
        create: bool,
        number: int = 0,
    ) -> None:
        sources = self._work_on((*identities, *gradients, *inputs))
        try:
            for identity in inputs:
                if isinstance(value := self.values.get(identity), torch.Tensor):
                    self.gradients.watch(value)
            only = [self._tensor(i) for i in inputs]
            seeds = [self._tensor(i) if i else None for i in gradients]
            with self.around_backward:
                torch.autograd.backward(
                    [self._tensor(i) for i in identities],
                    seeds,
                    retain_graph=bool(retain),
                    create_graph=bool(create),
                    inputs=only or None,
                )
            self._grad_error = None
        except _KERNEL_ERRORS as error:
            self.faults += 1
            reason = self._reason("backward", error, sources)
            self._grad_error = (reason if reason.origin else reason._replace(origin=int(number)), sources)
            self._errors.setdefault(sources, self._grad_error[0])
        finally:
            self.gradients.settle(sources)
            self.gradients.tell_nothing(sources)

    def settle(self, sources: int) -> None:
        """A backward pass of that lineage went well, and its gradients are there (compiled.py)."""
        self._grad_error = None
        self.gradients.settle(sources)
        self.gradients.tell_nothing(sources)

    def _grad_of(self, out: int, identity: int) -> None:
        value = self.values.get(identity)
        if isinstance(value, Poison):
            self.mark(out, value, self.boxes[identity].sources)
            return
        found = self.gradients.of(value) if isinstance(value, torch.Tensor) else None
        # that there is none may tell that a backward pass failed, or what was assigned
        sources = self.gradients.sources(value) if isinstance(value, torch.Tensor) else 0
        if found is not None:
            self.keep(out, *found)
        elif self._grad_error is not None and not self._grad_error[1] & ~sources:
            self.mark(out, self._grad_error[0], sources)
        elif isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf:
            # the client took it for reached by a backward pass: what stands in the graph is known here alone
            zeros = torch.zeros_like(value)
            box = Box(sources | self.boxes[identity].sources, storage=storage_of(zeros))  # its shape may tell of them
            self.gradients.assign(value, zeros, box)
            self.keep(out, zeros, box)
        else:
            self.mark(out, Poison(RemoteOperationError.code, "there is no gradient: call backward() first"), sources)

    def _set_grad(self, identity: int, gradient: int) -> None:
        value = self.values.get(identity)
        if not isinstance(value, torch.Tensor):
            return
        if not gradient:
            self.gradients.assign(value, None, Box())
            return
        sources = self._work_on((identity, gradient))
        try:
            given, box = self._tensor(gradient), self.boxes[gradient]
            if box.frozen:
                raise OperationNotAllowedError("published data cannot be a gradient, which would be added to")
            self.gradients.assign(value, given, box)
        except OperationNotAllowedError as error:
            self._errors.setdefault(0, Poison(error.code, str(error)))
        except _KERNEL_ERRORS as error:
            self._errors.setdefault(sources, self._reason("grad", error, sources))
            if sources:  # the old one must not tell that there is no new one
                self.gradients.assign(value, None, Box(sources))

    def _gradients(
        self,
        out: list[int],
        outs: list[int],
        seeds: list[int],
        ins: list[int],
        retain: bool,
        create: bool,
        unused: bool = True,
        batched: bool = False,
    ) -> None:
        sources = self._work_on((*outs, *seeds, *ins))
        if len(out) != len(ins):
            raise InvalidMessageError("gradients need one id for each input")
        try:
            with torch.enable_grad():
                inputs = [self._tensor(i) for i in ins]
                found = torch.autograd.grad(
                    [self._tensor(i) for i in outs],
                    inputs,
                    [self._tensor(i) if i else None for i in seeds],
                    retain_graph=bool(retain),
                    create_graph=bool(create),
                    allow_unused=bool(unused),
                    is_grads_batched=bool(batched),
                )
                own = [_own(grad, given) for grad, given in zip(found, inputs, strict=True)]
        except _KERNEL_ERRORS as error:
            self.mark(list(out), self._reason("autograd.grad", error, sources), sources)
            return
        finally:
            self.gradients.settle(sources)
        for identity, made in zip(out, own, strict=True):
            self.keep(identity, made, Box(sources, storage=storage_of(made)))

    # -------------------------------------------------------------- reads

    def _tensor(self, identity: int) -> torch.Tensor:
        value = self.values.get(identity)
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, Poison):
            raise from_wire(value.code, value.text, value.origin)
        raise ObjectNotFoundError(f"there is no value {identity} in this session; it was freed or fetched")

    def earlier(self) -> tuple[Broken, ...]:
        """What failed since this was last asked and made no value that would tell, the first of each lineage."""
        if not self._errors:
            return ()
        errors, self._errors = self._errors, {}
        return tuple(Broken(from_wire(*poison), sources) for sources, poison in errors.items())

    def read(self, identity: int) -> Read | Broken:
        """A value and its lineage, or what its computation failed with."""
        sources = self.lineage((identity,))
        try:
            return Read(self._tensor(identity), sources)
        except GridError as error:
            return Broken(error, sources)

    def _work_on(self, identities: tuple[int, ...]) -> int:
        """The lineage of these values; what follows takes its memory from where theirs is."""
        sources = self.lineage(identities)
        if sources >= SIZED or self.memory.split:
            self.memory.enter(sources >= SIZED)
        return sources

    def lineage(self, identities: tuple[int, ...]) -> int:
        """The data sets that any of these values derives from, as bits."""
        sources = 0
        for identity in identities:
            sources |= self.boxes[identity].sources if identity in self.boxes else 0
        return sources

    def layouts(self, identities: tuple[int, ...]) -> tuple[Layout, ...] | Broken:
        """Shapes and strides of values, which may depend on what is in the data, or what failed."""
        try:
            tensors = [self._tensor(identity) for identity in identities]
        except GridError as error:
            return Broken(error, self.lineage(identities))
        return tuple(
            Layout(shape=tuple(t.shape), stride=t.stride(), offset=int(t.storage_offset()), dtype=NAMES[t.dtype])
            for t in tensors
        )


def _own(gradient: torch.Tensor | None, given: torch.Tensor) -> torch.Tensor:
    """A gradient in memory of its own, laid out as its tensor: what autograd hands out may be a seed, or show one."""
    if gradient is None:
        return torch.zeros_like(given)
    same = gradient.shape == given.shape
    made = torch.empty_like(given) if same else torch.empty(gradient.shape, dtype=given.dtype, device=given.device)
    if made.stride() != given.stride():
        made = torch.empty(gradient.shape, dtype=given.dtype, device=given.device)
    return made.copy_(gradient)
