"""Publishing under bad luck and bad will: full disks, broken uploads, hostile words, and what unpublishing ends."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SECRETS, World
from node_world import GridProcess, until
from raw_session import RawSession
from safetensors.torch import save, save_file

from grid_jupyter import NodeClient, PrivateTensor
from grid_jupyter.errors import (
    BadRequest,
    ComputeNotPermittedError,
    GridError,
    InvalidDataError,
    LimitExceededError,
    NodeUnavailableError,
    ObjectNotFoundError,
    SessionLostError,
    StorageFullError,
)
from grid_jupyter.wire import messages

Connect = Callable[..., NodeClient]


@pytest.fixture
def owner(bob: GridProcess, connect: Connect) -> NodeClient:
    return connect(bob, "Bob")


def blobs(node: GridProcess) -> list[Path]:
    return list((node.state / "blobs").iterdir())


@pytest.fixture(autouse=True)
def nothing_is_left_published(bob: GridProcess) -> Iterator[None]:
    before = {one.name for one in blobs(bob)}, bob.status()["datasets"]
    yield
    assert ({one.name for one in blobs(bob)}, bob.status()["datasets"]) == before


# ------------------------------------------------------------------ a full disk


def test_a_disk_that_fills_up_while_publishing_leaves_nothing_half_published(small_world: World):
    node = small_world.start("node", "Full", "--allow-guests", wrapper=("prlimit", f"--fsize={4 << 20}"))
    node.user("Bob", "Owner")
    with node.client("Bob") as client:
        for data in (torch.zeros(3 << 20), pd.DataFrame({"a": np.zeros(1 << 20)})):
            with pytest.raises(StorageFullError, match="full"):
                client.publish(data, tags=["#too-much"])
            assert client.search() == []
            assert blobs(node) == []
        made = client.publish(torch.ones(10), tags=["#little"])
        assert made.sum().get().unwrap().item() == 10
    assert "Traceback" not in node.log.read_text()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, if this user may mount one."""
    place = tmp_path / "tiny"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_really_full_is_told_so_and_recovers(tiny_disk: Path):
    world = World(tiny_disk)
    node = world.start("node", "Full", "--allow-guests")
    try:
        node.user("Bob", "Owner")
        with node.client("Bob") as client:
            kept = client.publish(torch.ones(10), tags=["#kept"])
            with pytest.raises(StorageFullError):
                client.publish(torch.zeros(2 << 20), tags=["#too-much"])
            filler = tiny_disk / "filler"
            with filler.open("wb", buffering=0) as file:  # nothing is left to be written when it is closed
                try:
                    while True:
                        file.write(bytes(1 << 14))
                except OSError:
                    pass
            before = blobs(node)
            for number in range(30):  # now the database, too, finds no room sooner or later
                try:
                    client.publish(torch.full((100,), float(number)), tags=[f"#{number}"], description="x" * 20_000)
                except StorageFullError:
                    break
            else:
                raise AssertionError("30 data sets fitted on a full disk")
            listed = client.search()
            assert len(blobs(node)) == len(listed) == len(before) + number
            assert kept.sum().get().unwrap().item() == 10, "what was published stays readable"
            filler.unlink()
            client.publish(torch.ones(5), tags=["#again"])
            assert len(client.search("#again")) == 1
        assert "Traceback" not in node.log.read_text()
    finally:
        world.end()


# ------------------------------------------------------------------ uploads that go wrong


def test_the_same_upload_published_by_several_at_once_is_one_data_set(bob: GridProcess, owner: NodeClient):
    token, upload = bob.user("Bob", "Owner"), "5" * 32
    assert bob.call("PUT", f"/data-centric/uploads/{upload}", save({"data": torch.ones(3)}), token=token)[0] == 200
    body = {"upload": upload, "kind": "tensor", "tags": ["#once"]}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: bob.call("POST", "/data-centric/datasets", body, token=token), range(8)))
    assert {status for status, _ in answers} == {200}, answers
    assert len({answer["id"] for _, answer in answers}) == 1
    assert len(owner.search("#once")) == 1
    owner.unpublish(owner.search("#once")[0])


