"""A Worker that runs a job: maps plan, weights and data from descriptors, trains, hands weights back.

Nothing of it is written anywhere: checkpoints and results go to the Node in files of memory.
"""

from __future__ import annotations

import mmap
import os

import torch

from grid_jupyter.errors import GridError, InvalidMessageError, LimitExceededError, RemoteOperationError
from grid_jupyter.ops.raw import DTYPES, NAMES, mapped, to_bytes
from grid_jupyter.plans.check import Limits
from grid_jupyter.plans.reader import read_plan
from grid_jupyter.plans.torch_engine import TorchEngine
from grid_jupyter.wire import worker
from grid_jupyter.wire.jobs import INLINE_BYTES, Part
from grid_jupyter.wire.safetensors import PREFIX_BYTES, build_header, parse_header
from grid_jupyter.worker import gpu
from grid_jupyter.worker.memory import Shared, keep_freed_memory, memory_file
from grid_jupyter.worker.training import Rows, Training, views

_NO_LIMIT = 1 << 62  # the Node checked how much work a batch is, and looks after the time


class JobRun:
    """One job in this Worker."""

    def __init__(self, message: worker.RunJob, descriptors: list[int], limits: worker.WorkerLimits) -> None:
        """Raises PlanInvalidError, InvalidMessageError, RemoteOperationError."""
        files = [mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) for descriptor in descriptors]

        def view(one: worker.Stored) -> torch.Tensor:
            if not 0 <= one.file < len(files):
                raise InvalidMessageError("a job's tensor lies in a file that did not come")
            return mapped(memoryview(files[one.file])[one.begin : one.end], one.dtype, one.shape)

        device = torch.device(limits.device)
        plan = read_plan(bytes(to_bytes(view(message.plan))))
        dtypes = {one.name: DTYPES[one.spec.dtype] for one in plan.inputs_of("x", "y")}
        data = {
            name: Rows([view(one) for one in source.tensors], source.columns, dtypes[name], device)
            for name, source in message.data.items()
        }
        keep_freed_memory(of_steps=True)
        self._model = tuple(Part(name=one.name, dtype=one.dtype, shape=one.shape) for one in message.weights)
        wanted = {"loss", "buffer", "param", "state", *(["metric"] if message.arguments.metrics else [])}
        memory_bytes = (
            limits.memory_bytes if device.type == "cpu" else _NO_LIMIT
        )  # a GPU's share was checked there, too
        bound = Limits(memory_bytes=memory_bytes, work=_NO_LIMIT)
        program = TorchEngine(device).load(plan, bound, wanted.__contains__)
        self._training = Training(plan, program.run, self._model, data, message.arguments, device)
        self._epoch = message.epoch
        with torch.no_grad():
            for part, one in zip(self._training.weights.parts, message.weights, strict=True):
                part.copy_(view(one))
        self._training.weights.check("model")
        self._training.reset()
        self._training.restore({one.name: view(one) for one in message.state})

    # -------------------------------------------------------------- epochs, whose weights the Node keeps

    def epochs(self, message: worker.RunEpoch) -> tuple[worker.Trained, int]:
        """Train on; the descriptor of a file of weights and state, or -1 where they are not to be kept."""
        history = []
        for _ in range(message.epochs):
            self._epoch += 1
            history.append(self._training.epoch(self._epoch))
        memory, nbytes = self._keep() if message.keep else (-1, 0)
        return self._trained(history, nbytes), memory

    def _trained(self, history: list[dict[str, float]], nbytes: int) -> worker.Trained:
        rows, size = self._training.rows, self._training.arguments.batch_size
        steps = len(history) * -(-rows // size)
        return worker.Trained(history=tuple(history), rows=rows, steps=steps, nbytes=nbytes)

    def _keep(self) -> tuple[int, int]:
        named = {f"w/{number}": part.detach() for number, part in enumerate(self._training.weights.parts)}
        named |= {f"s/{name}": value for name, value in self._training.state().items()}
        header = build_header([(name, NAMES[one.dtype], tuple(one.shape)) for name, one in named.items()])
        total = len(header) + sum(one.numel() * one.element_size() for one in named.values())
        memory = memory_file(total)
        try:
            _write(memory, 0, memoryview(header))
            for place in parse_header(header[:PREFIX_BYTES], header[PREFIX_BYTES:], total):
                _write(memory, place.begin, to_bytes(named[place.name]))
            os.lseek(memory, total, os.SEEK_SET)  # its position says that it is whole, also to a Node elsewhere
        except BaseException:
            os.close(memory)
            raise
        return memory, total

    # -------------------------------------------------------------- rounds, whose weights come and go

    def round(
        self, message: worker.RunRound, payload: memoryview, descriptors: list[int]
    ) -> tuple[worker.Trained, memoryview, int]:
        """Train one round; new weights as bytes, and where they are many, a file of memory that is to be filled."""
        weights = self._training.weights
        came: memoryview = memoryview(Shared(descriptors[0])) if descriptors else payload
        if len(came) != weights.nbytes * (2 if self._training.arguments.corrected else 1):
            raise InvalidMessageError(f"a round brings weights of {weights.nbytes} bytes, and {len(came)} came")
        taken = mapped(came, "uint8", (len(came),))
        correction = self._correction(taken[weights.nbytes :].clone()) if self._training.arguments.corrected else []
        with torch.no_grad():
            weights.load(taken[: weights.nbytes])
        self._training.reset(correction)
        history = [
            self._training.epoch(epoch, message.number) for epoch in range(1, self._training.arguments.epochs + 1)
        ]
        data = to_bytes(weights.flat)
        trained = self._trained(history, len(data))
        if len(data) <= INLINE_BYTES:
            return trained, data, -1
        if len(came) == len(data) and descriptors:  # back to where they came in: that memory is there already
            os.lseek(descriptors[0], 0, os.SEEK_SET)
            return trained, data, os.dup(descriptors[0])
        return trained, data, memory_file(len(data))

    def _correction(self, flat: torch.Tensor) -> list[torch.Tensor]:
        begins = [part.data_ptr() - self._training.weights.flat.data_ptr() for part in self._training.weights.parts]
        made = views(flat.to(self._training.weights.flat.device), self._model, begins)
        if not all(torch.isfinite(one).all() for one in made if one.is_floating_point()):
            raise RemoteOperationError("the correction holds NaN or infinite numbers")
        return made


def _write(memory: int, at: int, data: memoryview) -> None:
    try:
        while data:
            count = os.pwrite(memory, data, at)
            at, data = at + count, data[count:]
    except OSError:
        raise LimitExceededError("there is no memory left for the job's weights") from None


def meaning(error: Exception, limits: worker.WorkerLimits) -> GridError:
    """What a failed run says: torch's own text may quote values, so it is never passed on."""
    if isinstance(error, GridError):
        return error
    if gpu.is_full(error):
        gpu.let_go(torch.device(limits.device))
        more = "" if limits.device == "cpu" else ", or ask for a larger device_fraction"
        return LimitExceededError(
            f"the job took more than its {gpu.memory_of(limits)}: try smaller batches, or a smaller model{more}"
        )
    if "between 0 and 1" in str(error):
        return RemoteOperationError(
            "binary cross entropy is for outputs and targets between 0 and 1, and was given something else, or what "
            "is no number: let the model end with a Sigmoid, or take BCEWithLogitsLoss; if it does, training "
            "diverged: try a smaller learning rate, or scale the data"
        )
    return RemoteOperationError(f"the plan failed on this data ({type(error).__name__}): try it on rows like these")
