"""Federated averaging over pointers: the model goes to the data, and only its weights come back.

FedAvg (McMahan et al. 2017, algorithm 1), each Node's weights counted by its number of rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from grid_jupyter.errors import InvalidDataError
from grid_jupyter.tensors.modules import get_module, send_module
from grid_jupyter.tensors.remote import RemoteTensor


@dataclass(frozen=True)
class Round:
    """What came back from one round: its number (from 1), and the rows that took part by Node."""

    number: int
    rows: Mapping[str, int]


def federated_rounds(
    model: torch.nn.Module,
    data: Mapping[str, tuple[RemoteTensor, RemoteTensor]],
    *,
    rounds: int,
    local_epochs: int,
    lr: float,
    batch_size: int = 32,
    seed: int = 0,
) -> Iterator[Round]:
    """Train `model`, a classifier, in place; yields after each round.

    `data` gives, by name of its Node, pointers to inputs [n, …] and classes [n] (int64). Each round every
    Node trains a copy by SGD on cross entropy, all Nodes at the same time; then, with n_k rows on Node k,

        w = sum_k n_k * w_k / sum_k n_k

    Reading the weights needs somebody who may read every data set that takes part.

    Raises GetNotPermittedError, InvalidDataError for data that does not fit together.
    """
    if not data:
        raise InvalidDataError("federated training needs at least one Node with data")
    rows = {name: len(inputs) for name, (inputs, _) in data.items()}
    for name, (inputs, classes) in data.items():
        if len(inputs) != len(classes) or not len(inputs):
            raise InvalidDataError(f"Node {name} has {len(inputs)} inputs for {len(classes)} classes")
    shuffle = torch.Generator().manual_seed(seed)
    for number in range(1, rounds + 1):
        trained = {}
        for name, (inputs, classes) in data.items():
            local = send_module(copy.deepcopy(model), inputs.location.session)
            _train(local, inputs, classes, local_epochs, lr, batch_size, shuffle)
            inputs.location.session.flush()  # the next Node's work begins while this one computes
            trained[name] = local
        _average(model, [get_module(trained[name]) for name in rows], list(rows.values()))
        yield Round(number, rows)


def _train(
    model: torch.nn.Module, inputs: torch.Tensor, classes: torch.Tensor, epochs: int, lr: float, batch_size: int,
    shuffle: torch.Generator,
) -> None:  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=shuffle).split(batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), classes[batch]).backward()
            optimizer.step()


def _average(model: torch.nn.Module, parts: Sequence[torch.nn.Module], weights: Sequence[int]) -> None:
    total = sum(weights)
    states = [part.state_dict() for part in parts]
    with torch.no_grad():
        for name, value in model.state_dict().items():
            mean = sum(state[name].double() * n for state, n in zip(states, weights, strict=True)) / total
            value.copy_(torch.as_tensor(mean))
