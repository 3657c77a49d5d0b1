"""The Node's doors for jobs: submit, look, wait, cancel, fetch the result; and large weights of rounds on their way."""

from __future__ import annotations

import asyncio
import os
import time

from tornado.web import stream_request_body

from grid_jupyter.errors import BadRequest
from grid_jupyter.node import policy
from grid_jupyter.node.bulk import Outgoing
from grid_jupyter.node.uploads import Uploads
from grid_jupyter.server.bulk_doors import Intake, SessionBulkDoor, send_value
from grid_jupyter.server.door import Door
from grid_jupyter.server.node_streams import (
    OFFSET_HEADER,
    BulkDoor,
    NodeDoor,
    UploadIn,
    byte_number,
    tell_progress,
)
from grid_jupyter.wire.jobs import Submit


@stream_request_body
class JobUploadIn(UploadIn):
    """PUT /data-centric/jobs/uploads/<id>: plan and weights of a job, as a safetensors file; Submit then names the id.
    HEAD: how much of it is here. PATCH: the rest of it."""

    @property
    def uploads(self) -> Uploads:
        return self.node.jobs.uploads


class JobsDoor(NodeDoor):
    """GET: the jobs that the caller may know of. POST: submit one."""

    async def get(self) -> None:
        self.reply(await self.node.jobs.visible(await self.require()))

    async def post(self) -> None:
        self.reply(await self.node.jobs.submit(await self.require(), self.body(Submit)))


class JobDoor(NodeDoor):
    """GET ?seen=&wait_s=: how a job stands, at once or when it has changed. DELETE: cancel it, or delete its result;
    with ?finished=1 no more of its rounds are needed."""

    async def get(self, job: str) -> None:
        seen = self.get_query_argument("seen", "")
        wait_s = min(60, byte_number(self.get_query_argument("wait_s", "0")))
        number = byte_number(seen) if seen else -1
        self.reply(await self.node.jobs.info(await self.require(), job, seen=number, wait_s=float(wait_s)))

    async def delete(self, job: str) -> None:
        finished = self.get_query_argument("finished", "0")
        if finished not in ("0", "1"):
            raise BadRequest("finished is 0 or 1")
        self.reply(await self.node.jobs.cancel(await self.require(), job, finished=finished == "1"))


class JobPlan(NodeDoor):
    """GET: the plan, in its one spelling."""

    async def get(self, job: str) -> None:
        data = await self.node.jobs.plan(await self.require(), job)
        self.set_header("Content-Disposition", "attachment")
        self.finish(data)


class JobResult(BulkDoor):
    """GET: the weights that a job came to, a safetensors file, from the first byte of a Range on."""

    async def get(self, job: str) -> None:
        descriptor = await self.node.jobs.result(await self.require(), job)
        try:
            os.lseek(descriptor, 0, os.SEEK_END)  # all of it is there
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            await send_value(self, Outgoing(descriptor, time.monotonic()), gone)
        finally:
            os.close(descriptor)


@stream_request_body
class RoundIn(SessionBulkDoor, Intake):
    """PUT /data-centric/jobs/rounds/<number>: large weights of a round, as bytes, into the session that asks for it.
    With ?job= they are for that job alone, whose file of the round before is used again. HEAD: how much of them is
    here. PATCH: the rest of them."""

    async def put(self, number: str) -> None:
        session, size, job = self.session, self.length(), self.get_query_argument("job", "")
        policy.check_session(session.user, self.node.guests)
        incoming = session.bulk.begin(byte_number(number), "uint8", (size,), size, job, use="round")
        await self.take_in(incoming, session, _whole)

    async def patch(self, number: str) -> None:
        session, offset = self.session, byte_number(self.request.headers.get(OFFSET_HEADER, ""))
        incoming = session.bulk.resume(byte_number(number), offset, "round")
        if self.length() != incoming.size - incoming.offset:
            raise BadRequest("PATCH brings all that is missing of an upload")
        await self.take_in(incoming, session, _whole)

    async def head(self, number: str) -> None:
        offset, complete = self.session.bulk.progress(byte_number(number))
        tell_progress(self, offset, complete)


async def _whole() -> None:
    """The weights are here; the round that names them takes them."""


JOB_RULES: list[tuple[str, type[Door]]] = [
    (r"/data-centric/jobs/?", JobsDoor),
    (r"/data-centric/jobs/uploads/([0-9a-f]{32})", JobUploadIn),
    (r"/data-centric/jobs/rounds/([0-9]+)", RoundIn),
    (r"/data-centric/jobs/([0-9a-f]{16})", JobDoor),
    (r"/data-centric/jobs/([0-9a-f]{16})/plan", JobPlan),
    (r"/data-centric/jobs/([0-9a-f]{16})/result", JobResult),
]
