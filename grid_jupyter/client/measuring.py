"""How good a model is on rows of a device: what its plan measures, without the step. By ONNX Runtime, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from grid_jupyter.plans.document import Document
from grid_jupyter.plans.engine import Feed, Program
from grid_jupyter.plans.onnx_engine import OnnxEngine
from grid_jupyter.wire.metrics import MAX_METRICS, is_name

Array = NDArray[Any]
Rows = Mapping[str, Mapping[str, Array]]
"""Arrays by name, of the roles x and y; rows first."""
BATCH_SIZE = 256
"""Rows that are measured at once, where the plan takes so many and training has no larger batches."""
BEFORE, AFTER = "_before", "_after"
"""What names of metrics end in: of the model as it came, and as it was trained."""


@dataclass(frozen=True)
class Told:
    """What a device tells of a cycle: metrics by name, and the number of rows that they were measured on."""

    metrics: dict[str, float]
    samples: int

    @classmethod
    def of(cls, before: Mapping[str, float], after: Mapping[str, float], samples: int) -> Told:
        """Both in one. What no Node would take (odd names, too many of them) is left out."""
        pairs = {**{name + BEFORE: value for name, value in before.items()},
                 **{name + AFTER: value for name, value in after.items()}}  # fmt: skip
        fitting = [(name, value) for name, value in pairs.items() if is_name(name) and math.isfinite(value)]
        return cls(dict(fitting[:MAX_METRICS]), samples)


class Measuring:
    """Loss and metrics of a step plan."""

    def __init__(self, engine: OnnxEngine, document: Document) -> None:
        self._program: Program[Array] = engine.load(document, wanted=lambda role: role in ("loss", "metric"))
        self._measured = [(k, one.name) for k, one in enumerate(document.outputs) if one.role in ("loss", "metric")]
        # A step takes these as well; what it measures does not depend on them.
        self._beside = {
            role: {one.name: numpy.zeros(_shape(one.spec.shape), one.spec.dtype) for one in document.inputs_of(role)}
            for role in ("state", "hyper")
        }

    def measure(self, tensors: Mapping[str, Array], rows: Rows, batch_size: int) -> tuple[dict[str, float], int]:
        """Means over the rows of what the plan measures, for a model's tensors by name; and the number of rows.

        `batch_size` is that of training, which fits into memory. A last batch that is smaller than the plan takes is
        left out. As in training, noise (dropout) is drawn.
        """
        feed, count = Feed(self._program), len(next(iter(rows["x"].values())))
        least, most = self._program.document.batch
        size = max(least, min(most, max(batch_size, BATCH_SIZE)))
        totals, seen = dict.fromkeys((name for _, name in self._measured), 0.0), 0
        for start in range(0, count, size):
            batch = min(size, count - start)
            if batch < least:
                break
            x, y = ({name: array[start : start + batch] for name, array in rows[role].items()} for role in ("x", "y"))
            given = {**self._beside, "param": tensors, "buffer": tensors, "x": x, "y": y}
            results = self._program.run(feed.values(given, batch))
            for k, name in self._measured:
                totals[name] += float(results[k]) * batch
            seen += batch
        return {name: total / seen for name, total in totals.items() if seen}, seen


def _shape(shape: tuple[object, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if isinstance(length, int))
