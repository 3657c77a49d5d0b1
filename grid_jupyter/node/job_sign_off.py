"""What owners have said about a job: whether it may run, run on, and whether what it came to may leave.

It asks, and lets nothing happen: what follows from an answer is an event of the job's machine (job_keeper.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from grid_jupyter.errors import GetNotPermittedError, ObjectNotFoundError, PlanInvalidError
from grid_jupyter.node import job_machine as machine
from grid_jupyter.node import policy
from grid_jupyter.node.datasets import Datasets, rules_of
from grid_jupyter.node.job_documents import binding_document, find_plan, shown
from grid_jupyter.node.job_records import LiveJob
from grid_jupyter.node.job_runs import header_of
from grid_jupyter.node.request_rules import verdict_of
from grid_jupyter.node.requests import Requests
from grid_jupyter.node.verdicts import (
    DENIED,
    EXPIRED,
    GRANTED,
    JOB,
    QUESTION,
    REVOKED,
    USED,
    WAITING,
    WITHDRAWN,
    Asked,
    binding_of,
)
from grid_jupyter.plans.document import Document
from grid_jupyter.plans.reader import MAX_BYTES, read_plan
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.datasets import StoredDataset
from grid_jupyter.store.jobs import StoredJob
from grid_jupyter.wire.jobs import Rows

RESULT = ".result"
"""Behind a job's name: the key under which the release of its result is asked for, where an owner looks at it first."""


