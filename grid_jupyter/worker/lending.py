"""Lends Nodes of one user a fork server that they share: torch is loaded once, and each Node gets a fork of that.

Listens on a socket that nobody else can open, and looks who asks. What is behind it is started when it is told to
prepare, or the first Node asks, and again when it died. Knows no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from grid_jupyter.errors import NodeUnavailableError
from grid_jupyter.wire import frames, worker
from grid_jupyter.worker.sandbox import Sandbox
from grid_jupyter.worker.servers import ForkServer, start, user_of

log = logging.getLogger("grid_jupyter")
_PROGRAM = ("-m", "grid_jupyter.worker.shared_forkserver")
_BACKLOG = 64
_PAUSE_S = 1.0
_TRIES = 2
"""How often a fork server is asked for one Node: it may be dead, and that not noticed yet."""


class Lender:
    """One fork server for whoever of this user asks at the socket `place`, in a directory that is private."""

    def __init__(self, place: Path, *, program: Sequence[str] = _PROGRAM) -> None:
        self.place = place
        self._program = program
        self._sandbox = Sandbox(on_gpu=False)
        self._server: ForkServer | None = None
        self._starting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Open the socket. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(self.place))
            self.place.chmod(0o600)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        self._tasks.append(asyncio.create_task(self._lend_all(listener)))

    def prepare(self) -> None:
        """Nodes may ask soon: start the fork server beside."""
        self._tasks.append(asyncio.create_task(self._prepared()))

    async def stop(self) -> None:
        """Close the socket, and end the fork server."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for remove in (self.place.unlink, self.place.parent.rmdir):
            with contextlib.suppress(OSError):
                remove()
        if self._server is not None:
            await self._server.stop()

    async def _lend_all(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    asking, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError as error:  # no descriptor is left: one may be soon
                    log.warning("Nodes wait for a fork server: %s", error)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                with asking:
                    await self._lend(asking)

    async def _lend(self, asking: socket.socket) -> None:
        """Have a fork made for whoever asks; where there can be none, the end of the connection says it."""
        if user_of(asking) != os.getuid():
            log.warning("user %d was refused a fork server", user_of(asking))
            return
        for _ in range(_TRIES):
            try:
                server = await self._running()
                lend = frames.encode(worker.Lend(isolation=await self._sandbox.probe()))
                behind = server.channel.send(lend, [asking.fileno()])
                if behind is not None:
                    await behind
                return
            except EOFError:
                self._ended()
            except (NodeUnavailableError, OSError) as error:
                log.warning("no fork server can be shared: %s", error)
                return

    async def _prepared(self) -> None:
        with contextlib.suppress(NodeUnavailableError, OSError):  # whoever asks is told
            await self._running()

    async def _running(self) -> ForkServer:
        async with self._starting:
            if self._server is None:
                await self._sandbox.probe()
                command = [*self._sandbox.command(), sys.executable, *self._program]
                server = await start(command, self._sandbox.environment(False), lambda ended: None, self._ended)
                await server.ready()
                self._server = server
            return self._server

    def _ended(self) -> None:
        self._server = None
