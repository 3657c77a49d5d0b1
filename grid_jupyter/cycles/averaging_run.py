"""A program: an averaging plan over the diffs of one cycle, by ONNX Runtime; the average goes to standard output.

It is run by averaging_plan.py, as `python -m grid_jupyter.cycles.averaging_run`, with a Task as JSON on standard input.
What the plan does is bounded by its check, and this process by limits of its own, in the sandbox of Workers: memory,
time, no files but the descriptors that it is handed.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import msgspec
import numpy

from grid_jupyter.aggregation.diffs import unpacked
from grid_jupyter.aggregation.form import Form, flattened
from grid_jupyter.aggregation.reports import form_of, mapped
from grid_jupyter.cycles.averaging_plan import Task
from grid_jupyter.plans.check import Limits
from grid_jupyter.plans.onnx_engine import OnnxEngine
from grid_jupyter.plans.reader import read_plan
from grid_jupyter.wire.safetensors import build_header, parse_header

_BASE_BYTES = 2 << 30
"""Addresses that Python, NumPy and ONNX Runtime take before anything is computed."""


def main() -> None:
    """Read the task, and write the average diff as a safetensors file."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    resource.setrlimit(resource.RLIMIT_CPU, (task.seconds, task.seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # pipes have no size
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = _BASE_BYTES + task.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    form = form_of(task.model)
    _write(form, _averaged(task, form))


def _averaged(task: Task, form: Form) -> list[Any]:
    program = OnnxEngine("cpu", 1).load(
        read_plan(_read(task.plan)), Limits(memory_bytes=task.memory_bytes), lambda role: role == "result"
    )
    if not task.iterative:
        diffs = [_diff(report, form) for report in task.reports]
        return program.run([tensor for diff in diffs for tensor in diff])
    average = _diff(task.reports[0], form)
    number = program.inputs[-1].spec
    shape = (1,) if number.shape else ()
    for i, report in enumerate(task.reports[1:], start=1):
        average = program.run([*average, *_diff(report, form), numpy.full(shape, i, number.dtype)])
    return average


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def _diff(report: int, form: Form) -> list[Any]:
    tensors = unpacked(mapped(report), form)
    return [numpy.array(flattened(tensors[name])[:], dtype).reshape(shape) for name, dtype, shape in form.parts]


def _write(form: Form, average: list[Any]) -> None:
    named = dict(zip(form.names, average, strict=True))
    header = build_header([(name, dtype.name, shape) for name, dtype, shape in form.parts])
    sys.stdout.buffer.write(header)
    for place in sorted(parse_header(header[:8], header[8:], len(header) + form.nbytes), key=lambda one: one.begin):
        sys.stdout.buffer.write(numpy.ascontiguousarray(named[place.name]).reshape(-1).view(numpy.uint8).data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
