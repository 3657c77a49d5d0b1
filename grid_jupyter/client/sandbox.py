"""A sandbox to try things out: six workers in this process, with scikit-learn's data sets spread over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from grid_jupyter.client.grid_jobs import Submits
from grid_jupyter.client.listings import FoundAt
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.training import Trains
from grid_jupyter.client.virtual import TorchHook, VirtualWorker
from grid_jupyter.errors import BadRequest

_NAMES = ("bob", "theo", "jason", "alice", "andy", "jon")
_DATASETS = {
    "load_iris": ("#iris",),
    "load_digits": ("#digits",),
    "load_wine": ("#wine",),
    "load_diabetes": ("#diabetes",),
    "load_breast_cancer": ("#breast_cancer", "#cancer"),
}


class PrivateGridNetwork(Trains, Submits):
    """Workers that are known here, searched as a Network is: `PrivateGridNetwork(bob, alice).search("#iris")`."""

    def __init__(self, *workers: Any) -> None:
        self.workers: dict[str, Any] = {worker.id: worker for worker in workers}
        self._held: dict[str, list[Any]] = {name: [] for name in self.workers}

    def load(self, worker: Any, tensor: torch.Tensor, *tags: str, description: str = "") -> Any:
        """Copy a tensor to one of the workers, to be found by its tags, for as long as the grid lives."""
        if worker not in self.workers.values() or isinstance(worker, NodeClient):
            raise BadRequest("a grid loads data into its own VirtualWorkers; publish(…) is how Nodes get theirs")
        pointer = worker.receive(tensor)
        pointer.tags, pointer.description = tags, description
        worker.shelf.call(pointer.id_at_location, tags, description)  # so that the worker finds it, too
        self._held[worker.id].append(pointer)
        return pointer

    def search(self, *tags: str) -> dict[str, list[Any]]:
        """Pointers to what carries all of these tags, by the id of the worker; workers without any are left out."""
        found = FoundAt[Any]()
        for name, worker in self.workers.items():
            if isinstance(worker, NodeClient):
                pointers = worker.search(*tags)
            else:
                pointers = [one for one in self._held[name] if set(tags) <= set(one.tags)]
            if pointers:
                found[name] = pointers
        return found

    def __repr__(self) -> str:
        return f"<PrivateGridNetwork of {', '.join(self.workers)}>"


def make_hook(names: dict[str, Any]) -> TorchHook:
    """Hook torch and put `hook`, `me` and `torch` among the names; `make_hook(globals())`."""
    hook = TorchHook(torch)
    names.update(hook=hook, me=hook.local_worker, torch=torch)
    return hook


def create_sandbox(names: dict[str, Any], verbose: bool = True, download_data: bool = True) -> None:
    """`create_sandbox(globals())`: hook torch, make the workers bob, theo, jason, alice, andy and jon, spread the data
    sets iris, digits, wine, diabetes and breast cancer over them, and put all that, `workers` and `grid` among the
    names. Nothing is downloaded, scikit-learn has them; `download_data=False` leaves them out.

    Raises ImportError without scikit-learn.
    """
    say: Callable[[str], None] = print if verbose else lambda text: None
    say("Setting up Sandbox...")
    say("\t- Hooking PyTorch")
    hook = make_hook(names)
    say("\t- Creating Virtual Workers:")
    workers = []
    for name in _NAMES:
        say(f"\t\t- {name}")
        workers.append(VirtualWorker(hook, id=name))
    grid = PrivateGridNetwork(*workers)
    names.update(grid.workers, workers=workers, grid=grid)
    if download_data:
        say("\tDistributing Datasets Amongst Workers:")
        for title, tensors in _loaded():
            say(f"\t\t- {title}")
            for (tags, description), tensor in tensors.items():
                for worker, part in zip(workers, torch.tensor_split(tensor, len(workers)), strict=True):
                    grid.load(worker, part.contiguous(), *tags, description=description)
    say("Done!")


def _loaded() -> Iterator[tuple[str, Mapping[tuple[tuple[str, ...], str], torch.Tensor]]]:
    """Title, and rows and targets by tags and description, of each data set. Rows are shuffled, the same each time."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("the sandbox's data sets need scikit-learn: pip install 'grid-jupyter[lab]'") from error
    loaders: dict[str, Callable[[], Any]] = {
        "load_iris": datasets.load_iris,
        "load_digits": datasets.load_digits,
        "load_wine": datasets.load_wine,
        "load_diabetes": datasets.load_diabetes,
        "load_breast_cancer": datasets.load_breast_cancer,
    }
    for name, tags in _DATASETS.items():
        found = loaders[name]()
        text = str(found.DESCR)
        title = next(line.strip(" *") for line in text.splitlines() if line.strip() and not line.startswith(".."))
        data, target = torch.tensor(found.data).float(), torch.tensor(found.target).float()
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        yield title, {((*tags, "#data"), text): data[order], ((*tags, "#target"), text): target[order]}
