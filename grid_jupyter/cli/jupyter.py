"""`jupyter grid server`: the Node of a Jupyter server of this user, started and stopped as by the panel's buttons."""

from __future__ import annotations

import argparse
import json
from typing import Any

from jupyter_server.serverapp import list_running_servers

from grid_jupyter.errors import BadRequest, NotAuthenticatedError, NotFound
from grid_jupyter.link.http import Address, call
from grid_jupyter.tensors.text import plain

ANSWER_S = 60.0
"""Time for an answer, in seconds: a Node that is stopped may take its time."""


def server(options: argparse.Namespace) -> int:
    """Start, stop or restart it, or say how it is. Raises GridError."""
    url, token = _found(options.url)
    if not token:
        raise NotAuthenticatedError(f"{url} asks for a password, and has no token: use the Grid panel there")
    asked = ("GET", "/grid/api/status") if options.verb == "status" else ("POST", f"/grid/api/node/{options.verb}")
    status: dict[str, Any] = call(Address(url, timeout_s=ANSWER_S), *asked, token=token, kind=dict[str, Any])
    detail = f": {plain(status['detail'])}" if status["detail"] else ""
    print(json.dumps(status) if options.json else f"The Node of {url} is {status['state']}{detail}", flush=True)
    return 0


def _found(url: str | None) -> tuple[str, str]:
    """Address and token of the server that is meant. Raises NotFound, BadRequest where several run."""
    running = {str(one["url"]).rstrip("/"): str(one.get("token", "")) for one in list_running_servers()}
    if url is not None:
        running = {at: token for at, token in running.items() if at == url.rstrip("/")}
    if not running:
        raise NotFound("no such Jupyter server of yours runs here; 'jupyter lab' starts one, and its Node with it")
    if len(running) > 1:
        raise BadRequest(
            f"several Jupyter servers of yours run here; say --url with one of {', '.join(sorted(running))}"
        )
    return next(iter(running.items()))
