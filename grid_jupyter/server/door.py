"""A door: how every HTTP handler of Node and Network reads a request, knows its caller and answers errors.

Doors are closed by default: a method asks for a credential unless its class names it in `open_to_all`.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote

import msgspec
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from grid_jupyter.errors import BadRequest, Forbidden, GridError, LimitExceededError, NotAuthenticatedError
from grid_jupyter.identity.accounts import Account, Accounts
from grid_jupyter.server.logs import new_request
from grid_jupyter.wire.limits import MAX_FRAME_BYTES

log = logging.getLogger("grid_jupyter")

MAX_JSON_BYTES = 1 << 20
"""Length of a JSON body, in bytes."""
MAX_BODY_BYTES = 4 << 20
"""Length of any body that is not streamed, in bytes: beyond it the connection is closed unread."""
BODY_TIMEOUT_S = 60.0
"""Time for a whole body to arrive; a handler that streams sets its own (`connection.set_body_timeout`)."""
IDLE_TIMEOUT_S = 60.0
"""Time that a kept-alive connection may rest between requests, and that the headers of one may take."""
REQUEST_HEADER = "X-Request-Id"
"""Of each answer: by what the log calls the request."""
MAX_REQUEST_HEADER_BYTES = 64 << 10
"""Length of all headers of one request, in bytes."""

_NUMBER = re.compile(r"[0-9]{1,18}")

T = TypeVar("T")


def decode(body: bytes, kind: Any) -> Any:
    """A JSON body as `kind`. Raises BadRequest, never quoting the body, in words that begin as in 0.2.9."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"Invalid JSON format. {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise BadRequest(
            "Invalid JSON format. Send one JSON object in UTF-8; NaN and Infinity are no numbers in it"
        ) from None


class JsonDoor(RequestHandler):
    """JSON in, JSON out, errors as {"error": text, "code": code}; knows nothing of callers."""

    max_json_bytes: ClassVar[int] = MAX_JSON_BYTES
    _request_id = ""
    error_key: ClassVar[str] = "error"
    """Routes of 0.2.9 that told errors under another key name it here; "error" is there as well."""

    def set_default_headers(self) -> None:
        self._request_id = self._request_id or new_request()  # it is called for an error once more
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header(REQUEST_HEADER, self._request_id)

    def check_xsrf_cookie(self) -> None:
        """Nothing to check: a door takes no cookie for a credential."""

    def body(self, kind: type[T]) -> T:
        """The JSON body as `kind`. Raises LimitExceededError, BadRequest (never quoting the body)."""
        data = self.request.body
        if len(data) > self.max_json_bytes:
            raise LimitExceededError(f"a JSON body of {len(data)} bytes is over the limit of {self.max_json_bytes}")
        found: T = decode(data, kind)
        return found

    def reply(self, answer: object, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.finish(msgspec.json.encode(answer))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The one place where an exception becomes an answer; what was not raised on purpose says nothing."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, GridError):
            wire = error.to_wire()
            self.set_status(error.status)
            if isinstance(error, NotAuthenticatedError):
                self.set_header("WWW-Authenticate", "Bearer")
        elif isinstance(error, HTTPError) or error is None:
            phrase = HTTPStatus(status_code).phrase
            wire = {"error": phrase, "code": phrase.lower().replace(" ", "-")}
        else:
            wire = {"error": "internal error", "code": "grid-error"}
        self.finish(msgspec.json.encode({self.error_key: wire["error"], **wire}))

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Refusals are one line without their query; bugs come with their traceback."""
        if isinstance(value, GridError | HTTPError | StreamClosedError):
            log.debug("%s %s refused: %s", *_asked(self), type(value).__name__)
        else:
            log.error("%s %s failed", *_asked(self), exc_info=value)


class Door(JsonDoor):
    """Base of the public handlers. The application's settings hold `accounts`: identity's Accounts."""

    open_to_all: ClassVar[frozenset[str]] = frozenset()
    """HTTP methods that answer without a credential. A wrong credential is refused there too."""

    _account: Account | None = None

    async def prepare(self) -> None:
        credential = self._credential()
        if credential is not None:
            self._account = await self.accounts.identify(credential, self.origin)
        elif not self.is_open():
            raise NotAuthenticatedError(
                "this needs a credential: send it as 'Authorization: Bearer TOKEN'; "
                "the owner gives one out with 'jupyter grid invite' or 'jupyter grid token'"
            )

    def is_open(self) -> bool:
        """Whether this request may come without a credential."""
        return self.request.method in self.open_to_all

    @property
    def accounts(self) -> Accounts:
        accounts: Accounts = self.settings["accounts"]
        return accounts

    @property
    def origin(self) -> str:
        """Where attempts come from, for the lock-out."""
        return self.request.remote_ip or "local"

    async def account(self) -> Account | None:
        """The caller, or None for one without a credential (on methods open to all)."""
        return self._account

    async def require(self, *flags: str) -> Account:
        """The caller, who must hold one of these flags if any is named.

        Raises NotAuthenticatedError, Forbidden.
        """
        account = self._account
        if account is None:
            raise NotAuthenticatedError("this needs a credential: send it as 'Authorization: Bearer TOKEN'")
        if flags and not account.flags.intersection(flags):
            raise Forbidden("User is not authorized for this operation!")
        return account

    def _credential(self) -> str | None:
        """The token of this request: a bearer token, or the header `token` of 0.2.9."""
        header = self.request.headers.get("Authorization")
        if header is None:
            return self.request.headers.get("token")
        scheme, _, credential = header.strip().partition(" ")
        # Jupyter's own spelling is read as well, so that its token gets an answer that explains itself
        if scheme.lower() not in ("bearer", "token") or not credential.strip():
            raise NotAuthenticatedError("send the credential as 'Authorization: Bearer TOKEN'")
        return credential.strip()


class NothingHere(Door):
    """Any path without a route of its own."""

    open_to_all = frozenset(RequestHandler.SUPPORTED_METHODS)

    async def prepare(self) -> None:
        raise HTTPError(404)


def application(rules: Sequence[Any], accounts: Accounts, **settings: Any) -> Application:
    """A public application of doors; whatever it has no rule for is a 404 in JSON."""
    return Application(
        list(rules), accounts=accounts, default_handler_class=NothingHere, log_function=log_request, **settings
    )


def http_server(app: Application, tls: ssl.SSLContext | None = None, *, behind: bool = False) -> HTTPServer:
    """A server with the limits of the doors; larger bodies need a handler that streams them. `behind` takes the
    address of who asks from the header X-Real-Ip: only where nobody but a server of ours can connect."""
    return HTTPServer(
        app,
        xheaders=behind,
        ssl_options=tls,
        max_body_size=MAX_BODY_BYTES,
        max_buffer_size=MAX_FRAME_BYTES + MAX_REQUEST_HEADER_BYTES,
        max_header_size=MAX_REQUEST_HEADER_BYTES,
        body_timeout=BODY_TIMEOUT_S,
        idle_connection_timeout=IDLE_TIMEOUT_S,
    )


def log_request(handler: RequestHandler) -> None:
    """Method, path, status, time: never a query string, a header or a body."""
    request = handler.request
    gauges = handler.settings.get("gauges")
    if gauges is not None:
        gauges.answered(handler, handler.settings["door"])
    level = logging.DEBUG if handler.get_status() < 500 else logging.WARNING
    if not log.isEnabledFor(level):
        return
    log.log(
        level,
        "%d %s %s (%s) %.1f ms",
        handler.get_status(),
        *_asked(handler),
        request.remote_ip,
        1000.0 * request.request_time(),
    )


def _asked(handler: RequestHandler) -> tuple[str, str]:
    """Method and path for the log: without what is a secret in a path, or a stranger's own words."""
    method = handler.request.method or ""
    if isinstance(handler, NothingHere):
        return method if method in handler.SUPPORTED_METHODS else "?", "(no such route)"
    told = {part for part in handler.path_args if part and not _NUMBER.fullmatch(part)}
    path = "/".join("*" if unquote(part) in told else part for part in handler.request.path.split("/"))
    return method if method in handler.SUPPORTED_METHODS else "?", path
