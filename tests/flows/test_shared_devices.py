"""Workers share a device under fractions that are kept to: here the machine's memory, of which a part is declared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import World
from node_world import GridProcess, until
from test_jobs import model, rows, submit

from grid_jupyter.errors import BadRequest, GridError, LimitExceededError


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[GridProcess]:
    """Half of 1 GB for each Worker, and one kept spare."""
    made = world.start(
        "node", "Shared", "--allow-guests", "--device", "cpu", "--device-memory", "1G", "--device-fraction", "0.5",
        "--spare-workers", "1",
    )  # fmt: skip
    made.user("Bea", "Owner")
    x, y = rows()
    with made.client("Bea") as bea:
        bea.publish(x, tags=["#x"])
        bea.publish(y, tags=["#y"])
    yield made
    made.stop()


def shares(node: GridProcess) -> list[float]:
    [device] = node.status()["devices"]
    assert (device["name"], device["memory_bytes"]) == ("cpu", 1 << 30)
    return sorted(device["shares"])


def test_a_worker_has_its_share_and_a_third_one_is_refused_until_there_is_room(node: GridProcess):
    with node.client() as one, node.client() as two, node.client() as three:
        for client in (one, two):
            assert client.receive(torch.ones(2)).get().tolist() == [1, 1]
        until(lambda: shares(node) == [0.5, 0.5])
        with pytest.raises(LimitExceededError, match=r"memory of 512 MB"):
            one.receive(torch.ones(1)).new_full((1 << 28,), 1.0).get()
        with pytest.raises(GridError, match=r"no Worker can begin now: it waits for 0.5 of cpu.*Try again later"):
            three.receive(torch.ones(2)).get()
        two.close()
        until(lambda: shares(node) == [0.5])
        with node.client() as fourth:
            assert fourth.receive(torch.ones(2)).get().tolist() == [1, 1]


def test_a_job_waits_in_the_queue_for_its_share_and_says_so(node: GridProcess):
    with node.client("Bea") as bea:
        with node.client() as guest:
            assert guest.receive(torch.ones(2)).get().tolist() == [1, 1]
            job = submit(bea, device_fraction=1.0, device="cpu")
            assert (job.info.device, job.info.device_fraction) == ("cpu", 1.0)
            until(
                lambda: (
                    job.state == "queued" and job.said == "it waits for 1 of cpu, which other sessions and jobs have"
                )
            )
            behind = submit(bea, device="cpu", device_fraction=0.1)
            assert job.state == behind.state == "queued", "nobody passes by the one whose turn it is"
        assert job.wait(60).info.state == "done", job.log()
        assert behind.wait(60).info.state == "done", behind.log()


def test_a_spare_worker_gives_way_to_a_job_and_comes_back(node: GridProcess):
    until(lambda: shares(node) == [0.5])
    with node.client("Bea") as bea:
        job = submit(bea, device_fraction=0.8, rounds=2)
        assert job.wait(60, until=frozenset({"running"})).info.state == "running"
        until(lambda: shares(node) == [0.8])
        other = submit(bea, device_fraction=0.9)  # the Worker that rests between rounds gives way, too
        assert other.wait(60).info.state == "done", other.log()
        assert job.state == "running"
        weights, *_ = job.round(dict(model().state_dict()))
        assert weights
        job.cancel()
    until(lambda: shares(node) == [0.5], 90.0)


def test_what_can_never_be_given_is_refused_at_submission_with_the_remedy(node: GridProcess):
    with node.client("Bea") as bea:
        with pytest.raises(BadRequest, match=r"does not compute on cuda:3: it has cpu. Leave device out"):
            submit(bea, device="cuda:3")
        with pytest.raises(BadRequest):
            submit(bea, device_fraction=1.5)
        wide = torch.nn.Sequential(torch.nn.Linear(8, 100_000), torch.nn.ReLU(), torch.nn.Linear(100_000, 3))
        with pytest.raises(GridError, match=r"memory|device_fraction"):
            bea.submit(
                wide, loss=torch.nn.CrossEntropyLoss(), device_fraction=0.01,
                data={"x": bea.search("#x")[0], "y": bea.search("#y")[0]},
            )  # fmt: skip


def test_a_node_without_shares_says_so(world: World):
    plain = world.start("node", "Plain")
    plain.user("Bea", "Owner")
    assert (plain.status()["device"], plain.status()["devices"]) == ("cpu", [])
    with plain.client("Bea") as bea:
        x, y = rows()
        bea.publish(x, tags=["#x"])
        bea.publish(y, tags=["#y"])
        with pytest.raises(BadRequest, match="no shares"):
            submit(bea, device_fraction=0.5)
        assert submit(bea, device="cpu").wait(60).info.state == "done"
    plain.stop()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_node_whose_device_is_not_there_does_not_start_and_auto_computes_on_the_cpu(world: World, tmp_path: Path):
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "node", "--name", "Wish", "--state", str(tmp_path / "s")]
    done = subprocess.run(
        [*command, "--port", "0", "--device", "cuda:0"],
        capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "this machine has not the device cuda:0: no CUDA device" in done.stderr
    assert "--device auto" in done.stderr
    assert "Traceback" not in done.stderr
    auto = world.start("node", "Auto", "--device", "auto", "--allow-guests")
    assert auto.status()["device"].startswith("cpu (auto: no CUDA device: ")
    with auto.client() as guest:
        assert guest.receive(torch.ones(2)).get().tolist() == [1, 1]
    auto.stop()


def test_options_that_do_not_fit_together_are_refused(tmp_path: Path):
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "node", "--name", "Wish", "--state", str(tmp_path / "s")]
    for options, said in (
        (["--device", "auto", "--device-memory", "1G"], "--device-memory is what Workers on the CPU share"),
        (["--device", "auto", "--workers", "dask://127.0.0.1:1"], "on Dask say --device cpu, cuda"),
    ):
        done = subprocess.run(
            [*command, "--port", "0", *options],
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert said in done.stderr
