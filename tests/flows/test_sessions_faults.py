"""What breaks, breaks alone: processes killed, memory and time used up, and what is left running afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import SECRETS, World
from node_world import PATIENCE_S, GridProcess, until
from raw_session import RawSession

import grid_jupyter
from grid_jupyter import NodeClient
from grid_jupyter.errors import (
    GridError,
    LimitExceededError,
    NodeUnavailableError,
    SessionLostError,
)

Connect = Callable[..., NodeClient]
OPERATION_S = 2.0
MEMORY = 400 << 20


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[GridProcess]:
    """A Node with tight limits, whose log must stay free of tracebacks."""
    made = world.start(
        "node", "Frail", "--allow-guests", "--session-memory", "400M", "--operation-time", f"{OPERATION_S:g}s",
        "--max-sessions", "5", "--spare-workers", "0", "--session-grace", "1s",
    )  # fmt: skip
    for name, role in (("Bob", "Owner"), ("Ana", "User")):
        made.user(name, role)
    yield made
    assert "Traceback" not in made.log.read_text(), made.log.read_text()


def fork_server(node: GridProcess) -> psutil.Process | None:
    """The process with torch loaded that all Workers are forked from: the first of its command line."""
    found = [process for process in node.processes() if "grid_jupyter.worker.forkserver" in _command(process)]
    return next((process for process in found if not process.name().startswith("bwrap")), None)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended just now
        return []


def workers(node: GridProcess) -> list[psutil.Process]:
    server = fork_server(node)
    return [] if server is None else server.children()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it went between the two
        return False


# ------------------------------------------------------------------ a Worker


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_when_a_worker_dies_only_its_session_is_lost_and_says_so(node: GridProcess, connect: Connect, number: int):
    first, second = connect(node), connect(node)
    until(lambda: node.status()["sessions"] == 0 and not workers(node))
    mine = first.receive(torch.ones(3))
    assert mine.get(deregister_ptr=False).tolist() == [1, 1, 1]
    [victim] = workers(node)
    others = second.receive(torch.ones(3))
    assert others.get(deregister_ptr=False).tolist() == [1, 1, 1]
    victim.send_signal(number)
    with pytest.raises(SessionLostError, match="Worker") as lost:
        until(lambda: mine.get(deregister_ptr=False) is None)
    assert "Open the data again" in str(lost.value)
    assert (others + 1).get().tolist() == [2, 2, 2]
    with pytest.raises(SessionLostError):
        (mine + 1).get()
    assert first.receive(torch.ones(2)).get().tolist() == [1, 1], "the next use makes a new session"
    with pytest.raises(SessionLostError, match="gone"):
        (mine + 1).get()


def test_published_data_is_opened_again_after_a_worker_died(node: GridProcess, connect: Connect):
    owner, client = connect(node, "Bob"), connect(node)
    made = owner.publish(SECRETS, tags=["#kept"], allowed_users="Ana")
    [records] = client.search("#kept")
    total = records.sum()
    assert total.get(user="Ana", deregister_ptr=False).unwrap().item() == pytest.approx(SECRETS.sum().item())
    for worker in workers(node):
        worker.kill()
    with pytest.raises(SessionLostError):
        until(lambda: total.get(user="Ana", deregister_ptr=False) is None)
    assert records.sum().get(user="Ana").unwrap().item() == pytest.approx(SECRETS.sum().item())
    owner.unpublish(made)


def test_when_the_fork_server_dies_the_next_session_starts_another(node: GridProcess, connect: Connect):
    client = connect(node)
    value = client.receive(torch.ones(3))
    value.get(deregister_ptr=False)
    server = fork_server(node)
    assert server is not None
    server.kill()
    with pytest.raises(SessionLostError):
        until(lambda: value.get(deregister_ptr=False) is None)
    assert client.receive(torch.ones(2)).get().tolist() == [1, 1]


# ------------------------------------------------------------------ limits of a session


def test_a_result_of_a_terabyte_is_refused_and_the_session_goes_on(node: GridProcess, connect: Connect):
    client = connect(node)
    one = client.receive(torch.ones(1))
    with pytest.raises(LimitExceededError, match="memory of 400 MB"):
        one.new_full((1 << 40,), 1.0).get()
    with pytest.raises(LimitExceededError, match="memory"):
        one.expand(1 << 20).outer(one.expand(1 << 20)).sum().get()
    assert (one + 1).get().item() == 2


def test_values_that_fill_the_memory_stop_there_and_others_have_theirs(node: GridProcess, connect: Connect):
    greedy, modest = connect(node), connect(node)
    one = greedy.receive(torch.ones(1))
    kept = []
    for number in range(40):
        kept.append(one.new_full((5 << 20,), float(number)))  # 20 MB each
        one.get(deregister_ptr=False)  # each in a frame of its own: the limit of time is for all work of a frame
    with pytest.raises(LimitExceededError, match="memory"):
        kept[-1].sum().get()
    assert kept[0].sum().get().item() == 0
    assert modest.receive(torch.ones(1)).new_full((25 << 20,), 1.0).sum().get().item() == 25 << 20
    [worker] = [process for process in workers(node) if process.memory_info().rss > 300 << 20][:1] or [None]
    assert worker is None or worker.memory_info().rss < 2 * MEMORY + (300 << 20)
    del kept
    assert one.get(deregister_ptr=False).item() == 1
    large = one.new_full((50 << 20,), 2.0)
    assert one.get(deregister_ptr=False).item() == 1
    assert large.sum().get().item() == 2 * (50 << 20), "freed values make room"


def test_what_is_left_of_the_memory_tells_nothing_of_private_values(node: GridProcess, connect: Connect):
    made = connect(node, "Bob").publish(torch.tensor([0.2, 0.8]), tags=["#bits"])
    for position in range(2):
        with RawSession(node) as raw:
            bit = raw.op("aten.select.int", ["r", "d", "d"], raw.open(made._ref.dataset), 0, position)
            large = raw.op("aten.gt.Scalar", ["r", "d"], bit, 0.5)
            count = raw.op("aten.mul.Tensor", ["r", "r"], large, raw.put(torch.tensor([30 << 20])))
            raw.op("aten.bincount.default", ["r"], count)  # would take 240 MB, or nothing, of its half
            public = raw.op("aten.new_full.default", ["r", "d", "d"], raw.put(torch.ones(1)), [40 << 20], 1.0)
            assert raw.read(raw.op("aten.sum.default", ["r"], public)).item() == 40 << 20
    connect(node, "Bob").unpublish(made)


def test_an_operation_that_runs_too_long_ends_its_session_with_the_reason(node: GridProcess, connect: Connect):
    other = connect(node)
    keep = other.receive(torch.ones(1))
    with RawSession(node) as slow:
        square = slow.op("aten.new_full.default", ["r", "d", "d"], slow.put(torch.ones(1)), [1500, 1500], 1e-3)
        slow.op("aten.mm.default", ["r", "r"], square, square, out=2)
        began = time.monotonic()
        slow.operations(*[[1, 2, 2, square]] * 5000)
        said = slow.last_words()
        assert isinstance(said, SessionLostError)
        assert "ran longer than 2 s" in str(said)
    assert time.monotonic() - began < OPERATION_S + 15.0
    assert (keep + 1).get().item() == 2


def test_an_endless_stream_of_operations_holds_up_nobody_else(node: GridProcess):
    stopping = threading.Event()

    def stream() -> None:
        with RawSession(node) as raw:
            x = raw.put(torch.ones(10))
            batch = [[0, 2, x, x]] * 2000
            raw.op("aten.add.Tensor", ["r", "r"], x, x, out=2)
            while not stopping.is_set():
                raw.operations(*batch)

    threads = [threading.Thread(target=stream) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with RawSession(node) as raw:
            x = raw.put(torch.ones(1))
            began = time.monotonic()
            for _ in range(50):
                assert raw.read(raw.op("aten.neg.default", ["r"], x)).item() == -1
            assert time.monotonic() - began < 10.0
        assert node.call("GET", "/data-centric/status")[0] == 200
        assert psutil.Process(node.pid).memory_info().rss < 200 << 20
    finally:
        stopping.set()
        for thread in threads:
            thread.join(PATIENCE_S)


def test_more_sessions_than_allowed_are_told_to_come_back(node: GridProcess):
    until(lambda: node.status()["sessions"] == 0)
    with ExitStack() as stack:
        for _ in range(5):
            raw = stack.enter_context(RawSession(node))
            raw.read(raw.put(torch.ones(1)))
        late = stack.enter_context(RawSession(node))
        late.put(torch.ones(1))
        said = late.last_words()
        assert isinstance(said, LimitExceededError)
        assert "--max-sessions" in str(said)
        assert node.status()["sessions"] == 5
    until(lambda: node.status()["sessions"] == 0)
    with RawSession(node) as raw:
        assert raw.read(raw.put(torch.ones(1))).item() == 1


def test_a_session_that_rests_too_long_is_ended_and_its_worker_with_it(small_world: World):
    node = small_world.start("node", "Brisk", "--allow-guests", "--session-idle", "1s", "--spare-workers", "0")
    with node.client() as client:
        value = client.receive(torch.ones(3))
        assert value.get(deregister_ptr=False).tolist() == [1, 1, 1]
        until(lambda: node.status()["sessions"] == 0)
        until(lambda: not workers(node))
        with pytest.raises(SessionLostError, match="idle"):
            value.get()
        assert client.receive(torch.ones(1)).get().item() == 1


# ------------------------------------------------------------------ the Node


def test_a_node_that_was_killed_comes_back_with_data_and_accounts_and_clients_reconnect(small_world: World):
    node = small_world.start("node", "Phoenix", "--allow-guests")
    for name, role in (("Bob", "Owner"), ("Ana", "User")):
        node.user(name, role)
    identity = node.running["id"]
    with node.client() as client:
        made = client.publish(SECRETS, tags=["#lasting"], allowed_users="Ana", user="Bob")
        [records] = client.search("#lasting")
        old = records.sum()
        assert old.get(user="Ana", deregister_ptr=False).unwrap().item() == pytest.approx(SECRETS.sum().item())
        family = node.processes()
        node.kill()
        until(lambda: not alive(family))
        with pytest.raises((SessionLostError, NodeUnavailableError)):
            old.get(user="Ana")
        node.start()
        assert node.running["id"] == identity
        assert node.status()["datasets"] == 1
        assert [one.id_at_location for one in client.search("#lasting")] == [made.id_at_location]
        assert records.get(user="Ana").unwrap().tolist() == SECRETS.tolist(), "the old pointer to published data works"
        for dead in (lambda: old.get(user="Ana"), lambda: (old * 2).get(user="Ana")):
            with pytest.raises(SessionLostError, match=r"gone|lost"):
                dead()
        assert client.login(user="Ana").user == "Ana", "accounts and tokens are there"


def test_the_callers_login_is_made_again_with_the_connection(small_world: World):
    node = small_world.start("node", "Phoenix")
    node.user("Ana")
    with node.client() as client:
        client.login(user="Ana")
        assert client.receive(torch.ones(1)).get().item() == 1
        node.kill()
        node.start()
        assert client.receive(torch.ones(1)).get().item() == 1
        assert client.caller.user == "Ana"


def test_another_node_at_the_same_address_is_not_taken_for_the_old_one(small_world: World):
    node = small_world.start("node", "First", "--allow-guests")
    with node.client() as client:
        node.kill()
        impostor = GridProcess("node", "First", node.home / "other", ("--allow-guests",), port=node.port)
        small_world.started.append(impostor)
        impostor.start()
        assert impostor.port == node.port
        with pytest.raises(GridError, match="another Node"):
            client.search()


def test_an_upload_that_a_kill_interrupted_leaves_nothing(small_world: World):
    node = small_world.start("node", "Phoenix", "--allow-guests")
    token = node.user("Bob", "Owner")
    blobs = node.state / "blobs"
    with node.tcp() as sender:
        sender.sendall(
            f"PUT /data-centric/uploads/{'a' * 32} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {4 << 20}\r\n\r\n".encode()
            + bytes(1 << 20)
        )
        until(lambda: any(one.stat().st_size for one in blobs.iterdir()))
        node.kill()
    assert list(blobs.iterdir()) != []
    node.start()
    assert list(blobs.iterdir()) == []
    assert node.status()["datasets"] == 0


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "end of input"])
def test_nothing_is_left_running_when_a_node_ends(small_world: World, how: str):
    node = small_world.start("node", "Mortal", "--allow-guests")
    with ExitStack() as stack:
        sessions = [stack.enter_context(RawSession(node)) for _ in range(2)]
        for raw in sessions:
            raw.read(raw.put(torch.ones(1)))
        family = node.processes()
        assert len(family) >= 4, "the Node, its fork server and two Workers"
        state, owner_socket = node.state, Path(node.running["socket"])
        if how == "end of input":
            assert node.stop() == 0
        elif how == "SIGKILL":
            node.kill()
        else:
            assert node.signal(signal.SIGTERM) == 0
        until(lambda: not alive(family))
    assert (state / "running.json").exists() == owner_socket.exists() == (how == "SIGKILL")


def test_a_node_ends_when_its_parent_is_killed(tmp_path: Path):
    options = ["--name", "Orphan", "--port", "0", "--state", str(tmp_path / "state"), "--json", "--supervised"]
    program = (
        "import subprocess, sys\n"
        f"command = [sys.executable, '-m', 'grid_jupyter.cli.main', 'node', *{options!r}]\n"
        "node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(node.stdout.readline().decode(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        node = psutil.Process(json.loads(parent.stdout.readline())["pid"])
        parent.kill()
    until(lambda: not alive([node]))


def test_idle_connections_do_not_use_up_what_the_node_may_open(small_world: World):
    node = small_world.start("node", "Narrow", "--allow-guests", wrapper=("prlimit", "--nofile=128:4096"))
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(node.tcp())
        assert node.call("GET", "/data-centric/status")[0] == 200
        with RawSession(node) as raw:
            assert raw.read(raw.put(torch.ones(1))).item() == 1


# ------------------------------------------------------------------ the processes


def test_an_idle_node_is_small_and_a_fork_server_comes_with_the_first_session(small_world: World):
    node = small_world.start("node", "Small", "--allow-guests", "--spare-workers", "0")
    assert [process.pid for process in node.processes()] == [node.pid]
    assert psutil.Process(node.pid).memory_info().rss < 120 << 20
    with RawSession(node) as raw:
        raw.read(raw.put(torch.ones(1)))
        assert len(workers(node)) == 1
    until(lambda: not workers(node))
    assert psutil.Process(node.pid).memory_info().rss < 120 << 20


HEAVY = ("torch", "numpy", "pandas", "pyarrow", "jupyter_server", "IPython", "matplotlib", "sklearn")


def test_neither_node_nor_network_maps_torch_numpy_or_pandas(bob: GridProcess, network: GridProcess):
    with RawSession(bob) as raw:
        raw.read(raw.put(torch.ones(1)))
    for process in (bob, network):
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert not [name for name in HEAVY if f"/{name}/" in maps], process.role


@pytest.mark.parametrize(
    "module",
    ["server.node_process", "server.network_process", "cli.main", "node.service", "network.service", "worker.pool",
     "identity.accounts", "store.database", "link.peer", "link.client"],
)  # fmt: skip
def test_no_control_process_imports_them(module: str):
    program = f"import sys, grid_jupyter.{module}; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


needs_sandbox = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux's")


@needs_sandbox
def test_a_worker_sees_no_network_no_file_of_the_node_and_no_secret_of_its_surroundings(
    small_world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("A_SECRET_OF_THE_OWNER", "hunter2")
    node = small_world.start("node", "Warden", "--allow-guests", "--spare-workers", "0")
    if "no sandbox" in node.status()["isolation"]:
        pytest.skip(node.status()["isolation"])
    token = node.user("Bob", "Owner")
    with node.client("Bob") as client:
        made = client.publish(SECRETS, tags=["#watched"])
        made.sum().get()
        [worker] = workers(node)
        own = Path("/proc/self/ns")
        theirs = Path(f"/proc/{worker.pid}/ns")
        for namespace in ("net", "pid", "mnt", "ipc", "uts"):
            assert (own / namespace).readlink() != (theirs / namespace).readlink(), namespace
        interfaces = Path(f"/proc/{worker.pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
        root = Path(f"/proc/{worker.pid}/root")
        assert not (root / node.state.relative_to("/")).exists()
        assert not (root / Path(os.environ["GRID_JUPYTER_HOME"]).relative_to("/")).exists()
        for hidden in ("root/.ssh", "home", "etc/passwd", "etc/shadow", "var/lib", "run", "sys/fs"):
            assert not (root / hidden).exists(), hidden
        assert [one for one in (root / "tmp").rglob("*") if one.is_file() and not _is_of_python(one, root)] == []
        environment = Path(f"/proc/{worker.pid}/environ").read_text()
        assert "hunter2" not in environment
        assert token not in environment
        assert "GRID_JUPYTER" not in environment
        opened = [str(one.readlink()) for one in Path(f"/proc/{worker.pid}/fd").iterdir()]
        assert not [name for name in opened if name.endswith((".db", ".lock", ".json"))]
        mounts = [line.split() for line in Path(f"/proc/{worker.pid}/mounts").read_text().splitlines()]
        writable = {where for _, where, kind, options, *_ in mounts if options.split(",")[0] == "rw" and kind != "proc"}
        assert all(where in ("/", "/tmp") or where.startswith("/dev") for where in writable), writable  # noqa: S108


def _is_of_python(path: Path, root: Path) -> bool:
    """Whether a file belongs to the Python or to the package that runs: where they lie in /tmp, Workers see them."""
    shown = (sys.prefix, sys.base_prefix, Path(grid_jupyter.__file__).parent)
    return any(path.is_relative_to(root / Path(prefix).relative_to("/")) for prefix in shown)


@needs_sandbox
def test_a_worker_has_no_processes_of_others_in_sight(node: GridProcess):
    with RawSession(node) as raw:
        raw.read(raw.put(torch.ones(1)))
        [worker] = workers(node)
        visible = {int(one.name) for one in Path(f"/proc/{worker.pid}/root/proc").iterdir() if one.name.isdigit()}
        assert len(visible) <= 6
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        [data] = [line for line in limits.splitlines() if line.startswith("Max data size")]
        assert "unlimited" not in data
        [core] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4] == "0"
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "800"


def test_state_is_for_its_owner_alone(node: GridProcess):
    for path in (node.state, *node.state.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    owner_socket = Path(node.running["socket"])
    assert owner_socket.stat().st_mode & 0o777 == 0o600
    assert owner_socket.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(owner_socket))
        plain.sendall(b"GET /data-centric/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert plain.recv(100).startswith(b"HTTP/1.1 404"), "the owner's door has the owner's routes alone"


def test_a_second_node_on_the_same_state_is_refused(node: GridProcess):
    command = [sys.executable, "-m", "grid_jupyter.cli.main", "node", "--name", "Frail", "--port", "0"]
    done = subprocess.run(
        [*command, "--state", str(node.state), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode != 0
    assert "already runs" in done.stderr
    assert node.status()["status"] == "running"


def test_lost_values_are_told_apart_from_a_closed_client(node: GridProcess):
    client = node.client()
    value: Any = client.receive(torch.ones(1))
    client.close()
    for use in (lambda: value.get(), lambda: value + 1, lambda: client.search(), lambda: client.receive(torch.ones(1))):
        with pytest.raises(SessionLostError, match="closed"):
            use()
