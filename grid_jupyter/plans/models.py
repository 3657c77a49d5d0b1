"""Plans of models: inference, forward and loss, a whole training step; and steps that a Worker derives itself.

step    params, buffers, state, x, y, hyper  →  params, buffers, state, loss, metrics
loss    params, buffers, x, y                →  loss, metrics, buffers
infer   params, buffers, x                   →  output
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from grid_jupyter.errors import NotCapturableError
from grid_jupyter.plans.capture import Example, capture
from grid_jupyter.plans.document import Document
from grid_jupyter.plans.optimisers import Adam, Optimiser, moved_by, optimiser_of
from grid_jupyter.plans.plan import BATCHES, Plan, Tensors
from grid_jupyter.plans.selftest import compare, compare_gradients

Metric = Callable[[Any, Any], Tensor]
Metrics = Union[Sequence[str], Mapping[str, Metric], None]
Batchful = Union[Tensor, Sequence[Tensor], Mapping[str, Tensor]]
"""A batch, or several tensors of one."""


def training_plan(
    model: nn.Module, loss: Metric, optimizer: torch.optim.Optimizer | Optimiser, *, inputs: tuple[Any, Any],
    metrics: Metrics = None, batch: tuple[int, int] = BATCHES,
) -> Plan:  # fmt: skip
    """One whole training step of a model as a plan: forward, backward and update.

    Parameters that eager torch would not move are not moved, and are buffers of the plan: those that need no gradient,
    that `optimizer` does not have (where it is one of torch's over this model), or that the loss does not depend on.
    `inputs` is an example (x, y), some rows of the right dtypes and shapes; each may be a tensor, or a tuple or dict
    of them. `loss(output, y)` gives a scalar. `metrics`: names of known ones ("accuracy"), or functions by name;
    without it accuracy where y are classes, or the loss is binary cross entropy. `batch`: smallest and largest size.

    Raises NotCapturableError naming what cannot become part of a plan.
    """
    rule = optimiser_of(optimizer)
    x, y = inputs
    parts = _Parts(model, x, y)
    parts.train_alone(moved_by(optimizer, model), loss)
    measures = _metrics(metrics, loss, y)
    state = rule.init(parts.params)
    examples = [
        *parts.examples("param", "buffer"),
        *(Example(name, "state", tensor) for name, tensor in state.items()),
        *parts.examples("x", "y"),
        Example("lr", "hyper", torch.tensor(rule.lr)),
    ]

    def step(tensors: list[Tensor]) -> list[tuple[str, str, Tensor]]:
        given = _by_role(examples, tensors)

        def forward(params: dict[str, Tensor]) -> tuple[Tensor, tuple[Any, dict[str, Tensor]]]:
            output, buffers = parts.forward(params, given["buffer"], given["x"])
            return _scalar(loss(output, parts.nested("y", given["y"]))), (output, buffers)

        gradients, (value, (output, buffers)) = grad_and_value(forward, has_aux=True)(given["param"])
        params, kept = rule.update(given["param"], gradients, given["state"], given["hyper"]["lr"])
        measured = {name: of(output, parts.nested("y", given["y"])) for name, of in measures.items()}
        return [
            *((name, "param", tensor) for name, tensor in params.items()),
            *((name, "buffer", tensor) for name, tensor in buffers.items()),
            *((name, "state", tensor) for name, tensor in kept.items()),
            ("loss", "loss", value),
            *((name, "metric", tensor) for name, tensor in measured.items()),
        ]

    with parts.mode(training=True):
        document = capture(step, examples, "step", batch=batch)
        compare(document, step, examples, lambda role: role == "param" and isinstance(rule, Adam))
    return Plan.of(document, parts.params, parts.buffers, state, {"lr": torch.tensor(rule.lr)})


def loss_plan(
    model: nn.Module, loss: Metric, *, inputs: tuple[Any, Any], metrics: Metrics = None,
    batch: tuple[int, int] = BATCHES,
) -> Plan:  # fmt: skip
    """Forward and loss of a model in training mode: what a job takes as its plan, and derives the step from itself.

    Arguments as of `training_plan`. Parameters that need no gradient, or that no gradient of the loss reaches, are
    buffers of the plan. Raises NotCapturableError also where the model stops or changes gradients on their way.
    """
    x, y = inputs
    parts = _Parts(model, x, y)
    parts.train_alone(frozenset(parts.params), loss)
    measures = _metrics(metrics, loss, y)
    examples = parts.examples("param", "buffer", "x", "y")

    def forward(tensors: list[Tensor]) -> list[tuple[str, str, Tensor]]:
        given = _by_role(examples, tensors)
        output, buffers = parts.forward(given["param"], given["buffer"], given["x"])
        target = parts.nested("y", given["y"])
        return [
            ("loss", "loss", _scalar(loss(output, target))),
            *((name, "metric", of(output, target)) for name, of in measures.items()),
            *((name, "buffer", tensor) for name, tensor in buffers.items()),
        ]

    with parts.mode(training=True):
        document = _forward(forward, examples, batch)
        compare_gradients(document, forward, examples)
    return Plan.of(document, parts.params, parts.buffers)


def inference_plan(model: nn.Module, *, inputs: Batchful, batch: tuple[int, int] = BATCHES) -> Plan:
    """What a model gives for a batch, in evaluation mode; `inputs` is an example x. The plan is called as the model."""
    parts = _Parts(model, inputs, None)
    examples = parts.examples("param", "buffer", "x")

    def forward(tensors: list[Tensor]) -> list[tuple[str, str, Tensor]]:
        given = _by_role(examples, tensors)
        output, _ = parts.forward(given["param"], given["buffer"], given["x"])
        if not isinstance(output, Tensor):
            raise NotCapturableError("the model gives something else than one tensor; wrap it in one that does not")
        return [("output", "output", output)]

    with parts.mode(training=False):
        document = _forward(forward, examples, batch)
    return Plan.of(document, parts.params, parts.buffers)


def _forward(function: Any, examples: Sequence[Example], batch: tuple[int, int]) -> Document:
    with torch.no_grad():
        document = capture(function, examples, "forward", batch=batch, whole=True)
        compare(document, function, examples, lambda role: False)
    return document


# ------------------------------------------------------------------ parts of a model


class _Parts:
    """Parameters and buffers of a model, an example batch, and the model as a function of all of them."""

    def __init__(self, model: nn.Module, x: Any, y: Any) -> None:
        self.model = model
        self.params = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        self.buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
        self._given = {"x": x, "y": y}
        self._still: frozenset[str] = frozenset()

    def train_alone(self, names: frozenset[str], loss: Metric) -> None:
        """Of these parameters those become the plan's that `backward()` gives a gradient; the rest are buffers, which
        stay as they are. Raises NotCapturableError where none is left."""
        wanted = {name: one for name, one in self.model.named_parameters() if name in names and one.requires_grad}
        found = self._reached(set(wanted), loss) if wanted else set()
        if not found:
            raise NotCapturableError(
                "there is nothing to train: no parameter that needs a gradient, and that the optimiser has, gets one "
                "of the loss"
            )
        self._still = frozenset(self.params.keys() - found)
        self.buffers |= {name: self.params.pop(name) for name in list(self.params) if name in self._still}

    def _reached(self, names: set[str], loss: Metric) -> set[str]:
        params = {name: one.clone().requires_grad_(name in names) for name, one in self.params.items()}
        given: dict[str, Tensors] = {"x": {}, "y": {}}
        for one in self.examples(*(role for role in given if self._given[role] is not None)):
            given[one.role][one.name] = one.at(max(2, one.tensor.shape[0]) if one.tensor.dim() else 2)
        with self.mode(training=True), torch.random.fork_rng(devices=[]), torch.enable_grad():
            output, _ = self.forward(params, self.buffers, given["x"])
            value = _scalar(loss(output, self.nested("y", given["y"])))
            if not value.requires_grad:
                return set()
            asked = sorted(names)
            grads = torch.autograd.grad(value, [params[name] for name in asked], allow_unused=True)
        return {name for name, grad in zip(asked, grads, strict=True) if grad is not None}

    @contextlib.contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """Within it the model trains, or does not; each of its modules is afterwards as it was."""
        before = [(module, module.training) for module in self.model.modules()]
        self.model.train(training)
        try:
            yield
        finally:
            for module, was in before:
                module.training = was

    def examples(self, *roles: str) -> list[Example]:
        named = {"param": self.params, "buffer": self.buffers, "x": named_parts("x", self._given["x"])}
        if self._given["y"] is not None:
            named["y"] = named_parts("y", self._given["y"])
        batched = ("x", "y")
        return [Example(name, role, tensor, role in batched) for role in roles for name, tensor in named[role].items()]

    def nested(self, role: str, tensors: Mapping[str, Tensor]) -> Any:
        """Tensors by name, nested as the example was."""
        return nested_parts(role, self._given[role], tensors)

    def forward(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Mapping[str, Tensor]
    ) -> tuple[Any, dict[str, Tensor]]:
        """The model's output, and its buffers after it, without parameters that are among them."""
        still = {name: buffers[name] for name in self._still}
        kept = {name: tensor.clone() for name, tensor in buffers.items() if name not in still}
        given = self.nested("x", x)
        arguments, keywords = ((), given) if isinstance(given, dict) else (given, {})
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        return functional_call(self.model, {**params, **still, **kept}, arguments, keywords), kept


def named_parts(role: str, given: Any) -> dict[str, Tensor]:
    """Tensors of a batch by the names that they have in a plan: x; x.0, x.1 of a tuple; x.left, x.right of a dict."""
    if isinstance(given, Tensor):
        return {role: given}
    if isinstance(given, Mapping):
        return {f"{role}.{key}": given[key] for key in sorted(given)}
    return {f"{role}.{k}": part for k, part in enumerate(given)}


def nested_parts(role: str, like: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The other way, nested as `like` is."""
    if isinstance(like, Tensor):
        return tensors[role]
    if isinstance(like, Mapping):
        return {key: tensors[f"{role}.{key}"] for key in like}
    return tuple(tensors[f"{role}.{k}"] for k in range(len(like)))


def _by_role(examples: Sequence[Example], tensors: Sequence[Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {role: {} for role in ("param", "buffer", "state", "x", "y", "hyper")}
    for example, tensor in zip(examples, tensors, strict=True):
        found[example.role][example.name] = tensor
    return found


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise NotCapturableError("the loss is no scalar; take its mean or its sum")
    return value


# ------------------------------------------------------------------ metrics


def _metrics(given: Metrics, loss: Any, y: Any) -> dict[str, Metric]:
    logits = isinstance(loss, nn.BCEWithLogitsLoss) or loss is nn.functional.binary_cross_entropy_with_logits
    binary = logits or isinstance(loss, nn.BCELoss) or loss is nn.functional.binary_cross_entropy
    if given is None:
        classes = isinstance(y, Tensor) and not y.is_floating_point()
        given = ("accuracy",) if classes or binary else ()
    if isinstance(given, Mapping):
        return dict(given)
    for name in given:
        if name != "accuracy":
            raise NotCapturableError(f"there is no metric named {name!r}; give it as a function: metrics={{name: f}}")
    return {name: _accuracy(0.0 if logits else 0.5) for name in given}


def _accuracy(threshold: float) -> Metric:
    """The share of right answers: of the largest score where y are classes, else of scores above a threshold."""

    def accuracy(output: Tensor, y: Tensor) -> Tensor:
        if y.is_floating_point() and output.shape == y.shape:
            right = (output > threshold) == (y > 0.5)
        else:
            classes = y.argmax(1) if y.is_floating_point() else y
            dim = -1 if output.shape[:-1] == classes.shape else 1
            right = output.argmax(dim) == classes
        return right.float().mean()

    return accuracy
