"""The fold, the robust means and what is refused: against values worked out by hand, and against NumPy's own."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from grid_jupyter.aggregation import robust, scaled
from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import CHUNK, Form
from grid_jupyter.errors import BadRequest, InvalidDataError

Named = dict[str, NDArray[Any]]


def named(*values: float, dtype: str = "float64") -> Named:
    return {"w": numpy.array(values, dtype)}


def folded(reports: list[Named], weights: list[float], *, wide: bool = False) -> Named:
    fold = Fold(Form.of(reports[0]), wide=wide)
    for report, weight in zip(reports, weights, strict=True):
        fold.add(report, weight)
    return fold.mean()


# ------------------------------------------------------------------ the weighted mean


def test_a_mean_counts_each_report_by_its_rows():
    # (1 * [1, 2] + 3 * [5, -2]) / 4
    assert folded([named(1, 2), named(5, -2)], [1, 3])["w"].tolist() == [4.0, -1.0]


def test_counters_are_averaged_and_rounded():
    reports = [{"n": numpy.array(value, numpy.int64)} for value in (10, 13, 14)]
    mean = folded(reports, [1, 1, 1])["n"]  # 12.33
    assert (mean.dtype, mean.shape, mean.item()) == (numpy.int64, (), 12)


def test_half_precision_is_summed_in_single_precision():
    reports = [named(1.0, dtype="float16")] * 5000  # in float16, 2048 + 1 is 2048
    mean = folded(reports, [1.0] * 5000)["w"]
    assert (mean.dtype, mean.item()) == (numpy.float16, 1.0)


def test_sums_in_double_precision_keep_what_single_precision_rounds_away():
    reports = [named(1.0, dtype="float32"), named(1e-9, dtype="float32")] * 200
    assert folded(reports, [1.0] * 400, wide=True)["w"].item() == numpy.float32((1.0 + 1e-9) / 2)


def test_a_report_can_be_added_as_its_difference_from_where_it_began():
    fold = Fold(Form.of(named(0, 0)))
    fold.add(named(3, 5), 0.5, minus=named(1, 1))
    fold.add(named(2, 2), 2.0, minus=named(1, 2))
    assert fold.mean(over=2)["w"].tolist() == [1.5, 1.0]  # (0.5*[2, 4] + 2*[1, 0]) / 2


def test_a_mean_spans_many_chunks_and_tensors():
    random = numpy.random.default_rng(0)
    shapes = {"a": (2 * CHUNK + 17,), "b": (3, 5), "c": (), "d": (0, 4)}
    reports = [{name: random.standard_normal(shape) for name, shape in shapes.items()} for _ in range(4)]
    weights = [7.0, 1.0, 30.0, 2.0]
    mean = folded(reports, weights)
    for name, shape in shapes.items():
        expected = numpy.average([report[name] for report in reports], axis=0, weights=weights)
        assert mean[name].shape == shape
        numpy.testing.assert_allclose(mean[name], expected, rtol=1e-13, atol=1e-15)


def test_a_fold_takes_a_chunk_of_memory_and_not_a_model():
    report = {"w": numpy.ones(8 * CHUNK, numpy.float32)}
    fold = Fold(Form.of(report))
    tracemalloc.start()
    try:
        for _ in range(20):
            fold.add(report, 3.0)
        fold.mean()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # the chunk, and at the end the zeros of a next fold in place of the sums that were handed over
    assert peak < report["w"].nbytes + 2 * CHUNK * 4, peak


def test_the_same_reports_in_the_same_order_give_the_same_bits():
    random = numpy.random.default_rng(1)
    reports = [{"w": random.standard_normal(3 * CHUNK // 2).astype(numpy.float32)} for _ in range(7)]
    weights = [float(n) for n in random.integers(1, 500, 7)]
    first, second = (folded(reports, weights)["w"].tobytes() for _ in range(2))
    assert first == second


@pytest.fixture(params=["NumPy's BLAS", "NumPy alone"])
def adding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How sums grow: as here, or as where NumPy was built without a BLAS."""
    if request.param == "NumPy alone":
        monkeypatch.setattr(scaled, "_NUMPYS", ())
    scaled.kernels.cache_clear()
    yield request.param
    scaled.kernels.cache_clear()


