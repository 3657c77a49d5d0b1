"""What may pass between the Jupyter server's port and the Node's public door: pure rules, for requests and answers.

Both ways have lists of what passes, and nothing else does. So no cookie, token or header of Jupyter or of a hub can
reach the Node, and nothing that the Node says gets a right in a browser where its owner is logged in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

from grid_jupyter.errors import BadRequest, GridError, LimitExceededError, NotAuthenticatedError
from grid_jupyter.identity import tokens

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
"""What the Node's doors know."""
REQUEST_HEADERS = (
    "Content-Encoding",
    "Content-Type",
    "Origin",
    "Range",
    "Upload-Offset",
    "X-Grid-Form",
    "X-Grid-Origin",
    "X-Grid-Readers",
    "X-Grid-Session",
    "X-Grid-Ticket",
)
"""Headers of a request that the Node's doors read, besides its credential and its length."""
HANDSHAKE_HEADERS = ("Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Version")
"""Those of a WebSocket's begin. Not Sec-WebSocket-Protocol, which can carry Jupyter's token."""
ANSWER_HEADERS = (
    "Accept-Ranges",
    "Cache-Control",
    "Content-Disposition",
    "Content-Range",
    "Content-Type",
    "Retry-After",
    "Upload-Complete",
    "Upload-Offset",
    "WWW-Authenticate",
    "X-Grid-Checkpoint",
    "X-Grid-Sha256",
)
"""Headers of an answer that pass, besides its length."""
MAX_HEAD_BYTES = 64 << 10
"""Length of an answer's head, in bytes."""
_SECRETS = frozenset({"token", "_xsrf"})
_TARGET = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]{}\"|^`\\-]*")
_STATUS = re.compile(r"HTTP/1\.[01] ([1-5][0-9][0-9])(?: .*)?")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
# A page of the Node is never one of Jupyter's: it may run no script, send no form, and has an origin of its own.
_HARMLESS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)


def target(path: str, query: str) -> str:
    """What to ask the Node for: a path below its root, without `.` and `..`, and a query without Jupyter's secrets.

    Raises BadRequest.
    """
    path = path or "/"
    decoded = unquote(path)
    if (
        not path.startswith("/")
        or not _TARGET.fullmatch(path)
        or not _QUERY.fullmatch(query)
        or not decoded.isprintable()
        or "\\" in decoded
        or "//" in decoded
        or any(part in (".", "..") for part in decoded.split("/"))
    ):
        raise BadRequest("this is not a path of a Node")
    kept = "&".join(part for part in query.split("&") if unquote(part.partition("=")[0]).lower() not in _SECRETS)
    return f"{path}?{kept}" if kept else path


def credential(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The header with the credential of the grid, if there is one. Raises NotAuthenticatedError for any other."""
    found = {}
    for name, value in headers:
        if name.lower() == "authorization":
            scheme, _, token = value.strip().partition(" ")
            if scheme.lower() != "bearer" or tokens.node_of(token.strip()) is None:
                raise NotAuthenticatedError(
                    "this is the Node's public door, which takes credentials of the grid: send one as "
                    "'Authorization: Bearer gjt1_…', and none of Jupyter's; nothing of it was passed on"
                )
            found["Authorization"] = f"Bearer {token.strip()}"
        elif name.lower() == "token":
            if tokens.node_of(value.strip()) is None:
                raise NotAuthenticatedError("the header 'token' takes a credential of the grid; it was not passed on")
            found["token"] = value.strip()
    return found


def length(headers: Iterable[tuple[str, str]]) -> int:
    """Bytes of the request's body, which is where it ends, for everybody. Raises BadRequest, LimitExceededError."""
    said = [value for name, value in headers if name.lower() == "content-length"]
    if any(name.lower() == "transfer-encoding" for name, _ in headers):
        raise BadRequest("a body comes with its Content-Length here, and never in chunks")
    if not said:
        return 0
    if len(said) > 1 or not re.fullmatch(r"[0-9]+", said[0]):
        raise BadRequest("a request has one Content-Length, a plain number")
    if len(said[0]) > 18:
        raise LimitExceededError("the body is over every limit of a Node")
    return int(said[0])


def asks_for_websocket(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether the connection is to become a WebSocket."""
    return any(name.lower() == "upgrade" and value.strip().lower() == "websocket" for name, value in headers)


def request(method: str, path: str, query: str, headers: list[tuple[str, str]], origin: str) -> bytes:
    """The head of the request that the Node gets. `origin` is the address of who asks, for its lock-out.

    HTTP/1.0 where it can be: one request for one connection, and an answer that is never in chunks.
    Raises BadRequest, LimitExceededError, NotAuthenticatedError.
    """
    if method not in METHODS:
        raise BadRequest(f"a Node knows {', '.join(sorted(METHODS))}")
    upgrades, size = asks_for_websocket(headers), length(headers)
    if upgrades and (method != "GET" or size):
        raise BadRequest("a WebSocket begins with a GET without a body")
    passed = {"Host": "node", "X-Real-Ip": origin, **credential(headers)}
    known = {name.lower(): name for name in (*REQUEST_HEADERS, *(HANDSHAKE_HEADERS if upgrades else ()))}
    for name, value in headers:
        found = known.get(name.lower())
        if found is None:
            continue
        if found in passed:
            raise BadRequest(f"a request has one header {found}")
        passed[found] = value
    if upgrades:
        passed.update({"Connection": "Upgrade", "Upgrade": "websocket"})
    elif size or method in ("POST", "PUT", "PATCH"):
        passed["Content-Length"] = str(size)
    lines = [f"{method} {target(path, query)} HTTP/1.{int(upgrades)}", *(f"{n}: {v}" for n, v in passed.items())]
    head = "\r\n".join(lines)
    if any(mark in line for line in lines for mark in "\r\n\0"):
        raise BadRequest("a header is on one line")
    return f"{head}\r\n\r\n".encode("latin-1", "replace")


@dataclass(frozen=True)
class Head:
    """The head of an answer, as whoever asked gets it."""

    status: int
    raw: bytes
    length: int | None  # bytes of the body; None: until the end of the connection
    is_websocket: bool  # from here on both sides say what they like


def answer(raw: bytes, *, upgrades: bool, has_body: bool) -> Head:
    """What passes of the head of the Node's answer. Raises GridError for what is none."""
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    found = _STATUS.fullmatch(first)
    fields = [_FIELD.fullmatch(line) for line in lines]
    if found is None or None in fields:
        raise GridError("the Node's answer cannot be read; its version may differ")
    status = int(found[1])
    said = {field[1].lower(): field[2] for field in fields if field is not None}
    if status == HTTPStatus.SWITCHING_PROTOCOLS and upgrades:
        names = ("Sec-WebSocket-Accept", "Sec-WebSocket-Extensions")
        passed = [(name, said[name.lower()]) for name in names if name.lower() in said]
        passed += [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        return Head(status, _head(status, passed), None, is_websocket=True)
    size = said.get("content-length", "")
    if status < 200 or "transfer-encoding" in said or (size and not re.fullmatch(r"[0-9]{1,18}", size)):
        raise GridError("the Node's answer cannot be passed on; its version may differ")
    passed = [(name, said[name.lower()]) for name in ANSWER_HEADERS if name.lower() in said]
    if size:
        passed.append(("Content-Length", size))
    bodiless = not has_body or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    body = 0 if bodiless else int(size) if size else None
    return Head(status, _head(status, [*passed, *_HARMLESS, ("Connection", "close")]), body, is_websocket=False)


def _head(status: int, fields: list[tuple[str, str]]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
