"""HTTP bodies about requests and the audit log of a Node."""

from __future__ import annotations

from typing import Any

from grid_jupyter.wire.messages import Message


class RequestedData(Message, frozen=True):
    """One version of a data set that a request rests on."""

    dataset: int
    version: int
    owner: str


class Remark(Message, frozen=True):
    """One thing that was said about a request, at a time in UTC seconds. `what` is question, answer, or
    the state that it led to; `by` is empty where nobody said it."""

    at: float
    by: str
    what: str
    text: str


class OwnerDecision(Message, frozen=True):
    """How one owner's decision stands; `by` decided, in their place if that is somebody else."""

    owner: str
    state: str
    by: str


class RequestInfo(Message, frozen=True):
    """A request for a job or a value, as its asker and its owners see it.

    `state` is waiting, question, approved, denied, expired, revoked, withdrawn or used. `expires` (UTC seconds) ends
    the waiting, or the approval. `shown` and `binding` are for those who decide: of a value they tell more than its
    asker may know.
    """

    id: int
    kind: str
    asker: str
    reason: str
    state: str
    review: bool
    created: float
    expires: float
    data: tuple[RequestedData, ...]
    decisions: tuple[OwnerDecision, ...]
    dialogue: tuple[Remark, ...]
    binding: str = ""
    shown: dict[str, Any] = {}  # noqa: RUF012 - msgspec gives each its own


class Approve(Message, frozen=True):
    """POST /data-centric/requests/<id>/approve. Reply: RequestInfo."""

    expires_s: float | None = None  # None: 7 days
    review: bool = False  # of a job: run it, and ask again before its result is released


class Say(Message, frozen=True):
    """POST /data-centric/requests/<id>/deny, ask or answer: a reason, a question, an answer. Reply: RequestInfo."""

    text: str


class AuditEvent(Message, frozen=True):
    """One row of the audit log; `hash` is over it and the hash of the row before."""

    number: int
    at: float
    event: str
    actor: str
    details: dict[str, Any]
    hash: str


class AuditVerified(Message, frozen=True):
    """What a look at the whole chain found: rows `first` to `last`, the hash of the last; `broken` is the first row
    that is not what was written (0: none)."""

    rows: int
    first: int
    last: int
    head: str
    broken: int
    reason: str
