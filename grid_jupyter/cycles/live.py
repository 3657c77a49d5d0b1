"""One training while the Node runs: an event is a transaction, cycles end on time, reports are folded as they come.

What counts is in the database; all that is here can be made again from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from grid_jupyter.cycles import announcing, selection
from grid_jupyter.cycles.averaging_plan import average
from grid_jupyter.cycles.fold_worker import FoldWorker, Subject
from grid_jupyter.cycles.folding import Folding
from grid_jupyter.cycles.machine import (
    Accept,
    Aggregated,
    Asked,
    End,
    Late,
    Reject,
    Release,
    Reported,
    Store,
    Tick,
    Training,
    on,
    timeout,
)
from grid_jupyter.cycles.metrics import Measured, keep
from grid_jupyter.cycles.steps import Step, Steps
from grid_jupyter.cycles.tags import Tag
from grid_jupyter.cycles.terms import Terms
from grid_jupyter.cycles.waiting import Waiting
from grid_jupyter.errors import BadRequest, Conflict, GridError, NodeUnavailableError, NotFound, PlanInvalidError
from grid_jupyter.push.bus import Bus
from grid_jupyter.store.blobs import Blob, BlobStore, Digest
from grid_jupyter.store.metrics import MetricsRows
from grid_jupyter.store.notices import NoticeRows
from grid_jupyter.store.places import Device, StoredReport
from grid_jupyter.store.records import DeviceRow
from grid_jupyter.store.spares import SPARE_S
from grid_jupyter.store.trainings import StoredCheckpoint, StoredPlan, StoredTraining, TrainingRows, TrainingTable
from grid_jupyter.wire.answers import Standing

if TYPE_CHECKING:
    from pathlib import Path

    from grid_jupyter.aggregation.form import Form

log = logging.getLogger("grid_jupyter")
T = TypeVar("T")

_AVERAGING = ThreadPoolExecutor(2, thread_name_prefix="grid-averaging")
"""Plans of hosts run for minutes: uploads and downloads need the loop's own threads."""
LOOK_S = 30.0
"""How often the clock is looked at, at least: it may be set while a cycle runs."""
IDLE_S = 3_600.0
"""A device that never had a place is forgotten when it was not heard of for so long, where others need the room."""
LARGE = 1 << 20
"""Bytes of a model whose reports are told apart by a tag (cycles/tags.py)."""
PATIENCE_S = 60.0
"""Longest pause before an aggregation that failed is tried again."""


@dataclass(frozen=True)
class Ground:
    """What all trainings of a Node stand on. `at` is told the name of each point at which a process may die."""

    table: TrainingTable
    blobs: BlobStore
    folds: FoldWorker
    clock: Callable[[], float] = time.time
    at: Callable[[str], None] = lambda point: None
    bus: Bus = field(default_factory=Bus)
    tell: Callable[[], None] = lambda: None
    """Called when a training stands otherwise than before."""


@dataclass(frozen=True)
class Accepted:
    """A device has a place."""

    request_key: str
    sequence: int
    attempt: int
    checkpoint: StoredCheckpoint


