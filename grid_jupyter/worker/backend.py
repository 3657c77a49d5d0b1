"""What a Node asks of whatever runs its Workers: this machine's fork server, or a Dask cluster."""

from __future__ import annotations

from typing import Protocol

from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.devices import NODES, Asked
from grid_jupyter.worker.process import WorkerProcess
from grid_jupyter.worker.shares import Shares


class Workers(Protocol):
    """Where Workers come from. Sessions and jobs know nothing else of it."""

    isolation: str
    """How Workers are kept apart from the machine that they run on, in words that begin with "sandboxed" or
    "reduced"."""

    shares: Shares
    """The devices that Workers share, and who has what of them."""

    @property
    def limits(self) -> WorkerLimits:
        """Of a Worker for whom nothing else was asked."""

    async def probe(self) -> str:
        """Find out, and say, the isolation; find the devices. Raises NodeUnavailableError where no Worker can ever be
        started, or a device is not there."""

    def prepare(self) -> None:
        """Somebody may compute soon."""

    async def start(self, asked: Asked = NODES) -> WorkerProcess:
        """A Worker, as it is asked for. Raises NodeUnavailableError, BadRequest for what can never be, and
        LimitExceededError for a share of a device that is not to be had, or was not within a few seconds."""

    def room(self, asked: Asked) -> int:
        """Bytes that a Worker may compute with that is asked for so. Raises BadRequest, LimitExceededError for what
        can never be."""

    def waits(self, asked: Asked) -> str:
        """What such a Worker would have to wait for, in words; empty: nothing. Raises as `room`."""

    def count(self) -> tuple[int, int]:
        """How many Workers there are, and how many of them are spare."""

    async def kill(self, process: WorkerProcess) -> None:
        """End a Worker at once, also in the middle of a computation."""

    async def stop(self) -> None:
        """End all Workers."""
