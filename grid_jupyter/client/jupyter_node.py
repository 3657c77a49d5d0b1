"""The Node of a Jupyter server of this user, started and stopped as by the panel's buttons."""

from __future__ import annotations

import getpass
import http.client
import secrets
import sys
from http.cookies import SimpleCookie
from typing import Any, Literal
from urllib.parse import urlencode

from grid_jupyter.client.watching import in_notebook, needed
from grid_jupyter.errors import BadRequest, GridError, NodeUnavailableError, NotAuthenticatedError, NotFound
from grid_jupyter.link.http import Address, call

ANSWER_S = 60.0
"""Time for an answer, in seconds: a Node that is stopped may take its time."""
VERBS = ("start", "stop", "restart", "status")


def jupyter_node(
    verb: Literal["start", "stop", "restart", "status"], *, url: str | None = None, password: str | None = None
) -> dict[str, Any]:
    """Start, stop or restart the Node of a Jupyter server that runs on this machine, or ask how it is.

    `url` says which, where several run. A server that has no token but a password is logged in to; without
    `password` somebody is asked for it, in a notebook or a terminal. What comes is the answer of
    `<base_url>/grid/api/status`: `state`, `detail`, `node` and so on.

    Raises NotFound where no such server runs, BadRequest, NotAuthenticatedError, Conflict where the Node stands
    otherwise, NodeUnavailableError.
    """
    if verb not in VERBS:
        raise BadRequest(f"{verb!r} is none of {', '.join(VERBS)}")
    found, token = _server(url)
    address = Address(found, timeout_s=ANSWER_S)
    method, path = ("GET", "/grid/api/status") if verb == "status" else ("POST", f"/grid/api/node/{verb}")
    headers = {} if token else _as_a_page(address, password)
    told: dict[str, Any] = call(address, method, path, token=token, headers=headers, kind=dict[str, Any])
    return told


def _server(url: str | None) -> tuple[str, str]:
    """Address and token of the server that is meant. Raises NotFound, BadRequest where several run."""
    running = {
        str(one["url"]).rstrip("/"): str(one.get("token", ""))
        for one in needed("jupyter_server.serverapp").list_running_servers()
    }
    if url is not None:
        running = {at: token for at, token in running.items() if at == url.rstrip("/")}
    if not running:
        raise NotFound("no such Jupyter server of yours runs here; 'jupyter lab' starts one, and its Node with it")
    if len(running) > 1:
        raise BadRequest(
            f"several Jupyter servers of yours run here; say --url (url=) with one of {', '.join(sorted(running))}"
        )
    return next(iter(running.items()))


def _as_a_page(address: Address, password: str | None) -> dict[str, str]:
    """Headers of the server's own pages, which it knows by cookies, one of which a header repeats.

    Raises NotAuthenticatedError, NodeUnavailableError.
    """
    repeated = secrets.token_hex(16)
    headers = {"Cookie": f"_xsrf={repeated}", "X-XSRFToken": repeated}
    if _is_known(address, headers):  # a server that asks nobody who he is
        return headers
    if password is None and not (in_notebook() or sys.stdin.isatty()):
        raise NotAuthenticatedError(
            f"{address.url} has no token, but a password: call sy.jupyter_node(…, password=…), or 'jupyter grid "
            f"server' in a terminal, where it is asked for"
        )
    if password is None:
        password = getpass.getpass(f"Password of {address.url}: ")
    made = _log_in(address, password, headers)
    headers["Cookie"] = "; ".join([headers["Cookie"], *made])
    if not made or not _is_known(address, headers):
        raise NotAuthenticatedError(f"{address.url} does not take this password, or none at all")
    return headers


def _is_known(address: Address, headers: dict[str, str]) -> bool:
    """Whether the server answers whoever has these. Raises NodeUnavailableError."""
    try:
        call(address, "GET", "/grid/api/status", headers=headers)
    except NodeUnavailableError:
        raise
    except GridError:
        return False
    return True


def _log_in(address: Address, password: str, headers: dict[str, str]) -> list[str]:
    """The cookies that the server answers with. Raises NodeUnavailableError."""
    form, connection = urlencode({"password": password}), address.connect()
    try:
        told = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", f"{address.path}/login", body=form, headers=told)
        made = SimpleCookie()
        for one in connection.getresponse().headers.get_all("Set-Cookie", []):
            made.load(one)
        return [f"{name}={one.coded_value}" for name, one in made.items() if name != "_xsrf"]
    except (OSError, http.client.HTTPException) as error:
        raise NodeUnavailableError(f"{address.url} does not answer ({type(error).__name__}): is it running?") from None
    finally:
        connection.close()
