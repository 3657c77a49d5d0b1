"""Bulk transfers over connections that break: they go on from the byte that arrived, and nothing half goes in."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import World
from node_world import PATIENCE_S, GridProcess, until
from plan_documents import linear
from raw_session import RawSession
from safetensors.torch import save

from grid_jupyter import NodeClient
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.client.training_line import TrainingLine
from grid_jupyter.errors import LimitExceededError, NodeUnavailableError, SendNotPermittedError
from grid_jupyter.link.http import Address
from grid_jupyter.ops.raw import to_bytes
from grid_jupyter.tensors.remote import send
from grid_jupyter.wire import messages

Intrude = Callable[..., RawSession]
MB = 1 << 20
_BULKY = r"(PUT|PATCH|GET) /data-centric/(values|released|uploads)/|(POST|HEAD|PATCH) /model-centric/report"


@dataclass
class BadLine:
    """A proxy before a Node that cuts bulk connections in the middle: each of `cuts` ends the next one after so many
    bytes up or down."""

    port: int
    cuts: list[int] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)  # the first line of each bulk request

    def __post_init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.open: list[socket.socket] = [self.listening]
        self.threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *args: Any) -> threading.Thread:
        made = threading.Thread(target=work, args=args, daemon=True)
        self.threads.append(made)
        made.start()
        return made

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:
                return
            self.open.append(near)
            self._start(self._carry, near)

    def _carry(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            part = near.recv(65536)
            if not part:
                return
            head += part
        line = head.split(b"\r\n")[0].decode()
        bulky = re.match(_BULKY, line) is not None
        if bulky:
            self.heads.append(line)
        left = [self.cuts.pop(0) if bulky and self.cuts else 1 << 60]
        far = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        self.open.append(far)
        far.sendall(head[: left[0]])
        left[0] -= len(head)
        back = self._start(self._pump, far, near, left)
        self._pump(near, far, left)
        back.join()
        near.close()  # a connection that is only shut down would go on taking bytes
        far.close()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        try:
            while left[0] > 0 and (data := source.recv(min(65536, left[0]))):
                sink.sendall(data)
                left[0] -= len(data)
        except OSError:
            pass
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        for one in self.open:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self.threads:
            thread.join(PATIENCE_S)
        for one in self.open:
            one.close()


@pytest.fixture(scope="module")
def node(world: World) -> GridProcess:
    made = world.start("node", "Patient", "--allow-guests", "--session-memory", "512M")
    made.user("Bob", "Owner")
    return made


@pytest.fixture
def line(node: GridProcess) -> Iterator[BadLine]:
    made = BadLine(node.port)
    yield made
    made.close()


@pytest.fixture
def client(node: GridProcess, line: BadLine) -> Iterator[NodeClient]:
    Credentials().store(line.address, "Bob", node.user("Bob", "Owner"))
    with NodeClient(None, line.address, user="Bob") as made:
        yield made


def offsets(line: BadLine) -> int:
    return sum(head.startswith("PATCH") for head in line.heads)


# ------------------------------------------------------------------ session tensors


def test_an_upload_that_is_cut_goes_on_where_it_was(client: NodeClient, line: BadLine):
    values = torch.randn(6 * MB)  # 24 MB
    line.cuts += [9 * MB, 3 * MB, 5 * MB]
    sent = send(values, client.session)
    assert [head.split()[0] for head in line.heads] == ["PUT", "PATCH", "PATCH", "PATCH"]
    assert sent.get().equal(values)


def test_an_upload_whose_head_alone_got_through_begins_again(client: NodeClient, line: BadLine):
    values = torch.randn(MB)
    line.cuts += [100]
    assert send(values, client.session).get().equal(values)


def test_a_download_that_is_cut_goes_on_where_it_was(client: NodeClient, line: BadLine):
    values = torch.randn(6 * MB)
    sent = send(values, client.session)
    line.heads.clear()
    line.cuts += [9 * MB, 3 * MB, 500, 5 * MB]
    assert sent.get().equal(values)
    assert len(line.heads) == 5
    assert all(head.startswith("GET /data-centric/released/") for head in line.heads)


def test_a_line_that_never_holds_ends_in_an_error_and_the_session_goes_on(client: NodeClient, line: BadLine):
    sent = send(torch.ones(3), client.session)
    line.cuts += [100] * 20
    with pytest.raises(NodeUnavailableError):
        send(torch.randn(MB), client.session)
    line.cuts.clear()
    assert sent.get().tolist() == [1, 1, 1]


def test_an_upload_that_was_answered_into_the_void_is_taken_once(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    data = bytes(to_bytes(torch.ones(MB)))
    where, secret = "/data-centric/values/7", {"X-Grid-Session": raw.secret}
    with node.tcp() as sender:
        sender.sendall(
            f"PUT {where}?dtype=float32&shape=[{MB}] HTTP/1.1\r\nHost: x\r\nX-Grid-Session: {raw.secret}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        assert sender.recv(15) == b"HTTP/1.1 200 OK"
    for _ in range(2):
        assert head(node, where, secret) == (200, str(len(data)), "?1")
    assert raw.read(raw.op("aten.sum.default", ["r"], 7)).item() == MB


def head(node: GridProcess, where: str, headers: dict[str, str]) -> tuple[int, str | None, str | None]:
    connection = node.connection()
    try:
        connection.request("HEAD", where, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Upload-Offset"), answer.getheader("Upload-Complete")
    finally:
        connection.close()


def test_only_the_newest_connection_counts_and_only_from_the_byte_that_is_next(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    data = bytes(to_bytes(torch.arange(MB)))
    where, secret = "/data-centric/values/7", {"X-Grid-Session": raw.secret}
    assert head(node, where, secret)[0] == 404
    assert node.call("PATCH", where, data, headers={**secret, "Upload-Offset": "0"})[0] == 404
    with node.tcp() as older:
        older.sendall(
            f"PUT {where}?dtype=int64&shape=[{MB}] HTTP/1.1\r\nHost: x\r\nX-Grid-Session: {raw.secret}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data[:1000]
        )
        until(lambda: head(node, where, secret) == (200, "1000", "?0"))
        older.sendall(data[1000:2000])
        assert older.recv(12) == b"HTTP/1.1 409"
    assert head(node, where, secret) == (200, "1000", "?0")
    for offset, rest in (("0", data), ("999", data[999:]), ("1001", data[1001:]), ("1000", data[1001:]), ("x", data)):
        status, _ = node.call("PATCH", where, rest, headers={**secret, "Upload-Offset": offset})
        assert status in (400, 409), (offset, status)
    assert head(node, where, secret) == (200, "1000", "?0")
    thief = intrude(node)
    assert head(node, where, {"X-Grid-Session": thief.secret})[0] == 404
    assert node.call("PATCH", where, data[1000:], headers={**secret, "Upload-Offset": "1000"})[0] == 200
    assert raw.read(raw.op("aten.select.int", ["r", "d", "d"], 7, 0, MB - 1)).item() == MB - 1


def test_an_upload_with_an_urgent_byte_is_cut_before_it(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    where, secret = "/data-centric/values/7", {"X-Grid-Session": raw.secret}
    with node.tcp() as sender:
        sender.sendall(
            f"PUT {where}?dtype=float32&shape=[{MB}] HTTP/1.1\r\nHost: x\r\nX-Grid-Session: {raw.secret}\r\n"
            f"Content-Length: {4 * MB}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert sender.recv(100).startswith(b"HTTP/1.1 100")
        sender.sendall(bytes(1000))
        sender.send(b"!", socket.MSG_OOB)
        sender.sendall(bytes(1000))  # no descriptor moves what is behind it, though it can be read
        with pytest.raises(ConnectionResetError):
            sender.recv(1)
    assert head(node, where, secret) == (200, "1000", "?0")


def test_a_download_takes_ranges_to_the_end(node: GridProcess, intrude: Intrude):
    raw = intrude(node)
    large = raw.op("aten.new_full.default", ["r", "d", "d"], raw.put(torch.ones(1)), [100_000], 7.5)
    reply = raw.ask(messages.Read(value=large))
    assert isinstance(reply, messages.Value)
    where, secret = f"/data-centric/released/{reply.bulk}", {"X-Grid-Session": raw.secret}

    def get(ranged: str) -> tuple[int, int]:
        status, data = node.call("GET", where, headers={**secret, "Range": ranged})
        return status, len(data)

    assert get("bytes=399999-") == (206, 1)
    assert get("bytes=0-") == (200, 400_000)
    for wrong in ("bytes=-5", "bytes=1-2", "bytes=a-", "bytes=1-,3-", "lines=1-", f"bytes={'9' * 19}-"):
        assert get(wrong)[0] == 400
    assert get("bytes=400000-")[0] == 413
    for _ in range(2):
        assert node.call("DELETE", where, headers=secret)[0] == 200
    assert get("bytes=0-")[0] == 404


# ------------------------------------------------------------------ data sets


def test_publishing_over_a_bad_line_goes_on_where_it_was(client: NodeClient, line: BadLine, tmp_path: Path):
    values = torch.randn(6 * MB)
    line.cuts += [9 * MB, 3 * MB, 5 * MB]
    made = client.publish(values, tags=["#cut"])
    assert [one.split()[0] for one in line.heads] == ["PUT", "PATCH", "PATCH", "PATCH"]
    assert made.get().unwrap().equal(values)
    path = tmp_path / "data.safetensors"
    path.write_bytes(save({"x": values}))
    line.heads.clear()
    line.cuts += [9 * MB, 3 * MB]
    arrays = client.publish(path, tags=["#cut"])
    assert offsets(line) == 2
    assert arrays["x"].get().unwrap().equal(values)
    for one in (made, arrays):
        client.unpublish(one)


def test_an_upload_belongs_to_who_began_it(node: GridProcess):
    bob, eve = node.user("Bob", "Owner"), node.user("Eve", "Publisher")
    data, where = save({"data": torch.ones(MB)}), f"/data-centric/uploads/{'e' * 32}"

    def progress(token: str) -> tuple[int, str | None, str | None]:
        return head(node, where, {"Authorization": f"Bearer {token}"})

    with node.tcp() as sender:
        sender.sendall(
            f"PUT {where} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bob}\r\nContent-Length: {len(data)}\r\n\r\n"
            .encode() + data[: 2 * MB]
        )  # fmt: skip
        until(lambda: progress(bob)[0] == 200)
    offset = int(progress(bob)[1] or "")
    assert progress(eve)[0] == 404
    for token, begin in ((eve, offset), (bob, offset + 1)):
        status, _ = node.call("PATCH", where, data[begin:], token=token, headers={"Upload-Offset": str(begin)})
        assert status in (404, 409)
    publish = {"upload": "e" * 32, "kind": "tensor"}
    assert node.call("POST", "/data-centric/datasets", publish, token=bob)[0] == 404, "half of it is nothing"
    for _ in range(2):
        status, _ = node.call("PATCH", where, data[offset:], token=bob, headers={"Upload-Offset": str(offset)})
        assert status in (200, 404)
        assert progress(bob) == (200, str(len(data)), "?1")
    status, made = node.call("POST", "/data-centric/datasets", publish, token=bob)
    assert (status, made["tensors"][0]["shape"]) == (200, [MB])
    node.call("DELETE", f"/data-centric/datasets/{made['id']}", token=bob)


def test_what_is_refused_is_not_tried_again(client: NodeClient, line: BadLine, node: GridProcess):
    Credentials().store(line.address, "Zed", node.user("Zed", "User"))
    for values in (torch.ones(3), torch.randn(6 * MB)):
        line.heads.clear()
        with pytest.raises(SendNotPermittedError):
            client.publish(values, user="Zed")
        assert len(line.heads) == 1
    line.heads.clear()
    with pytest.raises(LimitExceededError):
        send(torch.zeros(1).expand(160 * MB), client.session)
    assert len(line.heads) == 1


def test_several_transfers_at_once_over_a_bad_line(node: GridProcess, line: BadLine):
    line.cuts += [2 * MB, 70_000, 3 * MB, MB, 200] * 2
    Credentials().store(line.address, "Bob", node.user("Bob", "Owner"))
    wrong: list[int] = []

    def work(number: int) -> None:
        with NodeClient(None, line.address, user="Bob") as client:
            values = torch.full((MB,), float(number))
            if not send(values, client.session).get().equal(values):
                wrong.append(number)

    with ExitStack() as stack:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join, PATIENCE_S)
    assert wrong == []
    assert line.cuts == []


# ------------------------------------------------------------------ reports of devices


@pytest.fixture(scope="module")
def place(node: GridProcess) -> Callable[[], tuple[str, str]]:
    """Gives places in a training of 8 MB."""
    owner, upload = {"Authorization": f"Bearer {node.user('Bob', 'Owner')}"}, "ab" * 16
    model = {"w": torch.zeros(3, 1), "big": torch.zeros(2 * MB)}
    assert node.call("PUT", f"/model-centric/uploads/{upload}", save(model), headers=owner)[0] == 200
    body = {
        "model": upload, "plans": {"training_plan": linear()}, "server_config": {"max_diffs": 99},
        "client_config": {"name": "big", "version": "1"},
    }  # fmt: skip
    assert node.call("POST", "/model-centric/host-training", body, headers=owner)[0] == 200

    def made() -> tuple[str, str]:
        _, told = node.call("POST", "/model-centric/authenticate", {"model_name": "big"})
        worker = str(told["worker_id"])
        _, told = node.call("POST", "/model-centric/cycle-request", {"worker_id": worker, "model": "big"})
        return worker, str(told["request_key"])

    return made


def reports(node: GridProcess) -> int:
    owner = {"Authorization": f"Bearer {node.user('Bob', 'Owner')}"}
    _, told = node.call("GET", "/model-centric/cycle?name=big", headers=owner)
    return int(told["reports"])


@pytest.mark.parametrize("zipped", [False, True])
def test_a_report_that_is_cut_goes_on_where_it_was_and_counts_once(
    node: GridProcess, line: BadLine, place: Callable[[], tuple[str, str]], zipped: bool
):
    before = reports(node)
    diff = save({"w": torch.ones(3, 1), "big": torch.randn(2 * MB)})  # 8 MB, 7 of them when packed
    line.cuts += [5 * MB, 5 * MB]  # sent from the start again, it would be cut again
    device = TrainingLine(Address(line.address))
    device.report(*place(), diff, 3, zipped=zipped)
    device.close()
    assert [head.split()[0] for head in line.heads] == ["POST", "HEAD"]
    assert reports(node) == before + 1


def test_a_report_in_parts_by_plain_http(node: GridProcess, place: Callable[[], tuple[str, str]]):
    before = reports(node)
    worker, key = place()
    where = f"/model-centric/report?worker_id={worker}&request_key={key}"
    diff = save({"w": torch.ones(3, 1), "big": torch.zeros(2 * MB)})
    assert head(node, where, {})[0] == 404

    def begun() -> bool:
        """Send a part. Asking how far it is ends the sending, so where that was too early it is sent again."""
        with node.tcp() as sender:
            sender.sendall(f"POST {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(diff)}\r\n\r\n".encode())
            sender.sendall(diff[: 3 * MB])
            until(lambda: head(node, where, {})[0] == 200)
            return head(node, where, {})[1] != "0"

    until(begun)
    status, offset, complete = head(node, where, {})
    assert (status, complete) == (200, "?0")
    at = int(offset or 0)
    assert 0 < at <= 3 * MB

    def rest(begin: int, data: bytes) -> int:
        return int(node.call("PATCH", where, data, headers={"Upload-Offset": str(begin)})[0])

    assert rest(at - 1, diff[at - 1 :]) == 409
    assert rest(at, diff[at:-1]) == 400
    assert node.call("PATCH", where.replace(key, "0" * 64), diff[at:], headers={"Upload-Offset": str(at)})[0] == 401
    assert head(node, where, {}) == (200, str(at), "?0")
    assert rest(at, diff[at:]) == 200
    assert head(node, where, {}) == (200, "0", "?1")
    assert rest(at, diff[at:]) == 404
    assert node.call("POST", where, diff)[0] == 200
    assert reports(node) == before + 1
