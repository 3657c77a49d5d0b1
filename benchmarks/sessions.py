"""Several people computing on one Node at once: each a process and a session of its own. Used by `remote_ops`.

Run as `python -m benchmarks.sessions`: reads one `Order` as JSON from standard input, and answers with one
JSON object, {"1": [seconds, …], "10": […]}: wall seconds of each run by number of sessions.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import traceback
from dataclasses import dataclass

import torch

from grid_jupyter.client.node import NodeClient
from grid_jupyter.tensors.remote import send

_TIMES = struct.Struct("=dd")


@dataclass(frozen=True)
class Order:
    """Who computes where, and how much."""

    address: str
    token: str
    sessions: tuple[int, ...]
    adds: int
    runs: int


def adds(x: torch.Tensor, count: int) -> torch.Tensor:
    """A chain of small additions."""
    y = x
    for _ in range(count):
        y = y + x
    return y


def main() -> None:
    """Carry out the order."""
    order = Order(**json.loads(sys.stdin.readline()))
    print(json.dumps({count: [_run(order, count) for _ in range(order.runs)] for count in order.sessions}), flush=True)


def _run(order: Order, count: int) -> float:
    """From the first start to the last end of `count` forked processes, which are ready before any starts."""
    ready_out, ready_in = os.pipe()
    go_out, go_in = os.pipe()
    times_out, times_in = os.pipe()
    people = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(go_in)
            _person(order, ready_in, go_out, times_in)
        people.append(pid)
    for end in (ready_in, go_out, times_in):
        os.close(end)
    waiting = 0
    while waiting < count:
        arrived = len(os.read(ready_out, count))
        if not arrived:
            raise RuntimeError("a session could not be opened; its process said why above")
        waiting += arrived
    os.close(go_in)  # the end of their input is the signal to all of them at once
    told = b""
    while part := os.read(times_out, 1 << 12):
        told += part
    for pid in people:
        os.waitpid(pid, 0)
    for end in (ready_out, times_out):
        os.close(end)
    times: list[tuple[float, float]] = list(_TIMES.iter_unpack(told))
    if len(times) != count:
        raise RuntimeError("a session ended early; its process said why above")
    return max(end for _, end in times) - min(begin for begin, _ in times)


def _person(order: Order, ready: int, go: int, times: int) -> None:
    """The whole life of one forked process; never returns."""
    status = 1
    try:
        with NodeClient(None, order.address) as node:
            node.login(token=order.token)
            x = send(torch.ones(5), node.session)
            adds(x, 200).tolist()
            os.write(ready, b".")
            os.close(ready)  # so that the end of this pipe tells of a person who never gets ready
            os.read(go, 1)
            began = time.perf_counter()
            adds(x, order.adds).tolist()
            os.write(times, _TIMES.pack(began, time.perf_counter()))
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


if __name__ == "__main__":
    main()
