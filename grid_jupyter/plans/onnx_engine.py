"""Runs plans by ONNX Runtime: the document is checked, written as ONNX here, and only that is handed to the runtime.

ONNX from anywhere else is never loaded. What the runtime says of a failed run may show values, so that it is neither
logged nor told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on, its import begins to tell its makers of each use

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as raised

from grid_jupyter.errors import DependencyError, PlanInvalidError
from grid_jupyter.plans import onnx_steps
from grid_jupyter.plans.check import Limits, check
from grid_jupyter.plans.document import Document, Input
from grid_jupyter.plans.engine import batch_of, check_range
from grid_jupyter.plans.onnx_graph import input_name, numpy_type, output_name
from grid_jupyter.plans.onnx_model import Array
from grid_jupyter.plans.onnx_writer import to_onnx

onnxruntime.disable_telemetry_events()  # on Windows, and where somebody imported it before
_PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
_SILENT = 4
_FAILURES = (
    raised.EPFail, raised.Fail, raised.InvalidArgument, raised.InvalidGraph, raised.InvalidProtobuf,
    raised.NotImplemented, raised.RuntimeException,
)  # fmt: skip
"""What the runtime raises. They have no class in common but Exception."""
MAX_BATCH_SIZES = 64
"""Batch sizes that one program remembers as checked."""


class OnnxEngine:
    """Runs plans by ONNX Runtime on "cpu" or "cuda".

    `threads`: of one run; 0 leaves it to the runtime, which takes one for each core.
    """

    name = "onnx"

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        if device not in _PROVIDERS:
            raise ValueError(f"the ONNX engine runs on {' or '.join(_PROVIDERS)}, not on {device}")
        if _PROVIDERS[device][0] not in onnxruntime.get_available_providers():
            raise DependencyError(
                f"this ONNX Runtime does not run on {device}: install onnxruntime-gpu instead of onnxruntime"
            )
        self.device, self.threads = device, threads

    def load(
        self, document: Document, limits: Limits | None = None, wanted: Callable[[str], bool] = lambda role: True
    ) -> OnnxProgram:
        """As Engine.load."""
        check_range(document, limits)
        return OnnxProgram(document, self._session(to_onnx(document, wanted)), limits, wanted)

    def load_steps(self, document: Document, limits: Limits | None = None) -> OnnxSteps:
        """A step plan without noise, of which one run makes many steps. Raises PlanInvalidError as `load` does."""
        check_range(document, limits)
        return OnnxSteps(document, self._session(onnx_steps.steps_to_onnx(document)), limits)

    def _session(self, model: bytes) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads use no CPU
        try:
            return onnxruntime.InferenceSession(model, options, providers=_PROVIDERS[self.device])
        except _FAILURES as error:
            raise PlanInvalidError(f"ONNX Runtime does not run this plan, the torch engine may: {error}") from None


class OnnxProgram:
    """A plan as a session of ONNX Runtime, for all batch sizes."""

    def __init__(
        self, document: Document, session: onnxruntime.InferenceSession, limits: Limits | None,
        wanted: Callable[[str], bool],
    ) -> None:  # fmt: skip
        self.document = document
        self.inputs = tuple(one for one in document.inputs if one.data is None)
        self._session, self._fit = session, _Fit(document, self.inputs, limits)
        self._names = [input_name(one) for one in self.inputs]
        self._outputs = [output_name(one) if wanted(one.role) else None for one in document.outputs]
        self._asked = [name for name in self._outputs if name is not None]

    def native(self, array: Array) -> Array:
        """As Program.native."""
        return np.asarray(array, order="C")

    def run(self, values: Sequence[Array]) -> list[Any]:
        """As Program.run. An output that is not wanted is None."""
        self._fit.check(values)
        made = iter(_run(self._session, self._asked, dict(zip(self._names, values, strict=True))))
        return [None if name is None else next(made) for name in self._outputs]


class OnnxSteps:
    """A step plan as a session of ONNX Runtime that makes many steps in one run, to the same bits."""

    def __init__(self, document: Document, session: onnxruntime.InferenceSession, limits: Limits | None) -> None:
        self.document = document
        self._session = session
        self._inputs = tuple(one for one in document.inputs if one.data is None)
        self._fit = _Fit(document, self._inputs, limits)
        moving = onnx_steps.carried(document)
        self._names = [
            onnx_steps.rows_name(one) if one.role in ("x", "y")
            else onnx_steps.first_name(one) if one in moving else input_name(one)
            for one in self._inputs
        ]  # fmt: skip
        told = document.outputs_of("loss", "metric")
        self._made = [*((one.role, one.name) for one in moving), *((one.role, one.name) for one in told)]
        self._asked = [*map(onnx_steps.last_name, moving), *map(onnx_steps.each_name, told)]

    def run(self, given: Mapping[str, Mapping[str, Array]], order: Array, size: int) -> dict[str, dict[str, Array]]:
        """Steps on the rows that `order` names, [n] int64, `size` in each but the last, which has what is left.
        `given` are the values of all inputs by role and name, of x and y all rows.

        What is carried from step to step as it is after the last, and loss and metrics, one for each step, by role and
        name. Raises PlanInvalidError as Program.run does.
        """
        values = [given[one.role][one.name] for one in self._inputs]
        for count in {min(size, len(order)), len(order) % size or size}:
            self._fit.check(
                [
                    value[:count] if one.role in ("x", "y") else value
                    for one, value in zip(self._inputs, values, strict=True)
                ]
            )
        fed = dict(zip(self._names, values, strict=True))
        fed[onnx_steps.COUNT] = np.array(-(-len(order) // size), np.int64)
        fed[onnx_steps.SIZE], fed[onnx_steps.ORDER] = np.array([size], np.int64), order
        found: dict[str, dict[str, Array]] = {}
        for (role, name), value in zip(self._made, _run(self._session, self._asked, fed), strict=True):
            found.setdefault(role, {})[name] = value
        return found


def _run(session: onnxruntime.InferenceSession, asked: list[str], fed: dict[str, Array]) -> list[Any]:
    try:
        results: list[Any] = session.run(asked, fed)
    except _FAILURES:
        raise PlanInvalidError(
            "the run failed in ONNX Runtime: an index among the data may point outside of what it is for, or the "
            "memory may be used up"
        ) from None
    return results


class _Fit:
    """What values of a plan's inputs look like, for the batch sizes that were seen."""

    def __init__(self, document: Document, inputs: Sequence[Input], limits: Limits | None) -> None:
        self.document, self._inputs, self._limits = document, inputs, limits
        self._expected: dict[int, list[tuple[np.dtype[Any], tuple[int, ...]]]] = {}

    def check(self, values: Sequence[Array]) -> None:
        """Raises PlanInvalidError naming the first value of another dtype or shape, or for a batch over the limits."""
        expected = self._for_batch(batch_of(self._inputs, [value.shape for value in values]))
        for one, value, (dtype, shape) in zip(self._inputs, values, expected, strict=True):
            if value.dtype != dtype or value.shape != shape:
                given = f"{value.dtype.name}{list(value.shape)}"
                raise PlanInvalidError(f"{one.role} {one.name} is {given}; the plan takes {dtype.name}{list(shape)}")

    def _for_batch(self, batch: int | None) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        size = self.document.batch[0] if batch is None else batch
        if size not in self._expected:
            values = check(self.document, size, self._limits).values
            if len(self._expected) == MAX_BATCH_SIZES:
                self._expected.pop(next(iter(self._expected)))
            self._expected[size] = [
                (np.dtype(numpy_type(value.dtype)), value.shape)
                for value, one in zip(values, self.document.inputs, strict=False)
                if one.data is None
            ]
        return self._expected[size]
