"""The rounds of a federated training: who is asked, who is waited for, what is folded, what is remembered.

`grid_jupyter.aggregation` has the strategies, `participants.py` a thread for each Node, `checkpoints.py` the file from
which it goes on after the kernel has died.
"""

from __future__ import annotations

import copy
import queue
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from grid_jupyter.aggregation.form import Form, Tensors
from grid_jupyter.aggregation.rounds import Report, Round, correction
from grid_jupyter.aggregation.servers import State
from grid_jupyter.aggregation.strategies import Setting, Strategy, written
from grid_jupyter.client.checkpoints import Checkpoint, Record, load, store
from grid_jupyter.client.fits import Fit, HeldOut, Metric, evaluated
from grid_jupyter.client.packed import ForMany
from grid_jupyter.client.participants import Answer, Event, Participant, RoundJob
from grid_jupyter.client.training_watch import TrainingWatch
from grid_jupyter.errors import GridError, NodeUnavailableError
from grid_jupyter.plans.optimisers import SGD, Optimiser
from grid_jupyter.tensors.text import plain

_LOOK_S = 0.2
_CANCEL_S = 2.0
"""How long it is tried to cancel a job at a Node that does not answer, at the end of a training."""
Measured = tuple[str, Mapping[str, float], int]
"""Who measured, what, on how many rows."""


@dataclass(frozen=True)
class LocalSteps:
    """What each Node does in a round."""

    optimizer: Optimiser
    epochs: int
    batch_size: int
    shuffle: bool
    seed: int
    rounds: int
    asked: int
    """How often a Node may be asked in a round at most."""
    proximal: float
    """mu of FedProx."""
    corrected: bool
    """Each round brings what is added to every gradient (SCAFFOLD)."""
    reason: str
    """What owners read."""


AfterRound = Callable[[Fit], object]
OpenJob = Callable[[torch.nn.Module, Any, LocalSteps, str], RoundJob]
"""Opens the job of one Node: (model, loss, steps with the rounds that are left, id of a checkpoint's job, or "")."""


def fit(
    model: torch.nn.Module,
    loss: Any,
    nodes: Mapping[str, OpenJob],
    steps: LocalSteps,
    strategy: Strategy,
    *,
    held_out: HeldOut | None,
    metrics: Mapping[str, Metric] | None,
    minimum: int,
    deadline_s: float | None,
    sign_off_s: float | None,
    checkpoint: str | Path | None,
    live: bool,
    after_round: AfterRound | None,
) -> Fit:
    """What `grid.train` does, once it knows where the rows are."""
    training = _Training(model, loss, nodes, steps, strategy, held_out, metrics, minimum, deadline_s, checkpoint, live)
    one_round = training.round
    if strategy.asynchronous:
        one_round = training.update
    elif strategy.sequential:
        one_round = training.serial_round
    try:
        training.sign_off(sign_off_s)
        while training.done < steps.rounds:
            one_round()
            if after_round is not None and after_round(training.fit):
                break
    except BaseException:
        training.end(training.kept)  # what a checkpoint goes on from are these jobs
        raise
    training.end(finished=True)
    return training.fit


