"""What a person holds of a plan: the document, the tensors it starts from, and calling it; plans of functions."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans import drawing, listing
from grid_jupyter.plans.capture import Example
from grid_jupyter.plans.document import Document, Nest, Structure
from grid_jupyter.plans.engine import Feed, Program, Training, batch_of
from grid_jupyter.plans.expressions import size_of
from grid_jupyter.plans.functions import capture_function
from grid_jupyter.plans.reader import read_plan
from grid_jupyter.plans.sent import SentPlan
from grid_jupyter.plans.torch_engine import TorchEngine

Tensors = dict[str, Tensor]
BATCHES = (1, 4096)
"""Batch sizes that a plan is for, if nothing else is said."""


class State:
    """Tensors that a plan of a function has besides its arguments; they travel with it."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._tensors = list(tensors)

    def read(self) -> list[Tensor]:
        """The tensors, in the order in which they were given."""
        return list(self._tensors)

    tensors = read

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensors)


class Plan:
    """A computation as a document, with the tensors that it starts from.

    Made by `training_plan`, `loss_plan`, `inference_plan` or `func2plan`, or as in PySyft 0.2.9 by a class with a
    method `forward` and `build(example)`. Plans of functions and of inference are called with tensors.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__
        self.buffers: Tensors = {}
        self.hyper: Tensors = {}
        self.optimiser_state: Tensors = {}
        self._params: Tensors = {}
        self._state = State()
        self._document: Document | None = None
        self._function: Callable[..., Any] | None = None
        self._rows: int | None = None
        self._fixed: str | None = None
        self._program: Program[Any] | None = None

    @classmethod
    def of(
        cls, document: Document, params: Tensors | None = None, buffers: Tensors | None = None,
        state: Tensors | None = None, hyper: Tensors | None = None, *, name: str | None = None,
    ) -> Plan:  # fmt: skip
        """The plan of a document that is there already, and its tensors by name."""
        plan = Plan(name or document.kind)
        plan._document = document
        plan._params, plan.buffers = dict(params or {}), dict(buffers or {})
        plan.optimiser_state, plan.hyper = dict(state or {}), dict(hyper or {})
        return plan

    @classmethod
    def from_bytes(cls, raw: bytes) -> Plan:
        """The plan of a document's bytes, without tensors. Raises PlanInvalidError."""
        return cls.of(read_plan(raw))

    # -------------------------------------------------------------- what it is

    @property
    def is_built(self) -> bool:
        return self._document is not None

    @property
    def document(self) -> Document:
        """The document. Raises RuntimeError where the plan is not built yet."""
        if self._document is None:
            raise RuntimeError(
                f"the plan {self.name} is not built yet: call {self.name}.build(…) with example arguments"
            )
        return self._document

    @property
    def code(self) -> str:
        """The plan as text, one line for each input, operation and output."""
        return listing.code(self.document)

    @property
    def sha256(self) -> str:
        """Names this plan: what an owner approves."""
        return self.document.sha256

    @property
    def graph(self) -> drawing.Graph:
        """Values and what they are computed from; a notebook draws it."""
        return drawing.graph(self.document)

    @property
    def fixed(self) -> str | None:
        """Why a plan of a function takes arguments of the sizes that it was built with and no others; None where they
        may have any number of rows that it is for, and for plans of others."""
        return self._fixed

    @property
    def state(self) -> State:
        """All tensors that travel with the plan."""
        return self._state if len(self._state) else State([*self._params.values(), *self.buffers.values()])

    @property
    def carried(self) -> dict[str, Tensors]:
        """Tensors by role and name that a run takes besides the arguments."""
        if self._document is None or self._document.takes is None:
            return {"param": self._params, "buffer": self.buffers}
        return {"state": self._params or {f"{k}": tensor for k, tensor in enumerate(self._state)}}

    @property
    def params(self) -> Tensors:
        """Parameters by name."""
        return dict(self._params)

    def parameters(self) -> list[Tensor]:
        """Parameters, as a module has them."""
        return list(self._params.values()) or [tensor for tensor in self._state if tensor.is_floating_point()]

    def to_bytes(self) -> bytes:
        """The document's bytes, to be sent. Raises RuntimeError where the plan is not built yet."""
        return self.document.to_bytes()

    def copy(self) -> Plan:
        """An independent plan with its own tensors."""
        made = copy.copy(self)
        for name in ("buffers", "hyper", "optimiser_state", "_params"):
            setattr(made, name, {key: tensor.clone() for key, tensor in getattr(self, name).items()})
        made._state = State(tensor.clone() for tensor in self._state)
        made._program = None
        return made

    def create_dummy_args(self, batch: int | None = None) -> tuple[Any, ...]:
        """Arguments of zeros that the plan can be called with, for a batch of this size; without one, for a batch as
        large as the example that the plan was built with, or the smallest."""
        document = self.document
        size = (self._rows or document.batch[0]) if batch is None else batch
        inputs = document.inputs_of("arg") or document.inputs_of("x", "y")
        tensors = [_zeros(one.spec.dtype, [size_of(n, size) for n in one.spec.shape]) for one in inputs]
        return tuple(tensors if document.takes is None else unflatten(document.takes, iter(tensors)))

    def __repr__(self) -> str:
        told = f"{self._document.kind} {self._document.sha256[:12]}" if self._document else "not built"
        return f"<Plan {self.name}: {told}>"

    # -------------------------------------------------------------- elsewhere

    def send(self, *places: Any) -> SentPlan:
        """A plan at these workers and Nodes: its tensors travel now, once for each of their sessions, and follow when
        they change. It is called on tensors that are there. Raises RuntimeError where the plan is not built yet."""
        if self._document is None:
            raise RuntimeError(
                f"the plan {self.name} is not built yet, and a plan is built before it is sent: call "
                f"{self.name}.build(…) with example arguments"
            )
        if not places or not all(hasattr(place, "session") for place in places):
            raise TypeError("send() needs a place: a VirtualWorker or a NodeClient")
        for place in places:
            place.session.keep_plan(self)
        return SentPlan(self, places)

    def get(self) -> Plan:
        """The plan itself, which never left: what is elsewhere is a copy."""
        return self

    # -------------------------------------------------------------- building

    def forward(self, *arguments: Any) -> Any:
        """The function of a plan that is a class: to be written by the class."""
        raise NotImplementedError(f"{type(self).__name__} has no method forward")

    def build(self, *arguments: Any, trace_autograd: bool = False, batch: tuple[int, int] | None = BATCHES) -> Plan:
        """Captures the function for arguments like these. With `trace_autograd` what `backward()` does becomes part of
        it.

        The first argument with rows, and those of equally many, may have any number of rows within `batch` from then
        on, where the function is found to do the same for every number; `fixed` says why where it is not. With
        `batch=None` all sizes stay as they are. Raises NotCapturableError.
        """
        self._capture(arguments, [False] * len(_leaves(arguments)), trace_autograd, batch)
        return self

    def _capture(
        self, arguments: tuple[Any, ...], batched: Sequence[bool], trace_autograd: bool, batch: tuple[int, int] | None
    ) -> None:
        takes, leaves = flatten(arguments)
        module = None if self._function else _modules_of(self)
        carried = dict(module.named_parameters()) | dict(module.named_buffers()) if module else {}
        carried |= {f"{k}": tensor for k, tensor in enumerate(self._state)}
        examples = [
            Example(f"{k}", "arg", tensor, many) for k, (tensor, many) in enumerate(zip(leaves, batched, strict=True))
        ]
        examples += [Example(name, "state", tensor) for name, tensor in carried.items()]
        gives: list[Structure] = []

        def function(tensors: list[Tensor]) -> list[tuple[str, str, Tensor]]:
            given = unflatten(takes, iter(tensors[: len(leaves)]))
            named = dict(zip(carried, tensors[len(leaves) :], strict=True))
            if module is not None:
                result = functional_call(module, named, given)
            elif self._function is not None:
                result = self._function(*given, *([State(named.values())] if len(self._state) else []))
            structure, found = flatten(result)
            gives[:] = [structure]
            return [(f"{k}", "result", tensor) for k, tensor in enumerate(found)]

        with torch.set_grad_enabled(trace_autograd):
            captured = capture_function(
                function, examples, lambda: (takes, gives[0]), batch, functional=not trace_autograd
            )
        self._params = {name: tensor.detach().clone() for name, tensor in carried.items()} if module else {}
        self._document, self._program = captured.document, None
        self._rows, self._fixed = captured.rows, captured.fixed

    # -------------------------------------------------------------- running

    def __call__(self, *arguments: Any) -> Any:
        """Runs it: here, or where all its arguments are if they are remote, by one message (tensors/planned.py).

        Raises TypeError for another number of arguments, or ones that nest differently, and
        TensorsNotCollocatedException for arguments of several places.
        """
        if self._document is None:
            if self._function is not None:
                return self._function(*arguments, *([self._state] if len(self._state) else []))
            return self.forward(*arguments)
        document = self._document
        if document.kind == "step":
            raise TypeError("a training step is run by plan.training(), which keeps its parameters")
        given = self._given(arguments)
        batch = self._batch(given)
        run = next(
            (found for found in (getattr(leaf, "_run_plan", None) for leaf in _leaves(arguments)) if found), None
        )
        if run is not None:
            results = run(self, given, batch)
        else:
            if self._program is None:
                self._program = TorchEngine().load(document)
            results = self._program.run(Feed(self._program).values(given, batch))
        if document.gives is not None:
            return unflatten(document.gives, iter(results))
        return results[0] if len(results) == 1 else tuple(results)

    def _batch(self, given: Mapping[str, Mapping[str, Tensor]]) -> int:
        """How many rows these arguments have. Raises PlanInvalidError for other sizes than those that a plan without a
        batch was built with."""
        document = self.document
        inputs = document.inputs_of("x", "y", "arg")
        shapes = [given[one.role][one.name].shape for one in inputs]
        batch = batch_of(inputs, shapes)
        if batch is None and self._fixed:
            for one, shape in zip(inputs, shapes, strict=True):
                if tuple(shape) != one.spec.shape:
                    raise PlanInvalidError(
                        f"argument {one.name} of the plan {self.name} is {list(shape)}, and the plan takes "
                        f"{list(one.spec.shape)} alone: {self._fixed}"
                    )
        return document.batch[0] if batch is None else batch

    def _given(self, arguments: tuple[Any, ...]) -> dict[str, Mapping[str, Tensor]]:
        document = self.document
        if document.takes is not None:
            wanted = len(document.takes.parts) if isinstance(document.takes, Nest) else 1
            if len(arguments) != wanted:
                raise TypeError(f"Plan {self.name} requires {wanted} arguments, received {len(arguments)}.")
            takes, leaves = flatten(arguments)
            if takes != document.takes:
                raise TypeError(f"Plan {self.name} requires arguments that nest as those that it was built with.")
            return {"arg": {f"{k}": leaf for k, leaf in enumerate(leaves)}, **self.carried}
        inputs = document.inputs_of("x", "y")
        leaves = _leaves(arguments)
        if len(leaves) != len(inputs):
            raise TypeError(f"Plan {self.name} requires {len(inputs)} arguments, received {len(leaves)}.")
        given: dict[str, dict[str, Tensor]] = {**self.carried, "x": {}, "y": {}}
        for one, leaf in zip(inputs, leaves, strict=True):
            given[one.role][one.name] = leaf
        return given  # type: ignore[return-value]

    def training(self, device: str = "cpu", seed: int = 0) -> Training[Tensor]:
        """The step plan with its tensors, ready for steps by torch. `seed` makes the noise."""
        program = TorchEngine(device).load(self.document)
        params, buffers, state, hyper = (
            {name: tensor.to(device) for name, tensor in ones.items()}
            for ones in (self._params, self.buffers, self.optimiser_state, self.hyper)
        )
        return Training(program, params, buffers, state, hyper, seed)


