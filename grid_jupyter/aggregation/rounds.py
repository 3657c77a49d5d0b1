"""One round of a strategy: reports are checked and folded as they come; its end has new weights and a new state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import Form, Tensors
from grid_jupyter.aggregation.servers import Outcome, State
from grid_jupyter.aggregation.strategies import SCAFFOLD, FedBuff, Setting, Strategy
from grid_jupyter.errors import BadRequest, InvalidDataError

_CONTROL = "control"


@dataclass(frozen=True)
class Report:
    """What one participant sends: the weights that it trained, and what they rest on."""

    participant: str
    weights: Tensors
    rows: int
    steps: int = 0
    """Local steps of the optimiser in this round."""
    start: Tensors | None = None
    """The weights that it began with; None: those of the round."""
    staleness: int = 0
    """Updates of the model since it was given these."""


class Round:
    """Collects reports on `weights`. One thread at a time.

    Strategies that weigh reports (FedAvg and its kin, SCAFFOLD, FedBuff) fold each as it comes, and keep one model;
    the robust ones keep the reports themselves.
    """

    def __init__(self, strategy: Strategy, setting: Setting, weights: Tensors, state: State) -> None:
        """Raises BadRequest for a strategy that knows no rounds, or does not fit the setting."""
        if strategy.sequential:
            raise BadRequest(f"{type(strategy).__name__} has one participant at a time, and nothing to fold")
        strategy.check(setting)
        self.strategy = strategy
        self.setting = setting
        self.weights = weights
        self.state = state
        self.form = Form.of(weights)
        self.participants: list[str] = []
        """Whose reports are in, in the order of their coming."""
        self._fold = Fold(self.form)
        self._kept: list[Tensors] = []
        self._controls: dict[str, Tensors] = {}

    def add(self, report: Report) -> None:
        """Check a report and take it in.

        Raises InvalidDataError for other tensors than the model's, NaN, infinities, a change over the norm bound,
        a second report of one participant, or one that is too stale; it does not count then.
        """
        strategy = self.strategy
        if report.participant in self.participants and not strategy.asynchronous:
            raise InvalidDataError("this participant has reported in this round already; a report counts once")
        self.form.check(report.weights)
        start = self.weights if report.start is None else report.start
        self.form.check_values(report.weights, origin=start, max_norm=strategy.max_norm)
        if isinstance(strategy, FedBuff):
            if report.staleness > strategy.max_staleness:
                raise InvalidDataError(
                    f"the report rests on weights {report.staleness} updates old; {strategy.max_staleness} are allowed"
                )
            self._fold.add(report.weights, strategy.discount(report.staleness), minus=start)
        elif strategy.weighted:
            self._fold.add(report.weights, float(report.rows))
        elif strategy.keeps:
            self._kept.append(report.weights)
        else:
            self._controls[report.participant] = self._control_after(report)
            self._fold.add(report.weights)
        self.participants.append(report.participant)

    @property
    def full(self) -> bool:
        """Whether there are as many reports as the strategy waits for where nobody waits for anybody."""
        return len(self.participants) >= self.strategy.least

    def close(self) -> Outcome:
        """New weights and the new state. Raises BadRequest where there are fewer reports than the strategy needs."""
        strategy = self.strategy
        if len(self.participants) < max(1, strategy.least):
            raise BadRequest(
                f"{type(strategy).__name__} needs {strategy.least} reports, and there are {len(self.participants)}"
            )
        if strategy.keeps:
            return strategy.combine(self.form, self._kept), {}
        if strategy.asynchronous:
            delta = self._fold.mean(over=float(len(self.participants)))
            mean = {name: self.weights[name] + change for name, change in delta.items()}
        else:
            mean = self._fold.mean()
            delta = {} if strategy.takes_mean else {name: mean[name] - self.weights[name] for name in self._trained()}
        new, state = mean, dict[str, dict[str, NDArray[Any]]]()
        if not strategy.takes_mean:  # buffers and counters are averaged, no more
            moved, state = strategy.step(self.weights, self.state, {name: delta[name] for name in self._trained()})
            new = {name: moved.get(name, mean[name]) for name in self.form.names}
        return new, self._controls_after_round() if isinstance(strategy, SCAFFOLD) else state

    def _trained(self) -> list[str]:
        return [name for name, dtype, _ in self.form.parts if dtype.kind == "f" and name not in self.setting.buffers]

    # -------------------------------------------------------------- SCAFFOLD's control variates

    def _control_after(self, report: Report) -> Tensors:
        """c_i' = c_i - c + (w - y_i) / (K * lr)."""
        if report.steps < 1:
            raise InvalidDataError("SCAFFOLD needs the number of local steps of each report")
        over = report.steps * self.setting.lr
        own, common = self.state.get(_own(report.participant)), self.state.get(_CONTROL)
        found = {}
        for name in self._trained():
            control = (self.weights[name] - report.weights[name]) / over
            if own is not None:
                control += own[name]
            if common is not None:
                control -= common[name]
            found[name] = control
        return found

    def _controls_after_round(self) -> dict[str, dict[str, NDArray[Any]]]:
        """c <- c + sum over reports of (c_i' - c_i) / N, and the c_i' themselves."""
        state = {slot: dict(tensors) for slot, tensors in self.state.items()}
        common = state.get(_CONTROL)
        common = {
            name: numpy.zeros_like(self.weights[name]) if common is None else common[name].copy()
            for name in self._trained()
        }
        for participant, control in self._controls.items():
            before = self.state.get(_own(participant))
            for name, value in control.items():
                common[name] += (value if before is None else value - before[name]) / self.setting.participants
            state[_own(participant)] = dict(control)
        state[_CONTROL] = common
        return state


def correction(strategy: Strategy, state: State, participant: str) -> Tensors | None:
    """What this participant adds to each gradient in the round to come: c - c_i for SCAFFOLD, else nothing (None)."""
    common = state.get(_CONTROL)
    if not isinstance(strategy, SCAFFOLD) or common is None:
        return None
    own = state.get(_own(participant))
    return {name: value if own is None else value - own[name] for name, value in common.items()}


def _own(participant: str) -> str:
    return f"{_CONTROL} of {participant}"
