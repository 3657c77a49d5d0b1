"""What a Node and one of its Workers say to each other; operations pass between them undecoded.

A request travels as `[request_id, message]`, its reply with the same id. File descriptors travel beside
the frame that names them (worker/channel.py). These messages never leave the Node's machine.
"""

from __future__ import annotations

from typing import Union

import msgspec

from grid_jupyter.wire import frames
from grid_jupyter.wire.jobs import Arguments
from grid_jupyter.wire.messages import Failed, Layout


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages between Node and Worker."""


class Mapped(Message, frozen=True):
    """One tensor inside a data set's file: its bytes are file[begin:end]."""

    value: int
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    name: str = ""  # in the data set


class Load(Message, frozen=True, tag="load"):
    """Map tensors of a data set from the descriptor sent along, as source number `source`. Reply: Done."""

    source: int
    tensors: tuple[Mapped, ...]


class Close(Message, frozen=True, tag="close"):
    """These sources, of all that there are, may not be read by the session's caller. Reply: Done."""

    sources: tuple[int, ...]


class TakeIn(Message, frozen=True, tag="take-in"):
    """Take in bytes from the pipe sent along, which must not block, until its other end is closed: then they are not
    needed any more. Reply: Done, when there is room for them."""

    number: int
    nbytes: int


class Receive(Message, frozen=True, tag="receive"):
    """Take in a tensor: the client's, or what derives from these sources. Its bytes are what was taken in under the
    number `taken`, all of which is sent by now; with 0 they are in the descriptor sent along, whose length is fixed.
    Reply: Done."""

    value: int
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[int, ...] = ()
    taken: int = 0


class Fetch(Message, frozen=True, tag="fetch"):
    """Hand a value to the Node, which decides on its release. Reply: Fetched, or Broken."""

    value: int


class Measure(Message, frozen=True, tag="measure"):
    """Layouts that depend on values, for the Node to decide on. Reply: Measured, or Broken."""

    values: tuple[int, ...]


class Explain(Message, frozen=True, tag="explain"):
    """How a value was computed, as far as that is still known. Reply: Explained."""

    value: int


class Count(Message, frozen=True, tag="count"):
    """How many values live. Reply: Counted."""


class Stored(Message, frozen=True):
    """One tensor in the file of descriptor number `file`: its bytes are file[begin:end]."""

    file: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Source(Message, frozen=True):
    """One input of a plan: a tensor, or several that are put side by side as `columns`."""

    tensors: tuple[Stored, ...]
    columns: bool


class RunJob(Message, frozen=True, tag="run-job"):
    """Be the Worker of a job, whose plan, weights and data come as descriptors. Reply: Done.

    `state` is the optimiser's, of a job that goes on behind epoch `epoch`. Weights are a model's parameters and
    buffers in its plan's order; in rounds they come and go flat (wire/jobs.py).
    """

    plan: Stored
    arguments: Arguments
    weights: tuple[Stored, ...]
    data: dict[str, Source]
    state: tuple[Stored, ...] = ()
    epoch: int = 0


class RunEpoch(Message, frozen=True, tag="run-epoch"):
    """Train the next epochs. Reply: Trained, with weights and state in a descriptor where `keep`."""

    epochs: int
    keep: bool


class RunRound(Message, frozen=True, tag="run-round"):
    """Train one round from the weights of the payload, or of the descriptor sent along. Reply: Trained with the new
    ones, in the same way."""

    number: int


class Trained(Message, frozen=True, tag="trained"):
    """What epochs gave: loss and metrics of each, and how many rows and steps that were. Weights are the payload
    of a round; what is kept of epochs is a safetensors file of `nbytes` in the descriptor sent along."""

    history: tuple[dict[str, float], ...]
    rows: int
    steps: int
    nbytes: int = 0


class BeginFold(Message, frozen=True, tag="begin-fold"):
    """Fold reports of a training, whose model is in the descriptor sent along, by a strategy of the grid's own, told by
    its name; whatever was folded of it before is forgotten. `buffers` are tensors that no gradient trains. Reply: Done.
    """

    training: int
    strategy: str
    numbers: dict[str, int | float]
    buffers: tuple[str, ...]


class CheckReport(Message, frozen=True, tag="check-report"):
    """Whether a report, in the descriptor sent along, could count. Reply: Done, or why not."""

    training: int
    samples: int
    max_norm: float | None
    forms: tuple[str, ...]


class FoldReport(Message, frozen=True, tag="fold-report"):
    """Fold the next report, in the descriptor sent along. Reply: Done."""

    training: int
    number: int
    samples: int
    staleness: int


class EndFold(Message, frozen=True, tag="end-fold"):
    """Make the checkpoint of a model and of all that was folded. Its descriptor is sent along, behind it those of what
    the strategy has kept, in the order of `slots`. Reply: Folded."""

    training: int
    slots: tuple[str, ...]


class DropFold(Message, frozen=True, tag="drop-fold"):
    """A training is over: what was folded of it is not needed. Reply: Done."""

    training: int


