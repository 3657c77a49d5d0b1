"""`grid.submit`: one job at every Node that has all the data, and how these jobs stand, side by side."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from grid_jupyter.client.jobs import WAITING, Job
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.submitting import captured, example_of, place_of
from grid_jupyter.client.training import Searchable, location_of, only_one, pairs
from grid_jupyter.errors import (
    BadRequest,
    GetNotPermittedError,
    GridError,
    InvalidDataError,
    ObjectNotFoundError,
)
from grid_jupyter.plans.plan import Plan
from grid_jupyter.tensors.text import plain

T = TypeVar("T")

_AT_ONCE = 32
_LOOK_S = 2.0
"""How long one look at a job waits for its next change."""
_PATIENCE_S = 10.0
"""How long a Node that does not answer is asked again before a wait goes on without it."""
_PAUSE_S = 0.5
NO_JOB = "no job"
"""How a Node stands that took none; `said` has why."""
LOST = "lost"
"""How a Node stands that did not answer when it was last asked."""


class Submits:
    """What grids have for jobs: `submit`."""

    def submit(
        self: Searchable,
        plan: Plan | torch.nn.Module,
        model: torch.nn.Module | None = None,
        *,
        data: Any,
        loss: Any = None,
        optimizer: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        metrics: Any = None,
        rounds: int = 1,
        proximal: float = 0.0,
        corrected: bool = False,
        reason: str = "",
        device: str = "",
        device_fraction: float = 0.0,
        user: str | None = None,
    ) -> GridJobs:
        """Submit a job to each Node of a search that has all the data: as `node.submit`, with the same arguments.

        `data` says where the inputs are: `{"x": …, "y": …}`, each of them tags (`("#digits", "#X")`), or what a search
        for them found, or `(found, ["age", "weight"])` for columns of the tables that it found; or, as for `train`,
        what a search for "#X" found whose Nodes have "#Y" beside it, `(found_x, found_y)`, `{node: (x, y)}`. A Node
        without one of the inputs gets no job.

        Returns at once with the jobs; a Node that refuses, or does not answer, is among them with its reason. Raises
        InvalidDataError where no Node has all the data or one has several that fit, BadRequest, and where no Node takes
        the job what they said.
        """
        found, left_out = spread(self, data)
        errors: dict[str, Exception] = {}
        if not isinstance(plan, Plan) and loss is None:
            raise BadRequest("a module is submitted with its loss: submit(model, loss=torch.nn.…, data=…)")
        start = plan if model is None and not isinstance(plan, Plan) else model
        plans: dict[Any, Plan] = {}

        def plan_for(pointers: dict[str, Any]) -> Plan:
            """Nodes whose rows look alike get the same plan, captured once."""
            if isinstance(plan, Plan):
                return plan
            places = {name: place_of(one) for name, one in pointers.items()}
            form = tuple((name, (one := example_of(place)).dtype, one.shape) for name, place in places.items())
            if form not in plans:
                plans[form] = captured(plan, loss, places, metrics)
            return plans[form]

        nodes = {name: _node_of(name, pointers) for name, pointers in found.items()}
        ready: dict[str, Plan] = {}
        for name, pointers in found.items():
            try:
                ready[name] = plan_for(pointers)
            except GridError as error:
                errors[name] = error

        def send(name: str) -> Job | Exception:
            try:
                return nodes[name].submit(
                    ready[name], start, data=found[name], optimizer=optimizer, epochs=epochs, batch_size=batch_size,
                    shuffle=shuffle, seed=seed, metrics=metrics, rounds=rounds, proximal=proximal, corrected=corrected,
                    reason=reason, device=device, device_fraction=device_fraction, user=user,
                )  # fmt: skip
            except Exception as error:  # whatever it is: the jobs that other Nodes took are not lost by it
                return error

        answers = _beside(send, list(ready))
        jobs = {name: one for name, one in answers.items() if isinstance(one, Job)}
        errors |= {name: one for name, one in answers.items() if isinstance(one, Exception)}
        unforeseen = {name: error for name, error in errors.items() if not isinstance(error, GridError)}
        refused = left_out | {name: str(error) for name, error in errors.items()}
        refused |= {name: f"{type(error).__name__}: {error}" for name, error in unforeseen.items()}
        if not jobs:
            for one in unforeseen.values():
                raise one
            kinds = {type(error) for error in errors.values()}
            told = ". ".join(f"{plain(name)}: {why}" for name, why in sorted(refused.items()))
            raise (kinds.pop() if len(kinds) == 1 else GridError)(f"no Node took the job. {told}")
        return GridJobs(jobs, refused)


class GridJobs:
    """The jobs of one `grid.submit(…)`: `for job in jobs`, `jobs["Alma"]`. What is asked of all of them comes by the
    name of the Node; a Node that refused, or is away, hides nothing of the others."""

    def __init__(self, jobs: Mapping[str, Job], refused: Mapping[str, str] | None = None) -> None:
        """`refused`: why other Nodes have no job."""
        self._jobs = dict(sorted(jobs.items()))
        self._refused = dict(refused or {})
        self._lost: dict[str, str] = {}

    @property
    def nodes(self) -> list[str]:
        """Names of all Nodes, those that took no job included."""
        return sorted(self._jobs.keys() | self._refused.keys())

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, node: str) -> Job:
        if node not in self._jobs:
            why = self._refused.get(node, "it is not among these Nodes; see .nodes")
            raise ObjectNotFoundError(f"{plain(node)} has no job of these: {why}")
        return self._jobs[node]

    # -------------------------------------------------------------- how they stand

    @property
    def state(self) -> dict[str, str]:
        """The state of each Node's job, as `job.state`; "no job" where it was refused, "lost" where the Node does not
        answer. Asks all Nodes at once."""
        self._each(Job.refresh)
        return {name: self._state_of(name) for name in self.nodes}

    @property
    def said(self) -> dict[str, str]:
        """Why each job is in its state, and what to do, as it was known last."""
        return {name: self._said_of(name) for name in self.nodes}

    @property
    def progress(self) -> dict[str, float | None]:
        """From 0 to 1 by Node; None while that is not released, or not known. Asks all Nodes at once."""
        found = self._each(Job.refresh)
        return {name: found[name].progress if name in found else None for name in self._jobs}

    def log(self) -> dict[str, list[str]]:
        """What happened to each job, with times; of a Node that does not answer, what it told last."""
        found = self._each(Job.log)
        return {name: found.get(name, []) for name in self._jobs}

    def history(self) -> Any:
        """Loss and metrics of all jobs whose are released, a pandas DataFrame by node and epoch (or round).

        Raises GetNotPermittedError where none are.
        """
        import pandas

        frames = {name: frame for name, frame in self._each(_history).items() if frame is not None}
        if not frames:
            raise GetNotPermittedError(f"no metrics of these jobs are released. {self._reasons()}")
        return pandas.concat(frames, names=["node"])

    # -------------------------------------------------------------- to the end

    def wait(self, timeout_s: float | None = None, *, until: frozenset[str] | None = None) -> GridJobs:
        """Wait until every job is over, or in one of the states that are named, or has waited long enough.

        A Node that stays away for more than ten seconds is waited for no longer; its job goes on when it is back.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        left, missing = set(self._jobs), dict[str, float]()
        while left:
            slice_s = _LOOK_S if deadline is None else min(_LOOK_S, max(0.0, deadline - time.monotonic()))
            self._each(lambda job, wait_s=slice_s: job.wait(wait_s, until=until), left)  # type: ignore[misc]
            now = time.monotonic()
            for name in list(left):
                state = self._jobs[name].info.state
                if name in self._lost:
                    if now - missing.setdefault(name, now) >= _PATIENCE_S:
                        left.discard(name)
                    continue
                missing.pop(name, None)
                if state not in WAITING or (until is not None and state in until):
                    left.discard(name)
            if deadline is not None and now >= deadline:
                break
            if left and left <= missing.keys():
                time.sleep(_PAUSE_S)
        return self

    def results(self, timeout_s: float | None = None) -> dict[str, torch.nn.Module]:
        """The trained models of the Nodes that gave one, by name: copies, as `job.result()`. Waits for all; `said` has
        why another gave none."""
        return self._of_those_done(Job.result, timeout_s)

    def weights(self, timeout_s: float | None = None) -> dict[str, dict[str, torch.Tensor]]:
        """The weights that came out at each Node that gave them. Waits as `results`."""
        return self._of_those_done(Job.weights, timeout_s)

    def _of_those_done(self, take: Callable[[Job, float], T], timeout_s: float | None) -> dict[str, T]:
        self.wait(timeout_s)
        done = [
            name for name, job in self._jobs.items() if job.info.state in ("done", "held") and name not in self._lost
        ]

        def taken(job: Job) -> T | None:
            try:
                return take(job, 0.0)
            except GetNotPermittedError:  # held still: its state says so
                return None

        return {name: one for name, one in self._each(taken, done).items() if one is not None}

    def cancel(self) -> GridJobs:
        """End all that are not over, at once. Where a Node does not answer, `said` says so: cancel again then."""
        self._each(Job.cancel)
        return self

    # -------------------------------------------------------------- asking all of them

    def _each(self, ask: Callable[[Job], T], names: Any = None) -> dict[str, T]:
        """The answers by Node; a Node that gives none is remembered with its reason."""

        def one(name: str) -> T | GridError:
            try:
                return ask(self._jobs[name])
            except GridError as error:
                return error

        answers: dict[str, T] = {}
        for name, answer in _beside(one, list(self._jobs if names is None else names)).items():
            if isinstance(answer, GridError):
                self._lost[name] = str(answer)
            else:
                self._lost.pop(name, None)
                answers[name] = answer
        return answers

    def _state_of(self, name: str) -> str:
        if name not in self._jobs:
            return NO_JOB
        return LOST if name in self._lost else self._jobs[name].info.state

    def _said_of(self, name: str) -> str:
        return self._refused.get(name) or self._lost.get(name) or self._jobs[name].said

    def _reasons(self) -> str:
        states = ((name, self._state_of(name), self._said_of(name)) for name in self.nodes)
        return "; ".join(
            f"{plain(name)} is {plain(state)}{f': {plain(said)}' if said else ''}" for name, state, said in states
        )

    # -------------------------------------------------------------- shown

    def __repr__(self) -> str:
        lines = [f"<Jobs at {len(self._jobs)} Nodes>"]
        for name in self.nodes:
            said = self._said_of(name)
            lines.append(f"  {plain(name)}: {plain(self._state_of(name))}{f': {plain(said, 1000)}' if said else ''}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def row(cells: list[str], kind: str) -> str:
            shown = (f"<{kind} style='text-align:left'>{html.escape(plain(one, 1000))}</{kind}>" for one in cells)
            return f"<tr>{''.join(shown)}</tr>"

        head = row(["Node", "State", "Progress", "Said", "Job"], "th")
        rows = (row(self._cells(name), "td") for name in self.nodes)
        return f"<b>Jobs at {len(self._jobs)} Nodes</b><table>{head}{''.join(rows)}</table>"

    def _cells(self, name: str) -> list[str]:
        job = self._jobs.get(name)
        progress = None if job is None else job.info.progress
        shown = "" if job is None else "not released" if progress is None else f"{progress:.0%}"
        return [name, self._state_of(name), shown, self._said_of(name), "" if job is None else job.id]


def spread(grid: Searchable, data: Any) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What each Node has of a job's data, by the names of the inputs; and the Nodes that lack some, with what.

    Raises InvalidDataError where nothing fits, or at one Node too much; BadRequest.
    """
    if not isinstance(data, Mapping) or not any(_is_place(one) for one in data.values()):
        return {name: {"x": x, "y": y} for name, (x, y) in pairs(grid, data).items()}, {}
    found = {str(name): _found(grid, str(name), one) for name, one in data.items()}
    everywhere = sorted(set().union(*found.values()))
    lacking = {node: [name for name, at in found.items() if node not in at] for node in everywhere}
    left_out = {node: f"it has nothing for {', '.join(names)}" for node, names in lacking.items() if names}
    chosen = [node for node in everywhere if node not in left_out]
    if not chosen:
        told = "; ".join(f"{plain(node)}: {why}" for node, why in left_out.items()) or "nothing was found anywhere"
        raise InvalidDataError(
            f"no Node has all of the data {', '.join(map(plain, found))} ({told}): look at the tags, and at who may "
            f"compute there"
        )
    return {
        node: {name: _candidate(node, at[node], data[name]) for name, at in found.items()} for node in chosen
    }, left_out


def _is_place(one: Any) -> bool:
    """Whether it is tags, or what a search found, or such a one with columns."""
    if isinstance(one, str | Mapping):
        return True
    if not isinstance(one, tuple | list) or not one:
        return False
    return all(isinstance(tag, str) for tag in one) or (len(one) == 2 and isinstance(one[0], Mapping))


def _found(grid: Searchable, name: str, one: Any) -> Mapping[str, Any]:
    if not _is_place(one):
        raise BadRequest(f"{plain(name)} of a job's data is tags, what a search found, or (found, [columns])")
    if isinstance(one, Mapping):
        return one
    if isinstance(one, str):
        return grid.search(one)
    return one[0] if isinstance(one[0], Mapping) else grid.search(*one)


def _candidate(node: str, pointers: Any, one: Any) -> Any:
    chosen = only_one(node, pointers)
    return (chosen, one[1]) if isinstance(one, tuple | list) and isinstance(one[0], Mapping) else chosen


def _node_of(name: str, pointers: dict[str, Any]) -> NodeClient:
    places = {id(place): place for place in map(location_of, pointers.values())}
    if len(places) != 1:
        raise InvalidDataError(f"the data of a job lies at one Node, and that of {plain(name)} does not")
    (place,) = places.values()
    if not isinstance(place, NodeClient):
        raise InvalidDataError(
            f"jobs run on Nodes, and {plain(name)} is none: take pointers to what Nodes have published"
        )
    return place


def _beside(work: Callable[[str], T], names: list[str]) -> dict[str, T]:
    """What the work gives for each name, many at the same time."""
    if not names:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(names))) as pool:
        return dict(zip(names, pool.map(work, names), strict=True))


def _history(job: Job) -> Any:
    try:
        return job.history()
    except GetNotPermittedError:
        return None
