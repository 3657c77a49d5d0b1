"""Model-centric training on this Node: hosting, devices, their places and reports, and what they fetch."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from grid_jupyter.cycles import machine
from grid_jupyter.cycles.admission import check_token
from grid_jupyter.cycles.arriving import SMALL, Arrivals, Arriving
from grid_jupyter.cycles.averaging_plan import check_averaging, end_all
from grid_jupyter.cycles.ending import Ending
from grid_jupyter.cycles.fold_worker import FoldWorker, fold_workers
from grid_jupyter.cycles.hosting import buffers_of, check_fits, read_hosting
from grid_jupyter.cycles.keeping import Keeping
from grid_jupyter.cycles.known_places import KnownPlaces, Place
from grid_jupyter.cycles.live import Accepted, Ground, Live
from grid_jupyter.cycles.machine import Reject, Training, timeout
from grid_jupyter.cycles.metrics import Metrics
from grid_jupyter.cycles.onnx_plans import OnnxPlans
from grid_jupyter.cycles.pushing import SLOW_GB, Pushing
from grid_jupyter.cycles.room import Room, kept_by
from grid_jupyter.cycles.small_models import SmallModels
from grid_jupyter.cycles.terms import Terms, advice, read_speed, read_terms
from grid_jupyter.cycles.third_party import ThirdParty
from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    GridError,
    LimitExceededError,
    NodeUnavailableError,
    NotFound,
    ObjectNotFoundError,
    OutcomeUnknownError,
    StorageFullError,
)
from grid_jupyter.push.bus import Bus
from grid_jupyter.push.notifier import LogNotifier, Notifier
from grid_jupyter.store.blobs import Blob, BlobStore, Upload
from grid_jupyter.store.database import Database
from grid_jupyter.store.trainings import (
    StoredCheckpoint,
    StoredPlan,
    StoredTraining,
    TrainingRows,
    TrainingTable,
)
from grid_jupyter.wire import answers
from grid_jupyter.wire.training import Authenticate, CycleRequest, HostTraining, NextPlace

if TYPE_CHECKING:
    from pathlib import Path

    from grid_jupyter.aggregation.form import Form

T = TypeVar("T")
log = logging.getLogger("grid_jupyter")

HEADER_BYTES = 1 << 20
"""What a report may be longer than the model: another order of tensors, metadata."""


@dataclass(frozen=True)
class Placed:
    """The answer to a request for a place, and the file of the model where it goes with it."""

    answer: answers.Accepted | answers.Rejected
    model: bytes | None = None


class Cycles:
    """All trainings of a Node."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        *,
        folds: FoldWorker | None = None,
        clock: Callable[[], float] = time.time,
        at: Callable[[str], None] = lambda point: None,
        bus: Bus | None = None,
        push: Notifier | None = None,
        storage_bytes: int | None = None,
        host_storage_bytes: int | None = None,
        third_party: ThirdParty | None = None,
    ) -> None:
        """`folds` is where reports are folded, and ended with this; by itself, a Worker on this machine. `bus` is told
        what happens; `push` reaches devices that are not connected (the log, unless given); `storage_bytes` is what
        trainings may take of the disk (all of it), `host_storage_bytes` those of one account; `third_party` is asked
        about tokens (nobody is)."""
        self.blobs = blobs
        self._table = TrainingTable(database)
        self.metrics = Metrics(
            database, clock, lambda training, cycle: self._live[training].takes(cycle), lambda: self._tell()
        )
        self._tell: Callable[[], None] = lambda: None
        folding = folds or FoldWorker(fold_workers())
        self._ground = Ground(self._table, blobs, folding, clock, at, bus or Bus(), lambda: self._tell())
        self._live: dict[int, Live] = {}
        self._places = KnownPlaces()
        self._small_models = SmallModels(blobs)
        self._keeping = Keeping()
        self._stopped = False
        self.room = Room(
            blobs,
            storage_bytes,
            time.monotonic,
            share=host_storage_bytes,
            kept_by=lambda host: kept_by(host, self._live, self._table, blobs),
        )
        self.ending = Ending(
            self._table, blobs, self._live, self._finish_reports, self._ground.folds, lambda: self._tell()
        )
        self._onnx = OnnxPlans()
        self._third_party = third_party or ThirdParty()
        self.text_bytes = 0
        """Bytes of reports in base64 that come in just now."""
        self.counted = self.refused = 0
        """Reports since the start."""
        self.arrivals = Arrivals(at, self._gone)
        self._finishing: set[asyncio.Task[Any]] = set()
        self.push = Pushing(database, self._table, self._live, push or LogNotifier(), self._ground)

    async def start(self) -> None:
        """Remove what an earlier process left half done, and go on with every training."""
        known, reports = await self._table.transact(lambda rows: (rows.blobs(), rows.report_blobs()))
        await asyncio.to_thread(self.blobs.sweep, known, reports)
        for stored, state, model in await self._table.transact(_all):
            await self._go_on(stored, state, model.blob)
        await self.push.start()

    async def stop(self) -> None:
        """Let go of all of it; nothing is lost."""
        self._stopped = True
        self.arrivals.close()
        await self.push.stop()
        while self._finishing:
            await asyncio.wait(self._finishing)
        end_all()
        for live in self._live.values():
            await live.stop()
        await self._ground.folds.stop()
        await asyncio.to_thread(self.blobs.spares.drop)

    def on_change(self, tell: Callable[[], None]) -> None:
        """What is called when a training is hosted, stands otherwise than before, or was measured."""
        self._tell = tell

    async def _begin(self, stored: StoredTraining, form: Form, state: Training, model: Path) -> None:
        live = self._live[stored.id] = Live(self._ground, stored, read_terms(stored.server_config), form, state, model)
        await live.start()
        self._tell()

    async def _go_on(self, stored: StoredTraining, state: Training, model: str) -> None:
        """A training of an earlier process. Where it cannot go on it is shown as failed, and the others do."""
        path = self.blobs.path(model)
        try:
            if state.phase != "over":
                await self.blobs.hold(model)
            await self._begin(stored, await asyncio.to_thread(_form_of, self.blobs, model), state, path)
        except (GridError, OSError) as error:
            gone = isinstance(error, ObjectNotFoundError | OSError)
            why = "the file of its model is gone" if gone else str(error)
            log.error("the training %d cannot go on: %s", stored.id, why)
            self._live[stored.id] = await asyncio.to_thread(_failed, self._ground, stored, state, path, why)

    # -------------------------------------------------------------- hosting

    async def host(self, owner: str, body: HostTraining, model: Blob, *, takes_over: bool = False) -> answers.Hosted:
        """Host a model, whose blob is on the disk; `takes_over` as `TrainingRows.add` has it.

        Raises BadRequest, InvalidDataError, PlanInvalidError, Conflict; the blob is the caller's then, but after
        OutcomeUnknownError.
        """
        hosted = await asyncio.to_thread(read_hosting, body)
        known = hosted.terms.authentication
        if known is not None and known.endpoint is not None:
            self._third_party.check_url(known.endpoint)
        form = await asyncio.to_thread(_form_of, self.blobs, model.name)
        check_fits(hosted.plans, form)
        if hosted.averaging is not None:
            await asyncio.to_thread(check_averaging, hosted.averaging, hosted.terms.iterative_plan, form, hosted.terms)
        await asyncio.to_thread(_check_model, self.blobs, model.name, form)
        await self.blobs.hold(model.name)
        now = self._ground.clock()
        state = machine.begin(hosted.terms, now)
        plans: list[StoredPlan] = []
        averaging: Blob | None = None
        try:
            if hosted.averaging is not None:
                averaging = await asyncio.to_thread(self._write, hosted.texts[""])
            for key in hosted.plans:
                blob = await asyncio.to_thread(self._write, hosted.texts[key])  # its hash is that of the document
                plans.append(StoredPlan(id=0, name=key, sha256=blob.sha256, blob=blob.name, nbytes=blob.nbytes))
            training = StoredTraining(
                id=0,
                name=hosted.name,
                version=hosted.version,
                owner=owner,
                created=now,
                client_config=hosted.client_config,
                server_config=hosted.server_config,
                seed=secrets.token_hex(16) if hosted.terms.seed is None else str(hosted.terms.seed),
                secret=secrets.token_hex(32),
                buffers=buffers_of(hosted.plans),
                averaging=None if averaging is None else averaging.name,
            )
            first = StoredCheckpoint(id=0, number=1, blob=model.name, nbytes=model.nbytes, sha256=model.sha256)
            raw = msgspec.to_builtins(state)
            number = await self._table.transact(
                lambda rows: rows.add(training, raw, plans, first, takes_over=takes_over)
            )
        except OutcomeUnknownError:
            raise  # rows may name them
        except GridError:
            for name in [*(plan.blob for plan in plans), *([] if averaging is None else [averaging.name])]:
                await asyncio.to_thread(self.blobs.delete, name)
            raise
        await self._begin(replace(training, id=number), form, state, self.blobs.path(model.name))
        return {"status": "success", "advice": advice(hosted.terms)}

    def _write(self, data: bytes) -> Blob:
        with self.blobs.begin(secrets.token_hex(16)) as upload:
            upload.write(data)
            return upload.commit()

    # -------------------------------------------------------------- devices

    async def authenticate(self, body: Authenticate) -> answers.Authenticated:
        """A worker_id for a device. Raises NotFound, NotAuthenticatedError."""
        live = self._find(body.model_name, body.model_version)
        known = live.terms.authentication
        subject = check_token(known, body.auth_token)
        if known is not None and known.endpoint is not None:
            await self._third_party.check(known.endpoint, body.auth_token or "")
        slow = body.ram_size is not None and body.ram_size < SLOW_GB
        worker_id = await live.register(slow=slow, subject=subject, token=body.fcm_device_token)
        self.push.connected(live, "authenticate")
        return {"status": "success", "worker_id": worker_id, "requires_speed_test": live.terms.measures_speed}

    async def foresee(self, name: str, version: str | None) -> answers.Welcome | answers.Rejected:
        """Whether it is worth coming: what a new device would be told if it asked for a place. Raises NotFound."""
        live = self._find(name, version)
        live.check_stays()
        answer = live.foresee()
        return {"status": "accepted"} if answer is None else _rejected(answer)

    async def check_key(self, worker_id: str, request_key: str) -> None:
        """Raises NotFound, NotAuthenticatedError, Conflict where a place is not this device's, or over."""
        await self._within_cycle(worker_id, request_key, lambda rows, live, sequence: None)

    async def check_worker(self, worker_id: str) -> None:
        """Raises NotFound for a device that never registered."""
        await self._table.transact(lambda rows: rows.device(worker_id) and None)

    async def request(self, body: CycleRequest) -> answers.Accepted | answers.Rejected:
        """A place in the cycle, or when to ask again; without a timeout training is over.

        Raises NotFound, BadRequest, Conflict.
        """
        return (await self.place(body)).answer

    async def place(self, body: CycleRequest) -> Placed:
        """The same, with the model where it is small. Raises as `request`."""
        live = self._find(body.model, body.version)
        if body.cycle_start_request_key and not live.is_start(body.cycle_start_request_key):
            wait_s = timeout(live.state, self._ground.clock())
            return Placed(_rejected(Reject(wait_s, "this invitation was to another cycle")))
        return await self._place(live, body.worker_id, body)

    async def next_place(self, arriving: Arriving, asked: NextPlace) -> Placed | None:
        """The next place of a device whose report counts; None where asking would be refused, as it will be told when
        it asks by itself."""
        try:
            return await self._place(arriving.live, arriving.worker_id, asked)
        except GridError:
            return None

    async def _place(self, live: Live, worker_id: str, body: NextPlace) -> Placed:
        terms, clock = live.terms, asyncio.get_running_loop().time
        read_speed("ping", body.ping, required=terms.measures_speed)
        download = read_speed("download", body.download, required=terms.minimum_download_speed is not None)
        upload = read_speed("upload", body.upload, required=terms.minimum_upload_speed is not None)
        until = clock() + body.wait_s
        while True:
            answer = live.settled(worker_id) or await live.ask(worker_id, body.nonce, download=download, upload=upload)
            if isinstance(answer, Accepted):
                self._ground.folds.prepare()
                accepted = await self._accepted(live, worker_id, answer)
                return Placed(accepted, await self._small_models.get(answer.checkpoint, body.inline_bytes))
            left = until - clock()
            if answer.timeout_s is None or left <= 0 or self._stopped:
                return Placed(_rejected(answer))
            await live.changed(min(left, answer.timeout_s), devices=True)
            if self._stopped:
                return Placed(_rejected(answer))

    async def _accepted(self, live: Live, worker_id: str, answer: Accepted) -> answers.Accepted:
        self._places.add(
            answer.request_key,
            Place(live, worker_id, answer.attempt, answer.sequence, answer.checkpoint),
        )
        plans = await live.plans()
        return {
            "status": "accepted",
            "request_key": answer.request_key,
            "version": live.stored.version,
            "model": live.stored.name,
            "plans": {plan.name: plan.id for plan in plans},
            "protocols": {},
            "client_config": live.stored.client_config,
            "diff_forms": live.terms.diff_forms,
            "model_id": live.stored.id,
            "cycle_id": answer.sequence,
            "checkpoint": answer.checkpoint.number,
            "model_sha256": answer.checkpoint.sha256,
            "plan_sha256": {plan.name: plan.sha256 for plan in plans},
        }

    async def model(self, worker_id: str, request_key: str, model_id: int) -> tuple[int, int]:
        """A descriptor of the checkpoint of a device's cycle, and its length. The caller closes it.

        Raises NotFound, NotAuthenticatedError, Conflict.
        """

        def work(rows: TrainingRows, live: Live, sequence: int) -> StoredCheckpoint:
            if model_id != live.stored.id:
                raise NotFound("Model not found! Use the model_id of the cycle-request that was accepted")
            try:
                return rows.checkpoint(live.stored.id, sequence)  # of a cycle that is not the open one, too
            except NotFound:
                raise Conflict("Cycle not found! Its checkpoint is kept no longer; ask for a new place") from None

        known = self._places.find(worker_id, request_key)
        if known is not None and model_id == known.live.stored.id:
            found = known.checkpoint
        else:
            found = await self._within_cycle(worker_id, request_key, work)
        return await self.blobs.open(found.blob, found.sha256), found.nbytes

    async def plan(self, worker_id: str, request_key: str, plan_id: int, *, onnx: bool = False) -> bytes:
        """A plan's document, or the same as ONNX. Raises NotFound, NotAuthenticatedError, Conflict, and
        PlanInvalidError for one that cannot be ONNX."""

        def work(rows: TrainingRows, live: Live, _sequence: int) -> StoredPlan:
            found = next((plan for plan in rows.plans(live.stored.id) if plan.id == plan_id), None)
            if found is None:
                raise NotFound("Plan not found! Use an id among the plans of the cycle-request that was accepted")
            return found

        found = await self._within_cycle(worker_id, request_key, work)

        def read() -> bytes:
            with self.blobs.reading(found.blob) as file:
                return file.read()

        return await (self._onnx.get(found.sha256, read) if onnx else asyncio.to_thread(read))

    async def _within_cycle(self, worker_id: str, request_key: str, work: Callable[[TrainingRows, Live, int], T]) -> T:
        def run(rows: TrainingRows) -> T:
            _, place = rows.place_of(worker_id, request_key)
            live = self._live[place.training_id]
            late = live.terms.staleness(place.sequence, live.state.sequence)
            if late is None or place.state == "none":
                raise Conflict("Cycle not found! The cycle of this request_key is over; ask for the next one")
            return work(rows, live, place.sequence)

        return await self._table.transact(run)

    # -------------------------------------------------------------- reports

    async def begin_report(self, worker_id: str, request_key: str) -> Arriving:
        """Whether a report could count, before its bytes come.

        Raises NotFound, NotAuthenticatedError, Conflict, NodeUnavailableError.
        """
        self._check_runs()

        live, nbytes, _ = await self._awaited(worker_id, request_key)
        try:
            await self.room.take(live.stored.owner, nbytes + HEADER_BYTES)
        except StorageFullError:
            if not self.arrivals.make_room():
                raise
            await self.room.take(live.stored.owner, nbytes + HEADER_BYTES)
        return self.arrivals.begin(Arriving(live, worker_id, request_key, nbytes + HEADER_BYTES))

    def report_file(self, live: Live, nbytes: int = 0) -> Upload:
        """Where the bytes of a report are to be written, of which there will be `nbytes`, as far as that is known."""
        return self.blobs.begin(  # the checkpoint comes into the one left
            nbytes=nbytes, leave=1, digest=live.digest, held=SMALL
        )

    async def resume_report(self, worker_id: str, request_key: str, offset: int) -> Arriving:
        """A report that goes on from a byte. Raises as `begin_report`, ObjectNotFoundError where nothing of it is here,
        Conflict where it stands at another byte."""
        self._check_runs()
        await self._awaited(worker_id, request_key)
        return self.arrivals.resume(request_key, offset)

    async def report_progress(self, worker_id: str, request_key: str) -> tuple[int, bool]:
        """Bytes of a report that are here, of its body as it is sent; or 0, and that it counts already.

        Raises as `begin_report`, and ObjectNotFoundError where nothing of it is here.
        """
        _, _, counts = await self._awaited(worker_id, request_key)
        return (0, True) if counts else (await self.arrivals.progress(request_key), False)

    async def _awaited(self, worker_id: str, request_key: str) -> tuple[Live, int, bool]:
        """The training of a place that a report could be for, the length of its model, whether one counts already."""
        known = self._places.find(worker_id, request_key)
        if known is not None:
            return known.live, known.checkpoint.nbytes, False

        def work(rows: TrainingRows) -> tuple[Live, int, bool]:
            _, place = rows.place_of(worker_id, request_key)
            live = self._live[place.training_id]
            # what was reported may be sent again by a device that never heard the answer
            if place.state != "reported" and not live.takes(place.sequence):
                raise Conflict("the cycle of this request_key is closed; ask for the next one")
            if place.state not in ("assigned", "reported"):
                raise Conflict("the cycle began again, and this place was given up; ask for a new one")
            return live, rows.checkpoint(live.stored.id).nbytes, place.state == "reported"

        return await self._table.transact(work)

    def _gone(self, arriving: Arriving, kept: int) -> None:
        self.room.give_back(arriving.live.stored.owner, arriving.limit, kept)

    def end_report(self, arriving: Arriving) -> None:
        """No more bytes of it come."""
        self.arrivals.end(arriving)

    def largest_report(self) -> int:
        """Length of the longest report that any training here could take."""
        return max((live.form.nbytes for live in self._live.values()), default=0) + HEADER_BYTES

    async def finish_report(self, arriving: Arriving, upload: Upload, samples: int | None) -> None:
        """Check a report whose bytes are here, make it durable, and count it: when this returns, it counts, whatever
        ends this process. Goes on where its caller is cancelled.

        Raises InvalidDataError, LimitExceededError, Conflict, StorageFullError, NodeUnavailableError; then it does not
        count.
        """
        self.arrivals.end(arriving, upload.size)
        try:
            self._check_runs()
        except NodeUnavailableError:
            await asyncio.to_thread(upload.abort)
            raise
        try:
            await self._finish(self._take(arriving, upload, samples or 1))
        except GridError:
            self.refused += 1
            raise

    def _check_runs(self) -> None:
        if self._stopped:
            raise NodeUnavailableError("this Node is stopping; send the report again")

    async def _take(self, arriving: Arriving, upload: Upload, samples: int) -> None:
        live, ground = arriving.live, self._ground

        try:
            ground.at("report-arrived")
            if live.leaving:  # its number may be another training's soon
                raise NotFound("Federated Learning Process not found! It is being deleted")
            if samples > live.terms.max_samples:
                raise BadRequest(f"'num_samples' is more than the {live.terms.max_samples} of max_samples")
            if upload.size > arriving.limit:
                raise LimitExceededError(f"a report of this model has at most {arriving.limit} bytes")
            await ground.folds.check(live.subject, upload, samples)
        except BaseException:
            await asyncio.to_thread(upload.abort)
            raise
        blob = await self._keeping.keep(upload)
        ground.at("report-durable")
        self._places.drop(arriving.request_key)
        try:
            counted = await live.report(arriving.worker_id, arriving.request_key, samples, blob, arriving.measured)
        except OutcomeUnknownError:
            raise  # as after what is no GridError, the row may be there: the file stays, the sweep of a start knows
        except GridError:
            await asyncio.to_thread(self.blobs.delete, blob.name)
            raise
        self.counted += counted
        if not counted:
            await asyncio.to_thread(self.blobs.delete, blob.name)

    async def _finish_reports(self) -> None:
        """Wait for those whose bytes are here."""
        if self._finishing:
            await asyncio.wait(set(self._finishing))

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        await asyncio.shield(task)

    # -------------------------------------------------------------- those who host

    async def retrieve(self, name: str, version: str | None, checkpoint: str) -> tuple[int, StoredCheckpoint]:
        """A descriptor of a checkpoint ("latest", or its number), and what it is. The caller closes it.

        Raises NotFound, BadRequest.
        """
        if checkpoint != "latest" and not (checkpoint.isascii() and checkpoint.isdigit() and len(checkpoint) < 10):
            raise BadRequest("checkpoint is 'latest', or its number from 1 on")
        number = None if checkpoint == "latest" else int(checkpoint)
        found = await self._table.transact(lambda rows: rows.checkpoint(rows.find(name, version).id, number))
        return await self.blobs.open(found.blob, found.sha256), found

    async def cycle(self, name: str, version: str | None, *, after: int, wait_s: float) -> answers.Standing:
        """How a training stands; at once, or when more than `after` cycles are complete. Raises NotFound."""
        live = self._find(name, version)
        until = asyncio.get_running_loop().time() + wait_s
        while live.state.completed <= after and live.state.phase != "over":
            left = until - asyncio.get_running_loop().time()
            if left <= 0 or self._stopped:
                break
            await live.changed(left)
        return live.told()

    def _find(self, name: str, version: str | None) -> Live:
        named = [
            number
            for number, live in self._live.items()
            if live.stored.name == name and version in (None, live.stored.version)
        ]
        if not named:
            raise NotFound("Federated Learning Process not found! Check name and version of the model")
        return self._live[max(named)]


