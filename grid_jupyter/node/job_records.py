"""A job as its Node keeps it while it has not ended: its row, its machine, whoever waits for a change; and what of it
whom is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import msgspec

from grid_jupyter.node import policy
from grid_jupyter.node.job_documents import JobDocument
from grid_jupyter.node.job_machine import Job
from grid_jupyter.node.job_runs import JobWorker
from grid_jupyter.node.policy import Rules
from grid_jupyter.store.jobs import StoredJob
from grid_jupyter.wire.jobs import JobInfo, LogLine
from grid_jupyter.wire.messages import Rounded
from grid_jupyter.worker.devices import WHOLE

MAX_LOG = 200
"""Lines of a job's log that are kept: the first one and the newest."""
MAX_HISTORY = 5_000
"""Epochs of a job whose metrics are kept: the newest."""
_QUIET = {"running": "running", "queued": "queued", "held": "computed", "done": "done"}


class LiveJob:
    """One job. `machine` is how it stands; the row follows with `changed`."""

    def __init__(self, row: StoredJob) -> None:
        self.row = row
        self.document: JobDocument = msgspec.convert(row.document, JobDocument)
        self.machine: Job = msgspec.convert(row.machine, Job)
        self.lock = asyncio.Lock()  # held over a change: events are taken one after the other
        self.round = asyncio.Lock()  # held over a round
        self.answered: tuple[int, bytes, Rounded, bytes] | None = None  # the last round: it may be asked for again
        self.worker: JobWorker | None = None
        self.running: asyncio.Task[None] | None = None  # of its epochs
        self.rests: asyncio.TimerHandle | None = None  # its next run begins when that is over
        self.rules: list[Rules] = []  # what the owners of its data said when it was last decided about
        self.epoch_metrics = False
        self.saved = 0.0  # monotonic
        self.request = 0  # that was approved; 0: nobody had to be asked
        self.releasing = 0  # the request of which the audit log has that rounds leave by it
        self.history: list[dict[str, float]] = list(row.history)  # the row's follows
        self.shown: dict[str, Any] = {}  # to the owners, of its plan
        self.unsaved = False
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def id(self) -> str:
        """Its name."""
        return self.row.id

    @property
    def by(self) -> str:
        """Who submitted it."""
        return self.row.submitter

    def take_round(self, machine: Job, metrics: dict[str, float]) -> None:
        """A further round was computed; the row follows when it is saved."""
        self.machine = machine
        self.history.append(metrics)
        del self.history[:-MAX_HISTORY]
        self.unsaved = True

    def take(self, machine: Job, now: float, **changes: Any) -> None:
        """Stand as the machine says, with these changes of the row."""
        before, self.machine = self.machine, machine
        log = self.row.log
        if (machine.state, machine.said) != (before.state, before.said):
            text = f"{_QUIET.get(machine.state, machine.state)}{f': {machine.said}' if machine.said else ''}"
            log = [*log[:1], *[*log, {"at": now, "text": text}][1:][-MAX_LOG:]] if log else [{"at": now, "text": text}]
        ended = now if machine.ended and self.row.ended is None else self.row.ended
        began = now if machine.state == "running" and self.row.began is None else self.row.began
        self.row = replace(self.row, state=machine.state, log=log, began=began, ended=ended, **changes)
        self.unsaved = True

    def to_save(self) -> StoredJob:
        """The row as it is to be written."""
        self.row = replace(self.row, machine=asdict(self.machine), history=list(self.history))
        return self.row

    def tell(self) -> None:
        """Wake up whoever waits for a change."""
        self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()

    async def change_after(self, seen: int, timeout_s: float) -> None:
        """Wait until it has changed since `seen`, or for so long."""
        if self.row.change <= seen:
            await asyncio.wait({self._changed}, timeout=timeout_s)


def new_row(job: str, by: str, upload: str, document: JobDocument, now: float, **more: Any) -> StoredJob:
    """The row of a job that was just submitted."""
    machine = Job(id=job, by=by, rounds=document.arguments.rounds, epochs=document.arguments.epochs)
    return StoredJob(
        id=job,
        submitter=by,
        upload=upload,
        state=machine.state,
        created=now,
        document=msgspec.to_builtins(document),
        machine=asdict(machine),
        log=[{"at": now, "text": "submitted"}],
        **more,
    )


def describe(
    row: StoredJob, rules: Sequence[Rules], viewer: str, node: str, binding: str, *, epoch_metrics: bool = False
) -> JobInfo:
    """What a viewer, who may see the job at all, is told. `rules` are those of its data, none where it is gone.

    Progress and metrics are values: for who may read all its data; and for who submitted it once they are released,
    with the result, round by round, or by the owners' word for every epoch.
    """
    document: JobDocument = msgspec.convert(row.document, JobDocument)
    machine: Job = msgspec.convert(row.machine, Job)
    released = machine.state == "done" or document.arguments.rounds > 1 or epoch_metrics
    shown = (bool(rules) and policy.may_read_all(viewer, rules)) or (viewer == row.submitter and released)
    total = document.arguments.rounds * document.arguments.epochs
    done = machine.epoch + machine.rounds_done * document.arguments.epochs
    return JobInfo(
        id=row.id,
        state=row.state,
        change=row.change,
        by=row.submitter,
        reason=document.reason,
        said=machine.said,
        node=node,
        plan=document.plan,
        binding=binding,
        kind=document.kind,
        arguments=document.arguments,
        model=document.model,
        model_bytes=document.model_bytes,
        data=document.data,
        device=document.device,
        device_fraction=document.device_parts / WHOLE,
        owners=tuple(dict.fromkeys(one.owner for one in rules)),
        rows=document.rows,
        created=row.created,
        began=row.began,
        ended=row.ended,
        expires=machine.expires,
        rounds_done=machine.rounds_done,
        progress=None if not shown else 1.0 if machine.state == "done" else min(1.0, done / total),
        history=tuple(row.history) if shown else None,
        log=tuple(LogLine(at=line["at"], text=line["text"]) for line in row.log),
    )
