"""HTTP bodies of the owner's door that are for the owner alone."""

from __future__ import annotations

from typing import Any

from grid_jupyter.wire.messages import DatasetInfo, Message


class OwnedDataset(Message, frozen=True):
    """A data set as the owner of its Node sees it: what others may know of it, and all that its rules say."""

    info: DatasetInfo
    allowed_users: tuple[str, ...]  # may read values
    compute_users: tuple[str, ...] | None  # may compute; None: everybody whom the Node lets
    public_tags: bool
    nbytes: int
    created: float  # UTC seconds, of this version


class Changed(Message, frozen=True):
    """One line of GET /owner/events. `changed` names topics (datasets, jobs, node, requests): ask for them anew. The
    first line names all of them. `status` is what GET /owner/status says."""

    changed: tuple[str, ...]
    status: dict[str, Any]
