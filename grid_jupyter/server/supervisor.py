"""One Node or Network process that is kept running: started, restarted when it dies, ended with its parent.

One that another program already runs on the same state is followed instead of started twice.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from grid_jupyter.errors import Conflict, NodeUnavailableError, NotFound
from grid_jupyter.server.running import Running, is_running, read_running

log = logging.getLogger("grid_jupyter")

State = Literal["starting", "running", "restarting", "stopped", "failed"]

POLL_S = 0.1
"""How often a process and its running.json are looked at: works on every event loop, and needs no thread."""
GRACE_S = 5.0
"""How long a process that was asked to end may take before it is killed."""
MAX_LINE_BYTES = 8 << 10
"""Longest line of a process's output that is passed on whole."""


@dataclass(frozen=True)
class Patience:
    """How long things may take, and how often they may fail. Times in seconds."""

    start_s: float = 60.0  # from the start of the process to its running.json
    first_delay_s: float = 0.5  # before the first restart; doubles with each failure in a row
    longest_delay_s: float = 30.0
    healthy_s: float = 60.0  # a run this long wipes out the failures before it
    attempts: int = 5  # starts in a row that may end before they are ready
    handover_s: float = 5.0  # for another program to bring its process back, before one of our own is started

    def delay_s(self, failures: int) -> float:
        """The wait after so many failures in a row: 0.5 s, 1 s, 2 s … 30 s."""
        return min(self.first_delay_s * 2.0 ** min(failures - 1, 30), self.longest_delay_s)


