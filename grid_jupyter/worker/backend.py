"""What a Node asks of whatever runs its Workers: this machine's fork server, or a Dask cluster."""

from __future__ import annotations

from typing import Protocol

from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.process import WorkerProcess


class Workers(Protocol):
    """Where Workers come from. Sessions and jobs know nothing else of it."""

    limits: WorkerLimits
    isolation: str
    """How Workers are kept apart from the machine that they run on, in words that begin with "sandboxed" or
    "reduced"."""

    async def probe(self) -> str:
        """Find out, and say, the isolation. Raises NodeUnavailableError where no Worker can ever be started."""

    def prepare(self) -> None:
        """Somebody may compute soon."""

    async def start(self) -> WorkerProcess:
        """A Worker. Raises NodeUnavailableError."""

    async def kill(self, process: WorkerProcess) -> None:
        """End a Worker at once, also in the middle of a computation."""

    async def stop(self) -> None:
        """End all Workers."""
