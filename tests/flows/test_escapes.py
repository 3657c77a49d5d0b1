"""Code that already runs inside a Worker tries to get out, at its neighbours, or at more than its share.

The fork server is the product's own, in its own sandbox and limits; only that its Workers run what the test sends
them. Each attempt has to be refused, and the neighbour has to be as it was.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grid_jupyter.errors import NodeUnavailableError
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.channel import Channel
from grid_jupyter.worker.confinement import FILES, program
from grid_jupyter.worker.pool import WorkerPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux's")

MEMORY = 256 << 20
SECRET = "hunter2-of-the-owner"
PATIENCE_S = 60.0
LIMITS = WorkerLimits(memory_bytes=MEMORY, operation_s=30.0, threads=1)

TAKEN_OVER = """
import ctypes, errno, fcntl, json, os, resource, signal, socket, subprocess, sys, threading
import grid_jupyter.worker.forkserver as forkserver
from grid_jupyter.worker.channel import Channel

libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    found = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(one) for one in arguments])
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found

def serve(sock, limits):
    channel = Channel(sock)
    names = dict(globals())
    while True:
        try:
            frame, _ = channel.receive()
        except EOFError:
            return
        names["result"] = "done"
        try:
            exec(bytes(frame).decode(), names)
        except BaseException as error:
            names["result"] = f"{type(error).__name__}: {error}"
        channel.send(json.dumps(names["result"], default=repr).encode())

forkserver.serve = serve
forkserver.main(int(sys.argv[1]))
"""


class Hostile:
    """A Worker that runs what it is sent."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._sock = sock
        self._channel = Channel(sock)

    def end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    async def close(self) -> None:
        self.end("closed")
        self._channel.close()

    def run(self, code: str) -> Any:
        """Run it there; what `result` is then, or the error."""
        self._sock.settimeout(PATIENCE_S)
        self._channel.send(code.encode())
        frame, _ = self._channel.receive()
        return json.loads(bytes(frame))


class Prison:
    """The pool, in a thread with an event loop, and two Workers of it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.pool = WorkerPool(LIMITS, Hostile, 0, program=("-c", TAKEN_OVER))
        self.isolation = self.wait(self.pool.probe())

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def end(self) -> None:
        self.wait(self.pool.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def prison() -> Iterator[Prison]:
    os.environ["A_SECRET_OF_THE_OWNER"] = SECRET
    made = Prison()
    try:
        if not made.isolation.startswith("sandboxed"):
            pytest.skip(made.isolation)
        yield made
    finally:
        made.end()
        del os.environ["A_SECRET_OF_THE_OWNER"]


@pytest.fixture(scope="module")
def hostile(prison: Prison) -> Hostile:
    """Where hostile code runs."""
    made: Hostile = prison.wait(prison.pool.start())
    assert made.run("result = 1 + 1") == 2
    return made


@pytest.fixture(scope="module")
def neighbour(prison: Prison) -> Hostile:
    """Another session's Worker, beside it."""
    made: Hostile = prison.wait(prison.pool.start())
    made.run("treasure = bytearray(b'another session')")
    return made


@pytest.fixture(autouse=True)
def unharmed(neighbour: Hostile) -> Iterator[None]:
    yield
    assert neighbour.run("result = treasure.decode()") == "another session"


REFUSED = ("PermissionError", "OSError", "FileNotFoundError", "ProcessLookupError", "RuntimeError", "MemoryError")


def refused(said: Any) -> bool:
    return isinstance(said, str) and said.startswith(REFUSED)


