"""The Worker in which reports are checked and folded, as the Node sees it: started when needed, again when it died.

What it holds can be made again from the files of the reports, so that its end loses nothing. Everything here is of one
event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grid_jupyter.errors import GridError, InvalidDataError, InvalidMessageError, SessionLostError
from grid_jupyter.store.blobs import Blob, BlobStore, Upload
from grid_jupyter.wire import worker
from grid_jupyter.worker.backend import Workers
from grid_jupyter.worker.channel import close_all
from grid_jupyter.worker.devices import NODES
from grid_jupyter.worker.pool import WorkerPool
from grid_jupyter.worker.process import Answer, WorkerProcess, here

PROGRAM = ("-m", "grid_jupyter.worker.foldserver")
IDLE_S = 300.0
"""How long a Worker is kept that nobody asks for anything."""
_TRIES = 3
"""How often something is asked of a Worker that dies of it, or beside it."""
_FILL_S = 0.001
_PIECE = 1 << 20


def fold_workers(*, require_isolation: bool = False) -> WorkerPool[WorkerProcess]:
    """Workers on this machine that fold, and load no torch. Their memory is the models', which are no strangers'."""

    def hold(number: int, sock: socket.socket) -> WorkerProcess:
        return WorkerProcess(number, here(sock))

    limits = worker.WorkerLimits(memory_bytes=0, operation_s=0, threads=1)
    return WorkerPool(limits, hold, 0, require_isolation=require_isolation, program=PROGRAM)


@dataclass(frozen=True)
class Subject:
    """A training whose reports are folded: one of its checkpoints, its strategy, what reports are checked against."""

    training: int
    model: Path
    strategy: str
    numbers: Mapping[str, int | float]
    buffers: tuple[str, ...]
    max_norm: float | None
    forms: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """A checkpoint, and what its strategy keeps for the next one: a blob for each of its slots, such as "momentum"."""

    model: Blob
    state: dict[str, Blob]


class FoldWorker:
    """One Worker for all trainings of a Node. Raises NodeUnavailableError where none can be started."""

    def __init__(self, workers: Workers, *, far: bool = False, idle_s: float = IDLE_S) -> None:
        """`far`: Workers are those of a cluster, which stay the caller's. Their machines keep files that cannot be
        written to for their next use, and reports have none."""
        self._workers, self._far = workers, far
        self._flags = (os.O_RDWR if far else os.O_RDONLY) | os.O_CLOEXEC
        self._idle_s = idle_s
        self._process: WorkerProcess | None = None
        self._starting = asyncio.Lock()
        self._counts: dict[int, int] = {}
        self._busy = 0
        self._resting: asyncio.TimerHandle | None = None
        self._beside: set[asyncio.Task[None]] = set()

    async def sandboxed(self) -> tuple[list[str], dict[str, str]]:
        """As WorkerPool.sandboxed, on this machine. Raises NodeUnavailableError."""
        near = self._workers if isinstance(self._workers, WorkerPool) else fold_workers()
        return await near.sandboxed()

    def prepare(self) -> None:
        """Reports may come soon."""
        if not self._is_there() and not self._beside:
            self._track(self._prepared())

    def count(self, subject: Subject) -> int:
        """Reports of a training that are folded in the Worker."""
        return self._counts.get(subject.training, 0) if self._is_there() else 0

    def forget(self, subject: Subject) -> None:
        """What was folded of a training is not to be used: the next report is the first."""
        self._counts.pop(subject.training, None)

    async def drop(self, subject: Subject) -> None:
        """A training is over: its sums, and the files that they are of, take no room in the Worker any more."""
        self.forget(subject)
        process = self._process
        if process is not None and self._is_there():
            with contextlib.suppress(SessionLostError):
                _unheard(await self._send(process, worker.DropFold(training=subject.training)))

    async def check(self, subject: Subject, report: Path | Upload, samples: int) -> None:
        """Whether a report could count. Raises BadRequest, InvalidDataError, LimitExceededError where not."""
        asked = worker.CheckReport(
            training=subject.training, samples=samples, max_norm=subject.max_norm, forms=subject.forms
        )
        for _ in range(_TRIES):
            with contextlib.suppress(SessionLostError):
                await self._ask(subject, asked, report)
                return
        raise InvalidDataError("the report ends the process that reads it; it does not count")

    async def fold(self, subject: Subject, reports: Sequence[tuple[Path, int, int]]) -> None:
        """Fold the next reports, each with its samples and its staleness, in this order: the Worker has all of them
        before the first answer. Raises SessionLostError where the Worker died: then nothing is folded."""
        number, process = self.count(subject), None
        waiting: list[asyncio.Future[Answer]] = []
        self._busy += 1
        try:
            for report, samples, staleness in reports:
                number += 1
                asked = worker.FoldReport(
                    training=subject.training, number=number, samples=samples, staleness=staleness
                )
                waiting.append(await self._asked(subject, asked, report))
                process = process or self._process
                if process is not self._process:
                    raise SessionLostError("the Worker ended between two reports")
            for one in waiting:
                await one
        except BaseException:
            self.forget(subject)
            for one in waiting:
                _unheard(one)
            raise
        finally:
            self._busy -= 1
            self._rest_later()
        self._counts[subject.training] = number

    async def checkpoint(self, subject: Subject, model: Path, state: Mapping[str, Path], blobs: BlobStore) -> Made:
        """The model after a cycle of what was folded, durably; nothing is folded afterwards.

        Raises SessionLostError where the Worker died, StorageFullError.
        """
        asked = worker.EndFold(training=subject.training, slots=tuple(state))
        try:
            reply, _, files = await self._ask(subject, asked, model, *state.values())
        finally:
            self.forget(subject)
        handed = False
        try:
            if not isinstance(reply, worker.Folded) or len(files) != len(reply.files):
                raise InvalidMessageError("a Worker was asked for a checkpoint, and answered something else")
            for descriptor, (_, nbytes) in zip(files, reply.files, strict=True):
                await self._filled(descriptor, nbytes)
            keeping = asyncio.to_thread(_kept, dict(zip(reply.files, files, strict=True)), blobs)
            handed = True  # the thread closes them: it goes on where this is cancelled
            made = await keeping
            return Made(made.pop(""), made)
        finally:
            if not handed:
                close_all(files)

    async def _filled(self, descriptor: int, nbytes: int) -> None:
        """A file from another machine may still come."""
        while os.lseek(descriptor, 0, os.SEEK_CUR) < nbytes:
            if not self._is_there():
                raise SessionLostError("the Worker ended before its checkpoint was here")
            await asyncio.sleep(_FILL_S)

    async def stop(self) -> None:
        """End the Worker; nothing is lost."""
        while self._beside:
            await asyncio.wait(self._beside)
        if self._resting is not None:
            self._resting.cancel()
        process, self._process = self._process, None
        if process is not None:
            await self._workers.kill(process)
        if not self._far:
            await self._workers.stop()

    # -------------------------------------------------------------- asking

    def _is_there(self) -> bool:
        return self._process is not None and not self._process.lost.done()

    async def _ask(self, subject: Subject, message: worker.FoldRequest, *files: Path | Upload) -> Answer:
        self._busy += 1
        try:
            return await (await self._asked(subject, message, *files))
        finally:
            self._busy -= 1
            self._rest_later()

    async def _asked(
        self, subject: Subject, message: worker.FoldRequest, *files: Path | Upload
    ) -> asyncio.Future[Answer]:
        """Ask, and wait no longer than until it is on its way."""
        process = await self._started()
        if subject.training not in self._counts:
            self._counts[subject.training] = 0  # at once: what is sent behind it comes behind it
            begin = worker.BeginFold(
                training=subject.training,
                strategy=subject.strategy,
                numbers=dict(subject.numbers),
                buffers=subject.buffers,
            )
            try:
                begun = await self._send(process, begin, subject.model)
            except BaseException:  # it is begun with the next message
                self.forget(subject)
                raise
            begun.add_done_callback(lambda done: self.forget(subject) if _failed(done) else None)
        return await self._send(process, message, *files)

    async def _send(
        self, process: WorkerProcess, message: worker.FoldRequest, *files: Path | Upload
    ) -> asyncio.Future[Answer]:
        descriptors: list[int] = []
        try:
            for file in files:
                opened = file.reading(self._flags) if isinstance(file, Upload) else os.open(file, self._flags)
                descriptors.append(opened)  # those before one that fails are closed
            return await process.send(message, tuple(descriptors))
        finally:
            close_all(descriptors)

    async def _started(self) -> WorkerProcess:
        async with self._starting:
            if self._process is None or self._process.lost.done():
                self._counts.clear()
                lost, self._process = self._process, None
                if lost is not None:
                    await lost.close()
                self._process = await self._workers.start(NODES)
            return self._process

    def _rest_later(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(self._idle_s, self._rest)

    def _rest(self) -> None:
        """Let a Worker go that nobody asks for anything: it may have a place of others on a cluster."""
        process = self._process
        if self._busy or process is None:
            return
        self._process = None
        self._counts.clear()
        self._track(self._workers.kill(process))

    async def _prepared(self) -> None:
        with contextlib.suppress(GridError):  # whoever reports is told
            await self._started()
            self._rest_later()

    def _track(self, work: Coroutine[Any, Any, None]) -> None:
        beside = asyncio.create_task(work)
        self._beside.add(beside)
        beside.add_done_callback(self._beside.discard)


def _failed(done: asyncio.Future[Answer]) -> bool:
    return not done.cancelled() and done.exception() is not None


def _unheard(answer: asyncio.Future[Answer]) -> None:
    """Nobody waits for it; that the Worker died instead is as good."""
    answer.add_done_callback(_failed)


def _kept(files: Mapping[tuple[str, int], int], blobs: BlobStore) -> dict[str, Blob]:
    """Files of memory as blobs. Nothing stays where one of them does not fit."""
    made: dict[str, Blob] = {}
    buffer = memoryview(bytearray(min(_PIECE, max((nbytes for _, nbytes in files), default=0))))
    try:
        for (slot, nbytes), descriptor in files.items():
            with blobs.begin(nbytes=nbytes) as upload:
                while upload.size < nbytes:
                    piece = buffer[: min(_PIECE, nbytes - upload.size)]
                    count = os.preadv(descriptor, [piece], upload.size)
                    if not count:
                        raise GridError("a checkpoint came with fewer bytes than it said")
                    upload.write(piece[:count])
                made[slot] = upload.commit()
    except BaseException:
        for blob in made.values():
            blobs.delete(blob.name)
        raise
    finally:
        close_all(files.values())
    return made
