"""The Node's doors for model-centric training: hosting, devices and their reports, checkpoints. Paths are 0.2.9's."""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import Any

import msgspec
from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from grid_jupyter.cycles.metrics import Measured, measured_of
from grid_jupyter.cycles.service import Arriving, Cycles
from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    GridError,
    InvalidDataError,
    LimitExceededError,
    NodeUnavailableError,
    NotFound,
    TranslationUnavailableError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.uploads import Uploads, check_may_publish
from grid_jupyter.server.door import Door
from grid_jupyter.server.node_streams import CHUNK, PART, BulkDoor, NodeDoor, UploadIn, byte_number
from grid_jupyter.server.report_bytes import append, of_text, unzip_of
from grid_jupyter.store.blobs import Upload
from grid_jupyter.wire.training import Authenticate, CycleRequest, HostTraining, Report, Samples, Which

MAX_HOSTING_BYTES = 32 << 20
"""Length of the body of host-training: its plans and configurations."""
MAX_JSON_REPORT_BYTES = 64 << 20
"""Length of a report in base64; larger ones come as bytes."""
MAX_TEXT_BYTES = 256 << 20
"""Bytes of all reports in base64 that come in at once: they are in memory, and anybody can begin one."""
SAMPLE_BYTES = 64 << 20
"""What a speed test downloads, or uploads, at most."""
_SAMPLE = os.urandom(PART)
"""What a sample repeats: gzip, which looks back 32 KiB, cannot make it smaller on the way."""


class TrainingDoor(NodeDoor):
    """Base of the doors of training. Devices have no accounts: their worker_id and request_key are what counts."""

    @property
    def cycles(self) -> Cycles:
        cycles: Cycles = self.settings["cycles"]
        return cycles

    def one(self, name: str) -> str:
        """A part of the query. Raises BadRequest without it."""
        value: str = self.get_query_argument(name, "")
        if not value:
            raise BadRequest(f"'{name}' is required")
        return value


# ------------------------------------------------------------------ hosting


@stream_request_body
class ModelIn(UploadIn):
    """PUT /model-centric/uploads/<id>: a model, as a safetensors file; host-training then names the id. HEAD: how much
    of it is here. PATCH: the rest of it."""

    _held = 0

    @property
    def uploads(self) -> Uploads:
        uploads: Uploads = self.settings["model_uploads"]
        return uploads

    async def _begin(self, publisher: Account, upload_id: str) -> None:
        nbytes, cycles = self.length(), self._cycles
        check_may_publish(publisher)
        await cycles.room.take(nbytes)
        self._held = nbytes
        await super()._begin(publisher, upload_id)

    def on_finish(self) -> None:
        super().on_finish()
        held, self._held = self._held, 0
        if held:
            self._cycles.room.give_back(held)

    @property
    def _cycles(self) -> Cycles:
        cycles: Cycles = self.settings["cycles"]
        return cycles


@stream_request_body
class HostDoor(TrainingDoor, BulkDoor):
    """POST: host a model whose bytes were uploaded."""

    async def prepare(self) -> None:
        self._body = bytearray()
        try:
            await super().prepare()
            check_may_publish(await self.require())
            if self.length() > MAX_HOSTING_BYTES:
                raise LimitExceededError(f"plans and configurations have at most {MAX_HOSTING_BYTES} bytes together")
        except GridError as error:
            await self.conclude(self.detach(), error)
            return
        self.take(MAX_HOSTING_BYTES)

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk

    async def post(self) -> None:
        body = await asyncio.to_thread(decode, bytes(self._body), HostTraining)
        self.reply(await host(self, await self.require(), body))


