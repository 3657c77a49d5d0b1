"""One job in its Worker: what it is given, its epochs and rounds, and what it hands back, which is read as hostile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from grid_jupyter.errors import GridError, LimitExceededError
from grid_jupyter.node.bulk import wait_until_filled
from grid_jupyter.node.datasets import Datasets, new_upload_id
from grid_jupyter.node.job_documents import JobDocument, find_plan, find_weights
from grid_jupyter.store.blobs import Blob, BlobStore
from grid_jupyter.store.datasets import StoredDataset, StoredTensor
from grid_jupyter.wire import worker
from grid_jupyter.wire.jobs import INLINE_BYTES, Part
from grid_jupyter.wire.safetensors import (
    PREFIX_BYTES,
    BlobTensor,
    build_header,
    header_length,
    parse_header,
    read_header,
)
from grid_jupyter.worker.backend import Workers
from grid_jupyter.worker.channel import close_all
from grid_jupyter.worker.devices import Asked
from grid_jupyter.worker.process import WorkerProcess

KEEP_S = 0.3
"""About how much work lies between two checkpoints; an epoch that takes longer is one."""
_CHUNK = 1 << 20
_STATE = "s/"

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """A checkpoint on the disk, and the epochs since the one before."""

    epoch: int
    history: tuple[dict[str, float], ...]
    blob: Blob


class JobWorker:
    """A Worker that runs one job."""

    def __init__(self, pool: Workers, process: WorkerProcess, blobs: BlobStore, job: JobDocument) -> None:
        self.last_used = time.monotonic()
        self.busy = False
        self._pool = pool
        self._process = process
        self._blobs = blobs
        self._job = job

    @classmethod
    async def start(
        cls,
        pool: Workers,
        blobs: BlobStore,
        datasets: Datasets,
        job: JobDocument,
        found: Sequence[StoredDataset],
        work: str,
        checkpoint: str | None,
        epoch: int,
    ) -> JobWorker:
        """A Worker with plan, weights and data. `found` are the data sets that the job names, `work` is the blob of
        its upload, `checkpoint` that of the weights behind epoch `epoch`.

        Raises what the plan or its first look at the data fails of, SessionLostError, NodeUnavailableError.
        """
        with contextlib.ExitStack() as files:
            descriptors: list[int] = []

            def hand(descriptor: int) -> int:
                files.callback(os.close, descriptor)
                descriptors.append(descriptor)
                return len(descriptors) - 1

            first = hand(await blobs.open(work))
            uploaded = await asyncio.to_thread(header_of, blobs, work)
            weights, at, state = find_weights(uploaded, job.model), first, []
            if checkpoint is not None:
                kept = await asyncio.to_thread(header_of, blobs, checkpoint)
                at = hand(await blobs.open(checkpoint))
                weights = _weights(kept, job.model)
                state = [one for one in kept if one.name.startswith(_STATE)]
            numbers = {(one.id, one.version): hand(await datasets.open(one)) for one in found}
            message = worker.RunJob(
                plan=_stored(first, find_plan(uploaded)),
                arguments=job.arguments,
                weights=tuple(_stored(at, one, part.name) for one, part in zip(weights, job.model, strict=True)),
                data=_sources(job, found, numbers),
                state=tuple(_stored(at, one, one.name.removeprefix(_STATE)) for one in state),
                epoch=epoch,
            )
            process = await started(pool, job.asked)
            made = cls(pool, process, blobs, job)
            try:
                await (await process.send(message, tuple(descriptors)))
            except BaseException:
                await made.kill()
                raise
            return made

    async def kill(self) -> None:
        """End it at once."""
        await self._pool.kill(self._process)

    # -------------------------------------------------------------- epochs

    async def epochs(self, begun: int, total: int) -> AsyncIterator[Kept]:
        """Train from epoch `begun` to `total`: checkpoints, each on the disk when it is told, the result as the last.

        Raises what the run fails of, SessionLostError, StorageFullError.
        """
        at, count = begun, 1
        while at < total:
            count = min(count, total - at)
            before = time.monotonic()
            reply, _, descriptors = await (await self._process.send(worker.RunEpoch(epochs=count, keep=True)))
            try:
                trained = _trained(reply)
                at += count
                blob = await self._kept(descriptors, trained.nbytes, at == total)
            finally:
                close_all(descriptors)
            yield Kept(at, trained.history, blob)
            took = time.monotonic() - before
            count = max(1, int(count * KEEP_S / max(took, KEEP_S / 64)))

    async def _kept(self, descriptors: Sequence[int], nbytes: int, is_result: bool) -> Blob:
        storing = asyncio.ensure_future(asyncio.to_thread(self._store, descriptors, nbytes, is_result))
        try:
            return await to_the_end(storing)
        except asyncio.CancelledError:
            if storing.done() and not failed(storing):
                await asyncio.to_thread(self._blobs.delete, storing.result().name)  # nobody will know of it
            raise

    def _store(self, descriptors: Sequence[int], nbytes: int, is_result: bool) -> Blob:
        """Keep what the Worker handed over: all of it, or of a result the weights alone."""
        limit = 8 * self._job.model_bytes + (1 << 20)
        if len(descriptors) != 1 or not 0 < nbytes <= limit or os.fstat(descriptors[0]).st_size != nbytes:
            raise GridError("the job's Worker handed over something else than its weights")
        memory = descriptors[0]
        prefix = os.pread(memory, PREFIX_BYTES, 0)
        length = header_length(prefix, nbytes)
        tensors = parse_header(prefix, os.pread(memory, length, PREFIX_BYTES), nbytes)
        weights = _weights(tensors, self._job.model)
        kept = list(weights) if is_result else list(tensors)
        header = build_header([(one.name, one.dtype, one.shape) for one in kept])
        places = {one.name: one for one in kept}
        total = len(header) + sum(one.end - one.begin for one in kept)
        with self._blobs.begin(new_upload_id()) as upload:
            upload.write(header)
            for place in sorted(
                parse_header(header[:PREFIX_BYTES], header[PREFIX_BYTES:], total), key=lambda one: one.begin
            ):
                one = places[place.name]
                for at in range(one.begin, one.end, _CHUNK):
                    upload.write(os.pread(memory, min(_CHUNK, one.end - at), at))
            return upload.commit(passing=not is_result)

    # -------------------------------------------------------------- rounds

    async def round(
        self,
        number: int,
        payload: memoryview,
        descriptors: Sequence[int],
        gone: asyncio.Future[None],
        timeout_s: float,
    ) -> tuple[worker.Trained, memoryview, list[int]]:
        """One round: what it gave, and the new weights as bytes or in a descriptor, which is the caller's to close.

        Raises what the round fails of, asyncio.TimeoutError, SessionLostError, also where `gone` is done before a
        large result is whole.
        """
        self.busy = True
        try:
            waiting = await self._process.send(worker.RunRound(number=number), tuple(descriptors), payload)
            reply, weights, handed = await asyncio.wait_for(waiting, timeout_s)
            try:
                trained = _trained(reply)
                size = self._job.model_bytes
                inline = size <= INLINE_BYTES
                if trained.nbytes != size or len(handed) != (0 if inline else 1) or (inline and len(weights) != size):
                    raise GridError("the job's Worker handed over something else than its weights")
                if handed:
                    await wait_until_filled(handed[0], size, gone)
            except BaseException:
                close_all(handed)
                raise
            return trained, weights, handed
        finally:
            self.busy = False
            self.last_used = time.monotonic()


async def started(pool: Workers, asked: Asked) -> WorkerProcess:
    """A Worker; where somebody else was quicker to take its share, it is waited for. Who is cancelled leaves none
    behind. Raises NodeUnavailableError, BadRequest and LimitExceededError for what can never be."""
    while True:
        starting = asyncio.ensure_future(pool.start(asked))
        try:
            return await to_the_end(starting)
        except asyncio.CancelledError:
            if starting.done() and not failed(starting):
                await pool.kill(starting.result())
            raise
        except LimitExceededError:  # the pool has waited for a while
            pool.room(asked)


async def to_the_end(work: Awaitable[T]) -> T:
    """What the work gives; it is not left half done where its caller is cancelled, who is then, behind it."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})
        raise


