"""The Node's public door behind the Jupyter server's port, byte by byte: a client and a Node that do what they like."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from grid_jupyter.identity import tokens
from grid_jupyter.server import public_door
from grid_jupyter.server.public_door import PUBLIC_RULES

TOKEN = tokens.new_token("bob")
PATIENCE_S = 20.0
MUCH = 64 << 20
ROOM = 8 << 20
"""More than what socket buffers and pieces hold together, and much less than MUCH."""


@dataclass
class Door:
    """A server with the door alone, on a thread; the Node behind it is whatever the test does with `node`."""

    node: socket.socket
    extension: SimpleNamespace
    port: int = 0
    open: list[socket.socket] = field(default_factory=list)

    def ask(self, text: str, body: bytes = b"") -> socket.socket:
        """A connection on which this was sent; `\\n` stands for the ends of lines."""
        client = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        self.open.append(client)
        client.sendall(text.replace("\n", "\r\n").encode("latin-1") + body)
        return client

    def accept(self) -> socket.socket:
        """The Node's end of the next connection."""
        self.node.settimeout(PATIENCE_S)
        came, _ = self.node.accept()
        came.settimeout(PATIENCE_S)
        self.open.append(came)
        return came


@pytest.fixture
def door() -> Iterator[Door]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        path = str(Path(folder) / "public.sock")
        node = ending.enter_context(socket.socket(socket.AF_UNIX))
        node.bind(path)
        node.listen()
        extension = SimpleNamespace(
            node=SimpleNamespace(running=SimpleNamespace(public_socket=path)),
            public_connections=4,
            public_connections_of_one=4,
            passing=0,
            passing_from=Counter(),
        )
        made = Door(node, extension)
        ready, loop = threading.Event(), asyncio.new_event_loop()

        async def serve() -> None:
            rules = [(f"/user/x/{pattern}", handler) for pattern, handler in PUBLIC_RULES]
            settings = {"base_url": "/user/x/", "grid_jupyter": extension, "xsrf_cookies": True}
            server = HTTPServer(Application(rules, log_function=lambda handler: None, **settings))
            sockets = bind_sockets(0, "127.0.0.1")
            server.add_sockets(sockets)
            made.port = sockets[0].getsockname()[1]
            ready.set()
            await ended.wait()
            server.stop()
            await server.close_all_connections()

        async def until_ended() -> None:
            nonlocal ended
            ended = asyncio.Event()
            await serve()

        ended: asyncio.Event
        thread = threading.Thread(target=loop.run_until_complete, args=(until_ended(),))
        thread.start()
        assert ready.wait(PATIENCE_S)
        yield made
        for one in made.open:
            one.close()
        deadline = time.monotonic() + PATIENCE_S
        while extension.passing:
            assert time.monotonic() < deadline, "a connection is held for nobody"
            time.sleep(0.01)
        loop.call_soon_threadsafe(ended.set)
        thread.join(PATIENCE_S)
        loop.close()


def all_of(end: socket.socket) -> bytes:
    """What comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := end.recv(1 << 20):
            data += piece
    return data


def head_of(end: socket.socket) -> str:
    """The head of what comes; what follows it stays where it is."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += end.recv(1)
    return data.decode("latin-1")


def take(end: socket.socket, count: int) -> int:
    """Take so many bytes; how many came before the end."""
    taken = 0
    while taken < count and (piece := end.recv(min(1 << 20, count - taken))):
        taken += len(piece)
    return taken


def push(end: socket.socket, most: int) -> int:
    """Send zeros until nothing more is taken for a while; how many went."""
    end.settimeout(0.3)
    sent, piece = 0, bytes(1 << 20)
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while sent < most:
            sent += end.send(piece[: most - sent])
    end.settimeout(PATIENCE_S)
    return sent


def refused(door: Door, text: str, body: bytes = b"") -> tuple[int, str]:
    """Status and code of an answer that the Node has no part in."""
    said = all_of(door.ask(text, body)).decode()
    door.node.settimeout(0.05)
    with pytest.raises(TimeoutError):
        door.node.accept()
    assert said.count("HTTP/1.1 ") == 1
    return int(said.split(" ")[1]), json.loads(said.partition("\r\n\r\n")[2])["code"]


# ------------------------------------------------------------------ whom it lets through


