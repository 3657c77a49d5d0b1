"""Folding reports into their weighted mean, beside reading their bytes once."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy
from numpy.typing import NDArray

from benchmarks.results import Result
from benchmarks.scale import Scale
from benchmarks.timing import in_turns
from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import Form

MEANING = """\
A report of 1.2 million float32 weights (4.8 MB) is added to a weighted mean, one thread. What reads its bytes once is \
NumPy's `bitwise_or.reduce`, the least that anything can do with them; `sums += report` is the same without a weight. \
The fold multiplies by the weight into a chunk of 1 MiB and adds that. The check looks for NaN, infinities and the \
norm bound before a report is folded. Twelve reports take turns, so that none lies in a near cache. The memory is what \
many reports take beside the one that is being added."""

_WEIGHTS = 1_200_000
_MIB = 1 << 20
_EXTRA = 25
"""MiB that the fold may take, at most."""


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    random = numpy.random.default_rng(0)
    size = scale(_WEIGHTS, 10_000)
    reports = [{"w": random.standard_normal(size).astype(numpy.float32)} for _ in range(12)]
    form = Form.of(reports[0])
    fold, wide = Fold(form), Fold(form, wide=True)
    sums = numpy.zeros(size, numpy.float32)

    def read() -> None:
        for report in reports:
            numpy.bitwise_or.reduce(report["w"].view(numpy.uint64))

    def add() -> None:
        for report in reports:
            numpy.add(sums, report["w"], sums)

    def folding() -> None:
        for report in reports:
            fold.add(report, 37.0)

    def folding_wide() -> None:
        for report in reports:
            wide.add(report, 37.0)

    def check() -> None:
        for report in reports:
            form.check_values(report, max_norm=1e9)

    works = {"sums += report": add, "fold": folding, "fold in float64": folding_wide, "check": check}
    took = in_turns({"read": read, **works}, scale(41, 1))
    each = 1e3 / len(reports)
    return [
        *(
            Result(
                what=what,
                value=took[what].median * each,
                best=took[what].best * each,
                unit="ms",
                baseline=took["read"].median * each,
                baseline_best=took["read"].best * each,
                against="reading the bytes once",
            )
            for what in works
        ),
        _memory(form, reports[0], scale(1000, 10)),
    ]


def _memory(form: Form, report: dict[str, NDArray[Any]], count: int) -> Result:
    tracemalloc.start()
    try:
        fold = Fold(form)
        for _ in range(count):
            fold.add(report, 37.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return Result(
        what=f"memory of the fold of {count} reports",
        value=peak / _MIB,
        unit="MiB",
        baseline=report["w"].nbytes / _MIB,
        against="the model",
        at_most=_EXTRA,
    )
