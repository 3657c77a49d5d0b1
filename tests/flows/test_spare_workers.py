"""Workers that are forked before anybody needs them: when, how many, how confined, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from conftest import World
from node_world import until, workers
from raw_session import RawSession


def test_a_connection_of_somebody_who_may_compute_makes_spares_ready_and_they_are_no_sessions(small_world: World):
    node = small_world.start("node", "Ready", "--allow-guests")
    assert not workers(node)
    with RawSession(node) as raw:
        until(lambda: len(workers(node)) == 2)
        assert node.status()["sessions"] == 0
        spares = workers(node)
        assert raw.read(raw.put(torch.ones(2))).tolist() == [1, 1]
        assert node.status()["sessions"] == 1
        until(lambda: len(workers(node)) == 3)
        assert spares < workers(node), "the session took a spare, and another was forked for it"
    until(lambda: len(workers(node)) == 2)
    with RawSession(node) as first, RawSession(node) as second, RawSession(node) as third:
        for raw in (first, second, third):
            assert raw.read(raw.put(torch.ones(2))).tolist() == [1, 1]
        assert node.status()["sessions"] == 3


def test_a_guest_who_may_not_compute_starts_nothing(small_world: World):
    node = small_world.start("node", "Closed")
    token = node.user("Ana")
    with RawSession(node):
        assert node.call("GET", "/data-centric/status/")[0] == 200
        assert [process.pid for process in node.processes()] == [node.pid]
    with RawSession(node, token):
        until(lambda: len(workers(node)) == 2)


def test_a_warm_node_is_ready_before_anybody_connects(small_world: World):
    node = small_world.start("node", "Warm", "--warm", "--spare-workers", "1")
    until(lambda: len(workers(node)) == 1)
    assert node.status()["sessions"] == 0


def test_a_spare_that_dies_is_replaced(small_world: World):
    node = small_world.start("node", "Sturdy", "--allow-guests", "--warm")
    until(lambda: len(workers(node)) == 2)
    before = workers(node)
    for pid in before:
        psutil.Process(pid).kill()
    until(lambda: len(workers(node)) == 2 and not workers(node) & before)
    with RawSession(node) as raw:
        assert raw.read(raw.put(torch.ones(2))).tolist() == [1, 1]


def test_spares_are_limited_like_other_workers_and_draw_numbers_of_their_own(small_world: World):
    node = small_world.start("node", "Strict", "--allow-guests", "--warm", "--session-memory", "300M")
    until(lambda: len(workers(node)) == 2)

    def is_confined(pid: int) -> bool:
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        [data] = [line for line in limits if line.startswith("Max data size")]
        return "unlimited" not in data and Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "800"

    until(lambda: all(is_confined(pid) for pid in workers(node)))
    drawn = []
    for _ in range(3):
        with RawSession(node) as raw:
            noise = raw.op("aten.rand_like.default", ["r"], raw.put(torch.zeros(8)))
            drawn.append(tuple(raw.read(noise).tolist()))
    assert len(set(drawn)) == 3


def test_an_operation_takes_as_many_threads_as_the_owner_says(small_world: World):
    node = small_world.start("node", "Wide", "--allow-guests", "--session-threads", "3", "--spare-workers", "0")
    with RawSession(node) as raw:
        square = raw.op("aten.new_full.default", ["r", "d", "d"], raw.put(torch.ones(1)), [700, 700], 1e-3)
        assert raw.read(raw.op("aten.sum.default", ["r"], raw.op("aten.mm.default", ["r", "r"], square, square))) > 0
        [pid] = workers(node)
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) >= 3
