"""A fork server as whoever commands it holds it: a process of its own, or a fork of one that Nodes share.

Knows no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grid_jupyter.errors import NodeUnavailableError
from grid_jupyter.wire import frames, worker
from grid_jupyter.worker.channel import AsyncChannel, close_all, pair

log = logging.getLogger("grid_jupyter")
_START_S = 60.0
_CONNECT_S = 1.0
_END_S = 2.0
_SAID_BYTES = 64 << 10
"""What fork server and Workers may say on standard error before the rest is dropped; each fork server anew."""
_PEER = struct.Struct("3i")
"""The kernel's struct ucred: process, user and group of the other side, as they were when the connection was made."""

Told = Callable[[worker.Ended], None]
Gone = Callable[[], None]


class ForkServer:
    """One that was started or borrowed: `told` is called for each Worker that ended, `gone` once if it ends by itself
    after it was ready."""

    def __init__(
        self,
        sock: socket.socket,
        said: asyncio.StreamReader,
        told: Told,
        gone: Gone,
        *,
        process: asyncio.subprocess.Process | None = None,
        pipe: asyncio.ReadTransport | None = None,
    ) -> None:
        self._is_over = False
        self._ready: asyncio.Future[worker.Ready] = asyncio.get_running_loop().create_future()
        self._told, self._gone = told, gone
        self._process, self._pipe = process, pipe
        self._listening = asyncio.create_task(_listen(said))
        self.channel = AsyncChannel(sock, self._heard, self._hung_up)

    async def ready(self) -> worker.Ready:
        """Wait until it can fork. Raises NodeUnavailableError where it ends before, or takes too long; nothing is left
        of it then, nor where its caller is cancelled."""
        try:
            ready = await asyncio.wait_for(self._ready, _START_S)
            if self._is_over:  # since then
                raise EOFError
            return ready
        except BaseException as error:
            self.channel.close()
            self._kill()
            await self._heard_out()
            if not isinstance(error, EOFError | asyncio.TimeoutError):
                raise
            raise NodeUnavailableError(
                "this Node cannot start Workers: is torch installed there? Its log says more"
            ) from None

    async def stop(self) -> None:
        """End it, and all its Workers."""
        self.channel.close()
        if self._process is not None and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), _END_S)
            except asyncio.TimeoutError:
                self._kill()
                await self._process.wait()
        await self._heard_out()

    async def _heard_out(self) -> None:
        """Take its last words, for which somebody may keep the pipe open."""
        await asyncio.wait({self._listening}, timeout=_END_S)
        if self._pipe is not None:
            self._pipe.close()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _heard(self, frame: memoryview, descriptors: list[int]) -> None:
        close_all(descriptors)
        event = frames.decode(frame, worker.event_decoder)
        if isinstance(event, worker.Ended):
            self._told(event)
        elif not self._ready.done():
            self._ready.set_result(event)

    def _hung_up(self) -> None:
        self._is_over = True
        self.channel.close()
        if not self._ready.done():
            self._ready.set_exception(EOFError())
        else:
            self._gone()


async def start(command: Sequence[str], environment: Mapping[str, str], told: Told, gone: Gone) -> ForkServer:
    """Start one as a process of its own: `command`, with the number of its end of the channel behind.

    Raises NodeUnavailableError where the machine has no room for it.
    """
    ours, theirs = pair()
    os.set_inheritable(theirs.fileno(), True)
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command, str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE, pass_fds=(theirs.fileno(),),
                env=environment, start_new_session=True,
            )  # fmt: skip
    except BaseException as error:
        ours.close()
        if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM):
            raise NodeUnavailableError(
                f"this Node cannot start Workers just now ({error.strerror}): its machine has no room for another "
                "process; try again later"
            ) from error
        raise
    return ForkServer(ours, process.stderr or asyncio.StreamReader(), told, gone, process=process)


async def borrow(place: Path, told: Told, gone: Gone) -> ForkServer:
    """Ask for one at the socket of a Lender (worker/lending.py). Raises OSError where nobody of this user lends."""
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ours.settimeout(_CONNECT_S)
        ours.connect(os.fspath(place))
        if user_of(ours) != os.getuid():
            raise PermissionError(f"{place} is another user's")
        out, into = os.pipe()
        try:
            said = asyncio.StreamReader()
            pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(said), os.fdopen(out, "rb", 0)
            )
            made = ForkServer(ours, said, told, gone, pipe=pipe)
            with contextlib.suppress(EOFError):  # refused: `ready` says so
                made.channel.send(frames.encode(worker.Borrow()), [into])
        finally:
            os.close(into)
    except BaseException:
        ours.close()
        raise
    return made


def user_of(sock: socket.socket) -> int:
    """The user on the other side of a unix socket, as the kernel tells it."""
    _, user, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(user)


async def _listen(said: asyncio.StreamReader) -> None:
    """Log what fork server and Workers say, a limited amount of it and no control characters: it may be hostile."""
    left = _SAID_BYTES
    while some := await said.read(4096):
        if left > 0:
            for line in some[:left].decode(errors="replace").splitlines():
                log.warning("a Worker says: %s", ascii(line)[1:-1])
        left -= len(some)
