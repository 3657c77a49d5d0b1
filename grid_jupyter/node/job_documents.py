"""What is submitted as a job, held against its plan and its data: what does not fit is refused before anybody is asked.

Pure but for reading the weights; knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import msgspec

from grid_jupyter.errors import BadRequest, InvalidDataError, LimitExceededError
from grid_jupyter.plans.check import Limits, check
from grid_jupyter.plans.document import Document, Input
from grid_jupyter.plans.drawing import graph, svg
from grid_jupyter.plans.expressions import size_of
from grid_jupyter.plans.listing import code
from grid_jupyter.store.datasets import StoredDataset
from grid_jupyter.wire.jobs import Arguments, Part, Rows, offsets
from grid_jupyter.wire.messages import Message
from grid_jupyter.wire.safetensors import BlobTensor
from grid_jupyter.worker.devices import Asked

PLAN = "plan"
"""The tensor of an upload that holds the plan's bytes."""
NUMBERS: dict[str, frozenset[str]] = {
    "sgd": frozenset({"lr", "momentum", "dampening", "nesterov", "weight_decay"}),
    "adam": frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"}),
    "adamw": frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"}),
}
"""The optimisers, and the numbers that each takes."""
MAX_SHOWN = 20_000
"""Characters of a plan's listing that its owner is shown."""
_CHUNK = 1 << 20

Found = Mapping[tuple[int, int], StoredDataset]
"""Data sets by id and version."""


class JobDocument(Message, frozen=True):
    """What was submitted, as it is kept: it never changes, and an approval is bound to it."""

    plan: str  # its SHA-256
    kind: str
    arguments: Arguments
    model: tuple[Part, ...]
    data: dict[str, Rows]
    rows: int
    steps: int
    reason: str = ""
    device: str = ""
    device_parts: int = 0

    @property
    def asked(self) -> Asked:
        """What its Worker is asked for."""
        return Asked(self.device, self.device_parts)

    @property
    def model_bytes(self) -> int:
        """Bytes of the weights as they travel."""
        return offsets(self.model)[1]

    @property
    def whole_step(self) -> bool:
        """Whether the author wrote the whole step, which can copy rows into its result."""
        return self.kind == "step"


