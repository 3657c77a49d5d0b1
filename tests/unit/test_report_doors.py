"""Reports at the door: what they take in the Node while they come, and after their sender has left."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from pathlib import Path

from cycle_world import diff, world
from test_places_together import port_of

PATIENCE_S = 20.0


def test_a_report_in_base64_counts_until_the_node_is_done_with_it_also_when_its_sender_has_left(tmp_path: Path):
    goes_on = threading.Event()

    def leave(port: int, body: bytes) -> None:
        head = "POST /model-centric/report HTTP/1.1\r\nHost: h\r\nContent-Type: application/json"
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as line:
            line.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            line.shutdown(socket.SHUT_WR)
            assert line.recv(1) == b"", "the Node has seen that nobody waits"

    async def go() -> None:
        async with world(tmp_path) as here, port_of(here) as port:
            await here.host(max_diffs=2)
            place = await here.accepted()
            told = {"worker_id": place[0], "request_key": place[1], "diff": base64.b64encode(diff(1, 2, 3)).decode()}
            body = json.dumps(told).encode()
            busy = asyncio.ensure_future(here.cycles._table.transact(lambda rows: goes_on.wait(PATIENCE_S)))
            await asyncio.to_thread(leave, port, body)
            assert here.cycles.text_bytes == len(body)
            goes_on.set()
            await busy
            deadline = time.monotonic() + PATIENCE_S
            while here.cycles.text_bytes:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert (await here.stands())["reports"] == 1

    asyncio.run(go())
