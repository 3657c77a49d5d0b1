"""What each form of diff costs, and what it is worth: bytes of a report, and the accuracy that is reached with it."""

from __future__ import annotations

import gzip

import numpy
import torch

from benchmarks.federated_problem import Case, accuracy, local_epoch, small
from benchmarks.results import Result
from benchmarks.scale import Scale
from grid_jupyter.aggregation.diffs import FORMS, packed, restored, unpacked
from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import Form
from grid_jupyter.client.tensor_files import Array, write_arrays

MEANING = """\
Ten devices train scikit-learn's digits as in `federated_jobs`, *small* (64-64-10, batches of 32, one local epoch a \
round, 50 rounds), and hand in their diffs in each of the forms that a Node takes; the diffs are unpacked, checked and \
folded as the Node does it. Bytes are those of one device's report in the last round, as a file and gzip'ed (level 1, \
as devices do). `topk` sends a twentieth, or a hundredth, of each tensor's values in half precision, each with its \
place in 32 bits, and keeps the rest for later rounds."""

_WAYS = (*((kind, 0.05) for kind in FORMS), ("topk", 0.01))


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    case = small()
    found = {way: _trained(case, *way, scale(case.rounds, 1)) for way in _WAYS}
    plain, file = found[_WAYS[0]][0], found[_WAYS[0]][1]
    results = []
    for (kind, keep), (reached, data) in found.items():
        name = f"{kind}, {keep:.0%}" if kind == "topk" else kind
        results += [
            Result(what=f"{name}: accuracy on held-out rows", value=reached, unit="", baseline=plain, against=FORMS[0]),
            Result(what=f"{name}: a report", value=len(data) / 1e3, unit="kB", baseline=len(file) / 1e3,
                   against=FORMS[0]),
            Result(what=f"{name}: a report, gzip'ed", value=len(gzip.compress(data, 1)) / 1e3, unit="kB",
                   baseline=len(file) / 1e3, against=FORMS[0]),
        ]  # fmt: skip
    return results


def _trained(case: Case, kind: str, keep: float, rounds: int) -> tuple[float, bytes]:
    """The accuracy that a training comes to, and the last report."""
    model, data = case.network(), b""
    weights = _arrays(model)
    form = Form.of(weights)
    left: list[dict[str, Array]] = [{} for _ in case.shards]
    random = numpy.random.default_rng(0)
    for round_ in range(1, rounds + 1):
        fold = Fold(form)
        for shard, residual in zip(case.shards, left, strict=True):
            _load(model, weights)
            local_epoch(model, shard, round_)
            diff = {name: weights[name] - array for name, array in _arrays(model).items()}
            whole = {name: array + residual.get(name, 0) for name, array in diff.items()}
            arrays = packed(whole, kind, random, keep=keep)
            if kind == "topk":
                sent = restored(arrays, whole)
                residual.update({name: array - sent[name] for name, array in whole.items()})
            fold.add(unpacked(arrays, form), len(shard[1]))
            data = write_arrays(arrays)
        weights = {name: weights[name] - change for name, change in fold.mean().items()}
    _load(model, weights)
    return accuracy(model, case.held_out), data


def _arrays(model: torch.nn.Module) -> dict[str, Array]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def _load(model: torch.nn.Module, weights: dict[str, Array]) -> None:
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
