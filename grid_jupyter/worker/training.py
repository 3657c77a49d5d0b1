"""Training as a job does it: the gradient of a plan's loss, an optimiser's step, epochs that can be repeated.

Weights lie in one run of memory (wire/jobs.py `offsets`), which the steps change in place. What is random (the order
of rows, noise) follows from seed, round and epoch alone, so that a job that goes on from a checkpoint does the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from grid_jupyter.errors import RemoteOperationError
from grid_jupyter.ops.raw import DTYPES
from grid_jupyter.plans.document import Document, Input
from grid_jupyter.plans.expressions import size_of
from grid_jupyter.wire.dtypes import nbytes
from grid_jupyter.wire.jobs import Arguments, Part, offsets
from grid_jupyter.worker.kept_steps import KeptStep, kept
from grid_jupyter.worker.updates import Tensors, update_of

Program = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""A plan made runnable: values of all its inputs but constants in, those of its outputs out, in the plan's order."""
Outputs = Sequence[Any]
"""What a plan gives; what nobody wants of it is None."""
CPU = torch.device("cpu")
_TOGETHER = 256
"""Steps on a GPU whose losses are added up at once."""
NOT_FINITE = (
    "the {} is not a number any more, or infinite: training diverged. Try a smaller learning rate, or scale the data"
)
_BESIDE_BYTES = 32 << 20
"""Columns of up to so many bytes together are put side by side once, larger ones for each batch."""


class Rows:
    """One input's data: a tensor with rows, or columns that are put side by side. Batches go to the device one by
    one."""

    def __init__(
        self, tensors: Sequence[torch.Tensor], columns: bool, dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        if columns and len(tensors) * len(tensors[0]) * dtype.itemsize <= _BESIDE_BYTES:
            tensors, columns = [torch.stack([one.to(dtype) for one in tensors], dim=1)], False
        self._device = device
        self._tensors = tensors
        self._columns = columns
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._tensors[0])

    def take(self, order: torch.Tensor | None, begin: int, end: int) -> torch.Tensor:
        """Rows begin to end of the order, or of the data as it lies."""
        if order is None:
            taken = [tensor[begin:end] for tensor in self._tensors]
        else:
            rows = order[begin:end]
            taken = [tensor.index_select(0, rows) for tensor in self._tensors]
        if self._columns:
            return torch.stack([one.to(self._dtype) for one in taken], dim=1).to(self._device)
        return taken[0].to(self._device, self._dtype)

    def take_into(self, out: torch.Tensor, order: torch.Tensor | None, begin: int, end: int) -> None:
        """The same, into memory that is there."""
        tensor = self._tensors[0]
        if order is None or self._columns or tensor.dtype != out.dtype or tensor.device != out.device:
            out.copy_(self.take(order, begin, end))
        else:
            torch.index_select(tensor, 0, order[begin:end], out=out)


class Weights:
    """A model's tensors, all in one run of memory; parameters first."""

    def __init__(self, model: Sequence[Part], device: torch.device = CPU) -> None:
        begins, self.nbytes = offsets(tuple(model))
        self.flat = torch.zeros(self.nbytes, dtype=torch.uint8, device=device)
        self.parts = views(self.flat, model, begins)
        all_float = all(part.dtype == "float32" for part in model)
        self._floats = self.flat.view(torch.float32) if all_float else None  # what lies between tensors is zero

    def load(self, data: torch.Tensor) -> None:
        """Take other values, as bytes."""
        self.flat.copy_(data)

    def check(self, what: str) -> None:
        """Raises RemoteOperationError where a number is none, or infinite."""
        checked = [self._floats] if self._floats is not None else [one for one in self.parts if one.is_floating_point()]
        for part in checked:
            # where a sum is finite its parts are; one of large float32 numbers may not be, but in float64, which takes
            # ten times as long
            numbers = part.detach()
            if not (math.isfinite(numbers.sum().item()) or math.isfinite(numbers.sum(dtype=torch.float64).item())):
                raise RemoteOperationError(NOT_FINITE.format(what))


def views(flat: torch.Tensor, model: Sequence[Part], begins: Sequence[int]) -> list[torch.Tensor]:
    """The tensors of a model in a run of bytes."""
    made = []
    for part, begin in zip(model, begins, strict=True):
        end = begin + nbytes(part.dtype, part.shape)
        made.append(flat[begin:end].view(DTYPES[part.dtype]).reshape(part.shape))
    return made


