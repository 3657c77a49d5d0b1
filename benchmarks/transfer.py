"""Bulk bytes: a large tensor to a session and back, and a large data set published, beside sockets and files."""

from __future__ import annotations

import dataclasses
import http.client
import itertools
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import torch

from benchmarks.baseline import TCP_REQUEST
from benchmarks.grid import Grid, Server
from benchmarks.results import Result, rate
from benchmarks.scale import Scale
from benchmarks.timing import Timings, in_turns
from grid_jupyter.client.node import NodeClient
from grid_jupyter.ops.raw import to_bytes
from grid_jupyter.tensors.remote import RemoteTensor, send

MEANING = """\
A large tensor goes over HTTP beside the stream of operations, through the Node's control process into the memory of \
the session's Worker, and the figures end when the Worker has it, or the client has it back. The baselines only carry \
the bytes from one process to another and drop them. The Node passes bytes on and keeps none, so its own memory must \
not grow with the tensor. A published data set is on the disk, with its checksum in the database, when the call \
returns; its baseline writes the same bytes to the same disk and waits for them."""

MIB = 1 << 20
_WATCH_S = 0.005
_SHARE = 0.6
"""Of the speed of plain HTTP, at least."""
_GROWTH = 32
"""MiB that the Node may grow by, at most."""


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    tensor = torch.randn(scale(256, 2) * MIB // 4)
    with Grid() as grid:
        node, baseline = grid.node("Bob"), grid.baseline()
        grid.account(node, "Bob", "Owner")
        with NodeClient(None, node.address, user="Bob", credentials=grid.credentials) as client:
            return [
                *_session(scale, tensor, node, baseline, client),
                _memory(tensor, node, client),
                _publish(scale, tensor, grid.home, client),
            ]


# ------------------------------------------------------------------ a session's tensors


def _session(scale: Scale, tensor: torch.Tensor, node: Server, baseline: Server, client: NodeClient) -> list[Result]:
    data = to_bytes(tensor)
    session = client.session
    held = send(tensor, session)
    took = in_turns(
        {
            "up": lambda: send(tensor, session),
            "down": lambda: held.get(deregister_ptr=False),
            "tcp up": lambda: _tcp_up(baseline, data),
            "tcp down": lambda: _tcp_down(baseline, len(data)),
            "http up": lambda: _http_up(baseline, data),
            "http down": lambda: _http_down(baseline, len(data)),
        },
        scale(7, 1),
        {"node": node.cpu_s, "workers": node.below_cpu_s},
    )
    size = f"{len(data) // MIB} MiB tensor"
    results = []
    for way, name in (("up", f"a {size} to a session"), ("down", f"a {size} back from a session")):
        for carrier, beside, against, share in (
            ("http", "", f"HTTP {_VERBS[way]} by tornado", _SHARE),
            ("tcp", ", beside a socket", "a raw TCP socket", None),
        ):
            results.append(_speed(f"{name}{beside}", len(data), took[way], took[f"{carrier} {way}"], against, share))
        cpu = took[way].cpu
        results.append(
            Result(
                what=f"{name}: CPU of client, Node and Worker",
                value=sum(cpu.values()) / len(took[way].walls) * 1e3,
                unit="ms",
                baseline=took[f"tcp {way}"].cpu_each("here") * 2e3,
                against="twice the client's end of the TCP socket",
            )
        )
    return results


_VERBS = {"up": "PUT", "down": "GET"}


def _speed(what: str, size: int, took: Timings, base: Timings, against: str, share: float | None = None) -> Result:
    found = rate(what, size / MIB, took, "MiB/s", base, against)
    return found if share is None else dataclasses.replace(found, at_least=share * found.baseline)


def _tcp(server: Server, direction: bytes, length: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.said["tcp"]))
    made.sendall(TCP_REQUEST.pack(direction, length))
    return made


def _tcp_up(server: Server, data: memoryview) -> None:
    with _tcp(server, b"U", len(data)) as connection:
        connection.sendall(data)
        connection.recv(1)


def _tcp_down(server: Server, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    with _tcp(server, b"D", length) as connection:
        while view:
            view = view[connection.recv_into(view) :]
    return data


def _http(server: Server) -> http.client.HTTPConnection:
    parts = urlsplit(server.address)
    return http.client.HTTPConnection(parts.hostname or "", parts.port)


def _http_up(server: Server, data: memoryview) -> None:
    connection = _http(server)
    connection.request("PUT", "/bytes", body=data, headers={"Content-Length": str(len(data))})
    connection.getresponse().read()
    connection.close()


def _http_down(server: Server, length: int) -> bytearray:
    connection = _http(server)
    connection.request("GET", f"/bytes?count={length}")
    response = connection.getresponse()
    data = bytearray(length)
    view = memoryview(data)
    while view:
        view = view[response.readinto(view[: 8 * MIB]) :]
    connection.close()
    return data


# ------------------------------------------------------------------ the Node's memory


def _memory(tensor: torch.Tensor, node: Server, client: NodeClient) -> Result:
    """Measured apart from the speed: looking costs time."""
    before = node.rss()
    held: list[RemoteTensor] = []
    highest = max(
        _highest(node, lambda: held.append(send(tensor, client.session))),
        _highest(node, lambda: held[0].get(deregister_ptr=False)),
    )
    return Result(
        what="growth of the Node's own memory while the tensor goes up and down, at most",
        value=max(0, highest - before) / MIB,
        unit="MiB",
        at_most=_GROWTH,
        baseline=tensor.nbytes / MIB,
        against="the size of the tensor",
    )


def _highest(node: Server, work: Callable[[], object]) -> int:
    """The Node's largest resident memory while the work is done."""
    seen = [node.rss()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_S):
            try:
                seen.append(node.rss())
            except psutil.NoSuchProcess:
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        done.set()
        watching.join()
    return max(seen)


# ------------------------------------------------------------------ publishing


def _publish(scale: Scale, tensor: torch.Tensor, folder: Path, client: NodeClient) -> Result:
    data = to_bytes(tensor)
    numbers = itertools.count()  # the same data under the same name would be the same data set
    took = in_turns(
        {
            "publish": lambda: client.publish(tensor, name=f"benchmark {next(numbers)}"),
            "write": lambda: _write(folder / f"written-{next(numbers)}", data),
        },
        scale(5, 1),
    )
    return _speed(
        f"publishing a data set of {len(data) // MIB} MiB",
        len(data),
        took["publish"],
        took["write"],
        "a file written and synced",
    )


def _write(path: Path, data: memoryview) -> None:
    with path.open("wb", buffering=0) as file:
        rest = data
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
