"""The Node of a Jupyter server of this user, started and stopped as by the panel's buttons."""

from __future__ import annotations

import getpass
import http.client
import secrets
import sys
from http.cookies import SimpleCookie
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from grid_jupyter.client.watching import in_notebook, needed
from grid_jupyter.errors import BadRequest, NodeUnavailableError, NotAuthenticatedError, NotFound
from grid_jupyter.link.http import Address, call, reported

ANSWER_S = 60.0
"""Time for an answer, in seconds: a Node that is stopped may take its time."""
VERBS = ("start", "stop", "restart", "status")
_MAX_BYTES = 1 << 20


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
    if token:
        told: dict[str, Any] = call(address, method, path, token=token, kind=dict[str, Any])
        return told
    return _with_password(address, password).ask(method, path)


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


def _with_password(address: Address, password: str | None) -> _Browser:
    browser = _Browser(address)
    if browser.is_known():  # a server that asks nobody who he is
        return browser
    if password is None and not (in_notebook() or sys.stdin.isatty()):
        raise NotAuthenticatedError(
            f"{address.url} has no token, but a password: call sy.jupyter_node(…, password=…), or 'jupyter grid "
            f"server' in a terminal, where it is asked for"
        )
    browser.log_in(getpass.getpass(f"Password of {address.url}: ") if password is None else password)
    return browser


class _Browser:
    """Speaks with a Jupyter server as its pages do: by cookies, one of which each form repeats."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._repeated = secrets.token_hex(16)
        self._cookies = SimpleCookie({"_xsrf": self._repeated})

    def is_known(self) -> bool:
        """Whether the server answers."""
        return self._send("GET", "/grid/api/status")[0] == 200

    def log_in(self, password: str) -> None:
        """Raises NotAuthenticatedError."""
        status, _ = self._send("POST", "/login", urlencode({"password": password}).encode())
        if status not in (200, 302) or not self.is_known():
            raise NotAuthenticatedError(f"{self._address.url} does not take this password, or none at all")

    def ask(self, method: str, path: str) -> dict[str, Any]:
        """A call. Raises what the other side reported."""
        status, data = self._send(method, path)
        if status != 200:
            raise reported(status, data, self._address.url)
        told: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        return told

    def _send(self, method: str, path: str, form: bytes | None = None) -> tuple[int, bytes]:
        headers = {
            "Cookie": "; ".join(f"{name}={one.coded_value}" for name, one in self._cookies.items()),
            "X-XSRFToken": self._repeated,
        }
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection = self._address.connect()
        try:
            connection.request(method, self._address.path + path, body=form, headers=headers)
            answer = connection.getresponse()
            for one in answer.headers.get_all("Set-Cookie", []):
                self._cookies.load(one)
            self._cookies["_xsrf"] = self._repeated
            return answer.status, answer.read(_MAX_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise NodeUnavailableError(
                f"{self._address.url} does not answer ({type(error).__name__}): is it running?"
            ) from None
        finally:
            connection.close()
