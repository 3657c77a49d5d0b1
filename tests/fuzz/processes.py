"""Runs trials in forked children, so that a crash is known by its operation and call, and costs that call alone."""

from __future__ import annotations

import array
import collections
import gc
import importlib
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

from .arguments import Calls
from .calls import Call, describe
from .memory import Arena, Contents, no_mapped_blocks, perturb
from .survived import Survived
from .trial import AGAIN, BACKWARD, FORWARD, MARK, Bench, Trial

_PHASES = {FORWARD: "", BACKWARD: " in its backward pass", AGAIN: " when called again"}
_FIELDS = 4  # of a child: operation, call, phase, pieces behind it
_PIECE = 2000  # calls of an operation before the next one's turn
_SHARE = 20_000  # calls of a child
_MOST_JOBS = 64


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


class Piece(NamedTuple):
    """Some calls of one operation: its number, and from which call to which."""

    number: int
    first: int
    last: int


class Tally:
    """What was done and found."""

    def __init__(self, names: list[str], path: Path | None = None) -> None:
        self.names = names
        self.found: list[Found] = []
        self.given_up: set[str] = set()
        self.survived = Survived(names, path)
        self.calls = 0
        self.results = 0
        self.cut = 0


# Some gradients import these when they are first computed, which takes longer than a thousand calls: not in each child.
_LATE = ("torch._dynamo", "torch._subclasses.schema_check_mode", "torch.fx.experimental.recording")


def fuzz(names: list[str], recorded: dict[str, list[Call]], settings: Settings, jobs: int, tally: Tally) -> None:
    """Try every operation until it has survived as many calls as are asked for. What is found goes to the tally."""
    if settings.calls * len(names) > _SHARE:
        for late in _LATE:
            importlib.import_module(late)
    with tempfile.TemporaryDirectory() as folder:
        crew = _Crew(names, recorded, settings, tally, Path(folder) / "found")
        try:
            while crew.plan():
                crew.work(jobs)
        finally:
            crew.gather()
            tally.survived.write()


