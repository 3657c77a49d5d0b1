"""What a request is to whom, by pure functions: who decides on it, how it stands, what of it is shown."""

from __future__ import annotations

from typing import Any

import msgspec

from grid_jupyter.errors import (
    BadRequest,
    Forbidden,
    GetNotPermittedError,
    LimitExceededError,
    ObjectNotFoundError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.verdicts import (
    APPROVED,
    DENIED,
    EXPIRED,
    GRANTED,
    QUESTION,
    REVOKED,
    USED,
    VALUE,
    WAITING,
    WITHDRAWN,
    Asked,
    Verdict,
)
from grid_jupyter.store.requests import NO_REQUEST, NewRequest, StoredRequest
from grid_jupyter.wire.limits import MAX_REASON_CHARS, MAX_SHOWN_BYTES
from grid_jupyter.wire.requests import OwnerDecision, Remark, RequestedData, RequestInfo

TRIAGE = "can_triage_requests"
"""The right to decide in place of any owner."""


def verdict_of(found: StoredRequest, *, epoch_metrics: bool = False) -> Verdict:
    """How a request stands."""
    state = GRANTED if found.state == APPROVED else found.state
    said = [remark["text"] for remark in found.dialogue if remark["what"] == found.state]
    return Verdict(state, found.id, said[-1] if said else "", found.review, epoch_metrics)


def new_request(
    asked: Asked, owners: tuple[str, ...], expires: float, blob: str | None, held: dict[str, Any] | None
) -> NewRequest:
    """What is written down of a question. Raises LimitExceededError for one that is too large to be shown."""
    if len(asked.reason) > MAX_REASON_CHARS:
        raise LimitExceededError(f"a reason has at most {MAX_REASON_CHARS} characters")
    shown = dict(asked.shown)
    if len(msgspec.json.encode(shown)) > MAX_SHOWN_BYTES:
        raise LimitExceededError(f"what a request shows its owners has at most {MAX_SHOWN_BYTES >> 10} KiB")
    versions = asked.versions or (0,) * len(asked.sources)
    return NewRequest(
        key=asked.key,
        kind=asked.kind,
        asker=asked.asker,
        reason=asked.reason,
        binding=asked.binding,
        datasets=tuple(
            {"dataset": rules.dataset, "version": version, "owner": rules.owner}
            for rules, version in zip(asked.sources, versions, strict=True)
        ),
        shown=shown,
        owners=owners,
        expires=expires,
        blob=blob,
        held=held,
    )


def deciding(account: Account, found: StoredRequest) -> tuple[str, ...]:
    """The owners for whom an account decides on a request. Raises ObjectNotFoundError as for one that is not there,
    Forbidden for who asked."""
    owners = found.owners if TRIAGE in account.flags else tuple(o for o in found.owners if o == account.username)
    if found.asker == account.username:
        raise Forbidden("nobody decides on a request of their own; another owner of the data, or of the Node, does")
    if not owners:
        raise ObjectNotFoundError(NO_REQUEST)
    return owners


def asked_by(asker: str, found: StoredRequest) -> StoredRequest:
    """One's own request. Raises ObjectNotFoundError for another's."""
    if found.asker != asker or not asker:
        raise ObjectNotFoundError(NO_REQUEST)
    return found


def not_granted(found: StoredRequest) -> GetNotPermittedError:
    """Why nothing leaves by a request that was not approved, and what to do."""
    said = verdict_of(found).reason
    remedy = {
        WAITING: "its owners have not decided; request.wait(timeout) waits",
        QUESTION: "an owner asks something; request.answer(text) answers",
        DENIED: "ask for something else, or talk to the owner",
        EXPIRED: "ask again with .request(reason)",
        REVOKED: "ask again with .request(reason)",
        WITHDRAWN: "ask again with .request(reason)",
        USED: "an approval is good once; what it released is yours, ask again with .request(reason) for more",
    }[found.state]
    return GetNotPermittedError(f"request {found.id} is {found.state}{f' ({said})' if said else ''}: {remedy}")


def check_text(text: str, what: str) -> None:
    """Raises BadRequest, LimitExceededError for what cannot be a reason, a question or an answer."""
    if not text.strip():
        raise BadRequest(f"{what} cannot be empty")
    if len(text) > MAX_REASON_CHARS:
        raise LimitExceededError(f"{what} has at most {MAX_REASON_CHARS} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{what} is not valid Unicode") from None


def info(found: StoredRequest, viewer: Account) -> RequestInfo:
    """A request as somebody sees it, who asked or who decides: of a value its asker is shown nothing."""
    decides = found.asker != viewer.username
    return RequestInfo(
        id=found.id,
        kind=found.kind,
        asker=found.asker,
        reason=found.reason,
        state=found.state,
        review=found.review,
        created=found.created,
        expires=found.expires,
        data=tuple(RequestedData(**part) for part in found.datasets),
        decisions=tuple(OwnerDecision(owner=one.owner, state=one.state, by=one.by) for one in found.decisions),
        dialogue=tuple(Remark(**remark) for remark in found.dialogue),
        binding=found.binding if decides or found.kind != VALUE else "",
        shown=found.shown if decides or found.kind != VALUE else {},
    )