class Live:
    """One training. `model` is one of its checkpoints, of the form `form`."""

    def __init__(
        self,
        ground: Ground,
        stored: StoredTraining,
        terms: Terms,
        form: Form,
        state: Training,
        model: Path,
        *,
        failed: str = "",
    ) -> None:
        """`failed` says why it does not go on, whatever its state is."""
        self.failed = failed
        self.stored, self.terms, self.form, self.state = stored, terms, form, state
        self._ground = ground
        self.subject = Subject(
            training=stored.id,
            model=model,
            strategy="FedAvg" if terms.chosen is None else terms.chosen.name,
            numbers={} if terms.chosen is None else terms.chosen.numbers,
            buffers=tuple(stored.buffers),
            max_norm=terms.max_norm,
            forms=terms.diff_forms,
        )
        self.folding = Folding(self.subject, ground.folds, ground.blobs, ground.at)
        self._waiting = Waiting()
        self.changed = self._waiting.changed
        self.problem = ""
        """Why the cycle that is closing has no checkpoint yet."""
        self._watching: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._steps = Steps(ground.table, stored.id, ground.clock, self._announce)
        self.leaving = False  # it is being deleted: nobody registers, or asks, any more
        self._opening = False  # the next cycle is about to begin, and who asks now does in the same transaction
        self._pushes = False  # some of its devices can be reached
        self._plans: list[StoredPlan] | None = None
        self._reading = asyncio.Lock()
        self._latest: StoredCheckpoint | None = None  # that somebody was told of
        self._reported: set[str] = set()  # devices, in this attempt; where one may wait for its turn in the next

    async def start(self) -> None:
        """Go on from what is stored: fold the reports that are there, and end the cycle when it is time."""
        state = self.state
        self._pushes = await self._ground.table.transact(lambda rows: rows.notices.reach(self.stored.id))
        if state.phase == "over":
            return
        for report in await self._ground.table.transact(lambda rows: rows.reports(self.stored.id, state.sequence)):
            self._fold_later(report)
        self._watching = asyncio.create_task(self._watch(), name=f"cycles of training {self.stored.id}")

    async def stop(self) -> None:
        """Let go; nothing is lost."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._steps.settled()
        if self._tidying is not None:  # an object store keeps what no row names, unless it is deleted now
            await asyncio.wait([self._tidying])
        await self.folding.closed()
        self._tell()

    def digest(self) -> Digest:
        """What tells this training's reports apart."""
        return hashlib.sha256() if self.form.nbytes < LARGE else Tag(self.stored.secret)

    # -------------------------------------------------------------- what devices do

    async def register(self, *, slow: bool, subject: str | None = None, token: str | None = None) -> str:
        """A new device, whose auth_token is for `subject`, and which can perhaps be reached by a push token; its id.

        Raises NodeUnavailableError where as many are registered as may be.
        """

        def work(rows: TrainingRows, state: Training, now: float) -> tuple[Training, str]:
            worker_id = rows.register(
                self.stored.id, now, slow=slow, subject=subject, most=self.terms.max_devices, idle=now - IDLE_S
            )
            if token is not None:
                rows.notices.save_token(rows.device(worker_id), token)
                self._pushes = True
            after = self._gather(rows, state, now)
            if self._pushes:
                announcing.refresh(rows, self.stored, self.terms, after, now)
            return after, worker_id

        self.check_stays()
        return await self._step(work)

    async def heard(self, worker_id: str, note: Callable[[NoticeRows, DeviceRow], None]) -> None:
        """A device says that it is there, and `note` writes down what else it says. Raises NotFound, Conflict."""

        def work(rows: TrainingRows, state: Training, now: float) -> tuple[Training, None]:
            device = rows.device(worker_id)
            self._check_own(device)
            device.seen = now
            note(rows.notices, device)
            self._pushes = self._pushes or rows.notices.reach(self.stored.id)
            if self._pushes:
                announcing.invite_again(rows, self.stored, self.terms, state, device.number, now)
            return self._gather(rows, state, now), None

        self.check_stays()
        await self._step(work)

    def check_stays(self) -> None:
        """Raises NotFound, Conflict where devices have nothing to do here any more, nor ever will."""
        if self.leaving:
            raise NotFound("Federated Learning Process not found! It is being deleted")
        if self.failed:
            raise Conflict(f"this training does not go on: {self.failed}; who hosts it deletes it and hosts it anew")

    def _kin(self, rows: TrainingRows, state: Training, device: Device) -> int:
        if self.terms.max_devices_per_token is None:
            return 0
        return rows.kin(self.stored.id, state.sequence, device.subject)

    def _check_own(self, device: Device | DeviceRow) -> None:
        if device.training_id != self.stored.id:
            raise Conflict("this worker_id is for another model; authenticate for this one")

    async def ask(
        self, worker_id: str, nonce: str, *, download: float | None, upload: float | None
    ) -> Accepted | Reject:
        """A place in the cycle, or why not. Asked again with the same nonce (where it has one), as by a device that
        never heard the answer, it gives the same place. Raises NotFound for an unknown device."""
        nonce = nonce or secrets.token_hex(16)

        def work(rows: TrainingRows, state: Training, now: float) -> tuple[Training, Accepted | Reject]:
            device = rows.who(worker_id)
            self._check_own(device)
            due = max(state.began, now - (self.terms.cycle_length or 0) / 4)
            if self.terms.goal_count is not None and device.seen < due:
                rows.heard(device, now)
            state = self._gather(rows, state, now)
            request_key = self._key(state.sequence, device.number, nonce)
            place = rows.latest(self.stored.id, state.sequence, device.number)
            if state.phase == "open" and place is not None and place.waits(request_key):
                return state, Accepted(request_key, state.sequence, state.attempt, self._checkpoint(rows, state))
            asked = Asked(
                place="none" if place is None else place.state,  # type: ignore[arg-type]
                registered=device.registered,
                kin=self._kin(rows, state, device),
                last=device.last,
                again=device.asked == state.attempt,
                lot=self._lot(state, worker_id),
                **{name: speed for name, speed in (("download", download), ("upload", upload)) if speed is not None},
            )
            if device.asked != state.attempt and state.phase != "over":
                rows.heard(device, now, state.attempt)
            state, (answer,) = on(self.terms, state, asked, now)
            if isinstance(answer, Accept):
                if self.terms.asynchronous:
                    rows.give_up_older(self.stored.id, state.sequence, device.number)
                rows.assign(place, self.stored.id, state.sequence, device.number, request_key, now)
                return state, Accepted(request_key, state.sequence, state.attempt, self._checkpoint(rows, state))
            if not isinstance(answer, Reject):
                raise TypeError(f"{answer} is no answer to one who asks")
            return state, answer

        self.check_stays()
        return await self._step(work, self._answered)

    def settled(self, worker_id: str) -> Reject | None:
        """What a device is told that has reported in this cycle; None where that is not known without the rows."""
        if worker_id not in self._reported or self._opening or self.leaving or self.failed:
            return None
        answer = on(self.terms, self.state, Asked(place="reported", again=True), self._ground.clock())[1][0]
        return answer if isinstance(answer, Reject) else None

    def _checkpoint(self, rows: TrainingRows, state: Training) -> StoredCheckpoint:
        """The one that the open cycle trains."""
        known = self._latest
        return known if known is not None and known.number == state.completed + 1 else rows.checkpoint(self.stored.id)

    async def plans(self) -> list[StoredPlan]:
        """Its plans, which never change, in the order of their names."""
        if self._plans is None:
            async with self._reading:  # of a crowd that comes at once, one asks
                if self._plans is None:
                    self._plans = await self._ground.table.transact(lambda rows: rows.plans(self.stored.id))
        return self._plans

    def _train(self, checkpoint: StoredCheckpoint) -> None:
        self._latest = checkpoint

    def _answered(self, answer: Accepted | Reject) -> None:
        if isinstance(answer, Accepted):
            self._train(answer.checkpoint)

    def _key(self, sequence: int, device: int, nonce: str) -> str:
        """The request_key of a place: nothing of it is kept but its digest, and only this Node can make it again."""
        told = f"{sequence} {device} {nonce}".encode("utf-8", "surrogatepass")
        return hmac.new(self.stored.secret.encode(), told, hashlib.sha256).hexdigest()

    def _lot(self, state: Training, worker_id: str) -> float:
        """Under a seed of the host's the same device draws the same lot, as often as it asks in a number of cycles
        that goes the same way."""
        if self.terms.seed is None:
            return secrets.randbelow(1 << 53) / (1 << 53)
        return random.Random(f"{self.terms.seed} {state.attempt} {state.asked} {worker_id}").random()  # noqa: S311

    async def report(
        self, worker_id: str, request_key: str, samples: int, blob: Blob, measured: Measured | None = None
    ) -> bool:
        """Count a report that is on the disk, with what was measured for it; False where it counted already, and these
        bytes are not needed.

        Raises NotFound, NotAuthenticatedError, Conflict for one that is late.
        """

        def work(rows: TrainingRows, state: Training, now: float) -> tuple[Training, StoredReport | None]:
            device, place = rows.place_of(worker_id, request_key)
            reported = Reported(sequence=place.sequence, place=place.state)  # type: ignore[arg-type]
            state, actions = on(self.terms, state, reported, now)
            first = actions[0]
            if isinstance(first, Store):
                if measured is not None:
                    keep(MetricsRows.beside(rows), place, device, measured, now)
                return state, rows.count(
                    place, counted=state.sequence, number=first.number, samples=samples, blob=blob.name,
                    sha256=blob.sha256,
                )  # fmt: skip
            if place.state == "reported" and place.blob == blob.name:  # this did happen, though its end was an error
                return state, place.report()
            if place.state == "reported" and place.sha256 == blob.sha256:
                if place.blob is None or self._ground.blobs.path(place.blob).exists():
                    return state, None
                return state, rows.refile(place, blob.name)  # its file was lost; this is the same
            raise Conflict(first.reason if isinstance(first, Late) else "this report does not count")

        until = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                return await self._step(work, partial(self._counted, worker_id)) is not None
            except Conflict:
                left = until - asyncio.get_running_loop().time()
                if not self.terms.asynchronous or self.state.phase != "closing":
                    raise
                if left <= 0:
                    raise NodeUnavailableError("the Node makes a checkpoint; send the report again later") from None
                await self.changed(left)  # it counts in the next buffer

    def _counted(self, worker_id: str, report: StoredReport | None) -> None:
        if report is not None and not self.terms.asynchronous and self.terms.goal_count is None:
            self._reported.add(worker_id)
        self._fold_later(report)

    def foresee(self) -> Reject | None:
        """Why a new device would get no place now; None where it would, as far as that can be known."""
        now = self._ground.clock()
        _, (answer,) = on(self.terms, self.state, Asked(registered=now), now)
        return answer if isinstance(answer, Reject) else None

    def takes(self, sequence: int) -> bool:
        """Whether a report of a cycle could count now, or in a moment."""
        late = self.terms.staleness(sequence, self.state.sequence)
        return late is not None and (self.state.phase == "open" or (self.terms.asynchronous and not self.over))

    @property
    def over(self) -> bool:
        """Whether training is over."""
        return self.state.phase == "over"

    # -------------------------------------------------------------- one event, one transaction

    async def _step(
        self,
        work: Callable[[TrainingRows, Training, float], tuple[Training, T]],
        then: Callable[[T], None] = lambda result: None,
    ) -> T:
        """What happened, and how the training stands after it, are written together; `then` is told what it came to."""

        def happened(step: Step) -> None:
            before, after = step.before, step.after
            known, self.state = self.state, after  # another one than `before` where nobody heard how a step ended
            if after.attempt != known.attempt:
                self._reported.clear()
            then(step.result)
            announcing.publish(self._ground.bus, self.stored, before, after)
            if step.queued:
                self._ground.bus.publish("notices-queued", model=self.stored.name, version=self.stored.version)
            if (after.phase, after.attempt, after.end) != (known.phase, known.attempt, known.end):
                self._tell(devices=after.phase != "closing")

        return await self._steps.take(work, happened)

    def _announce(self, rows: TrainingRows, before: Training, after: Training, now: float) -> None:
        if self._pushes:
            announcing.announce(rows, self.stored, self.terms, before, after, now)
        if rows.notices.queued:
            self._ground.at("notices-written")

    def _gather(self, rows: TrainingRows, state: Training, now: float) -> Training:
        """Where the cycle waits for its pool: see whether it is large enough by now, and invite."""
        return selection.gather(rows, self.stored, self.terms, state, now, asked=self._pushes)

    def _tell(self, *, devices: bool = True) -> None:
        self._ground.tell()
        self._waiting.tell(devices=devices)

    # -------------------------------------------------------------- time, and the end of cycles

    async def _watch(self) -> None:
        """End each cycle when it is time, whether or not anybody reports."""
        failed = 0
        while self.state.phase != "over":
            try:
                await self._look()
                failed, self.problem = 0, ""
            except Exception as error:  # the outermost loop of its task: without it no cycle would ever end again
                failed += 1
                self.problem = str(error) if isinstance(error, GridError) else "it failed; the Node's log says why"
                log.error("a cycle of training %d waits: %s", self.stored.id, type(error).__name__, exc_info=error)
                await asyncio.sleep(min(PATIENCE_S, 2.0 ** min(failed, 9)))

    async def _look(self) -> None:
        if self.state.phase == "closing":
            await self._aggregate()
            return
        end = self.state.end
        await self.changed(LOOK_S if end is None else max(0.0, min(LOOK_S, end - self._ground.clock())))
        if self.state.end is not None and self._ground.clock() >= self.state.end:
            await self.tick()

    async def tick(self) -> None:
        """Time went by."""

        def work(rows: TrainingRows, state: Training, now: float) -> tuple[Training, None]:
            state, actions = on(self.terms, state, Tick(), now)
            if any(isinstance(action, Release) for action in actions):
                rows.give_up(self.stored.id, state.sequence)
            return self._gather(rows, state, now), None

        await self._step(work)

    async def finish(self) -> None:
        """Training is over. Reports of the cycle that is under way come to nothing."""

        def work(rows: TrainingRows, state: Training, now: float) -> tuple[Training, list[str]]:
            state, actions = on(self.terms, state, End(), now)
            return state, rows.folded(self.stored.id, state.sequence) if actions else []

        names = await self._step(work)
        await self.folding.closed()
        await self._ground.folds.drop(self.subject)
        await asyncio.to_thread(self._delete, names)
        self._ground.blobs.drop_spares()

    async def _aggregate(self) -> None:
        """Make the checkpoint of the cycle that was closed, then begin the next one, together with it."""
        ground, training = self._ground, self.stored.id
        ground.at("closing")
        known = self._closing()
        if known is None:
            known = await self._step(
                lambda rows, state, now: (state, (rows.reports(training, state.sequence), rows.checkpoint(training)))
            )
            if self.state.phase != "closing":  # it was done before, and nobody heard of it
                return
        reports, model, sequence = *known, self.state.sequence
        averaged: list[str] = []
        if self.stored.averaging is not None:
            report = await self._averaged(self.stored.averaging, model, reports)
            averaged.append(report.blob)
            reports = [report]
            ground.at("averaged")
        try:
            made = await self.folding.checkpoint(reports, model)
        except BaseException:  # it is made anew when this is tried again
            await asyncio.to_thread(self._delete, averaged)
            raise
        ground.at("checkpoint-durable")
        after = StoredCheckpoint(
            id=0,
            number=model.number + 1,
            blob=made.model.name,
            nbytes=made.model.nbytes,
            sha256=made.model.sha256,
            state={slot: blob.name for slot, blob in made.state.items()},
        )

        def work(
            rows: TrainingRows, state: Training, now: float
        ) -> tuple[Training, tuple[StoredCheckpoint, list[str], list[str]]]:
            if state.phase != "closing":  # its host ended it meanwhile, or it did happen, and nobody heard of it
                unused = [made.model.name, *(blob.name for blob in made.state.values()), *averaged]
                return state, (rows.checkpoint(training), [], unused)
            state, _ = on(self.terms, state, Aggregated(), now)
            rows.add_checkpoint(training, after, now)
            done = [*(rows.drop_state(model.id) if model.state else ()), *averaged]
            done += rows.drop_checkpoints(training, after.number + 1 - self.terms.keep_checkpoints)
            return self._gather(rows, state, now), (after, list(rows.folded(training, sequence)), done)

        def opened(came: tuple[StoredCheckpoint, list[str], list[str]]) -> None:
            latest, folded, done = came
            self._train(latest)
            ground.at("cycle-opened")
            tidying = asyncio.to_thread(self._tidy, model, folded, done, over=self.over)
            self._tidying = asyncio.create_task(tidying)

        self._opening = True
        try:
            self._waiting.tell(others=False)  # devices ask behind this step, and are one transaction with it
            await self._step(work, opened)
        finally:
            self._opening = False
        if self._tidying is not None:
            await asyncio.shield(self._tidying)
        asyncio.get_running_loop().call_later(SPARE_S, ground.blobs.drop_spares, SPARE_S)

    def _closing(self) -> tuple[list[StoredReport], StoredCheckpoint] | None:
        """The reports of the cycle that was closed, and what it trained, where all that is known without the rows."""
        reports, model = self.folding.all_of(self.state.reports), self._latest
        if reports is None or model is None or model.state or model.number != self.state.completed + 1:
            return None
        return reports, model

    def _tidy(self, model: StoredCheckpoint, folded: list[str], done: list[str], *, over: bool) -> None:
        """The reports are in a checkpoint, which comes in the place of `model`, and `done` is of no more use. The next
        reports come into the files of these, where they come soon."""
        if model.nbytes >= LARGE and not self.terms.asynchronous:  # there some devices still train it
            self._ground.blobs.rest(model.blob)
        if over:
            self._delete(folded)
        else:
            self._ground.blobs.retire(folded, lambda: self._ground.at("report-deleted"))
        if done:
            self._delete(done)

    def _delete(self, names: list[str]) -> None:
        self._ground.blobs.delete_all(names, lambda: self._ground.at("report-deleted"))

    async def _averaged(self, plan: str, model: StoredCheckpoint, reports: list[StoredReport]) -> StoredReport:
        """What the host's plan makes of the reports, as if it were the only one."""
        blobs, folds = self._ground.blobs, self._ground.folds
        behind, environment = await folds.sandboxed()
        async with blobs.at_hand(plan, model.blob):
            blob = await asyncio.get_running_loop().run_in_executor(_AVERAGING, partial(
                average,
                blobs.path(plan), blobs.path(model.blob), [blobs.path(report.blob) for report in reports], blobs,
                f"average of {self.stored.id}", iterative=self.terms.iterative_plan, nbytes=self.form.nbytes,
                behind=behind, environment=environment,
            ))  # fmt: skip
        try:
            await folds.check(replace(self.subject, max_norm=None, forms=("float32",)), blobs.path(blob.name), 1)
        except BadRequest as error:
            await asyncio.to_thread(blobs.delete, blob.name)
            raise PlanInvalidError(f"the averaging plan's result is no diff of this model: {error}") from None
        return StoredReport(number=1, blob=blob.name, samples=1)

    def _fold_later(self, report: StoredReport | None) -> None:
        if report is not None:
            self._ground.at("report-counted")
            if self.stored.averaging is None:  # that needs all of them
                self.folding.later(report)

    # -------------------------------------------------------------- what it tells

    def is_start(self, key: str) -> bool:
        """Whether a cycle_start_request_key is of the invitations to the cycle that there is."""
        return hmac.compare_digest(key.encode(), announcing.start_key(self.stored, self.state).encode())

    def told(self) -> Standing:
        """How the training stands, for people who follow it."""
        state = self.state
        return {
            "name": self.stored.name,
            "version": self.stored.version,
            "phase": "failed" if self.failed else state.phase,
            "cycle": state.sequence,
            "completed": state.completed,
            "num_cycles": self.terms.num_cycles,
            "workers": state.assigned,
            "reports": state.reports,
            "checkpoint": state.completed + 1,
            "started": state.started is not None,
            "timeout": timeout(state, self._ground.clock()),
            "problem": self.failed or self.problem,
        }