class Training:
    """A plan that is trained on rows. `epoch` may be called again and again; `reset` begins another round."""

    def __init__(
        self,
        plan: Document,
        program: Program,
        model: Sequence[Part],
        data: dict[str, Rows],
        arguments: Arguments,
        device: torch.device = CPU,
    ) -> None:
        self.arguments = arguments
        self.weights = Weights(model, device)
        self._device = device
        self.rows = len(next(iter(data.values())))
        self._program = program
        inputs = [one for one in plan.inputs if one.role != "const"]
        self._values = [_zeros(one).to(device) for one in inputs]
        self._at = {(one.role, one.name): number for number, one in enumerate(inputs)}
        self._data = [(self._at.get(("x", name), self._at.get(("y", name), -1)), rows) for name, rows in data.items()]
        self._noise = [(self._at[one.role, one.name], one) for one in plan.inputs_of("noise")]
        self._told = [
            (number, "loss" if one.role == "loss" else one.name)
            for number, one in enumerate(plan.outputs)
            if one.role == "loss" or (one.role == "metric" and one.name in arguments.metrics)
        ]
        self._loss = next(number for number, one in enumerate(plan.outputs) if one.role == "loss")
        count = len(plan.inputs_of("param"))
        model_inputs = (*plan.inputs_of("param"), *plan.inputs_of("buffer"))
        for one, part in zip(model_inputs, self.weights.parts, strict=True):
            self._values[self._at[one.role, one.name]] = part
        self._params = self.weights.parts[:count]
        self._renewed = [
            (number, self._at[one.role, one.name])
            for number, one in enumerate(plan.outputs)
            if one.role == "buffer" or (plan.kind == "step" and one.role in ("param", "state"))
        ]
        self._whole = plan.kind == "step"
        if self._whole:
            for one in plan.inputs_of("hyper"):
                dtype = DTYPES[one.spec.dtype]
                self._values[self._at[one.role, one.name]] = torch.tensor(
                    arguments.numbers[one.name], dtype=dtype, device=device
                )
            self._state = [self._values[self._at[one.role, one.name]] for one in plan.inputs_of("state")]
            return
        for param in self._params:
            param.requires_grad_(param.is_floating_point())
        reach = plan.sources_of(plan.outputs[self._loss].value)
        learning = [plan.inputs[number].name for number in reach if plan.inputs[number].role == "param"]
        named = zip(plan.inputs_of("param"), self._params, strict=True)
        # what the loss does not use stays as it is, also where weights decay: as torch's optimisers skip it
        self._trained = [param for one, param in named if param.requires_grad and one.name in learning]
        self._update = update_of(self._trained, arguments)
        self._start: list[torch.Tensor] = []
        self._correction: list[torch.Tensor] = []
        self._filled = [at for at, _ in (*self._data, *self._noise)]
        self._kept: dict[int, KeptStep | None] = {}  # by batch size, from its second step on
        self._keeps = device.type == "cpu" and not self._renewed

    # -------------------------------------------------------------- rounds

    def reset(self, correction: Sequence[torch.Tensor] = ()) -> None:
        """Begin another round, from the weights as they are now."""
        if self._whole:
            for state in self._state:
                state.zero_()
            return
        self._update.clear()
        if self.arguments.proximal:
            self._start = [param.detach().clone() for param in self._trained]
        by_param = {id(param): one for param, one in zip(self._params, correction, strict=False)}
        self._correction = [by_param[id(param)] for param in self._trained] if correction else []

    def state(self) -> dict[str, torch.Tensor]:
        """What the optimiser remembers, by a name for each tensor."""
        if self._whole:
            return {str(number): state for number, state in enumerate(self._state)}
        return self._update.state()

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Remember it again."""
        if self._whole:
            for number, value in state.items():
                self._state[int(number)].copy_(value)
        else:
            self._update.restore(state)

    # -------------------------------------------------------------- epochs

    def epoch(self, number: int, round_: int = 1) -> dict[str, float]:
        """One pass over the rows. Loss and metrics, averaged over its batches by their rows.

        Raises RemoteOperationError where loss or weights are no numbers any more.
        """
        generator = torch.Generator()
        generator.manual_seed(_seed(self.arguments.seed, round_, number))
        order = torch.randperm(self.rows, generator=generator) if self.arguments.shuffle else None
        told = _Sums(len(self._told), self._device)
        size = self.arguments.batch_size
        for begin in range(0, self.rows, size):
            end = min(begin + size, self.rows)
            outputs = self._step(order, begin, end, generator)
            told.add([outputs[at] for at, _ in self._told], end - begin)
        means = [one / self.rows for one in told.all()]
        found = {name: mean for (_, name), mean in zip(self._told, means, strict=True)}
        if not math.isfinite(found["loss"]):
            raise RemoteOperationError(NOT_FINITE.format("loss"))
        self.weights.check("model")
        return found

    def _step(self, order: torch.Tensor | None, begin: int, end: int, generator: torch.Generator) -> Outputs:
        """One step on these rows; what the plan gives."""
        short = None if self._whole else self._kept.get(end - begin)
        if short is not None:
            for at, rows in self._data:
                rows.take_into(short.inputs[at], order, begin, end)
            for at, one in self._noise:
                short.inputs[at].copy_(_noise(one, end - begin, generator))
            short.run()
            with torch.no_grad():
                self._update.move(self._steered(short.gradients))
            return short.outputs
        for at, rows in self._data:
            self._values[at] = rows.take(order, begin, end)
        for at, one in self._noise:
            self._values[at] = _noise(one, end - begin, generator).to(self._device)
        if self._whole:
            with torch.no_grad():
                outputs: Outputs = self._program(self._values)
                self._renew(outputs)
            return outputs
        if self._keeps and end - begin in self._kept:
            short = self._kept[end - begin] = kept(self._gradients, self._values, self._filled)
            self._keeps = short is not None
        elif self._keeps:
            self._kept[end - begin] = None
        outputs, grads = (short.outputs, short.gradients) if short is not None else self._gradients(self._values)
        with torch.no_grad():
            self._renew(outputs)
            self._update.move(self._steered(grads))
        return outputs

    def _gradients(self, values: Sequence[torch.Tensor]) -> tuple[Outputs, Tensors]:
        outputs = self._program(values)
        loss: Any = outputs[self._loss]
        return outputs, torch.autograd.grad(loss, self._trained, allow_unused=True, materialize_grads=True)

    def _steered(self, grads: Tensors) -> Tensors:
        if self.arguments.proximal:
            away = torch._foreach_sub(self._trained, self._start)
            grads = torch._foreach_add(grads, away, alpha=self.arguments.proximal)
        return torch._foreach_add(grads, self._correction) if self._correction else grads

    def _renew(self, outputs: Outputs) -> None:
        fresh = [outputs[number].detach().clone() for number, _ in self._renewed]  # one may be another's old value
        for (_, at), value in zip(self._renewed, fresh, strict=True):
            self._values[at].copy_(value)


class _Sums:
    """Sums of what is told of each batch, weighted by its rows."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._sums = [0.0] * count
        self._later: list[tuple[torch.Tensor, int]] = []
        self._waits = device.type != "cpu"  # to read a number from a GPU is to wait for it

    def add(self, values: Sequence[Any], rows: int) -> None:
        """Figures of a batch, each without a dimension."""
        if not self._waits:
            for at, value in enumerate(values):
                self._sums[at] += value.item() * rows
            return
        self._later.append((torch.stack([value.detach().double() for value in values]), rows))
        if len(self._later) == _TOGETHER:
            self._take()

    def all(self) -> list[float]:
        """The sums, in float64."""
        self._take()
        return self._sums

    def _take(self) -> None:
        later, self._later = self._later, []
        if later:
            table = torch.stack([values for values, _ in later]).cpu()
            sums = torch.tensor([rows for _, rows in later], dtype=torch.float64) @ table
            self._sums = [one + more for one, more in zip(self._sums, sums.tolist(), strict=True)]


def _zeros(one: Input) -> torch.Tensor:
    """What an input is before anything is known; of a state also what each round begins with."""
    shape = [size_of(length, 1) for length in one.spec.shape] if one.role == "state" else []
    return torch.zeros(shape, dtype=DTYPES[one.spec.dtype])


def _noise(one: Input, batch: int, generator: torch.Generator) -> torch.Tensor:
    shape = [size_of(length, batch) for length in one.spec.shape]
    dtype = DTYPES[one.spec.dtype]
    if one.distribution == "normal":
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.rand(shape, generator=generator, dtype=dtype)


def _seed(*numbers: int) -> int:
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
