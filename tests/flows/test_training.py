"""`grid.train` with workers of this process: against plain loops, with Nodes that are slow, gone or denied, resumed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from grid_jupyter import (
    SCAFFOLD,
    FedAdam,
    FedAvg,
    FedBuff,
    FedProx,
    Median,
    PrivateGridNetwork,
    Serial,
    VirtualWorker,
)
from grid_jupyter.aggregation.strategies import Strategy
from grid_jupyter.client.federation import LocalSteps, fit
from grid_jupyter.client.fits import Fit
from grid_jupyter.client.local_jobs import LocalJob
from grid_jupyter.client.participants import Answer, Event, Participant, RoundJob, Weights
from grid_jupyter.errors import BadRequest, Forbidden, GridError, InvalidDataError, NodeUnavailableError
from grid_jupyter.plans.optimisers import SGD

NAMES = ("alice", "bob", "carl")
PATIENCE_S = 30.0


def rows_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 4, generator=random)
    return rows, (rows[:, 0] + rows[:, 1] > seed / 10).long()


DATA = {name: rows_of(20 + 7 * number, number) for number, name in enumerate(NAMES)}
HELD_OUT = rows_of(200, 9)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))


@pytest.fixture
def grid() -> PrivateGridNetwork:
    workers = {name: VirtualWorker(id=name, auto_add=False) for name in NAMES}
    grid = PrivateGridNetwork(*workers.values())
    for name, (rows, targets) in DATA.items():
        grid.load(workers[name], rows, "#moons", "#X")
        grid.load(workers[name], targets, "#moons", "#Y")
    return grid


def train(grid: PrivateGridNetwork, **options: Any) -> Fit:
    given: dict[str, Any] = {
        "data": grid.search("#X", "#moons"),
        "rounds": 3,
        "optimizer": SGD(lr=0.2),
        "batch_size": 8,
    }
    return grid.train(network(), torch.nn.functional.cross_entropy, **{**given, **options})


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().reshape(-1) for one in model.parameters()])


def steps_of(model: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], lr: float) -> torch.nn.Module:
    """Plain SGD, written once more."""
    for rows, targets in batches:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(rows), targets).backward()
        with torch.no_grad():
            for one in model.parameters():
                one -= lr * one.grad
    return model


# ------------------------------------------------------------------ against plain loops


def test_full_batches_and_one_local_step_are_training_in_one_place(grid: PrivateGridNetwork):
    found = train(grid, rounds=10, batch_size=1000)
    pooled = tuple(torch.cat(parts) for parts in zip(*DATA.values(), strict=True))
    expected = steps_of(network(), [pooled] * 10, 0.2)
    assert (weights(found.model) - weights(expected)).abs().max() < 1e-6


def test_serial_training_is_a_loop_over_one_after_the_other(grid: PrivateGridNetwork):
    found = train(grid, strategy=Serial(), rounds=4, shuffle=False, local_epochs=2)
    batches = []
    for rows, targets in DATA.values():
        batches += list(zip(rows.split(8), targets.split(8), strict=True)) * 2
    assert (weights(found.model) - weights(steps_of(network(), batches * 4, 0.2))).abs().max() < 1e-6


def test_fedprox_holds_local_steps_near_the_weights_of_the_round(grid: PrivateGridNetwork):
    start = weights(network())
    moved = [
        float((weights(train(grid, strategy=FedProx(mu=mu), rounds=1, local_epochs=5).model) - start).norm())
        for mu in (0.0, 1.0, 4.0)
    ]
    free = train(grid, rounds=1, local_epochs=5)
    assert moved[0] == float((weights(free.model) - start).norm())
    assert moved[0] > 1.2 * moved[1] > 1.4 * moved[2] > 0


def test_scaffold_gives_every_node_the_mean_gradient(grid: PrivateGridNetwork):
    """With full batches and one step, c - c_i turns each gradient of round 2 into (about) the mean of all."""
    kept: dict[str, list[Weights | None]] = {name: [] for name in NAMES}

    class Watched(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            kept[self.id.removeprefix("local at ")].append(correction)
            return super().round(weights, number, correction)

    found = run(grid, Watched, strategy=SCAFFOLD(), batch_size=1000, rounds=2)
    assert [one[0] for one in kept.values()] == [None] * 3
    model = network()
    own = {}
    for name, (rows, targets) in DATA.items():
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(rows), targets).backward()
        own[name] = {key: one.grad.clone() for key, one in model.named_parameters()}
    for key in dict(model.named_parameters()):
        mean = sum(own[name][key] for name in NAMES) / 3
        for name in NAMES:
            torch.testing.assert_close(kept[name][1][key], mean - own[name][key], rtol=0, atol=1e-5)
    assert found.history.participants.tolist() == [3, 3]


def test_the_same_training_gives_the_same_bits_and_leaves_the_given_model_alone(grid: PrivateGridNetwork):
    model = network()
    before = weights(model).clone()
    found = [
        grid.train(
            model, torch.nn.functional.cross_entropy, data=grid.search("#X"), rounds=3, optimizer=SGD(lr=0.2),
            batch_size=8, strategy=FedAdam(),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert weights(found[0].model).equal(weights(found[1].model))
    assert weights(model).equal(before)


def test_buffers_of_batch_norms_are_averaged_and_counted(grid: PrivateGridNetwork):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    found = grid.train(
        model, torch.nn.functional.cross_entropy, data=grid.search("#X"), rounds=2, optimizer=SGD(lr=0.1),
        batch_size=1000, strategy=FedAdam(),
    )  # fmt: skip
    norm = found.model[1]
    assert int(norm.num_batches_tracked) == 2
    assert (norm.running_var > 0).all()
    assert not norm.running_mean.equal(torch.zeros(3))


# ------------------------------------------------------------------ what it tells


def test_history_has_a_row_for_each_round_and_a_plot(grid: PrivateGridNetwork):
    found = train(grid, held_out=HELD_OUT, rounds=4)
    history = found.history
    assert list(history.index) == [1, 2, 3, 4]
    assert list(history.columns) == ["accuracy", "loss", "train_loss", "participants", "seconds", "left_out"]
    with torch.no_grad():
        scores = found.model(HELD_OUT[0])
    assert history.loss.iloc[-1] == pytest.approx(float(torch.nn.functional.cross_entropy(scores, HELD_OUT[1])))
    assert history.accuracy.iloc[-1] == pytest.approx(float((scores.argmax(1) == HELD_OUT[1]).double().mean()))
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    drawn = [[line.get_label() for line in axis.lines] for axis in found.plot().axes]
    assert drawn == [["accuracy"], ["loss", "train_loss"]]
    assert found.plot().axes[0].lines[0].get_ydata().tolist() == history.accuracy.tolist()
    assert found._repr_png_().startswith(b"\x89PNG")
    assert [number for number, _ in found.each["alice"]] == [1, 2, 3, 4]
    assert sorted(found.each) == sorted(found.records[-1].participants)
    of_all = [sum(found.each[name][-1][1]["loss"] for name in found.each) / len(found.each)]
    assert of_all == pytest.approx([history.train_loss.iloc[-1]], rel=0.2)
    axes = found.plot(each=True).axes
    assert [line.get_label() for line in axes[1].lines][2:] == [f"{name} · loss" for name in sorted(found.each)]
    losses = [figures["loss"] for _, figures in found.each["alice"]]
    assert axes[1].lines[2].get_ydata().tolist() == losses
    assert repr(found).startswith("<Fit after 4 rounds: accuracy ")


def test_a_training_can_be_ended_behind_any_round(grid: PrivateGridNetwork):
    seen = []

    def enough(found: Fit) -> bool:
        seen.append(found.records[-1].round)
        return len(seen) == 2

    found = train(grid, rounds=5, after_round=enough)
    assert (seen, len(found.history)) == ([1, 2], 2)
    assert weights(found.model).equal(weights(train(grid, rounds=2).model))


def test_metrics_are_functions_of_scores_and_targets(grid: PrivateGridNetwork):
    found = train(grid, held_out=HELD_OUT, metrics={"rows": lambda scores, targets: len(targets)}, rounds=1)
    assert list(found.history.columns[:2]) == ["rows", "loss"]
    assert found.history.rows.item() == 200


# ------------------------------------------------------------------ which data


def test_rows_and_targets_are_named_in_three_ways(grid: PrivateGridNetwork):
    rows, targets = grid.search("#X"), grid.search("#Y")
    ways = [rows, (rows, targets), {name: (rows[name][0], targets[name][0]) for name in NAMES}]
    found = [weights(train(grid, data=data, rounds=1).model) for data in ways]
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


def test_data_that_is_not_clear_is_refused_by_the_name_of_its_node(grid: PrivateGridNetwork):
    rows, targets = grid.search("#X"), grid.search("#Y")
    with pytest.raises(InvalidDataError, match="nothing was found"):
        train(grid, data=grid.search("#X", "#nowhere"))
    with pytest.raises(InvalidDataError, match="bob has rows, and no targets"):
        train(grid, data=(rows, {name: targets[name] for name in ("alice", "carl")}))
    with pytest.raises(InvalidDataError, match="alice has 2 data sets with these tags"):
        train(grid, data=grid.search("#moons"))
    with pytest.raises(InvalidDataError, match="rows and targets of a training lie at one Node"):
        train(grid, data={"alice": (rows["alice"][0], targets["bob"][0])})
    with pytest.raises(InvalidDataError, match="have no tag #X, so their targets"):
        train(grid, data=targets)
    with pytest.raises(BadRequest, match="what a search found"):
        train(grid, data=[1, 2])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rounds": 0}, "1 or more"),
        ({"deadline_s": 0.0}, "more than 0"),
        ({"minimum": 4}, "between 1 and all"),
        ({"strategy": Median()}, "minimum=3"),
        ({"strategy": SCAFFOLD(), "optimizer": SGD(lr=0.1, momentum=0.9)}, "plain SGD"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_anybody_is_asked(
    grid: PrivateGridNetwork, options: dict[str, Any], why: str
):
    with pytest.raises(BadRequest, match=why):
        train(grid, **options)


# ------------------------------------------------------------------ Nodes that are slow, gone or refused

MakeJob = Callable[..., RoundJob]


def run(grid: PrivateGridNetwork, make: MakeJob | Mapping[str, MakeJob], **options: Any) -> Fit:
    """Train with jobs of one's own making, at all workers or at those named."""
    strategy: Strategy = options.pop("strategy", FedAvg())
    named = make if isinstance(make, Mapping) else dict.fromkeys(NAMES, make)
    rows, targets = grid.search("#X"), grid.search("#Y")

    def opener(name: str) -> Any:
        return lambda model, loss, steps, job: named.get(name, LocalJob)(
            model, loss, rows[name][0], targets[name][0], steps
        )

    rounds = options.pop("rounds", 3)
    steps = LocalSteps(
        optimizer=SGD(lr=0.2), epochs=1, batch_size=options.pop("batch_size", 8), shuffle=True, seed=0, rounds=rounds,
        asked=1, proximal=strategy.proximal, corrected=strategy.corrected, reason="",
    )  # fmt: skip
    given: dict[str, Any] = {
        "held_out": None, "metrics": None, "minimum": 1, "deadline_s": None, "sign_off_s": None, "checkpoint": None,
        "live": False, "after_round": None,
    }  # fmt: skip
    openers = {name: opener(name) for name in NAMES}
    return fit(network(), torch.nn.functional.cross_entropy, openers, steps, strategy, **{**given, **options})