def test_the_same_upload_sent_by_several_at_once_is_taken_whole_or_not_at_all(bob: GridProcess, owner: NodeClient):
    token, upload = bob.user("Bob", "Owner"), "6" * 32
    data = save({"data": torch.arange(200_000.0)})

    def put(_: int) -> int:
        try:
            return bob.call("PUT", f"/data-centric/uploads/{upload}", data, token=token)[0]
        except ConnectionError:
            return 0

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(put, range(6)))
    assert set(statuses) <= {200, 400, 409}
    if 200 not in statuses:
        assert put(0) == 200
    status, made = bob.call("POST", "/data-centric/datasets", {"upload": upload, "kind": "tensor"}, token=token)
    assert status == 200
    [pointer] = [one for one in owner.search() if one.id_at_location == made["id"]]
    assert pointer.get().unwrap().equal(torch.arange(200_000.0))
    owner.unpublish(pointer)


def test_a_client_that_dies_in_the_middle_of_publishing_finds_no_trace_of_that_when_it_comes_back(
    bob: GridProcess, owner: NodeClient
):
    token = bob.user("Bob", "Owner")
    before = len(blobs(bob))
    with bob.tcp() as sender:
        sender.sendall(
            f"PUT /data-centric/uploads/{'7' * 32} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {8 << 20}\r\n\r\n".encode()
            + bytes(2 << 20)
        )
        until(lambda: len(blobs(bob)) > before)
    data, body = save({"data": torch.ones(3)}), {"upload": "7" * 32, "kind": "tensor"}
    assert bob.call("POST", "/data-centric/datasets", body, token=token)[0] == 404
    assert bob.call("PUT", f"/data-centric/uploads/{'7' * 32}", data, token=token)[0] == 200
    status, made = bob.call("POST", "/data-centric/datasets", body, token=token)
    assert status == 200
    owner.unpublish(made["id"])
    assert len(blobs(bob)) == before


@pytest.mark.parametrize(
    "data",
    [
        "a string that is no path",
        Path("/nonexistent.csv"),
        b"bytes",
        [1, 2, 3],
        None,
        {"a": 1},
        np.ones(3),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3).to_sparse(),
        pd.DataFrame({"a": [object()]}),
        pd.DataFrame({"a": [[1], [2]]}),
        pd.DataFrame({"a": [1 + 2j]}),
    ],
)
def test_what_cannot_be_published_is_refused_by_kind(owner: NodeClient, data: Any):
    with pytest.raises((BadRequest, TypeError, RuntimeError, FileNotFoundError)) as refused:
        owner.publish(data)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"PK\x03\x04junk", b"PAR1junk", b"\xff\xfe\x00", b"a,b\n1\n1,2,3\n"]
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".safetensors", ".pkl", ""])
def test_a_file_that_is_not_what_it_claims_is_refused(owner: NodeClient, tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    try:
        made = owner.publish(path)
    except BadRequest:
        return
    assert suffix == ".csv", "only text can be read as a table of something"
    owner.unpublish(made)


def test_an_npz_with_a_pickle_in_it_runs_nothing(owner: NodeClient, tmp_path: Path):
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    np.savez(tmp_path / "bomb.npz", a=np.array([Bomb()], dtype=object))
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(BadRequest):
        owner.publish(tmp_path / "bomb.npz")
    assert not (tmp_path / "pwned").exists()


def test_a_data_set_larger_than_the_memory_of_a_session_is_mapped_not_loaded(small_world: World, tmp_path: Path):
    node = small_world.start("node", "Large", "--allow-guests", "--session-memory", "40M")
    node.user("Bob", "Owner")
    save_file({"X": torch.ones(30 << 20)}, tmp_path / "large.safetensors")  # 120 MB
    with node.client("Bob") as client:
        made = client.publish(tmp_path / "large.safetensors", tags=["#large"])
        assert made["X"].sum().get().unwrap().item() == 30 << 20
        assert made["X"][-3:].get().unwrap().tolist() == [1, 1, 1]
        with pytest.raises(LimitExceededError):
            (made["X"] + 1).sum().get()
        assert psutil_rss(node) < 120 << 20


def psutil_rss(node: GridProcess) -> int:
    return int(node.processes()[0].memory_info().rss)


# ------------------------------------------------------------------ words

HTML = "<script>alert(1)</script><img src=x onerror=alert(1)>"
ANSI = "\x1b[31mred\x1b]0;title\x07\x1b[2J\u202eevil\u2066\u200b\r\n\tTags: #fake"


def test_hostile_words_are_stored_as_they_are_and_shown_harmless(bob: GridProcess, owner: NodeClient, connect: Connect):
    made = owner.publish(SECRETS, tags=[HTML, ANSI], description=ANSI + HTML, name=HTML)
    [found] = connect(bob).search(HTML)
    assert found.tags == (HTML, ANSI)
    assert found.description == ANSI + HTML
    shown = repr(found)
    assert shown.count("\n") == 3, "a tag cannot write a line of its own"
    for character in "\x1b\x07\r\u202e\u2066\u200b":
        assert character not in shown
    table = owner.publish(pd.DataFrame({HTML: [1], ANSI: [2]}), tags=[HTML], description=ANSI)
    html = table._repr_html_()
    assert "<script>" not in html
    assert "<img" not in html
    assert "\x1b" not in html + repr(table)
    assert table.columns == [HTML, ANSI]
    for one in (made, table):
        owner.unpublish(one)


@pytest.mark.parametrize("tags", [["#\ud800"], ["\udfff"]])
def test_words_that_no_encoding_can_carry_are_refused(owner: NodeClient, tags: list[str]):
    for fields in ({"tags": tags}, {"description": tags[0]}, {"name": tags[0]}, {"allowed_users": tags[0]}):
        with pytest.raises(BadRequest, match="Unicode"):
            owner.publish(SECRETS, **fields)
    with pytest.raises(BadRequest, match="Unicode"):
        owner.search(*tags)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"tags": [""]}, "empty"),
        ({"tags": [" \n"]}, "empty"),
        ({"tags": ["x" * 10_000]}, "256"),
        ({"tags": [f"#{number}" for number in range(100)]}, "64"),
        ({"description": "x" * 20_001}, "20000"),
        ({"name": "x" * 129}, "128"),
        ({"allowed_users": [f"user{number}" for number in range(1001)]}, "1000"),
        ({"allowed_users": "x" * 129}, "128"),
    ],
)
def test_words_over_a_limit_are_refused_with_the_limit(owner: NodeClient, fields: dict[str, Any], limit: str):
    with pytest.raises((LimitExceededError, InvalidDataError), match=limit):
        owner.publish(SECRETS, **fields)


