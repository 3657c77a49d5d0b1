"""Means that a few hostile or broken reports cannot pull away. They need all reports at hand, and say what that costs.

Let R be the number of reports and M the size of the model. Reports may be memory-mapped files: beside them, all three
need one model (M) and R chunks of 1 MiB, 64 MiB at most. None of them weighs reports by their rows, since rows are what
a hostile participant would claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.aggregation.fold import Fold, whole
from grid_jupyter.aggregation.form import CHUNK, Form, Report, flattened
from grid_jupyter.errors import BadRequest

_AT_ONCE = 64 << 20
"""Bytes of all pieces that are worked on at a time."""
Column = Callable[[NDArray[Any]], NDArray[Any]]


def median(form: Form, reports: Sequence[Report]) -> dict[str, NDArray[Any]]:
    """The median of each coordinate, of an even number the mean of the middle two (Yin et al. 2018, definition 1).

    Holds while fewer than half of the reports are hostile.
    """
    return _by_coordinate(form, reports, lambda rows: numpy.median(rows, axis=0, overwrite_input=True))


def trimmed_mean(form: Form, reports: Sequence[Report], trim: int) -> dict[str, NDArray[Any]]:
    """The mean of each coordinate without its `trim` smallest and `trim` largest values (Yin et al. 2018, definition 2,
    with trim = beta * R).

    Holds while at most `trim` reports are hostile. Raises BadRequest where nothing would be left.
    """
    if 2 * trim >= len(reports):
        raise BadRequest(
            f"{len(reports)} reports without {trim} at either end leave nothing; {2 * trim + 1} are needed"
        )

    def column(rows: NDArray[Any]) -> NDArray[Any]:
        rows.sort(axis=0)
        kept: NDArray[Any] = rows[trim : len(rows) - trim].mean(axis=0, dtype=numpy.float64)
        return kept

    return _by_coordinate(form, reports, column)


def krum(form: Form, reports: Sequence[Report], hostile: int, chosen: int = 1) -> tuple[int, ...]:
    """Places of the `chosen` reports that lie closest to their neighbours (Blanchard et al. 2017, section 4):

        score(i) = sum over the R - hostile - 2 reports j closest to i of |w_i - w_j|^2

    The smallest scores are chosen, the earlier report where two are equal; multi-Krum is the mean of several.
    Beside the reports: R x R float64 and R chunks. Raises BadRequest for fewer than 2 * hostile + 3 reports.
    """
    count = len(reports)
    if count < 2 * hostile + 3:
        raise BadRequest(f"Krum against {hostile} hostile reports needs {2 * hostile + 3}, and here are {count}")
    if not 1 <= chosen <= count - hostile:
        raise BadRequest(f"Krum chooses 1 to {count - hostile} of {count} reports with {hostile} hostile, not {chosen}")
    products = numpy.zeros((count, count))
    for name, dtype, _ in form.parts:
        if dtype.kind != "f":
            continue
        for rows in _rows(reports, name, numpy.dtype(numpy.float64)):
            rows -= rows[0].copy()  # distances stay, and large common parts no longer cancel
            products += rows @ rows.T
    squares = numpy.diag(products)
    distances = numpy.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    numpy.fill_diagonal(distances, numpy.inf)
    scores = numpy.sort(distances, axis=1)[:, : count - hostile - 2].sum(axis=1)
    return tuple(sorted(int(place) for place in numpy.argsort(scores, kind="stable")[:chosen]))


def mean_of(form: Form, reports: Sequence[Report]) -> dict[str, NDArray[Any]]:
    """The plain mean, each report counted once."""
    fold = Fold(form)
    for report in reports:
        fold.add(report)
    return fold.mean()


def _by_coordinate(form: Form, reports: Sequence[Report], column: Column) -> dict[str, NDArray[Any]]:
    found = {}
    for name, dtype, shape in form.parts:
        result = numpy.empty(shape, dtype)
        flat, start = result.reshape(-1), 0
        wide = dtype if dtype.kind == "f" else numpy.dtype(numpy.float64)
        for rows in _rows(reports, name, wide):
            width = rows.shape[1]
            values = column(rows)
            flat[start : start + width] = values if dtype.kind == "f" else whole(values, dtype)
            start += width
        found[name] = result
    return found


def _rows(reports: Sequence[Report], name: str, dtype: numpy.dtype[Any]) -> Any:
    """Pieces [R, at most a chunk] of one tensor of all reports, copied."""
    flats = [flattened(report[name]) for report in reports]
    width = max(1, min(CHUNK * 4, _AT_ONCE // len(flats)) // dtype.itemsize)
    for start in range(0, flats[0].size, width):
        yield numpy.stack([flat[start : start + width] for flat in flats]).astype(dtype, copy=False)
