"""The owner's side of the owner door: small JSON requests over the Unix socket of a Node or Network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from grid_jupyter.errors import GridError, NodeUnavailableError, from_wire

MAX_ANSWER_BYTES = 64 << 20


class _SocketResolver(Resolver):
    """Every name leads to one Unix socket."""

    def initialize(self, path: str) -> None:
        self.path = path

    async def resolve(self, host: str, port: int, family: int = socket.AF_UNSPEC) -> list[tuple[int, Any]]:
        return [(socket.AF_UNIX, self.path)]


class OwnerClient:
    """Whoever can open the socket is the owner; `path` comes from running.json.

    Every method raises NodeUnavailableError if nothing answers there, and otherwise what the door reports.
    """

    def __init__(self, path: str | Path, timeout_s: float = 5.0) -> None:
        self._path = str(path)
        self._timeout_s = timeout_s

    async def status(self) -> dict[str, Any]:
        """What the process says of itself."""
        return await self._request("GET", "/owner/status")

    async def account(self, username: str, role: str) -> None:
        """See to it that there is an account with this role."""
        await self._request("POST", "/owner/accounts", {"username": username, "role": role})

    async def token(self, username: str, expires_s: float | None = None) -> str:
        """A new token of that account; without `expires_s` it counts until it is revoked."""
        answer = await self._request("POST", "/owner/tokens", {"username": username, "expires_s": expires_s})
        return str(answer["token"])

    async def revoke(self, username: str) -> int:
        """End all tokens of that account: how many there were."""
        answer = await self._request("DELETE", "/owner/tokens", {"username": username})
        return int(answer["revoked"])

    async def invite(self, role: str, expires_s: float, username: str | None = None) -> tuple[str, float]:
        """A one-time invite with this role, for anyone or for one user name, and when it ends (UTC seconds)."""
        body = {"role": role, "expires_s": expires_s, "username": username}
        answer = await self._request("POST", "/owner/invites", body)
        return str(answer["invite"]), float(answer["expires"])

    async def requests(self, state: str = "") -> list[dict[str, Any]]:
        """Requests to decide on, as RequestInfo: the open ones, or those in a state."""
        answer = await self._request("GET", f"/owner/requests{f'?state={quote(state)}' if state else ''}")
        return list(answer["requests"])

    async def decide(self, request: int, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Approve, deny, ask or revoke; the request as it is then."""
        return await self._request("POST", f"/owner/requests/{request}/{verb}", body)

    async def audit(self, limit: int) -> list[dict[str, Any]]:
        """The newest rows of the audit log, at most 1,000, newest first."""
        return list((await self._request("GET", f"/owner/audit?limit={limit}"))["rows"])

    async def verify_audit(self) -> dict[str, Any]:
        """What a look at the whole audit log found (AuditVerified)."""
        return await self._request("GET", "/owner/audit/verify")

    async def forward(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask for one of the routes of the owner's door."""
        return await self._request(method, path, body)

    async def text(self, path: str) -> bytes:
        """What a route answers that speaks no JSON. Raises what it reports in JSON."""
        status, body = await self._fetch("GET", path, None)
        if status >= 400:
            _answer(status, body)
        return body

    async def events(self, take: Callable[[dict[str, Any]], None]) -> None:
        """Hand on each line of /owner/events until the process ends or this task is cancelled, which hangs up.

        tornado's client would go on reading when nobody waits any more.
        """
        stream = IOStream(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), max_buffer_size=MAX_ANSWER_BYTES)
        try:
            await asyncio.wait_for(stream.connect(self._path), self._timeout_s)
            await stream.write(b"GET /owner/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
            head = await asyncio.wait_for(stream.read_until(b"\r\n\r\n"), self._timeout_s)
            if head.split(b" ", 2)[1:2] != [b"200"]:
                raise NodeUnavailableError(f"what answers at {self._path} tells no events; is it of this version?")
            while True:
                take(msgspec.json.decode(await stream.read_until(b"\n"), type=dict[str, Any]))
        except (OSError, StreamClosedError, asyncio.TimeoutError) as error:
            raise NodeUnavailableError(f"nothing answers at {self._path} ({error}); is it running?") from None
        finally:
            stream.close()

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return _answer(*await self._fetch(method, path, body))

    async def _fetch(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        request = HTTPRequest(
            f"http://localhost{path}",
            method=method,
            body=None if body is None else msgspec.json.encode(body),
            headers={"Content-Type": "application/json"},
            connect_timeout=self._timeout_s,
            request_timeout=self._timeout_s,
            follow_redirects=False,
            allow_nonstandard_methods=True,  # a DELETE with a body
        )
        client = SimpleAsyncHTTPClient(
            force_instance=True, resolver=_SocketResolver(path=self._path), max_body_size=MAX_ANSWER_BYTES
        )
        try:
            response = await client.fetch(request, raise_error=False)
        except (HTTPClientError, OSError) as error:
            raise NodeUnavailableError(f"nothing answers at {self._path} ({error}); is it running?") from None
        finally:
            client.close()
        return response.code, response.body


def _answer(status: int, body: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise GridError(f"the owner door answered {status} without JSON; are both sides of the same version?")
    if status >= 400:
        raise from_wire(answer.get("code"), answer.get("error"))
    return answer
