"""Trainings in this process, on a database and blobs of a directory: what tests of cycles are made of. No torch."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy
from numpy.typing import NDArray
from plan_documents import linear
from safetensors.numpy import load, save

from grid_jupyter.cycles.metrics import measured_of
from grid_jupyter.cycles.service import Cycles
from grid_jupyter.errors import ObjectNotFoundError
from grid_jupyter.identity.accounts import Account
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.wire.training import Authenticate, CycleRequest, HostTraining

Array = NDArray[Any]
MODEL = {"w": numpy.array([[0.5], [-1.0], [2.0]], numpy.float32)}
"""What plan_documents.linear() trains."""


def diff(*values: float) -> bytes:
    """A report on MODEL."""
    return save({"w": numpy.array(values, numpy.float32).reshape(3, 1)})


class World:
    """Cycles, and how a device or a host asks of them."""

    def __init__(self, cycles: Cycles) -> None:
        self.cycles = cycles

    async def host(
        self,
        name: str = "m",
        model: dict[str, Array] | None = None,
        plan: dict[str, Any] | None = None,
        averaging: dict[str, Any] | None = None,
        owner: str = "Ann",
        version: str = "1.0",
        takes_over: bool = False,
        **server_config: Any,
    ) -> Any:
        with self.cycles.blobs.begin(secrets.token_hex(16)) as upload:
            upload.write(save(MODEL if model is None else model))
            blob = upload.commit()
        body = HostTraining(
            model=secrets.token_hex(16),
            plans={"training_plan": msgspec.Raw(json.dumps(plan or linear()).encode())},
            client_config={"name": name, "version": version, "lr": 0.1},
            server_config=server_config,
            averaging_plan=msgspec.Raw(json.dumps(averaging).encode()),
        )
        return await self.cycles.host(owner, body, blob, takes_over=takes_over)

    async def device(self, name: str = "m", **facts: Any) -> str:
        told = await self.cycles.authenticate(Authenticate(model_name=name, **facts))
        return str(told["worker_id"])

    async def ask(self, worker_id: str, name: str = "m", **facts: Any) -> Any:
        return await self.cycles.request(CycleRequest(worker_id=worker_id, model=name, **facts))

    async def accepted(self, name: str = "m") -> tuple[str, str]:
        """A new device with a place: its id and its request_key."""
        worker = await self.device(name)
        answer = await self.ask(worker, name)
        assert answer["status"] == "accepted", answer
        return worker, answer["request_key"]

    async def report(self, place: tuple[str, str], data: bytes, samples: int | None = None, **metrics: float) -> None:
        arriving = await self.cycles.begin_report(*place)
        arriving.measured = measured_of(metrics, samples)
        upload = self.cycles.report_file(arriving.live, len(data))
        upload.write(data)
        await self.cycles.finish_report(arriving, upload, samples)

    async def report_in_parts(
        self, place: tuple[str, str], data: bytes, samples: int | None = None, **metrics: float
    ) -> None:
        """A report whose connection is lost in the middle, which then goes on; from wherever it stands."""
        cycles = self.cycles
        try:
            offset, complete = await cycles.report_progress(*place)
        except ObjectNotFoundError:
            arriving = await cycles.begin_report(*place)
            arriving.measured = measured_of(metrics, samples)
            arriving.samples, arriving.size, turn = samples, len(data), arriving.begin_turn()
            arriving.upload = cycles.report_file(arriving.live, len(data))
            await arriving.write(turn, bytearray(data[: len(data) // 2]))
            cycles.arrivals.leave(arriving, turn)
            offset, complete = await cycles.report_progress(*place)
        if not complete:
            arriving = await cycles.resume_report(*place, offset)
            await arriving.write(arriving.begin_turn(), bytearray(data[offset:]))
            await cycles.finish_report(arriving, arriving.whole(), arriving.samples)

    async def checkpoint(self, checkpoint: str = "latest", name: str = "m") -> dict[str, Array]:
        descriptor, found = await self.cycles.retrieve(name, None, checkpoint)
        try:
            return dict(load(os.read(descriptor, found.nbytes)))
        finally:
            os.close(descriptor)

    async def metrics(self, name: str = "m") -> list[tuple[int, int, int, dict[str, float]]]:
        """What was told: cycle, worker, samples and values."""
        ann = Account(id=1, username="Ann", role="User", flags=frozenset(), groups=())
        found = await self.cycles.metrics.read(ann, name, None, 0)
        return [(one.cycle, one.worker, one.samples, one.values) for one in found.rows]

    async def stands(self, after: int = -1, name: str = "m") -> dict[str, Any]:
        return await self.cycles.cycle(name, None, after=after, wait_s=10)


@asynccontextmanager
async def world(
    state: Path,
    clock: Callable[[], float] | None = None,
    at: Callable[[str], None] = lambda point: None,
    blobs: BlobStore | None = None,
    **more: Any,
) -> AsyncIterator[World]:
    """The trainings of a directory, as long as the context lasts; `blobs` are files there, or somewhere else too.
    `more` is for Cycles."""
    database = Database(sqlite_url(state / "grid.db"))
    more = more if clock is None else {**more, "clock": clock}
    made = Cycles(database, blobs or BlobStore(state / "training"), at=at, **more)
    try:
        await made.start()
        yield World(made)
    finally:
        await made.stop()
        database.close()
