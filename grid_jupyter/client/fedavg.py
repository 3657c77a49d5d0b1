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
from grid_jupyter.tensors.recording import recording
from grid_jupyter.tensors.remote import RemoteTensor, send
from grid_jupyter.tensors.session import Session


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

    Steps are recorded on each Node (`sy.recording`), one for each size of batch.

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
    trainers: dict[str, _Trainer] = {}
    for number in range(1, rounds + 1):
        for name, (inputs, classes) in data.items():
            trainer = trainers.get(name)
            if trainer is None or trainer.session is not inputs.location.session:  # a lost one was replaced
                trainer = trainers[name] = _Trainer(model, inputs, classes, lr)
            trainer.train(model, local_epochs, batch_size, shuffle)
            trainer.session.flush()  # the next Node's work begins while this one computes
        _average(model, [trainers[name].weights() for name in rows], list(rows.values()))
        yield Round(number, rows)


class _Trainer:
    """The model on one Node, in the session of the moment, with its recorded step."""

    def __init__(self, model: torch.nn.Module, inputs: RemoteTensor, classes: RemoteTensor, lr: float) -> None:
        self._inputs = inputs
        self._classes = classes
        self.session: Session = inputs.location.session
        self._model = send_module(copy.deepcopy(model), self.session)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=lr)
        self._step = recording(self._on)

    def train(self, model: torch.nn.Module, epochs: int, batch_size: int, shuffle: torch.Generator) -> None:
        """Some epochs by SGD, from the weights of `model` on. Nothing waits."""
        with torch.no_grad():
            for values, there in zip(_values(model), _values(self._model), strict=True):
                there.copy_(values)
        for part, copied in zip(model.modules(), self._model.modules(), strict=True):
            copied.training = part.training
        for _ in range(epochs):
            for batch in torch.randperm(len(self._inputs), generator=shuffle).split(batch_size):
                self._step(send(batch, self.session))

    def weights(self) -> torch.nn.Module:
        """The trained model, on this side; the one on the Node stays. Raises GetNotPermittedError."""
        return get_module(copy.deepcopy(self._model))

    def _on(self, batch: torch.Tensor) -> None:
        self._optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self._model(self._inputs[batch]), self._classes[batch]).backward()
        self._optimizer.step()


def _values(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _average(model: torch.nn.Module, parts: Sequence[torch.nn.Module], weights: Sequence[int]) -> None:
    total = sum(weights)
    states = [part.state_dict() for part in parts]
    with torch.no_grad():
        for name, value in model.state_dict().items():
            mean = sum(state[name].double() * n for state, n in zip(states, weights, strict=True)) / total
            value.copy_(torch.as_tensor(mean))
