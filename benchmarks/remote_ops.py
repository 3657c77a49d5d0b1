"""Operations on remote tensors beside the same on local ones: small additions, reads, many sessions."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys

import torch
from websockets.sync.client import ClientConnection, connect

from benchmarks.grid import Grid, Server
from benchmarks.results import Result, milliseconds, rate
from benchmarks.scale import Scale
from benchmarks.sessions import Order, adds
from benchmarks.timing import in_turns
from grid_jupyter.client.node import NodeClient
from grid_jupyter.tensors.remote import send
from grid_jupyter.tensors.session import Session

MEANING = """\
Operations are streamed: the client sends them without waiting, in frames of up to 256, and only reading a value \
waits for the Node. So a chain of operations runs as fast as the slowest of client, Node and Worker, which is much \
slower than local torch for tiny tensors and nearly as fast for work worth sending away; a program that reads after \
every operation runs at the speed of round trips instead. Local torch and a Node's Worker use the same number of \
threads here, but client, Node and Worker share the cores of one machine, where they would have two machines in \
earnest."""

STREAMED = 2000
_BEST_RATE = 80_000.0
"""Additions a second that the best run of the stream has to reach."""
_STREAM_BY_REPLIES = 30.0
_READ_BY_ECHO = 2.5
_SESSIONS_BY_ONE = 0.9


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # as a Node gives to each of its Workers
    try:
        with Grid() as grid:
            node = grid.node("Bob", module="benchmarks.echo_node")
            token = grid.account(node, "Ana", "User")
            with NodeClient(None, node.address, user="Ana", credentials=grid.credentials) as client:
                results = [
                    *_additions(scale, node, client.session),
                    *_round_trips(scale, node, client.session),
                ]
            return [*results, *_sessions(scale, node, token)]
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------ small additions


def _additions(scale: Scale, node: Server, session: Session) -> list[Result]:
    local = torch.ones(5)
    remote = send(local, session)
    count = scale(STREAMED, 200)
    took = in_turns(
        {"local": lambda: adds(local, count).tolist(), "remote": lambda: adds(remote, count).tolist()},
        scale(40, 2),
        {"node": node.cpu_s, "workers": node.below_cpu_s},
    )
    what = f"{count:,} additions of 5 elements and one read"
    here = took["local"].cpu_each("here") / count
    return [
        dataclasses.replace(
            rate(what, count, took["remote"], "op/s", took["local"], "local torch"), best_at_least=_BEST_RATE
        ),
        *(
            Result(
                what=f"CPU of one such addition, {name}",
                value=took["remote"].cpu_each(process) / count * 1e6,
                unit="µs",
                baseline=here * 1e6,
                against="local torch, the whole of it",
            )
            for process, name in (("here", "client"), ("node", "Node"), ("workers", "Worker"))
        ),
    ]  # fmt: skip


# ------------------------------------------------------------------ round trips


def _round_trips(scale: Scale, node: Server, session: Session) -> list[Result]:
    x = send(torch.ones(5), session)
    count, streamed = scale(200, 20), scale(STREAMED, 200)

    def replies() -> None:
        y = x
        for _ in range(count):
            y = y + x
            y.tolist()

    def reads() -> None:
        for _ in range(count):
            x.tolist()

    with _echo(node) as echo:

        def echoes() -> None:
            for _ in range(count):
                echo.send(b"." * 40)
                echo.recv()

        took = in_turns(
            {"replies": replies, "reads": reads, "echoes": echoes, "stream": lambda: adds(x, streamed).tolist()},
            scale(25, 2),
        )
    each = "additions with a read after each"
    return [
        rate(each, count, took["replies"], "op/s", took["echoes"], _ECHO),
        dataclasses.replace(
            milliseconds("a read of 5 elements, there and back", took["reads"], took["echoes"], _ECHO, each=count),
            ratio_at_most=_READ_BY_ECHO,
        ),
        dataclasses.replace(
            rate(
                f"{streamed:,} additions and one read, beside a read after each",
                streamed,
                took["stream"],
                "op/s",
                took["replies"],
                each,
                base_of=count,
            ),
            ratio_at_least=_STREAM_BY_REPLIES,
        ),
    ]


_ECHO = "WebSocket echo by the same Node"


def _echo(node: Server) -> ClientConnection:
    return connect(f"{node.address.replace('http', 'ws', 1)}/echo", compression=None, proxy=None)


# ------------------------------------------------------------------ sessions at once


def _sessions(scale: Scale, node: Server, token: str) -> list[Result]:
    many = scale(10, 2)
    order = Order(node.address, token, (1, many), scale(20_000, 200), scale(5, 1))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sessions"],
        input=json.dumps(dataclasses.asdict(order)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    walls = {int(count): walls for count, walls in json.loads(done.stdout).items()}
    total = {count: [count * order.adds / wall for wall in walls[count]] for count in walls}
    return [
        Result(
            what=f"{many} sessions at once, each {order.adds:,} additions: all of them together",
            value=statistics.median(total[many]),
            best=max(total[many]),
            unit="op/s",
            baseline=statistics.median(total[1]),
            baseline_best=max(total[1]),
            against="one session alone",
            ratio_at_least=_SESSIONS_BY_ONE,
        )
    ]
