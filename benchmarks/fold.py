"""Folding reports into their weighted mean, beside reading their bytes once; and reports of a Node, as files."""

from __future__ import annotations

import os
import resource
import tracemalloc
from collections.abc import Callable
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the Worker that folds has it, before NumPy is loaded

import numpy
from numpy.typing import NDArray

from benchmarks.fold_files import through_a_node
from benchmarks.results import Result
from benchmarks.scale import Scale
from benchmarks.timing import in_turns
from grid_jupyter.aggregation.diffs import packed, unpacked
from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import Form

MEANING = """\
A report of 1.2 million float32 weights (4.8 MB) is added to a weighted mean, one thread. What reads its bytes once is \
NumPy's `bitwise_or.reduce`, the least that anything can do with them; `sums += report` is the same without a weight. \
The fold multiplies and adds in one pass, by the BLAS of NumPy. The check looks for NaN, infinities and the \
norm bound before a report is folded. Smaller forms are unpacked a chunk at a time while they are folded; their \
baseline is reading the float32 report, too. Twelve reports take turns, so that none lies in a near cache. The memory \
is what many reports take beside the one that is being added.

Then the same through a Node's trainings, in one process with its Worker: each report is written, checked, synced, its \
row is committed, it is acknowledged and folded, one after the other; beside it, the same bytes are written to a file \
on the same disk and synced, with its directory. The longest time for which the event loop did nothing else is \
looked at by a task that sleeps for a millisecond again and again, by the clock: other programs on the machine count, \
too. Memory and page faults are the Worker's own: what it maps of files, which the kernel may drop, is not in them."""

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

    forms = {kind: [packed(report, kind, random) for report in reports] for kind in ("float16", "int8", "topk")}

    def folding_packed(kind: str) -> None:
        for arrays in forms[kind]:
            fold.add(unpacked(arrays, form), 37.0)

    works = {
        "sums += report": add,
        "fold": folding,
        "fold in float64": folding_wide,
        "fold of float16": lambda: folding_packed("float16"),
        "fold of int8": lambda: folding_packed("int8"),
        "fold of topk, 5%": lambda: folding_packed("topk"),
        "check": check,
    }
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
                ratio_at_most=1.3 if what == "fold" else None,
            )
            for what in works
        ),
        _faults(folding, len(reports)),
        _memory(form, reports[0], scale(1000, 10)),
        *through_a_node(size, scale(60, 4)),
    ]


def _faults(folding: Callable[[], None], count: int) -> Result:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    folding()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return Result(what="page faults of a fold", value=faults / count, unit="", baseline=0, against="none")


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
