"""Nodes of one user that share a fork server: each commands its own Workers alone, and goes on when a part dies.

The processes are the product's own; only that they load no torch, which takes seconds, and that Workers run what the
test sends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_escapes import AT_NEIGHBOURS, LIMITS, PATIENCE_S, TAKEN_OVER, Hostile, refused

from grid_jupyter.errors import NodeUnavailableError
from grid_jupyter.wire import frames
from grid_jupyter.wire import worker as wire
from grid_jupyter.worker.lending import Lender
from grid_jupyter.worker.pool import WorkerPool

NOBODY = 65534
QUICK = """
import sys, types
import grid_jupyter.worker.folds
sys.modules["grid_jupyter.worker.session"] = grid_jupyter.worker.folds
sys.modules["torch._dynamo"] = types.ModuleType("torch._dynamo")
"""
SHARED = QUICK + TAKEN_OVER.replace("forkserver as forkserver", "shared_forkserver as forkserver")
OLDER = SHARED.replace("forkserver.serve = serve", "forkserver.serve = serve\nforkserver.__version__ = '0.0.1'")
ALONE = QUICK + TAKEN_OVER
"""What Nodes run that have a fork server of their own."""


FULL = """
import errno, os, signal
really, full = os.fork, []

def fork():
    if full:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return really()

os.fork = fork
signal.signal(signal.SIGUSR1, lambda number, frame: full.clear() if full else full.append(True))
"""
"""A machine that has no room for another process from one SIGUSR1 on, until the next one."""


class Nodes:
    """A Lender, and pools as Nodes have them, in a thread with an event loop."""

    def __init__(self, place: Path, program: str = SHARED) -> None:
        self.place = place
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.pools: list[WorkerPool[Hostile]] = []
        self.workers: list[Hostile] = []
        self.lender = Lender(place, program=("-c", program))
        self.wait(self._started())

    async def _started(self) -> None:
        self.lender.start()

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def node(self, **options: Any) -> WorkerPool[Hostile]:
        pool = WorkerPool(LIMITS, Hostile, 0, program=("-c", ALONE), shared=self.place, **options)
        self.pools.append(pool)
        return pool

    def worker(self, node: WorkerPool[Hostile]) -> Hostile:
        self.workers.append(self.wait(node.start()))
        return self.workers[-1]

    def end(self) -> None:
        for pool in self.pools:
            self.wait(pool.stop())
        for worker in self.workers:  # also those that were lost
            self.wait(worker.close())
        self.wait(self.lender.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    (tmp_path / "shared").mkdir(mode=0o700)
    made = Nodes(tmp_path / "shared" / "workers.sock")
    yield made
    made.end()
    assert not family(), "nothing is left"


OTHERS: set[psutil.Process] = set()
"""What other tests of this process have running."""


@pytest.fixture(autouse=True)
def _others() -> None:
    OTHERS.clear()
    OTHERS.update(psutil.Process().children())


def family() -> list[psutil.Process]:
    """Fork servers and Workers, without what waits in front of them in a sandbox; parents before their children."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        if child not in OTHERS:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child, *child.children(recursive=True)]
    return [one for one in found if runs(one, but="bwrap")]


def below(process: psutil.Process) -> list[psutil.Process]:
    return [one for one in process.children() if runs(one)]


