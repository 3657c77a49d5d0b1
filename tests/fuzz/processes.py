"""Runs trials in forked children, so that a crash is known by its operation and call, and costs that call alone."""

from __future__ import annotations

import array
import collections
import json
import mmap
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from .calls import Call, describe
from .memory import Arena, no_mapped_blocks
from .trial import AGAIN, BACKWARD, FORWARD, Trial

_PHASES = {FORWARD: "", BACKWARD: " in its backward pass", AGAIN: " when called again"}
_FIELDS = 4  # of a child: operation, call, phase, operations behind it
_COUNTS = 3  # of an operation: calls, results, slow calls


class Settings(NamedTuple):
    """How to fuzz."""

    seed: int
    calls: int
    first: int
    memory_bytes: int
    cpu_s: float
    most_crashes: int


class Found(NamedTuple):
    """One finding, with all that it takes to have it again."""

    name: str
    index: int
    kind: str
    text: str
    call: str


class Tally:
    """What was done and found."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.found: list[Found] = []
        self.given_up: set[str] = set()
        self._counts = mmap.mmap(-1, 8 * _COUNTS * len(names) or 8)
        self._view = memoryview(self._counts).cast("q")

    def count(self, name: str) -> tuple[int, int, int]:
        """Calls, calls with a result, and calls that took too long."""
        at = _COUNTS * self.names.index(name)
        return tuple(self._view[at : at + _COUNTS].tolist())  # type: ignore[return-value]

    def add(self, number: int, field: int) -> None:
        """One more."""
        self._view[_COUNTS * number + field] += 1


def fuzz(names: list[str], recorded: dict[str, list[Call]], settings: Settings, jobs: int, tally: Tally) -> None:
    """Try every operation. Findings and counts go to the tally."""
    with tempfile.TemporaryDirectory() as folder:
        _Crew(names, recorded, settings, tally, Path(folder) / "found").work(jobs)


class _Crew:
    def __init__(
        self, names: list[str], recorded: dict[str, list[Call]], settings: Settings, tally: Tally, notes: Path
    ) -> None:
        self._names, self._recorded, self._settings, self._tally = names, recorded, settings, tally
        self._notes = notes
        last = settings.first + settings.calls
        self._waiting = collections.deque((number, settings.first, last) for number in range(len(names)))
        self._crashes: collections.Counter[int] = collections.Counter()
        self._board = mmap.mmap(-1, 8 * _FIELDS * 64)
        self._state = memoryview(self._board).cast("q")

    def work(self, jobs: int) -> None:
        """Keep `jobs` children busy until nothing is left."""
        running: dict[int, tuple[int, list[tuple[int, int, int]]]] = {}
        free = list(range(jobs))
        batch = max(1, min(20, 4000 // max(1, self._settings.calls)))
        self._notes.touch()
        while self._waiting or running:
            while self._waiting and free:
                place = free.pop()
                share = [self._waiting.popleft() for _ in range(min(batch, len(self._waiting)))]
                running[self._start(place, share)] = (place, share)
            pid, status = os.wait()
            place, share = running.pop(pid)
            free.append(place)
            if status:
                self._ended(place, share, status)
        for line in self._notes.read_text().splitlines():
            self._tally.found.append(Found(*json.loads(line)))

    def _ended(self, place: int, share: list[tuple[int, int, int]], status: int) -> None:
        at, index, phase, done = self._state[_FIELDS * place : _FIELDS * (place + 1)].tolist()
        number, _, last = share[done]
        assert number == at, "the child's own word on what it did"
        name = self._names[number]
        number_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number_of in (signal.SIGPROF, signal.SIGALRM):
            self._tally.add(number, 2)
            if self._tally.count(name)[2] <= 3:
                self._note(name, index, "slow", f"over {self._settings.cpu_s:g} s of processor time{_PHASES[phase]}")
        else:
            what = signal.Signals(number_of).name if number_of else f"exit status {os.WEXITSTATUS(status)}"
            self._note(name, index, "crash", f"{what}{_PHASES[phase]}")
        self._crashes[number] += 1
        left = share[done + 1 :]
        if self._crashes[number] >= self._settings.most_crashes:
            self._tally.given_up.add(name)
        elif index + 1 < last:
            left.insert(0, (number, index + 1, last))
        self._waiting.extendleft(reversed(left))

    def _note(self, name: str, index: int, kind: str, text: str) -> None:
        trial = Trial(name, self._settings.seed, self._recorded.get(name, ()), None, 0)  # type: ignore[arg-type]
        found = Found(name, index, kind, text, describe(trial.call(index)))
        self._tally.found.append(found)
        print(f"{kind}: {text}\n    {name} --call {index}: {found.call}"[:1000], flush=True)

    def _start(self, place: int, share: list[tuple[int, int, int]]) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            self._child(place, share)
            status = 0
        except BaseException as error:  # the child's outermost door
            os.write(2, f"the fuzzer itself failed: {type(error).__name__}: {error}\n".encode())
            traceback.print_exc()
        finally:
            os._exit(status)

    def _child(self, place: int, share: Iterable[tuple[int, int, int]]) -> None:
        settings = self._settings
        confine(settings)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        if not os.environ.get("FUZZ_STDERR"):
            os.dup2(devnull, 2)
        arena = Arena()
        base = _FIELDS * place
        told: collections.Counter[tuple[str, str]] = collections.Counter()
        with self._notes.open("a") as notes:
            for done, (number, first, last) in enumerate(share):
                name = self._names[number]
                trial = Trial(name, settings.seed, self._recorded.get(name, ()), arena, settings.memory_bytes)
                self._state[base : base + _FIELDS] = array.array("q", (number, first, FORWARD, done))

                def phase(which: int) -> None:
                    self._state[base + 2] = which

                for index in range(first, last):
                    self._state[base + 1] = index
                    signal.setitimer(signal.ITIMER_PROF, settings.cpu_s)
                    self._tally.add(number, 0)
                    outcome = trial.run(index, phase)
                    if outcome.ran:
                        self._tally.add(number, 1)
                    for finding in outcome.findings:
                        told[(name, finding.kind)] += 1
                        if told[(name, finding.kind)] <= 3:
                            line = json.dumps([name, index, *finding, describe(trial.call(index))])
                            notes.write(line + "\n")
                            notes.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)


def confine(settings: Settings) -> None:
    """Limits like a Worker's, one thread, and no output."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    no_mapped_blocks()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            ceiling = (int(line.split()[1]) << 10) + settings.memory_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
