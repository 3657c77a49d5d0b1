"""`jupyter grid up` and its faults: a whole grid as processes, killed in part and as a whole."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from network_world import call, until

PATIENCE_S = 60.0
NODES = {"Bob", "Alice", "Bill", "James"}


@dataclass
class Up:
    """`jupyter grid up --json` with a data directory of its own."""

    home: Path
    more: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    addresses: dict[str, Any] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)

    def start(self) -> Up:
        with (self.home.parent / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*GRID, "up", "--json", "--network-port", "0", "--node-port", "0", *self.more],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment(),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.home.parent / "up.log").read_text()
        self.addresses = json.loads(line)
        self.pids = {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}
        return self

    def environment(self) -> dict[str, str]:
        folders = {f"JUPYTER_{kind}_DIR": str(self.home.parent / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
        return {**os.environ, **folders, "GRID_JUPYTER_HOME": str(self.home)}

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def pid(self, place: str) -> int:
        return int(json.loads((self.home / place / "running.json").read_text())["pid"])

    def credentials(self) -> dict[str, dict[str, str]]:
        return dict(json.loads((self.home / "credentials.json").read_text()))

    async def all_connected(self) -> bool:
        try:
            local = json.loads((self.home / "local.json").read_text())
            _, answer = await call(local["network"], "GET", "/connected-nodes")
        except OSError:
            return False
        return set(answer["grid-nodes"]) == NODES


GRID = [sys.executable, "-m", "grid_jupyter.cli.main"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid") / "home"


@pytest.fixture
def grid(home: Path) -> Iterator[Up]:
    up = Up(home).start()
    yield up
    assert up.process is not None
    if up.process.poll() is None:
        up.end(signal.SIGTERM)


async def nothing_left(pids: set[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_up_starts_four_nodes_with_their_people_and_survives_the_death_of_each_part(grid: Up):
    async def flow() -> None:
        assert set(grid.addresses) == {"network", "nodes"}
        assert set(grid.addresses["nodes"]) == NODES
        assert json.loads((grid.home / "local.json").read_text()) == grid.addresses
        assert await grid.all_connected()
        for name, address in grid.addresses["nodes"].items():
            tokens = grid.credentials()[address.replace("localhost", "127.0.0.1")]
            assert set(tokens) == {"Bob", "Ana", "Alice", name}
            for user, token in tokens.items():
                status, answer = await call(address, "GET", "/users", token=token)
                assert status == (200 if user == name else 403), (name, user, answer)

        second = subprocess.run(
            [*GRID, "up"], env=grid.environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert (second.returncode, "runs already" in second.stderr) == (1, True)

        os.kill(grid.pid("nodes/Bob"), signal.SIGKILL)
        await until(lambda: is_restarted(grid, "nodes/Bob"), PATIENCE_S)
        await until(grid.all_connected, PATIENCE_S)
        os.kill(grid.pid("network"), signal.SIGKILL)
        await until(lambda: is_restarted(grid, "network"), PATIENCE_S)
        await until(grid.all_connected, PATIENCE_S)

        pids = (
            {child.pid for child in psutil.Process(grid.process.pid).children(recursive=True)}
            if grid.process
            else set()
        )
        assert grid.end(signal.SIGTERM) == 0
        await until(lambda: nothing_left(pids), PATIENCE_S)  # what was killed as it loaded torch, init has to reap

    asyncio.run(flow())


async def is_restarted(grid: Up, place: str) -> bool:
    try:
        pid = grid.pid(place)
    except OSError:
        return False
    return pid not in grid.pids and psutil.pid_exists(pid)


def test_the_next_start_finds_what_the_last_one_made_and_a_kill_leaves_no_process_behind(home: Path):
    async def flow() -> None:
        before = {token for users in Up(home).credentials().values() for token in users.values()}
        assert before
        grid = Up(home).start()
        assert {token for users in grid.credentials().values() for token in users.values()} == before
        assert set(grid.credentials()) == set(grid.addresses["nodes"].values())  # none for an address of last time
        assert await grid.all_connected()
        assert len(grid.pids) >= 5
        assert grid.end(signal.SIGKILL) == -signal.SIGKILL
        await until(lambda: nothing_left(grid.pids), PATIENCE_S)

    asyncio.run(flow())


def test_with_jupyterlab_its_server_is_one_of_the_nodes_and_a_kill_leaves_no_process_behind(home: Path):
    (home.parent / "CONFIG").mkdir()
    enabled = {"ServerApp": {"jpserver_extensions": {"grid_jupyter": True}}}  # as installing the package does
    (home.parent / "CONFIG" / "jupyter_server_config.json").write_text(json.dumps(enabled))

    async def flow() -> None:
        grid = Up(home, more=("--lab", "--lab-port", "0")).start()
        address, _, query = grid.addresses["lab"].partition("/lab")
        token = query.partition("token=")[2]

        async def state() -> dict[str, Any]:
            status, told = await call(address, "GET", "/grid/api/status", headers={"Authorization": f"token {token}"})
            assert status == 200
            return dict(told)

        deadline = time.monotonic() + PATIENCE_S
        while (answer := await state())["state"] != "running":
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.1)
        assert answer["node"]["address"] == grid.addresses["nodes"]["Bob"]
        assert (await call(address, "GET", "/grid/api/status"))[0] == 403
        assert await grid.all_connected()
        assert not any(token in part for pid in grid.pids for part in command_line(pid))
        assert grid.end(signal.SIGKILL) == -signal.SIGKILL
        await until(lambda: nothing_left(grid.pids), PATIENCE_S)

    asyncio.run(flow())


def command_line(pid: int) -> list[str]:
    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:  # the sandbox was tried just then
        return []


def test_ctrl_c_while_it_starts_ends_it_quietly(home: Path):
    process = subprocess.Popen(
        [*GRID, "up", "--network-port", "0", "--node-port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=Up(home).environment(),
        # a shell that started the tests in the background lets them ignore Ctrl-C, and they would hand that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    process.stderr.readline()  # the Network runs, the Nodes do not yet
    pids = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert b"Traceback" not in out + err
    asyncio.run(_nothing_left_soon(pids))


async def _nothing_left_soon(pids: set[int]) -> None:
    await until(lambda: nothing_left(pids), PATIENCE_S)
