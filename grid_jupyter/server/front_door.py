"""The Node's front door, `/`: a card for people, and 0.2.9's WebSocket of JSON messages for training."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Awaitable
from typing import Any

import msgspec
from tornado.websocket import WebSocketClosedError

from grid_jupyter import __version__
from grid_jupyter.cycles.service import Cycles
from grid_jupyter.errors import BadRequest, GridError, LimitExceededError, NotAuthenticatedError
from grid_jupyter.server.door import MAX_JSON_BYTES, decode
from grid_jupyter.server.metrics_doors import UPLOADED
from grid_jupyter.server.node_sockets import NodeSocket
from grid_jupyter.server.push_doors import PushSocket
from grid_jupyter.server.report_doors import report_text
from grid_jupyter.server.training_doors import host
from grid_jupyter.wire.metrics import MetricsReport, UploadStats
from grid_jupyter.wire.training import Authenticate, CycleRequest, HostTraining

_LARGE = ("model-centric/report", "model-centric/host-training")
"""What may be larger than other JSON: it is decoded off the event loop."""
MAX_WAIT_S = 10.0
"""How long an answer over this WebSocket may wait for something better than a rejection."""


class _Message(msgspec.Struct):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"")
    request_id: str | int | None = None


class Front(NodeSocket):
    """GET: a card for people; upgraded, messages {"type", "data", "request_id"} and an answer to each."""

    ping_interval = 20.0
    _push: PushSocket | None = None

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.expect_word()

    async def get(self, *args: Any, **kwargs: Any) -> None:
        if self.request.headers.get("Upgrade", "").lower() == "websocket":
            await super().get(*args, **kwargs)
            return
        self._card()

    def _card(self) -> None:
        name, address = html.escape(self.node.name), html.escape(str(self.settings["address"]()))
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.finish(
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title>"
            "<style>body{font:16px system-ui;margin:4rem auto;max-width:32rem}</style>"
            f"<h1>{name}</h1><p>A Node of a grid, at <code>{address}</code>.</p></html>"
        )

    def on_close(self) -> None:
        self.spoke()
        if self._push is not None:
            self._push.close()

    def on_message(self, message: str | bytes) -> Awaitable[None]:
        self.spoke()
        return self._answer(message)

    async def _answer(self, message: str | bytes) -> None:
        kind, request_id = "", None
        try:
            if not isinstance(message, str):
                raise BadRequest("this WebSocket takes JSON as text; bytes go over HTTP")
            told = await asyncio.to_thread(decode, message.encode("utf-8", "surrogatepass"), _Message)
            kind, request_id = told.type, told.request_id
            # 0.2.9 lets a message have its fields beside its type as well
            fields = bytes(told.data) or message.encode()
            if len(fields) > MAX_JSON_BYTES and kind not in _LARGE:
                raise LimitExceededError(f"a message {kind[:80]!r} is over the limit of {MAX_JSON_BYTES} bytes")
            answer = await self._handle(kind, fields)
        except GridError as error:
            answer = {"data": {"error": str(error), "code": error.code}}
        said = {"type": kind, **answer, **({} if request_id is None else {"request_id": request_id})}
        try:
            await self.write_message(msgspec.json.encode(said))
        except WebSocketClosedError:
            pass  # who asked has left

    async def _handle(self, kind: str, fields: bytes) -> dict[str, Any]:
        cycles: Cycles = self.settings["cycles"]
        if kind == "socket-ping":
            return {"alive": "True"}
        if kind == "get-id":
            return {"id": self.node.name, "syft_version": f"grid_jupyter {__version__}"}
        if kind == "model-centric/authenticate":
            return {"data": await cycles.authenticate(decode(fields, Authenticate))}
        if kind == "model-centric/cycle-request":
            asked = decode(fields, CycleRequest)
            # while a message is answered no other is read, and no answer to a ping
            return {"data": await cycles.request(msgspec.structs.replace(asked, wait_s=min(asked.wait_s, MAX_WAIT_S)))}
        if kind == "model-centric/report":
            await report_text(cycles, fields)
            return {"data": {"status": "success"}}
        if kind == "model-centric/metrics":
            await cycles.metrics.take(decode(fields, MetricsReport))
            return {"data": {"status": "success"}}
        if kind in ("upload_stats", "model-centric/upload_stats"):
            await cycles.metrics.take_stats(decode(fields, UploadStats))
            return {"data": UPLOADED}
        if kind == "model-centric/host-training":
            credential = self._credential()
            if credential is None:
                raise NotAuthenticatedError(
                    "hosting needs a credential: send it with the request that opens the socket"
                )
            account = await self.accounts.identify(credential, self.origin)  # it may have been revoked since
            return {"data": await host(self, account, await asyncio.to_thread(decode, fields, HostTraining))}
        if self._push is None:
            self._push = PushSocket(cycles.push, self.write_message)
        answer = await self._push.handle(kind, fields)
        if answer is None:
            raise BadRequest(
                "messages here are socket-ping, get-id, and of model-centric/ host-training, authenticate, "
                "cycle-request, report, metrics, upload_stats, save-fcm-token, update-worker-status, listen and "
                "notice-received"
            )
        return {"data": answer}
