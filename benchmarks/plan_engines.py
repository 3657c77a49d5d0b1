"""Training steps by plan, in both engines, beside the ordinary training loop: steps in a second of CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.results import Result
from benchmarks.scale import Scale
from benchmarks.timing import in_turns
from grid_jupyter.plans.engine import Engine, Training
from grid_jupyter.plans.models import training_plan
from grid_jupyter.plans.onnx_engine import OnnxEngine
from grid_jupyter.plans.plan import Plan
from grid_jupyter.plans.torch_engine import TorchEngine

MEANING = """\
One step is forward, loss, backward and SGD on a batch of 64 that is there already, with one thread; rates are steps \
in a second of CPU, so that neighbours matter little. The *ordinary loop* is the model itself with `torch.optim`. \
Both engines run the same document: the torch engine calls one function of torch for each of its operations, the ONNX \
engine hands it to ONNX Runtime as one model, without any Python between operations, which is what small networks \
gain from. \
Recurrent networks are unrolled in the plan of a step, some fifty operations for each of 12 words, where the \
ordinary loop has one fused kernel for the LSTM. The targets are for the better engine of each model. How fast the \
steps of jobs are, which are derived from forward and loss, is in `job_epochs`. Networks: logistic regression of \
30 columns; MLP 784-392-10; CNN of 16 and 32 filters on 28×28; the same size with batch norm, strides, groups, \
dilation, overlapping and average pooling, dropout; LSTM and GRU of 32 on 12 words; a transformer of two layers, \
width 32, on 16 words."""

BATCH = 64
Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A network, its loss and a batch; `least` is the target for the better engine, in the ordinary loop's rate."""

    name: str
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    rows: Callable[[], Rows]
    steps: int
    least: float


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.words, self.layer, self.last = nn.Embedding(50, 16), kind(16, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.words(x))[0][:, -1])


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.place = nn.Embedding(64, 32), nn.Parameter(torch.randn(16, 32) * 0.02)
        block = {
            "n1": lambda: nn.LayerNorm(32), "qkv": lambda: nn.Linear(32, 96), "o": lambda: nn.Linear(32, 32),
            "n2": lambda: nn.LayerNorm(32), "f1": lambda: nn.Linear(32, 128), "f2": lambda: nn.Linear(128, 32),
            "drop": lambda: nn.Dropout(0.1),
        }  # fmt: skip
        self.blocks = nn.ModuleList(nn.ModuleDict({name: make() for name, make in block.items()}) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape
        h = self.words(x) + self.place[:t]
        for block in self.blocks:
            q, k, v = (p.view(b, t, 4, -1).transpose(1, 2) for p in block["qkv"](block["n1"](h)).chunk(3, -1))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + block["drop"](block["o"](seen.transpose(1, 2).reshape(b, t, -1)))
            h = h + block["f2"](F.gelu(block["f1"](block["n2"](h))))
        return self.head(self.norm(h))


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    with one_thread():
        return [result for task in tasks()[: scale(7, 2)] for result in _compare(task, scale)]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch uses one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def tasks() -> list[Task]:
    """The networks."""

    def sequences(words: int, length: int, *classes: int) -> Callable[[], Rows]:
        return lambda: (torch.randint(words, (BATCH, length)), torch.randint(classes[0], (BATCH, *classes[1:])))

    def images() -> Rows:
        return torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

    cross = F.cross_entropy
    return [
        Task(
            "logistic regression", lambda: nn.Sequential(nn.Linear(30, 1), nn.Sigmoid()), F.binary_cross_entropy,
            lambda: (torch.randn(BATCH, 30), torch.randint(2, (BATCH, 1)).float()), 400, 0.9,
        ),
        Task("MLP", _mlp, cross, lambda: (torch.randn(BATCH, 784), torch.randint(10, (BATCH,))), 60, 0.9),
        Task("CNN", _cnn, cross, images, 8, 0.9),
        Task("CNN with batch norm", _batch_norm_cnn, cross, images, 20, 0.8),
        Task("LSTM", lambda: _Recurrent(nn.LSTM), cross, sequences(50, 12, 4), 60, 0.8),
        Task("GRU", lambda: _Recurrent(nn.GRU), cross, sequences(50, 12, 4), 40, 0.9),
        Task("transformer", _Transformer, _next_word, sequences(64, 16, 64, 16), 12, 0.9),
    ]  # fmt: skip


def _next_word(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), y.flatten())


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 392), nn.ReLU(), nn.Linear(392, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


def _batch_norm_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 16, 3, dilation=2, padding=2), nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.25), nn.Linear(16, 10),
    )  # fmt: skip


def _compare(task: Task, scale: Scale) -> list[Result]:
    torch.manual_seed(0)
    model, (x, y) = task.model(), task.rows()
    updating = torch.optim.SGD(model.parameters(), lr=0.05)
    plan = training_plan(model, task.loss, updating, inputs=(x, y), metrics=())

    def ordinary() -> None:
        updating.zero_grad()
        task.loss(model(x), y).backward()
        updating.step()

    engines: dict[str, Engine[Any]] = {"torch": TorchEngine(), "ONNX": OnnxEngine(threads=1)}
    works: dict[str, Callable[[], object]] = {"ordinary": _many(ordinary, task.steps)}
    works |= {name: _many(_step(plan, engine, x, y), task.steps) for name, engine in engines.items()}
    took = in_turns(works, scale(15, 1))
    rates = {name: task.steps / timings.cpu_each("here") for name, timings in took.items()}
    better = max(engines, key=rates.__getitem__)
    return [
        Result(
            what=f"{task.name}: {name} engine",
            value=rates[name],
            unit="steps/CPU s",
            baseline=rates["ordinary"],
            against="the ordinary loop",
            ratio_at_least=task.least if name == better else None,
        )
        for name in engines
    ]


def _many(step: Callable[[], object], steps: int) -> Callable[[], None]:
    def loop() -> None:
        for _ in range(steps):
            step()

    return loop


def _step(plan: Plan, engine: Engine[Any], x: Tensor, y: Tensor) -> Callable[[], object]:
    program = engine.load(plan.document)

    def native(tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {name: program.native(tensor.detach().clone().numpy()) for name, tensor in tensors.items()}

    training = Training(program, *map(native, (plan.params, plan.buffers, plan.optimiser_state, plan.hyper)))
    given, expected = native({"x": x}), native({"y": y})

    def step() -> object:
        with torch.no_grad():
            return training.step(given, expected, BATCH)

    return step
