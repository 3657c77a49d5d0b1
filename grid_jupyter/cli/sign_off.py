"""`jupyter grid requests`, `approve`, `deny` and `audit`: what a Node's owner decides at their own machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import msgspec

from grid_jupyter.cli.owner import target
from grid_jupyter.client.request_text import lines
from grid_jupyter.errors import GridError
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.requests import RequestInfo


def requests(options: argparse.Namespace) -> int:
    """Show requests, with all that is to be known for a decision. Raises GridError."""
    found = asyncio.run(_owner(options).requests(options.in_state or ""))
    if options.json:
        print(json.dumps({"requests": found}), flush=True)
    elif found:
        print("\n\n".join(_text(one) for one in found))
    else:
        print("No requests wait." if options.in_state is None else f"No requests are {plain(options.in_state)}.")
    return 0


def approve(options: argparse.Namespace) -> int:
    """Approve a request. Raises GridError."""
    return _decide(options, "approve", {"expires_s": options.expires, "review": options.review})


def deny(options: argparse.Namespace) -> int:
    """Deny a request, with a reason that the asker reads. Raises GridError."""
    return _decide(options, "deny", {"text": options.reason})


def audit(options: argparse.Namespace) -> int:
    """Show the newest rows of the audit log, or check its chain: 1 if it is broken. Raises GridError."""
    owner = _owner(options)
    if options.verify:
        told = asyncio.run(owner.verify_audit())
        if options.json:
            print(json.dumps(told), flush=True)
        elif told["broken"]:
            print(f"BROKEN at row {told['broken']}: {told['reason']}")
        else:
            print(f"{told['rows']} rows, {told['first']} to {told['last']}, hold. The last hash is\n{told['head']}")
        return 1 if told["broken"] else 0
    rows = asyncio.run(owner.audit(options.rows))
    if options.json:
        print(json.dumps({"rows": rows}), flush=True)
        return 0
    for row in reversed(rows):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["at"]))
        print(f"{row['number']:>7}  {at}Z  {plain(row['event'])}  {plain(row['actor'])}  {_details(row['details'])}")
    return 0


def _owner(options: argparse.Namespace) -> OwnerClient:
    return OwnerClient(target(options).socket, timeout_s=60.0)


def _decide(options: argparse.Namespace, verb: str, body: dict[str, Any]) -> int:
    found = asyncio.run(_owner(options).decide(options.request, verb, body))
    print(json.dumps(found) if options.json else f"request {found['id']} is {found['state']}", flush=True)
    return 0


def _text(told: dict[str, Any]) -> str:
    try:
        return "\n".join(lines(msgspec.convert(told, RequestInfo)))
    except msgspec.ValidationError:
        raise GridError("the Node answered with something else than a request; its version may differ") from None


def _details(details: dict[str, Any]) -> str:
    return " ".join(f"{plain(key)}={plain(json.dumps(value), 200)}" for key, value in details.items())