async def host(door: NodeDoor, account: Any, body: HostTraining) -> dict[str, Any]:
    """Host what an account uploaded before. Raises what `Cycles.host` does, and BadRequest for an unknown upload."""
    cycles: Cycles = door.settings["cycles"]
    uploads: Uploads = door.settings["model_uploads"]
    check_may_publish(account)
    key = account.username, body.model
    arrived = uploads.claim(key)
    if arrived is None:
        raise BadRequest("the model is not here: PUT its safetensors bytes to /model-centric/uploads/<id> first")
    try:
        said = await cycles.host(account.username, body, arrived.blob)
    except GridError:
        await asyncio.to_thread(cycles.blobs.delete, arrived.blob.name)
        raise
    note = door.settings["note"]
    note("training-hosted", account.username, name=body.client_config["name"], version=body.client_config["version"])
    return said


class RetrieveModel(TrainingDoor):
    """GET ?name=&version=&checkpoint=: a checkpoint's safetensors bytes."""

    async def get(self) -> None:
        await self.require()
        version = self.get_query_argument("version", None)
        checkpoint = self.get_query_argument("checkpoint", "latest")
        descriptor, found = await self.cycles.retrieve(self.one("name"), version, checkpoint)
        self.set_header("X-Grid-Checkpoint", str(found.number))
        self.set_header("Content-Disposition", "attachment")
        await self.send_blob(descriptor, found.nbytes)


class EndTraining(TrainingDoor):
    """POST {"name", "version"?}: training is over; its checkpoints stay."""

    async def post(self) -> None:
        account, which = await self.require(), self.body(Which)
        said = await self.cycles.ending.end(account, which.name, which.version)
        self.settings["note"]("training-ended", account.username, name=said["name"], version=said["version"])
        self.reply(said)


class TrainingItself(TrainingDoor):
    """DELETE ?name=&version=: end a training and forget all of it."""

    async def delete(self) -> None:
        account, name = await self.require(), self.one("name")
        version = self.one("version")
        said = await self.cycles.ending.delete(account, name, version)
        self.settings["note"]("training-deleted", account.username, name=name, version=version)
        self.reply(said)


class CycleDoor(TrainingDoor):
    """GET ?name=&version=&after=&wait_s=: how a training stands."""

    async def get(self) -> None:
        await self.require()
        after = self.get_query_argument("after", "")
        wait_s = min(60, byte_number(self.get_query_argument("wait_s", "0")))
        version = self.get_query_argument("version", None)
        number = byte_number(after) if after else -1
        self.reply(await self.cycles.cycle(self.one("name"), version, after=number, wait_s=wait_s))


# ------------------------------------------------------------------ devices


class AuthenticateDoor(TrainingDoor):
    """POST: a worker_id for a device."""

    open_to_all = frozenset({"POST"})

    async def post(self) -> None:
        self.reply(await self.cycles.authenticate(self.body(Authenticate)))


class CycleRequestDoor(TrainingDoor):
    """POST: a place in the cycle."""

    open_to_all = frozenset({"POST"})

    async def post(self) -> None:
        self.reply(await self.cycles.request(self.body(CycleRequest)))


class GetModel(TrainingDoor):
    """GET ?worker_id=&request_key=&model_id=: the checkpoint that a device's cycle trains."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        number = byte_number(self.one("model_id"))
        await self.send_blob(*await self.cycles.model(self.one("worker_id"), self.one("request_key"), number))


class GetPlan(TrainingDoor):
    """GET ?worker_id=&request_key=&plan_id=&receive_operations_as=: a plan, as its document or as ONNX."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        form = self.get_query_argument("receive_operations_as", "list")
        if form not in ("list", "onnx"):
            raise TranslationUnavailableError(
                "plans are here as documents (receive_operations_as=list) and as ONNX (=onnx), in no other form"
            )
        number = byte_number(self.one("plan_id"))
        onnx = form == "onnx"
        data = await self.cycles.plan(self.one("worker_id"), self.one("request_key"), number, onnx=onnx)
        self.set_header("Content-Type", "application/octet-stream")
        self.finish(data)


