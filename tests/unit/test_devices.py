"""Who is let in on a device is a pure function; what a Node is told to compute on, what it finds, and the sandbox's
arguments for it."""

from __future__ import annotations

import asyncio
from argparse import ArgumentTypeError
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grid_jupyter.cli import values
from grid_jupyter.errors import BadRequest, LimitExceededError, NodeUnavailableError
from grid_jupyter.ops.allowed import ALLOWED
from grid_jupyter.ops.kernels import _table, kernel
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker import sandbox
from grid_jupyter.worker.devices import (
    CONTEXT_BYTES,
    NODES,
    WHOLE,
    Asked,
    Device,
    Found,
    Granted,
    Wait,
    Wish,
    admit,
    chosen,
    limited,
    room,
)
from grid_jupyter.worker.gpu import is_full, is_lost
from grid_jupyter.worker.pool import WorkerPool
from grid_jupyter.worker.probing import look
from grid_jupyter.worker.shares import Shares
from grid_jupyter.worker.templates import Box, Template

LIMITS = WorkerLimits(memory_bytes=1 << 30, operation_s=1.0, threads=1)
TWO = tuple(Device(name=f"cuda:{number}", label="Test", memory_bytes=16 << 30) for number in range(2))
MEMORY = (Device(name="cpu", label="memory", memory_bytes=4 << 30),)

asked = st.builds(
    Asked,
    st.sampled_from(["", "cuda", "cuda:0", "cuda:1", "cuda:7", "cpu", "gpu"]),
    st.integers(min_value=-1, max_value=1200),
)
steps = st.lists(st.one_of(asked, st.integers(min_value=0, max_value=20)), max_size=60)


@given(devices=st.sampled_from([TWO, TWO[:1], MEMORY]), usual=st.integers(min_value=50, max_value=WHOLE), life=steps)
def test_never_is_more_of_a_device_given_than_there_is(
    devices: tuple[Device, ...], usual: int, life: list[Asked | int]
):
    """Workers come (an Asked) and go (a number: the oldest but so many)."""
    here: list[Granted] = []
    for step in life:
        if isinstance(step, int):
            if here:
                here.pop(step % len(here))
            continue
        taken: Counter[str] = Counter()
        for one in here:
            taken[one.device.name] += one.parts
        assert all(parts <= WHOLE for parts in taken.values())
        try:
            decided = admit(devices, taken, step, usual)
        except (BadRequest, LimitExceededError):
            with pytest.raises((BadRequest, LimitExceededError)):  # what can never be is never, whoever is there
                admit(devices, {}, step, usual)
            continue
        alone = admit(devices, {}, step, usual)
        assert isinstance(alone, Granted), "what may wait can be given once everybody has gone"
        if isinstance(decided, Wait):
            parts = step.parts or usual
            assert decided.devices
            assert all(taken[name] + parts > WHOLE for name in decided.devices), "nobody waits while there is room"
            continue
        assert decided.parts == (step.parts or usual)
        assert step.device in ("", decided.device.name, decided.device.name.partition(":")[0])
        assert room(decided) > 0
        here.append(decided)


def test_the_device_with_the_most_room_is_taken_and_a_full_one_is_waited_for():
    assert admit(TWO, {"cuda:0": 500}, NODES, 250) == Granted(TWO[1], 250)
    assert admit(TWO, {"cuda:0": 500, "cuda:1": 750}, Asked("cuda:1", 250), 100) == Granted(TWO[1], 250)
    waits = admit(TWO, {"cuda:0": 500}, Asked("cuda:0", 501), 250)
    assert isinstance(waits, Wait)
    assert waits.text == "it waits for 0.501 of cuda:0, which other sessions and jobs have"


def test_what_can_never_be_is_refused_with_the_remedy():
    with pytest.raises(BadRequest, match=r"does not compute on cuda:7: it has cuda:0, cuda:1. Leave device out"):
        admit(TWO, {}, Asked("cuda:7"), 250)
    with pytest.raises(BadRequest, match="no shares"):
        Shares(Wish()).look(Asked("", 500))
    with pytest.raises(LimitExceededError, match="up to 1"):
        admit(TWO, {}, Asked("", 1001), 250)
    with pytest.raises(LimitExceededError, match="larger device_fraction"):
        admit(TWO, {}, Asked("", 10), 250)


def test_a_share_of_a_gpu_has_its_context_in_it_and_one_of_memory_is_the_workers_limit():
    on_gpu, on_cpu = Granted(TWO[0], 250), Granted(MEMORY[0], 250)
    assert room(on_gpu) == (4 << 30) - CONTEXT_BYTES
    assert limited(LIMITS, on_gpu) == WorkerLimits(
        memory_bytes=1 << 30, operation_s=1.0, threads=1, device="cuda:0", device_parts=250
    )
    assert limited(LIMITS, on_cpu).memory_bytes == room(on_cpu) == 1 << 30


