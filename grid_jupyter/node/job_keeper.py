"""Keeps the jobs of a Node going: signed off, run in fair order, released, forgotten when their time is over.

Every change of a job is one event of its machine (node/job_machine.py), durable before anybody is told; rounds alone
are written behind, since a client that asks for one again gets the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from grid_jupyter.errors import (
    Conflict,
    GetNotPermittedError,
    GridError,
    LimitExceededError,
    NodeUnavailableError,
    ObjectNotFoundError,
    SessionLostError,
    StorageFullError,
)
from grid_jupyter.node import job_machine as machine
from grid_jupyter.node.datasets import Datasets
from grid_jupyter.node.job_queue import Waiting, next_job
from grid_jupyter.node.job_records import MAX_HISTORY, LiveJob
from grid_jupyter.node.job_rows import JobRows
from grid_jupyter.node.job_runs import JobWorker
from grid_jupyter.node.job_sign_off import RESULT, JobSignOff
from grid_jupyter.node.requests import Requests
from grid_jupyter.node.verdicts import (
    JOB,
    WITHDRAWN,
    Verdict,
)
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.jobs import JobTable, StoredJob
from grid_jupyter.worker.backend import Workers

log = logging.getLogger("grid_jupyter")

FORGET_S = 90 * 86_400.0
"""How long a job that ended stays in the list."""
REST_S = 600.0
"""How long a Worker waits for the next round of its job."""
SWEEP_S = 1.0


class JobKeeper:
    """The jobs of one Node that have not ended. `at_once` run at the same time, `per_user` of one user; each may take
    `job_s` seconds. Workers of jobs of many rounds stay for REST_S behind a round."""

    def __init__(
        self,
        *,
        table: JobTable,
        blobs: BlobStore,
        datasets: Datasets,
        requests: Requests,
        pool: Workers,
        at_once: int,
        per_user: int,
        job_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._blobs = blobs
        self._datasets = datasets
        self._requests = requests
        self._pool = pool
        self.rows = JobRows(table, blobs, clock, lambda: self._tell())
        self.sign_off = JobSignOff(blobs=blobs, datasets=datasets, requests=requests, isolation=lambda: pool.isolation)
        self._at_once = at_once
        self._per_user = per_user
        self._job_s = job_s
        self._clock = clock
        self._live: dict[str, LiveJob] = {}
        self._served: dict[str, int] = {}
        self._turns = 0
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._tell: Callable[[], None] = lambda: None
        requests.on_decided(self._decided)
        pool.shares.on_freed(self._schedule)

    def on_change(self, tell: Callable[[], None]) -> None:
        """Whom to call when a job stands otherwise than before."""
        self._tell = tell

    # -------------------------------------------------------------- life

    async def start(self) -> None:
        """Take up what was there before: what ran goes on from its last checkpoint."""
        for row in await self._table.all():
            if row.ended is None or row.state == "done":
                live = LiveJob(row)
                if not live.machine.settled:
                    self._live[row.id] = live
                    await self.apply(live, machine.Restarted())
        for key in await self._requests.open_keys(JOB):
            if self.get(key.removesuffix(RESULT)) is None:  # it ended, and then the Node, before this was written
                await self._requests.close(key, WITHDRAWN, "", "the job is over")
        self._sweeper = asyncio.create_task(self._sweep(), name="jobs")
        for live in list(self._live.values()):
            self._spawn(self.reconsider(live))
        self._schedule()

    async def stop(self) -> None:
        """Stop what runs; it goes on when the Node starts again."""
        self._stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for live in self._live.values():
            async with live.lock:
                await self.rows.save(live)

    def get(self, job: str) -> LiveJob | None:
        """A job that has not ended, or whose result is here."""
        return self._live.get(job)

    async def take(self, row: StoredJob) -> None:
        """A job was submitted, and is durable: ask for its sign-off."""
        live = self._live[row.id] = LiveJob(row)
        await self.reconsider(live)

    async def end_with(self, dataset: int) -> None:
        """A data set was unpublished: the jobs that it is for end, and their Workers."""
        for live in list(self._live.values()):
            if any(rows.dataset == dataset for rows in live.document.data.values()) and not live.machine.ended:
                text = f"data set {dataset} was unpublished: search, and submit it again"
                await self.apply(live, machine.Refused(text))

    async def blobs(self) -> frozenset[str]:
        """The names of all blobs that belong to jobs."""
        return await self._table.blobs()

    async def checkpoints(self) -> frozenset[str]:
        """Those among them that are checkpoints, of use until the next one."""
        return await self._table.checkpoints()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                for live in list(self._live.values()):
                    await self.rows.write_behind(live)
                    await self.apply(live, machine.Tick())
                    if live.worker is not None and time.monotonic() - live.worker.last_used > REST_S:
                        await self._let_go(live, live.worker)
                for gone in await self._table.forget(self._clock() - FORGET_S):
                    await self.rows.drop(gone.work, gone.checkpoint, gone.result)
            except StorageFullError:
                pass  # it is tried again
            except GridError as error:
                log.warning("jobs: %s", error)
            except Exception as error:  # the outermost loop of its task: without it no job would ever expire again
                log.error("jobs: %s", type(error).__name__, exc_info=error)

    # -------------------------------------------------------------- sign-off

    def _decided(self, kind: str, key: str, verdict: Verdict) -> None:
        """Something was decided: a job may have to be looked at again."""
        live = self._live.get(key.removesuffix(RESULT))
        if kind == JOB and live is not None:
            if not verdict.granted:
                live.releasing = 0  # at once: before the next round leaves, the request itself is looked at
            self._spawn(self.reconsider(live))

    async def reconsider(self, live: LiveJob) -> None:
        """Let a job stand as its owners decided."""
        if live.machine.ended:
            return
        event: machine.Event
        try:
            event = await self.sign_off.verdict(live)
        except ObjectNotFoundError:
            event = machine.Refused("the data it is for is not here any more, or not for you; search, and submit again")
        except GridError as error:
            event = machine.Refused(str(error))
        await self.apply(live, event)
        if live.machine.ended and live.machine.state != "done":  # while it was asked for
            await self.sign_off.close(live, machine.CloseRequest("withdrawn", why=f"the job is {live.machine.state}"))
        self._schedule()

    # -------------------------------------------------------------- changes

    async def apply(self, live: LiveJob, event: machine.Event, **changes: Any) -> None:
        """Let something happen to a job: its machine, its row, and what follows from it."""
        async with live.lock:
            after, actions = machine.on(live.machine, event, self._clock())
            if after == live.machine and not actions and (live.machine.ended or not changes):
                return
            live.take(after, self._clock(), **changes)
            if machine.EndRun() in actions:  # before it is written: on a full disk it ends as well
                await self._end_worker(live)
            await self.rows.save(live)
        for action in actions:
            await self._act(live, action)
        if live.machine.settled:
            self._live.pop(live.id, None)
        self._schedule()

    async def _act(self, live: LiveJob, action: machine.Action) -> None:
        if isinstance(action, machine.EndRun):
            return  # it is done
        if isinstance(action, machine.Rest):
            if live.rests is not None:
                live.rests.cancel()
            live.rests = asyncio.get_running_loop().call_later(action.seconds, self._rested, live)
        elif isinstance(action, machine.CloseRequest):
            await self.sign_off.close(live, action)
        elif isinstance(action, machine.AskRelease):
            self._spawn(self.reconsider(live))
        elif isinstance(action, machine.DropWork):
            before = live.row
            await self.rows.forget(live, checkpoint=None)
            await self.rows.drop(before.checkpoint)
        else:
            before = live.row
            await self.rows.forget(live, work=None, result=None)
            await self.rows.drop(before.work, before.result)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -------------------------------------------------------------- running

    def _schedule(self) -> None:
        """Start the jobs whose turn it is."""
        if self._stopping:
            return
        held_up: set[str] = set()  # nobody passes by the job whose turn it is on a device
        while True:
            running = self._busy()
            if len(running) >= self._at_once:
                self._make_room()
                return
            queued = [
                Waiting(live.id, live.by, live.row.created)
                for live in self._live.values()
                if _is_ready(live) and live.document.device not in held_up
            ]
            turn = next_job(queued, [live.by for live in running], self._served, self._per_user)
            if turn is None:
                return
            live = self._live[turn]
            if self._is_held_up(live):
                held_up.add(live.document.device)
                continue
            self._turns += 1
            self._served[live.by] = self._turns
            live.running = self._spawn(self._run(live))

    def _rested(self, live: LiveJob) -> None:
        live.rests = None
        self._schedule()

    def _is_held_up(self, live: LiveJob) -> bool:
        """Whether a job has to wait for its share of a device, or can never have it."""
        try:
            waits = self._pool.waits(live.document.asked)
        except GridError as error:  # the Node was started again with other devices
            self._spawn(self.apply(live, machine.Refused(str(error))))
            return True
        if waits:
            if live.machine.said != waits:
                self._spawn(self.apply(live, machine.Queued(waits)))
            self._make_room(live.document.device)
        return bool(waits)

    def _busy(self) -> list[LiveJob]:
        """Jobs that have a place: with a Worker, or about to get one."""
        return [live for live in self._live.values() if live.running is not None or live.worker is not None]

    def _make_room(self, device: str | None = None, *, needed: bool = False) -> None:
        """The Worker that has waited longest for its next round gives way to a job that could run, on this device or
        any."""
        if needed or any(_is_ready(live) for live in self._live.values()):
            resting = [
                (live.worker.last_used, live, live.worker)
                for live in self._busy()
                if live.running is None
                and live.worker is not None
                and not live.worker.busy
                and device in (None, "", live.document.device)
            ]
            if resting:
                self._spawn(self._let_go(*min(resting, key=lambda one: one[0])[1:]))

    async def _let_go(self, live: LiveJob, worker: JobWorker) -> None:
        """End a Worker that waits for its next round, if it still does."""
        if live.worker is worker and live.running is None and not worker.busy:
            await self._end_worker(live)
            self._schedule()

    async def _end_worker(self, live: LiveJob) -> None:
        running, live.running = live.running, None
        ending, live.worker = live.worker, None
        if running is not None and running is not asyncio.current_task():
            running.cancel()
        if ending is not None:
            await ending.kill()

    async def _run(self, live: LiveJob) -> None:
        event: machine.Event | None = None
        changes: dict[str, Any] = {}
        try:
            await self.reconsider(live)
            before = live.machine
            if before.state != "queued":
                return
            await self.apply(live, machine.Begun())
            if live.machine.state != "running":  # its owners' word was another one, just before
                return
            live.worker = await self._start(live)
            if live.document.arguments.rounds == 1:
                changes = await asyncio.wait_for(self._epochs(live, live.worker), self._job_s)
                event = machine.Finished()
        except asyncio.TimeoutError:
            event = machine.Broke(
                f"it took longer than the {self._job_s:g} s that this Node gives a job: give it fewer epochs, or ask "
                f"the Node's owner to raise --job-time"
            )
        except (SessionLostError, NodeUnavailableError) as error:
            event = machine.Stopped(str(error))
        except OSError as error:
            event = machine.Stopped(f"this Node's machine: {error.strerror}")
        except StorageFullError as error:
            event = machine.Refused(str(error))
        except ObjectNotFoundError:
            event = machine.Refused("the data it is for is not here any more: search, and submit it again")
        except GridError as error:
            event = machine.Broke(str(error))
        finally:
            if live.running is asyncio.current_task():
                live.running = None
        if event is not None:
            try:
                await self.apply(live, event, **changes)
            finally:
                if live.row.result != changes.get("result"):  # it ended otherwise meanwhile
                    await self.rows.drop(changes.get("result"))
        self._schedule()

    async def _start(self, live: LiveJob) -> JobWorker:
        found = await self.sign_off.find(live.by, live.document.data)
        row = live.row
        return await JobWorker.start(
            self._pool,
            self._blobs,
            self._datasets,
            live.document,
            list(found.values()),
            row.work or "",
            row.checkpoint,
            live.machine.epoch,
        )

    async def _epochs(self, live: LiveJob, running: JobWorker) -> dict[str, Any]:
        """Train to the end; what of the row changes with it."""
        total = live.document.arguments.epochs
        async for kept in running.epochs(live.machine.epoch, total):
            live.history = [*live.history, *kept.history][-MAX_HISTORY:]
            if kept.epoch == total:
                return {"result": kept.blob.name}
            before = live.row.checkpoint
            try:
                await self.apply(live, machine.Checkpointed(kept.epoch), checkpoint=kept.blob.name)
            finally:
                await self.rows.drop(before if live.row.checkpoint == kept.blob.name else kept.blob.name)
        raise GridError("the job's Worker ended before its last epoch")

    # -------------------------------------------------------------- rounds

    async def worker(self, live: LiveJob) -> JobWorker:
        """The Worker of a job that runs: the one that waits for its next round, or another.

        Raises LimitExceededError where no place is free, SessionLostError, NodeUnavailableError, Conflict.
        """
        if live.running is not None:
            await asyncio.wait({live.running})
        if live.worker is None and live.machine.state == "running":
            if len(self._busy()) >= self._at_once:
                self._make_room(needed=True)
                raise LimitExceededError("as many jobs run on this Node as may: ask for the round again in a moment")
            starting = live.running = self._spawn(self._start_again(live))  # whoever ends the job ends this, too
            await asyncio.wait({starting})
            if not starting.cancelled():
                starting.result()
        if live.worker is None:
            check_runs(live.machine)
            raise Conflict("the job's Worker gave way to another job: ask for the round again")
        return live.worker

    async def _start_again(self, live: LiveJob) -> None:
        try:
            live.worker = await self._start(live)
        finally:
            if live.running is asyncio.current_task():
                live.running = None

    async def lost(self, live: LiveJob, worker: JobWorker) -> None:
        """The Worker of a round is gone: the next round gets another."""
        if live.worker is worker:
            await self._end_worker(live)

    async def round_done(self, live: LiveJob, metrics: dict[str, float]) -> None:
        """A round was computed, and may leave. It is written down a little later, but for the last one.

        Raises Conflict where the job stands otherwise meanwhile, GetNotPermittedError: then nothing may leave.
        """
        try:
            await self.sign_off.begin(live)
            after, actions = machine.on(live.machine, machine.RoundDone(), self._clock())
            if not actions:
                check_runs(live.machine)
                live.take_round(after, metrics)
                return
            await self.sign_off.use(live)
        except GetNotPermittedError:  # taken back, or over: it is told how the job stands then
            await self.reconsider(live)
            check_runs(live.machine)
            raise
        check_runs(live.machine)
        live.history.append(metrics)
        await self.apply(live, machine.RoundDone())
        if live.machine.state != "done":  # it ended otherwise, just before
            check_runs(live.machine)


def _is_ready(live: LiveJob) -> bool:
    """Whether a job waits for its turn alone."""
    return live.machine.state == "queued" and live.running is None and live.rests is None


def check_runs(job: machine.Job) -> None:
    """Raises Conflict, which says how it stands, for a job that does not run."""
    if job.state != "running":
        raise Conflict(f"this job is {job.state}{f': {job.said}' if job.said else ''}")
