"""What a Dask worker runs for a Node: a Worker, in the same sandbox and limits as on the Node's own machine.

Dask carries these functions by name, with texts and numbers as arguments and results; whatever comes from a client of
the Node goes by a connection of our own (worker/far_end.py). Knows no torch: the fork server here loads it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import ssl
import threading
from typing import Any

import msgspec
from distributed import get_worker

from grid_jupyter import __version__
from grid_jupyter.errors import GridError
from grid_jupyter.wire import relay
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.far_end import FarEnd, KeptFiles
from grid_jupyter.worker.pool import WorkerPool
from grid_jupyter.worker.relay import Stream

log = logging.getLogger("grid_jupyter")

_IDLE_S = 300.0
"""How long a fork server without Workers is kept."""
_LOOK_S = 0.5
"""How often it is looked whether the Dask worker is being closed."""
_CONNECT_S = 20.0
_LEAVING = ("closing", "closed", "failed", "stopping")


def serve_worker(
    host: str, port: int, ticket: str, certificate: str, node: str, limits: dict[str, Any], require_isolation: bool
) -> str:
    """Be one Worker of a Node, until one of the two leaves; why it ended. `certificate` is the Node's, as PEM, and the
    only one that is accepted. Raises OSError where the Node cannot be reached."""
    chosen = msgspec.convert(limits, WorkerLimits)
    place = get_worker()
    address = str(place.address)
    running = asyncio.run_coroutine_threadsafe(
        _host().serve(host, port, ticket, certificate, node, chosen, require_isolation, address), _host().loop
    )
    while True:
        try:
            return running.result(_LOOK_S)
        except concurrent.futures.TimeoutError:
            if running.done():
                raise
            if place.status.name in _LEAVING:
                running.cancel()
                return "the Dask worker was closed"


def isolation(limits: dict[str, Any]) -> str:
    """How Workers are kept apart on this machine."""
    chosen = msgspec.convert(limits, WorkerLimits)
    return asyncio.run_coroutine_threadsafe(_host().isolation(chosen), _host().loop).result()


class Host:
    """All Workers of a Dask worker, in an event loop of their own: Dask's is not held up by them, nor they by it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._pools: dict[str, WorkerPool[FarEnd]] = {}
        self._kept: dict[str, KeptFiles] = {}
        self._users: dict[str, int] = {}
        # bubblewrap's sandbox ends with the thread that began it: this one lives as long as the process
        threading.Thread(target=self.loop.run_forever, name="grid_jupyter Workers", daemon=True).start()

    def _pool(self, limits: WorkerLimits, require_isolation: bool = False) -> WorkerPool[FarEnd]:
        key = repr((limits, require_isolation))
        if key not in self._pools:
            self._pools[key] = WorkerPool(limits, FarEnd, spare_workers=0, require_isolation=require_isolation)
        return self._pools[key]

    async def isolation(self, limits: WorkerLimits) -> str:
        """How Workers are kept apart on this machine."""
        return await self._pool(limits).probe()

    async def serve(
        self,
        host: str,
        port: int,
        ticket: str,
        certificate: str,
        node: str,
        limits: WorkerLimits,
        require_isolation: bool,
        place: str,
    ) -> str:
        """One Worker's life; why it ended, or did not begin. Raises OSError."""
        key = repr((limits, require_isolation))
        pool = self._pool(limits, require_isolation)
        self._users[key] = self._users.get(key, 0) + 1
        try:
            worker = await pool.start()
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(host, port, ssl=_trusting(certificate), server_hostname=""), _CONNECT_S
                )
                stream = Stream(reader, writer)
                stream.send(relay.Arrive(ticket=ticket, version=__version__, place=place, isolation=pool.isolation))
                return await worker.serve(stream, self._kept.setdefault(node, KeptFiles()))
            finally:
                await pool.kill(worker)
        except GridError as error:
            return str(error)
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                self.loop.call_later(_IDLE_S, self._rest, key)

    def _rest(self, key: str) -> None:
        if not self._users[key] and key in self._pools:
            pool = self._pools.pop(key)
            self.loop.create_task(pool.stop())


_made: list[Host] = []
_making = threading.Lock()


def _host() -> Host:
    with _making:
        if not _made:
            _made.append(Host())
        return _made[0]


def _trusting(certificate: str) -> ssl.SSLContext:
    """TLS to whoever has this one certificate, whatever its name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate)
    return context
