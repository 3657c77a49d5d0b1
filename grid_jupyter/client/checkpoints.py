"""The file from which a training over a grid goes on after its kernel has died: weights, strategy's state, history.

A safetensors file: `weights/<tensor>`, `state/<slot>/<tensor>`, and the rest as JSON in its metadata. It is written
beside the old one, synced, and renamed, so that a kill leaves the one or the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from grid_jupyter.aggregation.form import Tensors
from grid_jupyter.aggregation.servers import State
from grid_jupyter.errors import BadRequest, InvalidDataError, StorageFullError
from grid_jupyter.wire.files import put_whole

_VERSION = "1"
_WEIGHTS, _STATE = "weights/", "state/"


@dataclass(frozen=True)
class Record:
    """One round, as the history has it."""

    round: int
    participants: tuple[str, ...]
    seconds: float
    figures: Mapping[str, float]
    """Loss and metrics on what was held out, and `train_loss` as far as it was released."""
    left_out: Mapping[str, str]
    """Who did not take part, and why."""
    each: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each Node measured on its own rows, as far as it was released, by its name."""


@dataclass(frozen=True)
class Checkpoint:
    """A training behind some round."""

    training: Mapping[str, str]
    """What must be the same for it to go on: strategy, optimiser, model and so on, each in words."""
    weights: Tensors
    state: State
    history: tuple[Record, ...]
    jobs: Mapping[str, str]
    """Ids of the jobs, by Node."""


def store(path: Path, checkpoint: Checkpoint) -> None:
    """Write it; on the disk when this returns. Raises StorageFullError, BadRequest for a place that cannot be."""
    tensors = {_WEIGHTS + name: _whole(value) for name, value in checkpoint.weights.items()}
    for slot, named in checkpoint.state.items():
        tensors |= {f"{_STATE}{json.dumps(slot)}/{name}": _whole(value) for name, value in named.items()}
    told = {
        "version": _VERSION,
        "training": json.dumps(dict(checkpoint.training)),
        "history": json.dumps([asdict(record) for record in checkpoint.history]),
        "jobs": json.dumps(dict(checkpoint.jobs)),
    }
    try:
        put_whole(path, save(tensors, told), 0o666)
    except FileNotFoundError:
        raise BadRequest(f"there is no folder {path.parent} for the checkpoint") from None
    except OSError as error:
        raise StorageFullError(f"the checkpoint {path} could not be written: {error.strerror}") from None


def load(path: Path, training: Mapping[str, str]) -> Checkpoint | None:
    """What a file holds; None where there is none yet.

    Raises InvalidDataError for a file that is no checkpoint, BadRequest for one of another training, which it names.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # it is no mapping
        if told.get("version") != _VERSION:
            raise InvalidDataError(f"{path} is no checkpoint of a training, or one of another version")
        before: dict[str, str] = json.loads(told["training"])
        history = tuple(_record(one) for one in json.loads(told["history"]))
        jobs: dict[str, str] = json.loads(told["jobs"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidDataError(f"{path} is no checkpoint of a training: {type(error).__name__}") from None
    for what, value in training.items():
        if before.get(what) != value:
            raise BadRequest(
                f"{path} is the checkpoint of another training: its {what} is {before.get(what)}, and here it is "
                f"{value}. Give the same arguments to go on, or another file to begin anew"
            )
    weights, state = _sorted(tensors)
    return Checkpoint(before, weights, state, history, jobs)


def _sorted(tensors: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, NDArray[Any]]]]:
    weights: dict[str, NDArray[Any]] = {}
    state: dict[str, dict[str, NDArray[Any]]] = {}
    decoder = json.JSONDecoder()
    for name, value in tensors.items():
        if name.startswith(_WEIGHTS):
            weights[name.removeprefix(_WEIGHTS)] = value
        else:
            slot, end = decoder.raw_decode(name, len(_STATE))
            state.setdefault(slot, {})[name[end + 1 :]] = value
    return weights, state


def _record(one: Any) -> Record:
    each = one.get("each", {})  # a file of before has none
    return Record(one["round"], tuple(one["participants"]), one["seconds"], one["figures"], one["left_out"], each)


def _whole(value: NDArray[Any]) -> NDArray[Any]:
    return value if value.flags.c_contiguous else numpy.array(value, order="C")