class JobSignOff:
    """The word of the owners on the jobs of one Node. `isolation` says how Workers are kept apart."""

    def __init__(
        self, *, blobs: BlobStore, datasets: Datasets, requests: Requests, isolation: Callable[[], str]
    ) -> None:
        self._blobs = blobs
        self._datasets = datasets
        self._requests = requests
        self._isolation = isolation

    # -------------------------------------------------------------- what is asked about

    def read_plan_at(self, blob: str, begin: int, end: int) -> Document:
        """The plan that lies there in a blob. Raises PlanInvalidError, for one that is too large before it is read."""
        if end - begin > MAX_BYTES:
            raise PlanInvalidError(f"a plan of {end - begin} bytes is over the limit of {MAX_BYTES}")
        with self._blobs.reading(blob) as file:
            file.seek(begin)
            return read_plan(file.read(end - begin))

    async def plan(self, row: StoredJob) -> Document:
        def read() -> Document:
            place = find_plan(header_of(self._blobs, row.work or ""))
            return self.read_plan_at(row.work or "", place.begin, place.end)

        return await asyncio.to_thread(read)

    async def find(self, caller: str, data: dict[str, Rows]) -> dict[tuple[int, int], StoredDataset]:
        """The data sets that a job names. Raises ObjectNotFoundError, also for those that the caller may not use."""
        found = {}
        for rows in data.values():
            stored = await self._datasets.get(rows.dataset, rows.version)
            if not policy.may_compute(caller, rules_of(stored)):
                raise ObjectNotFoundError("there is no such data set or version here, or no longer; search again")
            found[rows.dataset, rows.version] = stored
        return found

    async def _asked(self, live: LiveJob, found: dict[tuple[int, int], StoredDataset], result: str = "") -> Asked:
        job = live.document
        sources = tuple(rules_of(stored) for stored in found.values())
        bound = binding_document(job, {one.dataset: msgspec.to_builtins(one.jobs) for one in sources})
        if not live.shown and live.row.work:
            live.shown = await asyncio.to_thread(shown, job, await self.plan(live.row))
        told = {"job": live.id, **live.shown}
        if result:
            bound["result"] = result
            told["result"] = "it has run: what it came to is looked at before it is released"
        return Asked(
            kind=JOB,
            key=live.id + (RESULT if result else ""),
            asker=live.by,
            binding=binding_of(bound),
            sources=sources,
            versions=tuple(version for _, version in found),
            reason=job.reason,
            shown=told,
            rows=job.rows,
            steps=job.steps,
            whole_step=job.whole_step,
            reduced_isolation=self._isolation().startswith("reduced"),
        )

    # -------------------------------------------------------------- what is said

    async def verdict(self, live: LiveJob) -> machine.Event:
        """How a job stands by what its owners say now; one that nobody was asked about is asked about. Raises
        ObjectNotFoundError, and what else the question fails of."""
        found = await self.find(live.by, live.document.data)
        held = live.machine.state == "held"
        looked = held and live.machine.look
        if looked and await self._requests.last_state(live.id) == REVOKED:
            return machine.Denied("the approval by which it ran was taken back: ask the owners, then submit it again")
        asked = await self._asked(live, found, live.row.result or live.row.id if looked else "")
        verdict = await self._requests.decide(asked)
        live.rules = list(asked.sources)
        live.epoch_metrics = verdict.epoch_metrics
        owners = ", ".join(dict.fromkeys(one.owner for one in asked.sources))
        live.request = verdict.request
        if held and (verdict.state == USED or (verdict.granted and (looked or not verdict.review))):
            try:
                await self.use(live)
            except GetNotPermittedError:  # taken back, or over, since it was decided
                verdict = verdict_of(await self._requests.standing(live.request, live.by))
            else:
                return machine.Released()
        if verdict.granted and held:
            return machine.Asked(f"what it came to waits for the word of {owners}")
        if verdict.state == GRANTED and verdict.review and live.document.arguments.rounds > 1:
            return machine.Denied(
                f"{owners} want to look at what comes out before it leaves, which a job of many rounds cannot wait "
                f"for: submit it with rounds=1"
            )
        used = verdict.state == USED and live.document.arguments.rounds > 1  # by the last one, not yet written down
        if verdict.state == GRANTED or used:
            return machine.Granted(look=verdict.review)
        if verdict.state == QUESTION:
            return machine.Asked(f"an owner asks: {verdict.reason}. node.my_requests() has it, and .answer(text)")
        if verdict.state == WAITING:
            return machine.Asked(f"it waits for the word of {owners}" + (", who look at the result" if looked else ""))
        if verdict.state == DENIED:
            return machine.Denied(verdict.reason or f"{owners} denied it")
        said = f": {verdict.reason}" if verdict.reason else ""
        if verdict.state == EXPIRED:
            return machine.Lapsed(f"its request, or its approval, is expired{said}: ask {owners}, then submit it again")
        if verdict.state == WITHDRAWN:
            return machine.Denied(f"its request was withdrawn{said}; submit it again")
        return machine.Denied(f"the approval was taken back{said}: ask {owners}, then submit it again")

    async def stands(self, live: LiveJob) -> bool:
        """Whether the owners of a job's data say what they said when it was decided about. Approvals that are taken
        back, or are over, are told (`_decided`)."""
        try:
            found = await self.find(live.by, live.document.data)
        except ObjectNotFoundError:
            return False
        return live.rules == [rules_of(stored) for stored in found.values()]

    async def use(self, live: LiveJob) -> None:
        """Take up the approval of a job, once, before what it came to leaves. Raises GetNotPermittedError where it
        does not stand any more."""
        if live.request:
            try:
                await self._requests.use(live.request, live.by)
            except GetNotPermittedError:
                standing = await self._requests.standing(live.request, live.by)
                if standing.state != USED:  # else it was, before the Node was started again
                    raise

    async def begin(self, live: LiveJob) -> None:
        """Have it in the audit log, once, by which approval rounds leave."""
        if live.request == live.releasing:
            return
        live.releasing = live.request  # before it is so: whoever takes it back meanwhile is not overwritten
        try:
            await self._requests.begun(live.request, live.by)
        except BaseException:
            live.releasing = 0
            raise

    async def close(self, live: LiveJob, closing: machine.CloseRequest) -> None:
        """What was asked of the owners is over with the job."""
        for key in (live.id, live.id + RESULT):
            await self._requests.close(key, closing.state, closing.by, closing.why)
