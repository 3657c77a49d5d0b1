"""A job as who submitted it, or who owns its data, sees it: how it stands, its result, its rounds."""

from __future__ import annotations

import copy
import html
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import torch

from grid_jupyter.client.packed import Weights, named, packed
from grid_jupyter.client.watching import Watch
from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    GetNotPermittedError,
    NodeUnavailableError,
    RemoteOperationError,
    ResponseSignatureError,
    SessionLostError,
)
from grid_jupyter.link.bulk import download, of_memory, upload
from grid_jupyter.link.client import WebSocketLink
from grid_jupyter.link.http import Address, call, transfer
from grid_jupyter.link.room import Room
from grid_jupyter.ops.raw import from_bytes, to_bytes
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.jobs import INLINE_BYTES, JobInfo, Part, offsets
from grid_jupyter.wire.messages import Round, Rounded
from grid_jupyter.wire.safetensors import PREFIX_BYTES, header_length, parse_header

WAITING = frozenset({"waiting", "queued", "running", "held"})
"""States of a job that is not over."""
_TRIES = 3
_LOOK_S = 20


class Holder(Protocol):
    """A Node's client, as jobs need it."""

    id: str
    address: Address

    def token_of(self, user: str | None) -> str:
        """The credential of a user, or of the client."""

    def connect(self) -> WebSocketLink:
        """A session of its own, for rounds."""


class RoundResult(NamedTuple):
    """What a Node made of a round: weights by name, the last epoch's loss and metrics, rows and steps of the round."""

    weights: dict[str, torch.Tensor]
    metrics: dict[str, float]
    rows: int
    steps: int


