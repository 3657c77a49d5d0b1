"""The loop of a fork server: what is loaded by now is loaded once, and a fork is a Worker in tens of milliseconds.

It serves a Node over one channel, and ends with all its Workers when the Node does. What Workers do, its caller says.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from grid_jupyter.wire import frames, worker
from grid_jupyter.worker.channel import Channel
from grid_jupyter.worker.confinement import confine, end_with, hide
from grid_jupyter.worker.devices import device_files

_QUIET_S = 2.0
"""How long nothing is asked until what only some Workers need is loaded as well."""

_READY = worker.Ready()

Settle = Callable[[worker.WorkerLimits], None]
"""Makes a fork a Worker of its own, before it is confined."""
Serve = Callable[[socket.socket, worker.WorkerLimits], None]
"""The Worker's whole life."""


def serve_forks(
    descriptor: int,
    settle: Settle,
    serve: Serve,
    complete: Callable[[], None] = lambda: None,
    ready: worker.Ready = _READY,
) -> None:
    """Say `ready` and serve fork requests until the channel closes; `complete` is called once, when nothing is asked
    for a while."""
    hide()
    control = socket.socket(fileno=descriptor)
    channel = Channel(control)
    wake_out, wake_in = socket.socketpair()
    wake_in.setblocking(False)
    wake_out.setblocking(False)
    signal.set_wakeup_fd(wake_in.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the Node's to handle
    children: dict[int, int] = {}
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake_out, selectors.EVENT_READ)
    gc.freeze()  # what is loaded by now lives as long as the Workers do: their collections need not look at it
    channel.send(frames.encode(ready))
    completed = False
    while True:
        events = selector.select(None if completed else _QUIET_S)
        if not events and not completed:
            complete()
            gc.freeze()
            completed = True
        for key, _ in events:
            if key.fileobj is wake_out:
                with contextlib.suppress(BlockingIOError):
                    wake_out.recv(4096)
                _report(channel, children)
                continue
            try:
                asked: tuple[memoryview, list[int]] | None = channel.receive()
            except (EOFError, ConnectionResetError):
                signal.set_wakeup_fd(-1)
                for pid in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            while asked is not None:
                frame, descriptors = asked
                fork = frames.decode(frame, worker.fork_decoder)
                if isinstance(fork, worker.Kill):
                    _kill(children, fork.worker)
                    asked = channel.received()
                    continue
                server = os.getpid()
                made = forked()
                if made is None:
                    _tell(channel, worker.Ended(worker=fork.worker, signal=0, status=0, no_room=True))
                elif made == 0:
                    end_with(server)
                    selector.close()
                    channel.close()
                    for sock in (wake_in, wake_out):
                        sock.close()
                    _worker(descriptors[0], fork.limits, settle, serve)
                else:
                    children[made] = fork.worker
                os.close(descriptors[0])
                asked = channel.received()


def forked() -> int | None:
    """`os.fork`; None where the machine has no room for another process: that costs who asked for it, and nobody
    else. Says so on standard error."""
    try:
        return os.fork()
    except OSError as error:
        print(f"no process can be made: {error.strerror}", file=sys.stderr, flush=True)
        return None


def _kill(children: dict[int, int], number: int) -> None:
    for pid, child in children.items():  # they are not reaped yet, so no pid is another process's by now
        if child == number:
            os.kill(pid, signal.SIGKILL)


def _report(channel: Channel, children: dict[int, int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        ended = worker.Ended(
            worker=children.pop(pid),
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            status=os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
        )
        _tell(channel, ended)


def _tell(channel: Channel, ended: worker.Ended) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the Node is gone, and will be seen to be
        channel.send(frames.encode(ended))


def _worker(descriptor: int, limits: worker.WorkerLimits, settle: Settle, serve: Serve) -> None:
    """The child's whole life; never returns."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = 1
    try:
        settle(limits)
        confine(limits.memory_bytes, () if limits.device == "cpu" else device_files())
        serve(socket.socket(fileno=descriptor), limits)
        status = 0
    except BaseException as error:  # the outermost door; its text is left out, for it may quote values
        print(f"a Worker failed: {type(error).__name__}", file=sys.stderr)
        traceback.print_tb(error.__traceback__)
        sys.stderr.flush()
    finally:
        os._exit(status)
