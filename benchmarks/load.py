"""One Node under thousands of devices at once, a quarter of which leaves in the middle."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy
import torch

from benchmarks.crowd import WIDTH, Line, allow_files
from benchmarks.grid import Grid, Server
from benchmarks.results import Result
from benchmarks.scale import Scale
from grid_jupyter.client.model_centric import ModelCentricFLClient
from grid_jupyter.link.http import Address
from grid_jupyter.plans.models import training_plan

MEANING = """\
Simulated devices of a second process, each with its own connection, all at once: authenticate, ask for a place, fetch \
the model, report, and again, until training is over. A quarter of them leaves for good at a step that a seed draws: \
after authenticating, with a place, with the model, in the middle of a report, after one. A cycle takes 55 % of all \
devices; who comes too late asks again. Devices train nothing: a diff is the device's own number, so that each \
checkpoint is compared with the mean over just those devices whose reports were acknowledged in its cycle. *Lost* are \
acknowledged reports that no checkpoint has. Requests for a place are those that the Node answers at once, without \
`wait_s`; all of them come while everybody else registers, asks and reports, so that this is what waiting in line \
costs on these cores, which the devices share. The baseline is the same exchange (a ping of the speed test) by one \
client that waits for each answer."""

MODEL = "load"
CYCLES = 4
SEED = 0
_PINGS = 200


def run(scale: Scale) -> list[Result]:
    """All figures of this benchmark."""
    count = scale(2000, 100)
    allow_files(16_384)
    with Grid() as grid:
        node = grid.node("alice")
        grid.account(node, "Olga", "Owner")
        client = ModelCentricFLClient("benchmark", node.address, user="Olga")
        host(client, count)
        ping = _ping(node)
        before, began = node.cpu_s() + node.below_cpu_s(), time.perf_counter()
        told = send_crowd(node.address, count)
        took = time.perf_counter() - began
        cpu = node.cpu_s() + node.below_cpu_s() - before
        lost, completed = compared(client, told)
    asked = sorted(told["asked_s"])
    of, reports = f"{count:,} devices", sum(map(len, told["counted"].values()))
    against = "a ping, one after the other"
    return [
        Result(what=f"cycles that were completed: {of}", value=completed, unit="", baseline=CYCLES,
               against="cycles of the training", at_least=CYCLES),
        Result(what=f"acknowledged reports that are lost: {of}", value=lost, unit="", baseline=reports,
               against="all that were acknowledged", at_most=0),
        Result(what=f"devices that failed otherwise than by leaving: {of}", value=len(told["failed"]), unit="",
               baseline=told["left"], against="those that left", at_most=0),
        Result(what=f"cycle-request, p50: {of}", value=statistics.median(asked) * 1e3, unit="ms", baseline=ping * 1e3,
               against=against),
        Result(what=f"cycle-request, p99: {of}", value=asked[int(len(asked) * 0.99)] * 1e3, unit="ms",
               baseline=ping * 1e3, against=against),
        Result(what=f"reports a second, all that comes with them included: {of}", value=reports / took,
               unit="reports/s", baseline=1 / ping, against=against),
        Result(what=f"CPU of the Node and its Worker, a report: {of}", value=cpu / reports * 1e3, unit="ms",
               baseline=ping * 1e3, against=against),
    ]  # fmt: skip


def host(client: ModelCentricFLClient, count: int) -> None:
    """A training of a few cycles, each of which takes 55 % of so many devices."""
    network = _Weights()
    plan = training_plan(
        network,
        torch.nn.functional.mse_loss,
        torch.optim.SGD(network.parameters(), 0.1),
        inputs=(torch.zeros(4, WIDTH), torch.zeros(4)),
    )
    reports = max(1, count * 55 // 100)
    client.host(
        network,
        {"training_plan": plan},
        client_config={"name": MODEL, "version": "1", "lr": 0.1},
        server_config={"min_diffs": reports, "max_diffs": reports, "num_cycles": CYCLES},
    )


class _Weights(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(WIDTH))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.w


def send_crowd(address: str, count: int) -> dict[str, Any]:
    """What so many devices saw, of a process of their own."""
    command = [sys.executable, "-m", "benchmarks.crowd", address, MODEL, str(count), str(SEED)]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    return dict(json.loads(told.stdout))


def compared(client: ModelCentricFLClient, told: dict[str, Any]) -> tuple[int, int]:
    """How many acknowledged reports are in no checkpoint, and how many cycles are complete."""
    completed, lost = int(client.status(MODEL)["completed"]), 0
    for cycle, numbers in told["counted"].items():
        if int(cycle) > completed:
            lost += len(numbers)
            continue
        before, after = (client.retrieve(MODEL, checkpoint=int(cycle) + n)["w"] for n in (0, 1))
        moved = float((before - after).astype(numpy.float64).mean()) * len(numbers)
        if abs(moved - sum(numbers)) > 0.5:  # a sum of whole numbers; means are rounded
            lost += len(numbers)
    return lost, completed


def _ping(node: Server) -> float:
    """Seconds of an exchange that does nothing."""

    async def pings() -> float:
        line = Line(Address(node.address), asyncio.Semaphore())
        worker = (await line.told("authenticate", model_name=MODEL))["worker_id"]
        began = time.perf_counter()
        for _ in range(_PINGS):
            await line.ask("GET", f"speed-test?worker_id={worker}&random=1&is_ping=1")
        took = time.perf_counter() - began
        line.close()
        return took / _PINGS

    return asyncio.run(pings())