# ------------------------------------------------------------------ out of the sandbox


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', {port}), 2)",
        "socket.create_connection(('1.1.1.1', 80), 2)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('::1', {port}))",
        "socket.socket(socket.AF_UNIX).connect('{path}')",
        "socket.socket(socket.AF_UNIX).connect(chr(0) + '{abstract}')",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "socket.socket(40)",  # AF_VSOCK
        "socket.socketpair()",
        "socket.socket(socket.AF_INET).bind(('127.0.0.1', 0))",
        "call(425, 8, 0)",  # io_uring_setup: a way around calls that are refused
    ],
)
def test_there_is_no_network_of_any_kind(hostile: Hostile, attempt: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("s") / "owner.sock"
    abstract = f"grid-escape-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as unnamed:
        tcp.bind(("127.0.0.1", 0))
        named.bind(str(path))
        unnamed.bind(f"\0{abstract}")
        for listening in (tcp, named, unnamed):
            listening.listen()
        said = hostile.run(attempt.format(port=tcp.getsockname()[1], path=path, abstract=abstract))
    assert refused(said), said


@pytest.mark.parametrize(
    "attempt",
    [
        "open('{secret}').read()", "os.listdir('{folder}')", "open('/etc/passwd').read()", "open('/etc/shadow').read()",
        "os.listdir('/home')", "os.listdir('/root/.ssh')", "os.listdir('/run')", "os.listdir('/var')",
        "open('/proc/1/root{secret}').read()", "open('/proc/1/mem', 'rb').read(1)", "os.listdir('/sys/fs/cgroup')",
        "open('/dev/mem', 'rb')", "open('/dev/kmsg', 'rb')", "open('/dev/vda', 'rb')", "open('/dev/kvm', 'rb')",
        "open('/proc/kcore', 'rb').read(10)", "open('/proc/self/mem', 'rb').read(1)",
    ],
)  # fmt: skip
def test_nothing_of_the_nodes_machine_can_be_read(hostile: Hostile, attempt: str, tmp_path: Path):
    secret = tmp_path / "grid.db"
    secret.write_text(SECRET)
    assert refused(hostile.run(f"result = {attempt.format(secret=secret, folder=tmp_path)}"))


def test_no_secret_of_the_nodes_surroundings_is_there(hostile: Hostile):
    said = hostile.run("result = [dict(os.environ), open('/proc/cmdline').read()]")
    assert SECRET not in json.dumps(said)
    assert set(said[0]) <= {"LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "HOME", "PYTHONPATH", "PWD"}
    for number in hostile.run("result = [one for one in os.listdir('/proc') if one.isdigit()]"):
        assert SECRET not in str(hostile.run(f"result = open('/proc/{number}/environ').read()"))


@pytest.mark.parametrize(
    "where",
    ["/x", "/usr/x", "/dev/x", "/dev/shm/x",  # noqa: S108
     "/etc/x", "/sys/x", "/proc/sys/kernel/core_pattern", "{package}/x.py",
     "{package}/worker/session.py", "{prefix}/x.pth", "/proc/sysrq-trigger"],
)  # fmt: skip
def test_the_system_cannot_be_written_to(hostile: Hostile, where: str):
    """Opening is enough: what succeeds here would change the machine that the tests run on."""
    import grid_jupyter

    path = where.format(package=Path(grid_jupyter.__file__).parent, prefix=sys.prefix)
    assert refused(hostile.run(f"os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)"))


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()", "os.posix_spawn('/bin/true', ['true'], {})", "subprocess.run(['/bin/true'])",
        "os.execv('/bin/true', ['true'])", "os.execve(sys.executable, ['python'], {})", "call(56, 17, 0, 0, 0, 0)",
        "call(58)", "call(435, 0, 0)",
    ],
)  # fmt: skip
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
def test_no_other_program_or_process_is_started(hostile: Hostile, attempt: str):
    assert refused(hostile.run(attempt))


@pytest.mark.parametrize(
    "attempt",
    [
        "call(272, 0x10000000)",  # unshare: a user namespace
        "call(272, 0x00020000)",  # a mount namespace
        "call(56, 0x10000011, 0, 0, 0, 0)",  # clone into a user namespace
        "call(308, os.open('/proc/1/ns/user', os.O_RDONLY), 0)",  # setns
        "call(165, 0, 0, 0, 0, 0)",  # mount
        "call(166, 0, 0)",  # umount
        "call(430, 0, 0)",  # fsopen
        "call(428, -100, 0, 0)",  # open_tree
        "os.chroot('/tmp')", "os.mknod('/tmp/x', 0o60600, os.makedev(254, 0))", "os.setuid(1)", "os.setgid(1)",
        "os.setgroups([0])", "call(126, 0, 0)", "call(321, 0, 0, 0)", "call(298, 0, 0, -1, -1, 0)",
        "call(250, 0, 0)", "call(323, 0)", "call(304, 0, 0, 0)", "call(135, 0x0040000)", "call(169, 0, 0, 0, 0)",
        "os.sethostname('x') if hasattr(os, 'sethostname') else socket.sethostname('x')",
    ],
)  # fmt: skip
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
def test_namespaces_mounts_users_and_kernel_doors_stay_shut(hostile: Hostile, attempt: str):
    assert refused(hostile.run(attempt))