def test_numpys_blas_is_found_where_its_wheels_have_one(adding: str):
    if adding == "NumPy alone":
        assert not scaled.kernels()
    elif sys.platform == "linux":
        assert set(scaled.kernels()) == {numpy.dtype("float32"), numpy.dtype("float64")}


def test_where_values_lie_and_what_they_are_of_changes_no_bit(adding: str):
    random = numpy.random.default_rng(2)
    values = random.standard_normal(CHUNK + 5).astype(numpy.float32)
    spread = numpy.zeros(2 * values.size, numpy.float32)
    spread[::2] = values
    unaligned = numpy.frombuffer(b"\0" + values.tobytes(), numpy.uint8)[1:].view(numpy.float32)
    assert not unaligned.flags.aligned
    read_only = numpy.frombuffer(values.tobytes(), numpy.float32)
    sums = [
        folded([{"w": first}, {"w": values}], [3.0, 1e-3])["w"].tobytes()
        for first in (values, spread[::2], unaligned, read_only)
    ]
    assert len(set(sums)) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "int64"])
def test_every_dtype_is_summed_as_a_weighted_average(adding: str, dtype: str):
    random = numpy.random.default_rng(3)
    reports = [{"w": (100 * random.standard_normal((5, 7))).astype(dtype)} for _ in range(3)]
    weights = [3.0, 37.0, 1.0]
    for wide in (False, True):
        mean = folded(reports, weights, wide=wide)["w"]
        exact = numpy.average([one["w"].astype(numpy.float64) for one in reports], axis=0, weights=weights)
        assert mean.dtype == dtype
        if mean.dtype.kind == "f":
            numpy.testing.assert_allclose(mean, exact, rtol=4 * float(numpy.finfo(dtype).eps), atol=1e-4)
        else:
            numpy.testing.assert_array_equal(mean, numpy.rint(exact))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda count: st.tuples(
            arrays(numpy.float64, (count, 5), elements=st.floats(-1e6, 1e6)),
            st.lists(st.integers(1, 10_000), min_size=count, max_size=count),
            st.permutations(range(count)),
        )
    )
)
def test_a_mean_is_numpys_average_in_any_order(drawn: tuple[NDArray[Any], list[int], list[int]]):
    rows, weights, order = drawn
    expected = numpy.average(rows, axis=0, weights=weights)
    for places in (range(len(rows)), order):
        mean = folded([{"w": rows[place]} for place in places], [float(weights[place]) for place in places])
        numpy.testing.assert_allclose(mean["w"], expected, rtol=1e-9, atol=1e-6)


# ------------------------------------------------------------------ robust means


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    reports = [named(1, -9), named(2, 0), named(4, 1), named(1000, 2)]
    assert robust.median(Form.of(reports[0]), reports)["w"].tolist() == [3.0, 0.5]


def test_a_trimmed_mean_leaves_out_both_ends_of_each_coordinate():
    reports = [named(1, 50), named(2, -50), named(3, 1), named(4, 2), named(-1e9, 6)]
    assert robust.trimmed_mean(Form.of(reports[0]), reports, 1)["w"].tolist() == [2.0, 3.0]
    with pytest.raises(BadRequest, match="leave nothing; 7 are needed"):
        robust.trimmed_mean(Form.of(reports[0]), reports, 3)


def test_krum_chooses_the_report_with_the_closest_neighbours():
    # hostile=1 of 5: the score is the sum of the 2 smallest squared distances.
    # 0: 1+4=5, 1: 1+1=2, 2: 1+1=2 (4-2 squared is 4), 4: 4+9=13, 100: 9216+9604. The earlier of two equal ones wins.
    reports = [named(0), named(1), named(2), named(4), named(100)]
    form = Form.of(reports[0])
    assert robust.krum(form, reports, hostile=1) == (1,)
    assert robust.krum(form, reports, hostile=1, chosen=3) == (0, 1, 2)
    with pytest.raises(BadRequest, match="needs 7, and here are 5"):
        robust.krum(form, reports, hostile=2)
    with pytest.raises(BadRequest, match="chooses 1 to 4"):
        robust.krum(form, reports, hostile=1, chosen=5)


