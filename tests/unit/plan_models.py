"""Models that plans are tested with: the kinds that people train first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class LogisticRegression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(30, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(x)).squeeze(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 392), nn.ReLU(), nn.Linear(392, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


def batch_norm_cnn() -> nn.Module:
    """Strides, groups, dilation, overlapping pooling, batch norm, dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 16, 3, dilation=2, padding=2), nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.25), nn.Linear(16, 10),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(50, 16), kind(16, 32, batch_first=True)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen, _ = self.layer(self.embedding(x))
        return self.fc(seen[:, -1])


class Transformer(nn.Module):
    """Next tokens by causal attention."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(64, 32), nn.Parameter(torch.randn(16, 32) * 0.02)
        block = {
            "n1": lambda: nn.LayerNorm(32), "qkv": lambda: nn.Linear(32, 96), "o": lambda: nn.Linear(32, 32),
            "n2": lambda: nn.LayerNorm(32), "f1": lambda: nn.Linear(32, 128), "f2": lambda: nn.Linear(128, 32),
            "drop": lambda: nn.Dropout(dropout),
        }  # fmt: skip
        self.blocks = nn.ModuleList(nn.ModuleDict({name: make() for name, make in block.items()}) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape
        h = self.embedding(x) + self.place[:t]
        for block in self.blocks:
            q, k, v = (p.view(b, t, 4, -1).transpose(1, 2) for p in block["qkv"](block["n1"](h)).chunk(3, -1))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + block["drop"](block["o"](seen.transpose(1, 2).reshape(b, t, -1)))
            h = h + block["f2"](F.gelu(block["f1"](block["n2"](h))))
        return self.head(self.norm(h))


def next_token(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), y.flatten())


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    rows: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def _images(b: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(b, 1, 28, 28, generator=g), torch.randint(10, (b,), generator=g)


def _texts(b: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randint(64, (b, 16), generator=g), torch.randint(64, (b, 16), generator=g)


def _words(b: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randint(50, (b, 6), generator=g), torch.randint(4, (b,), generator=g)


def _numbers(b: int, g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(b, *shape, generator=g)


CASES: dict[str, Case] = {
    "logreg": Case(LogisticRegression, F.binary_cross_entropy,
                   lambda b, g: (_numbers(b, g, 30), torch.randint(2, (b,), generator=g).float())),
    "mlp": Case(mlp, F.cross_entropy, lambda b, g: (_numbers(b, g, 784), torch.randint(10, (b,), generator=g))),
    "regression": Case(lambda: nn.Linear(5, 2), nn.MSELoss(), lambda b, g: (_numbers(b, g, 5), _numbers(b, g, 2))),
    "cnn": Case(cnn, F.cross_entropy, _images),
    "batch-norm-cnn": Case(batch_norm_cnn, F.cross_entropy, _images),
    "lstm": Case(lambda: Recurrent(nn.LSTM), F.cross_entropy, _words),
    "gru": Case(lambda: Recurrent(nn.GRU), F.cross_entropy, _words),
    "transformer": Case(Transformer, next_token, _texts),
}  # fmt: skip


def made(name: str, seed: int = 0) -> tuple[nn.Module, Any, Callable[[int], tuple[Tensor, Tensor]]]:
    """A model with weights of this seed, its loss, and what makes batches."""
    case = CASES[name]
    torch.manual_seed(seed)
    model = case.make()
    generator = torch.Generator().manual_seed(seed)
    return model, case.loss, lambda batch: case.rows(batch, generator)