def runs(process: psutil.Process, but: str = "\0") -> bool:
    """Whether it is there, and is none of that name."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE) and not process.name().startswith(but)
    except psutil.NoSuchProcess:  # it went since it was listed
        return False


def the_shared_one() -> psutil.Process:
    return family()[0]


def until(condition: Callable[[], Any]) -> Any:
    latest = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < latest, "this did not happen in time"
        time.sleep(0.01)
    return found


def lives(worker: Hostile) -> bool:
    return bool(worker.run("result = 1 + 1") == 2)


def has_a_worker(nodes: Nodes, node: WorkerPool[Hostile]) -> bool:
    """Whether a Node gets one that lives: who asks in the moment of a death may get one that dies, too."""
    try:
        return lives(nodes.worker(node))
    except (EOFError, ConnectionError, NodeUnavailableError):
        return False


def test_each_node_has_a_fork_of_one_process_and_the_end_of_a_node_is_the_end_of_its_workers_alone(nodes: Nodes):
    bob, alice = nodes.node(), nodes.node()
    workers = [nodes.worker(bob), nodes.worker(bob), nodes.worker(alice)]
    assert all(map(lives, workers))
    shared = the_shared_one()
    assert [len(below(one)) for one in below(shared)] == [2, 1]
    assert len(family()) == 6
    nodes.wait(bob.stop())
    until(lambda: [len(below(one)) for one in below(shared)] == [1])
    assert lives(workers[2])
    assert lives(nodes.worker(bob)), "and it may come back"


def test_a_node_that_ends_a_worker_ends_none_of_the_others_node_with_the_same_number(nodes: Nodes):
    bob, alice = nodes.node(), nodes.node()
    mine, theirs = nodes.worker(bob), nodes.worker(alice)
    assert mine.number == theirs.number
    nodes.wait(bob.kill(mine))
    until(lambda: [len(below(one)) for one in below(the_shared_one())] == [0, 1])
    assert lives(theirs)
    kill = frames.encode(wire.Kill(worker=theirs.number))
    nodes.loop.call_soon_threadsafe(bob._control.send, kill)
    assert lives(nodes.worker(bob)), "what was sent before has been heard"
    assert lives(theirs)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
def test_code_in_a_worker_reaches_neither_the_other_nodes_workers_nor_its_fork_server_nor_the_shared_one(nodes: Nodes):
    bob, alice = nodes.node(), nodes.node()
    hostile, theirs = nodes.worker(bob), nodes.worker(alice)
    if not bob.isolation.startswith("sandboxed"):
        pytest.skip(bob.isolation)
    worker, server = theirs.run("treasure = 'mine'; result = [os.getpid(), os.getppid()]")
    above = "open('/proc/{}/status').read().split('PPid:')[1].split()[0]"
    shared = int(hostile.run(f"result = {above.format(server)}"))
    own = hostile.run("result = os.getppid()")
    assert hostile.run(f"result = {above.format(own)}") == str(shared), "they come from one process"
    for pid in (worker, server, shared, own):
        for attempt in AT_NEIGHBOURS:
            said = hostile.run(attempt.format(pid=pid))
            assert refused(said) or str(said).startswith("ZeroDivisionError"), (attempt, said)
    opened = hostile.run("result = [os.readlink(f'/proc/self/fd/{one}') for one in range(3, 9) if os.path.exists("
                         "f'/proc/self/fd/{one}')]")  # fmt: skip
    assert len([one for one in opened if one.startswith("socket:")]) == 1, "its channel alone"
    assert theirs.run("result = treasure") == "mine"


def test_when_the_fork_server_of_one_node_dies_its_workers_die_with_it_and_the_others_go_on(nodes: Nodes):
    bob, alice = nodes.node(), nodes.node()
    mine, theirs = nodes.worker(bob), nodes.worker(alice)
    of_bob, of_alice = below(the_shared_one())
    [worker] = below(of_bob)
    of_bob.kill()
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    until(mine.lost.done)
    assert "fork server ended" in mine.lost.result()
    assert lives(theirs)
    assert not theirs.lost.done()
    assert lives(nodes.worker(bob))
    assert of_alice in below(the_shared_one())


def test_when_the_shared_one_dies_another_takes_its_place_and_both_nodes_go_on(nodes: Nodes):
    bob, alice = nodes.node(), nodes.node()
    for node in (bob, alice):
        assert lives(nodes.worker(node))
    dead = the_shared_one()
    dead.kill()
    if bob.isolation.startswith("sandboxed"):  # all of its sandbox ends
        until(lambda: not family())
    for node in (bob, alice):
        until(lambda node=node: has_a_worker(nodes, node))
    if bob.isolation.startswith("sandboxed"):
        assert the_shared_one() != dead
        assert len(below(the_shared_one())) == 2


def test_where_no_process_is_to_be_had_one_request_fails_and_all_who_have_theirs_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    nodes = Nodes(tmp_path / "workers.sock", FULL + SHARED)
    try:
        bob, alice = nodes.node(), nodes.node()
        mine, shared = nodes.worker(bob), the_shared_one()
        [of_bob] = below(shared)
        shared.send_signal(signal.SIGUSR1)
        assert lives(nodes.worker(alice))
        assert "this Node has one of its own" in caplog.text
        assert below(shared) == [of_bob]
        of_bob.send_signal(signal.SIGUSR1)
        refused = nodes.worker(bob)
        until(refused.lost.done)
        assert "has no room for another process, so its Worker never began; try again" in refused.lost.result()
        until(lambda: "a Worker says: no process can be made: Resource temporarily unavailable" in caplog.text)
        for one in (shared, of_bob):
            one.send_signal(signal.SIGUSR1)
        assert lives(mine)
        assert lives(nodes.worker(bob))
        assert lives(nodes.worker(nodes.node()))
        assert len(below(shared)) == 2
    finally:
        nodes.end()


def test_what_a_worker_says_is_in_the_log_of_its_own_node(nodes: Nodes, caplog: pytest.LogCaptureFixture):
    bob, alice = nodes.node(), nodes.node()
    nodes.worker(alice)
    nodes.worker(bob).run("print('of bob', file=sys.stderr, flush=True)")
    until(lambda: "a Worker says: of bob" in caplog.text)
    nodes.wait(alice.stop())
    assert nodes.worker(bob).run("print('still', file=sys.stderr, flush=True)") == "done"
    until(lambda: "a Worker says: still" in caplog.text)


def test_whoever_is_cancelled_while_it_asks_leaves_nothing_open(nodes: Nodes):
    node = nodes.node()
    asking = asyncio.run_coroutine_threadsafe(node.start(), nodes.loop)
    until(family)  # the shared one is loading by now
    asking.cancel()
    assert lives(nodes.worker(node))
    before = descriptors()
    for _ in range(3):
        nodes.wait(node.stop())
        assert lives(nodes.worker(node))
    assert descriptors() == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# ------------------------------------------------------------------ where none is shared


@pytest.mark.parametrize("there", ["nothing", "a socket that nobody listens at"])
def test_where_nobody_lends_a_node_has_its_own_and_says_so(nodes: Nodes, there: str, caplog: pytest.LogCaptureFixture):
    nodes.wait(nodes.lender.stop())
    if there != "nothing":
        nodes.place.parent.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(nodes.place))
    assert lives(nodes.worker(nodes.node()))
    assert "this Node has one of its own" in caplog.text
    assert len(family()) == 2


def test_one_of_another_release_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    nodes = Nodes(tmp_path / "workers.sock", OLDER)
    try:
        assert lives(nodes.worker(nodes.node()))
        assert "it is of grid_jupyter 0.0.1" in caplog.text
    finally:
        nodes.end()


def test_a_node_never_has_less_of_a_sandbox_than_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tools = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    nodes = Nodes(tmp_path / "workers.sock")  # looks for bubblewrap there
    try:
        monkeypatch.setenv("PATH", tools)
        sandboxed = nodes.node()
        if not nodes.wait(sandboxed.probe()).startswith("sandboxed"):
            pytest.skip(sandboxed.isolation)
        assert lives(nodes.worker(sandboxed))
        assert sandboxed.isolation.startswith("sandboxed")
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
        without = nodes.node()
        assert lives(nodes.worker(without))
        assert without.isolation.startswith("reduced")
        assert any(len(below(one)) == 1 and below(one)[0] in family() for one in family())
    finally:
        nodes.end()


def test_a_node_whose_owner_requires_a_sandbox_borrows_nothing_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no bubblewrap is there
    nodes = Nodes(tmp_path / "workers.sock")
    try:
        with pytest.raises(NodeUnavailableError, match="requires a sandbox"):
            nodes.worker(nodes.node(require_isolation=True))
    finally:
        nodes.end()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become somebody else")
def test_another_user_gets_no_worker_and_is_asked_for_none(caplog: pytest.LogCaptureFixture):
    """With the directory and the socket open to all: what is left is the kernel's word on who is there."""
    folder = Path(tempfile.mkdtemp(prefix="grid-shared-"))
    nodes = Nodes(folder / "workers.sock")
    try:
        folder.chmod(0o777)
        nodes.place.chmod(0o666)
        asked = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1))"
        assert as_nobody(asked, nodes.place).communicate(timeout=PATIENCE_S)[0] == b"b''\n"
        assert f"user {NOBODY} was refused" in caplog.text
        assert not family()

        theirs = folder / "theirs.sock"
        listening = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); s.accept()"
        listening += "; print(flush=True); input()"
        squatting = as_nobody(listening, theirs)
        until(theirs.exists)
        nodes.place = theirs
        assert lives(nodes.worker(nodes.node()))
        assert f"{theirs} is another user's" in caplog.text
        squatting.communicate(b"\n", timeout=PATIENCE_S)
    finally:
        nodes.end()
        shutil.rmtree(folder, ignore_errors=True)  # a socket that is given up takes its empty folder along


def as_nobody(code: str, place: Path) -> subprocess.Popen[bytes]:
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    return subprocess.Popen([*become, python, "-c", code, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