class _Training:
    """One training, in the thread that called for it."""

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Any,
        nodes: Mapping[str, OpenJob],
        steps: LocalSteps,
        strategy: Strategy,
        held_out: HeldOut | None,
        metrics: Mapping[str, Metric] | None,
        minimum: int,
        deadline_s: float | None,
        checkpoint: str | Path | None,
        live: bool,
    ) -> None:
        self._model = copy.deepcopy(model)
        self._loss = loss
        self._steps = steps
        self._strategy = strategy
        self._held_out = held_out
        self._metrics = metrics
        self._minimum = minimum
        self._deadline_s = deadline_s
        self._path = None if checkpoint is None else Path(checkpoint)
        self._dtypes = {name: value.dtype for name, value in self._model.state_dict().items()}
        self._weights = {name: one.copy() for name, one in _arrays(self._model.state_dict()).items()}
        self._state: State = {}
        self.kept: frozenset[str] = frozenset()
        """Ids of the jobs from which the checkpoint goes on."""
        trained = {name for name, one in self._model.named_parameters() if one.requires_grad}
        self._setting = Setting(
            participants=len(nodes),
            minimum=minimum,
            plain_sgd=_is_plain_sgd(steps.optimizer),
            lr=float(steps.optimizer.lr),
            buffers=frozenset(self._weights.keys() - trained),
        )
        strategy.check(self._setting)
        self._form = Form.of(self._weights)
        self._described = _described(self._form, loss, steps, strategy)
        records: tuple[Record, ...] = ()
        jobs: Mapping[str, str] = {}
        if self._path is not None and (kept := load(self._path, self._described)) is not None:
            self._form.check(kept.weights)
            self._weights, self._state, records, jobs = dict(kept.weights), kept.state, kept.history, kept.jobs
            self.kept = frozenset(jobs.values())
        self._load(self._weights)
        self.fit = Fit(self._model, records)
        self._watch = TrainingWatch(self.fit, steps.rounds, len(nodes), steps.reason, live=live)
        self._events: queue.Queue[Event] = queue.Queue()
        self._away: dict[str, str] = {}
        self._given: dict[str, tuple[int, Tensors]] = {}  # of FedBuff: update and weights that each began with
        self._counts: dict[str, int] = {}
        self.participants: dict[str, Participant] = {}
        if self.done < steps.rounds:
            left = replace(steps, rounds=steps.rounds - self.done)
            for name in sorted(nodes):
                opening = partial(nodes[name], model, loss, left, jobs.get(name, ""))
                self.participants[name] = Participant(name, opening, self._events)

    @property
    def done(self) -> int:
        """Rounds that are behind it."""
        return self.fit.records[-1].round if self.fit.records else 0

    def end(self, keep: Collection[str] = (), *, finished: bool = False) -> None:
        """Let all threads go, and end their jobs, but for those of these ids: they are cancelled, or `finished`."""
        latest = time.monotonic() + _CANCEL_S
        left = [one for one in self.participants.values() if not one.end(keep, finished=finished)]
        while left := [one for one in left if one.trusted]:  # else its Node is gone, and the job ends when it expires
            if time.monotonic() > latest:
                break
            time.sleep(_LOOK_S)
            left = [one for one in left if not one.end(keep, finished=finished)]
        self._watch.close("finished" if finished else "cut")

    # -------------------------------------------------------------- sign-off

    def sign_off(self, patience_s: float | None) -> None:
        """Wait until every owner has decided, or the time is over and enough have.

        Raises GridError where fewer Nodes than `minimum` may train, with what each said.
        """
        until = None if patience_s is None else time.monotonic() + patience_s
        while waiting := [one for one in self.participants.values() if not one.ready and not one.out]:
            if until is not None and time.monotonic() >= until:
                break
            if sum(not one.out for one in self.participants.values()) < self._minimum:
                break
            self._watch.says(f"waiting for the sign-off of {', '.join(plain(one.name) for one in waiting)}")
            self._next(_LOOK_S)
        possible = sum(not one.out for one in self.participants.values())
        if self.participants and sum(one.ready for one in self.participants.values()) < self._minimum:
            undecided = {one.name: "its owner has not decided yet" for one in waiting if possible >= self._minimum}
            raise GridError(
                f"the training cannot begin: {self._minimum} of {len(self.participants)} Nodes must take part "
                f"(minimum={self._minimum}). {_told({one.name: one.out for one in self._out()} | undecided)}"
            )
        self._watch.says("rounds")

    def _out(self) -> list[Participant]:
        return [one for one in self.participants.values() if one.out]

    # -------------------------------------------------------------- rounds of all together

    def round(self) -> None:
        """One round: every Node that is free trains; what is there at the deadline is folded."""
        number, began = self.done + 1, time.monotonic()
        self._gather(began)
        asked = [one for one in self.participants.values() if one.free]
        left_out = self._reasons()
        given = ForMany(self._tensors(self._weights))
        for one in asked:
            added = correction(self._strategy, self._state, one.name)
            one.ask(number, given, None if added is None else self._tensors(added))
        folding = Round(self._strategy, self._setting, self._weights, self._state)
        measured = list[Measured]()
        for one, answer in self._in_order(asked, number, began):
            if answer is None:
                left_out[one.name] = self._missed(one, began)
                continue
            try:
                folding.add(Report(one.name, _arrays(answer.weights), answer.rows, answer.steps))
            except GridError as error:
                left_out[one.name] = str(error)
            else:
                measured.append((one.name, answer.figures, answer.rows))
        self._enough(len(folding.participants), number, left_out)
        self._weights, self._state = folding.close()
        self._close(number, folding.participants, began, left_out, measured)

    def _in_order(
        self, asked: list[Participant], number: int, began: float
    ) -> Iterator[tuple[Participant, Answer | None]]:
        """Who was asked, with the answer, in the order of names, in which the same answers give the same bits; each as
        soon as those before it are in, while the others still train."""
        collected: dict[str, Answer] = {}
        told = 0
        for name, came in self._collect(asked, number, began):
            collected[name] = came
            while told < len(asked) and not asked[told].busy:
                yield asked[told], collected.pop(asked[told].name, None)
                told += 1
        for one in asked[told:]:
            yield one, collected.pop(one.name, None)

    def _collect(self, asked: list[Participant], number: int, began: float) -> Iterator[tuple[str, Answer]]:
        """Answers to this round by the names of their Nodes as they come, until all are in that it waits for, or the
        deadline."""
        count = 0
        until = None if self._deadline_s is None else began + self._deadline_s
        while waited := [one for one in asked if one.busy]:
            if count >= self._minimum and not any(one.trusted for one in waited):
                return  # who was away when last asked is not waited for
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            event = self._next(left)
            if event is not None and event.number == number and event.answer is not None:
                count += 1
                yield event.participant.name, event.answer

    # -------------------------------------------------------------- one after the other

    def serial_round(self) -> None:
        """One round: the weights go from Node to Node, in the order of their names."""
        number, began = self.done + 1, time.monotonic()
        self._gather(began)
        weights, took_part, measured = self._weights, list[str](), list[Measured]()
        left_out = self._reasons()
        for one in [one for one in self.participants.values() if one.free]:
            one.ask(number, self._tensors(weights), None)
            asked = time.monotonic()
            answer = dict(self._collect([one], number, asked)).get(one.name)
            if answer is None:
                left_out[one.name] = self._missed(one, asked)
                continue
            trained = _arrays(answer.weights)
            try:
                self._form.check(trained)
                self._form.check_values(trained, origin=weights, max_norm=self._strategy.max_norm)
            except GridError as error:
                left_out[one.name] = str(error)
                continue
            weights = trained
            took_part.append(one.name)
            measured.append((one.name, answer.figures, answer.rows))
        self._enough(len(took_part), number, left_out)
        self._weights = weights
        self._close(number, took_part, began, left_out, measured)

    # -------------------------------------------------------------- nobody waits for anybody

    def update(self) -> None:
        """An update of the model: answers as they come, each Node going on at once from the weights of the moment."""
        number, began = self.done + 1, time.monotonic()
        folding = Round(self._strategy, self._setting, self._weights, self._state)
        left_out, measured = dict[str, str](), list[Measured]()
        while not folding.full:
            now = time.monotonic()
            resting = [one.rests_until for one in self.participants.values() if one.free and one.rests_until > now]
            for one in self.participants.values():
                if one.free and one.rests_until <= now:
                    self._counts[one.name] = count = self._counts.get(one.name, self.done) + 1
                    self._given[one.name] = number, self._weights
                    one.ask(count, self._tensors(self._weights), None)
            left = None if self._deadline_s is None else began + self._deadline_s - now
            waits = resting or any(one.busy for one in self.participants.values())
            if (left is not None and left <= 0) or not waits:
                self._enough(0, number, self._reasons() | left_out)
            event = self._next(min([one - now for one in resting] + ([] if left is None else [left]), default=None))
            if event is None or event.answer is None:
                continue
            name, answer = event.participant.name, event.answer
            version, start = self._given[name]
            try:
                report = Report(name, _arrays(answer.weights), answer.rows, answer.steps, start, number - version)
                folding.add(report)
            except GridError as error:
                left_out[name] = str(error)
            else:
                measured.append((name, answer.figures, answer.rows))
        self._weights, self._state = folding.close()
        self._close(number, sorted(set(folding.participants)), began, self._reasons() | left_out, measured)

    # -------------------------------------------------------------- what all have in common

    def _next(self, wait_s: float | None) -> Event | None:
        """Take the next event; None where none came in time."""
        try:
            event = self._events.get(timeout=wait_s)
        except queue.Empty:
            return None
        event.participant.take(event, time.monotonic())
        self._away.pop(event.participant.name, None)
        if event.error is not None and not event.participant.out:
            self._away[event.participant.name] = str(event.error)
        return event

    def _gather(self, began: float) -> None:
        """Take what came since the last round ended: late answers, which are not folded, and who is ready now.

        Where fewer are free than a round needs, wait for those that are still busy.
        """
        until = None if self._deadline_s is None else began + self._deadline_s
        while not self._events.empty():
            self._next(0)
        while sum(one.free for one in self.participants.values()) < self._minimum:
            left = None if until is None else until - time.monotonic()
            if (left is not None and left <= 0) or not any(one.busy for one in self.participants.values()):
                return
            self._next(left)

    def _reasons(self) -> dict[str, str]:
        """Who is not asked, and why."""
        told = {}
        for one in self.participants.values():
            if one.out:
                told[one.name] = one.out
            elif not one.ready:
                told[one.name] = "waiting for its owner's sign-off"
            elif one.name in self._away and (not one.free or one.rests_until > time.monotonic()):
                told[one.name] = self._away[one.name]
            elif one.busy and not self._strategy.asynchronous:
                told[one.name] = "still busy with a round before"
        return told

    def _missed(self, one: Participant, began: float) -> str:
        return one.out or self._away.get(one.name) or f"did not answer in {time.monotonic() - began:.3g} s"

    def _enough(self, count: int, number: int, left_out: Mapping[str, str]) -> None:
        if count >= self._minimum:
            return
        again = "" if self._path is None else f"; the same call goes on behind round {number - 1}"
        raise NodeUnavailableError(
            f"round {number} has {count} answers of {len(self.participants)} Nodes, and minimum={self._minimum}: "
            f"{_told(left_out)}{again}"
        )

    def _close(
        self,
        number: int,
        participants: list[str],
        began: float,
        left_out: Mapping[str, str],
        measured: Sequence[Measured],
    ) -> None:
        """Take the new weights over, measure, remember."""
        self._load(self._weights)
        figures = evaluated(self._model, self._loss, self._held_out, self._metrics)
        losses = [(found["loss"], rows) for _, found, rows in measured if "loss" in found]
        if losses:
            figures["train_loss"] = sum(loss * rows for loss, rows in losses) / sum(rows for _, rows in losses)
        each = {name: dict(found) for name, found, _ in measured if found}
        seconds = time.monotonic() - began
        self.fit.records.append(Record(number, tuple(participants), seconds, figures, dict(left_out), each))
        if self._path is not None:
            jobs = {one.name: one.job.id for one in self.participants.values() if one.job is not None}
            history = tuple(self.fit.records)
            store(self._path, Checkpoint(self._described, self._weights, self._state, history, jobs))
            self.kept = frozenset(jobs.values())
        self._watch.at()

    def _load(self, weights: Tensors) -> None:
        self._model.load_state_dict(self._tensors(weights))

    def _tensors(self, weights: Tensors) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(numpy.asarray(one)).to(self._dtypes[name]) for name, one in weights.items()}


def _arrays(weights: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """As NumPy sees them; bfloat16, which it does not know, as float32."""
    found = {}
    for name, value in weights.items():
        here = value.detach().cpu()
        found[name] = (here.float() if here.dtype == torch.bfloat16 else here).numpy()
    return found


def _is_plain_sgd(optimizer: Optimiser) -> bool:
    return isinstance(optimizer, SGD) and not optimizer.momentum and not optimizer.weight_decay


def _described(form: Form, loss: Any, steps: LocalSteps, strategy: Strategy) -> dict[str, str]:
    """What must be the same for a checkpoint to go on; how many rounds there are may change."""
    return {
        "model": ", ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in form.parts),
        "loss": getattr(loss, "__name__", "") or type(loss).__name__,
        "strategy": written(strategy),
        "optimizer": repr(steps.optimizer),
        "local_epochs": str(steps.epochs),
        "batch_size": str(steps.batch_size),
        "shuffle": str(steps.shuffle),
        "seed": str(steps.seed),
    }


def _told(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{plain(name)}: {why}" for name, why in sorted(reasons.items()))
