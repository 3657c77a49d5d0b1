"""Sessions are the same wherever their Workers run: on the Node's machine, or on a Dask cluster."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from conftest import SECRETS, World
from dask_world import DaskCluster, workers_below
from job_world import rows, same, sgd, submit
from node_world import GridProcess, until
from raw_session import RawSession

from grid_jupyter.errors import (
    GetNotPermittedError,
    LimitExceededError,
    ObjectNotFoundError,
    SessionLostError,
)

LARGE = 1_500_000
"""Numbers of a tensor that is far above what travels inside a frame: 6 MB."""


def options_of(backend: str, request: pytest.FixtureRequest) -> tuple[str, ...]:
    if backend == "local":
        return ()
    address = request.getfixturevalue("cluster").address
    return ("--workers", address.replace("tcp://", "dask://"))


@pytest.fixture(scope="module", params=["local", "dask"])
def node(request: pytest.FixtureRequest, world: World) -> GridProcess:
    """A Node of Bob's with tight limits, on both backends."""
    backend = request.param
    options = options_of(backend, request)
    made = world.start(
        "node", f"Backend-{backend}", "--allow-guests", "--session-memory", "400M", "--operation-time", "2s",
        "--max-sessions", "3", "--spare-workers", "0", *options,
    )  # fmt: skip
    for name, role in (("Bob", "Owner"), ("Ana", "User")):
        made.user(name, role)
    return made


@pytest.fixture
def grid_workers(node: GridProcess, request: pytest.FixtureRequest):
    """What finds the Workers of the Node, wherever they run."""
    if node.name.endswith("local"):
        return lambda: workers_below(psutil.Process(node.pid))
    cluster = request.getfixturevalue("cluster")
    return lambda: [one for found in cluster.grid_workers().values() for one in found]


# ------------------------------------------------------------------ on both


def test_a_session_computes_trains_and_ends_and_its_worker_with_it(node: GridProcess, grid_workers):
    until(lambda: not grid_workers())
    with node.client() as client:
        rows = torch.linspace(-1, 1, 12).reshape(6, 2)
        weights = client.receive(torch.ones(2, 1)).requires_grad_()
        loss = (client.receive(rows) @ weights).pow(2).mean()
        loss.backward()
        assert loss.detach().get().item() == pytest.approx((rows @ torch.ones(2, 1)).pow(2).mean().item())
        assert weights.grad.get().allclose(2 / 6 * rows.T @ rows @ torch.ones(2, 1))
        assert len(grid_workers()) == 1
        assert node.status()["sessions"] == 1
    until(lambda: not grid_workers())
    assert node.status()["sessions"] == 0


def test_gates_are_the_nodes_whoever_runs_the_worker(node: GridProcess):
    with node.client("Bob") as owner, node.client("Ana") as ana, node.client() as guest:
        made = owner.publish(SECRETS, tags=["#gated"], allowed_users="Ana")
        [theirs] = guest.search("#gated")
        for asked in (theirs, theirs.sum(), theirs[theirs > 2].sum()):
            with pytest.raises(GetNotPermittedError):
                asked.get()
        [hers] = ana.search("#gated")
        assert hers.sum().get().unwrap().item() == pytest.approx(SECRETS.sum().item())
        owner.unpublish(made)
        with pytest.raises((SessionLostError, ObjectNotFoundError)):
            until(lambda: hers.sum().get() is None)


def test_large_values_go_both_ways_and_data_sets_are_mapped(node: GridProcess):
    numbers = torch.arange(LARGE, dtype=torch.float32)
    with node.client("Bob") as client:
        made = client.publish(numbers, tags=["#large"])
        assert client.receive(numbers).get().equal(numbers)
        assert (made + 1).get().unwrap().equal(numbers + 1)
        assert (made + client.receive(numbers)).sum().get().unwrap().item() == pytest.approx(2 * numbers.sum().item())
        with pytest.raises(Exception, match="published data"):
            made.add_(1).get()
        client.unpublish(made)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_ends_its_session_alone_and_with_the_reason(node: GridProcess, grid_workers, number: int):
    until(lambda: not grid_workers())
    with node.client() as first, node.client() as second:
        mine = first.receive(torch.ones(3))
        assert mine.get(deregister_ptr=False).tolist() == [1, 1, 1]
        [victim] = grid_workers()
        others = second.receive(torch.ones(3))
        assert others.get(deregister_ptr=False).tolist() == [1, 1, 1]
        victim.send_signal(number)
        reason = "killed, perhaps for memory" if number == signal.SIGKILL else "crashed .SIGSEGV."
        with pytest.raises(SessionLostError, match=reason):
            until(lambda: mine.get(deregister_ptr=False) is None)
        assert (others + 1).get().tolist() == [2, 2, 2]
        assert first.receive(torch.ones(2)).get().tolist() == [1, 1], "the next use makes a new session"


