"""Training steps that are derived from a plan of forward and loss, instead of being a plan themselves.

A step written by hand can put rows into what it calls weights; forward and loss cannot: gradient and update are made
here. `DerivedTraining` runs the rebuilt forward under torch's autograd, which costs what an ordinary loop costs;
`derive_step` makes a whole step of it as a plan, for engines without gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad_and_value

from grid_jupyter.ops.raw import DTYPES
from grid_jupyter.plans.capture import Example, capture
from grid_jupyter.plans.check import Limits
from grid_jupyter.plans.document import UPDATED, Document, Input
from grid_jupyter.plans.engine import Feed
from grid_jupyter.plans.expressions import BATCH, size_of
from grid_jupyter.plans.optimisers import Adam, Optimiser
from grid_jupyter.plans.reader import MAX_BATCH
from grid_jupyter.plans.selftest import compare
from grid_jupyter.plans.shapes import need
from grid_jupyter.plans.torch_engine import TorchEngine

Named = Mapping[str, Tensor]
Tensors = dict[str, Tensor]


class DerivedTraining:
    """A model in training: like `engine.Training`, from a plan of kind forward that has a loss.

    `params` and `buffers` are copied; `state` is that of a training to go on with. `metrics=False` leaves them out.
    Raises PlanInvalidError where the plan has no loss, or its tensors are not those given.
    """

    def __init__(
        self, document: Document, optimiser: Optimiser, params: Named, buffers: Named, state: Named | None = None,
        *, device: str | torch.device = "cpu", seed: int = 0, limits: Limits | None = None, metrics: bool = True,
    ) -> None:  # fmt: skip
        need(document.kind == "forward" and bool(document.outputs_of("loss")), "this plan has no loss to learn by")
        told = ("loss", "metric", "buffer") if metrics else ("loss", "buffer")
        program = TorchEngine(device).load(document, limits, wanted=lambda role: role in told)
        self._program, self._feed = program, Feed(program, seed)
        self._params = {
            name: tensor.detach().clone().to(device).requires_grad_(tensor.is_floating_point())
            for name, tensor in params.items()
        }
        self._buffers = {name: tensor.detach().clone().to(device) for name, tensor in buffers.items()}
        self._trained = [tensor for tensor in self._params.values() if tensor.requires_grad]
        self._optimiser = optimiser.build(self._trained)
        optimiser.restore(self._optimiser, self._params, state or {})
        self._rule = optimiser
        self._outputs = [(k, one.role, one.name) for k, one in enumerate(document.outputs) if one.role in told]

    def step(self, x: Named, y: Named, batch: int) -> Tensors:
        """One step on one batch of this size; its loss and metrics by name."""
        given = {"param": self._params, "buffer": self._buffers, "x": x, "y": y}
        results = self._program.run(self._feed.values(given, batch))
        found: Tensors = {}
        for k, role, name in self._outputs:
            if role == "buffer":
                self._buffers[name] = results[k].detach()
            else:
                found[name] = results[k]
        self._optimiser.zero_grad()
        found["loss"].backward()
        self._optimiser.step()
        return {name: tensor.detach() for name, tensor in found.items()}

    @property
    def params(self) -> Tensors:
        return {name: tensor.detach() for name, tensor in self._params.items()}

    @property
    def buffers(self) -> Tensors:
        return dict(self._buffers)

    @property
    def state(self) -> Tensors:
        """The optimiser's, under the names that it has in a plan."""
        return self._rule.state_of(self._optimiser, self._params)


def derive_step(document: Document, optimiser: Optimiser) -> Document:
    """A whole training step as a plan, from a plan of forward and loss. Raises PlanInvalidError, NotCapturableError."""
    need(document.kind == "forward" and bool(document.outputs_of("loss")), "this plan has no loss to learn by")
    program = TorchEngine().load(replace(document, batch=(document.batch[0], MAX_BATCH)), _boundless())
    params = {one.name: _example(one) for one in document.inputs_of("param")}
    (loss,) = document.outputs_of("loss")
    reach = {document.inputs[number].name for number in document.sources_of(loss.value)}
    used = {name: tensor for name, tensor in params.items() if name in reach}
    state = optimiser.init(used)
    examples = [
        *(Example(name, "param", tensor) for name, tensor in params.items()),
        *(Example(one.name, "buffer", _example(one).abs()) for one in document.inputs_of("buffer")),
        *(Example(name, "state", tensor) for name, tensor in state.items()),
        *(
            Example(one.name, one.role, _example(one), one.spec.shape[:1] == (BATCH,))
            for one in document.inputs_of("x", "y")
        ),
        Example("lr", "hyper", torch.tensor(optimiser.lr)),
    ]

    def step(tensors: list[Tensor]) -> list[tuple[str, str, Tensor]]:
        given: dict[str, Tensors] = {role: {} for role in ("param", "buffer", "state", "x", "y", "hyper")}
        for example, tensor in zip(examples, tensors, strict=True):
            given[example.role][example.name] = tensor

        def forward(moving: Tensors) -> tuple[Tensor, list[Tensor]]:
            results = program.run(_values(program.inputs, {**given, "param": {**given["param"], **moving}}))
            by_role = dict(zip([one.role for one in document.outputs], results, strict=True))
            return by_role["loss"], results

        moving = {name: given["param"][name] for name in used}  # torch's optimisers leave what has no gradient alone
        gradients, (_, results) = grad_and_value(forward, has_aux=True)(moving)
        moved, kept = optimiser.update(moving, gradients, given["state"], given["hyper"]["lr"])
        renewed = [("param", {**given["param"], **moved}), ("state", kept)]
        told = [(one.name, one.role, result) for one, result in zip(document.outputs, results, strict=True)]
        return [
            *((name, role, tensor) for role, tensors in renewed for name, tensor in tensors.items()),
            *(one for one in told if one[1] in (*UPDATED, "loss", "metric")),
        ]

    made = capture(step, examples, "step", batch=document.batch)
    compare(made, step, examples, lambda role: role == "param" and isinstance(optimiser, Adam))
    return made


def _values(inputs: Sequence[Input], given: Mapping[str, Named]) -> list[Tensor]:
    batch = next((int(t.shape[0]) for role in ("x", "y") for t in given[role].values() if t.dim()), 1)
    values: list[Tensor] = []
    for one in inputs:
        if one.role == "noise":
            draw = torch.randn if one.distribution == "normal" else torch.rand
            shape = [size_of(n, batch) for n in one.spec.shape]
            values.append(draw(shape, dtype=DTYPES[one.spec.dtype]))
        else:
            values.append(given[one.role][one.name])
    return values


def _example(one: Input) -> Tensor:
    """Numbers that fit almost any model: classes and indices 0, the rest between 0 and 1."""
    dtype, shape = DTYPES[one.spec.dtype], [size_of(length, 4) for length in one.spec.shape]
    generator = torch.Generator().manual_seed(len(one.name))
    return torch.rand(shape, generator=generator).to(dtype)


def _boundless() -> Limits:
    return Limits(memory_bytes=1 << 50, work=1 << 60)