class Job:
    """Training at one Node, made by `node.submit(…)`. What it shows is asked for anew by `state` and `refresh()`."""

    def __init__(
        self, node: Holder, info: JobInfo, model: torch.nn.Module | None = None, user: str | None = None
    ) -> None:
        self.node = node
        self._info = info
        self._model = model
        self._user = user
        self._link: WebSocketLink | None = None
        self._posted: tuple[int, int] | None = None
        self._number = info.rounds_done
        self._room = Room()

    @property
    def id(self) -> str:
        """By which the Node knows it. For others it leads nowhere."""
        return self._info.id

    @property
    def info(self) -> JobInfo:
        """What was known of it last."""
        return self._info

    def refresh(self) -> JobInfo:
        """Ask the Node how it stands."""
        return self._ask("GET", "")

    def _ask(self, method: str, query: str) -> JobInfo:
        token = self.node.token_of(self._user)
        where = f"/data-centric/jobs/{self.id}{query}"
        try:
            self._info = call(self.node.address, method, where, token=token, kind=JobInfo)
        except NodeUnavailableError as error:
            raise NodeUnavailableError(
                f"{error} What was submitted is kept, and goes on when its Node is back: ask again then, from another "
                f"kernel by node.job({self.id!r}); if the Node is gone for good, submit elsewhere"
            ) from None
        return self._info

    @property
    def state(self) -> str:
        """waiting (for its sign-off), queued, running, held (for its release), done, denied, cancelled, failed or
        expired. Asks the Node."""
        return self.refresh().state

    @property
    def said(self) -> str:
        """Why it is in this state, and what to do, as it was known last."""
        return self._info.said

    @property
    def progress(self) -> float | None:
        """From 0 to 1; None while that is not released. Asks the Node."""
        return self.refresh().progress

    def log(self) -> list[str]:
        """What happened to it, with times."""
        return [f"{_time(line.at)}  {plain(line.text, 1000)}" for line in self.refresh().log]

    def history(self) -> Any:
        """Loss and metrics of each epoch (of the last one of each round), a pandas DataFrame.

        Raises GetNotPermittedError while they are not released.
        """
        import pandas

        found = self.refresh().history
        if found is None:
            raise GetNotPermittedError(
                f"metrics of this job are values, and not released: it is {self._info.state}. Its data's owners can "
                f"allow them for every epoch, or release them with the result"
            )
        frame = pandas.DataFrame(list(found))
        frame.index = pandas.RangeIndex(1, len(frame) + 1, name="round" if self._info.arguments.rounds > 1 else "epoch")
        return frame

    def plan(self) -> bytes:
        """The plan as it was submitted: what its SHA-256 in `info.plan` names."""
        where = f"/data-centric/jobs/{self.id}/plan"
        return bytes(transfer(self.node.address, "GET", where, token=self.node.token_of(self._user)))

    # -------------------------------------------------------------- to the end

    def wait(self, timeout_s: float | None = None, *, until: frozenset[str] | None = None) -> Job:
        """Wait until the job is over, or in one of the states that are named, or has waited long enough.

        It is itself what is returned; nothing is raised for a job that failed: `state` and `said` tell.
        """
        for _ in self._looks(timeout_s, until):
            pass
        return self

    def watch(self, timeout_s: float | None = None, *, live: bool = True) -> Job:
        """As `wait`, with a bar of its epochs (or rounds) in notebooks and terminals, and with `live` in a notebook the
        curves of loss and metrics as they grow, as far as they are released."""
        arguments = self._info.arguments
        many = arguments.rounds > 1
        watch = Watch("round" if many else "epoch", arguments.rounds if many else arguments.epochs, live=live)
        seen = 0
        try:
            for info in self._looks(timeout_s, None):
                watch.says(plain(info.state))
                history = info.history or ()
                if len(history) > seen:
                    seen = len(history)
                    watch.at(list(enumerate(history, 1)))
        finally:
            watch.close()
        return self

    def _looks(self, timeout_s: float | None, until: frozenset[str] | None) -> Iterator[JobInfo]:
        """How it stands, whenever that changed, to its end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            yield self._info
            over = self._info.state not in WAITING or (until is not None and self._info.state in until)
            left = _LOOK_S if deadline is None else min(_LOOK_S, deadline - time.monotonic())
            if over or left <= 0:
                return
            self._ask("GET", f"?seen={self._info.change}&wait_s={max(1, round(left)) if left >= 1 else 0}")
            if left < 1 and self._info.state in WAITING:
                time.sleep(min(0.05, left))

    def result(self, timeout_s: float | None = None) -> torch.nn.Module:
        """The trained model: a copy of the one that was submitted, with the weights that came out. Waits for it.

        Raises GetNotPermittedError while it is not released, RemoteOperationError for a job that failed; both say why.
        """
        if self._model is None:
            raise BadRequest("this job was not submitted from here with a module: take its weights, job.weights()")
        weights = self.weights(timeout_s)
        made = copy.deepcopy(self._model)
        made.load_state_dict(weights, strict=False)
        return made

    def weights(self, timeout_s: float | None = None) -> dict[str, torch.Tensor]:
        """The weights that came out, by their names in the model. Raises as `result`."""
        reads = self._info.history is not None  # who may read all the data need not wait for a release
        self.wait(timeout_s, until=frozenset({"held"}) if reads else None)
        info = self._info
        if info.state not in ("done", "held"):
            why = f"this job is {info.state}{f': {plain(info.said, 1000)}' if info.said else ''}"
            raise (Conflict if info.state in WAITING else RemoteOperationError)(why)
        token = self.node.token_of(self._user)
        headers = {"Authorization": f"Bearer {token}"}
        data = download(self.node.address, f"/data-centric/jobs/{self.id}/result", headers, "fetching")
        return _read(data, info.model)

    def cancel(self) -> Job:
        """End it at once, or delete its result. Does nothing to a job that is over otherwise."""
        self._hang_up()
        self._ask("DELETE", "")
        return self

    def finish(self) -> Job:
        """End a job of many rounds, of which no more are needed: it is done, and says after how many. One that has
        computed none is cancelled."""
        self._hang_up()
        self._ask("DELETE", "?finished=1")
        return self

    # -------------------------------------------------------------- rounds

    def round(self, weights: Weights, *, number: int | None = None, correction: Weights | None = None) -> RoundResult:
        """One round of a job of many: train from these weights on, and take what came out.

        `number` is what the order of rows follows from, besides the seed; by default it counts. With `corrected`,
        `correction` is added to every gradient. Raises Conflict where the job does not run (yet, or any more),
        RemoteOperationError where training failed.
        """
        for _ in range(_TRIES - 1):
            try:
                self.begin_round(weights, number=number, correction=correction)
                return self.end_round()
            except SessionLostError:  # the Node answers the same round once more
                number = self._number if number is None else number
                self._hang_up()
        self.begin_round(weights, number=number, correction=correction)
        return self.end_round()

    def begin_round(self, weights: Weights, *, number: int | None = None, correction: Weights | None = None) -> None:
        """Send a round off, without waiting for what comes of it: `end_round` does. Raises as `round`."""
        if self._posted is not None:
            raise Conflict("a round of this job is under way: end_round() waits for it")
        arguments, model = self._info.arguments, self._info.model
        if (correction is not None) != arguments.corrected:
            raise BadRequest("a job brings corrections if it was submitted with corrected=True, and only then")
        parts = [packed(model, weights)] + ([] if correction is None else [packed(model, correction)])
        data = to_bytes(parts[0] if len(parts) == 1 else torch.cat(parts))
        link = self._link = self._link or self.node.connect()
        self._number = self._number + 1 if number is None else number
        message = Round(job=self.id, number=self._number, bulk=offsets(model)[1] > INLINE_BYTES)
        if message.bulk:
            where = f"/data-centric/jobs/rounds/{self._number}"
            secret = {"X-Grid-Session": link.welcome.session}
            upload(self.node.address, where, f"?job={self.id}", of_memory(b"", data), len(data), secret, "sending")
            self._posted = link.ask_later(message), self._number
        else:
            self._posted = link.ask_later(message, data), self._number

    def end_round(self) -> RoundResult:
        """Wait for the round that was begun. Raises as `round`, and SessionLostError where the connection was lost."""
        if self._posted is None or self._link is None:
            raise Conflict("no round of this job is under way: begin_round(weights) begins one")
        (number, _), self._posted = self._posted, None
        answer = self._link.answer(number)
        if answer is None:
            raise SessionLostError("the answer to a round was lost; ask for the same round again")
        reply, payload = answer
        if not isinstance(reply, Rounded):
            raise ResponseSignatureError("the Node answered a round with something else; its version may differ")
        data = self._link.download(reply.bulk, self._room) if reply.bulk else payload
        flat = from_bytes(bytearray(data) if not reply.bulk else data, "uint8", (len(data),))
        return RoundResult(named(flat, self._info.model), reply.metrics, reply.rows, reply.steps)

    def _hang_up(self) -> None:
        link, self._link, self._posted = self._link, None, None
        if link is not None:
            link.close()

    # -------------------------------------------------------------- shown

    def __repr__(self) -> str:
        info = self._info
        said = f": {plain(info.said)}" if info.said else ""
        done = f", {info.progress:.0%}" if info.progress else ""
        return f"<Job {plain(info.id)} at {plain(info.node)}, by {plain(info.by)}, {plain(info.state)}{done}{said}>"

    def _repr_html_(self) -> str:
        info = self._info
        arguments = info.arguments
        lines = {
            "State": info.state + (f": {plain(info.said, 1000)}" if info.said else ""),
            "Node": info.node,
            "Submitted by": f"{info.by}, {_time(info.created)}",
            "Reason": info.reason,
            "Plan": f"{info.kind}, {info.plan[:16]}…" + (", a whole step" if info.kind == "step" else ""),
            "Model": f"{len(info.model)} tensors, {info.model_bytes} bytes",
            "Data": ", ".join(f"{name}: data set {rows.dataset}" for name, rows in info.data.items())
            + f" ({info.rows} rows of {', '.join(info.owners)})",
            "Training": f"{arguments.rounds} × {arguments.epochs} epochs, batches of {arguments.batch_size}, "
            f"{arguments.optimizer}",
            "Progress": "not released" if info.progress is None else f"{info.progress:.0%}",
        }
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(plain(text, 1000))}</td></tr>"
            for name, text in lines.items()
            if text
        )
        return f"<b>Job {html.escape(plain(info.id))}</b><table>{rows}</table>"


# ------------------------------------------------------------------ weights


def _read(data: memoryview, model: tuple[Part, ...]) -> dict[str, torch.Tensor]:
    """The weights of a result, which is read as hostile. Raises InvalidDataError, ResponseSignatureError."""
    prefix = bytes(data[:PREFIX_BYTES])
    length = header_length(prefix, len(data))
    tensors = {
        one.name: one for one in parse_header(prefix, bytes(data[PREFIX_BYTES : PREFIX_BYTES + length]), len(data))
    }
    found = {}
    for number, part in enumerate(model):
        one = tensors.get(f"w/{number}")
        if one is None or (one.dtype, one.shape) != (part.dtype, part.shape):
            raise ResponseSignatureError("the result is not of the model's form; the Node's version may differ")
        found[part.name] = from_bytes(bytearray(data[one.begin : one.end]), one.dtype, one.shape)
    return found


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