def test_memory_time_and_number_of_sessions_are_limited(node: GridProcess, grid_workers):
    until(lambda: not grid_workers())
    with node.client() as client:
        one = client.receive(torch.ones(1))
        with pytest.raises(LimitExceededError, match="memory of 400 MB"):
            one.new_full((1 << 40,), 1.0).get()
        assert (one + 1).get().item() == 2
    with RawSession(node) as slow:
        square = slow.op("aten.new_full.default", ["r", "d", "d"], slow.put(torch.ones(1)), [1500, 1500], 1e-3)
        slow.op("aten.mm.default", ["r", "r"], square, square, out=2)
        slow.operations(*[[1, 2, 2, square]] * 5000)
        said = slow.last_words()
        assert isinstance(said, SessionLostError)
        assert "ran longer than 2 s" in str(said)
    until(lambda: node.status()["sessions"] == 0)
    with RawSession(node) as a, RawSession(node) as b, RawSession(node) as c, RawSession(node) as late:
        for raw in (a, b, c):
            assert raw.read(raw.put(torch.ones(1))).item() == 1
        late.put(torch.ones(1))
        said = late.last_words()
        assert isinstance(said, LimitExceededError)
        assert "--max-sessions" in str(said)
    until(lambda: not grid_workers())


def test_a_stream_of_operations_is_held_up_and_loses_nothing(node: GridProcess):
    with RawSession(node) as raw:
        total = raw.put(torch.zeros(1000))
        raw.op("aten.add.Tensor", ["r", "d"], total, 1.0, out=2)
        for _ in range(40):
            raw.operations(*[[0, 2, 2, 1.0]] * 1000)
        assert raw.read(2)[0].item() == 40_001


# ------------------------------------------------------------------ on Dask alone


def test_workers_of_a_cluster_are_spread_and_sandboxed_as_on_the_nodes_machine(world: World, cluster: DaskCluster):
    node = dask_node(world, cluster, "Spread")
    assert node.status()["isolation"].split(":")[0] in ("sandboxed on Dask", "reduced on Dask")
    with node.client() as one, node.client() as two:
        for client in (one, two):
            assert client.receive(torch.ones(1)).get().item() == 1
        for worker in (found for several in cluster.grid_workers().values() for found in several):
            limits = Path(f"/proc/{worker.pid}/limits").read_text().splitlines()
            assert not [line for line in limits if line.startswith("Max data size") and "unlimited" in line]
            if node.status()["isolation"].startswith("sandboxed"):
                interfaces = Path(f"/proc/{worker.pid}/net/dev").read_text().splitlines()[2:]
                assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert not [process for process in node.processes() if process.pid != node.pid], "nothing runs beside the Node"


def test_when_a_dask_worker_is_killed_its_sessions_say_so_and_go_on_elsewhere(world: World, cluster: DaskCluster):
    node = dask_node(world, cluster, "Widow")
    until(lambda: not any(cluster.grid_workers().values()))
    with node.client() as client, node.client() as second:
        mine = client.receive(torch.ones(3))
        assert mine.get(deregister_ptr=False).tolist() == [1, 1, 1]
        [pid] = [pid for pid, found in cluster.grid_workers().items() if found]
        [orphan] = cluster.grid_workers()[pid]
        [dying] = [one for one in cluster.workers if one.pid == pid]
        dying.kill()
        dying.wait()
        cluster.workers.remove(dying)
        with pytest.raises(SessionLostError, match=r"the Dask worker tcp://127\.0\.0\.1:\d+ .*is gone"):
            until(lambda: mine.get(deregister_ptr=False) is None)
        until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
        assert client.receive(torch.ones(2)).get().tolist() == [1, 1], "the next use is on the other one"
        assert second.receive(torch.ones(2)).get().tolist() == [1, 1]
    cluster.worker()


