"""A Node's job as a training over a grid asks for it: submitted or found again, waited for, asked for rounds."""

from __future__ import annotations

import time
from typing import Any

import torch

from grid_jupyter.client.federation import LocalSteps
from grid_jupyter.client.jobs import WAITING, Job
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.participants import Answer, Weights
from grid_jupyter.errors import (
    Conflict,
    Forbidden,
    LimitExceededError,
    NodeUnavailableError,
    ObjectNotFoundError,
    RemoteOperationError,
)
from grid_jupyter.plans.plan import Plan
from grid_jupyter.tensors.text import plain

_TRIES = 5
_AGAIN_S = 2.0
"""How long a job that does not run for a moment is waited for, before a round is asked for again."""
_PAUSE_S = 0.05
"""Before the second try; doubled each time."""
_SPARE = 3
"""Rounds more than are needed: one that is lost with its kernel, or with a connection, counts at the Node too."""


class NodeJob:
    """Local training at one Node, as a job of many rounds."""

    def __init__(self, job: Job, model: torch.nn.Module) -> None:
        self._job = job
        self._fixed = dict(model.named_buffers())
        self._same = _names_of_the_same(model)

    @classmethod
    def open(
        cls, node: NodeClient, plan: Plan, model: torch.nn.Module, data: dict[str, Any], steps: LocalSteps, job: str
    ) -> NodeJob:
        """The job of that id, if it goes on and has as many rounds left; else a new one. Raises as `node.submit`."""
        asked = steps.rounds * steps.asked
        if job:
            try:
                found = node.job(job, model)
            except ObjectNotFoundError:
                pass
            else:
                info = found.info
                if info.state in WAITING:
                    if info.arguments.rounds - info.rounds_done >= asked:
                        return cls(found, model)
                    found.cancel()
        return cls(
            node.submit(
                plan,
                model,
                data=data,
                optimizer=steps.optimizer,
                epochs=steps.epochs,
                batch_size=steps.batch_size,
                shuffle=steps.shuffle,
                seed=steps.seed,
                rounds=asked + _SPARE,
                proximal=steps.proximal,
                corrected=steps.corrected,
                reason=steps.reason,
            ),
            model,
        )

    @property
    def id(self) -> str:
        """By which the Node knows it."""
        return self._job.id

    def ready(self, timeout_s: float) -> bool:
        """Whether it runs; waits that long. Raises Forbidden where it was denied, RemoteOperationError if it ended."""
        self._job.wait(timeout_s, until=frozenset({"running"}))
        state = self._job.info.state
        self._check(state)
        return state == "running"

    def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
        """One round. Raises NodeUnavailableError where it may go on later, else what ended the job."""
        given = weights if self._fixed.keys() <= weights.keys() else {**self._fixed, **weights}
        added = correction
        if self._job.info.arguments.corrected:  # every round brings a correction then
            added = {name: torch.zeros_like(one) for name, one in given.items()} | dict(correction or {})
        for tried in range(_TRIES):
            try:
                done = self._job.round(given, number=number, correction=added)
                break
            except (Conflict, LimitExceededError) as error:
                self._check(self._job.state)
                if tried == _TRIES - 1:
                    raise NodeUnavailableError(str(error)) from None
                # its Worker ended, perhaps, and the next one is on its way: a Node is not left out for that
                self._job.wait(_AGAIN_S, until=frozenset({"running"}))
                time.sleep(_PAUSE_S * 2**tried)
        trained = {name: done.weights[self._same.get(name, name)] for name in weights}
        return Answer(trained, done.rows, done.steps, done.metrics)

    def cancel(self) -> None:
        """End it at the Node."""
        self._job.cancel()

    def finish(self) -> None:
        """End it at the Node: no more rounds are needed."""
        self._job.finish()

    def _check(self, state: str) -> None:
        if state not in WAITING:
            text = f"the job is {state}{f': {plain(self._job.said, 1000)}' if self._job.said else ''}"
            raise (Forbidden if state == "denied" else RemoteOperationError)(text)


def _names_of_the_same(model: torch.nn.Module) -> dict[str, str]:
    """Names of the state_dict by the names under which plans know tensors that a model has twice."""
    known = {id(one): name for name, one in [*model.named_parameters(), *model.named_buffers()]}
    whole = model.state_dict(keep_vars=True)
    return {name: known[id(one)] for name, one in whole.items() if id(one) in known}
