"""The owner's door: HTTP on a unix socket that only this user can open, so that asking for a credential is needless."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket
from tornado.web import Application, HTTPError

from grid_jupyter.server.door import JsonDoor, http_server, log_request


class OwnerService(Protocol):
    """What a Node or Network does for its owner."""

    async def status(self) -> dict[str, Any]:
        """role, name, id, address, status, version, network, isolation, isolation_required, device, devices, sessions,
        datasets, storage_bytes, guests, uptime_s."""
        ...

    async def ensure_account(self, username: str, role: str) -> None:
        """See to it that there is an account with this role."""
        ...

    async def issue_token(self, username: str, expires_s: float | None) -> str:
        """A new token of that account."""
        ...

    async def revoke_tokens(self, username: str) -> int:
        """End all tokens of that account; how many there were."""
        ...

    async def invite(self, role: str, expires_s: float, username: str | None) -> tuple[str, float]:
        """A one-time invite as `<address>/#<code>`, and when it ends (UTC seconds)."""
        ...


class _AccountBody(msgspec.Struct, forbid_unknown_fields=True):
    username: str
    role: str


class _TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    username: str
    expires_s: float | None = None


class _RevokeBody(msgspec.Struct, forbid_unknown_fields=True):
    username: str


class _InviteBody(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    expires_s: float
    username: str | None = None


class OwnerDoor(JsonDoor):
    """Base of the owner's routes."""

    @property
    def service(self) -> OwnerService:
        service: OwnerService = self.settings["service"]
        return service


class Status(OwnerDoor):
    """GET: how the process is."""

    async def get(self) -> None:
        self.reply(await self.service.status())


class OwnerAccounts(OwnerDoor):
    """POST: an account of this name and role."""

    async def post(self) -> None:
        body = self.body(_AccountBody)
        await self.service.ensure_account(body.username, body.role)
        self.reply({"username": body.username, "role": body.role})


class OwnerTokens(OwnerDoor):
    """POST: a new token. DELETE: end all tokens."""

    async def post(self) -> None:
        body = self.body(_TokenBody)
        token = await self.service.issue_token(body.username, body.expires_s)
        self.reply({"username": body.username, "token": token})

    async def delete(self) -> None:
        body = self.body(_RevokeBody)
        self.reply({"revoked": await self.service.revoke_tokens(body.username)})


class OwnerInvites(OwnerDoor):
    """POST: a one-time invite."""

    async def post(self) -> None:
        body = self.body(_InviteBody)
        invite, expires = await self.service.invite(body.role, body.expires_s, body.username)
        self.reply({"invite": invite, "expires": expires})


class _Nothing(JsonDoor):
    async def prepare(self) -> None:
        raise HTTPError(404)


OWNER_RULES: list[tuple[str, type[JsonDoor]]] = [
    (r"/owner/status", Status),
    (r"/owner/accounts", OwnerAccounts),
    (r"/owner/tokens", OwnerTokens),
    (r"/owner/invites", OwnerInvites),
]


def owner_application(service: OwnerService, more: list[Any] | None = None, **settings: Any) -> Application:
    """The owner's routes over a service; `more` adds those that only one kind of process has, with their settings."""
    rules = [*OWNER_RULES, *(more or [])]
    return Application(rules, service=service, default_handler_class=_Nothing, log_function=log_request, **settings)


def open_unix_door(app: Application, path: Path, *, behind: bool = False) -> HTTPServer:
    """Listen on a unix socket: mode 0600, in a directory that nobody else enters (StateDir.socket_path). `behind`
    says that whoever connects speaks for others, whose addresses it tells."""
    server = http_server(app, behind=behind)
    server.add_socket(bind_unix_socket(str(path), mode=0o600))
    return server