def test_nothing_of_jupyters_reaches_the_node_and_nothing_of_the_nodes_sets_a_cookie(door):
    client = door.ask(
        "POST /user/x/grid/public/data-centric/search?token=jupyters&_xsrf=forged HTTP/1.1\nHost: hub.example.org\n"
        f"Cookie: username-hub=secret; _xsrf=2|a\nX-XSRFToken: 2|a\ntoken: {TOKEN}\nX-Forwarded-For: 6.6.6.6\n"
        "X-Real-Ip: 6.6.6.6\nX-JupyterHub-Api: secret\nReferer: http://hub/user/x/lab?token=jupyters\n"
        "Sec-WebSocket-Protocol: v1.token.websocket.jupyter.org.secret\nContent-Length: 4\n\n",
        b"body",
    )
    node = door.accept()
    asked = head_of(node)
    assert take(node, 4) == 4
    node.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n\r\nok")
    node.close()
    assert asked == (
        f"POST /data-centric/search HTTP/1.0\r\nHost: node\r\nX-Real-Ip: 127.0.0.1\r\ntoken: {TOKEN}\r\n"
        "Content-Length: 4\r\n\r\n"
    )
    said = all_of(client).decode()
    assert said.startswith("HTTP/1.1 200 OK\r\n")
    assert said.endswith("\r\n\r\nok")
    assert "Set-Cookie" not in said


@pytest.mark.parametrize("scheme", ["token", "Bearer"])
def test_a_token_of_jupyters_is_refused_before_the_node_hears_of_it(door, scheme):
    head = f"GET /user/x/grid/public/ HTTP/1.1\nHost: h\nAuthorization: {scheme} {'0' * 48}\n\n"
    assert refused(door, head) == (401, "not-authenticated")


@pytest.mark.parametrize("path", ["/../api/contents", "/a/%2e%2e/b", "//owner/status", "ations"])
def test_no_path_leads_out_of_the_nodes_doors(door, path):
    assert refused(door, f"GET /user/x/grid/public{path} HTTP/1.1\nHost: h\n\n") == (400, "bad-request")


# ------------------------------------------------------------------ where a request ends


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 4\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: xchunked",
        "Content-Length: 4\nContent-Length: 40",
        "Content-Length: 4\nContent-Length: 4",
        "Content-Length: +4",
        "Content-Length: 4, 40",
    ],
)
def test_a_body_with_two_ends_is_refused(door, lengths):
    text = f"POST /user/x/grid/public/data-centric/search HTTP/1.1\nHost: h\n{lengths}\n\n"
    smuggled = b"0\r\n\r\nGET /owner/status HTTP/1.1\r\nHost: h\r\n\r\n"
    assert refused(door, text, smuggled) == (400, "bad-request")


def test_a_request_behind_another_one_is_never_read(door):
    client = door.ask(
        "POST /user/x/grid/public/a HTTP/1.1\nHost: h\nContent-Length: 2\n\n",
        b"{}GET /user/x/api/contents HTTP/1.1\r\nHost: h\r\n\r\n",
    )
    node = door.accept()
    head_of(node)
    assert node.recv(100) == b"{}"
    node.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.0 200 OK\r\n\r\nmore")
    said = all_of(client)
    assert said.endswith(b"\r\n\r\nok")
    assert node.recv(100) == b""


def test_a_body_that_breaks_off_is_no_body_for_the_node(door):
    client = door.ask("PUT /user/x/grid/public/a HTTP/1.1\nHost: h\nContent-Length: 100\n\n", b"half")
    node = door.accept()
    head_of(node)
    client.close()
    assert all_of(node) == b"half"


def test_an_answer_that_breaks_off_is_seen_to_have_broken_off(door):
    client = door.ask("GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n")
    node = door.accept()
    head_of(node)
    node.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    node.close()
    said = all_of(client).decode()
    assert "Content-Length: 100\r\n" in said
    assert said.endswith("\r\n\r\nhalf")


def test_an_answer_that_is_none_is_an_error_of_ours(door):
    client = door.ask("GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n")
    door.accept().sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert all_of(client).startswith(b"HTTP/1.1 500 ")


# ------------------------------------------------------------------ how much is held of it


def test_a_node_that_takes_nothing_stops_the_client_and_nothing_piles_up_in_between(door):
    client = door.ask(f"PUT /user/x/grid/public/a HTTP/1.1\nHost: h\nContent-Length: {MUCH}\n\n")
    node = door.accept()
    head_of(node)
    sent = push(client, MUCH)
    assert sent < ROOM
    taking = threading.Thread(target=client.sendall, args=(bytes(MUCH - sent),))
    taking.start()
    assert take(node, MUCH) == MUCH
    taking.join()
    node.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert all_of(client).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_takes_nothing_stops_the_node(door):
    client = door.ask("GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n")
    node = door.accept()
    head_of(node)
    node.sendall(f"HTTP/1.0 200 OK\r\nContent-Length: {MUCH}\r\n\r\n".encode())
    sent = push(node, MUCH)
    assert sent < ROOM
    taking = threading.Thread(target=node.sendall, args=(bytes(MUCH - sent),))
    taking.start()
    head_of(client)
    assert take(client, MUCH) == MUCH
    taking.join()


