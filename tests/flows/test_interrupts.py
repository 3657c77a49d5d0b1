"""Interrupted cells, and streams that are faster than the Worker: real signals, real Nodes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from node_world import PATIENCE_S, GridProcess, until

from grid_jupyter import NodeClient

Connect = Callable[..., NodeClient]

INTERRUPTED = """
import json, os, random, signal, sys, threading
import torch
from grid_jupyter import NodeClient, VirtualWorker

place = VirtualWorker(id="here") if sys.argv[1] == "here" else NodeClient(None, sys.argv[1])
chance = random.Random(7)
x = place.receive(torch.zeros(2))
x.add_(0)
one = place.receive(torch.ones(()))
assert (one + one).item() == 2
done = wrong = interrupted = 0
for _ in range(int(sys.argv[2])):
    expected = 0
    try:
        threading.Timer(chance.uniform(0.0, 0.03), os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            for _ in range(chance.randrange(40)):
                x.add_(1)
                done += 1
            expected += 1
            wrong += (one * expected).item() != expected  # a stale answer would be another one's
    except KeyboardInterrupt:
        interrupted += 1
print(json.dumps({"done": done, "wrong": wrong, "interrupted": interrupted, "value": x.tolist()}))
"""


@pytest.mark.parametrize("where", ["a Node", "this process"])
def test_interrupts_at_any_moment_lose_nothing_send_nothing_twice_and_mix_up_no_answers(bob: GridProcess, where: str):
    address = bob.address if where == "a Node" else "here"
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, address, "100"],
        capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["interrupted"] == 100
    assert told["wrong"] == 0
    # the operation that was just being issued may have been counted or not
    assert all(told["done"] <= value <= told["done"] + told["interrupted"] for value in told["value"]), told


def test_a_read_that_is_interrupted_while_it_waits_leaves_the_session_as_it_was(bob: GridProcess):
    program = """
import os, signal, sys, threading, time
import torch
from grid_jupyter import NodeClient
client = NodeClient(None, sys.argv[1])
kept = client.receive(torch.arange(3.0))
a = client.receive(torch.ones(1200, 1200))
(kept + 1).tolist()
(a @ a).sum().item()  # what this side has to find out about these operations is known from here on
for _ in range(40):
    a = a @ a
try:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    a.sum().item()
    print("it did not wait")
except KeyboardInterrupt:
    began = time.monotonic()
    print(client.session.link.is_open(), kept.tolist(), (kept + 1).tolist())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, bob.address],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert ran.stdout.strip() == "True [0.0, 1.0, 2.0] [1.0, 2.0, 3.0]", ran.stderr[-3000:]


def test_what_is_left_in_a_buffer_is_sent_while_the_client_does_something_else(bob: GridProcess, connect: Connect):
    client = connect(bob)
    x = client.receive(torch.ones(3))
    assert x.tolist() == [1, 1, 1]
    for _ in range(3):
        x = x + 1
        y = x * 2
        until(lambda: not client.session.buffer)
    assert y.tolist() == [8, 8, 8]


def test_a_client_that_is_faster_than_its_worker_waits_and_the_node_keeps_nothing_for_it(
    bob: GridProcess, connect: Connect
):
    client = connect(bob)
    heavy: Any = client.receive(torch.ones(1000, 1000))
    heavy.sum().item()
    process = psutil.Process(bob.pid)
    before = largest = process.memory_info().rss
    sums: list[Any] = []

    def stream() -> None:
        nonlocal heavy
        for _ in range(30):
            heavy = heavy @ heavy
        sums.extend(client.receive(torch.full((15_000,), float(n))).sum() for n in range(1000))  # 60 MB, in the stream

    streaming = threading.Thread(target=stream)
    streaming.start()
    while streaming.is_alive():
        largest = max(largest, process.memory_info().rss)
        streaming.join(0.01)
    assert sum(one.item() for one in sums[-3:]) == 15_000 * (999 + 998 + 997)
    assert largest - before < 24 << 20
