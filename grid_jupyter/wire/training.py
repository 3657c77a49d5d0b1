"""Bodies of the model-centric routes, by the field names of 0.2.9; docs/protocol-model-centric.md describes them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from grid_jupyter.wire.limits import MAX_NAME_CHARS

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_Key = Annotated[str, msgspec.Meta(max_length=128)]
MAX_SAMPLES = 1 << 40
MAX_TOKEN_CHARS = 4_096
"""Characters of a push token; Firebase's have some two hundred."""
PushToken = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TOKEN_CHARS, pattern=r"^[\x21-\x7e]+$")]
Figure = Annotated[float | str | bool | None, msgspec.Meta(description="A finite number; all else is refused.")]
"""A number, or what stands in its place and is refused; never a list or an object, which may be large."""
MAX_METRICS_BYTES = 64 << 10
"""Length of metrics that come with a report in JSON."""
Samples = Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)]


def _null() -> msgspec.Raw:
    return msgspec.Raw(b"null")


def _none() -> msgspec.Raw:
    return msgspec.Raw(b"{}")


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of bodies of devices: what forks of 0.2.9 send beside these fields is not read."""


class HostTraining(Body, frozen=True, forbid_unknown_fields=True):
    """Host a model for training. `model` is the id of an upload."""

    model: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
    plans: dict[_Name, msgspec.Raw]  # plan documents, as JSON objects
    client_config: dict[str, Any]
    server_config: dict[str, Any]
    protocols: dict[str, Any] = {}
    averaging_plan: msgspec.Raw = msgspec.field(default_factory=_null)  # a plan document, as a JSON object


class Which(Body, frozen=True, forbid_unknown_fields=True):
    """A training; without a version the newest."""

    name: _Name
    version: _Name | None = None


class EndOrDelete(Body, frozen=True, forbid_unknown_fields=True):
    """A training that is to end; with `delete` it is forgotten as well."""

    name: _Name
    version: _Name
    delete: bool = False


class Authenticate(Body, frozen=True):
    """A device comes for the first time."""

    model_name: _Name
    model_version: _Name | None = None
    auth_token: Annotated[str, msgspec.Meta(max_length=16_384)] | None = None
    ram_size: Annotated[float, msgspec.Meta(ge=0)] | None = None  # GB
    fcm_device_token: PushToken | None = None


class NextPlace(Body, frozen=True):
    """What a device says of a place that it wants. `wait_s`: an answer may wait that long for something better than a
    rejection."""

    ping: Figure = None  # ms
    download: Figure = None  # KiB/s
    upload: Figure = None
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0
    nonce: _Key = ""  # of the device's choice: asked again with the same one, it gets the same answer
    inline_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0  # a model of so many bytes may come with the answer


class CycleRequest(NextPlace, frozen=True, kw_only=True):
    """A device asks for a place."""

    worker_id: _Key
    model: _Name
    version: _Name | None = None
    cycle_start_request_key: _Key = ""  # of the invitation, if there was one


class Report(Body, frozen=True):
    """A report of a client that cannot send bytes: `diff` is a safetensors file in base64."""

    worker_id: _Key
    request_key: _Key
    diff: str
    train_num_samples: Samples | None = None
    num_samples: Samples | None = None
    metrics: msgspec.Raw = msgspec.field(default_factory=_none)  # read when its length is known: it may have 64 MiB
    metrics_samples: Samples | None = None