@pytest.mark.parametrize("who", ["client", "node"])
def test_who_neither_sends_nor_takes_is_let_go_of(door, monkeypatch, who):
    monkeypatch.setattr(public_door, "STALL_S", 0.2)
    client = door.ask(f"PUT /user/x/grid/public/a HTTP/1.1\nHost: h\nContent-Length: {MUCH}\n\n", b"some")
    node = door.accept()
    head_of(node)
    if who == "node":
        push(client, MUCH)
        assert all_of(client).startswith(b"HTTP/1.1 503 ")
    else:
        assert all_of(client) == b""
    assert take(node, MUCH) < ROOM


def test_who_is_refused_in_the_middle_of_a_body_gets_to_read_why(door):
    client = door.ask(f"PUT /user/x/grid/public/a HTTP/1.1\nHost: h\nContent-Length: {MUCH}\n\n", bytes(64 << 10))
    node = door.accept()
    head_of(node)
    node.sendall(b"HTTP/1.0 413 Too Large\r\nContent-Length: 3\r\n\r\nwhy")
    node.close()
    with contextlib.suppress(OSError):
        client.sendall(bytes(ROOM))
    assert re.match(rb"HTTP/1.1 413 (?s:.*)\r\n\r\nwhy$", all_of(client))


def test_who_waits_to_be_asked_for_the_body_is_asked(door):
    client = door.ask("PUT /user/x/grid/public/a HTTP/1.1\nHost: h\nContent-Length: 3\nExpect: 100-continue\n\n")
    node = door.accept()
    head_of(node)
    assert head_of(client).startswith("HTTP/1.1 100 ")
    client.sendall(b"yes")
    assert node.recv(10) == b"yes"


def test_a_client_that_leaves_while_the_node_thinks_is_told_to_the_node(door):
    client = door.ask("GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n")
    node = door.accept()
    head_of(node)
    client.close()
    assert node.recv(1) == b""


def test_a_client_that_has_left_before_the_node_has_the_request_is_told_to_it_too(door):
    door.ask("GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n").close()
    node = door.accept()
    head_of(node)
    assert node.recv(1) == b""


def test_so_many_connections_and_not_one_more(door):
    for _ in range(4):
        door.ask("GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n")
        head_of(door.accept())
    assert refused(door, "GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n") == (503, "node-unavailable")


@pytest.mark.parametrize(("said", "share"), [(0, 2), (3, 3)])
def test_one_address_has_its_share_of_the_connections_and_leaves_the_rest_to_others(door, said, share):
    door.extension.public_connections_of_one = said
    for _ in range(share):
        door.ask("GET /user/x/grid/public/ HTTP/1.1\nHost: h\nUpgrade: websocket\nConnection: Upgrade\n\n")
        door.accept()
    refusal = all_of(door.ask("GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n"))
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert f"{share} connections from your address".encode() in refusal
    other = socket.create_connection(("127.0.0.1", door.port), PATIENCE_S, source_address=("127.0.0.2", 0))
    door.open.append(other)
    other.sendall(b"GET /user/x/grid/public/a HTTP/1.1\r\nHost: h\r\n\r\n")
    node = door.accept()
    head_of(node)
    node.sendall(b"HTTP/1.0 204 No Content\r\n\r\n")
    assert all_of(other).startswith(b"HTTP/1.1 204 ")


def test_without_a_node_the_answer_says_so(door):
    door.extension.node.running = None
    assert refused(door, "GET /user/x/grid/public/a HTTP/1.1\nHost: h\n\n") == (503, "node-unavailable")


# ------------------------------------------------------------------ WebSockets

HANDSHAKE = "Host: h\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Key: abc\nSec-WebSocket-Version: 13\n"


def test_a_websocket_goes_both_ways_with_what_came_right_behind_the_handshake(door):
    client = door.ask(f"GET /user/x/grid/public/data-centric/session HTTP/1.1\n{HANDSHAKE}Cookie: a=b\n\n", b"early")
    node = door.accept()
    asked = head_of(node)
    assert asked.startswith("GET /data-centric/session HTTP/1.1\r\n")
    assert "Cookie" not in asked
    assert "Sec-WebSocket-Key: abc\r\n" in asked
    node.sendall(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: def\r\n\r\nhello")
    assert head_of(client).startswith("HTTP/1.1 101 ")
    assert client.recv(5) == b"hello"
    assert node.recv(5) == b"early"
    many = os.urandom(3 << 20)
    sending = threading.Thread(target=client.sendall, args=(many,))
    sending.start()
    got = b""
    while len(got) < len(many):
        got += node.recv(1 << 20)
    sending.join()
    assert got == many
    assert push(node, MUCH) < ROOM  # who does not listen is not listened for
    client.close()
    assert all_of(node) == b""


def test_a_websocket_that_the_node_refuses_is_an_ordinary_answer(door):
    client = door.ask(f"GET /user/x/grid/public/data-centric/session HTTP/1.1\n{HANDSHAKE}\n")
    node = door.accept()
    head_of(node)
    node.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    assert all_of(client).endswith(b"\r\n\r\nno")
    assert node.recv(1) == b""
