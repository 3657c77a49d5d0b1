"""The fork server that Nodes share: loads torch once, and forks a fork server for each Node that asks.

Run as `python -m grid_jupyter.worker.shared_forkserver FD`: FD is its end of a channel to the Lender. Each Node has a
process here that it alone commands, which ends, with all its Workers, when the Node does.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
import traceback

from grid_jupyter import __version__
from grid_jupyter.wire import frames, worker
from grid_jupyter.worker.channel import Channel
from grid_jupyter.worker.confinement import hide
from grid_jupyter.worker.forking import forked, serve_forks
from grid_jupyter.worker.session import serve, settle


def main(descriptor: int) -> None:
    """Fork for each Node whose connection comes, until the channel closes."""
    hide()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what becomes of a Node's fork, the Node sees
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    importlib.import_module("torch._dynamo")  # now: each Node would load it for itself
    gc.freeze()
    channel = Channel(socket.socket(fileno=descriptor))
    channel.send(frames.encode(worker.Ready()))
    while True:
        try:
            frame, (asking,) = channel.receive()
        except EOFError:
            return
        lend = frames.decode(frame, worker.lend_decoder)
        if forked() == 0:  # where there is no room for it, the end of the connection says so
            channel.close()
            _lent(asking, lend)
        os.close(asking)


def _lent(descriptor: int, lend: worker.Lend) -> None:
    """The life of one Node's fork server; never returns."""
    status = 1
    try:
        connection = socket.socket(fileno=descriptor)
        frame, (said,) = Channel(connection).receive()
        frames.decode(frame, worker.borrow_decoder)
        os.dup2(said, sys.stderr.fileno(), inheritable=False)
        os.close(said)
        ready = worker.Ready(isolation=lend.isolation, version=__version__)
        serve_forks(connection.detach(), settle, serve, ready=ready)
        status = 0
    except EOFError:
        status = 0  # the Node did not wait
    except BaseException as error:  # the outermost door
        print(f"a fork server failed: {type(error).__name__}", file=sys.stderr)
        traceback.print_tb(error.__traceback__)
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
