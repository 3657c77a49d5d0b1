"""Reports at the door: what they take in the Node while they come, and after their sender has left."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
from cycle_world import diff, world
from plan_documents import linear
from safetensors.numpy import save
from test_places_together import port_of

from grid_jupyter.client.training_line import TrainingLine
from grid_jupyter.errors import TooSlowError
from grid_jupyter.link.http import Address
from grid_jupyter.server.pace import Pace

PATIENCE_S = 20.0


def wide(length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """linear() and its model with so many weights."""
    text = json.dumps(linear()).replace("[3, 1]", f"[{length}, 1]").replace('[3, "B"]', f'[{length}, "B"]')
    return json.loads(text.replace('["B", 3]', f'["B", {length}]')), {"w": numpy.zeros((length, 1), numpy.float32)}


def test_a_report_that_trickles_is_given_up_and_goes_on_where_it_was(tmp_path: Path):
    plan, model = wide(100_000)
    data = save({"w": numpy.ones((100_000, 1), numpy.float32)})

    def trickle(port: int, where: str) -> tuple[int, Any]:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as line:
            line.sendall(f"POST {where} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(data)}\r\n\r\n".encode())
            line.sendall(data[:300_000])
            answer = b""
            while b"}" not in answer:
                answer += line.recv(65536)
            return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])

    def rest(port: int, where: str) -> tuple[str | None, int]:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request("HEAD", where)
        response = connection.getresponse()
        response.read()
        offset = response.headers["Upload-Offset"]
        connection.request("PATCH", where, data[int(offset) :], {"Upload-Offset": offset})
        status = connection.getresponse().status
        connection.close()
        return offset, status

    async def go() -> None:
        async with world(tmp_path) as here, port_of(here, pace=partial(Pace, 400_000, 0.3)) as port:
            await here.host(model=model, plan=plan, max_diffs=2)
            worker, key = await here.accepted()
            where = f"/model-centric/report?worker_id={worker}&request_key={key}"
            status, said = await asyncio.to_thread(trickle, port, where)
            assert (status, said["code"]) == (408, "too-slow")
            assert await asyncio.to_thread(rest, port, where) == ("300000", 200)
            assert (await here.stands())["reports"] == 1

    asyncio.run(go())


class SlowNode(BaseHTTPRequestHandler):
    """What a Node says to whose line is slow: to each of them once that it is too slow, while it gets on."""

    protocol_version = "HTTP/1.1"
    came: ClassVar[list[int]] = []
    asked: ClassVar[list[str]] = []
    gets_on = True

    def do_POST(self) -> None:
        length = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(f"{self.command} {self.headers.get('Upload-Offset', '0')}")
        if self.gets_on:
            self.came.append(1000 * (len(self.came) + 1))
        done = len(self.came) == 3
        body = json.dumps({"status": "success"} if done else {"error": f"{length} slow", "code": "too-slow"}).encode()
        self.send_response(200 if done else 408)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PATCH(self) -> None:
        self.do_POST()

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Upload-Offset", str(self.came[-1] if self.came else 0))
        self.send_header("Upload-Complete", "?0")
        self.end_headers()

    def log_message(self, *told: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("gets_on", [True, False])
def test_a_device_whose_line_is_slow_goes_on_as_long_as_it_gets_on(gets_on: bool, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("came", []), ("asked", []), ("gets_on", gets_on)):
        monkeypatch.setattr(SlowNode, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowNode)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    line = TrainingLine(Address(f"http://127.0.0.1:{server.server_port}"), PATIENCE_S)
    try:
        if gets_on:
            line.report("w", "k", bytes(300_000), 1, zipped=False)
            assert SlowNode.asked == ["POST 0", "PATCH 1000", "PATCH 2000"]
        else:
            with pytest.raises(TooSlowError):
                line.report("w", "k", bytes(300_000), 1, zipped=False)
            assert SlowNode.asked == ["POST 0", "POST 0"]
    finally:
        line.close()
        server.shutdown()
        serving.join()
        server.server_close()


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
