"""Answers of `<base_url>/grid/api/…`, as JSON has them, as far as they are no messages of the owner's door."""

from __future__ import annotations

from typing import Literal, TypedDict

from grid_jupyter.wire.answers import Owned
from grid_jupyter.wire.jobs import JobInfo
from grid_jupyter.wire.owner import NodeOffers, OwnedDataset
from grid_jupyter.wire.requests import RequestInfo


class _Refusal(TypedDict):
    message: str


class Refusal(_Refusal, total=False):
    """What went wrong, with the remedy. `error` says the same again, and `code` what programs can rely on, where the
    Node refused; `reason` is Jupyter's."""

    error: str
    code: str
    reason: str | None
    traceback: str


class Joined(TypedDict):
    """The Network of a Node."""

    address: str | None
    state: str
    detail: str


class Device(TypedDict):
    """A device of a Node, and the parts of it that Workers have."""

    name: str
    label: str
    memory_bytes: int
    shares: list[float]


class _NodeStatus(TypedDict):
    role: Literal["node"]
    name: str
    id: str
    address: str
    status: Literal["running"]
    version: str
    network: Joined
    isolation: str
    isolation_required: bool
    device: str
    devices: list[Device]
    sessions: int
    connected: list[str]
    datasets: int
    storage_bytes: int
    guests: bool


class NodeStatus(_NodeStatus, total=False):
    """What a Node says of itself; in events without `uptime_s`."""

    uptime_s: float


class Reached(TypedDict):
    """Where others reach the Node through the Jupyter server: the path there, and the whole address or ""."""

    path: str
    address: str


class ProcessStatus(TypedDict):
    """The process of a Node, as the Jupyter server keeps it running; `node`, while it answers."""

    state: Literal["starting", "running", "restarting", "stopped", "failed"]
    detail: str
    pid: int | None
    restarts: int
    attached: bool
    public: Reached | None
    node: NodeStatus | None


class Event(TypedDict):
    """A message of the WebSocket. `changed` names topics: ask for them anew."""

    status: ProcessStatus
    changed: list[str]


class Datasets(TypedDict):
    """The data sets of the Node, newest first."""

    datasets: list[OwnedDataset]


class Requests(TypedDict):
    """Requests to decide on."""

    requests: list[RequestInfo]


class Jobs(TypedDict):
    """The jobs of the Node, newest first."""

    jobs: list[JobInfo]


class Trainings(TypedDict):
    """The trainings of the Node, oldest first."""

    trainings: list[Owned]


class Found(TypedDict):
    """What a search found, Node by Node."""

    nodes: list[NodeOffers]
