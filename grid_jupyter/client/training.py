"""`grid.train`: federated training over what a search found, by jobs on each Node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from grid_jupyter.aggregation.strategies import FedAvg, FedBuff, Strategy
from grid_jupyter.client.federation import AfterRound, LocalSteps, OpenJob, fit
from grid_jupyter.client.fits import Fit, HeldOut, Metric
from grid_jupyter.client.local_jobs import LocalJob
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.node_jobs import NodeJob
from grid_jupyter.client.submitting import check_moves, example_of, place_of
from grid_jupyter.client.virtual import VirtualWorker
from grid_jupyter.errors import BadRequest, InvalidDataError
from grid_jupyter.plans.models import loss_plan
from grid_jupyter.plans.optimisers import optimiser_of
from grid_jupyter.plans.plan import BATCHES, Plan
from grid_jupyter.tensors.text import plain

Found = Mapping[str, Any]
"""What a search gives: pointers by the name of their Node."""
_BESIDE = {"#X": "#Y", "#data": "#target"}
"""Tags of rows, and of the targets beside them."""


class Searchable(Protocol):
    """A grid, as far as a training needs it."""

    def search(self, *tags: str) -> dict[str, list[Any]]:
        """Pointers by the name of their Node."""


class Trains:
    """What grids have for training: `train`."""

    def train(
        self: Searchable,
        model: torch.nn.Module,
        loss: Any,
        *,
        data: Any,
        rounds: int,
        optimizer: Any,
        local_epochs: int = 1,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        strategy: Strategy | None = None,
        held_out: HeldOut | None = None,
        metrics: Mapping[str, Metric] | None = None,
        minimum: int = 1,
        deadline_s: float | None = None,
        sign_off_s: float | None = None,
        reason: str = "",
        checkpoint: str | Path | None = None,
        live: bool = True,
        after_round: AfterRound | None = None,
    ) -> Fit:
        """Train a copy of `model` on the rows of many Nodes, which stay there.

        `optimizer` is one of torch's, or `SGD(…)` and `Adam(…)`; each round begins with a fresh one.
        `data` says where rows and targets are: what a search for "#X" found, whose Nodes have the targets under the
        same other tags and "#Y" (or "#data" and "#target"); or `(found_x, found_y)`; or `{name: (x, y)}`. Each round,
        every Node trains by `optimizer` for `local_epochs` from the weights of the moment, as a job that its owners
        have signed off (a Node whose owners refuse is left out, with the reason), and `strategy` (FedAvg) makes one
        model of it.

        `loss(scores, targets)` is a scalar tensor. After each round the model is tried on `held_out`, rows and
        targets of the caller's own, by `metrics`, functions of (scores, targets); without them, by accuracy where
        the targets are classes.

        A round ends when all Nodes have answered that answered before, or after `deadline_s` seconds; it needs
        `minimum` answers. A late answer is not folded. `sign_off_s` is how long to wait for owners; without it, until
        they have decided. With `checkpoint` the same call goes on where it was, also in another process. With
        `live` a notebook shows a bar and the plot as it grows, a terminal a bar; `after_round(fit)` is called behind
        each round, and ends the training by returning something true.

        Raises BadRequest for what does not fit together, GridError where owners refuse, NodeUnavailableError for a
        round with too few answers.
        """
        strategy = FedAvg() if strategy is None else strategy
        if rounds < 1 or local_epochs < 1 or batch_size < 1:
            raise BadRequest("rounds, local_epochs and batch_size are 1 or more")
        if deadline_s is not None and not deadline_s > 0:
            raise BadRequest("deadline_s is a number of seconds, more than 0")
        found = pairs(self, data)
        plans: dict[Any, Plan] = {}
        nodes = {name: _opener(x, y, model, loss, batch_size, plans) for name, (x, y) in found.items()}
        check_moves(optimizer, model, {name for name, one in model.named_parameters() if one.requires_grad})
        steps = LocalSteps(
            optimizer=optimiser_of(optimizer),
            epochs=local_epochs,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            rounds=rounds,
            asked=strategy.goal if isinstance(strategy, FedBuff) else 1,
            proximal=strategy.proximal,
            corrected=strategy.corrected,
            reason=reason,
        )
        return fit(
            model, loss, nodes, steps, strategy, held_out=held_out, metrics=metrics, minimum=minimum,
            deadline_s=deadline_s, sign_off_s=sign_off_s, checkpoint=checkpoint, live=live,
            after_round=after_round,
        )  # fmt: skip


def pairs(grid: Searchable, data: Any) -> dict[str, tuple[Any, Any]]:
    """Rows and targets by the name of their Node. Raises InvalidDataError naming the Node where that is not clear."""
    if isinstance(data, Mapping) and data and all(isinstance(one, tuple) and len(one) == 2 for one in data.values()):
        found: dict[str, tuple[Any, Any]] = dict(data)
    else:
        rows, targets = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
        if not isinstance(rows, Mapping) or not (targets is None or isinstance(targets, Mapping)):
            raise BadRequest("data= is what a search found, or a pair of such, or {name: (x, y)}")
        ones = {name: only_one(name, pointers) for name, pointers in rows.items()}
        found = {}
        for name, x in ones.items():
            if targets is not None:
                if name not in targets:
                    raise InvalidDataError(f"{plain(name)} has rows, and no targets among what was found")
                found[name] = x, only_one(name, targets[name])
            else:
                found[name] = x, _beside(grid, name, x)
    if not found:
        raise InvalidDataError("nothing was found to train on: look at the tags, and at who may compute there")
    return found


def only_one(name: str, pointers: Any) -> Any:
    """The pointer that a search found at a Node. Raises InvalidDataError where it found several."""
    if not isinstance(pointers, Sequence) or isinstance(pointers, torch.Tensor):
        return pointers
    if len(pointers) != 1:
        raise InvalidDataError(
            f"{plain(name)} has {len(pointers)} data sets with these tags: add a tag, or give {{name: (x, y)}}"
        )
    return pointers[0]


def _beside(grid: Searchable, name: str, rows: Any) -> Any:
    """The targets of the same Node that carry the tags of the rows, with #Y for #X, or #target for #data."""
    tags = tuple(getattr(rows, "tags", ()))
    if not any(one in _BESIDE for one in tags):
        raise InvalidDataError(
            f"the rows at {plain(name)} have no tag #X, so their targets cannot be found: give data=(found_x, found_y)"
        )
    wanted = tuple(_BESIDE.get(one, one) for one in tags)
    at_node = [one for one in grid.search(*wanted).get(name, []) if set(one.tags) == set(wanted)]
    if len(at_node) != 1:
        raise InvalidDataError(
            f"{plain(name)} has {len(at_node)} data sets with the tags {' '.join(map(plain, wanted))}, and one holds "
            f"the targets: give data=(found_x, found_y)"
        )
    return at_node[0]


def _opener(
    rows: Any, targets: Any, model: torch.nn.Module, loss: Any, batch_size: int, plans: dict[Any, Plan]
) -> OpenJob:
    """Who opens the job at the place of these data. Nodes whose rows look alike get the same plan, captured once."""
    place = location_of(rows)
    if place is not location_of(targets):
        raise InvalidDataError("rows and targets of a training lie at one Node")
    if isinstance(place, VirtualWorker):
        return lambda model, loss, steps, job: LocalJob(model, loss, rows, targets, steps)
    if not isinstance(place, NodeClient):
        raise BadRequest("a training takes pointers to what Nodes have published, or to data of VirtualWorkers")
    examples = example_of(place_of(rows)), example_of(place_of(targets))
    form = tuple((one.dtype, one.shape) for one in examples)
    if form not in plans:
        plans[form] = loss_plan(model, loss, inputs=examples, batch=(1, max(batch_size, BATCHES[1])))
    plan = plans[form]
    return lambda model, loss, steps, job: NodeJob.open(place, plan, model, {"x": rows, "y": targets}, steps, job)


def location_of(data: Any) -> Any:
    """The Node or worker of a pointer, or of a table and its columns."""
    return getattr(data[0] if isinstance(data, tuple) else data, "location", None)
