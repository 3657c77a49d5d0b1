"""A process that is kept running, tried with one that keeps the contract of a Node and nothing more."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from jupyter_process import DEADLINE_S, FAKE_NODE

from grid_jupyter.errors import Conflict, NodeUnavailableError, NotFound
from grid_jupyter.server.owner_client import OwnerClient
from grid_jupyter.server.running import read_running
from grid_jupyter.server.supervisor import ChildProcess, Patience

QUICK = Patience(start_s=20.0, first_delay_s=0.05, longest_delay_s=0.2, attempts=3, handover_s=0.5)


def command(state_dir: Path) -> list[str]:
    options = ["--name", "Bob", "--host", "127.0.0.1", "--port", "0", "--state", str(state_dir), "--supervised"]
    return [*FAKE_NODE, *options]


def behaving(behaviour: str) -> dict[str, str]:
    return {**os.environ, "FAKE_NODE": behaviour}


async def eventually(look: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not look():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S:.0f} s"
        await asyncio.sleep(0.02)


async def started(child: ChildProcess, behaviour: str = "") -> int:
    """Start it and wait until it runs: its pid."""
    await child.start(command(child.state_dir), behaving(behaviour))
    return (await child.ready(DEADLINE_S)).pid


def test_delays_double_and_stop_growing():
    assert [Patience().delay_s(n) for n in (1, 2, 3, 7, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]


async def test_a_process_runs_until_it_is_stopped(tmp_path):
    child = ChildProcess(tmp_path)
    pid = await started(child)
    assert (child.state, child.detail, child.attached) == ("running", "", False)
    await child.stop()
    assert child.state == "stopped"
    assert not psutil.pid_exists(pid)
    with pytest.raises(NotFound):
        read_running(tmp_path, "node")


async def test_a_killed_process_is_replaced_by_a_new_one(tmp_path):
    child = ChildProcess(tmp_path, patience=QUICK)
    pid = await started(child)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: child.running is not None and child.running.pid != pid, "the restart")
    assert child.restarts == 1
    await child.stop()


async def test_without_restart_a_killed_process_stays_dead_and_the_state_says_why(tmp_path):
    child = ChildProcess(tmp_path, restart=False)
    os.kill(await started(child), signal.SIGKILL)
    await eventually(lambda: child.state == "failed", "the end")
    assert "SIGKILL" in child.detail
    await child.stop()


async def test_a_process_that_never_becomes_ready_is_given_up_with_its_last_words(tmp_path):
    lines: list[str] = []
    child = ChildProcess(tmp_path, patience=QUICK, on_line=lines.append)
    await child.start(command(tmp_path), behaving("fails"))
    with pytest.raises(NodeUnavailableError, match=r"Gave up after 3 attempts.*exit code 1.*the database is damaged"):
        await child.ready(DEADLINE_S)
    assert lines.count("the database is damaged; restore it from a copy") == 3
    await child.stop()


async def test_a_command_that_does_not_exist_is_given_up(tmp_path):
    child = ChildProcess(tmp_path, patience=QUICK)
    await child.start([str(tmp_path / "missing")])
    with pytest.raises(NodeUnavailableError, match="cannot be started"):
        await child.ready(DEADLINE_S)
    await child.stop()


async def test_a_process_that_says_nothing_in_time_is_ended(tmp_path):
    child = ChildProcess(tmp_path, patience=Patience(start_s=1.0, attempts=1))
    await child.start(command(tmp_path), behaving("silent"))
    with pytest.raises(NodeUnavailableError, match="not ready after 1 s"):
        await child.ready(DEADLINE_S)
    await child.stop()


async def test_waiting_for_a_process_has_an_end(tmp_path):
    child = ChildProcess(tmp_path)
    await child.start(command(tmp_path), behaving("silent"))
    with pytest.raises(NodeUnavailableError, match="still starting"):
        await child.ready(0.2)
    await child.stop()


async def test_a_process_that_will_not_end_is_killed_after_the_grace_time(tmp_path):
    child = ChildProcess(tmp_path)
    pid = await started(child, "stubborn")
    began = time.monotonic()
    await child.stop(grace_s=0.3)
    assert not psutil.pid_exists(pid)
    assert time.monotonic() - began >= 0.3


async def test_a_program_that_ends_without_stopping_leaves_nothing(tmp_path):
    child = ChildProcess(tmp_path)
    pid = await started(child, "stubborn")
    child.end_now(grace_s=0.1)
    assert not psutil.pid_exists(pid)
    await child.stop()


async def test_starting_twice_is_refused(tmp_path):
    child = ChildProcess(tmp_path)
    await started(child)
    with pytest.raises(Conflict):
        await child.start(command(tmp_path))
    await child.stop()


async def test_a_process_of_another_program_is_followed_and_left_alone(tmp_path):
    other, child = ChildProcess(tmp_path), ChildProcess(tmp_path)
    pid = await started(other)
    assert await started(child) == pid
    assert child.attached
    assert str(pid) in child.detail
    await child.stop()
    assert psutil.pid_exists(pid)
    await other.stop()


async def test_when_the_other_program_is_gone_a_process_is_started_here(tmp_path):
    other, child = ChildProcess(tmp_path), ChildProcess(tmp_path, patience=QUICK)
    pid = await started(other)
    await started(child)
    await other.stop()
    await eventually(lambda: child.running is not None and not child.attached, "the takeover")
    assert child.running is not None
    assert child.running.pid != pid
    await child.stop()


async def test_when_the_other_program_restarts_its_process_it_is_followed_again(tmp_path):
    patience = Patience(handover_s=DEADLINE_S)
    other, child = ChildProcess(tmp_path, patience=QUICK), ChildProcess(tmp_path, patience=patience)
    pid = await started(other)
    await started(child)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: child.running is not None and child.running.pid != pid, "the other's restart")
    assert child.attached
    await child.stop()
    await other.stop()


async def test_the_owner_asks_over_the_socket(tmp_path):
    child = ChildProcess(tmp_path)
    await started(child)
    assert child.running is not None
    owner = OwnerClient(child.running.socket)
    assert (await owner.status())["name"] == "Bob"
    assert await owner.token("Bob") == "gjt1_a_b"
    assert await owner.revoke("Bob") == 3
    with pytest.raises(NotFound, match="no account named 'Nobody'"):
        await owner.token("Nobody")
    await child.stop()
    with pytest.raises(NodeUnavailableError, match="is it running"):
        await owner.status()


async def test_long_and_unended_lines_are_cut_and_passed_on(tmp_path):
    lines: list[str] = []
    child = ChildProcess(tmp_path, patience=QUICK, on_line=lines.append)
    await child.start([sys.executable, "-c", "print('a' * 1_000_000 + '\\nb', end='')"])
    with pytest.raises(NodeUnavailableError, match="exit code 0: b"):
        await child.ready(DEADLINE_S)
    assert max(map(len, lines)) <= 8 << 10
    assert "b" in lines
    await child.stop()
