"""The Node's doors for model-centric training: hosting, devices, checkpoints. Paths are 0.2.9's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import msgspec
from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from grid_jupyter.cycles.ending import ENDERS
from grid_jupyter.cycles.service import Cycles
from grid_jupyter.errors import (
    BadRequest,
    GridError,
    LimitExceededError,
    NotFound,
    OutcomeUnknownError,
    TranslationUnavailableError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.uploads import Uploads, check_may_publish
from grid_jupyter.server.door import Door, decode
from grid_jupyter.server.node_streams import PART, BulkDoor, NodeDoor, UploadIn, byte_number
from grid_jupyter.wire.answers import Hosted
from grid_jupyter.wire.places import WITH_MODEL, with_model
from grid_jupyter.wire.training import Authenticate, CycleRequest, HostTraining, Which

T = TypeVar("T")

MAX_HOSTING_BYTES = 32 << 20
"""Length of the body of host-training: its plans and configurations."""
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

    _gone = False
    _asking: asyncio.Task[Any] | None = None

    async def while_here(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What waiting for something comes to; None where whoever asked left, and it was given up."""
        if self._gone:
            work.close()
            return None
        self._asking = asyncio.create_task(work)
        try:
            return cast(T, await self._asking)
        except asyncio.CancelledError:
            if not self._gone:
                raise
            return None

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._gone = True
        if self._asking is not None:
            self._asking.cancel()

    def tell(self, answer: object, model: bytes | None) -> None:
        """Answer with JSON, and a model behind it if there is one."""
        if model is None:
            self.reply(answer)
        else:
            self.set_header("Content-Type", WITH_MODEL)
            self.finish(with_model(msgspec.json.encode(answer), model))

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

    _held, _host = 0, ""

    @property
    def uploads(self) -> Uploads:
        uploads: Uploads = self.settings["model_uploads"]
        return uploads

    async def _begin(self, publisher: Account, upload_id: str) -> None:
        nbytes, cycles = self.length(), self._cycles
        check_may_publish(publisher)
        await cycles.room.take(publisher.username, nbytes)
        self._held, self._host = nbytes, publisher.username
        await super()._begin(publisher, upload_id)

    def on_finish(self) -> None:
        super().on_finish()
        held, self._held = self._held, 0
        if held:
            self._cycles.room.give_back(self._host, held, held if self.get_status() == 200 else 0)

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


async def host(door: NodeDoor, account: Any, body: HostTraining) -> Hosted:
    """Host what an account uploaded before. Raises what `Cycles.host` does, and BadRequest for an unknown upload."""
    cycles: Cycles = door.settings["cycles"]
    uploads: Uploads = door.settings["model_uploads"]
    check_may_publish(account)
    key = account.username, body.model
    arrived = uploads.claim(key)
    if arrived is None:
        raise BadRequest("the model is not here: PUT its safetensors bytes to /model-centric/uploads/<id> first")
    try:
        said = await cycles.host(account.username, body, arrived.blob, takes_over=ENDERS in account.flags)
    except OutcomeUnknownError:
        raise  # a row may name it
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
        self.set_header("X-Grid-Sha256", found.sha256)
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
        placed = await self.while_here(self.cycles.place(self.body(CycleRequest)))
        if placed is not None:
            self.tell(placed.answer, placed.model)


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
    (r"/model-centric/retrieve-model/?", RetrieveModel),
    (r"/model-centric/cycle/?", CycleDoor),
    (r"/model-centric/end-training/?", EndTraining),
    (r"/model-centric/training/?", TrainingItself),
]
