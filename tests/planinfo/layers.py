"""The layers and losses that are tried, each in the smallest model that trains with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A model, a loss, and rows: (x, y) for a batch size."""

    make: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    rows: Callable[[int], tuple[Tensor, Tensor]]


class First(nn.Module):
    """The first result of a layer that has several."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)[0]
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x, x, x, need_weights=False)[0]
        return result


class Function(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, function: Callable[[Tensor], Tensor], inner: int = 6) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(6, inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def _square(output: Tensor, _y: Tensor) -> Tensor:
    """Weights that differ, so that no gradient is zero because of symmetry."""
    weights = torch.linspace(0.5, 1.5, output[0].numel()).reshape(output.shape[1:])
    return (output * output * weights + output * weights).mean()


def _on(make: Callable[[], nn.Module], *shape: int) -> Entry:
    return Entry(make, _square, lambda b: (torch.randn(b, *shape), torch.zeros(b)))


def _after(make: Callable[[], nn.Module], *shape: int) -> Entry:
    """A layer without parameters, behind one that has some."""
    return _on(lambda: nn.Sequential(nn.Linear(shape[-1], shape[-1]), make()), *shape)


def _function(function: Callable[[Tensor], Tensor]) -> Entry:
    return _on(lambda: Function(function), 6)


def _loss(loss: Callable[[Tensor, Tensor], Tensor], out: int, y: Callable[[int], Tensor], last: Any = None) -> Entry:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, out), *([last] if last is not None else []))

    return Entry(make, loss, lambda b: (torch.randn(b, 6), y(b)))


def _classes(b: int) -> Tensor:
    return torch.randint(4, (b,))


def _shares(b: int) -> Tensor:
    return torch.softmax(torch.randn(b, 4), 1)


def _numbers(b: int) -> Tensor:
    return torch.randn(b, 4)


def _truths(b: int) -> Tensor:
    return torch.randint(2, (b, 4)).float()


def _words(b: int) -> tuple[Tensor, Tensor]:
    return torch.randint(9, (b, 5)), torch.zeros(b)


_ACTIVATIONS = """
    CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU
    Sigmoid SiLU Softplus Softshrink Softsign Tanh Tanhshrink
