"""The door by which devices hand in reports: bytes, perhaps gzip'ed or in parts, or base64 within JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from tornado.web import stream_request_body

from grid_jupyter.cycles.arriving import Arriving, GaveWay, unzip_of
from grid_jupyter.cycles.metrics import Measured, measured_of
from grid_jupyter.cycles.service import Cycles
from grid_jupyter.errors import BadRequest, GridError, LimitExceededError, NodeUnavailableError
from grid_jupyter.server.door import Door, decode
from grid_jupyter.server.node_streams import OFFSET_HEADER, READ, BulkDoor, byte_number, tell_progress
from grid_jupyter.server.report_bytes import of_text, parted
from grid_jupyter.server.training_doors import TrainingDoor
from grid_jupyter.wire.training import MAX_METRICS_BYTES, NextPlace, Samples

MAX_JSON_REPORT_BYTES = 64 << 20
"""Length of a report in base64; larger ones come as bytes."""
MAX_TEXT_BYTES = 256 << 20
"""Bytes of all reports in base64 that come in at once: they are in memory, and anybody can begin one."""


@stream_request_body
class ReportDoor(TrainingDoor, BulkDoor):
    """POST ?worker_id=&request_key=&num_samples=: a diff as a safetensors file, perhaps gzip'ed. Or POST JSON, with the
    file in base64. HEAD: how much of it is here. PATCH: the rest of it."""

    open_to_all = frozenset({"POST", "PATCH", "HEAD"})
    _arriving: Arriving | None = None
    _turn = 0
    _is_json = False
    _text_bytes = 0
    _next: NextPlace | None = None

    async def prepare(self) -> None:
        self._body = bytearray()
        try:
            await super().prepare()
            if self.request.method == "POST":
                await self._prepare_post()
            elif self.request.method == "PATCH":
                await self._prepare_patch()
            self.check_still_there()
        except GridError as error:
            self._refuse()
            self.on_finish()
            if not self._finished:
                await self.conclude(self.detach(), error)

    async def _prepare_post(self) -> None:
        self._is_json = self.request.headers.get("Content-Type", "").startswith("application/json")
        if self._is_json:
            largest = (64 << 10) + self.cycles.largest_report() * 4 // 3
            self._begin(min(MAX_JSON_REPORT_BYTES, largest))
            return
        samples = self._rows("train_num_samples") or self._rows("num_samples")
        measured = self._measured(samples)
        self._next = self._wanted()
        arriving = await self.cycles.begin_report(self.one("worker_id"), self.one("request_key"))
        self._arriving, self._turn = arriving, arriving.begin_turn(self._give_way)
        arriving.measured, arriving.samples, arriving.size = measured, samples, self.length()
        arriving.unzip = unzip_of(self.request.headers.get("Content-Encoding", "identity"))
        self._begin(arriving.limit)
        arriving.upload = self.cycles.report_file(arriving.live, 0 if arriving.unzip else arriving.size)

    async def _prepare_patch(self) -> None:
        offset = byte_number(self.request.headers.get(OFFSET_HEADER, ""))
        self._next = self._wanted()  # before its turn: what is refused then would never be forgotten
        arriving = await self.cycles.resume_report(self.one("worker_id"), self.one("request_key"), offset)
        if self.length() != arriving.size - offset:
            raise BadRequest("PATCH brings all that is missing of a report")
        self._arriving, self._turn = arriving, arriving.begin_turn(self._give_way)
        self.take(self.length())

    def _give_way(self) -> None:
        self._arriving = None
        self.give_up(GaveWay())

    def _measured(self, samples: int | None) -> Measured | None:
        told = decode(self.get_query_argument("metrics", "").encode(), dict[str, Any])
        return measured_of(told, self._rows("metrics_samples") or samples)

    def _wanted(self) -> NextPlace | None:
        """The place that the device asks for with its report."""
        told = self.get_query_argument("next", "")
        return decode(told.encode(), NextPlace) if told else None

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

    async def data_received(self, chunk: bytes | memoryview) -> None:
        if self._arriving is not None and self.length() > READ:
            await self._write(self._arriving, chunk)
            return
        if self._left:  # the last part, after the time for it was up: it would count for ever
            return
        if self._is_json and not self._finished:  # what is here counts, not what somebody says that will come
            if self.cycles.text_bytes + len(chunk) > MAX_TEXT_BYTES:
                self._body.clear()
                self.give_up(NodeUnavailableError("too many reports in base64 come in at once; send it again later"))
                return
            self._text_bytes += len(chunk)
            self.cycles.text_bytes += len(chunk)
        self._body += chunk

    async def _write(self, arriving: Arriving, data: bytes | bytearray | memoryview) -> None:
        try:
            await arriving.write(self._turn, data)
        except GaveWay:
            return  # it was told so
        except GridError as error:
            self._refuse()
            self.give_up(error)

    def _refuse(self) -> None:
        """Nothing of it is kept."""
        arriving, self._arriving = self._arriving, None
        if arriving is not None and arriving.turn == self._turn:
            arriving.give_way = lambda: None
            self.cycles.arrivals.give_up(arriving)

    async def post(self) -> None:
        if self._finished:
            return
        if self._is_json:
            text_bytes, self._text_bytes = self._text_bytes, 0  # they count as long as they are here, whoever left
            try:
                await report_text(self.cycles, self._body)
            finally:
                self._body = bytearray()
                self.cycles.text_bytes -= text_bytes
            self.reply({"status": "success"})
            return
        if self._arriving is not None and self._body:
            await self._write(self._arriving, self._body)
        arriving, self._arriving = self._arriving, None
        if arriving is None or arriving.turn != self._turn:  # it was refused, or gave way, and was told so
            return
        arriving.give_way = lambda: None
        try:
            upload = arriving.whole()
        except GridError:
            self.cycles.arrivals.give_up(arriving)
            raise
        await self.cycles.finish_report(arriving, upload, arriving.samples)
        placed = None if self._next is None else await self.while_here(self.cycles.next_place(arriving, self._next))
        if placed is None:
            self.reply({"status": "success"})
        else:
            self.tell({"status": "success", "next": placed.answer}, placed.model)

    async def patch(self) -> None:
        await self.post()

    async def head(self) -> None:
        offset, complete = await self.cycles.report_progress(self.one("worker_id"), self.one("request_key"))
        tell_progress(self, offset, complete)

    def on_finish(self) -> None:
        """The connection is done with it, or lost: what came is kept for a while."""
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            self.cycles.arrivals.leave(arriving, self._turn)
        if self._text_bytes:
            self.cycles.text_bytes -= self._text_bytes
            self._text_bytes = 0
            self._body = bytearray()


async def report_text(cycles: Cycles, body: bytes | bytearray) -> None:
    """A report as JSON, its diff in base64."""
    report, diff = await asyncio.to_thread(parted, body)
    samples = report.train_num_samples or report.num_samples
    if len(bytes(report.metrics)) > MAX_METRICS_BYTES:
        raise LimitExceededError(f"the metrics of a report have at most {MAX_METRICS_BYTES} bytes as JSON")
    told = decode(bytes(report.metrics), dict[str, Any])
    measured = measured_of(told, report.metrics_samples or samples)
    arriving = await cycles.begin_report(report.worker_id, report.request_key)
    arriving.measured = measured
    try:
        upload = await asyncio.to_thread(of_text, cycles.report_file(arriving.live), diff)
    finally:
        cycles.end_report(arriving)
    await cycles.finish_report(arriving, upload, samples)


REPORT_RULES: list[tuple[str, type[Door]]] = [(r"/model-centric/report/?", ReportDoor)]
