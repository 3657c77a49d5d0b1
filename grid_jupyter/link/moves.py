"""One Node's call to another: hand over a value for which the other one gave out a ticket. Knows no sessions.

Nothing of a Node's own goes along: no credential, no cookie; and nothing is followed elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import msgspec
from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from grid_jupyter.errors import GridError, LimitExceededError, NodeUnavailableError, from_wire

CONNECT_S = 10.0
"""Time to reach the other Node, and for it to prove that the ticket is its own."""
SEND_S = 600.0
"""Time for the bytes of one value."""
MAX_READERS_BYTES = 32 << 10
"""Length of the list of readers that goes along, as JSON."""
_MAX_ANSWER = 16 << 10
_MAX_TEXT = 500
_CHUNK = 1 << 20


def split(ticket: str) -> tuple[str, str]:
    """A ticket's number, which may be seen on the way, and its secret."""
    number, _, secret = ticket.partition(".")
    return number, secret


def proof(secret: str, challenge: str) -> str:
    """What only somebody can say who knows the ticket's secret, in hex."""
    return hmac.new(secret.encode(), f"grid-move {challenge}".encode(), hashlib.sha256).hexdigest()


async def hand_over(
    address: str, ticket: str, dtype: str, shape: tuple[int, ...], readers: tuple[str, ...] | None, origin: str,
    size: int, read: Callable[[int, int], bytes],
) -> None:  # fmt: skip
    """Send a value of `size` bytes, which `read(offset, length)` gives, to the Node at this address.

    The bytes go only to who knows the ticket's secret, whatever stands at the address. `readers` are those who may
    have the value (None: everybody), `origin` is the name of this Node.
    Raises NodeUnavailableError, LimitExceededError, and what the other Node reports.
    """
    number, secret = split(ticket)
    said = json.dumps(readers)
    if len(said) > MAX_READERS_BYTES:
        raise LimitExceededError("too many people may read this value for it to be moved; fetch it and send it anew")
    where = f"{address}/data-centric/moved/{quote(number, safe='')}"
    challenge = secrets.token_hex(16)
    answer = await _fetch(_request(f"{where}?challenge={challenge}", CONNECT_S))
    if answer is None or not hmac.compare_digest(str(answer.get("proof", "")), proof(secret, challenge)):
        raise NodeUnavailableError("the Node that gave out this ticket is not at its address; nothing was sent there")

    async def body(write: Callable[[bytes], Awaitable[None]]) -> None:
        offset = 0
        while offset < size:
            part = read(offset, min(_CHUNK, size - offset))
            if not part:
                raise GridError("the value ended early")
            await write(part)
            offset += len(part)

    headers = {
        "Content-Length": str(size),
        "Content-Type": "application/octet-stream",
        "X-Grid-Ticket": secret,
        "X-Grid-Form": json.dumps([dtype, list(shape)]),
        "X-Grid-Readers": said,
        "X-Grid-Origin": quote(origin),
    }
    request = _request(where, SEND_S, method="PUT", headers=headers, body_producer=body, expect_100_continue=True)
    if await _fetch(request) is None:
        raise NodeUnavailableError("the other Node answered with something else than expected; its version may differ")


def _request(url: str, timeout_s: float, **options: Any) -> HTTPRequest:
    return HTTPRequest(
        url,
        connect_timeout=CONNECT_S,
        request_timeout=timeout_s,
        follow_redirects=False,
        validate_cert=True,
        decompress_response=False,
        **options,
    )


async def _fetch(request: HTTPRequest) -> dict[str, object] | None:
    """The JSON of an answer; None for what is none. Raises what the other Node reports, NodeUnavailableError."""
    client = SimpleAsyncHTTPClient(force_instance=True, max_body_size=_MAX_ANSWER)
    try:
        response: HTTPResponse = await client.fetch(request, raise_error=False)
    except (OSError, HTTPClientError) as error:
        raise NodeUnavailableError(f"the other Node does not answer ({type(error).__name__})") from None
    finally:
        client.close()
    if response.code == 599:
        raise NodeUnavailableError("the other Node does not answer, or broke off")
    try:
        answer = msgspec.json.decode(response.body or b"", type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None
    if response.code == 200:
        return answer
    raise from_wire(answer.get("code"), str(answer.get("error", "it refused"))[:_MAX_TEXT])
