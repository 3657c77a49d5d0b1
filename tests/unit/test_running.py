"""A process of the grid from the outside: its lock, its files, its port, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grid_jupyter.errors import Conflict, NotFound
from grid_jupyter.server.running import (
    OWNER_SOCKET,
    Running,
    StateDir,
    address_of,
    is_loopback,
    is_running,
    listen,
    read_running,
    warn_if_exposed,
)
from grid_jupyter.server.socket_places import socket_place
from grid_jupyter.wire.files import put_whole

DEADLINE_S = 30.0
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is tested is that it is told apart


def some_process(state: StateDir) -> Running:
    return Running(role="node", name="Bob", id="1", address="http://127.0.0.1:3000", socket="s", pid=os.getpid())


def test_a_state_directory_has_one_process_at_a_time(tmp_path: Path):
    with StateDir(tmp_path / "Bob", "node"):
        assert is_running(tmp_path / "Bob", "node")
        with pytest.raises(Conflict, match="already runs"), StateDir(tmp_path / "Bob", "node"):
            pass
    assert not is_running(tmp_path / "Bob", "node")
    with StateDir(tmp_path / "Bob", "node"):
        pass


def test_what_runs_is_known_while_it_runs_and_no_longer(tmp_path: Path):
    with pytest.raises(NotFound, match="jupyter grid up"):
        read_running(tmp_path, "node")
    with StateDir(tmp_path, "node") as state:
        with pytest.raises(NotFound):  # it is not ready
            read_running(tmp_path, "node")
        state.announce(some_process(state))
        assert read_running(tmp_path, "node") == some_process(state)
        assert stat.S_IMODE((tmp_path / "running.json").stat().st_mode) == 0o600
    with pytest.raises(NotFound):
        read_running(tmp_path, "node")
    assert not (tmp_path / "running.json").exists()


def test_what_a_killed_process_left_counts_for_nothing_and_is_replaced(tmp_path: Path):
    (tmp_path / "running.json").write_text('{"role":"node"')
    with pytest.raises(NotFound):
        read_running(tmp_path, "node")
    with StateDir(tmp_path, "node") as state:
        state.announce(some_process(state))
        (tmp_path / "copy").write_bytes((tmp_path / "running.json").read_bytes())
    (tmp_path / "copy").rename(tmp_path / "running.json")  # as SIGKILL leaves it: the file is there, the lock is not
    with pytest.raises(NotFound):
        read_running(tmp_path, "node")
    with StateDir(tmp_path, "node"):
        assert not (tmp_path / "running.json").exists()


def test_looking_at_a_state_does_not_keep_it_from_starting(tmp_path: Path):
    looking = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from grid_jupyter.server.running import is_running\n"
            "print(flush=True)\n"
            "while True: is_running(Path(sys.argv[1]), 'node')",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert looking.stdout is not None
        looking.stdout.readline()
        for _ in range(50):
            with StateDir(tmp_path, "node"):
                pass
    finally:
        looking.kill()
        looking.communicate()


def test_the_owners_socket_is_private_and_short_whatever_the_state_directory_is_called(tmp_path: Path):
    deep = tmp_path / ("x" * 200)
    with StateDir(deep, "node") as state:
        path = state.socket_path()
        assert len(os.fsencode(path)) < 100
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.close()
        assert state.socket_path() == path  # one that is left over is replaced
        assert not path.exists()
    assert not path.parent.exists()


def test_a_socket_directory_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", tempfile.gettempdir())
    with StateDir(tmp_path, "node") as state:
        folder = socket_place(state.path, OWNER_SOCKET).parent
        folder.symlink_to(tmp_path)
        try:
            with pytest.raises(Conflict, match="somebody else"):
                state.socket_path()
        finally:
            folder.unlink()


def test_private_files_are_private_from_the_start_and_replaced_whole(tmp_path: Path):
    old = os.umask(0)
    try:
        put_whole(tmp_path / "file", b"one")
        put_whole(tmp_path / "file", b"two")
    finally:
        os.umask(old)
    assert (tmp_path / "file").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------ ports and addresses


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_next_free_port_is_used_where_one_is_taken(taken: int):
    sockets = listen("127.0.0.1", taken)
    try:
        found = sockets[0].getsockname()[1]
        assert taken < found < taken + 100
        assert address_of(sockets, "127.0.0.1", tls=False) == f"http://127.0.0.1:{found}"
        assert address_of(sockets, "localhost", tls=True) == f"https://localhost:{found}"
        assert address_of(sockets, "::1", tls=False) == f"http://[::1]:{found}"
        assert address_of(sockets, EVERYWHERE, tls=False) != f"http://{EVERYWHERE}:{found}"
        given = address_of(sockets, EVERYWHERE, tls=True, public_address="https://node.example.org/")
        assert given == "https://node.example.org"
    finally:
        for one in sockets:
            one.close()


def test_an_address_that_this_machine_does_not_have_is_refused():
    with pytest.raises(Conflict, match="cannot listen"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), (EVERYWHERE, False), ("", False), ("example.org", False)],
)
def test_which_doors_are_only_for_this_machine(host: str, loopback: bool):
    assert is_loopback(host) is loopback


def test_a_door_beyond_this_machine_without_a_certificate_is_warned_of_loudly(
    capsys: pytest.CaptureFixture[str],
):
    warn_if_exposed("Node", "127.0.0.1", tls=False)
    warn_if_exposed("Node", EVERYWHERE, tls=True)
    assert capsys.readouterr().err == ""
    warn_if_exposed("Node", EVERYWHERE, tls=False)
    told = capsys.readouterr().err
    assert "WITHOUT TLS" in told
    assert "--certfile" in told


# ------------------------------------------------------------------ the end of a process


def command(tmp_path: Path, *more: str) -> list[str]:
    grid = [sys.executable, "-m", "grid_jupyter.cli.main"]
    return [*grid, "network", "--port", "0", "--state", str(tmp_path / "network"), *more]


@pytest.fixture
def network(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command(tmp_path, "--json", "--supervised"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def ready(process: subprocess.Popen[bytes]) -> dict[str, object]:
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def test_a_supervised_process_ends_cleanly_when_its_standard_input_ends(
    network: subprocess.Popen[bytes], tmp_path: Path
):
    told = ready(network)
    assert told == json.loads((tmp_path / "network" / "running.json").read_text())
    assert told["pid"] == network.pid
    assert network.stdin is not None
    network.stdin.close()
    assert network.wait(DEADLINE_S) == 0
    assert not (tmp_path / "network" / "running.json").exists()
    assert not Path(str(told["socket"])).exists()


def test_sigterm_ends_a_process_cleanly_and_a_supervised_one_leaves_ctrl_c_to_its_parent(
    network: subprocess.Popen[bytes], tmp_path: Path
):
    ready(network)
    network.send_signal(signal.SIGINT)
    network.send_signal(signal.SIGTERM)
    assert network.wait(DEADLINE_S) == 0
    assert not (tmp_path / "network" / "running.json").exists()


def test_a_second_process_on_the_same_state_says_why_it_does_not_start(
    network: subprocess.Popen[bytes], tmp_path: Path
):
    ready(network)
    second = subprocess.run(
        command(tmp_path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_process_that_was_killed_starts_again_on_its_state(network: subprocess.Popen[bytes], tmp_path: Path):
    before = ready(network)
    network.kill()
    network.wait()
    with pytest.raises(NotFound):
        read_running(tmp_path / "network", "network")
    again = subprocess.Popen(
        command(tmp_path, "--json", "--supervised"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert ready(again)["id"] == before["id"]
    finally:
        again.communicate(timeout=DEADLINE_S)
