"""How the runs of one recording go: as the stream would, until it is known how to do the same with less."""

from __future__ import annotations

import time
from typing import Any

from grid_jupyter.worker.compiled import CAN_COMPILE, Failed, Program
from grid_jupyter.worker.stage import Stage, Step
from grid_jupyter.worker.traced import Trace, Watch, is_traceable

_WATCHED_FROM = 2
"""The run that is watched first; the one before settles what the first run of all changes, such as lineage."""
_LONGEST_S = 1.0
"""What takes longer gains nothing by being compiled, and a rehearsal must not bring it to the limit of its time."""
_MOST_WATCHED = 4
_MOST_MISFITS = 3
"""Runs in a row that do not fit, until another one is watched."""


class Course:
    """The steps of a recording and, once it was watched, the calls in their place."""

    def __init__(
        self, stage: Stage, steps: tuple[Step, ...], body: list[list[Any]], outside: int, outs: tuple[int, ...]
    ) -> None:
        self._steps = steps
        self._body = body
        self._outside = outside
        self._outs = outs
        # decision 0014 was found to hold for the CPU's kernels
        compiles = CAN_COMPILE and not stage.memory.on_gpu
        self._open = compiles and is_traceable(body, stage.templates, outside, list(outs))
        self._trace: Trace | None = None
        self._program: Program | None = None
        self._is_sure = False
        self._runs = self._watched = self._misfits = 0

    @property
    def is_compiled(self) -> bool:
        """Whether the next run that fits is done below autograd."""
        return self._program is not None and self._is_sure

    def run(self, stage: Stage) -> None:
        """Do one run on the stage's values, which are those of the slots from outside."""
        if not self._open:
            self._as_told(stage)
            return
        self._runs += 1
        program = self._program
        if program is None:
            self._watch(stage)
        elif not program.fits(stage):
            self._misfits += 1
            if self._misfits >= _MOST_MISFITS:
                self._program = None
            self._as_told(stage)
        elif self._is_sure:
            self._misfits = 0
            self._compiled(stage, program)
        else:
            self._rehearse(stage, program)

    def _as_told(self, stage: Stage, begin: int = 0) -> None:
        for call, arguments, ended in self._steps[begin:] if begin else self._steps:
            call(*arguments)
            if ended:
                stage.free(*ended)

    def _watch(self, stage: Stage) -> None:
        if self._runs < _WATCHED_FROM:
            began = time.monotonic()
            self._as_told(stage)
            self._open = time.monotonic() - began < _LONGEST_S
            return
        self._watched += 1
        self._open = self._watched < _MOST_WATCHED
        self._is_sure, self._misfits = False, 0
        self._trace = Watch(stage, self._steps, self._body, self._outside).run(self._outs)
        if self._trace is not None:
            self._program, self._open = Program(self._trace, self._outs, rehearses=True), True

    def _rehearse(self, stage: Stage, program: Program) -> None:
        rehearsal = program.rehearse(stage)
        self._as_told(stage)
        self._program = None
        if self._trace is not None and rehearsal is not None and rehearsal.agrees(stage.values):
            self._program, self._is_sure = Program(self._trace, self._outs), True
        self._open = self._is_sure or self._watched < _MOST_WATCHED

    def _compiled(self, stage: Stage, program: Program) -> None:
        try:
            program.run(stage)
            return
        except Failed as failed:
            # without the frames that it went through: they hold all values of the run, which go on being freed
            at, error = failed.step, failed.error.with_traceback(None)
        if at is None:
            self._as_told(stage)
            return
        _, arguments, ended = self._steps[at]
        if self._body[at][0] < 0:
            raise error
        template, command = arguments
        stage.fail(template, command, error)
        if ended:
            stage.free(*ended)
        self._as_told(stage, at + 1)
