"""Recordings of a session: lists of commands on slots, checked once when they are defined and run by number.

A recording is data. It holds nothing but commands of the stream, and running it calls what the stream calls
(templates, verbs) with slots in place of ids: lineage, limits and failures are the stream's own. Later runs may do
the same with less (course.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from grid_jupyter.errors import InvalidMessageError, LimitExceededError
from grid_jupyter.ops.raw import from_bytes
from grid_jupyter.wire import commands
from grid_jupyter.wire.limits import MAX_INLINE_BYTES, MAX_RECORDED_COMMANDS, MAX_RECORDINGS
from grid_jupyter.worker.course import Course
from grid_jupyter.worker.stage import Stage, Step
from grid_jupyter.worker.templates import Template


class Recording(NamedTuple):
    """One checked recording."""

    captured: tuple[int, ...]  # ids of the session, in the first slots
    inputs: int  # how many slots after these a run fills
    size: int  # commands
    course: Course
    outs: tuple[int, ...]
    seeds: int
    replaced: tuple[int, ...]  # slots from outside for which a step may put another object in place


class Recordings:
    """The recordings of one session. `define`, `run` and `forget` are its commands."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._held: dict[int, Recording] = {}
        self._seeds: Iterator[int] = iter(())

    def define(self, number: int, captured: list[int], inputs: int, body: list[list[Any]], outs: list[int]) -> None:
        """Check a recording and keep it. Raises InvalidMessageError, LimitExceededError."""
        if type(number) is not int or number in self._held:
            raise InvalidMessageError("a recording has a number of its own")
        recorded = sum(held.size for held in self._held.values())
        if len(self._held) >= MAX_RECORDINGS or recorded + len(body) > MAX_RECORDED_COMMANDS:
            raise LimitExceededError(
                f"a session keeps {MAX_RECORDINGS} recordings, of {MAX_RECORDED_COMMANDS} commands in all"
            )
        _check_ids(captured, outs)
        if type(inputs) is not int or not 0 <= inputs <= MAX_RECORDED_COMMANDS:
            raise InvalidMessageError("a recording has some number of inputs")
        outside = len(captured) + inputs
        known = set(range(1, outside + 1))
        reading = [self._command(command, outside, known) for command in body]
        if not known.issuperset(outs):
            raise InvalidMessageError("what a recording gives is one of its slots")
        replaced = {command[1] for command in body if command[0] == commands.REQUIRE_GRAD and command[1] <= outside}
        steps = tuple(_with_ends(reading, outside, frozenset(outs)))
        self._held[number] = Recording(
            tuple(captured),
            inputs,
            len(body),
            Course(self._stage, steps, body, outside, tuple(outs)),
            tuple(outs),
            sum(command[0] == commands.SEED for command in body),
            tuple(replaced),
        )

    def forget(self, number: int) -> None:
        """Drop a recording; an unknown number is fine."""
        self._held.pop(number, None)

    def run(self, number: int, ids: list[int], outs: list[int], seeds: list[int]) -> None:
        """Run a recording on the session's values `ids`; its results get the ids `outs`."""
        recording = self._held.get(number)
        if recording is None:
            raise InvalidMessageError(f"recording {number} was never defined")
        _check_ids(ids, outs, seeds)
        if len(ids) != recording.inputs or len(outs) != len(recording.outs) or len(seeds) != recording.seeds:
            raise InvalidMessageError(f"a run of recording {number} has wrong numbers of ids or seeds")
        stage = self._stage
        values, boxes, grad_mode = stage.values, stage.boxes, stage.grad_mode
        given = (*recording.captured, *ids)
        # what is no longer there stays out: the operation that takes it says so, as in the stream
        inside = {slot: values[identity] for slot, identity in enumerate(given, 1) if identity in values}
        lineage = {slot: boxes[given[slot - 1]] for slot in inside}
        stage.values, stage.boxes = inside, lineage
        self._seeds = iter(seeds)
        try:
            recording.course.run(stage)
        finally:
            stage.values, stage.boxes = values, boxes
            if stage.grad_mode is not grad_mode:
                stage.set_grad_mode(grad_mode)
        for slot in recording.replaced:
            if slot in inside:
                values[given[slot - 1]] = inside[slot]
        for slot, identity in zip(recording.outs, outs, strict=True):
            if slot in inside:
                stage.keep(identity, inside[slot], lineage[slot])

    # -------------------------------------------------------------- checking

    def _command(self, command: list[Any], outside: int, known: set[int]) -> tuple[Step, list[int]]:
        """One step, and the slots that it names. Results become known."""
        code = command[0] if type(command) is list and command else None
        if type(code) is not int:
            raise InvalidMessageError("a command starts with a code")
        call: Callable[..., None]
        arguments: tuple[Any, ...]
        if code >= 0:
            template = self._stage.templates.get(code)
            if template is None:
                raise InvalidMessageError(f"template {code} was never defined")
            if isinstance(template, Template):
                if len(command) != template.length:
                    raise InvalidMessageError(f"a command of {template.kernel.name} has the wrong length")
                results, operands = command[1], [command[position] for position in template.refs]
                call, arguments = self._stage.perform, (template, command)
            else:  # it is not allowed, or not there: each run poisons the results
                results, operands = command[1], []
                call, arguments = self._stage.mark, (results, template, 0)
            if type(results) is int:
                results = [results] if results > 0 else []
        else:
            if code not in commands.IN_RECORDINGS:
                raise InvalidMessageError(f"a recording cannot hold the command {code}")
            made, taken = commands.IN_RECORDINGS[code]
            results = [slot for position in made for slot in _listed(command[position])]
            operands = [slot for position in taken for slot in _listed(command[position]) if slot != 0]
            call, arguments = self._verb(code, command)
        _check_ids(results, operands)
        if not known.issuperset(operands):
            raise InvalidMessageError("a command takes a slot that nothing filled before")
        if any(slot <= outside for slot in results):
            raise InvalidMessageError("a result gets a slot of its own")
        known.update(results)
        return (call, arguments, ()), [*results, *operands]

    def _verb(self, code: int, command: list[Any]) -> tuple[Callable[..., None], tuple[Any, ...]]:
        if code == commands.SEED:
            return self._seed, ()
        if code == commands.PUT:
            slot, dtype, shape, data = command[1:]
            if len(data) > MAX_INLINE_BYTES:
                raise LimitExceededError(f"a recording holds tensors of up to {MAX_INLINE_BYTES} bytes")
            return self._constant, (slot, from_bytes(data, dtype, tuple(shape)))
        return self._stage.verbs[code], tuple(command[1:])

    # -------------------------------------------------------------- what differs from the stream

    def _seed(self) -> None:
        self._stage.seed(next(self._seeds))

    def _constant(self, slot: int, tensor: torch.Tensor) -> None:
        self._stage.put(slot, tensor.clone())  # a later command may change it


def _with_ends(reading: list[tuple[Step, list[int]]], outside: int, kept: frozenset[int]) -> Iterator[Step]:
    """The steps, each with the slots of results that no later one names."""
    last = {slot: number for number, (_, slots) in enumerate(reading) for slot in slots}
    for number, ((call, arguments, _), slots) in enumerate(reading):
        ended = {slot for slot in slots if slot > outside and slot not in kept and last[slot] == number}
        yield call, arguments, tuple(ended)


def _listed(part: Any) -> list[Any]:
    return part if type(part) is list else [part]


def _check_ids(*lists: Any) -> None:
    for ids in lists:
        if type(ids) is not list or not all(type(identity) is int for identity in ids):
            raise InvalidMessageError("ids are integers")
