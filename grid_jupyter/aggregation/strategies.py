"""The strategies of federated training: what each asks of local steps, and how it makes one model of the reports.

For jobs and for training cycles alike. `grid_jupyter.aggregation.rounds` carries one out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from numpy.typing import NDArray

from grid_jupyter.aggregation import robust, servers
from grid_jupyter.aggregation.form import Form, Report, Tensors
from grid_jupyter.aggregation.servers import Outcome, State
from grid_jupyter.errors import BadRequest


@dataclass(frozen=True)
class Setting:
    """What a strategy must know of the training that it is to serve."""

    participants: int
    """How many may take part."""
    minimum: int = 1
    """How many reports a round has at least."""
    plain_sgd: bool = True
    """Local steps are w <- w - lr * g, and nothing else: no momentum, no weight decay, no second moments."""
    lr: float = 0.0
    """Their learning rate."""
    buffers: frozenset[str] = frozenset()
    """Tensors of the model that no gradient trains, such as a batch norm's running mean: they are averaged."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What all strategies share. Numbers are checked when one is made, what they ask of a training by `check`."""

    max_norm: float | None = None
    """A report that lies farther than this from the weights it began with (Euclidean norm) is refused."""

    weighted: ClassVar[bool] = False
    """Reports count by their rows."""
    keeps: ClassVar[bool] = False
    """Reports are kept until the round ends, and `combine` makes a model of them; others fold, and make a `step`."""
    asynchronous: ClassVar[bool] = False
    """There are no rounds to wait for: a report is folded whenever it comes."""
    corrected: ClassVar[bool] = False
    """A round brings each participant what it adds to its gradients (`rounds.correction`)."""
    sequential: ClassVar[bool] = False
    """Participants train one after the other, each from what the one before made."""

    def __post_init__(self) -> None:
        _positive(self, "max_norm", optional=True)

    @property
    def proximal(self) -> float:
        """mu of the proximal term that local steps add to the loss: mu/2 * |w - w_start|^2."""
        return 0.0

    @property
    def least(self) -> int:
        """How many reports it cannot do without."""
        return 1

    @property
    def takes_mean(self) -> bool:
        """The mean of the trained weights is the new model as it is: there is no step to make."""
        return False

    def step(self, weights: Tensors, state: State, delta: Tensors) -> Outcome:
        """The server's step by the mean change `delta`. Raises BadRequest where there is none."""
        raise BadRequest(f"{type(self).__name__} makes no step at the server")

    def combine(self, form: Form, reports: Sequence[Report]) -> dict[str, NDArray[Any]]:
        """One model of the reports that were kept. Raises BadRequest where none are kept, or too few."""
        raise BadRequest(f"{type(self).__name__} keeps no reports")

    def check(self, setting: Setting) -> None:
        """Refuse a training that this strategy cannot serve. Raises BadRequest with the reason."""
        if setting.participants < 1:
            raise BadRequest("a training needs at least one participant")
        if not 1 <= setting.minimum <= setting.participants:
            raise BadRequest(
                f"minimum={setting.minimum} of {setting.participants} participants: it lies between 1 and all of them"
            )
        if setting.minimum < self.least and not self.asynchronous:
            raise BadRequest(
                f"{type(self).__name__} needs {self.least} reports a round: minimum={self.least} or more, "
                f"and as many participants"
            )


@dataclass(frozen=True, kw_only=True)
class FedAvg(Strategy):
    """The mean of the trained weights, by rows: w <- w + server_lr * (sum_i n_i w_i / sum_i n_i - w).

    McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", algorithm 1.
    """

    server_lr: float = 1.0
    weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "server_lr")

    @property
    def takes_mean(self) -> bool:
        return self.server_lr == 1.0

    def step(self, weights: Tensors, state: State, delta: Tensors) -> Outcome:
        return servers.fedavg(weights, state, delta, lr=self.server_lr)


