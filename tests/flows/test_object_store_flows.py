"""A Node whose bytes are in a bucket: published, computed on, trained, killed, backed up, deleted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import World
from node_world import GridProcess, until
from s3_server import KEY, SECRET, file_system, line_to, options_file, s3_server

from grid_jupyter import Device, ModelCentricFLClient, training_plan
from grid_jupyter.errors import GridError, NodeUnavailableError, ObjectNotFoundError


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


def grid(*arguments: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "grid_jupyter.cli.main", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def forget_copies(node: GridProcess) -> int:
    files = [file for folder in ("blobs", "training") for file in (node.state / folder).iterdir()]
    for file in files:
        file.unlink(missing_ok=True)  # the Node may just be deleting a report that was folded
    return len(files)


def test_a_node_with_a_bucket_publishes_computes_trains_and_deletes_there(
    small_world: World, s3: str, tmp_path: Path
) -> None:
    bucket, options = file_system(s3), options_file(s3, tmp_path / "options.json")
    where = ("--objects", "s3://ward7/grid", "--objects-options", str(options), "--objects-cache", "1M")
    node = small_world.start("node", "ward7", *where)
    for name, role in (("Bob", "Owner"), ("Zed", "User")):
        node.user(name, role)

    def objects(folder: str) -> int:
        return len(bucket.find(f"ward7/grid/{folder}"))

    model = torch.nn.Linear(4, 2)
    example = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    plan = training_plan(model, torch.nn.functional.cross_entropy, torch.optim.SGD(model.parameters(), 0.1),
                         inputs=example)  # fmt: skip
    host = ModelCentricFLClient("bob", node.address, user="Bob").connect()
    with node.client("Bob") as bob:
        rows = bob.publish(torch.arange(600_000.0), tags=["#rows"], allowed_users=["Zed"])
        assert objects("blobs") == 1
        config = {"name": "m", "version": "1.0", "batch_size": 2, "lr": 0.1, "max_updates": 1}
        terms = {"num_cycles": 2, "max_diffs": 1}
        host.host(model, {"training_plan": plan}, client_config=config, server_config=terms)
        assert objects("training") == 2, "the model and its plan"

    assert forget_copies(node)
    node.kill()
    node.start()
    with node.client("Zed") as zed:
        [found] = zed.search("#rows")
        assert (found * 2).sum().get().unwrap().item() == pytest.approx(torch.arange(600_000.0).mul(2).sum().item())
    assert forget_copies(node)

    data = torch.ones(8, 4).numpy(), torch.ones(8, dtype=torch.int64).numpy()
    with closing(Device(node.address)) as device:
        assert len(device.participate("m", data=data, cycles=1)) == 1
    until(lambda: host.status("m")["completed"] >= 1)
    assert objects("training") == 3
    forget_copies(node)
    assert set(host.retrieve("m")) == {"weight", "bias"}

    made = grid("backup", tmp_path / "ward7.tar", "--state", node.state)
    assert made["files"] >= 5
    with node.client("Bob") as bob:
        bob.unpublish(rows)
    assert objects("blobs") == 0
    host.delete("m", "1.0")
    assert objects("training") == 0

    node.kill()
    elsewhere = GridProcess("node", "ward7", tmp_path / "elsewhere", port=node.port)
    small_world.started.append(elsewhere)
    grid("restore", tmp_path / "ward7.tar", "--state", elsewhere.state)
    elsewhere.start()
    with elsewhere.client("Zed") as zed:
        [found] = zed.search("#rows")
        assert found[3].get().unwrap().item() == 3.0
    log = node.log.read_text()
    assert KEY not in log
    assert SECRET not in log


def test_a_bucket_that_is_away_is_told_to_who_publishes_and_who_computes(small_world: World, tmp_path: Path) -> None:
    store, unmounted = tmp_path / "store", tmp_path / "unmounted"
    node = small_world.start("node", "ward8", "--objects", store.as_uri())
    node.user("Bob", "Owner")
    with node.client("Bob") as bob:
        kept = bob.publish(torch.ones(70_000), tags=["#kept"])
        store.rename(unmounted)
        store.write_text("")
        with pytest.raises(NodeUnavailableError, match="object store"):
            bob.publish(torch.zeros(3), tags=["#new"])
        forget_copies(node)
        with pytest.raises(NodeUnavailableError, match="object store"):
            (kept + 1).sum().get()
        store.unlink()
        unmounted.rename(store)
        assert (bob.search("#kept")[0] + 1).sum().get().unwrap().item() == 140_000
        again = bob.publish(torch.zeros(3), tags=["#new"])
        [file] = [one for one in (store / "blobs").iterdir() if one.stat().st_size < 200_000]
        forget_copies(node)
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
        with pytest.raises(ObjectNotFoundError, match="damaged"):
            (again + 1).sum().get()
    assert "is damaged in the store" in node.log.read_text()


def test_a_node_ends_at_once_though_its_store_is_silent(small_world: World, s3: str, tmp_path: Path) -> None:
    with line_to(s3) as (address, may_pass):
        options = options_file(address, tmp_path / "options.json")
        node = small_world.start("node", "ward9", "--objects", "s3://ward7/silent", "--objects-options", str(options))
        node.user("Bob", "Owner")
        with node.client("Bob") as bob:
            may_pass.clear()

            def publish() -> None:
                with suppress(GridError):
                    bob.publish(torch.ones(3), tags=["#never"])

            publishing = threading.Thread(target=publish)
            publishing.start()
            until(lambda: any(len(file.name) == 32 for file in (node.state / "blobs").iterdir()))
            began = time.monotonic()
            assert node.signal(signal.SIGTERM) == 0
            assert time.monotonic() - began < 20
            publishing.join()
