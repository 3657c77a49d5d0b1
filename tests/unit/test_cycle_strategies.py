"""Strategies of trainings: each against its paper's formula worked out here, what refuses what, what is durable."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from cycle_world import MODEL, World, diff, world
from plan_documents import linear
from safetensors.numpy import save

from grid_jupyter.client.device import _Plan, _train
from grid_jupyter.cycles.hosting import buffers_of
from grid_jupyter.cycles.terms import advice, read_terms
from grid_jupyter.errors import BadRequest, Conflict, InvalidDataError
from grid_jupyter.plans.document import canonical
from grid_jupyter.plans.onnx_engine import OnnxEngine
from grid_jupyter.plans.reader import read_plan

CYCLES = [[((0.5, -2.0, 0.25), 1), ((1.5, 4.0, -0.75), 3)], [((-1.0, 0.5, 2.0), 5), ((0.0, 1.5, -4.0), 5)],
          [((3.0, -1.0, 1.0), 2), ((0.5, 0.5, 0.5), 6)]]  # fmt: skip
"""Diffs and samples of three cycles of two reports."""


def run(state: Path, work: Callable[[World], Awaitable[Any]], **options: Any) -> Any:
    async def whole() -> Any:
        async with world(state, **options) as here:
            return await work(here)

    return asyncio.run(whole())


def trained(state: Path, strategy: Any, cycles: Any = CYCLES, *, restarted: bool = False, **config: Any) -> list[float]:
    """The weights that these cycles come to; `restarted`: the Node is started anew for the later ones."""

    async def host(here: World) -> None:
        await here.host(strategy=strategy, max_diffs=len(cycles[0]), **config)
        if not restarted:
            await some(here, 0, len(cycles))

    async def some(here: World, first: int, last: int) -> None:
        for number in range(first, last):
            places = [await here.accepted() for _ in cycles[number]]
            for place, (values, samples) in zip(places, cycles[number], strict=True):
                await here.report(place, diff(*values), samples)
            await here.stands(after=number)
        found[:] = [float(value) for value in (await here.checkpoint())["w"].ravel()]

    found: list[float] = []
    run(state, host)
    if restarted:
        run(state, lambda here: some(here, 0, 1))
        run(state, lambda here: some(here, 1, len(cycles)))
    return found


def mean_changes(k: int) -> list[float]:
    """Of coordinate k, the change in each cycle: minus the mean of the diffs by samples."""
    return [-sum(v[k] * n for v, n in reports) / sum(n for _, n in reports) for reports in CYCLES]


def by_the_papers(name: str, k: int, lr: float) -> float:
    """Hsu et al. 2019, 3.3, and Reddi et al. 2021, algorithm 2, for one number, as they stand there."""
    w, speed, m, v, tau = float(MODEL["w"][k, 0]), 0.0, 0.0, 0.01**2, 0.01
    for delta in mean_changes(k):
        if name == "FedAvg":
            w += lr * delta
        elif name == "FedAvgM":
            speed = 0.9 * speed + delta
            w += lr * speed
        else:
            beta1 = 0.0 if name == "FedAdagrad" else 0.9
            m = beta1 * m + (1 - beta1) * delta
            if name == "FedAdagrad":
                v = v + delta**2
            elif name == "FedAdam":
                v = 0.99 * v + 0.01 * delta**2
            else:
                v = v - 0.01 * delta**2 * (1 if v > delta**2 else -1)
            w += lr * m / (math.sqrt(v) + tau)
    return w


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"])
def test_server_optimisers_go_by_their_papers_across_cycles_and_restarts(tmp_path: Path, name: str):
    slots = {"FedAvg": 0, "FedAvgM": 1}.get(name, 2)
    adaptive = {"tau": 0.01} if name not in ("FedAvg", "FedAvgM") else {}
    found = trained(tmp_path, {"name": name, "server_lr": 0.5, **adaptive}, restarted=slots > 0, num_cycles=4)
    assert found == pytest.approx([by_the_papers(name, k, 0.5) for k in range(3)], rel=1e-5)
    run(tmp_path, World.stands)  # a start removes what was about to be deleted
    assert len(list((tmp_path / "training").iterdir())) == 5 + slots  # the plan, four checkpoints, the last one's state


def test_a_name_alone_has_the_numbers_of_jobs(tmp_path: Path):
    assert trained(tmp_path / "a", "FedAvgM") == trained(tmp_path / "b", {"name": "FedAvgM", "momentum": 0.9})
    assert trained(tmp_path / "c", "FedAvg") == trained(tmp_path / "d", None)


ROBUST = [[((float(v), -float(v), 10.0 * v), 1000 if v == 100 else 1) for v in (1, 2, 4, 3, 100)]]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("Median", 3.0),  # of 1, 2, 3, 4, 100
        ({"name": "TrimmedMean", "trim": 1}, 3.0),  # of 2, 3, 4
        ({"name": "TrimmedMean", "trim": 2}, 3.0),
        # two neighbours of each: 1: 1+4, 2: 1+1, 3: 1+1, 4: 1+4; the earliest of the smallest is 2
        ({"name": "Krum", "hostile": 1}, 2.0),
        ({"name": "Krum", "hostile": 1, "chosen": 2}, 2.5),
    ],
)
def test_robust_strategies_are_not_pulled_by_one_report_however_many_samples_it_claims(
    tmp_path: Path, strategy: Any, expected: float
):
    found = trained(tmp_path, strategy, ROBUST)
    assert found == pytest.approx([0.5 - expected, -1 + expected, 2 - 10 * expected], rel=1e-6)


def test_fedbuff_counts_late_reports_by_their_staleness_and_closes_at_its_goal(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(strategy={"name": "FedBuff", "goal": 2, "server_lr": 0.5, "max_staleness": 2})
        slow, stale = await here.accepted(), await here.accepted()
        quick = await here.device()
        for cycle in range(2):  # the same device, twice in each buffer
            for _ in range(2):
                place = await here.ask(quick)
                await here.report((quick, place["request_key"]), diff(1, 2, 3), 100)
            await here.stands(after=cycle)
        weights = MODEL["w"].ravel() - 0.5 * 2 * numpy.array([1, 2, 3])
        numpy.testing.assert_allclose((await here.checkpoint())["w"].ravel(), weights, rtol=1e-6)
        model, _ = await here.cycles.model(*slow, 1)  # still that of its cycle
        assert os.read(model, 10_000) == save(MODEL)
        os.close(model)
        place = await here.ask(quick)
        await here.report(slow, diff(4, 4, 4), 7)  # two updates late
        await here.report((quick, place["request_key"]), diff(1, 1, 1))
        await here.stands(after=2)
        weights -= 0.5 * (4 / math.sqrt(3) + 1) / 2
        numpy.testing.assert_allclose((await here.checkpoint())["w"].ravel(), weights, rtol=1e-6)
        with pytest.raises(Conflict, match="closed"):
            await here.report(stale, diff(4, 4, 4))  # three are too many

    run(tmp_path, work)


def test_a_device_that_asks_again_under_fedbuff_gives_its_older_place_up(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(strategy={"name": "FedBuff", "goal": 1})
        worker = await here.device()
        old = (await here.ask(worker))["request_key"]
        assert (await here.ask(worker))["status"] == "rejected"
        await here.report(await here.accepted(), diff(1, 1, 1))
        await here.stands(after=0)
        new = (await here.ask(worker, nonce="a"))["request_key"]
        with pytest.raises(Conflict, match="given up"):
            await here.report((worker, old), diff(1, 1, 1))
        await here.report((worker, new), diff(1, 1, 1))
        await here.report((worker, new), diff(1, 1, 1))  # sent again
        assert (await here.stands(after=1))["reports"] == 0

    run(tmp_path, work)


def test_a_place_whose_checkpoint_is_kept_no_longer_is_over(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(strategy={"name": "FedBuff", "goal": 1}, keep_checkpoints=1)
        await here.report(await here.accepted(), diff(1, 1, 1))
        await here.stands(after=0)
        slow = await here.accepted()
        await here.report(await here.accepted(), diff(1, 1, 1))
        await here.stands(after=1)
        with pytest.raises(Conflict, match="ask for a new place"):
            await here.cycles.model(*slow, 1)
        assert (await here.ask(slow[0]))["status"] == "accepted"

    run(tmp_path, work)


def test_a_report_that_comes_while_a_buffer_is_being_folded_counts_in_the_next_one(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(strategy={"name": "FedBuff", "goal": 1})
        places = [await here.accepted() for _ in range(6)]
        await asyncio.gather(*(here.report(place, diff(1, 1, 1)) for place in places))
        assert (await here.stands(after=5))["completed"] == 6
        expected = 0.5 - sum((1 + late) ** -0.5 for late in range(6))
        assert (await here.checkpoint())["w"][0, 0] == pytest.approx(expected, rel=1e-6)

    run(tmp_path, work)


def test_buffers_are_averaged_and_what_is_trained_goes_by_the_strategy(tmp_path: Path):
    tree = linear()
    running = {"name": "running", "role": "buffer", "dtype": "float32", "shape": [2]}
    tree["inputs"].insert(1, running)
    shifted = json.loads(json.dumps(tree["nodes"]).replace('"%', '"%%'))

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(one) for one in value]
        if isinstance(value, str) and value.startswith("%%"):
            number = int(value[2:])
            return f"%{number + (number > 0)}"
        return value

    tree["nodes"] = moved(shifted)
    tree["outputs"] = [
        {"name": "w", "role": "param", "value": "%13"},
        {"name": "running", "role": "buffer", "value": "%1"},
        {"name": "loss", "role": "loss", "value": "%8"},
    ]
    plan = read_plan(canonical(tree))
    assert buffers_of({"p": plan}) == ("running",)
    model = {**MODEL, "running": numpy.array([10.0, 20.0], numpy.float32), "seen": numpy.array([7], numpy.int64)}

    async def work(here: World) -> None:
        await here.host(model=model, plan=tree, strategy={"name": "FedAvg", "server_lr": 0.5}, max_diffs=1)
        report = {
            "w": MODEL["w"],
            "running": numpy.array([1, 2], numpy.float32),
            "seen": numpy.array([-3], numpy.int64),
        }
        await here.report(await here.accepted(), save(report))
        await here.stands(after=0)
        found = await here.checkpoint()
        numpy.testing.assert_allclose(found["w"], 0.5 * MODEL["w"])
        numpy.testing.assert_array_equal(found["running"], [9, 18])
        numpy.testing.assert_array_equal(found["seen"], [10])

    run(tmp_path, work)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"strategy": "FedSGD"}, "known are FedAvg, FedAvgM"),
        ({"strategy": {"server_lr": 1}}, "known are FedAvg"),
        ({"strategy": 3}, "strategy"),
        ({"strategy": "SCAFFOLD"}, "keeps a control variate for each participant"),
        ({"strategy": "Serial"}, "one participant after the other"),
        ({"strategy": "FedProx"}, "needs its mu"),
        ({"strategy": {"name": "FedProx", "mu": -1}}, "mu=-1"),
        ({"strategy": {"name": "FedAdam", "server_lr": "1"}}, "server_lr of the strategy FedAdam is a number"),
        ({"strategy": {"name": "FedAdam", "server_lr": float("nan")}}, "server_lr of the strategy FedAdam is a number"),
        ({"strategy": {"name": "FedAdam", "server_lr": True}}, "server_lr of the strategy FedAdam is a number"),
        ({"strategy": {"name": "FedAdam", "beta1": 1.0}}, "from 0 to below 1"),
        ({"strategy": {"name": "FedAdam", "rate": 1.0}}, "has no number rate; its numbers are server_lr"),
        ({"strategy": {"name": "Median", "trim": 1}}, "it has none"),
        ({"strategy": {"name": "TrimmedMean", "trim": 1.5}}, "trim of the strategy TrimmedMean is a whole number"),
        ({"strategy": {"name": "FedAvg", "max_norm": 1.0}}, "a key of server_config, beside strategy"),
        ({"strategy": "Median", "min_diffs": 2, "max_diffs": 3}, "Median needs 3 reports a cycle: min_diffs=3"),
        ({"strategy": "Median", "max_diffs": 2}, "needs 3 reports a cycle: max_diffs 3 or more"),
        ({"strategy": {"name": "Krum", "hostile": 2}, "max_workers": 6, "cycle_length": 9}, "needs 7 reports a cycle"),
        ({"strategy": "Median", "cycle_length": 9}, "at most 256"),
        ({"strategy": "Median", "max_diffs": 257}, "at most 256"),
        ({"strategy": {"name": "TrimmedMean", "trim": 200}}, "at most 256"),
        ({"strategy": "FedBuff", "max_diffs": 3}, "closes its buffer at goal=10 reports: leave max_diffs out"),
        ({"strategy": "FedBuff", "cycle_length": 3, "goal_count": 2}, "leave goal_count, cycle_length out"),
        ({"strategy": "FedBuff", "worker_participation_mode": 0}, "leave worker_participation_mode out"),
        ({"strategy": {"name": "FedBuff", "goal": 0}}, "goal >= 1"),
        ({"chosen": {"name": "FedAvg", "numbers": {}}}, "has no key chosen"),
    ],
)
def test_a_strategy_that_makes_no_sense_is_refused_with_the_reason(config: dict[str, Any], said: str):
    with pytest.raises(BadRequest, match=said):
        read_terms(config)


def test_the_host_is_told_what_a_strategy_does_not_count():
    assert "num_samples is kept, and weighs nothing" in advice(read_terms({"strategy": "Median", "max_diffs": 9}))[0]
    assert "told proximal_mu" in advice(read_terms({"strategy": {"name": "FedProx", "mu": 1}}))[0]


def test_fedprox_tells_devices_its_mu_and_refuses_plans_it_cannot_be_added_to(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(strategy={"name": "FedProx", "mu": 0.25}, max_diffs=1)
        assert (await here.ask(await here.device()))["client_config"]["proximal_mu"] == 0.25
        without = linear(inputs=[one if one["name"] != "lr" else {**one, "name": "rate"} for one in linear()["inputs"]])
        with pytest.raises(BadRequest, match="no step of plain SGD with a learning rate 'lr'"):
            await here.host("n", plan=without, strategy={"name": "FedProx", "mu": 0.25})

    run(tmp_path, work)


def test_a_device_trains_what_fedprox_asks_for(tmp_path: Path):
    """Li et al. 2020, equation 2: steps of plain SGD on the mean square + mu/2 * |w - w_start|^2."""
    rng = numpy.random.default_rng(3)
    x = rng.standard_normal((4, 3)).astype(numpy.float32)
    y = rng.standard_normal((4, 1)).astype(numpy.float32)
    config = {"batch_size": 4, "lr": 0.1, "proximal_mu": 0.5}
    plan = _Plan(OnnxEngine("cpu", 1), read_plan(canonical(linear())))
    hyper = {"lr": numpy.asarray(0.1, numpy.float32)}
    values: dict[str, dict[str, Any]] = {"param": dict(MODEL), "buffer": {}, "state": {}, "hyper": hyper}
    _train(plan, values, {"x": {"x": x}, "y": {"y": y}}, config, 5, numpy.random.default_rng(0))
    w = MODEL["w"].astype(numpy.float64)
    for _ in range(5):
        w = w - 0.1 * (2 / 4 * x.T @ (x @ w - y) + 0.5 * (w - MODEL["w"]))
    numpy.testing.assert_allclose(values["param"]["w"], w, rtol=1e-5)


# ------------------------------------------------------------------ nothing lost, nothing infinite, nothing big


def test_under_a_server_optimiser_too_a_node_killed_at_any_point_comes_to_the_same_bit_for_bit(tmp_path: Path):
    program = Path(__file__).parent / "killed_cycles.py"
    answer = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "FedAdam"],
        capture_output=True, text=True, cwd=program.parent, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    whole = found.pop("")
    assert (whole["completed"], whole["number"]) == (2, 3)
    assert len(found) == 2 + 2 * 4 + 2 * 3 + 4 + 2  # of a cut report, of reports, of cycles; files that go
    for line, came_to in found.items():
        assert came_to == {"killed": True, "again": 0, **whole}, line
    assert whole["files"] == 6  # the plan, three models, two moments


@pytest.mark.parametrize(
    ("dtype", "value", "changed"), [("float16", 60000, -30000), ("float16", -60000, 30000), ("int8", 100, -100)]
)
def test_a_checkpoint_stays_within_what_its_dtype_holds(tmp_path: Path, dtype: str, value: int, changed: int):
    model = {**MODEL, "h": numpy.array([value, 1], dtype)}

    async def work(here: World) -> None:
        await here.host(model=model, max_diffs=1)
        report = {"w": MODEL["w"], "h": numpy.array([changed, 1], dtype)}
        await here.report(await here.accepted(), save(report))
        await here.stands(after=0)
        limits = numpy.iinfo(dtype) if dtype == "int8" else numpy.finfo(dtype)
        found = (await here.checkpoint())["h"].astype(float)
        assert list(found) == [float(limits.max if value > 0 else limits.min), 0.0]

    run(tmp_path, work)


def test_a_strategy_with_moments_takes_no_memory_for_them(tmp_path: Path):
    rng, size = numpy.random.default_rng(0), 1_200_000
    model = {**MODEL, "big": rng.standard_normal(size).astype(numpy.float32)}

    async def work(here: World) -> None:
        await here.host(model=model, max_diffs=1, strategy="FedAdam")
        for cycle in range(2):
            place = await here.accepted()
            if cycle:
                tracemalloc.start()
            await here.report(place, save({"w": MODEL["w"], "big": model["big"]}))
            await here.stands(after=cycle)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 25e6, peak

    run(tmp_path, work)


def test_a_report_that_is_refused_changes_nothing_of_a_buffer(tmp_path: Path):
    async def work(here: World) -> None:
        await here.host(strategy={"name": "FedBuff", "goal": 1}, max_norm=1)
        place = await here.accepted()
        with pytest.raises(InvalidDataError, match="bound 1"):
            await here.report(place, diff(9, 9, 9))
        assert (await here.stands())["reports"] == 0
        await here.report(place, diff(0.1, 0.1, 0.1))
        assert (await here.stands(after=0))["completed"] == 1

    run(tmp_path, work)
