"""What devices measure: taken once a place, bounded and finite; how it becomes a table, means and a picture."""

from __future__ import annotations

import asyncio
import math
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pandas
import pytest
from cycle_world import World, diff, world
from sqlalchemy import insert

from grid_jupyter import plot_accuracy
from grid_jupyter.client.measuring import Measuring, Told
from grid_jupyter.client.metrics import Measured, frame_of, means_of
from grid_jupyter.cycles.metrics import PAGE_ROWS
from grid_jupyter.errors import BadRequest, Conflict, Forbidden, InvalidDataError, NotAuthenticatedError, NotFound
from grid_jupyter.identity.accounts import Account
from grid_jupyter.plans.onnx_engine import OnnxEngine
from grid_jupyter.plans.reader import read_plan
from grid_jupyter.store.records import MetricsRow, Participation
from grid_jupyter.store.trainings import TrainingRows
from grid_jupyter.wire.metrics import MetricsReport, Stat, UploadStats, is_name, read_metrics


def account(name: str, *flags: str) -> Account:
    return Account(id=1, username=name, role="User", flags=frozenset(flags), groups=())


async def tell(made: World, place: tuple[str, str], samples: int = 1, **metrics: Any) -> None:
    report = MetricsReport(worker_id=place[0], request_key=place[1], metrics=metrics, num_samples=samples)
    await made.cycles.metrics.take(report)


def test_a_place_tells_its_metrics_once_and_a_retry_changes_nothing(tmp_path: Path):
    async def trial() -> None:
        async with world(tmp_path) as made:
            await made.host(max_diffs=2)
            place, other = await made.accepted(), await made.accepted()
            told: list[bool] = []
            made.cycles.on_change(lambda: told.append(True))
            for _ in range(2):
                await tell(made, place, 3, accuracy=0.5)
            assert told  # the owner's panel hears of it
            with pytest.raises(Conflict, match="count once"):
                await tell(made, place, 3, accuracy=0.9)
            with pytest.raises(NotAuthenticatedError, match="Invalid request key"):
                await tell(made, (other[0], place[1]), accuracy=1.0)
            with pytest.raises(NotFound, match="Worker ID"):
                await tell(made, ("nobody", place[1]), accuracy=1.0)
            assert await made.metrics() == [(1, 1, 3, {"accuracy": 0.5})]

    asyncio.run(trial())


def test_metrics_come_with_the_report_that_counts_and_afterwards_for_a_cycle_that_is_over(tmp_path: Path):
    async def trial() -> None:
        async with world(tmp_path) as made:
            await made.host(max_diffs=2)
            first, second, third = [await made.accepted() for _ in range(3)]
            for loss in (2, 5):  # sent again, whatever else is told by then
                await made.report(first, diff(1, 1, 1), 7, loss=loss)
            await made.report(second, diff(1, 1, 1))
            await made.stands(after=0)
            await tell(made, second, 5, loss=3.0)
            with pytest.raises(Conflict, match="without its report"):
                await tell(made, third, loss=1.0)
            assert await made.metrics() == [(1, 1, 7, {"loss": 2.0}), (1, 2, 5, {"loss": 3.0})]
        async with world(tmp_path) as made:  # after a restart
            assert len(await made.metrics()) == 2

    asyncio.run(trial())


def test_a_place_that_is_given_out_again_tells_anew_and_one_that_was_given_up_not(tmp_path: Path):
    async def trial() -> None:
        now = [100.0]
        async with world(tmp_path, clock=lambda: now[0]) as made:
            await made.host(cycle_length=10, min_diffs=2)
            worker = await made.device()
            first = worker, (await made.ask(worker))["request_key"]
            await tell(made, first, accuracy=0.1)
            now[0] += 11
            (live,) = made.cycles._live.values()
            await live.tick()
            with pytest.raises(Conflict, match="given up"):
                await tell(made, first, accuracy=0.1)
            again = worker, (await made.ask(worker))["request_key"]
            await tell(made, again, accuracy=0.2)
            assert await made.metrics() == [(1, 1, 1, {"accuracy": 0.2})]

    asyncio.run(trial())