@dataclass(frozen=True, kw_only=True)
class FedAvgM(FedAvg):
    """FedAvg with momentum at the server: v <- momentum * v + delta;  w <- w + server_lr * v.

    Hsu, Qi, Brown 2019, "Measuring the Effects of Non-Identical Data Distribution", section 3.3.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "momentum")

    @property
    def takes_mean(self) -> bool:
        return False

    def step(self, weights: Tensors, state: State, delta: Tensors) -> Outcome:
        return servers.fedavgm(weights, state, delta, lr=self.server_lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """FedAvg whose local steps are held near the weights of the round: F_k(w) + mu/2 * |w - w_start|^2.

    Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2. mu = 0 is FedAvg.
    """

    mu: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mu < float("inf"):
            raise BadRequest(f"mu={self.mu!r}: FedProx takes 0 or a positive number")

    @property
    def proximal(self) -> float:
        return self.mu


@dataclass(frozen=True, kw_only=True)
class _Adaptive(FedAvg):
    """m <- beta1 * m + (1 - beta1) * delta;  w <- w + server_lr * m / (sqrt(v) + tau), from m = 0, v = tau^2 on."""

    server_lr: float = 0.1
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "beta1")
        _positive(self, "tau")

    @property
    def takes_mean(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(_Adaptive):
    """An Adagrad step at the server, by the mean change delta: v <- v + delta^2.

    Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2 (which has beta1 = 0 for Adagrad in section 5).
    """

    beta1: float = 0.0

    def step(self, weights: Tensors, state: State, delta: Tensors) -> Outcome:
        return servers.fedadagrad(weights, state, delta, lr=self.server_lr, beta1=self.beta1, tau=self.tau)


@dataclass(frozen=True, kw_only=True)
class FedYogi(_Adaptive):
    """A Yogi step at the server: v <- v - (1 - beta2) * delta^2 * sign(v - delta^2).

    Reddi et al. 2021, algorithm 2.
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "beta2")

    def step(self, weights: Tensors, state: State, delta: Tensors) -> Outcome:
        return servers.fedyogi(
            weights, state, delta, lr=self.server_lr, beta1=self.beta1, beta2=self.beta2, tau=self.tau
        )


