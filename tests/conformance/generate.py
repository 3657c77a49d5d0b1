"""Writes the conformance vectors beside this file: plans, and what a run of each takes and gives.

    python tests/conformance/generate.py

Numbers come from the torch engine, three steps into a training, and are compared with the ordinary training loop
where the model draws no random numbers. docs/plans.md says how an engine is tried with the files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.numpy import save_file
from torch import Tensor, nn

from grid_jupyter.plans.engine import Feed
from grid_jupyter.plans.models import loss_plan, training_plan
from grid_jupyter.plans.torch_engine import TorchEngine

HERE = Path(__file__).parent
BATCHES = (3, 8)
WARM = 3
"""Steps before the one that is written down, so that the optimiser's state is not zero."""


class Sequence(nn.Module):
    """Classes of sequences of words, by the last output of a recurrent layer."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embedding, self.layer, self.fc = nn.Embedding(9, 4), kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.embedding(x))[0][:, -1])


class Transformer(nn.Module):
    """The next word, by one layer of causal attention, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(9, 8), nn.Parameter(torch.randn(6, 8) * 0.1)
        self.before, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.wide = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Dropout(0.1))
        self.head = nn.Linear(8, 9)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.place
        q, k, v = (part.view(*x.shape, 2, 4).transpose(1, 2) for part in self.qkv(self.before(h)).chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(seen.transpose(1, 2).reshape(*x.shape, 8))
        return self.head(h + self.wide(h))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def _batch_norm_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6),
        nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Conv2d(6, 5, 3, dilation=2, padding=2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(5, 3),
    )  # fmt: skip


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def _momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


class Case(NamedTuple):
    """A model, its loss and optimiser, rows of x, and values of y (0: numbers, else so many classes)."""

    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    x: Callable[[int], Tensor]
    y: Callable[[int], Tensor]


def _next_word(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), y.flatten())


def _normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, *shape)


