"""Each strategy against the formula of its paper, worked out by hand or by a plain loop, and what each refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from grid_jupyter.aggregation.rounds import Report, Round, correction
from grid_jupyter.aggregation.servers import State
from grid_jupyter.aggregation.strategies import (
    SCAFFOLD,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedProx,
    FedYogi,
    Krum,
    Median,
    Serial,
    Setting,
    Strategy,
    TrimmedMean,
    written,
)
from grid_jupyter.errors import BadRequest, InvalidDataError

Named = dict[str, NDArray[Any]]
TWO = Setting(participants=2, lr=0.1)


def named(*values: float) -> Named:
    return {"w": numpy.array(values, numpy.float64)}


def after(
    strategy: Strategy, weights: Named, state: State, *reports: tuple[float, int], setting: Setting = TWO
) -> tuple[float, State]:
    """One round of one-number models, each report (trained weight, rows)."""
    one = Round(strategy, setting, weights, state)
    for number, (trained, rows) in enumerate(reports):
        one.add(Report(f"p{number}", named(trained), rows, steps=2))
    new, state = one.close()
    return new["w"].item(), state


# ------------------------------------------------------------------ against the papers


def test_fedavg_is_the_mean_by_rows_and_a_server_rate_goes_part_of_the_way():
    assert after(FedAvg(), named(1.0), {}, (2.0, 1), (4.0, 3))[0] == 3.5
    assert after(FedAvg(server_lr=0.5), named(1.0), {}, (2.0, 1), (4.0, 3))[0] == 1.0 + 0.5 * 2.5


def test_fedprox_asks_for_the_proximal_term_and_averages_as_fedavg():
    strategy = FedProx(mu=0.1)
    assert (strategy.proximal, FedAvg().proximal) == (0.1, 0.0)
    assert after(strategy, named(1.0), {}, (2.0, 1), (4.0, 3))[0] == 3.5


def test_fedavgm_keeps_the_speed_of_rounds_before():
    strategy = FedAvgM(momentum=0.5, server_lr=2.0)
    weight, state = after(strategy, named(0.0), {}, (1.0, 1), (3.0, 1))
    assert weight == 4.0  # v = 2, w = 0 + 2*2
    weight, _ = after(strategy, named(weight), state, (5.0, 1), (5.0, 1))
    assert weight == 8.0  # delta = 1, v = 0.5*2 + 1 = 2, w = 4 + 2*2


def adaptive_by_the_paper(kind: str, deltas: list[float], lr: float, beta1: float, beta2: float, tau: float) -> float:
    """Algorithm 2 of Reddi et al. 2021, one number, written as it stands there."""
    x, m, v = 0.0, 0.0, tau**2
    for delta in deltas:
        m = beta1 * m + (1 - beta1) * delta
        if kind == "adagrad":
            v = v + delta**2
        elif kind == "yogi":
            v = v - (1 - beta2) * delta**2 * math.copysign(1.0, v - delta**2)
        else:
            v = beta2 * v + (1 - beta2) * delta**2
        x = x + lr * m / (math.sqrt(v) + tau)
    return x


@pytest.mark.parametrize(
    ("strategy", "kind", "beta1"),
    [
        (FedAdagrad(server_lr=0.3, tau=0.01), "adagrad", 0.0),
        (FedYogi(server_lr=0.3, tau=0.01, beta1=0.8, beta2=0.95), "yogi", 0.8),
        (FedAdam(server_lr=0.3, tau=0.01, beta1=0.8, beta2=0.95), "adam", 0.8),
    ],
)
def test_adaptive_servers_follow_the_paper_round_by_round(strategy: Strategy, kind: str, beta1: float):
    deltas = [0.5, -0.25, 1e-3, 2.0]
    weight, state = 0.0, {}
    for number, delta in enumerate(deltas, start=1):
        # two reports by rows 1 and 3, whose weighted mean moves by delta
        weight, state = after(strategy, named(weight), state, (weight + 4 * delta, 1), (weight, 3))
        expected = adaptive_by_the_paper(kind, deltas[:number], 0.3, beta1, 0.95, 0.01)
        assert weight == pytest.approx(expected, rel=1e-9)


def test_the_first_step_of_fedadam_in_numbers():
    # delta = 0.1: m = 0.01, v = 0.99*1e-6 + 0.01*0.01 = 1.0099e-4, step = 0.1 * 0.01 / (0.010049378 + 0.001)
    weight, _ = after(FedAdam(), named(0.0), {}, (0.1, 5), (0.1, 7))
    assert weight == pytest.approx(0.0905028, rel=1e-5)


def scaffold_by_the_paper(rounds: int, grads: list[Any], lr: float, steps: int) -> tuple[float, float, list[float]]:
    """Algorithm 1 of Karimireddy et al. 2020 with option II, all clients in each round, one number."""
    x, c, own = 0.0, 0.0, [0.0] * len(grads)
    for _ in range(rounds):
        moves, changes = [], []
        for i, grad in enumerate(grads):
            y = x
            for _ in range(steps):
                y = y - lr * (grad(y) - own[i] + c)
            plus = own[i] - c + (x - y) / (steps * lr)
            moves.append(y - x)
            changes.append(plus - own[i])
            own[i] = plus
        x = x + sum(moves) / len(moves)
        c = c + sum(changes) / len(grads)
    return x, c, own


def test_scaffold_follows_the_paper_and_finds_the_optimum_that_fedavg_misses():
    # f_0 = (x-1)^2, f_1 = 5 (x+1)^2: the sum's optimum is -2/3
    grads = [lambda y: 2 * (y - 1), lambda y: 10 * (y + 1)]
    lr, steps, rounds = 0.02, 5, 120
    setting = Setting(participants=2, lr=lr)

    def train(strategy: Strategy) -> tuple[float, State]:
        weights, state = named(0.0), {}
        for _ in range(rounds):
            one = Round(strategy, setting, weights, state)
            for i, grad in enumerate(grads):
                added = correction(strategy, state, f"p{i}")
                y = weights["w"].item()
                for _ in range(steps):
                    y = y - lr * (grad(y) + (0.0 if added is None else added["w"].item()))
                one.add(Report(f"p{i}", named(y), 10, steps=steps))
            weights, state = one.close()
        return weights["w"].item(), state

    x, state = train(SCAFFOLD())
    expected, c, own = scaffold_by_the_paper(rounds, grads, lr, steps)
    assert x == pytest.approx(expected, abs=1e-12)
    assert state["control"]["w"].item() == pytest.approx(c, abs=1e-12)
    assert [state[f"control of p{i}"]["w"].item() for i in range(2)] == pytest.approx(own, abs=1e-12)
    assert x == pytest.approx(-2 / 3, abs=1e-3)
    assert abs(train(FedAvg())[0] + 2 / 3) > 0.02


def test_scaffold_moves_the_common_control_by_the_share_that_reported():
    setting = Setting(participants=4, lr=0.1)
    one = Round(SCAFFOLD(), setting, named(1.0), {})
    one.add(Report("p0", named(0.6), 1, steps=2))  # c_0' = (1 - 0.6) / (2 * 0.1) = 2
    _, state = one.close()
    assert state["control"]["w"].item() == pytest.approx(0.5)
    assert correction(SCAFFOLD(), state, "p0")["w"].item() == pytest.approx(0.5 - 2.0)
    assert correction(SCAFFOLD(), state, "p1")["w"].item() == pytest.approx(0.5)
    assert correction(FedAvg(), state, "p0") is None


def test_fedbuff_discounts_stale_changes():
    one = Round(FedBuff(goal=2, server_lr=2.0), TWO, named(10.0), {})
    one.add(Report("p0", named(13.0), 5))  # fresh, +3
    assert not one.full
    one.add(Report("p0", named(5.0), 5, start=named(1.0), staleness=3))  # +4, by 1/sqrt(4)
    assert one.full
    new, _ = one.close()
    assert new["w"].item() == pytest.approx(10.0 + 2.0 / 2 * (3 + 2))


def test_fedbuff_leaves_out_what_is_too_stale():
    one = Round(FedBuff(goal=1, max_staleness=2), TWO, named(1.0), {})
    with pytest.raises(InvalidDataError, match="3 updates old; 2 are allowed"):
        one.add(Report("p0", named(5.0), 5, start=named(1.0), staleness=3))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [(Median(), 3.0), (TrimmedMean(trim=1), 3.0), (Krum(hostile=1), 3.0), (Krum(hostile=1, chosen=2), 2.5)],
)
def test_robust_strategies_are_not_pulled_away_by_one_of_five(strategy: Strategy, expected: float):
    setting = Setting(participants=5, minimum=5)
    # by Krum: 2 scores 1+4, 3 scores 1+1, 4 scores 1+4; the earlier of two equal ones is the second choice
    weight, _ = after(strategy, named(0.0), {}, (2, 1), (3, 1), (4, 1), (1e9, 10**6), (0, 1), setting=setting)
    assert weight == expected


def test_buffers_and_counters_are_averaged_whatever_the_server_does():
    weights = {"w": numpy.array([0.0]), "mean": numpy.array([2.0]), "n": numpy.array(4)}
    setting = Setting(participants=2, buffers=frozenset({"mean", "n"}))
    for strategy in (FedAvg(), FedAdam(), FedAvgM(server_lr=3.0), FedBuff(goal=2, server_lr=3.0)):
        one = Round(strategy, setting, weights, {})
        for name, mean, count in (("a", 4.0, 6), ("b", 6.0, 8)):
            one.add(Report(name, {"w": numpy.array([1.0]), "mean": numpy.array([mean]), "n": numpy.array(count)}, 1))
        new, state = one.close()
        assert (new["mean"].item(), new["n"].item(), new["n"].dtype) == (5.0, 7, numpy.int64)
        assert all(set(tensors) == {"w"} for tensors in state.values())


def test_single_precision_stays_single_precision():
    weights = {"w": numpy.zeros(3, numpy.float32)}
    for strategy in (FedAvg(server_lr=0.5), FedAvgM(), FedAdam(), FedYogi(), FedAdagrad(), SCAFFOLD(), FedBuff(goal=1)):
        state: State = {}
        for _ in range(2):
            one = Round(strategy, TWO, weights, state)
            one.add(Report("a", {"w": numpy.ones(3, numpy.float32)}, 3, steps=1))
            new, state = one.close()
            assert new["w"].dtype == numpy.float32
            assert {tensor.dtype for slot in state.values() for tensor in slot.values()} <= {numpy.dtype("float32")}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 100)), min_size=5, max_size=8),
    st.randoms(use_true_random=False),
    st.sampled_from([FedAvg(), FedAvgM(), FedAdam(), FedYogi(), FedAdagrad(), Median(), TrimmedMean(trim=2)]),
)
def test_the_order_of_reports_changes_nothing(reports: list[tuple[float, int]], random: Any, strategy: Strategy):
    setting = Setting(participants=8, minimum=5)
    straight, _ = after(strategy, named(1.0), {}, *reports, setting=setting)
    random.shuffle(reports)
    assert after(strategy, named(1.0), {}, *reports, setting=setting)[0] == pytest.approx(straight, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAvgM(), SCAFFOLD(), Median(), TrimmedMean(), Krum()])
def test_reports_that_all_say_the_same_are_the_new_model(strategy: Strategy):
    setting = Setting(participants=5, minimum=5, lr=0.1)
    assert after(strategy, named(1.0), {}, *[(2.5, n) for n in (1, 5, 7, 3, 2)], setting=setting)[0] == 2.5


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: FedAvg(server_lr=0.0), "server_lr"),
        (lambda: FedAvg(max_norm=-1.0), "max_norm"),
        (lambda: FedAvgM(momentum=1.0), "momentum"),
        (lambda: FedProx(mu=-0.1), "mu"),
        (lambda: FedProx(mu=float("nan")), "mu"),
        (lambda: FedAdam(beta2=1.0), "beta2"),
        (lambda: FedYogi(tau=0.0), "tau"),
        (lambda: FedAdagrad(beta1=-0.1), "beta1"),
        (lambda: SCAFFOLD(server_lr=float("inf")), "server_lr"),
        (lambda: TrimmedMean(trim=0), "FedAvg without rows"),
        (lambda: Krum(hostile=-1), "0 or more"),
        (lambda: Krum(hostile=1, chosen=5), "1 to 4 can be chosen"),
        (lambda: FedBuff(goal=0), "goal"),
    ],
)
def test_numbers_that_a_formula_does_not_allow_are_refused(make: Any, why: str):
    with pytest.raises(BadRequest, match=why):
        make()


@pytest.mark.parametrize(
    ("strategy", "setting", "why"),
    [
        (FedAvg(), Setting(participants=0), "at least one participant"),
        (FedAvg(), Setting(participants=2, minimum=3), "between 1 and all"),
        (Median(), Setting(participants=5, minimum=2), "needs 3 reports"),
        (TrimmedMean(trim=2), Setting(participants=5, minimum=4), "needs 5 reports"),
        (Krum(hostile=2), Setting(participants=9, minimum=6), "needs 7 reports"),
        (SCAFFOLD(), Setting(participants=2, plain_sgd=False, lr=0.1), "plain SGD"),
        (SCAFFOLD(), Setting(participants=2), "plain SGD with one learning rate"),
    ],
)
def test_a_strategy_that_cannot_serve_the_training_says_why(strategy: Strategy, setting: Setting, why: str):
    with pytest.raises(BadRequest, match=why):
        strategy.check(setting)


def test_serial_training_has_nothing_to_fold():
    with pytest.raises(BadRequest, match="one participant at a time"):
        Round(Serial(), TWO, named(0.0), {})


def test_a_round_with_too_few_reports_does_not_close():
    with pytest.raises(BadRequest, match="needs 1 reports, and there are 0"):
        Round(FedAvg(), TWO, named(0.0), {}).close()
    one = Round(Median(), Setting(participants=3, minimum=3), named(0.0), {})
    one.add(Report("a", named(1.0), 1))
    with pytest.raises(BadRequest, match="needs 3 reports, and there are 1"):
        one.close()


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (Report("b", {"v": numpy.zeros(1)}, 1), "no tensor 'w'"),
        (Report("b", named(numpy.nan), 1), "NaN"),
        (Report("b", named(7.0), 1), "bound 5"),
        (Report("b", named(1.0), 0), "positive number of rows"),
        (Report("a", named(1.0), 1), "counts once"),
    ],
)
def test_a_report_that_is_refused_does_not_count(report: Report, why: str):
    one = Round(FedAvg(max_norm=5.0), TWO, named(1.0), {})
    one.add(Report("a", named(2.0), 1))
    with pytest.raises(InvalidDataError, match=why):
        one.add(report)
    assert one.participants == ["a"]
    assert one.close()[0]["w"].item() == 2.0


def test_a_strategy_is_written_with_all_its_numbers():
    assert written(FedProx(mu=0.5)) == "FedProx(max_norm=None, server_lr=1.0, mu=0.5)"
