"""A device: takes part in model-centric training with data that stays on it, by ONNX Runtime and without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.aggregation.diffs import KEEP
from grid_jupyter.client.invitations import Invitations
from grid_jupyter.client.measuring import Measuring, Told
from grid_jupyter.client.reports import Reports
from grid_jupyter.client.tensor_files import read_arrays
from grid_jupyter.client.training_line import PATIENCE_S, TrainingLine
from grid_jupyter.errors import BadRequest, Conflict, InvalidDataError
from grid_jupyter.link.http import Address
from grid_jupyter.plans.document import Document, Input
from grid_jupyter.plans.engine import Program, Training
from grid_jupyter.plans.onnx_engine import OnnxEngine, OnnxSteps
from grid_jupyter.plans.reader import read_plan

Array = NDArray[Any]
BATCH_SIZE = 32
"""Rows of a step, where client_config says nothing."""
_CARRIED = ("param", "buffer", "state")
_SMALL = 1 << 20
"""Bytes of what is carried from step to step: more of it takes longer than to begin a run, and is copied in a loop."""
_AT_ONCE = 16
"""Steps of one run, which nothing interrupts."""


@dataclass(frozen=True)
class Trained:
    """What a device did in one cycle. `told` has means over the steps of what the plan measures, loss included."""

    cycle: int
    samples: int
    steps: int
    counted: bool  # False: the report came too late
    told: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)
    """What was measured before and after it (`loss_before`, `loss_after` …), as the Node was told."""


class Device:
    """A participant of training: `Device("http://node:5000").participate("mnist", "1.0", data={"x": x, "y": y})`."""

    def __init__(
        self,
        address: str,
        *,
        auth_token: str | None = None,
        push_token: str | None = None,
        listen: bool = False,
        ca_file: str | Path | None = None,
        patience_s: float = PATIENCE_S,
        threads: int = 1,
    ) -> None:
        """`auth_token` is the JWT that a training asks for. `push_token` is one of Firebase, by which the Node reaches
        this device. With `listen` the device sleeps until the Node invites it, in place of asking again and again. A
        Node that does not answer is asked again for `patience_s`; `threads` are those of ONNX Runtime."""
        self._line = TrainingLine(Address(address, ca_file), patience_s, reuses=True)
        self._auth_token, self._push_token = auth_token, push_token
        self._listen, self._patience_s = listen, patience_s
        self._engine = OnnxEngine("cpu", threads)
        self._plans: dict[str, _Plan] = {}
        self._measuring: dict[_Plan, Measuring] = {}

    def close(self) -> None:
        """Let the connection go."""
        self._line.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def participate(
        self,
        model: str,
        version: str | None = None,
        data: Mapping[str, Any] | tuple[Any, Any] | None = None,
        *,
        plan: str | None = None,
        epochs: int = 1,
        cycles: int | None = None,
        seed: int = 0,
        zipped: bool = False,
        diff: str | None = None,
        keep: float = KEEP,
        residual: str | Path | None = None,
        metrics: bool = True,
        held_out: Mapping[str, Any] | tuple[Any, Any] | None = None,
        each: Callable[[Trained], None] = lambda trained: None,
    ) -> list[Trained]:
        """Train in every cycle that has a place for this device, until training is over or `cycles` were trained.

        `data` has an array for each of the plan's x and y, by its name, rows first; or is (x, y). What a cycle does
        follows from client_config: `batch_size`, `lr`, and `max_updates`, the most steps. `plan` names the plan, where
        there are several training steps. `seed` orders the rows. `each` is called after each cycle.

        `diff` is the form of reports: "float32", "float16", "int8", or "topk", which sends the part `keep` of each
        tensor's values and keeps the rest for later cycles in the file `residual`; without it, the first that the Node
        takes. `zipped`: reports are gzip'ed.

        With each report the Node is told loss and metrics of the plan before and after training: means over
        `held_out`, rows of the same form that are not trained on, or else over `data`. `metrics=False` tells nothing.

        Returns what was done. Raises NotFound, NotAuthenticatedError, InvalidDataError for data that does not fit,
        BadRequest, NodeUnavailableError.
        """
        with Reports(self._line, diff, keep=keep, residual=residual, zipped=zipped) as reports:
            reports.settle()
            tried = (data if held_out is None else held_out) if metrics else None
            worker_id, measured = self._line.authenticate(model, version, self._auth_token, self._push_token)
            speeds = self._line.speeds(worker_id) if measured else {}
            done: list[Trained] = []
            with closing(Invitations(self._line, worker_id, self._patience_s)) as invitations:
                while cycles is None or len(done) < cycles:
                    if self._listen:
                        answer = invitations.request(model, version, speeds)
                    else:
                        answer = self._line.cycle_request(worker_id, model, version, speeds)
                    if answer["status"] == "accepted":
                        then = None if self._listen or len(done) + 1 == cycles else speeds
                        trained = self._cycle(worker_id, answer, data, tried, plan, epochs, seed, reports, then)
                        done.append(trained)
                        each(trained)
                    elif "timeout" not in answer:
                        break
            return done

    def _cycle(
        self,
        worker_id: str,
        answer: dict[str, Any],
        data: Any,
        tried: Any,
        plan: str | None,
        epochs: int,
        seed: int,
        reports: Reports,
        then: dict[str, float] | None,
    ) -> Trained:
        key, cycle = answer["request_key"], int(answer["cycle_id"])
        reports.check(answer)
        try:
            found = self._plan(worker_id, answer, plan)
            before = read_arrays(self._line.get_model(worker_id, key, answer["model_id"], answer["model_sha256"]))
        except Conflict:  # it closed while we were still loading
            return Trained(cycle, 0, 0, False, {})
        rows = _rows(found.document, data)
        on = None if tried is None else _rows(found.document, tried)
        random = numpy.random.Generator(numpy.random.Philox([seed, cycle]))
        values = _values(found.document, before, answer["client_config"])
        samples, steps, told = _train(found, values, rows, answer["client_config"], epochs, random)
        after = {**values["param"], **values["buffer"]}
        measured = None if on is None else self._measure(found, (before, {**before, **after}), on, answer)
        counted = reports.send(worker_id, answer, before, after, samples, random, measured, then)
        return Trained(cycle, samples, steps, counted, told, measured.metrics if measured else {})

    def _measure(
        self, plan: _Plan, models: tuple[dict[str, Array], dict[str, Array]],
        rows: dict[str, dict[str, Array]], answer: dict[str, Any],
    ) -> Told:  # fmt: skip
        if plan not in self._measuring:
            self._measuring[plan] = Measuring(self._engine, plan.document)
        size = _whole(answer["client_config"], "batch_size", BATCH_SIZE)
        (before, count), (after, _) = (self._measuring[plan].measure(one, rows, size) for one in models)
        return Told.of(before, after, count)

    def _plan(self, worker_id: str, answer: dict[str, Any], plan: str | None) -> _Plan:
        """The training step, which is fetched and made ready once."""
        if plan is not None and plan not in answer["plans"]:
            raise BadRequest(f"this training has no plan {plan!r}, but {', '.join(answer['plans'])}")
        for name, number in answer["plans"].items():
            sha256 = answer["plan_sha256"][name]
            if plan not in (None, name):
                continue
            if sha256 not in self._plans:
                document = read_plan(self._line.get_plan(worker_id, answer["request_key"], number))
                if document.kind != "step":
                    continue
                self._plans[sha256] = _Plan(self._engine, document)
            return self._plans[sha256]
        raise BadRequest(
            "this training has no plan of a whole step (training_plan); FLClient.new_job runs plans of other kinds"
        )


class _Plan:
    """A training step, made ready as it is needed: to be made one at a time, or many in one run."""

    def __init__(self, engine: OnnxEngine, document: Document) -> None:
        self.document = document
        self._engine = engine

    @cached_property
    def step(self) -> Program[Array]:
        """One step a run."""
        return self._engine.load(self.document)

    @cached_property
    def steps(self) -> OnnxSteps | None:
        """Many, where that is worth while: of a small model, whose steps take less time than to begin a run."""
        inputs = self.document.inputs
        nbytes = sum(
            math.prod(_shape(one)) * numpy.dtype(one.spec.dtype).itemsize for one in inputs if one.role in _CARRIED
        )
        noise = any(one.role == "noise" for one in inputs)  # it is drawn here
        return None if noise or nbytes > _SMALL else self._engine.load_steps(self.document)


def _rows(document: Document, data: Any) -> dict[str, dict[str, Array]]:
    """The data by role and name, in the plan's dtypes. Raises InvalidDataError for what is missing or does not fit."""
    wanted = document.inputs_of("x", "y")
    if isinstance(data, tuple) and len(data) == len(wanted):
        data = {one.name: part for one, part in zip(wanted, data, strict=True)}
    names = ", ".join(one.name for one in wanted)
    if not isinstance(data, Mapping) or data.keys() != {one.name for one in wanted}:
        raise InvalidDataError(f"the plan takes the data {names}: give data={{name: array}}, or a tuple in this order")
    found: dict[str, dict[str, Array]] = {"x": {}, "y": {}}
    for one in wanted:
        found[one.role][one.name] = _fitting(one, numpy.asarray(data[one.name]))
    counts = {len(array) for part in found.values() for array in part.values()}
    if len(counts) != 1 or not counts.pop():
        raise InvalidDataError(f"{names} need one row or more, and all of them as many")
    return found