def func2plan(
    args_shape: Sequence[Any] | None = None, state: Iterable[Tensor] | None = None, trace_autograd: bool = False,
    args_dtypes: Sequence[torch.dtype] = (), batch: tuple[int, int] | None = BATCHES,
) -> Callable[[Callable[..., Any]], Plan]:  # fmt: skip
    """Makes a plan of a function: built at once where `args_shape` is given, else by `plan.build(…)`.

    `args_shape` has one shape for each argument. A first length of -1 is the batch size, within `batch`; where none is,
    the plan finds out as `build` does. With `state` the function takes a State as its last argument, and reads its
    tensors by `state.read()`. Raises NotCapturableError, and ValueError for other negative lengths.
    """

    def decorate(function: Callable[..., Any]) -> Plan:
        plan = Plan(function.__name__)
        plan._function = function
        plan._state = State(state or ())
        plan.__doc__ = inspect.getdoc(function)
        if args_shape is not None:
            dtypes = [*args_dtypes, *[torch.float32] * (len(args_shape) - len(args_dtypes))]
            pairs = list(zip(args_shape, dtypes, strict=False))
            arguments = tuple(_example(tuple(shape), dtype) for shape, dtype in pairs)
            plan._capture(arguments, [tuple(shape)[:1] == (-1,) for shape, _ in pairs], trace_autograd, batch)
        return plan

    return decorate


