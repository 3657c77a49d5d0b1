"""The owner at his own machine: `grid_jupyter.owner()` is a client of the Node that runs here, logged in as its owner.

Whoever can open the Node's unix socket (mode 0600) is its owner; no password is needed for that.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from grid_jupyter.client.credentials import Credentials
from grid_jupyter.client.node import NodeClient
from grid_jupyter.errors import BadRequest, NodeUnavailableError, from_wire
from grid_jupyter.link.http import UnixConnection
from grid_jupyter.wire.home import data_home

TIMEOUT_S = 10.0


def owner(node: str | None = None, user: str | None = None, *, ca_file: str | Path | None = None) -> NodeClient:
    """A client of this user's own Node on this machine, with the owner's credential, which is stored.

    `node` names it where several run; `user` is the owner's account name, by default the Node's name. The account
    is made at the first call. `ca_file` names the certificate of a Node that signed its own.

    Raises NodeUnavailableError, BadRequest where several Nodes run and none is named, Conflict for an account that
    is not an owner's.
    """
    running = _find(node)
    name = user or str(running["name"])
    credentials = Credentials()
    address = str(running["address"])
    if name not in credentials.users(address):
        _ask(running, "POST", "/owner/accounts", {"username": name, "role": "Owner"})
        token = _ask(running, "POST", "/owner/tokens", {"username": name})["token"]
        credentials.store(address, name, str(token))
    return NodeClient(None, address, user=name, ca_file=ca_file, credentials=credentials)


def _find(node: str | None) -> dict[str, Any]:
    found = {}
    for path in sorted((data_home() / "nodes").glob("*/running.json")):
        try:
            running = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # it is just starting or ending
        if _answers(running):
            found[str(running["name"])] = running
    if node is not None and node in found:
        return dict(found[node])
    if node is not None or not found:
        raise NodeUnavailableError(
            f"no Node{f' named {node}' if node else ''} of yours runs on this machine; "
            f"'jupyter lab' with the extension, or 'jupyter grid node', starts one"
        )
    if len(found) > 1:
        raise BadRequest(f"several Nodes of yours run here; name one: owner({next(iter(found))!r}), of {list(found)}")
    return dict(next(iter(found.values())))


def _answers(running: dict[str, Any]) -> bool:
    try:
        _ask(running, "GET", "/owner/status")
    except NodeUnavailableError:
        return False
    return True


def _ask(running: dict[str, Any], method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    connection = UnixConnection(str(running.get("socket", "")), TIMEOUT_S)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        answer: Any = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        raise NodeUnavailableError(f"the Node {running.get('name')} does not answer; 'jupyter grid status'") from None
    finally:
        connection.close()
    if response.status != 200:
        raise from_wire(answer.get("code"), answer.get("error"))
    return dict(answer)