class ChildProcess:
    """The process of one state directory. Its methods belong to one event loop; `end_now` needs none.

    `on_line` gets each line that the process prints, and one whenever it comes or goes. With `restart=False` a
    process that dies stays dead.
    """

    def __init__(
        self,
        state_dir: Path,
        role: Literal["node", "network"] = "node",
        *,
        restart: bool = True,
        patience: Patience | None = None,
        on_line: Callable[[str], None] = log.info,
    ) -> None:
        self.state_dir = state_dir
        self.role = role
        self.state: State = "stopped"
        self.detail = ""
        self.running: Running | None = None
        self.attached = False
        self.restarts = 0
        self._restart = restart
        self._patience = patience or Patience()
        self._on_line = on_line
        self._last_line = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._printed: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Begin to keep `command` running, in `env` or in this process's environment. Returns at once.

        The command must use this state directory and `--supervised`. Raises Conflict if it was started before.
        """
        if self._keeper is not None:
            raise Conflict(f"the {self.role} of {self.state_dir} is already kept running here")
        self._tell("starting")
        atexit.register(self.end_now)
        self._keeper = asyncio.create_task(self._keep(list(command), env))
        self._keeper.add_done_callback(self._keeper_ended)

    async def ready(self, timeout_s: float) -> Running:
        """Wait until the process runs. Raises NodeUnavailableError with the reason if it does not."""
        deadline = time.monotonic() + timeout_s
        while self.running is None:
            if self.state in ("failed", "stopped"):
                raise NodeUnavailableError(self.detail or f"no {self.role} was started on {self.state_dir}")
            if time.monotonic() > deadline:
                reason = self.detail or "it is still starting"
                raise NodeUnavailableError(f"no {self.role} ran on {self.state_dir} after {timeout_s:.0f} s: {reason}")
            await asyncio.sleep(POLL_S)
        return self.running

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """End the process: by SIGTERM, and by SIGKILL where that takes longer than `grace_s`.

        One that another program runs is left to it.
        """
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        if self._process is not None:
            await _end(self._process, grace_s)
            await self._hear_out()
        atexit.unregister(self.end_now)
        self._tell("stopped")

    def end_now(self, grace_s: float = GRACE_S) -> None:
        """The same without an event loop, for a program that ends without calling `stop`."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        _ask_to_end(process)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            process.wait()

    async def _keep(self, command: list[str], env: Mapping[str, str] | None) -> None:
        failures = 0  # in a row
        unready = 0  # in a row, and before the process was ready
        while True:
            while is_running(self.state_dir, self.role):
                failures = unready = 0
                await self._follow()
            began = time.monotonic()
            was_ready, reason = await self._run(command, env)
            self._on_line(reason)
            healthy = was_ready and time.monotonic() - began >= self._patience.healthy_s
            failures = 1 if healthy else failures + 1
            unready = 0 if was_ready else unready + 1
            if not self._restart:
                self._tell("failed", reason)
                return
            if unready >= self._patience.attempts:
                self._tell("failed", f"gave up after {unready} attempts: {reason}")
                return
            self._tell("restarting", reason)
            self.restarts += 1
            await asyncio.sleep(self._patience.delay_s(failures))

    async def _run(self, command: list[str], env: Mapping[str, str] | None) -> tuple[bool, str]:
        """One life of the process: whether it was ever ready, and why it ended."""
        try:
            process = self._process = _spawn(command, env)
        except OSError as error:
            return False, f"{command[0]} cannot be started: {error.strerror}"
        self._last_line = ""
        self._printed = asyncio.create_task(self._forward(process.stdout))
        deadline = time.monotonic() + self._patience.start_s
        try:
            while process.poll() is None:
                if self.running is None and (found := self._found()) and found.pid == process.pid:
                    self.running = found
                    self._tell("running")
                    self._on_line(f"the {self.role} {found.name} runs at {found.address}")
                if self.running is None and time.monotonic() > deadline:
                    await _end(process, GRACE_S)
                    return False, f"it was not ready after {self._patience.start_s:.0f} s"
                await asyncio.sleep(POLL_S)
            _ask_to_end(process)
            await self._hear_out()
            said = f": {self._last_line}" if self._last_line else ""
            return self.running is not None, f"the {self.role} {_how_it_ended(process.returncode)}{said}"
        finally:
            self.running = None

    async def _follow(self) -> None:
        """Stand by while another program's process runs; return when it has not come back for a while."""
        self.attached = True
        try:
            while is_running(self.state_dir, self.role):
                found, before = self._found(), self.running
                self.running = found
                if found is not None and found != before:
                    self._tell("running", f"run by another program (process {found.pid})")
                    self._on_line(f"the {self.role} {found.name} of another program runs at {found.address}")
                await asyncio.sleep(POLL_S)
            self.running = None
            self._tell("restarting", "it ended; the program that ran it may start it again, else it is started here")
            deadline = time.monotonic() + self._patience.handover_s
            # another program's process cannot set an event of ours
            while not is_running(self.state_dir, self.role) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
        finally:
            self.attached, self.running = False, None

    def _found(self) -> Running | None:
        try:
            return read_running(self.state_dir, self.role)
        except NotFound:
            return None

    async def _forward(self, pipe: IO[bytes] | None) -> None:
        """Pass on what the process prints, line by line; a line that does not end is cut."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        rest = b""
        try:
            while chunk := await reader.read(64 << 10):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._pass_on(line)
        finally:
            self._pass_on(rest)
            transport.close()

    async def _hear_out(self) -> None:
        """What an ended process printed last may still be in the pipe; a child of its own may hold that open."""
        if self._printed is not None:
            await asyncio.wait([self._printed], timeout=0.5)
            self._printed.cancel()

    def _pass_on(self, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode(errors="replace").rstrip()
        if text:
            self._last_line = text
            self._on_line(text)

    def _tell(self, state: State, detail: str = "") -> None:
        self.state, self.detail = state, detail[:1].upper() + detail[1:]

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """A fault of the keeper must show in the status, not when somebody collects the task."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            log.error("the %s of %s is no longer kept running", self.role, self.state_dir, exc_info=error)
            self._tell("failed", f"it is no longer kept running ({error}); the log says more")


def _spawn(command: list[str], env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    """Start the process. It reads end of file from stdin as soon as this process is gone, however it went.

    Its own session keeps a Ctrl-C in this program's terminal away from it, and its group together.
    """
    return subprocess.Popen(  # noqa: S603 - the owner's own command, without a shell
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        start_new_session=True,
    )


async def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    _ask_to_end(process)
    deadline = time.monotonic() + grace_s
    while process.poll() is None:
        if time.monotonic() > deadline:
            _kill_group(process)
        await asyncio.sleep(POLL_S / 10)


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # nothing happens if it has ended
    if process.stdin is not None:
        process.stdin.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process that did not end, and for the children that it cannot end any more."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"
