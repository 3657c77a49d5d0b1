"""A Worker that folds reports of devices: takes their files as descriptors, hands checkpoints back. NumPy alone.

Any Worker can; the lean one (worker/foldserver.py) does nothing else.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

from grid_jupyter.aggregation.averaging import STRATEGIES, Averaging
from grid_jupyter.aggregation.reports import Folding, form_of
from grid_jupyter.errors import GridError, InvalidDataError, InvalidMessageError, LimitExceededError
from grid_jupyter.wire import frames, worker
from grid_jupyter.wire.messages import Failed
from grid_jupyter.worker.channel import Channel, close_all
from grid_jupyter.worker.memory import fill, keep_freed_memory, memory_file


def settle(limits: worker.WorkerLimits) -> None:
    """Make a fork a Worker of its own: pages of the sums before are those of the next."""
    keep_freed_memory(of_steps=True)


def serve(sock: socket.socket, limits: worker.WorkerLimits) -> None:
    """Fold until the Node closes the channel."""
    channel, folds = Channel(sock), Folds()
    while True:
        try:
            frame, descriptors = channel.receive()
        except EOFError:
            return
        try:
            number, message = frames.decode(frames.unpack(frame).header, worker.request_decoder)
            if not isinstance(message, worker.FoldRequest):
                raise InvalidMessageError("this Worker folds, and does nothing else")
            folds.answer(channel, number, message, descriptors, channel.send_soon)
        finally:
            close_all(descriptors)


class Folds:
    """The folds of all trainings of a Node, by number."""

    def __init__(self) -> None:
        self._folds: dict[int, Folding] = {}

    def answer(
        self,
        channel: Channel,
        number: int,
        message: worker.FoldRequest,
        descriptors: list[int],
        send: Callable[[bytes], None] | None = None,
    ) -> None:
        """Do what is asked, and say how it went: by `send`, but for what goes with descriptors."""
        made, send = _Made(), send or channel.send
        if isinstance(message, worker.DropFold):
            self._folds.pop(message.training, None)
            send(worker.reply_frame(number, worker.Done()))
            return
        try:
            reply: worker.Reply = worker.Done()
            if len(descriptors) != 1 + (len(message.slots) if isinstance(message, worker.EndFold) else 0):
                raise InvalidMessageError("folding takes the descriptors of its files")
            if isinstance(message, worker.EndFold):
                state = dict(zip(message.slots, descriptors[1:], strict=True))
                self._of(message.training).checkpoint(descriptors[0], state, made)
                reply = worker.Folded(files=tuple(made.files))
            else:
                self._do(message, descriptors[0])
            if made.descriptors:
                channel.send(worker.reply_frame(number, reply), made.descriptors)
            else:
                send(worker.reply_frame(number, reply))
        except GridError as error:
            send(worker.reply_frame(number, Failed(code=error.code, error=str(error))))
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
            # NumPy's words for what no check of ours foresaw: a report may hold anything
            print(f"a report could not be folded: {type(error).__name__}", file=sys.stderr)
            text = "these bytes cannot be computed with; send a report as docs/protocol-model-centric.md has it"
            send(worker.reply_frame(number, Failed(code=InvalidDataError.code, error=text)))
        except MemoryError:
            text = "the Worker that folds has no memory left for this model"
            send(worker.reply_frame(number, Failed(code=LimitExceededError.code, error=text)))
        finally:
            close_all(made.descriptors)

    def _do(self, message: worker.BeginFold | worker.CheckReport | worker.FoldReport, descriptor: int) -> None:
        if isinstance(message, worker.BeginFold):
            if message.strategy not in STRATEGIES:
                raise InvalidMessageError("there is no such strategy")
            averaging = Averaging(STRATEGIES[message.strategy](**message.numbers), frozenset(message.buffers))
            self._folds[message.training] = Folding(form_of(descriptor), averaging)
            return
        folding = self._of(message.training)
        if isinstance(message, worker.CheckReport):
            folding.check(descriptor, samples=message.samples, max_norm=message.max_norm, accepted=message.forms)
            return
        if message.number != folding.count + 1:
            raise InvalidMessageError(f"report {message.number} is not the next one to be folded")
        folding.fold(descriptor, message.samples, message.staleness)

    def _of(self, training: int) -> Folding:
        found = self._folds.get(training)
        if found is None:
            raise InvalidMessageError("this training was not begun here")
        return found


class _Made:
    """Files of memory that a checkpoint is written to."""

    def __init__(self) -> None:
        self.files: list[tuple[str, int]] = []
        self.descriptors: list[int] = []

    def begin(self, name: str, nbytes: int, /) -> _Filled:
        self.descriptors.append(memory_file(nbytes))
        self.files.append((name, nbytes))
        return _Filled(self.descriptors[-1])


class _Filled:
    """A file of memory; its position says how much of it is there, also to a Node elsewhere."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes | memoryview, /) -> None:
        fill(self._descriptor, memoryview(data))