def test_tags_keep_their_order_and_stand_once(owner: NodeClient):
    made = owner.publish(SECRETS, tags=["#b", "#a", "#b", "#c"])
    assert made.tags == ("#b", "#a", "#c")
    owner.unpublish(made)


def test_searching_takes_all_tags_and_hostile_ones_find_nothing(owner: NodeClient):
    made = owner.publish(SECRETS, tags=["#x", "#y"])
    assert len(owner.search("#x", "#y")) == 1
    for tags in (("#x", "#z"), ("%",), ("#_",), ("' OR 1=1 --",), ("*",), ("#X",), ("\x00",), ("",)):
        assert owner.search(*tags) == []
    owner.unpublish(made)


# ------------------------------------------------------------------ unpublishing


def test_unpublishing_says_what_it_ends_and_the_bytes_are_gone(bob: GridProcess, owner: NodeClient, connect: Connect):
    made = owner.publish(torch.full((100_000,), 47.3125), tags=["#ending"], allowed_users="Ana")
    second = owner.publish(torch.full((100_000,), 48.3125), tags=["#ending"], replaces=made)
    reader, other = connect(bob, "Ana"), connect(bob, "Zed")
    [found] = reader.search("#ending")
    total, unrelated = found.sum(), other.receive(torch.ones(3))
    with pytest.raises(GridError):
        total.get(deregister_ptr=False)  # the new version has rules of its own
    held = unrelated.get(deregister_ptr=False)
    names = {one.name for one in blobs(bob)}
    ended = owner.unpublish(second)
    assert (ended.versions, ended.sessions_ended) == (2, 1)
    assert ended.nbytes > 800_000
    assert {one.name for one in blobs(bob)} < names
    with pytest.raises(SessionLostError, match="unpublished"):
        total.get(user="Ana")
    assert held.tolist() == unrelated.get().tolist(), "others go on"
    for use in (lambda: found.sum().get(), lambda: found.get()):
        with pytest.raises(ObjectNotFoundError):
            use()
    with pytest.raises(ObjectNotFoundError):
        owner.unpublish(second)
    until(lambda: not [one for one in _maps_of_workers(bob) if "(deleted)" in one and "/blobs/" in one])