class GetProtocol(TrainingDoor):
    """GET ?worker_id=&request_key=&protocol_id=: this Node hosts no protocols, so none is ever found."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        await self.cycles.check_key(self.one("worker_id"), self.one("request_key"))
        byte_number(self.one("protocol_id"))
        raise NotFound("Protocol not found! This Node hosts none; 'protocols' of an accepted cycle-request is empty")


class ReqJoin(TrainingDoor):
    """GET ?model_name=&model_version=: what a new device would be told if it asked for a place."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        version = self.get_query_argument("model_version", None)
        self.reply(await self.cycles.foresee(self.one("model_name"), version))


@stream_request_body
class SpeedTest(TrainingDoor, BulkDoor):
    """GET ?worker_id=&random=[&is_ping=1]: nothing, or a sample to download. POST: a sample that is uploaded."""

    open_to_all = frozenset({"GET", "POST"})

    async def prepare(self) -> None:
        try:
            await super().prepare()
            await self.cycles.check_worker(self.one("worker_id"))
            if self.request.method == "POST" and self.length() > SAMPLE_BYTES:
                raise LimitExceededError(f"a speed test uploads at most {SAMPLE_BYTES} bytes")
        except GridError as error:
            await self.conclude(self.detach(), error)
            return
        if self.request.method == "POST":
            self.take(SAMPLE_BYTES)

    def data_received(self, chunk: bytes) -> None:
        """It was received, which is all that it is for."""

    async def get(self) -> None:
        if self.get_query_argument("is_ping", ""):
            self.reply({})
            return
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", "attachment; filename=sample")
        self.set_header("Content-Length", str(SAMPLE_BYTES))
        try:
            for _ in range(SAMPLE_BYTES // PART):
                self.write(_SAMPLE)
                await self.hand_over()
        except StreamClosedError:
            return  # whoever has measured enough leaves
        self.finish()

    async def post(self) -> None:
        self.reply({})


# ------------------------------------------------------------------ reports


@stream_request_body
class ReportDoor(TrainingDoor, BulkDoor):
    """POST ?worker_id=&request_key=&num_samples=: a diff as a safetensors file, perhaps gzip'ed. Or POST JSON, with the
    file in base64."""

    open_to_all = frozenset({"POST"})
    _arriving: Arriving | None = None
    _upload: Upload | None = None
    _unzip: Any = None
    _writing = False
    _text_bytes = 0

    async def prepare(self) -> None:
        self._body = bytearray()
        try:
            await super().prepare()
            self._is_json = self.request.headers.get("Content-Type", "").startswith("application/json")
            if self._is_json:
                largest = (64 << 10) + self.cycles.largest_report() * 4 // 3
                self._begin(min(MAX_JSON_REPORT_BYTES, largest))
                return
            self._samples = self._number_of_samples()
            measured = self._measured()
            arriving = await self.cycles.begin_report(self.one("worker_id"), self.one("request_key"))
            arriving.measured = measured
            self._arriving, arriving.give_way = arriving, self._give_way
            self._unzip = unzip_of(self.request.headers.get("Content-Encoding", "identity"))
            self._begin(arriving.limit)
            upload = await asyncio.to_thread(self.cycles.blobs.begin, secrets.token_hex(16))
            if self._arriving is None:  # it gave way meanwhile, or its sender left
                upload.abort()
                return
            self._upload = upload
            self.check_still_there()
        except GridError as error:
            self.on_finish()
            if not self._finished:
                await self.conclude(self.detach(), error)

    def _give_way(self) -> None:
        self.give_up(Conflict("the report of this place was begun again elsewhere, and only the newer one counts"))

    def _number_of_samples(self) -> int | None:
        return self._rows("train_num_samples") or self._rows("num_samples")

    def _measured(self) -> Measured | None:
        told = decode(self.get_query_argument("metrics", "").encode(), dict[str, Any])
        return measured_of(told, self._rows("metrics_samples") or self._samples)

    def _rows(self, name: str) -> int | None:
        told = self.get_query_argument(name, "")
        try:
            return msgspec.convert(told, Samples, strict=False) if told else None
        except msgspec.ValidationError:
            raise BadRequest(f"{name!r} is a whole number from 1 on: the rows that the report rests on") from None

    def _begin(self, limit: int) -> None:
        if self.length() > limit:
            raise LimitExceededError(
                f"a report of {self.length()} bytes is over the limit of {limit} that this model's have here"
            )
        self.take(limit)

    async def data_received(self, chunk: bytes) -> None:
        if self._is_json and not self._finished:  # what is here counts, not what somebody says that will come
            if self.cycles.text_bytes + len(chunk) > MAX_TEXT_BYTES:
                self._body.clear()
                self.give_up(NodeUnavailableError("too many reports in base64 come in at once; send it again later"))
                return
            self._text_bytes += len(chunk)
            self.cycles.text_bytes += len(chunk)
        self._body += chunk
        if self._upload is not None and len(self._body) >= CHUNK:
            await self._write()

    async def _write(self) -> None:
        """In pieces large enough to be worth the way off the event loop."""
        data, self._body = self._body, bytearray()
        upload, arriving = self._upload, self._arriving
        if upload is None or arriving is None:
            return
        self._writing = True
        try:
            await asyncio.to_thread(append, upload, data, self._unzip, arriving.limit)
        except GridError as error:
            self.give_up(error)
        finally:
            self._writing = False
            if self._upload is None:  # given up meanwhile
                upload.abort()

    async def post(self) -> None:
        if self._finished:
            return
        if self._is_json:
            await report_text(self.cycles, bytes(self._body))
            self.reply({"status": "success"})
            return
        await self._write()
        arriving, upload = self._arriving, self._upload
        if arriving is None or upload is None:  # it was refused, and told so
            return
        if self._unzip is not None and not self._unzip.eof:
            raise InvalidDataError("the gzip'ed report ends early; send all of it")
        self._upload = None
        await self.cycles.finish_report(arriving, upload, self._samples)
        self.reply({"status": "success"})

    def on_finish(self) -> None:
        upload, self._upload = self._upload, None
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            self.cycles.end_report(arriving)
        if upload is not None and not self._writing:  # its file must stay open while a thread writes to it
            upload.abort()
        self.cycles.text_bytes -= self._text_bytes
        self._text_bytes = 0


async def report_text(cycles: Cycles, body: bytes) -> None:
    """A report as JSON, its diff in base64."""
    report = await asyncio.to_thread(decode, body, Report)
    samples = report.train_num_samples or report.num_samples
    measured = measured_of(report.metrics, report.metrics_samples or samples)
    arriving = await cycles.begin_report(report.worker_id, report.request_key)
    arriving.measured = measured
    try:
        upload = await asyncio.to_thread(of_text, cycles.blobs, report.diff)
    finally:
        cycles.end_report(arriving)
    await cycles.finish_report(arriving, upload, samples)


def decode(body: bytes, kind: Any) -> Any:
    """A JSON body as `kind`. Raises BadRequest, never quoting the body."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"Invalid JSON format. {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise BadRequest("Invalid JSON format.") from None


TRAINING_RULES: list[tuple[str, type[Door]]] = [
    (r"/model-centric/uploads/([0-9a-f]{32})", ModelIn),
    (r"/model-centric/host-training/?", HostDoor),
    (r"/model-centric/authenticate/?", AuthenticateDoor),
    (r"/model-centric/speed-test/?", SpeedTest),
    (r"/model-centric/cycle-request/?", CycleRequestDoor),
    (r"/model-centric/get-model/?", GetModel),
    (r"/model-centric/get-plan/?", GetPlan),
    (r"/model-centric/get-protocol/?", GetProtocol),
    (r"/model-centric/req-join/?", ReqJoin),
    (r"/model-centric/report/?", ReportDoor),
    (r"/model-centric/retrieve-model/?", RetrieveModel),
    (r"/model-centric/cycle/?", CycleDoor),
    (r"/model-centric/end-training/?", EndTraining),
    (r"/model-centric/training/?", TrainingItself),
]
