"""Answers a session's frames with an executor of this process: what a Node does, without its gates."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from grid_jupyter.errors import BadRequest, GridError, ObjectNotFoundError, RemoteOperationError, SessionLostError
from grid_jupyter.ops.raw import NAMES, from_bytes, to_bytes
from grid_jupyter.wire import messages
from grid_jupyter.wire.limits import MAX_INLINE_BYTES
from grid_jupyter.worker.executor import Broken, Executor

T = TypeVar("T")
_MAX_WAITING = 16
_random_state = threading.Lock()
"""Held while a worker's state is in torch's one random generator: two workers that exchange it at once would leave the
state of one to the process."""


class Shelf:
    """The objects of one worker, what they are called, and the one thread on which they are computed with.

    torch's modes are a thread's own, so those of the caller's thread must not reach it. Its random generator is the
    process's: the worker has a state of its own for it, so that the caller draws as if the worker were elsewhere.
    """

    def __init__(self, name: str) -> None:
        self.executor = Executor()
        self.words: dict[int, tuple[tuple[str, ...], str]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"worker-{name}")
        self._random = torch.Generator().get_state()

    def run(self, work: Callable[..., T], *args: Any) -> T:
        """Do it on the worker's thread, and wait. Raises SessionLostError while the process ends, and its threads."""
        try:
            waited = self._thread.submit(self._apart, work, *args)
        except RuntimeError:
            raise SessionLostError("the worker has ended with its process") from None
        return waited.result()

    def _apart(self, work: Callable[..., T], *args: Any) -> T:
        with _random_state:
            callers = torch.default_generator.get_state()
            torch.default_generator.set_state(self._random)
            try:
                return work(*args)
            finally:
                self._random = torch.default_generator.get_state()
                torch.default_generator.set_state(callers)

    def another_executor(self) -> Executor:
        """An executor with templates and modes of its own, over the same objects: for one more connection."""
        made = Executor()
        made.values, made.boxes = self.executor.values, self.executor.boxes
        return made

    def call(self, identity: int, tags: tuple[str, ...], description: str) -> None:
        """Remember what an object is called."""
        if tags or description:
            self.words[identity] = (tags, description)

    def found(self, query: tuple[str, ...]) -> dict[int, torch.Tensor]:
        """Tensors that every word of the query fits: a tag, a part of the description, or the number."""
        self.words = {identity: words for identity, words in self.words.items() if identity in self.executor.values}
        return {
            identity: value
            for identity, value in self.executor.values.items()
            if isinstance(value, torch.Tensor) and all(self._fits(identity, word) for word in query)
        }

    def _fits(self, identity: int, word: str) -> bool:
        tags, description = self.words.get(identity, ((), ""))
        return word in tags or word == str(identity) or bool(word and word in description)

    def clear(self) -> None:
        """Forget all objects."""
        self.executor.values.clear()
        self.executor.boxes.clear()
        self.words.clear()


class Answering:
    """One connection's requests, answered. Runs on the shelf's thread."""

    def __init__(self, shelf: Shelf, executor: Executor, name: str) -> None:
        self.executor = executor
        self._shelf = shelf
        self._name = name
        self._bulk: dict[str, bytearray] = {}
        self._tickets = itertools.count(1)

    def answer(self, message: messages.Request) -> tuple[messages.Reply, bytes | memoryview]:
        """The reply and its payload. Raises what the request failed with."""
        if isinstance(message, messages.Read):
            return self._read(message)
        if isinstance(message, messages.Sizes):
            layouts = self.executor.layouts(message.values)
            if isinstance(layouts, Broken):
                raise layouts.error
            return messages.Shapes(layouts=layouts), b""
        if isinstance(message, messages.Status):
            return messages.SessionStatus(values=len(self.executor.values), worker=True), b""
        if isinstance(message, messages.Search):
            found = self._shelf.found(message.query)
            return messages.Found(datasets=tuple(self._described(*one) for one in found.items())), b""
        raise BadRequest(f"{self._name} does not serve {type(message).__name__}; that needs a Node")

    def _described(self, identity: int, tensor: torch.Tensor) -> messages.DatasetInfo:
        tags, description = self._shelf.words.get(identity, ((), ""))
        info = messages.TensorInfo(name="", dtype=NAMES[tensor.dtype], shape=tuple(tensor.shape))
        return messages.DatasetInfo(
            id=identity, version=0, kind="tensor", name="", tags=tags, description=description, owner=self._name,
            tensors=(info,),
        )  # fmt: skip

    def _read(self, message: messages.Read) -> tuple[messages.Reply, bytes | memoryview]:
        earlier, found = self.executor.earlier(), self.executor.read(message.value)
        if earlier:
            raise earlier[0].error
        if isinstance(found, Broken):
            raise found.error
        dtype, shape = NAMES[found.tensor.dtype], tuple(found.tensor.shape)
        try:
            data = to_bytes(found.tensor)
        except RuntimeError as error:
            raise RemoteOperationError(f"this value cannot be handed over ({type(error).__name__})") from None
        if message.remove:
            self.executor.free(message.value)
        if len(data) <= MAX_INLINE_BYTES:
            return messages.Value(dtype=dtype, shape=shape), bytes(data)
        if len(self._bulk) >= _MAX_WAITING:
            raise BadRequest("too many large values wait for their download; fetch one after the other")
        ticket = str(next(self._tickets))
        self._bulk[ticket] = bytearray(data)
        return messages.Value(dtype=dtype, shape=shape, bulk=ticket), b""

    def receive(self, identity: int, dtype: str, shape: tuple[int, ...], data: bytearray | memoryview) -> None:
        """Take in a large tensor."""
        self.executor.put(identity, from_bytes(data if isinstance(data, bytearray) else bytearray(data), dtype, shape))

    def take(self, ticket: str) -> bytearray:
        """The bytes of a large value, once. Raises ObjectNotFoundError."""
        found = self._bulk.pop(ticket, None)
        if found is None:
            raise ObjectNotFoundError("there is no such value to download, or it was fetched already")
        return found


def failed(error: GridError) -> messages.Failed:
    """An error as a reply."""
    return messages.Failed(code=error.code, error=str(error))