def failed(work: asyncio.Future[Any]) -> bool:
    """Whether it has ended with an error, which is then taken note of."""
    return work.done() and (work.cancelled() or work.exception() is not None)


def header_of(blobs: BlobStore, blob: str) -> tuple[BlobTensor, ...]:
    """What a blob holds. Raises InvalidDataError, ObjectNotFoundError, NodeUnavailableError."""
    with blobs.reading(blob) as file:
        return read_header(file)[0]


def _weights(tensors: Sequence[BlobTensor], model: Sequence[Part]) -> tuple[BlobTensor, ...]:
    by_name = {one.name: one for one in tensors}
    found = tuple(by_name.get(f"w/{number}") for number in range(len(model)))
    if not all(
        one is not None and (one.dtype, one.shape) == (part.dtype, part.shape)
        for one, part in zip(found, model, strict=True)
    ):
        raise GridError("the weights of a checkpoint are not those of the job's model")
    return tuple(one for one in found if one is not None)


def _stored(file: int, one: BlobTensor | StoredTensor, name: str = "") -> worker.Stored:
    return worker.Stored(
        file=file, name=name or one.name, dtype=one.dtype, shape=one.shape, begin=one.begin, end=one.end
    )


def _sources(
    job: JobDocument, found: Sequence[StoredDataset], numbers: Mapping[tuple[int, int], int]
) -> dict[str, worker.Source]:
    tensors = {(one.id, one.version): {tensor.name: tensor for tensor in one.tensors} for one in found}
    made = {}
    for name, rows in job.data.items():
        at = rows.dataset, rows.version
        parts = tuple(_stored(numbers[at], tensors[at][tensor]) for tensor in rows.tensors)
        made[name] = worker.Source(tensors=parts, columns=rows.columns)
    return made


def _trained(reply: worker.Reply) -> worker.Trained:
    if not isinstance(reply, worker.Trained):
        raise GridError("the job's Worker answered with something else than what it trained")
    return reply
