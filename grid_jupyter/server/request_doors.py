"""The Node's doors for requests and the audit log: what was asked for, what is decided, what left by it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import msgspec

from grid_jupyter.errors import BadRequest
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.request_rules import TRIAGE, info
from grid_jupyter.node.service import GridNode
from grid_jupyter.server.door import Door, JsonDoor
from grid_jupyter.server.node_streams import NodeDoor
from grid_jupyter.server.owner_doors import ACCOUNT, NodeOwnerDoor
from grid_jupyter.wire.requests import Approve, AuditEvent, AuditVerified, RequestInfo, Say

MAX_AUDIT_ROWS = 1_000
"""Rows of the audit log in one answer."""
MAX_LISTED_BYTES = 16 << 20
"""Bytes of what all requests of one answer show, as JSON."""
TENSOR_HEADER = "X-Grid-Tensor"
"""JSON with dtype, shape and readers of the tensor whose bytes are the body."""


class Requests(NodeDoor):
    """GET ?state=: requests on which the caller decides; those that are open unless told."""

    async def get(self) -> None:
        account = await self.require()
        self.reply(await listed(self.node, account, self.get_query_argument("state", "")))


class MyRequests(NodeDoor):
    """GET: what the caller asked for, newest first."""

    async def get(self) -> None:
        account = await self.require()
        self.reply(_within_limits(info(one, account) for one in await self.node.requests.mine(account)))


class OneRequest(NodeDoor):
    """GET: one request, for who asked and for who decides."""

    async def get(self, request: str) -> None:
        account = await self.require()
        self.reply(info(await self.node.requests.visible(account, int(request)), account))


class RequestVerb(NodeDoor):
    """POST: what the last part of the path says."""

    async def post(self, request: str, verb: str) -> None:
        account = await self.require()
        self.reply(await decide(self, self.node, account, int(request), verb))


class RequestedValue(NodeDoor):
    """GET: the value that was approved, as it was when it was asked for."""

    async def get(self, request: str) -> None:
        account = await self.require()
        value = await self.node.held.release(account.username, int(request))
        form = {"dtype": value.dtype, "shape": value.shape, "readers": value.readers}
        self.set_header(TENSOR_HEADER, json.dumps(form))
        await self.send_blob(value.descriptor, value.nbytes)


class AuditLog(NodeDoor):
    """GET ?before=&limit=: rows of the audit log, newest first, for who may triage requests."""

    async def get(self) -> None:
        await self.require(TRIAGE)
        self.reply(await rows(self, self.node))


class AuditCheck(NodeDoor):
    """GET: whether the chain of the audit log holds, and where it does not."""

    async def get(self) -> None:
        await self.require(TRIAGE)
        self.reply(await verified(self.node))


async def listed(node: GridNode, account: Account, state: str) -> list[RequestInfo]:
    """Requests on which an account decides."""
    found = await (node.requests.to_decide(account, (state,)) if state else node.requests.to_decide(account))
    return _within_limits(info(one, account) for one in found)


def _within_limits(found: Iterable[RequestInfo]) -> list[RequestInfo]:
    """Requests with what they show, as far as that fits into one answer; the others say where it is."""
    left, told = MAX_LISTED_BYTES, []
    for one in found:
        left -= len(msgspec.json.encode(one.shown))
        told.append(one if left >= 0 else msgspec.structs.replace(one, shown={"shown by": f"node.request({one.id})"}))
    return told


async def decide(door: JsonDoor, node: GridNode, account: Account, request: int, verb: str) -> RequestInfo:
    """Do with a request what a verb says. Raises what `Requests` raises."""
    requests = node.requests
    if verb == "approve":
        body = door.body(Approve)
        found = await requests.approve(account, request, expires_s=body.expires_s, review=body.review)
    elif verb in ("deny", "ask", "answer"):
        text = door.body(Say).text
        found = await {"deny": requests.deny, "ask": requests.ask, "answer": requests.answer}[verb](
            account, request, text
        )
    else:
        found = await (requests.revoke if verb == "revoke" else requests.withdraw)(account, request)
    return info(found, account)


async def rows(door: JsonDoor, node: GridNode) -> list[AuditEvent]:
    """Rows of the audit log, as the query says. Raises BadRequest."""
    before, limit = door.get_query_argument("before", ""), door.get_query_argument("limit", str(MAX_AUDIT_ROWS))
    if not (limit.isdecimal() and (before.isdecimal() or not before) and len(limit + before) < 30):
        raise BadRequest("before and limit are numbers")
    await node.audit.flush()
    found = await node.audit.table.listed(
        before=min(int(before), 2**62) if before else None, limit=min(int(limit), MAX_AUDIT_ROWS)
    )
    return [AuditEvent(**asdict(row)) for row in found]


async def verified(node: GridNode) -> AuditVerified:
    """Go through the whole audit log."""
    await node.audit.flush()
    return AuditVerified(**asdict(await node.audit.table.verify()))


REQUEST_RULES: list[tuple[str, type[Door]]] = [
    (r"/data-centric/requests/?", Requests),
    (r"/data-centric/my-requests/?", MyRequests),
    (r"/data-centric/requests/([0-9]{1,18})", OneRequest),
    (r"/data-centric/requests/([0-9]{1,18})/(approve|deny|ask|answer|revoke|withdraw)", RequestVerb),
    (r"/data-centric/requests/([0-9]{1,18})/value", RequestedValue),
    (r"/data-centric/audit/?", AuditLog),
    (r"/data-centric/audit/verify", AuditCheck),
]


# ------------------------------------------------------------------ the owner's door


class OwnerRequests(NodeOwnerDoor):
    """GET ?state=: requests to decide on."""

    async def get(self) -> None:
        self.reply({"requests": await listed(self.node, ACCOUNT, self.get_query_argument("state", ""))})


class OwnerRequestVerb(NodeOwnerDoor):
    """POST: approve or deny."""

    async def post(self, request: str, verb: str) -> None:
        self.reply(await decide(self, self.node, ACCOUNT, int(request), verb))


class OwnerAudit(NodeOwnerDoor):
    """GET ?before=&limit=: rows of the audit log, newest first."""

    async def get(self) -> None:
        self.reply({"rows": await rows(self, self.node)})


class OwnerAuditCheck(NodeOwnerDoor):
    """GET: whether the chain of the audit log holds."""

    async def get(self) -> None:
        self.reply(await verified(self.node))


OWNER_REQUEST_RULES: list[tuple[str, type[JsonDoor]]] = [
    (r"/owner/requests", OwnerRequests),
    (r"/owner/requests/([0-9]{1,18})/(approve|deny|ask|revoke)", OwnerRequestVerb),
    (r"/owner/audit", OwnerAudit),
    (r"/owner/audit/verify", OwnerAuditCheck),
]
