"""Several steps of a plan as one ONNX model: a Loop whose body is the step, as plans/onnx_writer.py writes it.

To begin a run costs ONNX Runtime about as much as a step of a small network takes. Batches are picked from all rows
within the loop, by `order`; what a step measures comes out once for each.
"""

from __future__ import annotations

from grid_jupyter.plans import onnx_model
from grid_jupyter.plans.document import UPDATED, Document, Input, Output
from grid_jupyter.plans.onnx_graph import described, input_name, output_name
from grid_jupyter.plans.onnx_writer import converted

COUNT, SIZE, ORDER = "steps:count", "steps:size", "steps:order"
"""Inputs beside the plan's: how many steps, rows of each, and which rows, [n] int64. The last step has what is left."""


def rows_name(one: Input) -> str:
    """What all rows of an x or y are called."""
    return f"all:{input_name(one)}"


def first_name(one: Input) -> str:
    """What a tensor that is carried from step to step is called before the first."""
    return f"first:{input_name(one)}"


def last_name(one: Input) -> str:
    """The same after the last."""
    return f"last:{input_name(one)}"


def each_name(one: Output) -> str:
    """What is measured in each step is called all together."""
    return f"each:{output_name(one)}"


def carried(document: Document) -> list[Input]:
    """Inputs of a step that are its outputs, too."""
    updated = {(one.role, one.name) for one in document.outputs_of(*UPDATED)}
    return [one for one in document.inputs if (one.role, one.name) in updated]


def steps_to_onnx(document: Document) -> bytes:
    """The model of many steps: what it carries as it is after the last, loss and metrics once for each. The document
    has been checked, and has no noise. Raises PlanInvalidError as to_onnx does."""
    graph = converted(document)
    nodes, constants = graph.parts()
    moving, data = carried(document), document.inputs_of("x", "y")
    carries = {(one.role, one.name): one for one in document.outputs_of(*UPDATED)}
    told = document.outputs_of("loss", "metric")
    begin = [
        onnx_model.node("Mul", "b0", ["steps:at", SIZE], ["steps:start"], {}),
        onnx_model.node("Add", "b1", ["steps:start", SIZE], ["steps:stop"], {}),
        onnx_model.node("Slice", "b2", [ORDER, "steps:start", "steps:stop"], ["steps:chosen"], {}),
        *(
            onnx_model.node("Gather", f"b{3 + k}", [rows_name(one), "steps:chosen"], [input_name(one)], {"axis": 0})
            for k, one in enumerate(data)
        ),
        onnx_model.node("Identity", "go", ["steps:on"], ["steps:still"], {}),
    ]
    body = onnx_model.graph(
        [*begin, *nodes],
        constants,
        [
            onnx_model.described("steps:at", "int64", []),
            onnx_model.described("steps:on", "bool", []),
            *(described(input_name(one), one.spec) for one in moving),
        ],
        [
            onnx_model.described("steps:still", "bool", []),
            *(described(output_name(carries[one.role, one.name]), one.spec) for one in moving),
            *(described(output_name(one), graph.spec(one.value)) for one in told),
        ],
    )
    ends, each = [last_name(one) for one in moving], [each_name(one) for one in told]
    loop = onnx_model.node("Loop", "loop", [COUNT, "", *map(first_name, moving)], [*ends, *each], {"body": body})
    beside = [one for one in document.inputs if one.data is None and one not in moving and one not in data]
    whole = onnx_model.graph(
        [loop],
        [],
        [
            onnx_model.described(COUNT, "int64", []),
            onnx_model.described(SIZE, "int64", [1]),
            onnx_model.described(ORDER, "int64", ["rows"]),
            *(onnx_model.described(rows_name(one), one.spec.dtype, ["all", *_lengths(one)]) for one in data),
            *(described(first_name(one), one.spec) for one in moving),
            *(described(input_name(one), one.spec) for one in beside),
        ],
        [
            *(described(name, one.spec) for name, one in zip(ends, moving, strict=True)),
            *(
                onnx_model.described(name, graph.spec(one.value).dtype, ["steps"])
                for name, one in zip(each, told, strict=True)
            ),
        ],
    )
    return onnx_model.model(whole, {"grid.plan.sha256": document.sha256})


def _lengths(one: Input) -> list[onnx_model.Length]:
    return [length if isinstance(length, int) else f"length {k}" for k, length in enumerate(one.spec.shape[1:])]
