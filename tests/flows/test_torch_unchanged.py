"""torch's own loops run unchanged on remote tensors: training, optimisers, schedulers, data loaders, state dicts."""

from __future__ import annotations

import copy
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from both_ways import both, compare, fetched
from node_world import GridProcess
from torch import nn, optim
from torch.nn import functional
from torch.nn.utils import rnn
from torch.optim import lr_scheduler, swa_utils
from torch.utils import data

from grid_jupyter import NodeClient, VirtualWorker, get_module, move_module, send, send_module
from grid_jupyter.errors import BadRequest, RemoteOperationError
from grid_jupyter.tensors.remote import RemoteTensor

X = torch.linspace(-2, 2, 24).reshape(4, 6)
W = torch.linspace(0.1, 1.0, 6)
Lines = Callable[[Any], Any]


@pytest.fixture(scope="module", autouse=True)
def as_many_threads_as_a_worker() -> Iterator[None]:
    """Sums are added up in another order by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client(bob: GridProcess) -> Iterator[NodeClient]:
    with bob.client() as made:
        yield made


@pytest.fixture(scope="module")
def worker() -> VirtualWorker:
    return VirtualWorker(id="bob")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


# ------------------------------------------------------------------ training, through a Node


class Words(nn.Module):
    """A small transformer: token and position embeddings, two causal layers, tied output weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 16), nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 20)
        self.out.weight = self.tokens.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(12), persistent=False)
        self.register_buffer("places", torch.arange(12)[:, None])

    def forward(self, x: Any) -> Any:
        hidden = self.tokens(x) + self.positions(self.places)
        return self.out(self.layers(hidden, mask=self.mask, is_causal=True)).flatten(0, 1)