def _all(rows: TrainingRows) -> list[tuple[StoredTraining, Training, StoredCheckpoint]]:
    return [(one, msgspec.convert(rows.state(one.id), Training), rows.checkpoint(one.id, 1)) for one in rows.all()]


def _failed(ground: Ground, stored: StoredTraining, state: Training, model: Path, why: str) -> Live:
    """A training that this version does not go on with: it can be looked at, ended and deleted."""
    from grid_jupyter.aggregation.form import Form

    return Live(ground, stored, Terms(), Form(()), replace(state, phase="over"), model, failed=why)


def _form_of(blobs: BlobStore, model: str) -> Form:
    from grid_jupyter.aggregation.reports import form_of  # a Node that hosts nothing does without NumPy

    with blobs.reading(model) as file:
        return form_of(file.fileno())


def _check_model(blobs: BlobStore, model: str, form: Form) -> None:
    from grid_jupyter.aggregation.averaging import Averaging
    from grid_jupyter.aggregation.reports import Folding

    with blobs.reading(model) as file:
        Folding(form, Averaging()).check(file.fileno(), accepted=("float32",))


def _rejected(answer: Reject) -> answers.Rejected:
    told: answers.Rejected = {"status": "rejected", "reason": answer.reason}
    if answer.timeout_s is not None:
        told["timeout"] = answer.timeout_s
    return told