def prepare(
    plan: Document, data: dict[str, Rows], found: Found, arguments: Arguments, reason: str, limits: Limits
) -> JobDocument:
    """A job as it is kept. Raises BadRequest and PlanInvalidError, which say what does not fit, and the remedy."""
    _check_arguments(plan, arguments)
    wanted = {one.name: one for one in plan.inputs_of("x", "y")}
    if wanted.keys() != data.keys():
        raise BadRequest(f"the plan takes the data {_names(wanted)}, and the job names {_names(data)}")
    if len({(rows.dataset, rows.version) for rows in data.values()}) > 2:
        raise BadRequest("a job takes its data from one or two data sets")
    shapes = {name: _shape(rows, found) for name, rows in data.items()}
    count = _count(shapes)
    if arguments.batch_size > plan.batch[1]:
        raise BadRequest(f"the plan is for batches of up to {plan.batch[1]}: give a batch_size up to that")
    sizes = {min(arguments.batch_size, count), count % arguments.batch_size or arguments.batch_size}
    for size in sorted(min(size, count) for size in sizes):
        if size < plan.batch[0]:
            raise BadRequest(
                f"the last of {count} rows make a batch of {size}, and the plan is for {plan.batch[0]} at least: "
                f"give another batch_size"
            )
        for name, (shape, dtypes) in shapes.items():
            _check_fits(wanted[name], shape, dtypes, size)
        check(plan, size, limits)
    model = tuple(Part(name=one.name, dtype=one.spec.dtype, shape=_fixed(one)) for one in plan.inputs_of("param"))
    model += tuple(Part(name=one.name, dtype=one.spec.dtype, shape=_fixed(one)) for one in plan.inputs_of("buffer"))
    if not plan.inputs_of("param"):
        raise BadRequest("the plan has no parameters, so there is nothing to train")
    return JobDocument(
        plan=plan.sha256,
        kind=plan.kind,
        arguments=arguments,
        model=model,
        data=data,
        rows=count,
        steps=arguments.rounds * arguments.epochs * -(-count // arguments.batch_size),
        reason=reason,
    )


def _check_arguments(plan: Document, arguments: Arguments) -> None:
    if plan.kind not in ("forward", "step"):
        raise BadRequest("a job takes a model with its loss, or a whole step: capture it with loss_plan(model, loss)")
    if not plan.outputs_of("loss"):
        raise BadRequest("the plan has no loss: capture it with loss_plan(model, loss)")
    known = {one.name for one in plan.outputs_of("metric")}
    if not known.issuperset(arguments.metrics):
        raise BadRequest(f"the plan has the metrics {_names(known)}, not {_names(arguments.metrics)}")
    if not all(map(math.isfinite, (*arguments.numbers.values(), arguments.proximal))):
        raise BadRequest("the optimiser's numbers must be finite")
    if plan.kind == "step":
        hyper = {one.name for one in plan.inputs_of("hyper")}
        if hyper != arguments.numbers.keys():
            raise BadRequest(f"the plan's step takes the numbers {_names(hyper)}: give just these as its optimiser's")
        if arguments.proximal or arguments.corrected:
            raise BadRequest("a whole step takes no proximal term and no correction; let the Worker derive the step")
        return
    numbers = NUMBERS.get(arguments.optimizer)
    if numbers is None:
        raise BadRequest(f"the optimisers of jobs are {', '.join(NUMBERS)}")
    if "lr" not in arguments.numbers or not numbers >= arguments.numbers.keys():
        raise BadRequest(f"{arguments.optimizer} takes lr, and of the others {_names(numbers - {'lr'})}")
    if any(number < 0 for number in arguments.numbers.values()):
        raise BadRequest("the optimiser's numbers cannot be negative")
    if any(arguments.numbers.get(name, 0.0) >= 1.0 for name in ("beta1", "beta2")):
        raise BadRequest("beta1 and beta2 are below 1")


def _shape(rows: Rows, found: Found) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape and dtypes of one input's data."""
    stored = found[rows.dataset, rows.version]
    tensors = {tensor.name: tensor for tensor in stored.tensors}
    missing = [name for name in rows.tensors if name not in tensors or name.startswith(("mask/", "vocab/"))]
    if missing:
        raise BadRequest(f"data set {stored.id} has no tensor {missing[0]!r}; see what it holds with .keys()")
    named = [tensors[name] for name in rows.tensors]
    masked = [name for name in rows.tensors if name.replace("col/", "mask/", 1) in tensors and stored.kind == "table"]
    if masked:
        raise BadRequest(f"a column of data set {stored.id} has missing entries, which no plan can take: fill them in")
    if not rows.columns:
        if len(named) != 1 or not named[0].shape:
            raise BadRequest("an input is one tensor with rows, or columns of a table")
        return named[0].shape, (named[0].dtype,)
    if any(len(tensor.shape) != 1 for tensor in named):
        raise BadRequest("columns have one dimension each")
    if len({tensor.shape[0] for tensor in named}) != 1:
        raise BadRequest("the columns of one input have equally many rows")
    return (named[0].shape[0], len(named)), tuple(tensor.dtype for tensor in named)


def _count(shapes: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]) -> int:
    counts = {name: shape[0] for name, (shape, _) in shapes.items()}
    if len(set(counts.values())) != 1:
        said = ", ".join(f"{name} has {count} rows" for name, count in counts.items())
        raise BadRequest(f"the inputs of a job have equally many rows: {said}")
    count = next(iter(counts.values()))
    if not count:
        raise BadRequest("the data is empty: there is nothing to train on")
    return count


def _check_fits(one: Input, shape: tuple[int, ...], dtypes: Sequence[str], batch: int) -> None:
    wanted = tuple(size_of(length, batch) for length in one.spec.shape)
    if wanted != (batch, *shape[1:]):
        raise BadRequest(
            f"the plan takes {one.name} with the shape {['rows', *wanted[1:]]}, and the data has {['rows', *shape[1:]]}"
        )
    for dtype in dtypes:
        if not _casts(dtype, one.spec.dtype):
            raise BadRequest(f"the plan takes {one.name} as {one.spec.dtype}, and the data is {dtype}: convert one")


def _casts(dtype: str, wanted: str) -> bool:
    """Whether data of a dtype is given to an input of another one: nothing is rounded to an integer."""
    return dtype == wanted or "float" in wanted or ("int" in wanted and ("int" in dtype or dtype == "bool"))


def _fixed(one: Input) -> tuple[int, ...]:
    return tuple(size_of(length, 1) for length in one.spec.shape)


def _names(names: Any) -> str:
    return ", ".join(sorted(names)[:8]) or "none"


# ------------------------------------------------------------------ the upload