def _example(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if any(length < 0 for length in shape[1:]) or shape[:1] < (-1,):
        raise ValueError(f"{shape} is no shape of an argument: -1, for the batch size, stands first, and nothing below")
    lengths = [4 if length == -1 else length for length in shape]
    # Numbers that differ, so that the self-test sees what a plan does with them.
    return torch.linspace(0.1, 0.9, max(1, torch.Size(lengths).numel())).reshape(lengths).to(dtype)


def _zeros(dtype: str, shape: Sequence[int]) -> Tensor:
    from grid_jupyter.ops.raw import DTYPES

    return torch.zeros(tuple(shape), dtype=DTYPES[dtype])


def _modules_of(plan: Plan) -> nn.Module:
    """The modules and parameters among a plan's attributes as one module, whose forward is the plan's."""

    class Whole(nn.Module):
        def forward(self, *arguments: Any) -> Any:
            return plan.forward(*arguments)

    whole = Whole()
    for name, value in vars(plan).items():
        if isinstance(value, (nn.Module, nn.Parameter)):
            setattr(whole, name, value)
    return whole


# ------------------------------------------------------------------ nesting


def flatten(value: Any) -> tuple[Structure, list[Tensor]]:
    """How tensors nest in lists, tuples and dicts, and the tensors in order. Raises TypeError for anything else."""
    if isinstance(value, Tensor):
        return "*", [value]
    if isinstance(value, Mapping):
        keys = tuple(sorted(value))
        parts = [flatten(value[key]) for key in keys]
        return Nest("dict", tuple(part for part, _ in parts), keys), [t for _, ones in parts for t in ones]
    if isinstance(value, (list, tuple)):
        parts = [flatten(part) for part in value]
        kind = "tuple" if isinstance(value, tuple) else "list"
        return Nest(kind, tuple(part for part, _ in parts)), [t for _, ones in parts for t in ones]
    raise TypeError(f"plans take and give tensors in lists, tuples and dicts, not {type(value).__name__}")


def _leaves(value: Any) -> list[Tensor]:
    return flatten(value)[1]


def unflatten(structure: Structure, tensors: Iterator[Any]) -> Any:
    """The other way."""
    if isinstance(structure, str):
        return next(tensors)
    parts = [unflatten(part, tensors) for part in structure.parts]
    if structure.kind == "dict":
        return dict(zip(structure.keys, parts, strict=True))
    return tuple(parts) if structure.kind == "tuple" else parts