def _maps_of_workers(node: GridProcess) -> list[str]:
    lines: list[str] = []
    for process in node.processes():
        try:
            lines += Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        except OSError:
            continue
    return lines


def test_a_data_set_that_is_unpublished_while_others_open_it_stays_unpublished(
    bob: GridProcess, owner: NodeClient, connect: Connect
):
    for _ in range(5):
        made = owner.publish(SECRETS, tags=["#racing"])
        info, token = made._ref.dataset, bob.user("Bob", "Owner")
        stop, lost = threading.Event(), []

        def opening(info: Any = info, token: str = token, stop: threading.Event = stop, lost: list[Any] = lost) -> None:
            while not stop.is_set():
                with RawSession(bob, token) as raw:
                    try:
                        raw.read(raw.open(info))
                    except (ObjectNotFoundError, SessionLostError) as error:
                        lost.append(error)
                        return

        threads = [threading.Thread(target=opening) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)  # let them get going: nothing waits for this
        owner.unpublish(made)
        for thread in threads:
            thread.join(30)
        stop.set()
        assert len(lost) == 3
        assert owner.search("#racing") == []


def test_a_large_read_in_progress_survives_unpublishing_or_fails_cleanly(bob: GridProcess, owner: NodeClient):
    made = owner.publish(torch.ones(4 << 20), tags=["#slow"])
    with RawSession(bob, bob.user("Bob", "Owner")) as raw:
        reply = raw.ask(messages.Read(value=raw.open(made._ref.dataset)))
        assert isinstance(reply, messages.Value)
        owner.unpublish(made)
        status, _ = bob.call("GET", f"/data-centric/released/{reply.bulk}", headers={"X-Grid-Session": raw.secret})
        assert status in (200, 401, 404)
        assert isinstance(raw.last_words(), SessionLostError)


def test_publishing_the_same_again_gives_the_same_data_set(owner: NodeClient):
    first = owner.publish(SECRETS, tags=["#same"])
    second = owner.publish(SECRETS, tags=["#same"])
    assert first.id_at_location == second.id_at_location
    other = owner.publish(SECRETS + 1, tags=["#same"])
    assert other.id_at_location != first.id_at_location
    for one in (first, other):
        owner.unpublish(one)


def test_what_was_published_is_read_as_it_was(owner: NodeClient):
    for tensor in (
        torch.tensor(3.5),
        torch.zeros(0),
        torch.zeros(3, 0, 2),
        torch.ones(2, 3).T,
        torch.arange(10)[::3],
        torch.tensor([True, False]),
        torch.tensor([1.5, -2.5]).to(torch.bfloat16),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.ones(3, requires_grad=True),
        torch.arange(100_000),
    ):
        made = owner.publish(tensor)
        found = made.get()
        assert isinstance(found, PrivateTensor)
        assert found.unwrap().dtype == tensor.dtype
        assert torch.equal(found.unwrap().nan_to_num(7.0) if tensor.is_floating_point() else found.unwrap(),
                           tensor.detach().nan_to_num(7.0) if tensor.is_floating_point() else tensor)  # fmt: skip
        owner.unpublish(made)


def test_a_node_that_is_gone_is_told_so(small_world: World):
    node = small_world.start("node", "Gone")
    node.user("Bob", "Owner")
    with node.client("Bob") as client:
        node.stop()
        with pytest.raises(NodeUnavailableError):
            client.publish(SECRETS)


def test_a_table_with_hostile_columns_is_refused_or_kept(owner: NodeClient):
    for columns in ([""], ["x" * 129], ["a", "a"]):
        frame = pd.DataFrame([[1] * len(columns)], columns=columns)
        with pytest.raises(BadRequest):
            owner.publish(frame)


def test_vocabulary_is_for_readers_even_under_a_name_of_the_publishers_own(
    bob: GridProcess, owner: NodeClient, tmp_path: Path, connect: Connect
):
    save_file({"X": torch.ones(3), "vocab/0": torch.full((3,), 65, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    made = owner.publish(tmp_path / "a.safetensors", tags=["#words"])
    [found] = connect(bob, "Zed").search("#words")
    assert found.keys() == ["X"]
    with RawSession(bob) as raw, pytest.raises(ComputeNotPermittedError):
        raw.open(made.dataset, "vocab/0")
    owner.unpublish(made)
