"""What others ask of a Node about jobs: submit, look, wait, cancel, fetch the result, train a round."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from grid_jupyter.errors import (
    Conflict,
    GetNotPermittedError,
    GridError,
    LimitExceededError,
    NodeUnavailableError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    RemoteOperationError,
    SessionLostError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.identity.roles import OWNER
from grid_jupyter.node import job_machine as machine
from grid_jupyter.node import policy
from grid_jupyter.node.datasets import Datasets, rules_of
from grid_jupyter.node.job_documents import (
    JobDocument,
    binding_document,
    check_finite,
    check_room,
    find_plan,
    find_weights,
    prepare,
)
from grid_jupyter.node.job_keeper import JobKeeper, check_runs
from grid_jupyter.node.job_records import LiveJob, describe, new_row
from grid_jupyter.node.policy import Rules
from grid_jupyter.node.request_rules import TRIAGE
from grid_jupyter.node.uploads import Uploads
from grid_jupyter.node.verdicts import binding_of
from grid_jupyter.plans.check import Limits
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.jobs import JobTable, StoredJob
from grid_jupyter.wire.jobs import JobInfo, Submit
from grid_jupyter.wire.messages import Round, Rounded
from grid_jupyter.wire.safetensors import BlobTensor
from grid_jupyter.worker.backend import Workers
from grid_jupyter.worker.channel import close_all
from grid_jupyter.worker.devices import WHOLE, Asked

MAX_OPEN = 100
"""Jobs of one user that have not ended."""
MAX_MODEL_BYTES = 2 << 30
"""Bytes of plan and weights of one job."""
MAX_WORK = 10**13
"""Multiplications and additions of one batch."""
WAIT_S = 20.0
"""The longest that a question for a job's next change is held."""


