"""The Node's doors for push: tokens and availability of devices, notices over the WebSocket, owners' pushes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tornado.websocket import WebSocketClosedError

from grid_jupyter.cycles.pushing import Pushing
from grid_jupyter.cycles.service import Cycles
from grid_jupyter.errors import Forbidden, LimitExceededError
from grid_jupyter.identity.roles import OWNER
from grid_jupyter.server.door import Door, JsonDoor, decode
from grid_jupyter.server.owner_doors import OWNER_AT_DOOR, NodeOwnerDoor
from grid_jupyter.server.training_doors import TrainingDoor
from grid_jupyter.wire.push import Listen, Received, SavePushToken, SendPush, WorkerStatus

MAX_LISTENING = 256
"""Devices that may listen by one WebSocket."""
SAVED = "token has been saved"


class SaveFcmToken(TrainingDoor):
    """POST: a device can be reached by a push token."""

    open_to_all = frozenset({"POST"})

    async def post(self) -> None:
        await self.cycles.push.save_token(self.body(SavePushToken))
        self.reply({"status": "success", "message": SAVED})


class UpdateWorkerStatus(TrainingDoor):
    """POST: a device is there."""

    open_to_all = frozenset({"POST"})

    async def post(self) -> None:
        await self.cycles.push.status(self.body(WorkerStatus))
        self.reply({"status": "success"})


class SendPushEvent(TrainingDoor):
    """GET: how notices stand. POST: the owner's words to devices. For owners of the Node alone."""

    async def _owner(self) -> str:
        account = await self.require()
        if account.role != OWNER:
            raise Forbidden("only an owner of this Node pushes to devices")
        return account.username

    async def get(self) -> None:
        await self._owner()
        self.reply(await self.cycles.push.told())

    async def post(self) -> None:
        await send(self, self.cycles.push, await self._owner())


class OwnerPush(NodeOwnerDoor):
    """GET: how notices stand. POST: the owner's words to devices."""

    @property
    def push(self) -> Pushing:
        cycles: Cycles = self.settings["cycles"]
        return cycles.push

    async def get(self) -> None:
        self.reply(await self.push.told())

    async def post(self) -> None:
        self.settings.setdefault("note", self.node.audit.note)
        await send(self, self.push, OWNER_AT_DOOR)


async def send(door: JsonDoor, push: Pushing, actor: str) -> None:
    """Push what the body says, note it, and answer."""
    body = door.body(SendPush)
    devices = await push.send(body)
    door.settings["note"]("pushed", actor, model=body.model, devices=devices)
    door.reply({"status": "success", "devices": devices})


class PushSocket:
    """The devices that listen by one WebSocket, and what they say there."""

    def __init__(self, push: Pushing, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._push, self._write = push, write
        self._worker_ids: set[str] = set()
        self._closed = False

    async def handle(self, kind: str, fields: bytes) -> dict[str, Any] | None:
        """The answer to a message; None for one that is not about push. Raises GridError."""
        kind = kind.removeprefix("model-centric/")
        if kind == "save-fcm-token":
            await self._push.save_token(decode(fields, SavePushToken))
            return {"status": "success", "message": SAVED}
        if kind == "update-worker-status":
            await self._push.status(decode(fields, WorkerStatus))
            return {"status": "success"}
        if kind == "listen":
            await self._listen(decode(fields, Listen).worker_id)
            return {"status": "success"}
        if kind == "notice-received":
            self._push.received(self._worker_ids, decode(fields, Received).id)
            return {"status": "success"}
        return None

    async def _listen(self, worker_id: str) -> None:
        if len(self._worker_ids) >= MAX_LISTENING and worker_id not in self._worker_ids:
            raise LimitExceededError(f"at most {MAX_LISTENING} devices listen by one WebSocket")
        self._worker_ids.add(worker_id)
        try:
            await self._push.listen(worker_id, self._send)
        except BaseException:
            self._worker_ids.discard(worker_id)
            raise
        if self._closed:
            self.close()

    async def _send(self, text: bytes) -> None:
        try:
            await self._write(text)
        except WebSocketClosedError:
            raise ConnectionError("the device left") from None

    def close(self) -> None:
        """The WebSocket is gone."""
        self._closed = True
        for worker_id in self._worker_ids:
            self._push.leave(worker_id, self._send)
        self._worker_ids.clear()


PUSH_RULES: list[tuple[str, type[Door]]] = [
    (r"/model-centric/save-fcm-token/?", SaveFcmToken),
    (r"/model-centric/update-worker-status/?", UpdateWorkerStatus),
    (r"/model-centric/send_push_event/?", SendPushEvent),
]
OWNER_PUSH_RULES: list[tuple[str, type[JsonDoor]]] = [(r"/owner/push", OwnerPush)]