def test_stats_of_the_fork_are_taken_all_or_none_and_only_with_the_key_of_the_place(tmp_path: Path):
    async def trial() -> None:
        async with world(tmp_path) as made:
            await made.host(max_diffs=9)
            one, two = await made.accepted(), await made.accepted()
            good = Stat(cycle_id=1, worker_id=one[0], request_key=one[1], accuracy=0.7, num_samples=20, loss=0.3)
            for bad, error in (
                (Stat(cycle_id=1, worker_id=two[0], accuracy=0.5), NotAuthenticatedError),
                (Stat(cycle_id=2, worker_id=two[0], request_key=two[1], accuracy=0.5), BadRequest),
                (Stat(cycle_id=1, worker_id=two[0], request_key=two[1]), BadRequest),
                (Stat(cycle_id=1, worker_id=two[0], request_key=two[1], accuracy=math.nan), BadRequest),
            ):
                with pytest.raises(error):
                    await made.cycles.metrics.take_stats(UploadStats(stats=[good, bad]))
                assert await made.metrics() == []
            await made.cycles.metrics.take_stats(UploadStats(stats=[good]))
            assert await made.metrics() == [(1, 1, 20, {"accuracy": 0.7, "loss": 0.3})]

    asyncio.run(trial())


def test_metrics_are_for_who_hosts_the_model_and_for_who_may_triage(tmp_path: Path):
    async def trial() -> None:
        async with world(tmp_path) as made:
            await made.host()
            read = made.cycles.metrics.read
            assert (await read(account("Ann"), "m", "1.0", 0)).rows == []
            assert (await read(account("Olga", "can_triage_requests"), "m", None, 0)).next == 0
            with pytest.raises(Forbidden, match="hosts the model"):
                await read(account("Bob", "can_upload_data"), "m", None, 0)
            with pytest.raises(NotFound):
                await read(account("Ann"), "other", None, 0)

    asyncio.run(trial())


def test_metrics_go_with_their_training(tmp_path: Path):
    async def trial() -> None:
        async with world(tmp_path) as made:
            await made.host(max_diffs=2)
            place = await made.accepted()
            await tell(made, place, loss=1.0)
            await made.cycles.ending.delete(account("Ann"), "m", None)
            with pytest.raises(NotFound):
                await tell(made, place, loss=1.0)
            await made.host(max_diffs=2)
            assert await made.metrics() == []

    asyncio.run(trial())


def test_long_trainings_are_read_page_by_page(tmp_path: Path):
    async def trial() -> None:
        async with world(tmp_path) as made:
            await made.host(max_diffs=1)
            place = await made.accepted()
            await tell(made, place, loss=0.0)
            numbers = range(2, PAGE_ROWS + 3)
            places = [
                {"id": k, "training_id": 1, "sequence": k, "device": 1, "state": "reported", "at": 1.0} for k in numbers
            ]
            told = [
                {
                    "training_id": 1,
                    "sequence": k,
                    "place": k,
                    "worker": 1,
                    "figures": {"loss": 1.0},
                    "samples": 1,
                    "at": 1.0,
                }
                for k in numbers
            ]

            def fill(rows: TrainingRows) -> None:
                rows.session.execute(insert(Participation), places)
                rows.session.execute(insert(MetricsRow), told)

            await made.cycles._table.transact(fill)
            first = await made.cycles.metrics.read(account("Ann"), "m", None, 0)
            rest = await made.cycles.metrics.read(account("Ann"), "m", None, first.next)
            assert (len(first.rows), first.more, len(rest.rows), rest.more) == (PAGE_ROWS, True, 2, False)

    asyncio.run(trial())


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {f"m{k}": 1.0 for k in range(17)},
        {"loss": math.nan},
        {"loss": -math.inf},
        {"loss": 10**400},
        {"loss": True},
        {"loss": "0.5"},
        {"loss": None},
        {"": 1.0},
        {"x" * 65: 1.0},
        {"=1+1": 1.0},
        {"<script>": 1.0},
        {"$x$": 1.0},
        {"a\nb": 1.0},
        {"a\u202eb": 1.0},
        {"_x": 1.0},
        {"a,b": 1.0},
        {'a"b': 1.0},
    ],
    ids=lambda wrong: repr(wrong)[:24],
)
def test_odd_metrics_are_refused_with_the_reason(wrong: dict[str, Any]):
    with pytest.raises(BadRequest, match="metric"):
        read_metrics(wrong)


def test_names_of_any_script_are_taken_and_numbers_become_floats():
    assert read_metrics({"Trefferquote (top 5)": 1, "精度": 0.5, "loss_before": -2}) == {
        "Trefferquote (top 5)": 1.0, "精度": 0.5, "loss_before": -2.0
    }  # fmt: skip
    assert not is_name("a\n")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_what_is_no_finite_number_of_json_does_not_pass_as_one(number: bytes):
    def read() -> None:
        body = b'{"worker_id":"","request_key":"","metrics":{"a":' + number + b"}}"
        read_metrics(msgspec.json.decode(body, type=MetricsReport).metrics)

    with pytest.raises((msgspec.DecodeError, BadRequest)):
        read()