def find_plan(tensors: Sequence[BlobTensor]) -> BlobTensor:
    """Where the plan lies in an upload. Raises InvalidDataError."""
    found = next((tensor for tensor in tensors if tensor.name == PLAN), None)
    if found is None or found.dtype != "uint8" or len(found.shape) != 1:
        raise InvalidDataError("the upload of a job holds its plan as the tensor 'plan' of uint8")
    return found


def find_weights(tensors: Sequence[BlobTensor], model: Sequence[Part]) -> tuple[BlobTensor, ...]:
    """Where the weights lie, in the model's order. Raises InvalidDataError where they are not the plan's."""
    by_name = {tensor.name: tensor for tensor in tensors}
    found = []
    for number, part in enumerate(model):
        tensor = by_name.get(f"w/{number}")
        if tensor is None or tensor.dtype != part.dtype or tensor.shape != part.shape:
            raise InvalidDataError(f"the model's {part.name} is not the {part.dtype}{list(part.shape)} of the plan")
        found.append(tensor)
    if len(by_name) != len(model) + 1:
        raise InvalidDataError("the upload of a job holds its plan, the weights of its model, and nothing else")
    return tuple(found)


def check_finite(file: BinaryIO, weights: Sequence[BlobTensor], model: Sequence[Part]) -> None:
    """Raises InvalidDataError for weights with NaN or infinite numbers, which training never gets rid of."""
    import numpy  # a Node to which nobody submits does without

    for tensor, part in zip(weights, model, strict=True):
        if "float" not in tensor.dtype or tensor.begin == tensor.end:
            continue
        # bfloat16, which NumPy has not, is the upper half of float32: not finite where all bits of the exponent are set
        kind = "uint16" if tensor.dtype == "bfloat16" else tensor.dtype
        count = (tensor.end - tensor.begin) // numpy.dtype(kind).itemsize
        values = numpy.memmap(file, dtype=kind, mode="r", offset=tensor.begin, shape=(count,))
        for at in range(0, count, _CHUNK):
            chunk = values[at : at + _CHUNK]
            finite = (chunk & 0x7F80) != 0x7F80 if kind == "uint16" else numpy.isfinite(chunk)
            if not finite.all():
                raise InvalidDataError(f"the model's {part.name} holds NaN or infinite numbers: train from others")


# ------------------------------------------------------------------ what is approved


def binding_document(job: JobDocument, policies: Mapping[int, Any]) -> dict[str, Any]:
    """All that an approval is bound to. The values of weights are not in it, their form is: a training of many rounds
    sends new ones. `policies`: what the owners say, by data set."""
    return {
        "plan": job.plan,
        "arguments": msgspec.to_builtins(job.arguments),
        "model": msgspec.to_builtins(job.model),
        "data": msgspec.to_builtins(job.data),
        "policies": {str(dataset): said for dataset, said in sorted(policies.items())},
    }


def shown(job: JobDocument, plan: Document) -> dict[str, Any]:
    """What the owners are shown of a job, besides who asks and why."""
    text = code(plan)
    listing = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "\n… (the whole of it: the job's plan)"
    what = "the weights after each round" if job.arguments.rounds > 1 else "the weights at the end"
    return {
        "plan": listing,
        "graph": svg(graph(plan)),
        "plan_sha256": job.plan,
        "operations": len(plan.nodes),
        "whole_step": job.whole_step,
        "model_bytes": job.model_bytes,
        "model": [[part.name, part.dtype, list(part.shape)] for part in job.model],
        "data": msgspec.to_builtins(job.data),
        "rows": job.rows,
        "steps": job.steps,
        "arguments": msgspec.to_builtins(job.arguments),
        "released": f"{what}, and {_names({'loss', *job.arguments.metrics})} of each epoch",
        "starting_weights": "chosen by who asks, and not part of what is approved",
    }


def check_room(limit: int, job: JobDocument, memory_bytes: int) -> None:
    """Raises LimitExceededError for a model that a Worker could not hold with its gradients and its optimiser."""
    if job.model_bytes > limit:
        raise LimitExceededError(f"a model of {job.model_bytes} bytes is over this Node's limit of {limit}")
    if 4 * job.model_bytes > memory_bytes:
        raise LimitExceededError(
            f"a model of {job.model_bytes} bytes, with gradients and optimiser, does not fit the {memory_bytes} bytes "
            f"of a Worker; ask for a larger device_fraction where the Node has one, or its owner to raise "
            f"--session-memory"
        )