def test_a_job_ends_with_the_same_result_though_its_dask_worker_is_killed(world: World, cluster: DaskCluster):
    node = dask_node(world, cluster, "Steady")
    node.user("Bob", "Owner")
    x, y = rows()
    with node.client("Bob") as bob:
        bob.publish(x, tags=["#x"])
        bob.publish(y, tags=["#y"])
        until(lambda: not any(cluster.grid_workers().values()))
        job = submit(bob, epochs=2000, batch_size=len(x), optimizer=sgd(0.01, momentum=0.9), seed=3)
        until(lambda: (job.progress or 0.0) > 0.02)
        [pid] = [pid for pid, found in cluster.grid_workers().items() if found]
        [dying] = [one for one in cluster.workers if one.pid == pid]
        dying.kill()
        dying.wait()
        cluster.workers.remove(dying)
        cluster.worker()
        assert job.wait(90).info.state == "done", job.log()
        assert any("is gone" in line for line in job.log()), job.log()
        straight = submit(bob, epochs=2000, batch_size=len(x), optimizer=sgd(0.01, momentum=0.9), seed=3)
        assert same(job.result(), straight.result(90), 0.0)


def test_spares_are_kept_ready_and_a_session_takes_one(world: World, cluster: DaskCluster):
    until(lambda: not any(cluster.grid_workers().values()))
    node = dask_node(world, cluster, "Ready", "--spare-workers", "1")
    with node.client() as client:
        until(lambda: sum(len(found) for found in cluster.grid_workers().values()) == 1)
        [spare] = [found for several in cluster.grid_workers().values() for found in several]
        assert node.status()["sessions"] == 0
        assert client.receive(torch.ones(1)).get().item() == 1
        until(lambda: sum(len(found) for found in cluster.grid_workers().values()) == 2)
        assert spare.is_running()
    node.stop()
    until(lambda: not any(cluster.grid_workers().values()))


def test_a_node_leaves_the_cluster_as_it_was_also_when_it_is_killed(world: World, cluster: DaskCluster):
    until(lambda: not any(cluster.grid_workers().values()))
    node = dask_node(world, cluster, "Guest")
    client = node.client()
    assert client.receive(torch.ones(1)).get().item() == 1
    assert any(cluster.grid_workers().values())
    node.kill()
    until(lambda: not any(cluster.grid_workers().values()))
    client.close()


def test_resources_that_no_dask_worker_has_are_named(cluster: DaskCluster):
    """In a process of its own, as a program that has a Client does it."""
    program = """
import asyncio, sys, torch
from distributed import Client
from grid_jupyter.errors import NodeUnavailableError
from grid_jupyter.wire import worker
from grid_jupyter.worker.dask_pool import DaskPool

async def main(client):
    limits = worker.WorkerLimits(memory_bytes=1 << 28, operation_s=5.0, threads=1)
    starved = DaskPool(limits, client, resources={"GPU": 1}, start_s=0.5)
    await starved.probe()
    try:
        await starved.start()
    except NodeUnavailableError as error:
        print(error)
    await starved.stop()
    pool = DaskPool(limits, client)
    await pool.probe()
    running = await pool.start()
    print(type((await (await running.send(worker.Count())))[0]).__name__)
    await pool.kill(running)
    await pool.stop()

if __name__ == "__main__":
    with Client(sys.argv[1]) as client:
        asyncio.run(main(client))
        print(client.submit(sum, [1, 2]).result(), "the Client is the caller's, and goes on")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, cluster.address], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.stdout.splitlines() == [
        f"no Dask worker had a place (GPU=1) within 0.5 s; try again later, or ask the Node's owner for more workers "
        f"on {cluster.address}",
        "Counted",
        "3 the Client is the caller's, and goes on",
    ], done.stderr


def test_a_node_does_not_start_without_its_scheduler_and_says_why(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "node", "--name", "Lost", "--state", str(tmp_path / "s")]
    done = subprocess.run(
        [*command, "--port", "0", "--workers", f"dask://127.0.0.1:{port}"],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"no Dask scheduler answers at dask://127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def dask_node(world: World, cluster: DaskCluster, name: str, *arguments: str) -> GridProcess:
    options = ("--allow-guests", "--workers", cluster.address, *(arguments or ("--spare-workers", "0")))
    return world.start("node", name, *options)
