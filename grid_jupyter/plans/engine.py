"""What an engine is, and what runs of a plan need whatever the engine: the feed, the noise, tensors carried over.

An engine turns a document into a Program. A Program runs on the engine's own arrays (torch tensors, NumPy arrays);
this module never looks inside them. It knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans.check import Limits, check
from grid_jupyter.plans.document import UPDATED, Document, Input
from grid_jupyter.plans.expressions import BATCH, size_of
from grid_jupyter.plans.shapes import need

Array = TypeVar("Array")
Named = Mapping[str, Array]


class Program(Protocol[Array]):
    """A plan, loaded. `inputs` are those that a run takes, in order: all but the constants."""

    document: Document
    inputs: tuple[Input, ...]

    def run(self, values: Sequence[Array]) -> list[Array]:
        """One run: the outputs in the document's order. `values` fit `inputs`, noise included.

        The values are not written to. Raises PlanInvalidError where a dtype or shape is not the plan's, or where a
        run with this batch takes more than the limits that the program was loaded with.
        """
        ...

    def native(self, array: np.ndarray[Any, Any]) -> Array:
        """A NumPy array as one of the engine's, where it runs."""
        ...


class Engine(Protocol[Array]):
    """Runs plans. `name` is what a person calls it."""

    name: str

    def load(
        self, document: Document, limits: Limits | None = None, wanted: Callable[[str], bool] = ...
    ) -> Program[Array]:
        """The program of a plan, of which only outputs whose role is `wanted` are computed.

        Raises PlanInvalidError for a plan that the check refuses or that this engine cannot run.
        """
        ...


@dataclass(frozen=True)
class Outcome(Generic[Array]):
    """What one run gave, by role and name."""

    values: Mapping[str, Mapping[str, Array]]

    def __getitem__(self, role: str) -> Mapping[str, Array]:
        return self.values.get(role, {})


class Feed:
    """Puts named values into the order that a program takes, and makes its noise.

    The noise of a seed is the same in every engine: NumPy's Philox generator, in the order of the inputs.
    """

    def __init__(self, program: Program[Any], seed: int = 0) -> None:
        self._program = program
        self._inputs = program.inputs
        if any(one.role == "noise" for one in self._inputs):  # most plans have none, and the generator takes its time
            self._random = np.random.Generator(np.random.Philox(seed))

    def values(self, given: Mapping[str, Named[Any]], batch: int) -> list[Any]:
        """One run's values. Raises PlanInvalidError naming an input that is missing."""
        try:
            return [
                self._noise(one, batch) if one.role == "noise" else given[one.role][one.name] for one in self._inputs
            ]
        except KeyError:
            missing = [one for one in self._inputs if one.role != "noise" and one.name not in given.get(one.role, {})]
            names = ", ".join(f"{one.role} {one.name}" for one in missing[:5])
            raise PlanInvalidError(f"a run of the plan lacks {names}") from None

    def _noise(self, one: Input, batch: int) -> Any:
        shape = [size_of(length, batch) for length in one.spec.shape]
        dtype = np.dtype(one.spec.dtype)
        draw = self._random.standard_normal if one.distribution == "normal" else self._random.random
        return self._program.native(draw(shape, dtype=dtype.type))


class Training(Generic[Array]):
    """A step plan and what it carries from step to step: `params`, `buffers`, `state` (the optimiser's), by name."""

    def __init__(
        self, program: Program[Array], params: Named[Array], buffers: Named[Array], state: Named[Array],
        hyper: Named[Array], seed: int = 0,
    ) -> None:  # fmt: skip
        need(program.document.kind == "step", "this plan is no training step")
        self.program = program
        self._feed = Feed(program, seed)
        self._values: dict[str, dict[str, Array]] = {
            "param": dict(params), "buffer": dict(buffers), "state": dict(state), "hyper": dict(hyper)
        }  # fmt: skip
        self._carried = [
            (k, self._values[output.role], output.name)
            for k, output in enumerate(program.document.outputs)
            if output.role in UPDATED
        ]
        self._told = [
            (k, output.name) for k, output in enumerate(program.document.outputs) if output.role in ("loss", "metric")
        ]

    def step(self, x: Named[Array], y: Named[Array], batch: int) -> dict[str, Array]:
        """One step on one batch of this size; its loss and metrics by name."""
        values = self._feed.values({**self._values, "x": x, "y": y}, batch)
        results = self.program.run(values)
        for k, into, name in self._carried:
            into[name] = results[k]
        return {name: results[k] for k, name in self._told}

    @property
    def params(self) -> dict[str, Array]:
        return self._values["param"]

    @property
    def buffers(self) -> dict[str, Array]:
        return self._values["buffer"]

    @property
    def state(self) -> dict[str, Array]:
        return self._values["state"]


def batch_of(inputs: Sequence[Input], shapes: Sequence[Sequence[int]]) -> int | None:
    """The batch size of a run, from the shapes that it is given; None where the plan has none."""
    for one, shape in zip(inputs, shapes, strict=True):
        if one.role in ("x", "y", "arg") and one.spec.shape[:1] == (BATCH,) and len(shape) > 0:
            return int(shape[0])
    return None


def check_range(document: Document, limits: Limits | None = None) -> None:
    """Checks a plan at its smallest batch size, and at the next, where 1/(B - 1) and the like are no special case."""
    least, most = document.batch
    for batch in sorted({least, min(least + 1, most)}):
        check(document, batch, limits)