class _Crew:
    def __init__(
        self, names: list[str], recorded: dict[str, list[Call]], settings: Settings, tally: Tally, notes: Path
    ) -> None:
        self._names, self._recorded, self._settings, self._tally = names, recorded, settings, tally
        self._notes = notes
        self._notes.touch()
        self._read = 0
        self._waiting: collections.deque[Piece] = collections.deque()
        self._crashes: collections.Counter[int] = collections.Counter()
        self._running: dict[int, tuple[int, list[Piece]]] = {}
        # what every child is about to do, read when it has died; and the results of each operation
        self._state = memoryview(mmap.mmap(-1, 8 * _FIELDS * _MOST_JOBS)).cast("q")
        self._results = memoryview(mmap.mmap(-1, 8 * _MOST_JOBS * len(names))).cast("q")

    def plan(self) -> bool:
        """Line up what is missing, some calls of every operation at a time, so that all come equally far."""
        rounds: dict[int, list[Piece]] = {}
        for number, name in enumerate(self._names):
            if name in self._tally.given_up:
                continue
            missing = self._tally.survived.entries[name].missing(
                str(self._settings.seed), self._settings.first, self._settings.calls, _PIECE
            )
            for turn, (first, last) in enumerate(missing):
                rounds.setdefault(turn, []).append(Piece(number, first, last))
        self._waiting.extend(piece for turn in sorted(rounds) for piece in rounds[turn])
        return bool(self._waiting)

    def work(self, jobs: int) -> None:
        """Keep `jobs` children busy until nothing is left."""
        running, free = self._running, list(range(jobs))
        while self._waiting or running:
            while self._waiting and free:
                place, share = free.pop(), self._share(jobs)
                running[self._start(place, share)] = (place, share)
            pid, status = os.wait()
            place, share = running.pop(pid)
            free.append(place)
            self._ended(place, share, status)
            self._take_notes()
            self._tally.survived.write(seldom=True)

    def _share(self, jobs: int) -> list[Piece]:
        """What one child is to do: enough to be worth a process, and no more than its part of what is left."""
        share: list[Piece] = []
        most = min(_SHARE, -(-sum(piece.last - piece.first for piece in self._waiting) // (2 * jobs)))
        while self._waiting and most > 0:
            share.append(self._waiting.popleft())
            most -= share[-1].last - share[-1].first
        return share

    def _ended(self, place: int, share: list[Piece], status: int) -> None:
        at, index, phase, done = self._state[_FIELDS * place : _FIELDS * (place + 1)].tolist()
        for piece in share[:done] if status else share:
            self._made(piece.number, piece.first, piece.last)
        for number in {piece.number for piece in share}:
            at_place = place * len(self._names) + number
            self._tally.survived.entries[self._names[number]].results += self._results[at_place]
            self._tally.results += self._results[at_place]
            self._results[at_place] = 0
        if not status:
            return
        piece, name = share[done], self._names[at]
        assert piece.number == at, "the child's own word on what it did"
        entry = self._tally.survived.entries[name]
        self._made(at, piece.first, index + 1)
        left = share[done + 1 :]
        number_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number_of in (signal.SIGPROF, signal.SIGALRM):
            entry.cut += 1
            self._tally.cut += 1
            if entry.cut <= 3:
                self._note(name, index, "slow", f"over {self._settings.cpu_s:g} s of processor time{_PHASES[phase]}")
        else:
            entry.crashes += 1
            self._crashes[at] += 1
            what = signal.Signals(number_of).name if number_of else f"exit status {os.WEXITSTATUS(status)}"
            since = f", after {index - piece.first} other calls" if index > piece.first else ""
            self._note(name, index, "crash", f"{what}{_PHASES[phase]}{since}")
        if self._crashes[at] >= self._settings.most_crashes:
            self._tally.given_up.add(name)
        elif index + 1 < piece.last:
            left.insert(0, Piece(at, index + 1, piece.last))
        self._waiting.extendleft(reversed(left))

    def _made(self, number: int, first: int, last: int) -> None:
        self._tally.calls += last - first
        self._tally.survived.entries[self._names[number]].add(str(self._settings.seed), first, last)

    def gather(self) -> None:
        """Take in what the children wrote down; one that is still at work is ended, and what it did does not count."""
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        self._take_notes()

    def _take_notes(self) -> None:
        lines = self._notes.read_text().splitlines()
        for line in lines[self._read :]:
            found = Found(*json.loads(line))
            self._tally.found.append(found)
            print(f"{found.kind}: {found.text}\n    {found.name} --call {found.index}: {found.call}"[:1000], flush=True)
        self._read = len(lines)

    def _note(self, name: str, index: int, kind: str, text: str) -> None:
        call = Calls(name, self._settings.seed, self._recorded.get(name, ())).make(index)
        found = Found(name, index, kind, text, describe(call))
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

    def _child(self, place: int, share: Iterable[Piece]) -> None:
        settings, state, base = self._settings, self._state, _FIELDS * place
        for stop in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # an exception of the parent's would look like one of the executor's
            signal.signal(stop, signal.SIG_DFL)
        confine(settings)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        if not os.environ.get("FUZZ_STDERR"):
            os.dup2(devnull, 2)
        bench = Bench(Arena(), Contents(settings.seed), settings.memory_bytes)
        told: collections.Counter[tuple[str, str]] = collections.Counter()

        def phase(which: int) -> None:
            state[base + 2] = which

        with self._notes.open("a") as notes:
            for done, (number, first, last) in enumerate(share):
                name = self._names[number]
                calls = Calls(name, settings.seed, self._recorded.get(name, ()))
                trial = Trial(calls, bench)
                state[base : base + _FIELDS] = array.array("q", (number, first, FORWARD, done))
                counted = place * len(self._names) + number
                for index in range(first, last):
                    state[base + 1] = index
                    signal.setitimer(signal.ITIMER_PROF, settings.cpu_s)
                    outcome = trial.run(index, phase)
                    if outcome.ran:
                        self._results[counted] += 1
                    for finding in outcome.findings:
                        told[(name, finding.kind)] += 1
                        if told[(name, finding.kind)] <= 3:
                            line = json.dumps([name, index, *finding, describe(calls.make(index))])
                            notes.write(line + "\n")
                            notes.flush()
                trial.close()
        signal.setitimer(signal.ITIMER_PROF, 0)


def confine(settings: Settings) -> None:
    """Limits like a Worker's, one thread, and no output."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    no_mapped_blocks()
    perturb(MARK)
    gc.freeze()  # what was there before the fork is nobody's garbage
    gc.set_threshold(50_000, 50, 1000)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            ceiling = (int(line.split()[1]) << 10) + settings.memory_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
