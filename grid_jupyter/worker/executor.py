"""Executes a session's commands on real tensors, and knows what every value derives from.

Knows nothing of callers, Nodes or permissions: it answers "this value, from these data sets", and the
Node decides whether that leaves. The commands are those of wire/commands.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import torch

from grid_jupyter.errors import (
    GridError,
    InvalidMessageError,
    LimitExceededError,
    ObjectNotFoundError,
    RemoteOperationError,
    from_wire,
)
from grid_jupyter.ops.raw import NAMES, from_bytes
from grid_jupyter.wire import commands, frames
from grid_jupyter.wire.limits import MAX_INLINE_BYTES, MAX_VALUES
from grid_jupyter.wire.messages import Layout
from grid_jupyter.worker.templates import Box, Template

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


class Read(NamedTuple):
    """A value as it would be released: the tensor, and the data sets that it derives from, as bits."""

    tensor: torch.Tensor
    sources: int


class Executor:
    """The values of one session. Not thread-safe: one thread feeds it, with grad mode of its own."""

    def __init__(self, memory_bytes: int = 0) -> None:
        self.values: dict[int, Any] = {}
        self.boxes: dict[int, Box] = {}
        self._memory_bytes = memory_bytes
        self._templates: dict[int, Template | Poison] = {}
        self._grad_mode = True
        self._leaves: dict[int, tuple[int, int]] = {}  # id → (identity, version) of the gradient last seen
        self._grad_boxes: dict[int, Box] = {}
        self._grad_error: Poison | None = None
        self._error: Poison | None = None
        self._verbs: dict[int, Callable[..., None]] = {
            commands.DEFINE: self._define,
            commands.FREE: self.free,
            commands.PUT: self._put,
            commands.SEED: self._seed,
            commands.GRAD_MODE: self._set_grad_mode,
            commands.REQUIRE_GRAD: self._require_grad,
            commands.RETAIN_GRAD: self._retain_grad,
            commands.BACKWARD: self._backward,
            commands.GRAD_OF: self._grad_of,
            commands.SET_GRAD: self._set_grad,
            commands.GRADIENTS: self._gradients,
        }

    # -------------------------------------------------------------- the stream

    def feed(self, header: bytes | memoryview) -> None:
        """Run one OPERATIONS header. A failing operation poisons its results and the rest goes on.

        Raises InvalidMessageError for what is not a list of commands, LimitExceededError for too many
        values: both end the session.
        """
        # Autograd must stay on: some kernels return no workspace without it and their gradients are then wrong.
        torch.set_grad_enabled(self._grad_mode)
        try:
            for command in frames.decode(header, _decoder):
                self._one(command)
        finally:
            torch.set_grad_enabled(True)
        if len(self.values) > MAX_VALUES:
            raise LimitExceededError(f"the session holds more than {MAX_VALUES} values; drop pointers you do not need")

    def _one(self, command: list[Any]) -> None:
        code = command[0] if command else None
        if type(code) is not int:
            raise InvalidMessageError("a command starts with a code")
        if code >= 0:
            template = self._templates.get(code)
            if isinstance(template, Template):
                if len(command) != template.length:
                    raise InvalidMessageError(f"a command of {template.kernel.name} has the wrong length")
                try:
                    template.run(self.values, self.boxes, command)
                except _KERNEL_ERRORS as error:
                    self._poison(command, template, error)
            elif template is None:
                raise InvalidMessageError(f"template {code} was never defined")
            else:
                self._mark(command[1], template, 0)
            return
        verb = self._verbs.get(code)
        if verb is None:
            raise InvalidMessageError(f"there is no command {code}")
        try:
            verb(*command[1:])
        except TypeError as error:
            raise InvalidMessageError(f"command {code} has wrong arguments") from error

    def _poison(self, command: list[Any], template: Template, error: BaseException) -> None:
        """Mark what a failed command would have made. Text of private origin says no more than its class."""
        sources = 0
        for slot in template.refs:
            identity = command[slot]
            value = self.values.get(identity)
            if isinstance(value, Poison):
                return self._mark(command[1], value, sources)
            if value is None:
                gone = Poison(
                    ObjectNotFoundError.code, f"{template.kernel.name}: a value that it takes is no longer there"
                )
                return self._mark(command[1], gone, sources)
            sources |= self.boxes[identity].sources
        return self._mark(command[1], self._reason(template.kernel.name, error, sources), sources)

    def _reason(self, what: str, error: BaseException, sources: int) -> Poison:
        if isinstance(error, GridError):
            return Poison(error.code, str(error))
        text = str(error)
        if isinstance(error, MemoryError) or "allocate memory" in text:
            limit = f" of {self._memory_bytes >> 20} MB" if self._memory_bytes else ""
            return Poison(LimitExceededError.code, f"{what}: the result does not fit into the session's memory{limit}")
        detail = "" if sources else f": {text.splitlines()[0][:400] if text else ''}"
        return Poison(RemoteOperationError.code, f"{what} failed with {type(error).__name__}{detail}")

    def _mark(self, out: Any, poison: Poison, sources: int) -> None:
        identities = out if isinstance(out, list) else [out]
        if identities == [0]:
            self._error = self._error or poison  # an operation without results: the next read tells
            return
        for identity in identities:
            self.values[identity] = poison
            self.boxes[identity] = Box(sources)

    # -------------------------------------------------------------- verbs

    def _define(self, template: int, name: str, args: list[Any], kwargs: list[Any]) -> None:
        if type(template) is not int or template < 0 or len(self._templates) >= _MAX_TEMPLATES:
            raise InvalidMessageError("a template has a non-negative number, and there are not endlessly many")
        try:
            self._templates[template] = Template(name, args, kwargs)
        except InvalidMessageError:
            raise
        except GridError as error:
            self._templates[template] = Poison(error.code, str(error))

    def free(self, *identities: int) -> None:
        """Forget values; unknown ids are fine."""
        for identity in identities:
            self.values.pop(identity, None)
            self.boxes.pop(identity, None)
            self._leaves.pop(identity, None)
            self._grad_boxes.pop(identity, None)

    def _put(self, identity: int, dtype: str, shape: list[int], data: bytes) -> None:
        if len(data) > MAX_INLINE_BYTES:
            raise LimitExceededError(f"a tensor of {len(data)} bytes goes over HTTP, not inside a frame")
        self.put(identity, from_bytes(data, dtype, tuple(shape)))

    def put(self, identity: int, tensor: torch.Tensor, sources: int = 0, frozen: bool = False) -> None:
        """Take in a tensor under an id of the client's."""
        self.values[identity] = tensor
        self.boxes[identity] = Box(sources, frozen)

    def fail(self, identities: tuple[int, ...], error: GridError) -> None:
        """Poison ids that were to hold something which could not be had."""
        self._mark(list(identities), Poison(error.code, str(error)), 0)

    def _seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def _set_grad_mode(self, on: bool) -> None:
        self._grad_mode = bool(on)
        torch.set_grad_enabled(self._grad_mode)

    def _require_grad(self, identity: int, on: bool) -> None:
        value = self.values.get(identity)
        if isinstance(value, torch.Tensor):
            if self.boxes[identity].frozen and on:
                # the flag is the tensor object's, not the storage's: give the session an object of its own
                value = self.values[identity] = value.detach()
            try:
                value.requires_grad_(bool(on))
            except RuntimeError as error:
                self._mark(identity, self._reason("requires_grad_", error, 0), self.boxes[identity].sources)
                return
            if on:
                self._leaves[identity] = (0, 0)

    def _retain_grad(self, identity: int) -> None:
        value = self.values.get(identity)
        if isinstance(value, torch.Tensor) and value.requires_grad:
            value.retain_grad()
            self._leaves[identity] = (0, 0)

    def _backward(self, identity: int, gradient: int, retain: bool, create: bool) -> None:
        value, sources = self.values.get(identity), 0
        try:
            tensor = self._tensor(identity)
            sources = self.boxes[identity].sources
            seed = self._tensor(gradient) if gradient else None
            if gradient:
                sources |= self.boxes[gradient].sources
            torch.autograd.backward(tensor, seed, retain_graph=bool(retain), create_graph=bool(create))
        except _KERNEL_ERRORS as error:
            self._grad_error = value if isinstance(value, Poison) else self._reason("backward", error, sources)
            return
        # Whatever gradient changed carries what the loss derives from.
        for leaf, seen in self._leaves.items():
            held = self.values.get(leaf)
            grad = held.grad if isinstance(held, torch.Tensor) else None
            if grad is None:
                continue
            state = (id(grad), grad._version)
            if state != seen:
                self._leaves[leaf] = state
                box = self._grad_boxes.setdefault(leaf, Box())
                box.sources |= sources

    def _grad_of(self, out: int, identity: int) -> None:
        value = self.values.get(identity)
        grad = value.grad if isinstance(value, torch.Tensor) else None
        if grad is None:
            poison = value if isinstance(value, Poison) else self._grad_error
            none = Poison(RemoteOperationError.code, "there is no gradient: call backward() first")
            self._mark(out, poison or none, 0)
            return
        self.values[out] = grad
        self.boxes[out] = self._grad_boxes.setdefault(identity, Box(self.boxes[identity].sources))

    def _set_grad(self, identity: int, gradient: int) -> None:
        value = self.values.get(identity)
        if not isinstance(value, torch.Tensor):
            return
        try:
            value.grad = self._tensor(gradient) if gradient else None
        except _KERNEL_ERRORS as error:
            self._error = self._error or self._reason("grad", error, 1)
            return
        self._grad_boxes.pop(identity, None)
        if gradient:
            self._grad_boxes[identity] = self.boxes[gradient]
        if identity in self._leaves:
            self._leaves[identity] = (0, 0)

    def _gradients(
        self, out: list[int], outs: list[int], seeds: list[int], ins: list[int], retain: bool, create: bool
    ) -> None:
        sources = 0
        for identity in (*outs, *seeds, *ins):
            sources |= self.boxes[identity].sources if identity in self.boxes else 0
        try:
            with torch.enable_grad():
                inputs = [self._tensor(i) for i in ins]
                found = torch.autograd.grad(
                    [self._tensor(i) for i in outs],
                    inputs,
                    [self._tensor(i) if i else None for i in seeds],
                    retain_graph=bool(retain),
                    create_graph=bool(create),
                    allow_unused=True,
                )
        except _KERNEL_ERRORS as error:
            self._mark(list(out), self._reason("autograd.grad", error, sources), sources)
            return
        for identity, grad, given in zip(out, found, inputs, strict=True):
            self.values[identity] = torch.zeros_like(given) if grad is None else grad
            self.boxes[identity] = Box(sources)

    # -------------------------------------------------------------- reads

    def _tensor(self, identity: int) -> torch.Tensor:
        value = self.values.get(identity)
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, Poison):
            raise from_wire(value.code, value.text)
        raise ObjectNotFoundError(f"there is no value {identity} in this session; it was freed or fetched")

    def read(self, identity: int) -> Read:
        """A value and its lineage. Raises what its computation failed with, ObjectNotFoundError."""
        if self._error is not None:
            error, self._error = self._error, None
            raise from_wire(error.code, error.text)
        tensor = self._tensor(identity)
        return Read(tensor, self.boxes[identity].sources)

    def lineage(self, identities: tuple[int, ...]) -> int:
        """The data sets that any of these values derives from, as bits."""
        sources = 0
        for identity in identities:
            sources |= self.boxes[identity].sources if identity in self.boxes else 0
        return sources

    def layouts(self, identities: tuple[int, ...]) -> tuple[Layout, ...]:
        """Shapes and strides of values, which may depend on what is in the data."""
        tensors = [self._tensor(identity) for identity in identities]
        return tuple(
            Layout(shape=tuple(t.shape), stride=t.stride(), offset=int(t.storage_offset()), dtype=NAMES[t.dtype])
            for t in tensors
        )