class Sequence(nn.Module):
    def __init__(self, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.recurrent = kind(6, 12, num_layers=2, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        return self.out(self.recurrent(x)[0][:, -1])


class Texts(nn.Module):
    """Batches of texts: matrices meet their tokens turned round, which decides how torch multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.near = nn.Conv1d(16, 16, 3, padding=1)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.mixed = nn.Parameter(torch.randn(16, 16))
        self.weights = nn.Parameter(torch.randn(6, 8))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        hidden = self.near(self.tokens(x).transpose(1, 2)).transpose(1, 2) @ self.mixed
        return self.out((self.weights @ self.layer(hidden)).mean(1))


def networks() -> dict[str, tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    classes = torch.randint(0, 3, (32,))
    words = torch.randint(0, 20, (13, 8))
    cnn = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    perceptron = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 3))
    return {
        "MLP": (perceptron, torch.randn(32, 6), classes),
        "CNN": (cnn, torch.randn(32, 1, 10, 10), classes),
        "LSTM": (Sequence(), torch.randn(32, 7, 6), classes),
        "GRU": (Sequence(nn.GRU), torch.randn(32, 7, 6), classes),
        "transformer": (Words(), words[:-1], words[1:].flatten()),
        "transformer, batch first": (Texts(), torch.randint(0, 20, (32, 8)), classes),
    }


def trained(model: nn.Module, x: Any, y: Any, make: Callable[[Any], optim.Optimizer], steps: int = 8) -> list[Any]:
    optimizer = make(model.parameters())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("name", ["MLP", "CNN", "LSTM", "GRU", "transformer", "transformer, batch first"])
@pytest.mark.parametrize(
    "make", [lambda p: optim.SGD(p, lr=0.1, momentum=0.9), lambda p: optim.Adam(p, lr=0.01)], ids=["SGD", "Adam"]
)
def test_losses_and_weights_are_those_of_local_training_bit_for_bit(client: NodeClient, name: str, make: Any):
    model, x, y = networks()[name]
    twin = send_module(copy.deepcopy(model), client.session)
    expected = trained(model, x, y, make)
    compare(fetched(trained(twin, send(x, client), send(y, client), make)), fetched(expected))
    assert fetched(expected)[-1] < fetched(expected)[0]
    get_module(twin)
    compare(fetched(list(twin.state_dict().values())), fetched(list(model.state_dict().values())))


# ------------------------------------------------------------------ losses

P = torch.linspace(0.05, 0.95, 24).reshape(4, 6)
LABELS = torch.tensor([0, 5, 2, 3])
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0])

LOSSES: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
    "L1Loss": (nn.L1Loss(), (X, P)),
    "MSELoss": (nn.MSELoss(reduction="sum"), (X, P)),
    "HuberLoss": (nn.HuberLoss(), (X, P)),
    "SmoothL1Loss": (nn.SmoothL1Loss(beta=0.5), (X, P)),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.1), (X, LABELS)),
    "CrossEntropyLoss of probabilities": (nn.CrossEntropyLoss(), (X, P.softmax(1))),
    "NLLLoss": (nn.NLLLoss(ignore_index=2), (X.log_softmax(1), LABELS)),
    "BCELoss": (nn.BCELoss(), (P, P.flip(0))),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(pos_weight=W), (X, P)),
    "KLDivLoss": (nn.KLDivLoss(reduction="batchmean"), (X.log_softmax(1), P.softmax(1))),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(full=True), (X, P * 5)),
    "GaussianNLLLoss": (nn.GaussianNLLLoss(), (X, P, P + 0.1)),
    "HingeEmbeddingLoss": (nn.HingeEmbeddingLoss(), (X, X.sign())),
    "MarginRankingLoss": (nn.MarginRankingLoss(margin=0.3), (X[:, 0], P[:, 0], SIGNS)),
    "SoftMarginLoss": (nn.SoftMarginLoss(), (X, X.sign())),
    "MultiMarginLoss": (nn.MultiMarginLoss(), (X, LABELS)),
    "MultiLabelSoftMarginLoss": (nn.MultiLabelSoftMarginLoss(), (X, (P > 0.5).float())),
    "CosineEmbeddingLoss": (nn.CosineEmbeddingLoss(margin=0.1), (X, P, SIGNS)),
    "TripletMarginLoss": (nn.TripletMarginLoss(), (X, P, P.flip(0))),
    "TripletMarginWithDistanceLoss": (nn.TripletMarginWithDistanceLoss(), (X, P, P.flip(0))),
    "MultiLabelMarginLoss": (nn.MultiLabelMarginLoss(), (X, torch.tensor([[0, 3, -1, 1, 1, 1]] * 4))),
    "NLLLoss of images": (nn.NLLLoss(weight=W), (X.reshape(1, 6, 2, 2).log_softmax(1), LABELS.reshape(1, 2, 2))),
    "CTCLoss": (
        nn.CTCLoss(),
        (X.reshape(4, 1, 6).log_softmax(2), torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_the_local_ones(worker: VirtualWorker, name: str):
    def lines(where: Any) -> Any:
        loss, given = LOSSES[name]
        loss = where.module(copy.deepcopy(loss))
        first, *others = [where.tensor(values) for values in given]
        found = loss(first.requires_grad_(), *others)
        found.backward()
        return [found, first.grad]

    both(worker, lines)


def losses_with_weights(where: Any) -> Any:
    """Those that are layers as well; the second is one of newer torch."""
    torch.manual_seed(0)
    layers = [nn.AdaptiveLogSoftmaxWithLoss(6, 20, [5, 12], div_value=2.0)]
    if hasattr(nn, "LinearCrossEntropyLoss"):
        layers.append(nn.LinearCrossEntropyLoss(6, 20))
    found, labels = [], where.tensor(torch.tensor([0, 19, 7, 4]))
    for layer in map(where.module, layers):
        x = where.tensor(X).requires_grad_()
        out = layer(x, labels)
        loss = out if isinstance(out, torch.Tensor) else out.loss
        loss.backward()
        found += [loss, x.grad, *[one.grad for one in layer.parameters()]]
    return found


def test_losses_that_are_layers_are_the_local_ones(worker: VirtualWorker):
    both(worker, losses_with_weights)


def test_every_loss_of_torch_is_tried():
    layers = {"AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss"}
    tried = {name.split()[0] for name in LOSSES} | layers | {"NLLLoss2d"}  # the old name of NLLLoss
    assert {name for name in dir(nn) if name.endswith("Loss")} <= tried


# ------------------------------------------------------------------ optimisers

Make = Callable[..., optim.Optimizer]
MATRICES = "it takes matrices only"
OPTIMISERS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "SGD": (lambda p, **o: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **o), ("foreach", "fused")),
    "SGD, maximising": (lambda p, **o: optim.SGD(p, lr=0.01, weight_decay=0.1, maximize=True, **o), ("foreach",)),
    "Adam": (lambda p, **o: optim.Adam(p, lr=0.01, weight_decay=0.1, **o), ("foreach", "fused")),
    "Adam, amsgrad": (lambda p, **o: optim.Adam(p, lr=0.01, amsgrad=True, **o), ("foreach", "fused")),
    "AdamW": (lambda p, **o: optim.AdamW(p, lr=0.01, **o), ("foreach", "fused")),
    "Adamax": (lambda p, **o: optim.Adamax(p, **o), ("foreach",)),
    "Adamax, maximising": (lambda p, **o: optim.Adamax(p, lr=0.01, weight_decay=0.1, maximize=True, **o), ("foreach",)),
    "SGD, its rate a tensor": (lambda p, **o: optim.SGD(p, lr=torch.tensor(0.1), **o), ("foreach", "fused")),
    "Adagrad, its rate a tensor": (lambda p, **o: optim.Adagrad(p, lr=torch.tensor(0.1), **o), ("fused",)),
    "NAdam": (lambda p, **o: optim.NAdam(p, weight_decay=0.1, decoupled_weight_decay=True, **o), ("foreach",)),
    "RAdam": (lambda p, **o: optim.RAdam(p, lr=0.01, **o), ("foreach",)),
    "Adagrad": (lambda p, **o: optim.Adagrad(p, lr=0.1, lr_decay=0.1, **o), ("foreach", "fused")),
    "Adadelta": (lambda p, **o: optim.Adadelta(p, **o), ("foreach",)),
    "RMSprop": (lambda p, **o: optim.RMSprop(p, momentum=0.9, centered=True, **o), ("foreach",)),
    "Rprop": (lambda p, **o: optim.Rprop(p, **o), ("foreach",)),
    "Rprop, maximising": (lambda p, **o: optim.Rprop(p, maximize=True, **o), ("foreach",)),
    "ASGD": (lambda p, **o: optim.ASGD(p, t0=2, **o), ("foreach",)),
    "Adafactor": (lambda p, **o: optim.Adafactor(p, **o), ("foreach",)),
    "Muon": (lambda p, **o: optim.Muon([one for one in p if one.dim() == 2], **o), ()),
    "LBFGS": (lambda p, **o: optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"), ()),
}  # fmt: skip
VARIANTS = [
    pytest.param(name, options, id=f"{name}, {next(iter(options), 'default')}")
    for name, (_, variants) in OPTIMISERS.items()
    for options in ({}, *({variant: True} for variant in variants))
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_an_optimiser_steps_bit_for_bit_as_it_does_locally(worker: VirtualWorker, name: str, options: dict[str, bool]):
    def lines(where: Any) -> Any:
        model, x, y = where.module(mlp()), where.tensor(X), where.tensor(X[:, :3])
        optimizer = OPTIMISERS[name][0](model.parameters(), **options)
        losses: list[Any] = []

        def closure() -> Any:
            optimizer.zero_grad()
            loss = functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        losses += [optimizer.step(closure).detach() for _ in range(5)]
        return [losses, *model.parameters()]

    if name == "Muon" and not hasattr(optim, "Muon"):
        pytest.skip("this torch has no Muon")
    both(worker, lines)


def test_sparse_gradients_and_their_optimiser_are_refused(worker: VirtualWorker):
    words = send_module(nn.Embedding(5, 3, sparse=True), worker.session)
    with pytest.raises(RemoteOperationError, match="sparse=False"):
        words(send(torch.tensor([1, 2]), worker))
    optimizer = optim.SparseAdam(words.parameters())
    words.weight.sum().backward()
    with pytest.raises(RuntimeError, match="dense gradients"):
        optimizer.step()


def groups_of_parameters(where: Any) -> Any:
    model = where.module(mlp())
    optimizer = optim.SGD([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}], lr=0.01)
    model(where.tensor(X)).sum().backward()
    optimizer.step()
    return list(model.parameters())


def a_rate_that_is_a_tensor(where: Any) -> Any:
    model = where.module(mlp())
    optimizer = optim.Adam(model.parameters(), lr=torch.tensor(0.1))
    model(where.tensor(X)).sum().backward()
    optimizer.step()
    return list(model.parameters())


def an_optimiser_that_goes_on_from_its_state(where: Any) -> Any:
    model = where.module(mlp())
    first = optim.Adam(model.parameters(), lr=0.1)
    model(where.tensor(X)).sum().backward()
    first.step()
    second = optim.Adam(model.parameters(), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.step()
    return list(model.parameters())


def clipped(where: Any) -> Any:
    model, found = where.module(mlp()), []
    for clip in (
        lambda p: nn.utils.clip_grad_norm_(p, 0.1),
        lambda p: nn.utils.clip_grad_norm_(p, 0.1, norm_type=float("inf")),
        lambda p: nn.utils.clip_grad_value_(p, 0.01),
        lambda p: nn.utils.get_total_norm([one.grad for one in p]),
    ):
        model.zero_grad()
        model(where.tensor(X)).pow(2).sum().backward()
        found += [clip(list(model.parameters())), *[one.grad for one in model.parameters()]]
    return found


def averaged(where: Any) -> Any:
    model = where.module(nn.Sequential(mlp(), nn.BatchNorm1d(3)))
    means = [swa_utils.AveragedModel(model), swa_utils.AveragedModel(model, multi_avg_fn=_ema)]
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    schedule = swa_utils.SWALR(optimizer, swa_lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(where.tensor(X)).pow(2).mean().backward()
        optimizer.step()
        schedule.step()
        for mean in means:
            mean.update_parameters(model)
    swa_utils.update_bn([where.tensor(X), where.tensor(X * 2)], means[0])
    return [list(mean.state_dict().values()) for mean in means]


_ema = swa_utils.get_ema_multi_avg_fn(0.9)


def mixed_precision(where: Any) -> Any:
    model = where.module(mlp())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(where.tensor(X))
        loss = functional.mse_loss(out.float(), where.tensor(X[:, :3]))
    loss.backward()
    return [out, loss, *[one.grad for one in model.parameters()]]


def scaled_losses(where: Any) -> Any:
    """Gradients of bfloat16 by a scaled loss; one of them overflows, so that its step is left out."""
    model, x = where.module(mlp()), where.tensor(X)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    found = []
    for factor in (1.0, 1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).float().pow(2).mean() * factor
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        found += [scaler.get_scale(), *[one.detach().clone() for one in model.parameters()]]
    return found


@pytest.mark.parametrize(
    "lines",
    [
        groups_of_parameters, a_rate_that_is_a_tensor, an_optimiser_that_goes_on_from_its_state, clipped, averaged,
        mixed_precision, scaled_losses,
    ],
    ids=lambda lines: lines.__name__,
)  # fmt: skip
def test_what_goes_with_optimisers_is_as_it_is_locally(worker: VirtualWorker, lines: Lines):
    both(worker, lines)


SCHEDULES: dict[str, Callable[[optim.Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.5)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_changes_the_rate_as_it_does_locally(worker: VirtualWorker, name: str):
    def lines(where: Any) -> Any:
        weight = where.tensor(X).requires_grad_()
        optimizer = optim.SGD([weight], lr=0.1, momentum=0.5)
        schedule = SCHEDULES[name](optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            loss = (weight**2).sum()
            loss.backward()
            optimizer.step()
            schedule.step(*([loss.detach()] if name == "ReduceLROnPlateau" else []))
        return [weight, schedule.get_last_lr()]

    both(worker, lines)


# ------------------------------------------------------------------ data loaders


def a_loader(**options: Any) -> Lines:
    def lines(where: Any) -> Any:
        given = dict(options)
        if given.pop("seeded", False):
            given["generator"] = torch.Generator().manual_seed(3)
        if "sampler" in given:
            given["sampler"] = given["sampler"]()
        return list(data.DataLoader(data.TensorDataset(where.tensor(X), where.tensor(W[:4])), **given))

    return lines


def parts_of_data(where: Any) -> Any:
    whole = data.ConcatDataset([data.TensorDataset(where.tensor(X)), data.TensorDataset(where.tensor(X * 2))])
    first, second = data.random_split(whole, [6, 2], generator=torch.Generator().manual_seed(1))
    subset = data.Subset(whole, [0, 5, 7])
    return [list(data.DataLoader(part, batch_size=2)) for part in (first, second, subset)]


def records_of_several_kinds(where: Any) -> Any:
    x = where.tensor(X)
    records = [{"x": x[row], "number": row, "pair": (x[row, 0], float(row))} for row in range(4)]
    return list(data.DataLoader(records, batch_size=2))


class Endless(data.IterableDataset):
    def __init__(self, x: Any) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Any]:
        return iter(self.x.unbind())


LOADERS: dict[str, Lines] = {
    "in order": a_loader(batch_size=3),
    "without the rest": a_loader(batch_size=3, drop_last=True),
    "shuffled by its generator": a_loader(batch_size=3, shuffle=True, seeded=True),
    "shuffled by the global one": a_loader(batch_size=2, shuffle=True),
    "by weights": a_loader(
        batch_size=2,
        sampler=lambda: data.WeightedRandomSampler(
            [0.1, 0.2, 0.3, 0.4], 4, generator=torch.Generator().manual_seed(3)
        ),
    ),
    "one by one": a_loader(batch_size=None),
    "split, joined, picked": parts_of_data,
    "dicts, numbers, tuples": records_of_several_kinds,
    "a stream": lambda where: list(data.DataLoader(Endless(where.tensor(X)), batch_size=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_of_remote_data_gives_the_batches_of_local_data(worker: VirtualWorker, name: str):
    both(worker, LOADERS[name])


# ------------------------------------------------------------------ modules


def a_state_dict_is_loaded(where: Any) -> Any:
    model, state = where.module(mlp()), {name: value * 2 for name, value in mlp().state_dict().items()}
    found = []
    model.load_state_dict(state)
    found += [value.clone() for value in model.parameters()]
    model.load_state_dict({name: where.tensor(value * 2) for name, value in state.items()})
    found += [value.clone() for value in model.parameters()]
    model.load_state_dict({name: where.tensor(value * 3) for name, value in state.items()}, assign=True)
    return [*found, *model.parameters(), model.state_dict()]


def buffers_of_batch_norm(where: Any) -> Any:
    found = []
    for norm in (where.module(nn.BatchNorm1d(6)), where.module(nn.BatchNorm1d(6, momentum=None))):
        norm(where.tensor(X))
        norm(where.tensor(X * 2))
        found += [norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.eval()(where.tensor(X))]
    return found


def recurrent_layers(where: Any) -> Any:
    found = []
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        torch.manual_seed(0)
        layer = where.module(kind(6, 4, num_layers=2, bidirectional=True))
        out, _ = layer(where.tensor(X[None]))
        out.sum().backward()
        found += [out, *[one.grad for one in layer.parameters()]]
    torch.manual_seed(0)
    layer = where.module(nn.LSTM(6, 4, bias=False))
    out, state = layer(where.tensor(X[None]))
    out.sum().backward()
    found += [out, state, *[one.grad for one in layer.parameters()]]
    for cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        found.append(where.module(cell(6, 3))(where.tensor(X)))
    return found


def sequences_of_several_lengths(where: Any) -> Any:
    found = []
    for kind, first in ((nn.LSTM, True), (nn.GRU, False)):
        torch.manual_seed(0)
        layer = where.module(kind(6, 5, batch_first=first, bidirectional=first))
        x = where.tensor(torch.randn(3, 4, 6)).requires_grad_()
        rows = x if first else x.transpose(0, 1)
        packed = rnn.pack_padded_sequence(rows, torch.tensor([4, 1, 3]), batch_first=first, enforce_sorted=False)
        out, state = layer(packed)
        padded, lengths = rnn.pad_packed_sequence(out, batch_first=first, padding_value=-1.0, total_length=6)
        padded.pow(2).sum().backward()
        parts = rnn.unpad_sequence(padded, lengths, batch_first=first)
        found += [padded, lengths, state, x.grad, [one.grad for one in layer.parameters()], parts]
        found += [rnn.pad_sequence(parts, padding_value=2.0, padding_side=side) for side in ("left", "right")]
    return found


def attention_both_ways(where: Any) -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # batch_first would be faster
        transformer = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0)
    model = where.module(transformer)
    x, y = where.tensor(torch.linspace(-1, 1, 48).reshape(3, 2, 8)), where.tensor(torch.ones(4, 2, 8))
    mask = where.tensor(nn.Transformer.generate_square_subsequent_mask(4))
    out = model(x, y, tgt_mask=mask)
    out.pow(2).sum().backward()
    model.eval()
    with torch.no_grad():
        return [out, model(x, y), *[one.grad for one in model.parameters()]]


def weights_written_by_hand(where: Any) -> Any:
    model = where.module(mlp())

    def write(part: nn.Module) -> None:
        if isinstance(part, nn.Linear):
            with torch.no_grad():
                part.weight.fill_(0.1)
            nn.init.zeros_(part.bias)

    model.apply(write)
    nn.init.constant_(model[0].weight[:2].data, 0.5)
    return list(model.parameters())


def pruned(where: Any) -> Any:
    from torch.nn.utils import prune

    model = where.module(mlp())
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model(where.tensor(X))


@pytest.mark.parametrize(
    "lines",
    [
        a_state_dict_is_loaded, buffers_of_batch_norm, recurrent_layers, sequences_of_several_lengths,
        attention_both_ways, weights_written_by_hand, pruned,
    ],
    ids=lambda lines: lines.__name__,
)  # fmt: skip
def test_modules_do_as_they_do_locally(worker: VirtualWorker, lines: Lines):
    both(worker, lines)


def products_with_one_matrix(where: Any) -> Any:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6)
    left, right = where.tensor(torch.randn(4, 6)).requires_grad_(), where.tensor(torch.randn(6, 5)).requires_grad_()
    part = where.tensor(torch.randn(2, 6, 5)).requires_grad_()
    turned = where.tensor(x).transpose(0, 1)
    found = [turned @ right, turned @ right[:, 1:3], left @ turned.mT, turned @ part[1], turned @ right.detach()]
    found += [turned @ torch.ones(6, 2), torch.bmm(turned, right.expand(3, 6, 5)), turned[None] @ right]
    sum(one.pow(2).sum() for one in found).backward()
    with torch.no_grad():
        found.append(turned @ right)
    return [*found, left.grad, right.grad, part.grad]


def test_batches_meet_a_matrix_as_they_do_locally(worker: VirtualWorker):
    both(worker, products_with_one_matrix, tolerance=1e-6)  # a local bmm of an expanded matrix stays one


def products_with_one_conjugated_matrix(where: Any) -> Any:
    torch.manual_seed(5)
    left, right = (torch.randn(3, 4, 4, dtype=torch.complex64) for _ in range(2))
    x, w = where.tensor(left).requires_grad_(), where.tensor(right[0]).requires_grad_()
    found = [x.mT @ w.conj(), x.mT @ w.mH, w.mH @ x, w.conj() @ x, w.T @ x]
    sum(one.abs().sum() for one in found).backward()
    return [*found, x.grad, w.grad]


def test_batches_meet_a_conjugated_matrix_as_they_do_locally(worker: VirtualWorker):
    both(worker, products_with_one_conjugated_matrix, tolerance=1e-5)


def test_sequences_of_several_dtypes_are_padded_to_that_of_the_first(worker: VirtualWorker):
    both(worker, lambda where: rnn.pad_sequence([where.tensor(X[0].int()), where.tensor(W)]))


def test_workers_in_two_threads_leave_the_random_numbers_of_this_side_as_they_are():
    def compute(place: VirtualWorker) -> None:
        x: Any = send(torch.ones(200, 200), place)
        for _ in range(40):
            x = (x @ x) * 1e-3
            x.sum().get()

    torch.manual_seed(0)
    before = torch.get_rng_state()
    threads = [threading.Thread(target=compute, args=(VirtualWorker(id=name),)) for name in ("theo", "andy")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert torch.equal(torch.get_rng_state(), before)


def test_lengths_of_packed_sequences_are_of_this_side(worker: VirtualWorker):
    with pytest.raises(RemoteOperationError, match="lengths of a packed sequence"):
        rnn.pack_padded_sequence(send(torch.ones(4, 2, 3), worker), send(torch.tensor([4, 2]), worker))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(6, 6), nn.Linear(6, 6)
        self.out.weight = self.words.weight
        self.recurrent = nn.GRU(6, 6)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("not_kept", torch.zeros(2), persistent=False)
        self.constants = nn.ParameterDict({"a": nn.Parameter(torch.ones(1), requires_grad=False)})

    def forward(self, x: Any) -> Any:
        return self.out(self.recurrent(self.words(x))[0]) * self.constants["a"] + self.not_kept.sum()


def test_a_module_keeps_what_it_shares_on_the_way_there_and_back(worker: VirtualWorker):
    torch.manual_seed(0)
    model = Tied()
    local, names = copy.deepcopy(model), list(model.state_dict())
    words = torch.arange(6)
    model(words).sum().backward()
    gradient = model.words.weight.grad
    send_module(model, worker.session)
    assert model.out.weight is model.words.weight
    assert list(model.state_dict()) == names
    assert "not_kept" not in names
    assert type(model.not_kept) is RemoteTensor
    assert not model.constants["a"].requires_grad
    assert model.words.weight.grad.get(deregister_ptr=False).equal(gradient)
    twin = copy.deepcopy(model)
    assert twin.out.weight is twin.words.weight is not model.words.weight
    found = model(send(words, worker))
    assert found.detach().get().equal(local(words).detach())
    get_module(model)
    assert model.out.weight is model.words.weight
    assert model(words).equal(local(words))
    assert twin(send(words, worker)).detach().get().equal(local(words).detach())


def test_a_module_that_is_sent_twice_or_is_local_stays_where_it_is(worker: VirtualWorker):
    model = send_module(mlp(), worker.session)
    parameters = list(model.parameters())
    move_module(model, worker)
    assert all(one.location is worker for one in model.parameters())
    send_module(model, worker.session)
    compare(fetched(list(model.parameters())), fetched(parameters))
    local = mlp()
    assert next(iter(get_module(local).parameters())).equal(mlp()[0].weight)


def test_a_lazy_module_is_sent_once_it_knows_its_shapes(worker: VirtualWorker):
    lazy = nn.LazyLinear(3)
    with pytest.raises(BadRequest, match="run it once"):
        send_module(lazy, worker.session)
    lazy(X)
    assert send_module(lazy, worker.session)(send(X, worker)).shape == (4, 3)


def test_what_is_saved_must_be_fetched_first(worker: VirtualWorker):
    model = send_module(mlp(), worker.session)
    with pytest.raises(TypeError, match=r"never pickled.*\.get\(\)"):
        torch.save(model.state_dict(), io.BytesIO())
    file = io.BytesIO()
    torch.save(get_module(model).state_dict(), file)
    file.seek(0)
    loaded = mlp()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert loaded[0].weight.equal(model[0].weight)


def test_dropout_repeats_with_the_seed_and_is_the_identity_in_evaluation(client: NodeClient):
    x = send(torch.ones(1000), client)
    dropout = nn.Dropout(0.3)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(dropout(x).get())
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])
    assert 500 < int((found[0] > 0).sum()) < 900
    assert dropout.eval()(x).get().equal(torch.ones(1000))


def test_layers_without_dropout_take_no_random_numbers(client: NodeClient):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.ones(2, 3, 8)
    send_module(layer, client.session)
    before = torch.get_rng_state()
    layer(send(x, client)).sum().item()
    assert torch.get_rng_state().equal(before), "what is drawn next is what is drawn next to a local one"
