"""Data sets spread over workers, in batches: `BaseDataset`, `FederatedDataset`, `FederatedDataLoader` of 0.2.9.

Rows and classes stay where they are; a batch is a pair of pointers, at one worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from grid_jupyter.errors import InvalidDataError
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor

Batch = tuple[Any, Any]


class BaseDataset(torch.utils.data.Dataset[Batch]):
    """Rows and their targets, both here or both at one worker."""

    def __init__(self, data: Any, targets: Any, transform: Callable[[Any], Any] | None = None) -> None:
        """`data` [n, …] and `targets` [n, …]; `transform` is applied to rows as they are taken.

        Raises InvalidDataError if they differ in length or place.
        """
        if len(data) != len(targets):
            raise InvalidDataError(f"a data set has one target a row, and here are {len(targets)} for {len(data)} rows")
        if _place(data) is not _place(targets):
            raise InvalidDataError("rows and targets of a data set lie at one place; send both to the same worker")
        self.data = data
        self.targets = targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Batch:
        rows = self.data[index]
        return (rows if self.transform is None else self.transform(rows)), self.targets[index]

    @property
    def location(self) -> Any:
        """The worker that holds it; None here."""
        return _place(self.data)

    def send(self, worker: Any) -> BaseDataset:
        """Copy it to a worker; returns the data set of pointers."""
        return BaseDataset(worker.receive(self.data), worker.receive(self.targets), self.transform)

    def get(self, user: str | None = None) -> BaseDataset:
        """Fetch rows and targets. Raises GetNotPermittedError where this caller may not read them."""
        return BaseDataset(_fetched(self.data, user), _fetched(self.targets, user), self.transform)

    def federate(self, workers: Sequence[Any]) -> FederatedDataset:
        """Spread it over workers, each a part of the same length; the last one's is shorter, if need be."""
        return federate(self, workers)

    def __repr__(self) -> str:
        return f"<BaseDataset of {len(self)} rows at {'this process' if self.location is None else self.location}>"


def federate(dataset: Any, workers: Sequence[Any]) -> FederatedDataset:
    """Spread any torch data set of pairs (row, target) over workers.

    Raises InvalidDataError where there are too few rows for a part at each.
    """
    workers = tuple(workers)
    if not workers:
        raise InvalidDataError("a data set is federated over at least one worker")
    base = dataset if isinstance(dataset, BaseDataset) else _collected(dataset)
    share = math.ceil(len(base) / len(workers))
    parts = []
    for number, worker in enumerate(workers):
        rows, targets = (part[number * share : (number + 1) * share] for part in (base.data, base.targets))
        if not len(rows):
            raise InvalidDataError(f"{len(base)} rows in parts of {share} do not reach {len(workers)} workers")
        parts.append(BaseDataset(rows, targets, base.transform).send(worker))
    return FederatedDataset(parts)


class FederatedDataset:
    """One data set a worker: `federated["bob"]` is Bob's."""

    def __init__(self, datasets: Sequence[BaseDataset]) -> None:
        """Raises InvalidDataError for a data set that is at no worker, or two at one."""
        self.datasets: dict[str, BaseDataset] = {}
        for dataset in datasets:
            if dataset.location is None:
                raise InvalidDataError("a federated data set is made of data sets at workers: send them first")
            if dataset.location.id in self.datasets:
                raise InvalidDataError(f"two of the data sets are at {dataset.location.id}; put them together first")
            self.datasets[dataset.location.id] = dataset

    @property
    def workers(self) -> list[str]:
        """Ids of the workers, in order."""
        return list(self.datasets)

    def get_dataset(self, worker: str, user: str | None = None) -> BaseDataset:
        """Fetch one worker's part; it leaves the federation. Raises GetNotPermittedError."""
        found = self.datasets[worker].get(user)
        del self.datasets[worker]
        return found

    def __getitem__(self, worker: str) -> BaseDataset:
        return self.datasets[worker]

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets.values())

    def __repr__(self) -> str:
        spread = ", ".join(self.workers)
        return f"FederatedDataset\n    Distributed accross: {spread}\n    Number of datapoints: {len(self)}\n"


class FederatedDataLoader:
    """Batches of a federated data set, as pairs of pointers: `for data, target in loader: data.location`."""

    def __init__(
        self,
        federated_dataset: FederatedDataset,
        batch_size: int = 8,
        shuffle: bool = False,
        num_iterators: int = 1,
        drop_last: bool = False,
        iter_per_worker: bool = False,
    ) -> None:
        """One worker's batches come after the other's.

        `num_iterators` workers at a time give a batch each, as {worker: (data, target)}; with `iter_per_worker` all
        do. Who has no more rows is left out, and the next one takes the turn. `drop_last` leaves out a worker's last
        batch if it is shorter. Raises InvalidDataError for numbers below 1.
        """
        if batch_size < 1 or num_iterators < 1:
            raise InvalidDataError("batch_size and num_iterators are at least 1")
        self.federated_dataset = federated_dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_iterators = len(federated_dataset.workers) if iter_per_worker else num_iterators
        self.iter_per_worker = iter_per_worker

    @property
    def workers(self) -> list[str]:
        """Ids of the workers, in order."""
        return self.federated_dataset.workers

    def __len__(self) -> int:
        """How many times an iteration gives something."""
        counts = [self._count(len(dataset)) for dataset in self.federated_dataset.datasets.values()]
        turns = [0] * min(self.num_iterators, len(counts))
        for count in counts:  # whoever is through first takes the next worker
            turns[turns.index(min(turns))] += count
        return max(turns, default=0)

    def __iter__(self) -> Iterator[Any]:
        if self.num_iterators == 1 and not self.iter_per_worker:
            for dataset in self.federated_dataset.datasets.values():
                yield from self._batches(dataset)
            return
        waiting = [self._batches(dataset) for dataset in self.federated_dataset.datasets.values()]
        running, waiting = waiting[: self.num_iterators], waiting[self.num_iterators :]
        while running:
            batches = {}
            for place, iterator in enumerate(running):
                batch = next(iterator, None)
                while batch is None and waiting:
                    iterator = running[place] = waiting.pop(0)
                    batch = next(iterator, None)
                if batch is not None:
                    batches[batch[0].location] = batch
            if not batches:
                return
            yield batches

    def _count(self, rows: int) -> int:
        return rows // self.batch_size if self.drop_last else math.ceil(rows / self.batch_size)

    def _batches(self, dataset: BaseDataset) -> Iterator[Batch]:
        order = torch.randperm(len(dataset)) if self.shuffle else None
        for number in range(self._count(len(dataset))):
            rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
            yield dataset[rows if order is None else order[rows]]


def _place(tensor: Any) -> Any:
    return tensor.location if isinstance(tensor, RemoteTensor) else None


def _fetched(tensor: Any, user: str | None) -> Any:
    found = tensor.get(user=user) if isinstance(tensor, RemoteTensor) else tensor
    return found.unwrap() if isinstance(found, PrivateTensor) else found


def _collected(dataset: Any) -> BaseDataset:
    rows, targets = zip(*(dataset[number] for number in range(len(dataset))), strict=True)
    return BaseDataset(torch.stack([torch.as_tensor(row) for row in rows]), torch.as_tensor(targets))
