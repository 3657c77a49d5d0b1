"""VirtualWorker: a place for tensors inside this process, behind the same codec as a Node's Worker."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from grid_jupyter.errors import BadRequest, NotAuthenticatedError, SendNotPermittedError
from grid_jupyter.ops.raw import NAMES, from_bytes, to_bytes
from grid_jupyter.tensors.hook import install
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor, send
from grid_jupyter.tensors.session import Session
from grid_jupyter.wire import frames, messages
from grid_jupyter.wire.limits import MAX_INLINE_BYTES
from grid_jupyter.worker.executor import Broken, Executor


class _LocalLink:
    """Feeds an Executor on a thread of its own: torch's modes of the caller's thread must not reach it."""

    def __init__(self) -> None:
        self.executor = Executor()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="virtual-worker")
        self._bulk: dict[str, bytearray] = {}
        self._tickets = itertools.count(1)
        self._fed = 0

    def run(self, work: Any, *args: Any) -> Any:
        return self._thread.submit(work, *args).result()

    def send(self, header: bytes, number: int = 0, more: bool = False) -> None:
        frame = frames.unpack(frames.pack(frames.OPERATIONS, header))
        self.run(self._feed, frame.header, number)

    def _feed(self, header: memoryview, number: int) -> None:
        if number > self._fed or not number:  # else it comes again after an interrupt
            self._fed = number or self._fed
            self.executor.feed(header)

    def request(self, message: messages.Request) -> tuple[messages.Reply, memoryview]:
        asked = frames.unpack(messages.request_frame(1, message))
        _, decoded = frames.decode(asked.header, messages.request_decoder)
        answered = frames.unpack(self.run(self._answer, decoded))
        _, reply = frames.decode(answered.header, messages.reply_decoder)
        return reply, answered.payload

    def _answer(self, message: messages.Request) -> bytes:
        if isinstance(message, messages.Read):
            earlier, found = self.executor.earlier(), self.executor.read(message.value)
            if earlier:
                raise earlier[0].error
            if isinstance(found, Broken):
                raise found.error
            dtype, shape = NAMES[found.tensor.dtype], tuple(found.tensor.shape)
            data = to_bytes(found.tensor)
            if message.remove:
                self.executor.free(message.value)
            if len(data) <= MAX_INLINE_BYTES:
                return messages.reply_frame(1, messages.Value(dtype=dtype, shape=shape), data)
            ticket = str(next(self._tickets))
            self._bulk[ticket] = bytearray(data)
            return messages.reply_frame(1, messages.Value(dtype=dtype, shape=shape, bulk=ticket))
        if isinstance(message, messages.Sizes):
            layouts = self.executor.layouts(message.values)
            if isinstance(layouts, Broken):
                raise layouts.error
            return messages.reply_frame(1, messages.Shapes(layouts=layouts))
        raise BadRequest(f"a VirtualWorker does not serve {type(message).__name__}; that needs a Node")

    def upload(self, identity: int, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        self.run(self.executor.put, identity, from_bytes(bytearray(data), dtype, shape))

    def download(self, ticket: str) -> bytearray:
        return self._bulk.pop(ticket)

    def credential(self, user: str) -> str:
        raise NotAuthenticatedError(
            "a VirtualWorker lives in your own process and knows no accounts: call .get() without user="
        )


class VirtualWorker:
    """A worker in this process, to try things out: `bob = VirtualWorker(hook, id="bob")`.

    It keeps what is sent to it and computes on it as a Node would, but protects nothing: whoever holds
    the object can read `_objects`.
    """

    def __init__(self, hook: Any = None, id: str = "") -> None:  # noqa: A002  # 0.2.9's name
        if not id:
            raise ValueError("a VirtualWorker needs an id, such as VirtualWorker(hook, id='bob')")
        self.id = id
        self._link = _LocalLink()
        self.session = Session(self, self._link)

    @property
    def local_worker(self) -> VirtualWorker:
        """The worker that stands for this process."""
        return local_worker()

    @property
    def _objects(self) -> dict[int, torch.Tensor]:
        self.session.flush()
        return dict(self._link.run(lambda: dict(self._link.executor.values)))

    def receive(self, tensor: Any, user: str | None = None) -> RemoteTensor:
        """Take in a tensor; what `tensor.send(worker)` calls."""
        if isinstance(tensor, PrivateTensor):
            raise SendNotPermittedError(
                f"{self.id} is a VirtualWorker and cannot protect private values; send them to a Node"
            )
        if user is not None:
            self._link.credential(user)
        sent = send(tensor, self.session)
        sent.tags, sent.description = getattr(tensor, "tags", ()), getattr(tensor, "description", "")
        return sent

    def __repr__(self) -> str:
        return f"<VirtualWorker id:{self.id} #objects:{len(self._objects)}>"


_local: list[VirtualWorker] = []


def local_worker() -> VirtualWorker:
    """The one worker `me`, which owns the pointers of this process."""
    if not _local:
        _local.append(VirtualWorker(id="me"))
    return _local[0]


class TorchHook:
    """Puts the verbs of 0.2.9 on torch: `hook = TorchHook(torch)`; `hook.local_worker` is this process."""

    def __init__(self, torch_module: Any = torch) -> None:
        install(torch_module)
        self.local_worker = local_worker()