def _fitting(one: Input, array: Array) -> Array:
    if array.ndim != len(one.spec.shape) or tuple(array.shape[1:]) != one.spec.shape[1:]:
        raise InvalidDataError(f"{one.name} is of shape {array.shape}; the plan takes rows of {one.spec.shape[1:]}")
    dtype = numpy.dtype(one.spec.dtype)
    if not numpy.can_cast(array.dtype, dtype, "same_kind"):
        raise InvalidDataError(f"{one.name} is of {array.dtype}; the plan takes {dtype}")
    return numpy.ascontiguousarray(array, dtype)


def _values(document: Document, model: dict[str, Array], config: dict[str, Any]) -> dict[str, dict[str, Array]]:
    """What training begins with, by role and name."""
    params, buffers = ({one.name: model[one.name] for one in document.inputs_of(role)} for role in ("param", "buffer"))
    state = {one.name: numpy.zeros(_shape(one), one.spec.dtype) for one in document.inputs_of("state")}
    hyper: dict[str, Array] = {}
    for one in document.inputs_of("hyper"):
        value = config.get(one.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRequest(f"the plan takes the number {one.name!r}, which client_config does not have")
        hyper[one.name] = numpy.asarray(value, one.spec.dtype)
    return {"param": params, "buffer": buffers, "state": state, "hyper": hyper}


def _shape(one: Input) -> tuple[int, ...]:
    return tuple(length for length in one.spec.shape if isinstance(length, int))


def _train(
    plan: _Plan,
    values: dict[str, dict[str, Array]],
    rows: dict[str, dict[str, Array]],
    config: dict[str, Any],
    epochs: int,
    random: numpy.random.Generator,
) -> tuple[int, int, dict[str, float]]:
    """Rows that were trained on, steps, and means of what the plan measured. `values` are changed to those after it."""
    least, most = plan.document.batch
    count, noise = len(next(iter(rows["x"].values()))), int(random.integers(1 << 62))
    size = min(_whole(config, "batch_size", BATCH_SIZE), most)
    limit = _whole(config, "max_updates", 0) or epochs * count
    pull = _pull(config)
    left = count % size
    used = count if left >= least or not left else count - left  # a last batch that is too small is left out
    if size < least:
        used = 0
    each = -(-used // size)
    together = plan.steps if not pull and min(limit, each) > 1 else None
    run = _one_by_one(plan.step, values, rows, pull, noise) if together is None else _many(together, values, rows)
    steps, totals, seen = 0, dict[str, float](), numpy.zeros(count, bool)
    for _ in range(epochs):
        order = random.permutation(count)[:used]
        for start in range(0, used, size * _AT_ONCE):
            chosen = order[start : start + size * min(_AT_ONCE, limit - steps)]
            if not len(chosen):
                break
            for name, measured in run(chosen, size).items():
                totals[name] = sum(measured, totals.get(name, 0.0))
            steps += -(-len(chosen) // size)
            seen[chosen] = True
    if not steps:
        raise InvalidDataError(f"{count} rows are fewer than the {least} of the plan's smallest batch")
    return int(numpy.count_nonzero(seen)), steps, {name: total / steps for name, total in totals.items()}


def _many(
    steps: OnnxSteps, values: dict[str, dict[str, Array]], rows: dict[str, dict[str, Array]]
) -> Callable[[Array, int], dict[str, list[float]]]:
    """Steps in one run: what was measured in each, by name."""

    def run(chosen: Array, size: int) -> dict[str, list[float]]:
        found = steps.run({**values, **rows}, chosen.astype(numpy.int64, copy=False), size)
        told = {name: array.tolist() for role in ("loss", "metric") for name, array in found.pop(role, {}).items()}
        for role, named in found.items():
            values[role].update(named)
        return told

    return run


def _one_by_one(
    program: Program[Array],
    values: dict[str, dict[str, Array]],
    rows: dict[str, dict[str, Array]],
    pull: float,
    noise: int,
) -> Callable[[Array, int], dict[str, list[float]]]:
    """The same, a run for each step; `pull` as _pull has it."""
    training = Training(program, values["param"], values["buffer"], values["state"], values["hyper"], noise)
    begun = dict(training.params)

    def run(chosen: Array, size: int) -> dict[str, list[float]]:
        told: dict[str, list[float]] = {}
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            x, y = ({name: array[batch] for name, array in rows[role].items()} for role in ("x", "y"))
            before = dict(training.params) if pull else {}
            for name, value in training.step(x, y, len(batch)).items():
                told.setdefault(name, []).append(float(value))
            if pull:
                for name, array in training.params.items():
                    training.params[name] = array - array.dtype.type(pull) * (before[name] - begun[name])
        values.update(param=training.params, buffer=training.buffers, state=training.state)
        return told

    return run


def _pull(config: dict[str, Any]) -> float:
    """lr * mu of FedProx: a plain step on F(w) + mu/2 * |w - w_start|^2 is one on F, less lr * mu * (w - w_start)."""
    mu, lr = config.get("proximal_mu", 0), config.get("lr", 0)
    if any(isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in (mu, lr)):
        raise BadRequest("client_config has a proximal_mu, or lr, that is no number")
    return float(mu * lr)


def _whole(config: dict[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (not value and default):
        raise BadRequest(f"client_config has a {name} that is no positive whole number")
    return value