def test_a_nodes_wish_is_met_or_refused_in_words():
    none = Found(devices=(), why_none="torch is built without CUDA")
    assert chosen(Wish(), none) == ((), "cpu")
    assert chosen(Wish(declared_bytes=4 << 30), none)[0][0].memory_bytes == 4 << 30
    assert chosen(Wish(("auto",)), none) == ((), "cpu (auto: no CUDA device: torch is built without CUDA)")
    assert chosen(Wish(("auto",)), Found(devices=TWO)) == (TWO, "cuda:0, cuda:1")
    assert chosen(Wish(("cuda",)), Found(devices=TWO)) == (TWO, "cuda:0, cuda:1")
    assert chosen(Wish(("cuda:1",)), Found(devices=TWO)) == ((TWO[1],), "cuda:1")
    for wanted in (("cuda",), ("cuda:0",)):
        with pytest.raises(NodeUnavailableError, match=r"built without CUDA.*--device cpu, or --device auto"):
            chosen(Wish(wanted), none)
    with pytest.raises(NodeUnavailableError, match="there are cuda:0, cuda:1"):
        chosen(Wish(("cuda:0", "cuda:2")), Found(devices=TWO))
    with pytest.raises(NodeUnavailableError, match="raise --device-fraction"):
        chosen(Wish(("cuda",), parts=20), Found(devices=TWO))


def test_shares_come_back_and_whoever_waits_is_told():
    async def work() -> None:
        shares = Shares(Wish(declared_bytes=4 << 30, parts=600))
        told: list[int] = []
        shares.on_freed(lambda: told.append(1))
        first = shares.look(NODES)
        assert isinstance(first, Granted)
        shares.take(1, first)
        assert isinstance(shares.look(NODES), Wait)
        assert isinstance(shares.look(NODES, frozenset({1})), Granted), "as if that one were gone"
        assert shares.ever(NODES) == first
        assert shares.describe()[0]["shares"] == [0.6]
        freed = shares.freed()
        shares.give_back(1)
        shares.give_back(1)
        await asyncio.wait_for(freed, 1)
        assert (told, shares.look(NODES)) == ([1], first)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("text", "found"),
    [("cpu", ("cpu",)), ("auto", ("auto",)), ("cuda", ("cuda",)), ("cuda:0,cuda:1,cuda:0", ("cuda:0", "cuda:1"))],
)
def test_devices_are_written_as_torch_writes_them(text: str, found: tuple[str, ...]):
    assert values.device(text) == found


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cuda:0,cpu", "cuda:-1", "auto,cuda", "cuda:100"])
def test_other_devices_are_refused(text: str):
    with pytest.raises(ArgumentTypeError, match="cuda:0,cuda:1"):
        values.device(text)


def test_fractions_are_thousandths():
    assert [values.parts(text) for text in ("1", "0.25", ".5", "0.333", "1.0")] == [1000, 250, 500, 333, 1000]
    for text in ("0", "1.1", "0.0001", "-1", "25%", "0.000"):
        with pytest.raises(ArgumentTypeError, match="fraction"):
            values.parts(text)


def test_files_of_a_device_are_let_into_the_sandbox_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "device_files", lambda: ["/dev/nvidia0", "/dev/nvidiactl"])
    plain = WorkerPool(LIMITS, lambda number, sock: None, 0)._sandbox.arguments()  # type: ignore[arg-type,return-value,type-var]
    assert "/dev/nvidia0" not in plain
    assert "/sys/bus/pci" not in plain
    for pool in (
        WorkerPool(LIMITS, lambda number, sock: None, 0, wish=Wish(("auto",))),  # type: ignore[arg-type,return-value,type-var]
        WorkerPool(limited(LIMITS, Granted(TWO[0], 500)), lambda number, sock: None, 0),  # type: ignore[arg-type,return-value,type-var]
    ):
        command = pool._sandbox.arguments()
        at = command.index("/dev/nvidia0")
        assert command[at - 1 : at + 2] == ["--dev-bind-try", "/dev/nvidia0", "/dev/nvidia0"]
        assert command.index("--dev") < at < command.index("--remount-ro")


def test_this_machines_devices_are_found_or_it_is_said_why_there_are_none():
    found = look()
    assert bool(found.devices) == torch.cuda.is_available()
    assert bool(found.why_none) != bool(found.devices)


def test_no_operation_makes_a_tensor_but_from_tensors_whose_device_it_follows():
    for name in sorted(ALLOWED & _table().keys()):
        assert kernel(name).tensors, name
    values_: dict[int, Any] = {1: torch.zeros(2, device="meta")}
    boxes = {1: Box()}
    for number, (name, form, given_) in enumerate(
        [
            ("aten.new_full.default", ["r", "d", "d"], [1, [3], 1.0]),
            ("aten.new_empty_strided.default", ["r", "d", "d"], [1, [3], [1]]),
            ("aten.rand_like.default", ["r"], [1]),
        ]
    ):
        Template(name, form, [], torch.device("meta")).run(values_, boxes, [0, number + 2, *given_])
        assert values_[number + 2].device.type == "meta", name


def test_a_full_device_and_a_broken_one_are_told_apart():
    assert is_full(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert is_full(MemoryError())
    assert not is_lost(torch.OutOfMemoryError("CUDA error: out of memory"))
    assert is_lost(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_lost(RuntimeError("shapes do not fit"))
