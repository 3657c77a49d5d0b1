"""The Worker: one process, one session. Takes frames from its Node, runs them, answers requests.

This is the outermost door of the process: what fails here ends the session, and says so to the Node.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket

import torch

from grid_jupyter.errors import GridError, InvalidMessageError, LimitExceededError, RemoteOperationError
from grid_jupyter.ops.raw import DTYPES, NAMES, check_layout, from_bytes, mapped, to_bytes
from grid_jupyter.wire import frames, worker
from grid_jupyter.wire.limits import MAX_DATASETS_OPEN, MAX_INLINE_BYTES
from grid_jupyter.wire.messages import Failed
from grid_jupyter.worker import gpu
from grid_jupyter.worker.ancestry import Log, explain
from grid_jupyter.worker.channel import Channel
from grid_jupyter.worker.executor import Broken, Executor
from grid_jupyter.worker.folds import Folds
from grid_jupyter.worker.intake import Intake
from grid_jupyter.worker.jobs import JobRun, meaning
from grid_jupyter.worker.memory import Shared, fill, keep_freed_memory, memory_file


def settle(limits: worker.WorkerLimits) -> None:
    """Make a fork a Worker of its own, before it is confined (worker/confinement.py)."""
    torch.set_num_threads(limits.threads)
    keep_freed_memory()
    gpu.begin(limits)
    torch.manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)  # forks would share one state otherwise


def serve(sock: socket.socket, limits: worker.WorkerLimits) -> None:
    """Serve one session until the Node closes it."""
    channel = Channel(sock)
    executor = Executor(limits.memory_bytes, limits)
    session = _Session(channel, executor, limits)
    while True:
        try:
            frame, descriptors = channel.received() or session.next_frame()
        except EOFError:
            return
        try:
            if limits.operation_s > 0 and not session.is_job:  # the Node sees to the time of jobs
                # SIGALRM ends the process if one frame's work takes longer: kernels cannot be interrupted otherwise
                signal.setitimer(signal.ITIMER_REAL, limits.operation_s)
            try:
                session.handle(frame, descriptors)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except GridError as error:
            channel.send(worker.reply_frame(0, Failed(code=error.code, error=str(error))))
            return
        except MemoryError:
            error_text = f"the session's {gpu.memory_of(limits)} is used up"
            channel.send(worker.reply_frame(0, Failed(code=LimitExceededError.code, error=error_text)))
            return


class _Session:
    def __init__(self, channel: Channel, executor: Executor, limits: worker.WorkerLimits) -> None:
        self._channel = channel
        self._executor = executor
        self._limits = limits
        self._job: JobRun | None = None
        self._folds = Folds()
        self._intake = Intake()
        self._filling: tuple[int, memoryview] | None = None
        self._log = Log()

    @property
    def is_job(self) -> bool:
        """Whether a job runs here, and no session's operations."""
        return self._job is not None

    def next_frame(self) -> tuple[memoryview, list[int]]:
        """Wait for a frame, and take in meanwhile what comes in. Raises EOFError."""
        if self._intake.is_open:
            self._executor.memory.enter(False)
            self._intake.serve_until(self._channel.sock)
        return self._channel.receive()

    def handle(self, frame: memoryview, descriptors: list[int]) -> None:
        cut = frames.unpack(frame)
        try:
            if cut.kind == frames.OPERATIONS:
                self._log.add(bytes(cut.header))
                self._executor.feed(cut.header)
                return
            request_id, message = frames.decode(cut.header, worker.request_decoder)
            try:
                if type(message) is worker.Fetch:
                    self._fetch(request_id, message.value)
                elif isinstance(message, worker.RunJob | worker.RunEpoch | worker.RunRound):
                    self._run(request_id, message, cut.payload, descriptors)
                elif isinstance(message, worker.FoldRequest):
                    self._folds.answer(self._channel, request_id, message, descriptors)
                else:
                    self._answer(request_id, message, descriptors)
            except GridError as error:
                self._reply(request_id, Failed(code=error.code, error=str(error)))
            except MemoryError:
                self._reply(request_id, Failed(code=LimitExceededError.code, error="the session's memory is used up"))
            except (RuntimeError, TypeError, ValueError, LookupError) as error:
                text = f"this value cannot be handed over ({type(error).__name__})"  # torch's own text may quote it
                self._reply(request_id, Failed(code=RemoteOperationError.code, error=text))
            self._fill()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fill(self) -> None:
        """Write a large value that was just answered, while the Node decides on it and sends on what is there."""
        if self._filling is not None:
            (memory, data), self._filling = self._filling, None
            try:
                fill(memory, data)
            finally:
                os.close(memory)

    def _run(
        self,
        request_id: int,
        message: worker.RunJob | worker.RunEpoch | worker.RunRound,
        payload: memoryview,
        descriptors: list[int],
    ) -> None:
        memory = -1
        try:
            if isinstance(message, worker.RunJob):
                self._job = JobRun(message, descriptors, self._limits)
                self._reply(request_id, worker.Done())
                return
            if self._job is None:
                raise InvalidMessageError("no job runs in this Worker")
            if isinstance(message, worker.RunEpoch):
                trained, memory = self._job.epochs(message)
                self._channel.send(worker.reply_frame(request_id, trained), [] if memory < 0 else [memory])
                return
            trained, data, filling = self._job.round(message, payload, descriptors)
            if filling < 0:
                self._channel.send(worker.reply_frame(request_id, trained, data))
                return
            self._filling = (filling, data)
            self._channel.send(worker.reply_frame(request_id, trained), [filling])
        except (MemoryError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise meaning(error, self._limits) from None
        finally:
            if memory >= 0:
                os.close(memory)

    def _answer(self, request_id: int, message: worker.Request, descriptors: list[int]) -> None:
        reply: worker.Reply = worker.Done()
        if isinstance(message, worker.Load):
            self._load(message, descriptors)
            self._log.add(message)
        elif isinstance(message, worker.Close):
            self._executor.closed = sum(1 << source for source in set(message.sources))
        elif isinstance(message, worker.TakeIn):
            self._take_in(message, descriptors)
        elif isinstance(message, worker.Receive):
            self._receive(message, descriptors)
            self._log.add(message)
        elif isinstance(message, worker.Measure):
            reply = self._measure(message.values)
        elif isinstance(message, worker.Explain):
            reply = explain(self._log, message.value, self._executor.templates, self._executor.boxes)
        else:
            reply = worker.Counted(values=len(self._executor.values))
        self._reply(request_id, reply)

    def _reply(self, request_id: int, reply: worker.Reply) -> None:
        self._channel.send(worker.reply_frame(request_id, reply))

    def _measure(self, values: tuple[int, ...]) -> worker.Measured | worker.Broken:
        found = self._executor.layouts(values)
        if isinstance(found, Broken):
            return worker.Broken(fault=_fault(found), earlier=self._earlier())
        return worker.Measured(layouts=found, sources=bits(self._executor.lineage(values)), earlier=self._earlier())

    def _earlier(self) -> tuple[worker.Fault, ...]:
        return tuple(_fault(earlier) for earlier in self._executor.earlier())

    def _fetch(self, request_id: int, value: int) -> None:
        found = self._executor.read(value)
        if isinstance(found, Broken):
            self._reply(request_id, worker.Broken(fault=_fault(found), earlier=self._earlier()))
            return
        memory = -1
        try:
            data = to_bytes(found.tensor)
            if len(data) > MAX_INLINE_BYTES:
                memory = memory_file(len(data))
        except (RuntimeError, MemoryError) as error:
            # whether it fits may tell how large it is, so this is said to those alone who may read it
            failed = RemoteOperationError(f"this value cannot be handed over ({type(error).__name__})")
            self._reply(request_id, worker.Broken(fault=_fault(Broken(failed, found.sources)), earlier=self._earlier()))
            return
        reply = worker.Fetched(
            dtype=NAMES[found.tensor.dtype],
            shape=tuple(found.tensor.shape),
            nbytes=len(data),
            sources=bits(found.sources),
            earlier=self._earlier(),
        )
        if memory < 0:
            self._channel.send(worker.reply_frame(request_id, reply, data))
            return
        self._filling = (memory, data)
        self._channel.send(worker.reply_frame(request_id, reply), [memory])

    def _load(self, message: worker.Load, descriptors: list[int]) -> None:
        if len(descriptors) != 1:
            raise InvalidMessageError("loading a data set takes its descriptor")
        mapping: mmap.mmap | None = None
        for part in message.tensors:
            if mapping is None and part.begin != part.end:
                mapping = mmap.mmap(descriptors[0], 0, prot=mmap.PROT_READ)
            data = memoryview(b"" if mapping is None else mapping)[part.begin : part.end]
            tensor = mapped(data, part.dtype, part.shape)  # the executor refuses to write to it (Box.frozen)
            self._executor.put(part.value, tensor, 1 << message.source, frozen=True)

    def _take_in(self, message: worker.TakeIn, descriptors: list[int]) -> None:
        if len(descriptors) != 1:
            raise InvalidMessageError("taking in bytes takes their pipe")
        self._executor.memory.enter(False)
        self._intake.begin(message.number, message.nbytes, os.dup(descriptors[0]))

    def _receive(self, message: worker.Receive, descriptors: list[int]) -> None:
        if len(descriptors) != (not message.taken):
            raise InvalidMessageError("receiving a tensor takes its descriptor, or what was taken in")
        check_layout(message.dtype, message.shape)
        sources = sum(1 << source for source in set(message.sources))
        if message.taken:
            tensor = from_bytes(memoryview(self._intake.whole(message.taken)), message.dtype, message.shape)
        elif not os.fstat(descriptors[0]).st_size:
            tensor = torch.zeros(message.shape, dtype=DTYPES[message.dtype])
        else:
            tensor = from_bytes(memoryview(Shared(descriptors[0])), message.dtype, message.shape)
        self._executor.put(message.value, tensor, sources)


def _fault(broken: Broken) -> worker.Fault:
    error = broken.error
    return worker.Fault(code=error.code, error=str(error), sources=bits(broken.sources), value=error.value)


def bits(mask: int) -> tuple[int, ...]:
    """Numbers of the data sets in a lineage."""
    if not mask:
        return ()
    return tuple(index for index in range(min(mask.bit_length(), MAX_DATASETS_OPEN)) if mask >> index & 1)