@dataclass(frozen=True, kw_only=True)
class FedAdam(_Adaptive):
    """An Adam step at the server, without bias correction: v <- beta2 * v + (1 - beta2) * delta^2.

    Reddi et al. 2021, algorithm 2.
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "beta2")

    def step(self, weights: Tensors, state: State, delta: Tensors) -> Outcome:
        return servers.fedadam(
            weights, state, delta, lr=self.server_lr, beta1=self.beta1, beta2=self.beta2, tau=self.tau
        )


@dataclass(frozen=True, kw_only=True)
class SCAFFOLD(Strategy):
    """Control variates against the drift of clients whose data differ. Each local step is

        y <- y - lr * (g(y) + c - c_i)

    and after K steps, with N participants of which S reported (option II),

        c_i' = c_i - c + (w - y_i) / (K * lr)
        w <- w + server_lr * mean over S of (y_i - w);   c <- c + sum over S of (c_i' - c_i) / N

    Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging", algorithm 1. Means are not weighted by rows,
    as there. The coordinator keeps c and all c_i, N + 1 models; a Worker gets c - c_i with a round, keeps nothing.
    """

    server_lr: float = 1.0
    corrected: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "server_lr")

    @property
    def takes_mean(self) -> bool:
        return self.server_lr == 1.0

    def step(self, weights: Tensors, state: State, delta: Tensors) -> Outcome:
        return servers.fedavg(weights, state, delta, lr=self.server_lr)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        if not setting.plain_sgd or not setting.lr > 0:
            raise BadRequest(
                "SCAFFOLD's control variates follow from K steps of plain SGD with one learning rate: "
                "take SGD without momentum or weight decay, or another strategy"
            )


@dataclass(frozen=True, kw_only=True)
class Median(Strategy):
    """The median of each coordinate; holds against fewer than half hostile reports.

    Yin et al. 2018, "Byzantine-Robust Distributed Learning", definition 1. All reports are kept until the round ends.
    """

    keeps: ClassVar[bool] = True

    def combine(self, form: Form, reports: Sequence[Report]) -> dict[str, NDArray[Any]]:
        return robust.median(form, reports)

    @property
    def least(self) -> int:
        return 3  # of two, the median is their mean, and one of them can pull it anywhere


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Strategy):
    """The mean of each coordinate without its `trim` smallest and largest values; against `trim` hostile reports.

    Yin et al. 2018, definition 2. All reports are kept until the round ends.
    """

    trim: int = 1
    keeps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trim < 1:
            raise BadRequest(f"trim={self.trim}: without a report to trim at either end this is FedAvg without rows")

    def combine(self, form: Form, reports: Sequence[Report]) -> dict[str, NDArray[Any]]:
        return robust.trimmed_mean(form, reports, self.trim)

    @property
    def least(self) -> int:
        return 2 * self.trim + 1


@dataclass(frozen=True, kw_only=True)
class Krum(Strategy):
    """The report closest to its neighbours, against `hostile` others; `chosen` > 1 is multi-Krum, their mean.

    Blanchard et al. 2017, "Machine Learning with Adversaries", section 4. All reports are kept until the round ends.
    """

    hostile: int = 1
    chosen: int = 1
    keeps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hostile < 0:
            raise BadRequest(f"hostile={self.hostile}: a number of reports is 0 or more")
        if not 1 <= self.chosen <= self.least - self.hostile:
            raise BadRequest(
                f"chosen={self.chosen}: of the {self.least} reports that hostile={self.hostile} asks for, "
                f"1 to {self.least - self.hostile} can be chosen"
            )

    def combine(self, form: Form, reports: Sequence[Report]) -> dict[str, NDArray[Any]]:
        places = robust.krum(form, reports, self.hostile, self.chosen)
        return robust.mean_of(form, [reports[place] for place in places])

    @property
    def least(self) -> int:
        return 2 * self.hostile + 3


@dataclass(frozen=True, kw_only=True)
class Serial(Strategy):
    """One participant after the other, in order of their names: each goes on from what the one before trained."""

    sequential: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class FedBuff(Strategy):
    """Asynchronous: nobody waits for anybody. Whoever is ready trains from the weights of the moment; when `goal`
    reports are there, each of staleness s_i (updates made since its weights were handed out),

        w <- w + server_lr / goal * sum_i (y_i - w_i) / (1 + s_i)^exponent

    Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", algorithm 1 and section 5
    (exponent 1/2). A report that is staler than `max_staleness` is left out.
    """

    goal: int = 10
    server_lr: float = 1.0
    exponent: float = 0.5
    max_staleness: int = 100
    asynchronous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "server_lr")
        if self.goal < 1 or self.max_staleness < 0 or self.exponent < 0:
            raise BadRequest("FedBuff takes goal >= 1, max_staleness >= 0 and exponent >= 0")

    @property
    def least(self) -> int:
        return self.goal

    def step(self, weights: Tensors, state: State, delta: Tensors) -> Outcome:
        return servers.fedavg(weights, state, delta, lr=self.server_lr)

    def discount(self, staleness: int) -> float:
        """(1 + staleness)^-exponent."""
        return float((1 + staleness) ** -self.exponent)


def numbered(strategy: Strategy) -> dict[str, Any]:
    """A strategy as a server_config has it: its name, and its numbers without `max_norm`, a key of its own there."""
    numbers = {one.name: getattr(strategy, one.name) for one in fields(strategy) if one.name != "max_norm"}
    return {"name": type(strategy).__name__, **numbers}


def written(strategy: Strategy) -> str:
    """A strategy with all its numbers, by which a checkpoint knows it again."""
    numbers = ", ".join(f"{one.name}={getattr(strategy, one.name)!r}" for one in fields(strategy))
    return f"{type(strategy).__name__}({numbers})"


def _positive(strategy: Strategy, name: str, *, optional: bool = False) -> None:
    value = getattr(strategy, name)
    if optional and value is None:
        return
    if not 0 < value < float("inf"):
        raise BadRequest(f"{name}={value!r}: {type(strategy).__name__} takes a positive number")


def _fraction(strategy: Strategy, name: str) -> None:
    value = getattr(strategy, name)
    if not 0 <= value < 1:
        raise BadRequest(f"{name}={value!r}: {type(strategy).__name__} takes a number from 0 to below 1")