def _classes(high: int, *shape: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randint(high, (batch, *shape))


CASES: dict[str, Case] = {
    "logistic-regression": Case(
        lambda: nn.Sequential(nn.Linear(5, 1), nn.Sigmoid()), F.binary_cross_entropy, _sgd, _normal(5),
        lambda batch: torch.randint(2, (batch, 1)).float(),
    ),
    "mlp-sgd": Case(_mlp, F.cross_entropy, _sgd, _normal(6), _classes(3)),
    "mlp-momentum": Case(_mlp, F.cross_entropy, _momentum, _normal(6), _classes(3)),
    "mlp-adam": Case(_mlp, F.cross_entropy, _adam, _normal(6), _classes(3)),
    "cnn": Case(_cnn, F.cross_entropy, _sgd, _normal(1, 8, 8), _classes(3)),
    "batch-norm-cnn": Case(_batch_norm_cnn, F.cross_entropy, _sgd, _normal(1, 13, 12), _classes(3)),
    "lstm": Case(lambda: Sequence(nn.LSTM), F.cross_entropy, _sgd, _classes(9, 4), _classes(3)),
    "gru": Case(lambda: Sequence(nn.GRU), F.cross_entropy, _sgd, _classes(9, 4), _classes(3)),
    "transformer": Case(Transformer, _next_word, _sgd, _classes(9, 6), _classes(9, 6)),
}  # fmt: skip


class Both(nn.Module):
    """The last outputs of recurrent layers in both directions."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.layer, self.fc = kind(4, 5, bidirectional=True, **options), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x.transpose(0, 1))[0][-1])


FORWARD: dict[str, Case] = {
    "forward-lstm": Case(lambda: Both(nn.LSTM, num_layers=2), F.cross_entropy, _sgd, _normal(6, 4), _classes(3)),
    "forward-gru": Case(lambda: Both(nn.GRU, bias=False), F.mse_loss, _sgd, _normal(6, 4), _normal(3)),
    "forward-rnn": Case(lambda: Both(nn.RNN, nonlinearity="relu"), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)),
                        _sgd, _normal(6, 4), lambda batch: torch.randint(2, (batch, 3)).float()),
    "forward-logistic-regression": CASES["logistic-regression"],
}  # fmt: skip
"""Plans of forward and loss."""


def main() -> None:
    """Writes all files anew."""
    for name, case in FORWARD.items():
        _forward(name, case)
    for name, case in CASES.items():
        torch.manual_seed(0)
        model = case.model()
        optimizer = case.optimizer(model)
        document, tensors = _vectors(case, model, optimizer)
        (HERE / f"{name}.json").write_bytes(document)
        save_file(tensors, HERE / f"{name}.safetensors")


def _forward(name: str, case: Case) -> None:
    torch.manual_seed(0)
    model = case.model()
    plan = loss_plan(model, case.loss, inputs=(case.x(4), case.y(4)))
    program = TorchEngine().load(plan.document)
    tensors = {f"in:param:{key}": value.numpy() for key, value in plan.params.items()}
    for batch in BATCHES:
        x, y = case.x(batch), case.y(batch)
        tensors |= {f"B{batch}:in:x:x": x.numpy(), f"B{batch}:in:y:y": y.numpy()}
        values = Feed(program).values({"param": plan.params, "x": {"x": x}, "y": {"y": y}}, batch)
        with torch.no_grad():
            for output, value in zip(plan.document.outputs, program.run(values), strict=True):
                tensors[f"B{batch}:out:{output.role}:{output.name}"] = value.numpy()
            value = case.loss(model(x), y).numpy()
        np.testing.assert_allclose(tensors[f"B{batch}:out:loss:loss"], value, atol=1e-6)
    (HERE / f"{name}.json").write_bytes(plan.document.to_bytes())
    save_file(tensors, HERE / f"{name}.safetensors")


def _vectors(
    case: Case, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[bytes, dict[str, np.ndarray[Any, Any]]]:
    plan = training_plan(model, case.loss, optimizer, inputs=(case.x(4), case.y(4)))
    program = TorchEngine().load(plan.document)
    feed = Feed(program)
    carried: dict[str, dict[str, Tensor]] = {
        "param": dict(plan.params), "buffer": dict(plan.buffers), "state": dict(plan.optimiser_state),
        "hyper": dict(plan.hyper),
    }  # fmt: skip
    random = any(one.role == "noise" for one in program.inputs)

    def run(x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        values = feed.values({**carried, "x": {"x": x}, "y": {"y": y}}, len(x))
        with torch.no_grad():
            return values, program.run(values)

    for _ in range(WARM):
        x, y = case.x(8), case.y(8)
        for output, value in zip(plan.document.outputs, run(x, y)[1], strict=True):
            if output.role in carried:
                carried[output.role][output.name] = value
        _loop(model, case.loss, optimizer, x, y)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for batch in BATCHES:
        x, y = case.x(batch), case.y(batch)
        values, results = run(x, y)
        for one, value in zip(program.inputs, values, strict=True):
            changes = one.role in ("x", "y", "noise")
            tensors[f"{f'B{batch}:' if changes else ''}in:{one.role}:{one.name}"] = value.numpy()
        for output, value in zip(plan.document.outputs, results, strict=True):
            tensors[f"B{batch}:out:{output.role}:{output.name}"] = value.numpy()
        if not random:
            _compare(case, model, optimizer, x, y, tensors)
    return plan.document.to_bytes(), tensors


def _loop(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> float:
    optimizer.zero_grad()
    value = loss(model(x), y)
    value.backward()
    optimizer.step()
    return value.item()


def _compare(
    case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor,
    tensors: dict[str, np.ndarray[Any, Any]],
) -> None:  # fmt: skip
    """The ordinary loop from here on gives the same; the model stays as it is."""
    model = copy.deepcopy(model)
    again = case.optimizer(model)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    value = _loop(model, case.loss, again, x, y)
    np.testing.assert_allclose(tensors[f"B{len(x)}:out:loss:loss"], value, atol=1e-6)
    for name, parameter in model.named_parameters():
        found = tensors[f"B{len(x)}:out:param:{name}"]
        np.testing.assert_allclose(found, parameter.detach().numpy(), atol=2e-6, err_msg=name)


if __name__ == "__main__":
    main()
