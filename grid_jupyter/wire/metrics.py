"""Bodies of what devices tell of a training: metrics by name, bounded, finite, and names that are only ever text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from grid_jupyter.errors import BadRequest
from grid_jupyter.wire.training import Body, Figure, Samples

_Key = Annotated[str, msgspec.Meta(max_length=128)]

MAX_METRICS = 16
"""Metrics of one report."""
MAX_METRIC_NAME_CHARS = 64
MAX_STATS = 64
"""Entries of one upload_stats."""
_NAME = re.compile(rf"[^\W_][\w .:/%()+-]{{0,{MAX_METRIC_NAME_CHARS - 1}}}")
"""Letters and digits of any script: nothing that a spreadsheet, a page or a plot could take for more than a name."""


class MetricsReport(Body, frozen=True):
    """What a device measured in its place. `num_samples` is the number of rows that it measured on."""

    worker_id: _Key
    request_key: _Key
    metrics: dict[str, Figure]
    num_samples: Samples = 1


class Stat(Body, frozen=True):
    """An entry of 0.2.9's fork's upload_stats. The request_key is the place's."""

    cycle_id: int
    worker_id: _Key
    request_key: _Key = ""
    num_samples: Samples = 1
    accuracy: float | None = None
    loss: float | None = None
    model_size: float | None = None
    avg_epoch_time: float | None = None
    total_train_time: float | None = None
    round_completion_time: float | None = None
    trained_epochs: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """What it measures, by name."""
        found = {name: getattr(self, name) for name in STATS}
        return {name: value for name, value in found.items() if value is not None}


STATS = Stat.__struct_fields__[4:]
"""Metrics that an entry of upload_stats may have."""


class UploadStats(Body, frozen=True):
    """Metrics of one place or several."""

    stats: Annotated[list[Stat], msgspec.Meta(min_length=1, max_length=MAX_STATS)]


def is_name(text: str) -> bool:
    """Whether a metric may be called so."""
    return _NAME.fullmatch(text) is not None


def read_metrics(given: Mapping[str, Any]) -> dict[str, float]:
    """Metrics from outside. Raises BadRequest for too many, for odd names, and for what is no finite number."""
    if not 1 <= len(given) <= MAX_METRICS:
        raise BadRequest(f"a report has 1 to {MAX_METRICS} metrics")
    for name, value in given.items():
        if not is_name(name):
            raise BadRequest(
                f"names of metrics are 1 to {MAX_METRIC_NAME_CHARS} letters, digits, spaces and _ . : / % ( ) + -, "
                "a letter or digit first"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise BadRequest("a metric is a finite number")
    return {name: float(value) for name, value in given.items()}


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False
