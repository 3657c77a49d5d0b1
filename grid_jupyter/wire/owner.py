"""HTTP bodies of the owner's door that are for the owner alone."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from grid_jupyter.wire.messages import ASK_ALWAYS, DatasetInfo, JobPolicy, Message

FORMATS = (".csv", ".parquet", ".pq", ".npz", ".safetensors")
"""Endings of files that can be published."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What GET /owner/metrics answers: Prometheus' text format."""
MAX_RANDOM_ROWS = 100_000
"""Random mock rows that the panel lets be made."""


class OwnedDataset(Message, frozen=True):
    """A data set as the owner of its Node sees it: what others may know of it, and all that its rules say."""

    info: DatasetInfo
    allowed_users: tuple[str, ...]  # may read values
    compute_users: tuple[str, ...] | None  # may compute; None: everybody whom the Node lets
    public_tags: bool
    nbytes: int
    created: float  # UTC seconds, of this version
    opened: int = 0  # how often sessions opened it, as far as the audit log goes back
    opened_by: int = 0  # how many users did
    opened_last: float | None = None  # UTC seconds


class Changed(Message, frozen=True):
    """One line of GET /owner/events. `changed` names topics (datasets, jobs, node, requests, trainings): ask for them
    anew. The first line names all of them. `status` is what GET /owner/status says."""

    changed: tuple[str, ...]
    status: dict[str, Any]


class Offer(Message, frozen=True):
    """A data set of some Node that the user of the panel may compute on. Texts and lists are cut."""

    id: int
    kind: str
    name: str
    tags: tuple[str, ...]
    description: str
    owner: str
    count: int  # of all columns, or tensors
    parts: tuple[tuple[str, str, tuple[int, ...]], ...]  # name, dtype, shape of columns or tensors
    mock: bool
    jobs: bool  # whether others may submit jobs


class NodeOffers(Message, frozen=True):
    """What a Node of a Network has for the user of the panel; `error` says why it is not known."""

    name: str
    address: str
    user: str  # whose credential was presented; empty: a guest
    offers: tuple[Offer, ...] = ()
    error: str = ""


class NetworkView(Message, frozen=True):
    """GET <base_url>/grid/api/network: a Network as the user of the panel sees it. `error` says why it is not known."""

    address: str  # empty: no Network was joined, and none was named
    users: tuple[str, ...] = ()  # whose credentials for it are stored
    nodes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    error: str = ""


class NetworkSearch(Message, frozen=True):
    """POST <base_url>/grid/api/network/search."""

    network: str = ""  # empty: the one that the Node joined
    user: str = ""  # whose stored credentials to present; empty: a guest
    tags: tuple[str, ...] = ()


class FilePublication(Message, frozen=True):
    """What the owner says about a file that is published from the panel; as `node.publish(path, …)` has it."""

    name: str = ""
    tags: tuple[str, ...] = ()
    description: str = ""
    allowed_users: tuple[str, ...] = ()  # may read values, besides the owner
    compute_users: tuple[str, ...] | None = None  # may compute; None: everybody whom the Node lets in
    public_tags: bool | None = None  # None: as the Node's setting says
    jobs: JobPolicy = ASK_ALWAYS
    mock: Annotated[int, msgspec.Meta(ge=0, le=MAX_RANDOM_ROWS)] = 0  # random mock rows


class FilePublish(Message, frozen=True):
    """POST <base_url>/grid/api/publish. `path` as the file browser has it, below the directory that Jupyter serves."""

    path: str
    publish: FilePublication


class FilePreview(Message, frozen=True):
    """POST <base_url>/grid/api/preview."""

    path: str


class FileTask(Message, frozen=True):
    """What a process is told that reads a file for the Jupyter server: preview it, or publish it at a Node whose
    owner's door is this socket."""

    file: str
    socket: str = ""
    publish: FilePublication | None = None