def test_krum_tells_close_reports_apart_far_from_the_origin():
    reports = [named(1e8 + step) for step in (0.0, 0.1, 0.2, 5.0, 9.0)]
    assert robust.krum(Form.of(reports[0]), reports, hostile=1) == (1,)


@settings(max_examples=40, deadline=None)
@given(arrays(numpy.float64, (7, 4), elements=st.floats(-1e3, 1e3)), st.permutations(range(7)))
def test_robust_means_are_the_same_in_any_order_and_within_what_honest_reports_say(
    rows: NDArray[Any], order: list[int]
):
    form = Form.of({"w": rows[0]})
    hostile = rows.copy()
    hostile[:2] *= 1e6  # two of seven
    reports = [{"w": row} for row in hostile]
    for mean in (robust.median, lambda f, r: robust.trimmed_mean(f, r, 2)):
        found = mean(form, reports)["w"]
        assert (found >= rows[2:].min(axis=0) - 1e-9).all()
        assert (found <= rows[2:].max(axis=0) + 1e-9).all()
        numpy.testing.assert_allclose(mean(form, [reports[place] for place in order])["w"], found, rtol=1e-12)
    numpy.testing.assert_array_equal(robust.median(form, reports)["w"], numpy.median(hostile, axis=0))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ({"v": numpy.zeros(2)}, "has no tensor 'w'"),
        ({"w": numpy.zeros(2), "x": numpy.zeros(1)}, "has a tensor 'x', which the model has not"),
        ({"w": numpy.zeros(3)}, r"of shape \(3,\) in the report; the model's is \(2,\)"),
        ({"w": numpy.zeros(2, numpy.float32)}, "of float32 in the report; the model's is float64"),
    ],
)
def test_a_report_of_another_form_is_refused_and_not_counted(report: Named, why: str):
    fold = Fold(Form.of(named(0, 0)))
    with pytest.raises(InvalidDataError, match=why):
        fold.add(report)
    fold.add(named(1, 1))
    assert (fold.count, fold.mean()["w"].tolist()) == (1, [1.0, 1.0])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_report_counts_by_a_positive_number(weight: float):
    with pytest.raises(InvalidDataError, match="positive number of rows"):
        Fold(Form.of(named(0))).add(named(1), weight)


def test_there_is_no_mean_of_nothing():
    with pytest.raises(InvalidDataError, match="no mean of nothing"):
        Fold(Form.of(named(0))).mean()


@pytest.mark.parametrize("place", [0, CHUNK + 3])
@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
def test_nan_and_infinities_are_refused_wherever_they_are(place: int, value: float):
    tensors = {"w": numpy.zeros(2 * CHUNK, numpy.float32)}
    form = Form.of(tensors)
    form.check_values(tensors)
    tensors["w"][place] = value
    with pytest.raises(InvalidDataError, match="'w' has NaN or infinite values"):
        form.check_values(tensors)


def test_the_bound_is_on_the_distance_from_the_origin_over_all_tensors():
    report = {"a": numpy.array([1.0, 4.0]), "b": numpy.array([5.0]), "n": numpy.array([10**9])}
    origin = {"a": numpy.array([1.0, 1.0]), "b": numpy.array([1.0]), "n": numpy.array([0])}
    form = Form.of(report)
    form.check_values(report, origin=origin, max_norm=5.0)  # sqrt(3^2 + 4^2)
    with pytest.raises(InvalidDataError, match=r"more than the bound 4\.99"):
        form.check_values(report, origin=origin, max_norm=4.99)


def test_large_finite_values_are_not_taken_for_infinite_ones():
    tensors = {"w": numpy.full(3, 1e30, numpy.float32)}  # squares of these are infinite in float32
    Form.of(tensors).check_values(tensors)
    with pytest.raises(InvalidDataError, match="bound"):
        Form.of(tensors).check_values(tensors, max_norm=1e30)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "U3"])
def test_only_numbers_have_a_mean(dtype: str):
    with pytest.raises(InvalidDataError, match="only floats and integers"):
        Form.of({"w": numpy.zeros(2, dtype)})