# ------------------------------------------------------------------ on the device


def test_a_device_measures_the_mean_over_its_rows_whatever_the_batches():
    from plan_documents import linear

    document = read_plan(msgspec.json.encode(linear(), order="sorted"))
    random = numpy.random.default_rng(5)
    w, x = random.normal(size=(3, 1)).astype("float32"), random.normal(size=(700, 3)).astype("float32")
    y = random.normal(size=(700, 1)).astype("float32")
    measuring = Measuring(OnnxEngine("cpu", 1), document)
    for size in (1, 64, 700):
        found, count = measuring.measure({"w": w}, {"x": {"x": x}, "y": {"y": y}}, size)
        assert count == 700
        assert found["loss"] == pytest.approx(float(((x @ w - y) ** 2).mean()), rel=1e-5)


def test_a_device_tells_what_a_node_takes_and_leaves_the_rest_out():
    told = Told.of({"loss": math.nan, "<b>": 1.0, **{f"m{k}": 1.0 for k in range(20)}}, {"loss": 1.0}, 5)
    assert len(told.metrics) == 16
    assert read_metrics(told.metrics) == told.metrics


# ------------------------------------------------------------------ table, means, picture


def rows() -> list[Measured]:
    return [
        Measured(2, 1, 10, 60.0, {"accuracy": 0.8}),
        Measured(1, 2, 30, 2.5, {"accuracy": 0.5, "loss": 2.0}),
        Measured(1, 1, 10, 1.5, {"accuracy": 0.1, "loss": 4.0}),
    ]


def test_the_table_is_tidy():
    frame = frame_of(rows())
    assert list(frame.columns) == ["cycle", "worker", "metric", "value", "samples", "time"]
    first = [1, 1, "accuracy", 0.1, 10, pandas.Timestamp("1970-01-01T00:00:01.5Z")]
    assert list(frame.iloc[0]) == first
    assert frame["cycle"].tolist() == [1, 1, 1, 1, 2]
    assert list(frame_of([]).columns) == list(frame.columns)
    assert str(frame["time"].dtype).endswith("UTC]")


def test_means_are_weighted_by_samples():
    # numpy's own weighted average is the reference
    assert means_of(rows()[1:]) == pytest.approx(
        {"accuracy": numpy.average([0.5, 0.1], weights=[30, 10]), "loss": numpy.average([2.0, 4.0], weights=[30, 10])}
    )


def test_the_picture_has_the_weighted_mean_the_spread_and_the_participants():
    figure = plot_accuracy(frame_of(rows()), title="m $1$")
    accuracy, loss, devices = figure.axes
    (line,) = accuracy.lines
    numpy.testing.assert_allclose(line.get_xydata(), [[1, 0.4], [2, 0.8]])
    (band,) = accuracy.collections
    edges = band.get_paths()[0].vertices
    assert edges[edges[:, 0] == 1][:, 1].min() == pytest.approx(0.14)  # the quantile 0.1 of 0.1 and 0.5
    assert loss.lines[0].get_ydata().tolist() == [2.5]
    assert [bar.get_height() for bar in devices.patches] == [2, 1]
    assert accuracy.get_title(loc="left") == r"m \$1\$"  # no formula
    assert accuracy.get_ylim() == (0, 1)
    figure.canvas.draw()


def test_what_is_measured_before_and_after_training_are_two_lines():
    told = {"loss_before": 3.0, "loss_after": 2.0}
    figure = plot_accuracy(frame_of([Measured(k, 1, 5, 0.0, told) for k in (1, 2, 3)]))
    assert [line.get_label() for line in figure.axes[0].lines] == ["model of the round", "trained on each device"]


def test_no_metrics_and_absurd_ones_still_make_a_picture_and_another_table_is_refused():
    assert "no device" in plot_accuracy(frame_of([])).texts[0].get_text()
    absurd = [Measured(1, k, 1 << 40, 0.0, {"loss": 1.7e308}) for k in (1, 2)]
    fine = [Measured(2, 1, 1, 0.0, {"loss": 1.0})]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_accuracy(frame_of([*absurd, *fine]))
        figure.canvas.draw()
        plot_accuracy(frame_of(absurd)).canvas.draw()
    assert figure.axes[0].lines[0].get_xdata().tolist() == [2]
    with pytest.raises(InvalidDataError, match="takes the table"):
        plot_accuracy(pandas.DataFrame({"a": [1]}))
