"""What may pass from the Jupyter server's port to a Node, and back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grid_jupyter.errors import BadRequest, GridError, LimitExceededError, NotAuthenticatedError
from grid_jupyter.identity import tokens
from grid_jupyter.server import passing

SERVER = Path(passing.__file__).parent
TOKEN = tokens.new_token("bob")


def passed(*headers: tuple[str, str], method: str = "GET", path: str = "/x", query: str = "") -> list[str]:
    """The lines that the Node gets."""
    return passing.request(method, path, query, list(headers), "192.0.2.7").decode("latin-1").split("\r\n")


def test_a_credential_of_the_grid_passes_with_the_address_of_who_sent_it():
    lines = passed(("Authorization", f"Bearer {TOKEN}"), ("Host", "hub.example.org"))
    assert lines == ["GET /x HTTP/1.0", "Host: node", "X-Real-Ip: 192.0.2.7", f"Authorization: Bearer {TOKEN}", "", ""]
    assert f"token: {TOKEN}" in passed(("token", TOKEN))


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "token 0123456789abcdef0123456789abcdef"),
        ("Authorization", f"token {TOKEN}"),
        ("Authorization", "Bearer 0123456789abcdef0123456789abcdef"),
        ("authorization", "BEARER hub-api-token"),
        ("Authorization", "Basic YW5hOnNlY3JldA=="),
        ("Authorization", ""),
        ("Token", "0123456789abcdef0123456789abcdef"),
    ],
)
def test_what_is_no_credential_of_the_grid_is_refused_and_not_repeated(header):
    with pytest.raises(NotAuthenticatedError) as refused:
        passed(header)
    assert not header[1] or header[1] not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "Cookie", "X-XSRFToken", "X-Forwarded-For", "X-Real-Ip", "X-Forwarded-Proto", "Forwarded", "Referer", "Via",
        "X-JupyterHub-Version", "Proxy-Authorization", "Sec-WebSocket-Protocol", "Connection", "Keep-Alive", "TE",
        "Trailer", "Proxy-Connection", "Upgrade", "Expect", "User-Agent", "X-Scheme",
    ],
)  # fmt: skip
def test_no_other_header_passes(name):
    assert not [line for line in passed((name, "gossip")) if "gossip" in line]
    assert not [line for line in passed((name, "gossip"), ("Upgrade", "websocket")) if "gossip" in line]


def test_every_header_that_the_nodes_doors_read_passes():
    read = set()
    for module in SERVER.glob("*.py"):
        if module.stem not in ("passing", "public_door"):
            read |= set(re.findall(r'headers(?:\.get\(|\[)"([A-Za-z-]+)"', module.read_text()))
            read |= set(re.findall(r'_header\(\w+, "([A-Za-z-]+)"', module.read_text()))
    read |= set(
        re.findall(r'^(?:OFFSET|SESSION)_HEADER = "([^"]+)"', (SERVER / "node_streams.py").read_text(), re.MULTILINE)
    )
    special = {"Authorization", "token", "Content-Length", "Expect", "Upgrade"}
    assert {"X-Grid-Ticket", "X-Grid-Form", "X-Grid-Session", "Upload-Offset", *special} <= read
    assert read - special <= set(passing.REQUEST_HEADERS)


def test_a_query_loses_jupyters_secrets_and_nothing_else():
    told = passed(path="/data-centric/values/3", query="dtype=float32&token=abc&shape=[2,3]&%74oken=d&_xsrf=e&tokens=1")
    assert told[0] == "GET /data-centric/values/3?dtype=float32&shape=[2,3]&tokens=1 HTTP/1.0"
    assert passed(query="token=abc")[0] == "GET /x HTTP/1.0"


@pytest.mark.parametrize(
    "path",
    [
        "x", "//x", "/a//b", "/a/../b", "/..", "/a/%2e%2e/b", "/a/%2E./b", "/a/..%2fb", "/a%5c..", "/a\\b", "/./x",
        "/a%00", "/a%0d%0aX: y", "/\xe9", "/a b", "http://elsewhere/", "/%2f/x", "/a?b",
    ],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(path):
    with pytest.raises(BadRequest):
        passed(path=path)


def test_the_root_has_two_spellings():
    assert passed(path="")[0] == passed(path="/")[0] == "GET / HTTP/1.0"


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "5"), ("Content-Length", "5")],
        [("Content-Length", "5,5")],
        [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "identity")],
        [("Content-Length", "+5")],
        [("Content-Length", "-5")],
        [("Content-Length", "0x5")],
        [("Content-Length", "\xb2")],
        [("Content-Length", "")],
        [("Content-Length", "5 5")],
        [("Content-Type", "a"), ("content-type", "b")],
        [("Authorization", f"Bearer {TOKEN}"), ("Range", "bytes=0-\r\nX-Real-Ip: 1")],
        [("Upgrade", "websocket"), ("Content-Length", "5")],
    ],
)
def test_requests_of_which_two_servers_could_see_two_ends_are_refused(headers):
    with pytest.raises(BadRequest):
        passed(*headers, method="GET" if ("Upgrade", "websocket") in headers else "POST")


def test_a_length_beyond_all_numbers_is_too_much():
    with pytest.raises(LimitExceededError):
        passed(("Content-Length", "9" * 19), method="POST")


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND"])
def test_methods_that_no_node_knows_are_refused(method):
    with pytest.raises(BadRequest):
        passed(method=method)


# ------------------------------------------------------------------ answers


def answered(raw: str, *, upgrades: bool = False, has_body: bool = True) -> passing.Head:
    return passing.answer(f"{raw}\r\n\r\n".encode("latin-1"), upgrades=upgrades, has_body=has_body)


def test_an_answer_gets_no_right_in_the_browser_of_the_nodes_owner():
    head = answered(
        "HTTP/1.1 200 OK\r\nSet-Cookie: username-x=stolen\r\nContent-Type: text/html\r\nContent-Length: 5\r\n"
        "Service-Worker-Allowed: /\r\nContent-Security-Policy: default-src *\r\nAccess-Control-Allow-Origin: *\r\n"
        "Location: http://elsewhere/\r\nClear-Site-Data: *\r\nRefresh: 0\r\nConnection: keep-alive"
    )
    lines = head.raw.decode().split("\r\n")
    assert (head.status, head.length, head.is_websocket) == (200, 5, False)
    assert lines[0] == "HTTP/1.1 200 OK"
    assert {line.partition(":")[0] for line in lines[1:] if line} == {
        "Content-Type", "Content-Length", "X-Content-Type-Options", "Content-Security-Policy", "Referrer-Policy",
        "Connection",
    }  # fmt: skip
    assert any(line.startswith("Content-Security-Policy: sandbox; default-src 'none'") for line in lines)
    assert "Connection: close" in lines


def test_an_answer_without_a_length_ends_with_its_connection_and_one_to_head_has_no_body():
    assert answered("HTTP/1.0 200 OK").length is None
    assert answered("HTTP/1.0 200 OK\r\nContent-Length: 7", has_body=False).length == 0
    assert answered("HTTP/1.0 204 No Content").length == 0


def test_only_who_asked_for_a_websocket_gets_one():
    handshake = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: abc\r\nSet-Cookie: a=b"
    head = answered(handshake, upgrades=True)
    assert head.is_websocket
    assert "Set-Cookie" not in head.raw.decode()
    with pytest.raises(GridError):
        answered(handshake)


@pytest.mark.parametrize(
    "raw",
    [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\r\nContent-Length: 5,5",
        "HTTP/1.1 100 Continue",
        "HTTP/1.1 200 OK\r\n folded: header",
        "HTTP/2 200 OK",
        "SSH-2.0-OpenSSH",
        "HTTP/1.1 200 OK\r\nno colon",
        "HTTP/1.1 200 OK\r\nA: b\nSet-Cookie: c=d",
    ],
)
def test_an_answer_that_cannot_be_passed_on_is_an_error(raw):
    with pytest.raises(GridError):
        answered(raw)