def without(*names: str) -> torch.Tensor:
    """Weights after three rounds of FedAvg over the other workers."""
    rest = {name: data for name, data in DATA.items() if name not in names}
    workers = {name: VirtualWorker(id=name, auto_add=False) for name in rest}
    other = PrivateGridNetwork(*workers.values())
    for name, (rows, targets) in rest.items():
        other.load(workers[name], rows, "#X")
        other.load(workers[name], targets, "#Y")
    return weights(train(other, data=other.search("#X")).model)


class Dying(LocalJob):
    """Its Node goes in round 2, and does not come back."""

    def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
        if number > 1:
            raise NodeUnavailableError("the Node does not answer")
        return super().round(weights, number, correction)


def test_a_node_that_dies_does_not_end_the_training(grid: PrivateGridNetwork):
    found = run(grid, {"bob": Dying}, minimum=2)
    assert found.history.participants.tolist() == [3, 2, 2]
    assert found.history.left_out.tolist() == ["", *["bob: the Node does not answer"] * 2]


def test_too_few_nodes_end_it_with_what_each_said(grid: PrivateGridNetwork):
    with pytest.raises(NodeUnavailableError, match=r"round 2 has 2 answers of 3 Nodes, and minimum=3: bob: the Node d"):
        run(grid, {"bob": Dying}, minimum=3)


