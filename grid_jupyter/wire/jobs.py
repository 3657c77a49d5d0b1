"""What clients and Nodes say to each other about jobs: what is submitted, and how it stands. HTTP bodies, JSON.

A job's weights travel as one flat run of bytes (`offsets`): in the order of its model, each tensor at a multiple of
16 bytes. That is what a round of a session carries, both ways.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from grid_jupyter.wire.dtypes import nbytes
from grid_jupyter.wire.limits import MAX_COLUMNS, MAX_NAME_CHARS, MAX_RANK, MAX_REASON_CHARS
from grid_jupyter.wire.messages import Message

ALIGNED = 16
"""Bytes at whose multiples the tensors of flat weights begin."""
INLINE_BYTES = 2 << 20
"""Weights of up to so many bytes travel inside the frames of a round; larger ones by HTTP beside them."""

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53))]
_Key = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class Part(Message, frozen=True):
    """One tensor of a model: a parameter or a buffer of its plan."""

    name: _Name
    dtype: _Name
    shape: Annotated[tuple[_Number, ...], msgspec.Meta(max_length=MAX_RANK)]


class Rows(Message, frozen=True):
    """Where one input of a plan lies: a tensor of a data set, whose first dimension are its rows; or, with `columns`,
    one-dimensional tensors of it that are put side by side."""

    dataset: int
    version: int
    tensors: Annotated[tuple[_Name, ...], msgspec.Meta(min_length=1, max_length=MAX_COLUMNS)]
    columns: bool = False


class Arguments(Message, frozen=True):
    """How a plan is run. `epochs` are those of one round; each round begins with a fresh optimiser.

    `numbers` are the optimiser's: lr, momentum, dampening, nesterov, weight_decay, beta1, beta2, eps. `proximal` is
    FedProx's μ: μ/2 · |w − w₀|² is added to the loss, w₀ being what the round began with. With `corrected` a round
    brings a second run of weights, which is added to every gradient (SCAFFOLD).
    """

    optimizer: _Name = "sgd"
    numbers: dict[_Name, float] = msgspec.field(default_factory=dict)
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 32
    shuffle: bool = True
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 53))] = 0
    metrics: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=32)] = ()
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    proximal: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    corrected: bool = False


class Submit(Message, frozen=True):
    """POST /data-centric/jobs: ask for a job. Reply: JobInfo.

    `upload` is the id of the upload that brought plan and weights, and makes a retry harmless: the same submission
    twice is one job. It is a safetensors file of the tensor `plan`, the plan's bytes as uint8, and the weights
    `w/0`, `w/1` … in the plan's order: its parameters, then its buffers. `device` is one of the Node's, empty: which
    has room; `device_fraction` of its memory is asked for, 0: what the Node gives by default.
    """

    upload: _Key
    data: Annotated[dict[_Name, Rows], msgspec.Meta(min_length=1, max_length=2)]
    arguments: Arguments = Arguments()
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)] = ""
    device: Annotated[str, msgspec.Meta(max_length=16)] = ""
    device_fraction: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0


class LogLine(Message, frozen=True):
    """Something that happened to a job."""

    at: float  # UTC seconds
    text: str


class JobInfo(Message, frozen=True):
    """How a job stands, as far as the one who asks may know.

    `history` and `progress` are values: None where their release is not decided, or was refused.
    """

    id: str
    state: str
    change: int  # grows with each change: a wait names the one that was seen
    by: str
    reason: str
    said: str  # why it is in this state, and what to do
    node: str
    plan: str  # the plan's SHA-256
    binding: str  # what an approval is bound to
    kind: str  # the plan's
    arguments: Arguments
    model: tuple[Part, ...]
    model_bytes: int
    data: dict[str, Rows]
    device: str  # that was asked for
    device_fraction: float
    owners: tuple[str, ...]  # of its data
    rows: int
    created: float  # UTC seconds
    began: float | None
    ended: float | None
    expires: float | None
    rounds_done: int
    progress: float | None  # 0 to 1
    history: tuple[dict[str, float], ...] | None
    log: tuple[LogLine, ...]


def offsets(model: tuple[Part, ...]) -> tuple[tuple[int, ...], int]:
    """Where each tensor of flat weights begins, and how many bytes they have."""
    begins = []
    at = 0
    for part in model:
        begins.append(at)
        at += -(-nbytes(part.dtype, part.shape) // ALIGNED) * ALIGNED
    return tuple(begins), at
