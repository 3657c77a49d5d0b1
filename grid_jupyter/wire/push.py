"""Push: what devices say so that they can be woken, what they are told, and what an owner has sent to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from grid_jupyter.wire.limits import MAX_NAME_CHARS
from grid_jupyter.wire.training import Body, PushToken

NoticeType = Literal[
    "request_for_cycle",
    "cycle_completed",
    "interrupt_cycle_completed",
    "cycle reset",
    "worker_online_status",
    "fl_completed",
    "message",
]
"""What a device is told; all but `message`, the owner's own, by the names of 0.2.9's fork."""

MAX_PUSH_CHARS = 1_000
"""Characters of the title, and of the text, of an owner's push."""
MAX_PUSH_DATA_BYTES = 2_048
"""Length of an owner's data as JSON; Firebase takes 4,096 bytes for the whole message."""

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_Key = Annotated[str, msgspec.Meta(max_length=128)]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_PUSH_CHARS)]


class SavePushToken(Body, frozen=True):
    """A device can be reached by this token of Firebase."""

    worker_id: _Key
    fcm_device_token: PushToken
    model: _Name | None = None
    version: _Name | None = None
    ram_size: Annotated[float, msgspec.Meta(ge=0)] | None = None  # GB


class WorkerStatus(Body, frozen=True):
    """A device is there: the answer to `worker_online_status`."""

    worker_id: _Key
    model: _Name | None = None
    version: _Name | None = None
    fcm_push_token: PushToken | None = None


class Listen(Body, frozen=True):
    """A device takes notices over this WebSocket from here on."""

    worker_id: _Key


class Received(Body, frozen=True):
    """A device has a notice, and need not get it again."""

    id: int


class SendPush(Body, frozen=True, forbid_unknown_fields=True):
    """An owner's words to the devices of a training; to all of them, or to those that are named."""

    model: _Name
    version: _Name | None = None
    workers: Annotated[list[_Key], msgspec.Meta(min_length=1, max_length=1_000)] | None = None
    title: _Text = ""
    text: _Text = ""
    data: dict[_Name, _Text] = msgspec.field(default_factory=dict)
    key: _Key = ""  # of the sender's choice: sent again with the same one, it is one push


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device is told. The same `id` may come twice."""

    id: int
    type: NoticeType
    worker_id: str
    model: str
    version: str
    cycle_id: int | None = None
    cycle_start_request_key: str = ""
    title: str = ""
    text: str = ""
    data: dict[str, str] = {}

    def texts(self) -> dict[str, str]:
        """The same as texts by name, which is all that Firebase carries."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        more = told.pop("data", {})
        return {**{f"data.{name}": text for name, text in more.items()}, **{k: str(v) for k, v in told.items()}}