class Returning(LocalJob):
    """Its Node is away in round 2 alone."""

    def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
        if number == 2:
            raise NodeUnavailableError("the Node does not answer")
        return super().round(weights, number, correction)


def test_a_node_that_comes_back_takes_part_again(grid: PrivateGridNetwork):
    # both others wait in round 3 until bob, who is not waited for any more, has answered
    back = threading.Event()

    class Bob(Returning):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            try:
                return super().round(weights, number, correction)
            finally:
                if number == 3:
                    back.set()

    class Other(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            assert number < 3 or back.wait(PATIENCE_S)
            return super().round(weights, number, correction)

    found = run(grid, {"bob": Bob, "alice": Other, "carl": Other})
    assert found.history.participants.tolist()[:2] == [3, 2]
    assert "does not answer" in found.history.left_out[2]


def test_a_late_answer_is_folded_into_no_round(grid: PrivateGridNetwork):
    others_done = threading.Event()

    class Late(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            assert others_done.wait(PATIENCE_S)
            poisoned = super().round(weights, number, correction)
            return Answer({name: one + 1e6 for name, one in poisoned.weights.items()}, poisoned.rows, poisoned.steps)

    class Other(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            if number == 3:
                others_done.set()
            return super().round(weights, number, correction)

    found = run(grid, {"alice": Late, "bob": Other, "carl": Other}, deadline_s=0.3)
    history = found.history
    assert history.participants.tolist()[:2] == [2, 2]
    assert history.left_out[1].startswith("alice: did not answer in 0.3")
    assert history.left_out[2] == "alice: still busy with a round before"
    assert weights(found.model).equal(without("alice"))


def test_a_node_whose_owner_denies_is_left_out_with_the_reason(grid: PrivateGridNetwork):
    def denied(*arguments: Any) -> RoundJob:
        raise Forbidden("alice does not let it run: too many epochs")

    found = run(grid, {"alice": denied}, minimum=2)
    assert set(found.history.left_out) == {"alice: alice does not let it run: too many epochs"}
    assert weights(found.model).equal(without("alice"))
    with pytest.raises(GridError, match=r"3 of 3 Nodes must take part \(minimum=3\)\. alice: .*too many epochs$"):
        run(grid, {"alice": denied}, minimum=3)


def test_owners_who_never_decide_are_waited_for_as_long_as_was_said(grid: PrivateGridNetwork):
    class Undecided(LocalJob):
        def ready(self, timeout_s: float) -> bool:
            return threading.Event().wait(timeout_s)

    found = run(grid, {"alice": Undecided}, minimum=2, sign_off_s=0.1)
    assert set(found.history.left_out) == {"alice: waiting for its owner's sign-off"}
    with pytest.raises(GridError, match="alice: its owner has not decided yet"):
        run(grid, {"alice": Undecided}, minimum=3, sign_off_s=0.1)


def test_a_job_that_is_submitted_when_the_training_is_over_already_is_cancelled(grid: PrivateGridNetwork):
    over, cancelled = threading.Event(), threading.Event()

    class Late(LocalJob):
        def __init__(self, *arguments: Any) -> None:
            assert over.wait(PATIENCE_S)
            super().__init__(*arguments)

        def cancel(self) -> None:
            cancelled.set()

    run(grid, {"alice": Late}, minimum=2, sign_off_s=0.1)
    over.set()
    assert cancelled.wait(PATIENCE_S)


def test_a_job_is_cancelled_though_its_node_does_not_answer_at_once(grid: PrivateGridNetwork):
    class Hesitant(LocalJob):
        tries = 0

        def cancel(self) -> None:
            Hesitant.tries += 1
            if Hesitant.tries < 3:
                raise NodeUnavailableError("the Node does not answer")

    run(grid, {"alice": Hesitant})
    assert Hesitant.tries == 3


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_training_that_is_cut_cancels_the_jobs_from_which_no_checkpoint_goes_on(
    grid: PrivateGridNetwork, tmp_path: Path, rounds: int
):
    cancelled = []

    class Kept(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            if number > rounds:
                raise GridError("it failed")
            return super().round(weights, number, correction)

        def cancel(self) -> None:
            cancelled.append(self.id)

    with pytest.raises(GridError, match="it failed"):
        run(grid, dict.fromkeys(NAMES, Kept), checkpoint=tmp_path / "fit")
    assert len(cancelled) == (0 if rounds else 3)


def test_a_report_that_is_no_number_is_left_out(grid: PrivateGridNetwork):
    class Broken(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            return Answer({name: one * float("nan") for name, one in weights.items()}, 5, 1)

    for strategy in (FedAvg(), Serial()):
        found = run(grid, {"bob": Broken}, strategy=strategy)
        assert all("bob: '0.weight' has NaN" in why for why in found.history.left_out)
        assert weights(found.model).isfinite().all()


def test_fedbuff_goes_on_while_one_node_is_slow_and_folds_its_answer_later(grid: PrivateGridNetwork):
    others = threading.Event()
    staleness = []

    class Slow(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            assert others.wait(PATIENCE_S)
            staleness.append(number)
            return super().round(weights, number, correction)

    class Fast(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            if number == 4:
                others.set()
            return super().round(weights, number, correction)

    found = run(grid, {"alice": Slow, "bob": Fast, "carl": Fast}, strategy=FedBuff(goal=2), rounds=12)
    took_part = [record.participants for record in found.records]
    assert "alice" not in took_part[0]
    assert any("alice" in names for names in took_part)
    assert staleness[0] == 1
    assert weights(found.model).isfinite().all()


def test_fedbuff_asks_a_node_that_is_away_now_and_then_and_not_all_the_time(grid: PrivateGridNetwork):
    asked = []

    class Away(LocalJob):
        def round(self, weights: Weights, number: int, correction: Weights | None) -> Answer:
            asked.append(number)
            raise NodeUnavailableError("alice is away")

    found = run(grid, {"alice": Away}, strategy=FedBuff(goal=2), rounds=30)
    assert len(found.history) == 30
    assert len(asked) <= 1 + found.history.seconds.sum() / 0.5
    assert any("alice is away" in why for why in found.history.left_out)


def test_who_is_away_rests_twice_as_long_each_time_and_never_longer_than_half_a_minute():
    away = NodeUnavailableError("away")

    def nowhere() -> RoundJob:
        raise away

    one = Participant("alice", nowhere, queue.Queue())
    one.take(Event(one), 100.0)
    rests = []
    for _ in range(2000):
        one.take(Event(one, 1, error=away), 100.0)
        rests.append(one.rests_until - 100.0)
    assert rests[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(rests[7:]) == {30.0}
    one.take(Event(one, 2), 200.0)
    assert one.rests_until == 0.0
    one.take(Event(one, 3, error=away), 200.0)
    assert one.rests_until == 200.5
    one.end()


# ------------------------------------------------------------------ resumed


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), SCAFFOLD(), Serial()])
def test_a_training_that_was_cut_goes_on_to_the_same_bits(grid: PrivateGridNetwork, tmp_path: Path, strategy: Strategy):
    whole = train(grid, strategy=strategy, rounds=5, held_out=HELD_OUT)
    path = tmp_path / "fit.safetensors"

    def cut(found: Fit) -> None:
        if len(found.records) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(grid, strategy=strategy, rounds=5, held_out=HELD_OUT, after_round=cut, checkpoint=path)
    again = train(grid, strategy=strategy, rounds=5, held_out=HELD_OUT, checkpoint=path)
    assert [record.round for record in again.records] == [1, 2, 3, 4, 5]
    assert again.each == whole.each
    assert weights(again.model).equal(weights(whole.model))
    assert again.records[-1].figures == whole.records[-1].figures
    assert [one.name for one in tmp_path.iterdir()] == [path.name]

    done = train(grid, strategy=strategy, rounds=5, held_out=HELD_OUT, checkpoint=path)
    assert weights(done.model).equal(weights(whole.model))
    longer = train(grid, strategy=strategy, rounds=6, checkpoint=path)
    assert weights(longer.model).equal(weights(train(grid, strategy=strategy, rounds=6).model))


def test_a_checkpoint_of_another_training_is_refused_and_kept(grid: PrivateGridNetwork, tmp_path: Path):
    path = tmp_path / "fit.safetensors"
    train(grid, rounds=1, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(BadRequest, match=r"another training: its optimizer is SGD\(lr=0\.2"):
        train(grid, optimizer=SGD(lr=0.3), checkpoint=path)
    with pytest.raises(BadRequest, match="its strategy is FedAvg"):
        train(grid, strategy=FedAdam(), checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100])
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(grid: PrivateGridNetwork, tmp_path: Path, data: bytes):
    path = tmp_path / "notes.txt"
    path.write_bytes(data)
    with pytest.raises(InvalidDataError, match="no checkpoint"):
        train(grid, checkpoint=path)
    assert path.read_bytes() == data


def test_a_checkpoint_needs_a_folder(grid: PrivateGridNetwork, tmp_path: Path):
    with pytest.raises(BadRequest, match="no folder"):
        train(grid, rounds=1, checkpoint=tmp_path / "nowhere" / "fit")