def test_no_capability_and_no_way_to_one_is_left(hostile: Hostile):
    status = hostile.run("result = open('/proc/self/status').read()").splitlines()
    told = {line.split(":")[0]: line.split()[-1] for line in status if line.split()}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(told[name], 16) == 0, name
    assert told["NoNewPrivs"] == "1"
    if program(platform.machine(), 1):
        assert told["Seccomp"] == "2"


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_nothing_is_typed_into_a_terminal(hostile: Hostile, descriptor: int):
    assert refused(hostile.run(f"fcntl.ioctl({descriptor}, 0x5412, b'x')"))
    assert refused(hostile.run("os.open('/dev/tty', os.O_RDWR)"))


# ------------------------------------------------------------------ at the neighbours


AT_NEIGHBOURS = (
    "os.kill({pid}, 9)", "os.kill({pid}, 0)", "os.kill(1, 9)", "os.kill(2, 9)", "os.kill(-1, 9)", "os.kill(0, 9)",
    "signal.pidfd_send_signal(os.pidfd_open({pid}), 9)", "call(234, {pid}, {pid}, 9)", "call(200, {pid}, 9)",
    "call(129, {pid}, 9, 0)", "call(297, {pid}, {pid}, 9, 0)",
    "call(101, 16, {pid}, 0, 0)", "call(101, 0x4206, {pid}, 0, 0)",  # ptrace: attach, seize
    "call(310, {pid}, 0, 0, 0, 0, 0)", "call(311, {pid}, 0, 0, 0, 0, 0)", "call(312, {pid}, {pid}, 0, 0, 0)",
    "open('/proc/{pid}/mem', 'rb').read(1)", "open('/proc/2/mem', 'r+b').write(b'x')",
    "open('/proc/{pid}/maps').read(1) or 1 / 0", "open('/proc/{pid}/environ').read()",
    "os.readlink('/proc/{pid}/fd/0')", "os.open('/proc/{pid}/fd/3', os.O_RDWR)",
    "os.listdir('/proc/{pid}/root/tmp')",
    "resource.prlimit({pid}, resource.RLIMIT_AS, (1, 1))", "os.sched_setaffinity({pid}, {{0}})",
    "os.setpriority(os.PRIO_PROCESS, {pid}, 19)", "os.sched_setscheduler({pid}, os.SCHED_IDLE, os.sched_param(0))",
    "os.write(os.open('/proc/{pid}/oom_score_adj', os.O_WRONLY), b'1000')", "call(279, {pid}, 0, 0, 0, 0, 0)",
)  # fmt: skip
"""Attempts at the process of another Worker."""


@pytest.mark.parametrize("attempt", AT_NEIGHBOURS)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
def test_no_other_worker_nor_the_fork_server_is_read_signalled_or_changed(
    hostile: Hostile, neighbour: Hostile, attempt: str
):
    pid = neighbour.run("result = os.getpid()")
    said = hostile.run(attempt.format(pid=pid))
    assert refused(said) or said.startswith("ZeroDivisionError"), said


def test_no_queue_or_memory_is_shared_with_a_neighbour(hostile: Hostile):
    for attempt in ("call(29, 77, 4096, 0o1666)", "call(64, 77, 1, 0o1666)", "call(68, 77, 0o1666)"):
        assert platform.machine() != "x86_64" or refused(hostile.run(attempt)), attempt


def test_a_worker_has_no_descriptor_but_its_own(prison: Prison):
    code = """
result = {}
for one in os.listdir('/proc/self/fd'):
    try:
        result[one] = os.readlink(f'/proc/self/fd/{one}')
    except FileNotFoundError:
        pass
"""
    fresh = prison.wait(prison.pool.start())
    opened = fresh.run(code)
    prison.wait(prison.pool.kill(fresh))
    assert {opened.pop("0"), opened.pop("1")} == {"/dev/null"}
    assert opened.pop("2").startswith("pipe:")
    assert [where for where in opened.values() if not where.startswith("/proc/")] == [
        next(where for where in opened.values() if where.startswith("socket:"))
    ], "its channel alone"


