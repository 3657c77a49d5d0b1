"""Starts Workers for a Node: one fork server, lazily, inside a bubblewrap sandbox where there is one.

Knows no torch: it runs in the Node's control process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from grid_jupyter.errors import GridError, NodeUnavailableError, SessionLostError, from_wire
from grid_jupyter.wire import frames, worker
from grid_jupyter.wire.messages import Failed
from grid_jupyter.worker.channel import AsyncChannel, close_all, pair

_START_S = 60.0
_PACKAGE = Path(__file__).parent.parent


class WorkerProcess:
    """One Worker, as its Node sees it."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._channel = AsyncChannel(sock)
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[worker.Reply, memoryview, list[int]]]] = {}
        self._reader = asyncio.create_task(self._read())
        self._said: str | None = None

    async def operations(self, frame: bytes) -> None:
        """Pass an OPERATIONS frame on, undecoded; waits while the Worker is behind."""
        try:
            await self._channel.send(frame)
        except EOFError:
            raise lost_session(await self.lost) from None

    async def send(
        self, message: worker.Request, descriptors: tuple[int, ...] = ()
    ) -> asyncio.Future[tuple[worker.Reply, memoryview, list[int]]]:
        """Send a request in order; the returned future has its reply, payload and descriptors."""
        number = next(self._requests)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._channel.send(worker.request_frame(number, message), descriptors)
        except EOFError:
            self._waiting.pop(number, None)
            raise lost_session(await self.lost) from None
        return waiting

    async def _read(self) -> None:
        try:
            while True:
                frame, descriptors = await self._channel.receive()
                cut = frames.unpack(frame)
                number, reply = frames.decode(cut.header, worker.reply_decoder)
                if number == 0 and isinstance(reply, Failed):
                    self._said = reply.error  # the Worker's last words
                    continue
                waiting = self._waiting.pop(number, None)
                if waiting is None or waiting.done():
                    close_all(descriptors)
                elif isinstance(reply, Failed):
                    waiting.set_exception(from_wire(reply.code, reply.error))
                else:
                    waiting.set_result((reply, cut.payload, descriptors))
        except EOFError:
            pass
        finally:
            # the fork server says why; wait a moment for it
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.lost), 2.0)
            self.end("its Worker ended")

    def end(self, reason: str) -> None:
        """Mark the Worker as gone; whoever waits for it learns why."""
        if not self.lost.done():
            self.lost.set_result(self._said or reason)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(lost_session(self.lost.result()))
        self._waiting.clear()

    async def close(self) -> None:
        """End the Worker: it leaves when its input ends."""
        self.end("the session was closed")
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._channel.close()


class WorkerPool:
    """Forks Workers for one Node."""

    def __init__(self, limits: worker.WorkerLimits) -> None:
        self.limits = limits
        self.isolation = "unknown"
        self._numbers = itertools.count(1)
        self._workers: dict[int, WorkerProcess] = {}
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._control: AsyncChannel | None = None
        self._events: asyncio.Task[None] | None = None
        self._bwrap = shutil.which("bwrap")

    async def probe(self) -> str:
        """Find out, in words, how Workers are kept apart from the rest of this machine."""
        if self._bwrap is None:
            self.isolation = "reduced: a process each, no sandbox (bubblewrap is not installed)"
            return self.isolation
        process = await asyncio.create_subprocess_exec(
            *self._sandbox(), sys.executable, "-S", "-c", "pass",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        if process.returncode == 0:
            self.isolation = "sandboxed: a process each, no network, read-only system, no view of this Node's files"
        else:
            self._bwrap = None
            first = said.decode(errors="replace").strip().splitlines()[:1]
            self.isolation = (
                f"reduced: a process each, no sandbox ({' '.join(first) or 'bubblewrap does not work here'})"
            )
        return self.isolation

    async def start(self) -> WorkerProcess:
        """A new Worker. The first one loads torch and takes seconds, the others milliseconds.

        Raises NodeUnavailableError if the fork server cannot be started.
        """
        async with self._starting:
            if self._control is None:
                await self._start_fork_server()
        control = self._control
        if control is None:
            raise NodeUnavailableError("this Node could not start a Worker; its log says why")
        ours, theirs = pair()
        number = next(self._numbers)
        process = self._workers[number] = WorkerProcess(number, ours)
        try:
            await control.send(frames.encode(worker.Fork(worker=number, limits=self.limits)), [theirs.fileno()])
        except EOFError:
            self._workers.pop(number).end("its Worker could not be started")
            raise NodeUnavailableError("this Node's Workers cannot be started just now; try again") from None
        finally:
            theirs.close()
        return process

    async def stop(self) -> None:
        """End all Workers and the fork server."""
        for process in list(self._workers.values()):
            await process.close()
        self._workers.clear()
        if self._events is not None:
            self._events.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._events
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), 2.0)
            except asyncio.TimeoutError:
                self._process.kill()
                await self._process.wait()

    # -------------------------------------------------------------- the fork server

    async def _start_fork_server(self) -> None:
        if self.isolation == "unknown":
            await self.probe()
        ours, theirs = pair()
        os.set_inheritable(theirs.fileno(), True)
        command = [*(self._sandbox() if self._bwrap else []), sys.executable, "-m", "grid_jupyter.worker.forkserver"]
        self._process = await asyncio.create_subprocess_exec(
            *command, str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),), env=_environment(), start_new_session=True,
        )  # fmt: skip
        theirs.close()
        channel = AsyncChannel(ours)
        try:
            await asyncio.wait_for(channel.receive(), _START_S)
        except (EOFError, asyncio.TimeoutError):
            channel.close()
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            raise NodeUnavailableError(
                "this Node cannot start Workers: is torch installed there? Its log says more"
            ) from None
        self._control = channel
        self._events = asyncio.create_task(self._listen(channel))

    async def _listen(self, channel: AsyncChannel) -> None:
        try:
            while True:
                frame, _ = await channel.receive()
                event = frames.decode(bytes(frame), worker.event_decoder)
                if isinstance(event, worker.Ended):
                    process = self._workers.pop(event.worker, None)
                    if process is not None:
                        process.end(_reason(event, self.limits))
        except (EOFError, GridError):
            self._control = None  # the next session starts another
            for process in self._workers.values():
                process.end("the Node's fork server ended, and its Workers with it")
            self._workers.clear()

    def _sandbox(self) -> list[str]:
        """bubblewrap's arguments: no network, none of the Node's files, a read-only system."""
        command = [self._bwrap or "bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
        command += ["--tmpfs", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108
        shown = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives"]
        shown += ["/sys/devices/system/cpu", sys.prefix, sys.base_prefix, str(_PACKAGE)]
        for path in dict.fromkeys([*shown, str(Path(sys.executable).resolve().parent.parent)]):
            command += ["--ro-bind-try", path, path]
        return [*command, "--chdir", "/tmp"]  # noqa: S108


def lost_session(reason: str) -> SessionLostError:
    """What everybody is told who waits for a Worker that is gone."""
    return SessionLostError(f"the session ended: {reason}. Open the data again to go on")


def _environment() -> dict[str, str]:
    """No secret of the Node's surroundings reaches a Worker."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": str(_PACKAGE.parent)}  # noqa: S108


def _reason(event: worker.Ended, limits: worker.WorkerLimits) -> str:
    if event.signal == signal.SIGALRM:
        return f"an operation ran longer than {limits.operation_s:g} s, so its Worker was ended"
    if event.signal == signal.SIGKILL:
        return "its Worker was killed, perhaps for memory"
    if event.signal:
        return f"its Worker crashed ({signal.Signals(event.signal).name})"
    return "its Worker ended"
