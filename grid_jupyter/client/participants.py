"""One Node in a training over a grid: a thread that asks its job for rounds, so that all Nodes work at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from grid_jupyter.errors import GridError, NodeUnavailableError, SessionLostError

Weights = Mapping[str, torch.Tensor]
"""Tensors by their names in the model's state_dict."""
_ASK_AGAIN_S = 2.0
_REST_S = 0.5
_LONGEST_REST_S = 30.0


@dataclass(frozen=True)
class Answer:
    """What a Node made of a round."""

    weights: Weights
    rows: int
    steps: int
    """Local steps of the optimiser."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Loss and metrics of the last local epoch, as far as they were released."""


class RoundJob(Protocol):
    """Local training at one Node, a round at a time."""

    @property
    def id(self) -> str:
        """By which the Node knows the job."""

    def ready(self, timeout_s: float) -> bool:
        """Whether its owners have let it run; waits that long for it. Raises where they have not, or it is over."""

    def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
        """Train from these weights on. Raises GridError."""

    def cancel(self) -> None:
        """End it, also in the middle of a round."""

    def finish(self) -> None:
        """The same, where it has done what it was for."""


@dataclass(frozen=True)
class Event:
    """What a participant tells: it is ready to train, it has trained (`answer`), or it failed (`error`)."""

    participant: Participant
    number: int = 0
    """Of the round that it was asked for; 0: of none."""
    answer: Answer | None = None
    error: GridError | None = None


@dataclass(frozen=True)
class _Ask:
    number: int
    weights: Weights
    correction: Weights | None


class Participant:
    """A Node and its job. All attributes belong to the thread that reads `events`."""

    def __init__(self, name: str, open_job: Callable[[], RoundJob], events: queue.Queue[Event]) -> None:
        self.name = name
        self.job: RoundJob | None = None
        self.ready = False
        """Its owners let it train."""
        self.busy = True
        """It has been asked for something, and has not answered yet."""
        self.trusted = True
        """It answered when it was last asked: a round waits for it."""
        self.out = ""
        """Why it takes no part any more; empty: it does."""
        self.rests_until = 0.0
        """It was away when it was last asked: nobody who need not wait for it asks it again before (monotonic)."""
        self._missed = 0
        self._open = open_job
        self._events = events
        self._asked: queue.Queue[_Ask | None] = queue.Queue()
        self._ended = threading.Event()
        self._keep: Collection[str] = ()
        threading.Thread(target=self._work, name=f"training at {name}", daemon=True).start()

    @property
    def free(self) -> bool:
        """It can be asked for a round."""
        return self.ready and not self.busy and not self.out

    def ask(self, number: int, weights: Weights, correction: Weights | None) -> None:
        """Let it train; the answer comes as an event."""
        self.busy = True
        self._asked.put(_Ask(number, weights, correction))

    def take(self, event: Event, now: float) -> None:
        """Note what an event says of it. Each further time that it is away it rests twice as long, up to 30 s."""
        self.busy = False
        if event.error is None:
            self.ready = self.trusted = True
            self._missed, self.rests_until = 0, 0.0
        elif isinstance(event.error, (NodeUnavailableError, SessionLostError)) and self.ready:
            self.trusted = False
            self.rests_until = now + min(_LONGEST_REST_S, _REST_S * 2.0 ** min(self._missed, 10))
            self._missed += 1
        else:
            self.out = str(event.error)

    def end(self, keep: Collection[str] = (), *, finished: bool = False) -> bool:
        """Let the thread end when it has done what it does, and its job at the Node at once, also one that is being
        submitted just now; but for a job of these ids. `finished`: the training came to its end. Where that returns
        False the Node is away: try again."""
        self._keep = keep
        self._ended.set()
        self._asked.put(None)
        job = self.job
        if job is None or job.id in keep:
            return True
        try:
            if finished:
                job.finish()
            else:
                job.cancel()
        except (NodeUnavailableError, SessionLostError):
            return False
        except GridError:
            pass  # it is not known there any more
        return True

    # -------------------------------------------------------------- its own thread

    def _work(self) -> None:
        try:
            job = self.job = self._open()
            if self._ended.is_set() and job.id not in self._keep:
                job.cancel()
                return
            while not job.ready(_ASK_AGAIN_S):
                if self._ended.is_set():
                    return
        except GridError as error:
            self._events.put(Event(self, error=error))
            return
        self._events.put(Event(self))
        while self._answer(job):
            pass

    def _answer(self, job: RoundJob) -> bool:
        """Do what it is asked for next; whether there was anything. Nothing of it is kept in this thread: the memory of
        its weights is that of the next ones, too."""
        ask = self._asked.get()
        if ask is None:
            return False
        try:
            event = Event(self, ask.number, job.round(ask.weights, ask.number, ask.correction))
        except GridError as error:
            event = Event(self, ask.number, error=error)
        self._events.put(event)
        return True