class Jobs:
    """The jobs of one Node, for those who may know of them: whoever submitted one, the owners of its data, and who
    decides on requests or owns the Node. For everybody else a job's name leads nowhere."""

    def __init__(
        self,
        *,
        name: str,
        table: JobTable,
        blobs: BlobStore,
        datasets: Datasets,
        keeper: JobKeeper,
        pool: Workers,
        storage_bytes: int,
        job_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.uploads = Uploads(blobs, MAX_MODEL_BYTES, for_everybody=True)
        self.keeper = keeper
        self._name = name
        self._table = table
        self._blobs = blobs
        self._datasets = datasets
        self._pool = pool
        self._storage_bytes = storage_bytes
        self._adding = asyncio.Lock()
        self._job_s = job_s
        self._clock = clock

    # -------------------------------------------------------------- submitting

    async def submit(self, account: Account, request: Submit) -> JobInfo:
        """Take a job; durable when this returns. The same submission once more is the same job.

        Raises BadRequest, PlanInvalidError, InvalidDataError and LimitExceededError for what does not fit,
        ObjectNotFoundError for data that this account may not compute on, Conflict for too many jobs. What was
        uploaded for a job that is refused is deleted.
        """
        key = account.username, request.upload
        before = await self._table.by_upload(*key)
        if before is not None:
            return await self.info(account, before.id)
        arrived = self.uploads.arrived(key)
        if arrived is None:
            raise ObjectNotFoundError("there is no such upload here, or no longer; send the bytes again")
        try:
            document = await self._prepare(account, request, arrived.blob.name)
            name = secrets.token_hex(8)
            row = new_row(name, account.username, request.upload, document, self._clock(), work=arrived.blob.name)
            async with self._adding:  # two at once would both find room
                await self._check_storage(account, arrived.blob.nbytes)
                row = await self._table.add(row, MAX_OPEN)
        except GridError as error:
            refused = self.uploads.claim(key)
            if refused is not None and not isinstance(error, OutcomeUnknownError):  # then a row may name it
                await asyncio.to_thread(self._blobs.delete, refused.blob.name)
            raise
        self.uploads.claim(key)
        if row.id == name:  # else the same submission came twice, at the same time
            await self.keeper.take(row)
        return await self.info(account, row.id)

    async def _check_storage(self, account: Account, more: int) -> None:
        names = await self._table.blobs(account.username)
        kept = await asyncio.to_thread(lambda: sum(map(self._blobs.size, names)))
        if kept + more > self._storage_bytes:
            raise LimitExceededError(
                f"your jobs here keep {kept} bytes of weights and results, and this one brings {more}: the limit is "
                f"{self._storage_bytes}. Cancel some (node.jobs(), job.cancel()), which deletes results as well, or "
                f"ask the Node's owner to raise --job-storage"
            )

    async def _prepare(self, account: Account, request: Submit, blob: str) -> JobDocument:
        arrived = self.uploads.arrived((account.username, request.upload))
        tensors = () if arrived is None else arrived.tensors
        found = await self.keeper.sign_off.find(account.username, request.data)
        place = find_plan(tensors)
        plan = await asyncio.to_thread(self.keeper.sign_off.read_plan_at, blob, place.begin, place.end)
        asked = Asked(request.device, math.ceil(request.device_fraction * WHOLE))
        memory_bytes = self._pool.room(asked)
        limits = Limits(memory_bytes=memory_bytes, work=MAX_WORK)
        document = await asyncio.to_thread(
            prepare, plan, request.data, found, request.arguments, request.reason, limits
        )
        document = msgspec.structs.replace(document, device=asked.device, device_parts=asked.parts)
        check_room(MAX_MODEL_BYTES, document, memory_bytes)
        weights = find_weights(tensors, document.model)
        await asyncio.to_thread(self._check_finite, blob, weights, document)
        return document

    def _check_finite(self, blob: str, weights: Sequence[BlobTensor], document: JobDocument) -> None:
        with self._blobs.reading(blob) as file:
            check_finite(file, weights, document.model)

    # -------------------------------------------------------------- looking

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return await self._table.counts()

    async def visible(self, account: Account) -> list[JobInfo]:
        """The jobs that this account may know of, newest first."""
        found = []
        for stored in await self._table.all():
            live = self.keeper.get(stored.id)
            row = stored if live is None else live.row
            rules = await self._rules(row)
            if _may_see(account, row, rules):
                found.append(self._describe(account, row, rules, live))
        return found

    async def info(self, account: Account, job: str, *, seen: int = -1, wait_s: float = 0.0) -> JobInfo:
        """How a job stands; with `wait_s` once it has changed since `seen`, or so long passed.

        Raises ObjectNotFoundError, also for a job that this account may not know of.
        """
        row, rules = await self._visible(account, job)
        live = self.keeper.get(job)
        if live is not None and wait_s > 0:
            await live.change_after(seen, min(wait_s, WAIT_S))
            row, rules = await self._visible(account, job)
        return self._describe(account, row, rules, live)

    async def plan(self, account: Account, job: str) -> bytes:
        """The plan of a job, as it was submitted. Raises ObjectNotFoundError."""
        row, _ = await self._visible(account, job)
        if row.work is None:
            raise ObjectNotFoundError("the plan of this job is not here any more: the job has ended")
        return (await self.keeper.sign_off.plan(row)).to_bytes()

    async def result(self, account: Account, job: str) -> int:
        """A descriptor of what a job came to, for who submitted it once it is released, and at any time for who may
        read all its data; the caller closes it. Raises GetNotPermittedError, ObjectNotFoundError."""
        row, rules = await self._visible(account, job)
        reads = bool(rules) and policy.may_read_all(account.username, rules)
        if not reads and (row.submitter != account.username or row.state != "done"):
            raise GetNotPermittedError(
                f"the result of this job is not released: it is {row.state}. job.wait() waits for it"
            )
        if row.result is None:
            raise ObjectNotFoundError("this job has no result here: each round gave its own, or it is over")
        return await self._blobs.open(row.result)

    async def cancel(self, account: Account, job: str, *, finished: bool = False) -> JobInfo:
        """End a job at once, or delete its result; nothing of it is kept. With `finished` who submitted it needs no
        more rounds of it. Raises ObjectNotFoundError, Forbidden."""
        row, rules = await self._visible(account, job)
        live = self.keeper.get(job)
        if live is not None:
            enough = finished and account.username == live.by
            await self.keeper.apply(live, machine.Enough() if enough else machine.Cancelled(account.username))
            row = live.row
        return self._describe(account, row, rules, live)

    async def _visible(self, account: Account, job: str) -> tuple[StoredJob, list[Rules]]:
        live = self.keeper.get(job)
        row = await self._table.get(job) if live is None else live.row
        rules = await self._rules(row)
        if not _may_see(account, row, rules):
            raise ObjectNotFoundError("there is no such job here, or no longer")
        return row, rules

    async def _rules(self, row: StoredJob) -> list[Rules]:
        """What the owners of a job's data say now; nothing where one of the data sets is gone."""
        places = {(rows["dataset"], rows["version"]) for rows in row.document["data"].values()}
        try:
            return [rules_of(await self._datasets.get(*place)) for place in sorted(places)]
        except ObjectNotFoundError:
            return []

    def _describe(self, account: Account, row: StoredJob, rules: list[Rules], live: LiveJob | None) -> JobInfo:
        document = msgspec.convert(row.document, JobDocument)
        policies = {one.dataset: msgspec.to_builtins(one.jobs) for one in rules}
        binding = binding_of(binding_document(document, policies)) if rules else ""
        epochs = live is not None and live.epoch_metrics
        return describe(row, rules, account.username, self._name, binding, epoch_metrics=epochs)

    # -------------------------------------------------------------- rounds

    async def round(
        self, caller: str, message: Round, payload: memoryview, descriptor: int | None, gone: asyncio.Future[None]
    ) -> tuple[Rounded, memoryview, list[int]]:
        """One round of a job of the caller's: what it gave, and new weights as bytes or in a descriptor, which is the
        caller's to close. Weights come as payload or in a descriptor.

        Raises ObjectNotFoundError, Conflict for a job or round whose turn it is not, what the round fails of.
        """
        live = self.keeper.get(message.job)
        if live is None or live.by != caller:
            raise ObjectNotFoundError("there is no such job of yours here, or it has ended; see node.jobs()")
        if not await self.keeper.sign_off.stands(live):
            await self.keeper.reconsider(live)
        check_runs(live.machine)
        if live.machine.rounds < 2 or message.number < 1:
            raise Conflict("only a job of many rounds computes rounds, whose numbers begin with 1")
        async with live.round:  # one after the other: they share the Worker's weights
            if live.answered is not None and live.answered[:2] == (message.number, bytes(payload)):
                if live.machine.state != "done":
                    check_runs(live.machine)
                return live.answered[2], memoryview(live.answered[3]), []  # it was asked for again
            running = await self.keeper.worker(live)
            descriptors = [] if descriptor is None else [descriptor]
            try:
                trained, weights, handed = await running.round(message.number, payload, descriptors, gone, self._job_s)
            except asyncio.TimeoutError:
                text = f"a round took longer than the {self._job_s:g} s that this Node gives it"
                await self.keeper.apply(live, machine.Broke(text))
                raise RemoteOperationError(text) from None
            except (SessionLostError, NodeUnavailableError) as error:
                await self.keeper.lost(live, running)
                raise Conflict(f"the job's Worker ended: {error}. Ask for the round again") from None
            rounded = Rounded(metrics=trained.history[-1], rows=trained.rows, steps=trained.steps)
            try:
                await self.keeper.round_done(live, rounded.metrics)
            except BaseException:
                close_all(handed)
                raise
            live.answered = None if handed else (message.number, bytes(payload), rounded, bytes(weights))
            return rounded, weights, handed


def _may_see(account: Account, row: StoredJob, rules: list[Rules]) -> bool:
    return (
        account.username == row.submitter
        or account.role == OWNER
        or TRIAGE in account.flags
        or any(one.owner == account.username for one in rules)
    )
