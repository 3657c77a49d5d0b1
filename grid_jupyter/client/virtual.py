"""VirtualWorker: a place for tensors inside this process, behind the same codec as a Node's Worker."""

from __future__ import annotations

import collections
import logging
import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from grid_jupyter.client.answering import Answering, Shelf
from grid_jupyter.client.remote_torch import RemoteTorch
from grid_jupyter.errors import BadRequest, NotAuthenticatedError, SendNotPermittedError, WorkerNotFoundException
from grid_jupyter.ops.shapes import layout_of
from grid_jupyter.tensors.chain import Kept, clear_held, held_by
from grid_jupyter.tensors.device import device_of
from grid_jupyter.tensors.former import FormerPlace
from grid_jupyter.tensors.hook import install
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor, point, send
from grid_jupyter.tensors.sending import WORKERS
from grid_jupyter.tensors.session import NUMBERS, Session
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire import frames, messages

log = logging.getLogger("grid_jupyter")
_MAX_HISTORY = 1000


class _LocalLink:
    """Carries frames to the thread of a worker, as a socket would."""

    def __init__(self, worker: VirtualWorker, answering: Answering) -> None:
        self._worker = worker
        self._answering = answering
        self._fed = 0

    def send(self, header: bytes, number: int = 0, more: bool = False) -> None:
        self._worker._arrives("operations")
        frame = frames.unpack(frames.pack(frames.OPERATIONS, header))
        self._worker.shelf.run(self._feed, frame.header, number)

    def _feed(self, header: memoryview, number: int) -> None:
        if number > self._fed or not number:  # else it comes again after an interrupt
            self._fed = number or self._fed
            self._answering.executor.feed(header)

    def request(self, message: messages.Request) -> tuple[messages.Reply, memoryview]:
        self._worker._arrives(type(message).__name__.lower())
        asked = frames.unpack(messages.request_frame(1, message))
        _, decoded = frames.decode(asked.header, messages.request_decoder)
        reply, payload = self._worker.shelf.run(self._answering.answer, decoded)
        answered = frames.unpack(messages.reply_frame(1, reply, payload))
        _, decoded_reply = frames.decode(answered.header, messages.reply_decoder)
        return decoded_reply, answered.payload

    def upload(self, identity: int, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        self._worker._arrives("upload")
        self._worker.shelf.run(self._answering.receive, identity, dtype, shape, data)

    def download(self, ticket: str) -> bytearray:
        return self._answering.take(ticket)

    def credential(self, user: str) -> str:
        raise NotAuthenticatedError(
            "a VirtualWorker lives in your own process and knows no accounts: call .get() without user="
        )


class VirtualWorker(FormerPlace):
    """A worker in this process, to try things out: `bob = VirtualWorker(hook, id="bob")`.

    It keeps what is sent to it and computes on it as a Node would, but protects nothing: whoever holds
    the object can read `_objects`.
    """

    def __init__(
        self,
        hook: Any = None,
        id: str = "",  # noqa: A002  # 0.2.9's name
        data: Iterable[Any] = (),
        is_client_worker: bool = False,
        log_msgs: bool = False,
        verbose: bool = False,
        auto_add: bool = True,
        message_pending_time: float = 0.0,
    ) -> None:
        """`data` is what it holds from the start. `log_msgs` keeps the names of the messages that it gets in
        `msg_history`, `verbose` logs them. `auto_add` makes it known by its id, as in `x.send("bob")`.
        `message_pending_time` delays each message, in seconds, as a network would.
        """
        if not id:
            raise ValueError("a VirtualWorker needs an id, such as VirtualWorker(hook, id='bob')")
        if is_client_worker:
            raise BadRequest("is_client_worker=True has no meaning here: the process's own worker is local_worker")
        if message_pending_time < 0:
            raise ValueError("message_pending_time is a number of seconds, 0 or more")
        self.id = id
        self.verbose = verbose
        self.message_pending_time = message_pending_time
        self.msg_history: collections.deque[str] | None = collections.deque(maxlen=_MAX_HISTORY) if log_msgs else None
        self._known_workers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self.shelf = Shelf(id)
        link = _LocalLink(self, Answering(self.shelf, self.shelf.executor, id))
        self.session = Session(self, link, attended=False)  # else it would draw beside its caller's own random numbers
        if auto_add:
            WORKERS[id] = self
        self.load_data(data)

    @property
    def device(self) -> torch.device:
        """`grid:0` and so on, for `x.to(device)` and `torch.zeros(3, device=device)`. Raises BadRequest."""
        return device_of(self)

    @property
    def local_worker(self) -> VirtualWorker:
        """The worker that stands for this process."""
        return local_worker()

    # -------------------------------------------------------------- what it holds

    @property
    def _objects(self) -> dict[int, Any]:
        """Values by their numbers, and the pointers that this worker holds."""
        return {**self._tensors, **held_by(self)}

    @property
    def _tensors(self) -> dict[int, torch.Tensor]:
        """Values by their numbers."""
        self.session.flush()
        return dict(self.shelf.run(lambda: dict(self.shelf.executor.values)))

    def load_data(self, data: Iterable[Any]) -> None:
        """Take in tensors, with their tags and descriptions; they stay until the worker is cleared."""
        for tensor in data:
            self.receive(tensor).garbage_collection = False
        self.session.flush()

    def search(self, *query: Any) -> list[RemoteTensor]:
        """Pointers to the tensors that all words fit: a tag, a part of the description, or the number.

        Words may come as a list. The tensors stay when these pointers go.
        """
        self.session.flush()
        words = tuple(word for one in query for word in ([one] if isinstance(one, (str, int)) else one))
        found = self.shelf.run(self.shelf.found, tuple(str(word) for word in words))
        made = []
        for identity, tensor in found.items():
            pointer = point(layout_of(tensor), Kept(identity, self.session))
            pointer.tags, pointer.description = self.shelf.words.get(identity, ((), ""))
            made.append(pointer)
        return made

    def clear_objects(self) -> VirtualWorker:
        """Forget all that it holds; returns the worker."""
        self.session.flush()
        self.session.cleared += 1
        self.shelf.run(self.shelf.clear)
        clear_held(self)
        return self

    def objects_count(self) -> int:
        """How many objects it holds."""
        return len(self._objects)

    def receive(self, tensor: Any, user: str | None = None) -> RemoteTensor:
        """Take in a tensor; what `tensor.send(worker)` calls."""
        if isinstance(tensor, PrivateTensor):
            raise SendNotPermittedError(
                f"{self.id} is a VirtualWorker and cannot protect private values; send them to a Node"
            )
        if user is not None:
            self.session.link.credential(user)
        sent = send(tensor, self.session)
        sent.tags, sent.description = tuple(getattr(tensor, "tags", ())), getattr(tensor, "description", "")
        self.shelf.call(sent.id_at_location, sent.tags, sent.description)
        return sent

    def take(self, pointer: RemoteTensor, user: str | None = None) -> RemoteTensor:
        """A copy of the value behind a pointer; what `pointer.move(worker)` calls. It comes through this process,
        in which the worker lives. Raises SendNotPermittedError for values that derive from published data."""
        reference: Any = pointer._ref
        tensor, readers = reference.session.read(reference.id, user)
        if readers is not None:
            raise SendNotPermittedError(
                f"{self.id} is a VirtualWorker and cannot protect values that derive from published data"
            )
        return self.receive(tensor)

    @property
    def remote(self) -> RemoteTorch:
        """`worker.remote.torch.zeros(3)`: torch's functions, with results here."""
        return RemoteTorch(self)

    # -------------------------------------------------------------- other workers

    def add_worker(self, worker: Any) -> VirtualWorker:
        """Know another worker by its id; returns this one."""
        self._known_workers[worker.id] = worker
        return self

    def add_workers(self, workers: Iterable[Any]) -> VirtualWorker:
        """Know further workers by their ids; returns this one."""
        for worker in workers:
            self.add_worker(worker)
        return self

    def get_worker(self, id_or_worker: Any) -> Any:
        """The worker of that id. Raises WorkerNotFoundException."""
        if not isinstance(id_or_worker, str):
            return id_or_worker
        found = self._known_workers.get(id_or_worker) or WORKERS.get(id_or_worker)
        if found is None:
            raise WorkerNotFoundException(f"{self.id} knows no worker {plain(id_or_worker)!r}; use add_worker")
        return found

    # -------------------------------------------------------------- messages

    def _arrives(self, message: str) -> None:
        if self.msg_history is not None:
            self.msg_history.append(message)
        if self.verbose:
            log.info("worker %s received: %s", plain(self.id), message)
        if self.message_pending_time:
            time.sleep(self.message_pending_time)

    def sources_text(self) -> tuple[str, str]:
        """What is known of the sources of a value here, and of its readers."""
        return "tensors of this process", "this process, which the worker lives in"

    def __repr__(self) -> str:
        return f"<VirtualWorker id:{self.id} #objects:{self.objects_count()}>"


_local: list[VirtualWorker] = []


def local_worker() -> VirtualWorker:
    """The one worker `me`, which owns the pointers of this process."""
    if not _local:
        _local.append(VirtualWorker(id="me"))
    return _local[0]


class TorchHook:
    """Puts the verbs of 0.2.9 on torch: `hook = TorchHook(torch)`; `hook.local_worker` is this process."""

    def __init__(
        self,
        torch_module: Any = torch,
        local_worker: VirtualWorker | None = None,
        is_client: bool = True,
        verbose: bool = True,
        seed: int | None = None,
    ) -> None:
        """`local_worker` is to stand for this process instead of `me`. Without `verbose` nothing is logged if torch
        was hooked before. `seed` makes the numbers of pointers repeat."""
        if not is_client:
            raise BadRequest("is_client=False has no meaning here: this process keeps its tensors as tensors")
        if seed is not None:
            NUMBERS.seed(seed)
        if local_worker is not None:
            _local[:] = [local_worker]
        install(torch_module, _this_process, verbose)
        self.local_worker = _this_process()


def _this_process() -> VirtualWorker:
    return local_worker()