# ------------------------------------------------------------------ more than its share


def test_memory_files_threads_and_descriptors_end_somewhere(hostile: Hostile):
    assert "MemoryError" in hostile.run(f"held = bytearray({MEMORY + (64 << 20)})")
    large = f"one = os.memfd_create('x'); os.ftruncate(one, {2 * MEMORY})"
    assert refused(hostile.run(large))
    assert hostile.run("os.close(one)") == "done"
    threads = """
gate, started = threading.Event(), []
try:
    while len(started) < 5000:
        started.append(threading.Thread(target=gate.wait)); started[-1].start()
    result = 'no end'
finally:
    gate.set()
    for one in started[:-1]: one.join()
"""
    assert refused(hostile.run(threads))
    files = f"""
kept = []
try:
    while len(kept) < {2 * FILES}: kept.append(os.open('/dev/null', os.O_RDONLY))
    result = 'no end'
finally:
    for one in kept: os.close(one)
"""
    assert refused(hostile.run(files))


def test_the_temporary_folder_is_there_and_small(hostile: Hostile):
    code = """
written = 0
try:
    with open('/tmp/fill', 'wb') as file:
        while written < 1 << 30: written += file.write(bytes(1 << 20)); file.flush()
except OSError as error:
    result = [errno.errorcode[error.errno], written]
finally:
    os.unlink('/tmp/fill')
"""
    said, written = hostile.run(code)
    assert said == "ENOSPC"
    assert written <= 64 << 20
    assert hostile.run("import torch._dynamo, tempfile; result = tempfile.gettempdir()") == "/tmp"  # noqa: S108


def test_an_operation_takes_the_threads_that_its_owner_allows(hostile: Hostile):
    code = """
import torch
before = len(os.listdir('/proc/self/task'))
(torch.ones(700, 700) @ torch.ones(700, 700)).sum().item()
result = [torch.get_num_threads(), len(os.listdir('/proc/self/task')) - before]
"""
    assert hostile.run(code) == [LIMITS.threads, 0]


def test_limits_cannot_be_raised_again(hostile: Hostile):
    for name in ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_DATA"):
        attempt = f"resource.setrlimit(resource.{name}, (1 << 40, 1 << 40))"
        assert hostile.run(attempt).startswith(("ValueError", "PermissionError")), name
    assert hostile.run("result = [libc.prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)]") == [0, [0, 0]]


def test_what_a_worker_says_is_limited_and_harmless(prison: Prison, hostile: Hostile, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="grid_jupyter"):
        hostile.run("for _ in range(200): os.write(2, b'\\x1b[2Jx\\n' * 500)")
    said = [record.getMessage() for record in caplog.records if "a Worker says" in record.getMessage()]
    assert said
    assert "\x1b" not in "".join(said)
    assert sum(len(one.partition(": ")[2]) for one in said) < 4 * (64 << 10)


# ------------------------------------------------------------------ where there is no sandbox


def test_an_owner_who_requires_isolation_has_nothing_run_without_it(monkeypatch: pytest.MonkeyPatch):
    async def work() -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        pool = WorkerPool(LIMITS, Hostile, 0, require_isolation=True)
        assert (await pool.probe()).startswith("reduced")
        with pytest.raises(NodeUnavailableError, match=r"requires a sandbox.*install bubblewrap"):
            await pool.start()
        await pool.stop()

    asyncio.run(work())


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_a_program_that_ends_and_stays_in_its_bounds(machine: str):
    made = program(machine, 1234)
    steps = [made[at : at + 8] for at in range(0, len(made), 8)]
    assert 0 < len(steps) < 4096
    for number, step in enumerate(steps):
        code = int.from_bytes(step[:2], sys.byteorder)
        if code & 7 == 5:
            assert number + 1 + max(step[2], step[3]) < len(steps)
    assert int.from_bytes(steps[-1][:2], sys.byteorder) == 6
    assert program("riscv64", 1) == b""