class Folded(Message, frozen=True, tag="folded"):
    """A checkpoint: safetensors files in the descriptors sent along, each with its name and length. The model's has no
    name, others are what the strategy keeps."""

    files: tuple[tuple[str, int], ...]


class Done(Message, frozen=True, tag="done"):
    """It is so."""


class Fault(Message, frozen=True):
    """What failed, and the sources it derives from: only who may read those may learn that it failed."""

    code: str
    error: str
    sources: tuple[int, ...]
    value: int = 0  # the failed operation: id of its first result


class Fetched(Message, frozen=True, tag="fetched"):
    """A value, its bytes as payload or in the descriptor sent along, and the sources it derives from.

    `earlier`, here and below, is what failed before and made no value that would tell of it, one of each lineage.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    sources: tuple[int, ...]
    earlier: tuple[Fault, ...] = ()


class Measured(Message, frozen=True, tag="measured"):
    """Layouts, and the sources they derive from."""

    layouts: tuple[Layout, ...]
    sources: tuple[int, ...]
    earlier: tuple[Fault, ...] = ()


class Broken(Message, frozen=True, tag="broken"):
    """Reply to Fetch and Measure in place of a value that could not be computed."""

    fault: Fault
    earlier: tuple[Fault, ...] = ()


class Step(Message, frozen=True):
    """One step towards a value: its name (`%3`), and what it does with which others. A step that is a tensor of a
    source says which; of values, no step tells anything that the session's own commands do not."""

    name: str
    text: str
    source: int = -1
    tensor: str = ""


class RowBound(Message, frozen=True):
    """A value rests on at most so many rows of a source."""

    source: int
    at_most: int
    total: int


class Explained(Message, frozen=True, tag="explained"):
    """How a value was computed: the steps in order, `result` the name of the last. `left_out` steps are not shown;
    `cut`: what the session was told before is no longer known."""

    steps: tuple[Step, ...]
    result: str
    left_out: int
    cut: bool
    operations: dict[str, int]  # how often each is among the steps
    rows: tuple[RowBound, ...]


class Counted(Message, frozen=True, tag="counted"):
    """Live values."""

    values: int


FoldRequest = BeginFold | CheckReport | FoldReport | EndFold | DropFold
Request = Union[Load, Close, TakeIn, Receive, Fetch, Measure, Explain, Count, RunJob, RunEpoch, RunRound, FoldRequest]
Reply = Union[Done, Fetched, Measured, Broken, Explained, Counted, Trained, Folded, Failed]

request_decoder: msgspec.msgpack.Decoder[tuple[int, Request]] = msgspec.msgpack.Decoder(tuple[int, Request])
reply_decoder: msgspec.msgpack.Decoder[tuple[int, Reply]] = msgspec.msgpack.Decoder(tuple[int, Reply])


class WorkerLimits(Message, frozen=True):
    """What one Worker may use."""

    memory_bytes: int
    operation_s: float
    threads: int
    device: str = "cpu"  # as torch names it, on the Worker's machine
    device_parts: int = 0  # thousandths of that device's memory


class Fork(Message, frozen=True, tag="fork"):
    """To the fork server: start a Worker on the socket sent along."""

    worker: int
    limits: WorkerLimits


class Kill(Message, frozen=True, tag="kill"):
    """To the fork server: end a Worker at once, whatever it does."""

    worker: int


class Lend(Message, frozen=True, tag="lend"):
    """To a fork server that Nodes share: a fork of it is to serve the Node at the socket sent along. `isolation` is how
    it is kept apart, in words."""

    isolation: str


class Borrow(Message, frozen=True, tag="borrow"):
    """To such a fork, before all else: what it and its Workers say goes into the pipe sent along."""


class Ready(Message, frozen=True, tag="ready"):
    """From the fork server: what Workers need is loaded. One that is lent says how it is kept apart, and what release
    of grid_jupyter it is."""

    isolation: str = ""
    version: str = ""


class Ended(Message, frozen=True, tag="ended"):
    """From the fork server: a Worker ended, by a signal where `signal` is not 0; with `no_room` there was no process
    to be had for it, and it never began."""

    worker: int
    signal: int
    status: int
    no_room: bool = False


fork_decoder: msgspec.msgpack.Decoder[Union[Fork, Kill]] = msgspec.msgpack.Decoder(Union[Fork, Kill])
lend_decoder: msgspec.msgpack.Decoder[Lend] = msgspec.msgpack.Decoder(Lend)
borrow_decoder: msgspec.msgpack.Decoder[Borrow] = msgspec.msgpack.Decoder(Borrow)
event_decoder: msgspec.msgpack.Decoder[Union[Ready, Ended]] = msgspec.msgpack.Decoder(Union[Ready, Ended])


def request_frame(request_id: int, message: Request, payload: bytes | memoryview = b"") -> bytes:
    """A request as one frame."""
    return frames.pack(frames.REQUEST, frames.encode((request_id, message)), payload)


def reply_frame(request_id: int, reply: Reply, payload: bytes | memoryview = b"") -> bytes:
    """A reply as one frame."""
    return frames.pack(frames.REPLY, frames.encode((request_id, reply)), payload)