""".split()  # noqa: SIM905  # a list of words
_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "einsum": lambda x: torch.einsum("bi,bj->bij", x, x),
    "cumsum": lambda x: x.cumsum(1),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "var": lambda x: x.var(1, keepdim=True),
    "std": lambda x: x.std(1, keepdim=True),
    "max along a dimension": lambda x: x.max(1, keepdim=True).values,
    "chunk and cat": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "repeat": lambda x: x.repeat(1, 2),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "index by a constant": lambda x: x[:, torch.tensor([0, 2, 2])],
    "prod": lambda x: x.prod(1, keepdim=True),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(2, 1).values,
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "atan2": lambda x: torch.atan2(x, x + 3),
}


def entries() -> dict[str, Entry]:
    """All of them, by name."""
    found: dict[str, Entry] = {
        "Linear": _on(lambda: nn.Linear(6, 4), 6),
        "Bilinear": _on(lambda: Twice(nn.Bilinear(6, 6, 3)), 6),
        "Conv1d": _on(lambda: nn.Conv1d(3, 4, 3, padding=1), 3, 9),
        "Conv2d": _on(lambda: nn.Conv2d(3, 4, 3), 3, 7, 7),
        "Conv2d stride": _on(lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), 3, 8, 8),
        "Conv2d dilation": _on(lambda: nn.Conv2d(3, 4, 3, dilation=2), 3, 8, 8),
        "Conv2d groups": _on(lambda: nn.Conv2d(4, 8, 3, groups=2), 4, 6, 6),
        "Conv2d same": _on(lambda: nn.Conv2d(3, 4, 3, padding="same"), 3, 6, 6),
        "Conv2d reflect": _on(lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 3, 6, 6),
        "Conv3d": _on(lambda: nn.Conv3d(2, 3, 2), 2, 4, 4, 4),
        "ConvTranspose1d": _on(lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), 3, 7),
        "ConvTranspose2d": _on(lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), 3, 5, 5),
        "MaxPool1d": _after(lambda: nn.MaxPool1d(2), 3, 8),
        "MaxPool2d": _after(lambda: nn.MaxPool2d(3, 2, padding=1), 2, 7, 7),
        "AvgPool1d": _after(lambda: nn.AvgPool1d(2), 3, 8),
        "AvgPool2d": _after(lambda: nn.AvgPool2d(2), 2, 8, 8),
        "AvgPool2d padding": _after(lambda: nn.AvgPool2d(3, 2, padding=1), 2, 7, 7),
        "AdaptiveAvgPool1d": _after(lambda: nn.AdaptiveAvgPool1d(4), 3, 8),
        "AdaptiveAvgPool2d": _after(lambda: nn.AdaptiveAvgPool2d(2), 2, 8, 8),
        "AdaptiveAvgPool2d, not dividing": _after(lambda: nn.AdaptiveAvgPool2d(3), 2, 8, 8),
        "AdaptiveMaxPool2d": _after(lambda: nn.AdaptiveMaxPool2d(2), 2, 8, 8),
        "BatchNorm1d": _after(lambda: nn.BatchNorm1d(6), 6),
        "BatchNorm2d": _on(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), 2, 6, 6),
        "BatchNorm1d without momentum": _after(lambda: nn.BatchNorm1d(6, momentum=None), 6),
        "GroupNorm": _on(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), 2, 6, 6),
        "InstanceNorm2d": _on(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True)), 2, 6, 6),
        "LayerNorm": _after(lambda: nn.LayerNorm(6), 6),
        "RMSNorm": _after(lambda: nn.RMSNorm(6), 6),
        "LocalResponseNorm": _on(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.LocalResponseNorm(2)), 2, 6, 6),
        "LSTM": _on(lambda: First(nn.LSTM(4, 5, batch_first=True)), 3, 4),
        "LSTM, two layers, both ways": _on(lambda: First(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)), 3, 4),
        "GRU": _on(lambda: First(nn.GRU(4, 5, batch_first=True)), 3, 4),
        "RNN": _on(lambda: First(nn.RNN(4, 5, batch_first=True)), 3, 4),
        "MultiheadAttention": _on(Attention, 5, 8),
        "TransformerEncoderLayer": _on(lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 5, 8),
        "Embedding": Entry(lambda: nn.Embedding(9, 4), _square, _words),
        "Embedding, padding_idx": Entry(lambda: nn.Embedding(9, 4, padding_idx=0), _square, _words),
        "EmbeddingBag": Entry(lambda: nn.EmbeddingBag(9, 4), _square, _words),
        "Upsample nearest": _after(lambda: nn.Upsample(scale_factor=2), 2, 4, 4),
        "Upsample bilinear": _after(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), 2, 4, 4),
        "PixelShuffle": _after(lambda: nn.PixelShuffle(2), 4, 3, 3),
        "Dropout of zero": _after(lambda: nn.Dropout(0.0), 6),
        "Flatten": _after(lambda: nn.Flatten(), 2, 6),
        "CosineSimilarity": _on(lambda: Function(lambda x: nn.functional.cosine_similarity(x, x * x)[:, None]), 6),
        "CrossEntropyLoss": _loss(nn.CrossEntropyLoss(), 4, _classes),
        "CrossEntropyLoss, smoothing": _loss(nn.CrossEntropyLoss(label_smoothing=0.1), 4, _classes),
        "CrossEntropyLoss, weights": _loss(nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0])), 4, _classes),
        "CrossEntropyLoss, shares": _loss(nn.CrossEntropyLoss(), 4, _shares),
        "NLLLoss": _loss(nn.NLLLoss(), 4, _classes, nn.LogSoftmax(1)),
        "MSELoss": _loss(nn.MSELoss(), 4, _numbers),
        "L1Loss": _loss(nn.L1Loss(), 4, _numbers),
        "HuberLoss": _loss(nn.HuberLoss(), 4, _numbers),
        "SmoothL1Loss": _loss(nn.SmoothL1Loss(), 4, _numbers),
        "BCELoss": _loss(nn.BCELoss(), 4, _truths, nn.Sigmoid()),
        "BCEWithLogitsLoss": _loss(nn.BCEWithLogitsLoss(), 4, _truths),
        "BCEWithLogitsLoss, pos_weight": _loss(nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)), 4, _truths),
        "KLDivLoss": _loss(nn.KLDivLoss(reduction="batchmean"), 4, _shares, nn.LogSoftmax(1)),
        "PoissonNLLLoss": _loss(nn.PoissonNLLLoss(), 4, lambda b: _numbers(b).abs()),
        "MultiMarginLoss": _loss(nn.MultiMarginLoss(), 4, _classes),
        "SoftMarginLoss": _loss(nn.SoftMarginLoss(), 4, lambda b: _truths(b) * 2 - 1),
        "CTCLoss": Entry(lambda: nn.Linear(6, 5), _ctc, lambda b: (torch.randn(b, 7, 6), torch.randint(1, 5, (b, 3)))),
    }
    found.update({name: _after(_activation(name), 6) for name in _ACTIVATIONS})
    found.update({name: _function(function) for name, function in _OPERATIONS.items()})
    return found


class Twice(nn.Module):
    """A layer that takes two inputs, on the same one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x, x)
        return result


def _activation(name: str) -> Callable[[], nn.Module]:
    layers: dict[str, Callable[[], nn.Module]] = {"RReLU": lambda: nn.RReLU(0.2, 0.2)}
    return layers.get(name, getattr(nn, name))


def _ctc(output: Tensor, y: Tensor) -> Tensor:
    rows = output.shape[0]
    lengths = torch.full((rows,), 7), torch.full((rows,), 3)
    return nn.functional.ctc_loss(output.log_softmax(2).transpose(0, 1), y, *lengths)
