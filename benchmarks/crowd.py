"""Many simulated devices in one process, over HTTP, some of which leave in the middle: `python -m benchmarks.crowd`.

They train nothing: a device's diff is its own number, so that a checkpoint tells exactly whose reports are in it.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy

from grid_jupyter.client.tensor_files import write_arrays
from grid_jupyter.link.http import Address

STEPS = ("authenticate", "cycle-request", "get-model", "half a report", "report")
"""What a device that leaves does last."""
WIDTH = 64
"""Numbers of the model."""
_PLACE_S = 20
_AT_ONCE = 256
"""Connections that are being made at the same time: a server queues no more."""


@dataclass
class Told:
    """What the devices saw."""

    asked_s: list[float] = field(default_factory=list)
    """How long each request for a place took that was answered at once."""
    counted: dict[int, list[int]] = field(default_factory=dict)
    """Numbers of the devices whose reports were acknowledged, by cycle."""
    late: int = 0
    left: int = 0
    failed: list[str] = field(default_factory=list)


class Line:
    """One connection of one device."""

    def __init__(self, address: Address, gate: asyncio.Semaphore) -> None:
        self._address, self._gate = address, gate
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", *, half: bool = False) -> tuple[int, bytes]:
        """An exchange; with `half` the body ends in the middle, and so does the connection."""
        if self._writer is None or self._reader is None:
            async with self._gate:
                self._reader, self._writer = await asyncio.open_connection(self._address.host, self._address.port)
        head = f"{method} /model-centric/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + (body[: len(body) // 2] if half else body))
        await self._writer.drain()
        if half:
            return 0, b""
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = int(answer.lower().partition("content-length:")[2].split()[0])
        data = await self._reader.readexactly(length)
        if "\nconnection: close" in answer.lower():  # a late report is answered before its body is read
            self.close()
            self._reader = self._writer = None
        return int(answer.split()[1]), data

    async def told(self, path: str, **body: Any) -> dict[str, Any]:
        """A JSON exchange. Raises RuntimeError for another status than 200."""
        status, data = await self.ask("POST", path, json.dumps(body).encode())
        if status != 200:
            raise RuntimeError(f"{path}: {status} {data[:200]!r}")
        return dict(json.loads(data))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


async def device(address: Address, gate: asyncio.Semaphore, model: str, number: int, leaves: tuple[int, str] | None,
                 found: Told) -> None:  # fmt: skip
    """Take part until training is over, or until `leaves`: in which of its cycles, and behind what."""
    line, cycle = Line(address, gate), 0

    def leaving(step: str) -> bool:
        gone = leaves == (cycle, step)
        found.left += gone
        return gone

    try:
        worker = (await line.told("authenticate", model_name=model))["worker_id"]
        if leaving("authenticate"):
            return
        wait_s = 0
        while True:
            began = time.perf_counter()
            nonce = f"{number} {cycle} {wait_s}"
            answer = await line.told("cycle-request", worker_id=worker, model=model, wait_s=wait_s, nonce=nonce)
            if not wait_s:
                found.asked_s.append(time.perf_counter() - began)
            if answer["status"] != "accepted":
                if "timeout" not in answer:
                    return
                wait_s = _PLACE_S
                continue
            if leaving("cycle-request"):
                return
            key = f"worker_id={worker}&request_key={answer['request_key']}"
            status, _ = await line.ask("GET", f"get-model?{key}&model_id={answer['model_id']}")
            if leaving("get-model"):
                return
            half = leaving("half a report")
            diff = write_arrays({"w": numpy.full(WIDTH, number, numpy.float32)})
            if status == 200:
                status, data = await line.ask("POST", f"report?{key}", diff, half=half)
                if half:
                    return
                if status == 200:
                    found.counted.setdefault(answer["cycle_id"], []).append(number)
                elif status != 409:
                    raise RuntimeError(f"report: {status} {data[:200]!r}")
            found.late += status == 409
            if leaving("report"):
                return
            cycle, wait_s = cycle + 1, 0
    except (RuntimeError, OSError, EOFError) as error:
        found.failed.append(f"{type(error).__name__}: {error}"[:300])
    finally:
        line.close()


async def crowd(address: Address, model: str, count: int, seed: int) -> Told:
    """So many devices at once, a quarter of which leaves at some step of one of its first two cycles."""
    draw, found, gate = random.Random(seed), Told(), asyncio.Semaphore(_AT_ONCE)  # noqa: S311 - which is no secret
    leaving = dict.fromkeys(draw.sample(range(count), count // 4), (0, ""))
    for number in leaving:
        step = draw.choice(STEPS)
        leaving[number] = (0 if step == "authenticate" else draw.randrange(2), step)
    await asyncio.gather(
        *(device(address, gate, model, number + 1, leaving.get(number), found) for number in range(count))
    )
    return found


def allow_files(count: int) -> None:
    """Let this process, and those that it starts, have so many files open, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(hard, count)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


if __name__ == "__main__":
    allow_files(16_384)
    seen = asyncio.run(crowd(Address(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    print(json.dumps({"asked_s": seen.asked_s, "counted": seen.counted, "late": seen.late, "left": seen.left,
                      "failed": seen.failed}))  # fmt: skip
