"""Workers in two parts, as 0.2.9 had them: one that serves its tensors over a WebSocket, and a handle to it.

They are tools to develop with. All who hold the token share one worker and may read everything in it; accounts,
rules and lineage are a Node's.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from grid_jupyter.client.answering import Answering
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.client.remote_torch import RemoteTorch
from grid_jupyter.client.virtual import VirtualWorker, local_worker
from grid_jupyter.errors import (
    BadRequest,
    GridError,
    NotAuthenticatedError,
    ResponseSignatureError,
    SendNotPermittedError,
    SessionLostError,
    VersionMismatchError,
)
from grid_jupyter.link.client import WebSocketLink
from grid_jupyter.link.http import Address
from grid_jupyter.link.listening import Listener
from grid_jupyter.link.tls import tls_context
from grid_jupyter.ops.raw import DTYPES
from grid_jupyter.ops.shapes import layout_of
from grid_jupyter.tensors.chain import Kept, clear_held, held_by
from grid_jupyter.tensors.former import FormerClient
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor, point, send
from grid_jupyter.tensors.sending import WORKERS
from grid_jupyter.tensors.session import Session
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire import commands, messages
from grid_jupyter.wire.limits import MAX_VALUES, PROTOCOL

_NAME = "worker {}"
"""Under which the token of a worker is stored in this user's credentials."""


class _Connection:
    """One client of a server worker: its own templates and modes, over the objects that all share."""

    def __init__(self, worker: WebsocketServerWorker, session: str) -> None:
        self._worker = worker
        self._session = session
        self._greeted = False
        self._answering = Answering(worker.shelf, worker.shelf.another_executor(), worker.id)

    def operations(self, header: memoryview) -> None:
        self._check()
        self._worker.session.flush()  # what its owner computed before comes first
        self._worker.shelf.run(self._answering.executor.feed, header)

    def request(self, message: messages.Request) -> tuple[messages.Reply, bytes | memoryview]:
        if isinstance(message, messages.Hello):
            if message.protocol != PROTOCOL:
                raise VersionMismatchError(
                    f"this worker speaks protocol {PROTOCOL} and the client {message.protocol}: upgrade the older one "
                    f"with 'pip install --upgrade grid-jupyter'"
                )
            self._greeted = True
            limits = messages.Limits(memory_bytes=0, values=MAX_VALUES, operation_s=0.0)
            name = self._worker.id
            return messages.Welcome(
                protocol=PROTOCOL, node=name, node_id=name, caller=messages.Caller(), session=self._session,
                limits=limits,
            ), b""  # fmt: skip
        self._check()
        self._worker.session.flush()  # what its owner sent just now is there for others as well
        return self._worker.shelf.run(self._answering.answer, message)

    def receive(self, identity: int, dtype: str, shape: tuple[int, ...], data: bytearray) -> None:
        self._check()
        self._worker.shelf.run(self._answering.receive, identity, dtype, shape, data)

    def take(self, ticket: str) -> bytearray:
        return self._answering.take(ticket)

    def close(self) -> None:
        """What it sent stays, as 0.2.9 had it: the next connection finds it."""

    def _check(self) -> None:
        if not self._greeted:
            raise BadRequest("the first message of a session is hello")


class WebsocketServerWorker(VirtualWorker):
    """A worker that others reach: `WebsocketServerWorker(hook, "localhost", 8777, id="bob").start()`.

    `start` returns at once. Whoever started it goes on, and may touch `_objects`, `load_data` and send to it, since
    it is a worker of this process as well.

    Everyone who presents its token may read all that it holds. It listens on this machine alone unless `host` says
    otherwise, and then asks for a token of yours.
    """

    def __init__(
        self,
        hook: Any = None,
        host: str = "localhost",
        port: int = 0,
        id: str = "",  # noqa: A002  # 0.2.9's name
        data: Iterable[Any] = (),
        cert_path: str | Path | None = None,
        key_path: str | Path | None = None,
        *,
        token: str | None = None,
        log_msgs: bool = False,
        verbose: bool = False,
        auto_add: bool = True,
    ) -> None:
        """`port` 0 takes a free one. Without `token` one is made, and kept in this user's credentials, where a
        WebsocketClientWorker of the same user finds it; beyond this machine you have to give one. With `cert_path`
        and `key_path` it serves TLS. Raises BadRequest.
        """
        if token is None and not _is_loopback(host):
            raise BadRequest(
                f"{host} lets other machines in, and whoever has the token reads everything here: give token=, a long "
                f"random text, and cert_path= and key_path= besides; or use host='localhost'"
            )
        if token is not None and len(token) < 16:
            raise BadRequest("a token has at least 16 characters; secrets.token_urlsafe() makes one")
        super().__init__(hook, id, data, log_msgs=log_msgs, verbose=verbose, auto_add=auto_add)
        self.host = host
        self.port = port
        self._given = token
        self._tls = tls_context(cert_path, key_path, options=("cert_path", "key_path"))
        self._listener: Listener | None = None

    @property
    def address(self) -> str:
        """Where it serves. Raises BadRequest before `start`."""
        if self._listener is None:
            raise BadRequest("the worker does not serve yet; call start()")
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{shown}:{self._listener.port}"

    def start(self) -> WebsocketServerWorker:
        """Serve, on a thread of its own; returns the worker. Raises BadRequest if the port is taken."""
        if self._listener is None:
            token = self._given or secrets.token_urlsafe(32)
            self._listener = Listener(self, host=self.host, port=self.port, token=token, tls=self._tls)
            self.port = self._listener.port
            if self._given is None:
                Credentials().store(self.address, _NAME.format(self.id), token)
        return self

    def connect(self, session: str) -> _Connection:
        """A new client has come."""
        return _Connection(self, session)

    def wait(self) -> None:
        """Until somebody stops it: for a script that does nothing else."""
        if self._listener is not None:
            self._listener.wait()

    def stop(self) -> None:
        """End all connections; the objects stay."""
        if self._listener is not None:
            if self._given is None:
                Credentials().forget(self.address, _NAME.format(self.id))
            self._listener.stop()
            self._listener = None

    close = stop

    def __enter__(self) -> WebsocketServerWorker:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<WebsocketServerWorker id:{self.id} #objects:{self.objects_count()}>"


class WebsocketClientWorker(FormerClient):
    """The handle of a server worker: a place to send to, search and compute on.

    `WebsocketClientWorker(hook, "localhost", 8777, id="bob")`. `secure` for a server with a certificate, and `ca_file`
    to trust it; `timeout` is the longest wait for an answer, in seconds; `token` is the server's, where it is not
    found in this user's credentials. Raises NodeUnavailableError, NotAuthenticatedError.
    """

    def __init__(
        self,
        hook: Any = None,
        host: str = "localhost",
        port: int = 0,
        secure: bool = False,
        id: str = "",  # noqa: A002  # 0.2.9's name
        timeout: float = 60.0,
        *,
        token: str | None = None,
        ca_file: str | Path | None = None,
        auto_add: bool = True,
    ) -> None:
        if not id or not port:
            raise BadRequest("a handle needs the port and the id of its worker")
        self.id = id
        self.timeout = timeout
        shown = f"[{host}]" if ":" in host else host
        self.address = Address(f"{'https' if secure else 'http'}://{shown}:{port}", ca_file)
        self._token = token
        self._link: WebSocketLink | None = None
        self._session: Session | None = None
        self.connect()
        if auto_add:
            WORKERS[id] = self

    def connect(self) -> None:
        """Connect, again after `close`; what the worker holds is found by `search`."""
        if self._link is not None and self._link.lost is None and self._link.is_open():
            return
        token = self._token
        if token is None:
            known = Credentials()
            name = _NAME.format(self.id)
            token = known.get(self.address.url, name) if name in known.users(self.address.url) else ""
        link = WebSocketLink(self.address, token, self._no_credential, timeout_s=self.timeout, resumes=False)
        if link.welcome.node != self.id:
            link.close()
            raise GridError(f"the worker at {self.address.url} is {plain(link.welcome.node)!r}, not {self.id!r}")
        self._link, self._session = link, Session(self, link)

    def close(self) -> None:
        """End the connection; what was sent stays with the worker."""
        if self._session is not None:
            self._session.flush_quietly()
            self._session.lose("the connection to the worker was closed; connect() again and search for its tensors")
        if self._link is not None:
            self._link.close()

    def _no_credential(self, user: str) -> str:
        raise NotAuthenticatedError(f"{self.id} knows no accounts: call .get() without user=")

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known without asking."""
        return self._link is not None and self._link.lost is None and self._link.is_open()

    @property
    def session(self) -> Session:
        """The session of the moment."""
        if self._session is None:
            raise SessionLostError("there is no connection; call connect()")
        return self._session

    @property
    def local_worker(self) -> VirtualWorker:
        """The worker that stands for this process."""
        return local_worker()

    # -------------------------------------------------------------- tensors

    def receive(self, tensor: Any, user: str | None = None) -> RemoteTensor:
        """What `tensor.send(worker)` calls. Tags and descriptions stay on this side."""
        if isinstance(tensor, PrivateTensor):
            raise SendNotPermittedError(f"{self.id} cannot protect private values; send them to a Node")
        if user is not None:
            self._no_credential(user)
        sent = send(tensor, self.session)
        sent.tags, sent.description = tuple(getattr(tensor, "tags", ())), getattr(tensor, "description", "")
        return sent

    def take(self, pointer: RemoteTensor, user: str | None = None) -> RemoteTensor:
        """A copy of the value behind a pointer; what `pointer.move(worker)` calls. It comes through this process.
        Raises SendNotPermittedError for values that derive from published data."""
        reference: Any = pointer._ref
        tensor, readers = reference.session.read(reference.id, user)
        if readers is not None:
            raise SendNotPermittedError(f"{self.id} cannot protect values that derive from published data")
        return self.receive(tensor)

    def search(self, *query: Any) -> list[RemoteTensor]:
        """Pointers to the worker's tensors that all words fit: a tag, a part of the description, or the number."""
        words = tuple(str(word) for one in query for word in ([one] if isinstance(one, (str, int)) else one))
        made = []
        for info in self._found(words):
            of = layout_of(torch.empty(info.tensors[0].shape, dtype=DTYPES[info.tensors[0].dtype], device="meta"))
            pointer = point(of, Kept(info.id, self.session))
            pointer.tags, pointer.description = info.tags, info.description
            made.append(pointer)
        return made

    def _found(self, words: tuple[str, ...]) -> tuple[messages.DatasetInfo, ...]:
        self.session.flush()
        reply, _ = self.session.link.request(messages.Search(query=words))
        if not isinstance(reply, messages.Found):
            raise ResponseSignatureError("the worker answered a search with something else; its version may differ")
        return reply.datasets

    @property
    def remote(self) -> RemoteTorch:
        """`worker.remote.torch.zeros(3)`: torch's functions, with results here."""
        return RemoteTorch(self)

    # -------------------------------------------------------------- what the worker holds

    def list_objects_remote(self) -> dict[int, str]:
        """The worker's tensors: their form by their number. Values are read with `get`."""
        return {one.id: f"{one.tensors[0].dtype} {one.tensors[0].shape}" for one in self._found(())}

    def tensors_count_remote(self) -> int:
        """How many tensors the worker holds."""
        return len(self._found(()))

    def objects_count_remote(self) -> int:
        """How many objects the worker holds, values that failed included."""
        self.session.flush()
        reply, _ = self.session.link.request(messages.Status())
        if not isinstance(reply, messages.SessionStatus):
            raise ResponseSignatureError("the worker answered for its status otherwise; its version may differ")
        return reply.values

    def clear_objects_remote(self) -> None:
        """Let the worker forget all that it holds."""
        with self.session.lock:
            self.session.buffer.append([commands.CLEAR])
            self.session.flush()
        clear_held(self)

    @property
    def _objects(self) -> dict[int, Any]:
        return {**self.list_objects_remote(), **held_by(self)}

    def clear_objects(self) -> WebsocketClientWorker:
        """As `clear_objects_remote`; returns the worker."""
        self.clear_objects_remote()
        return self

    def sources_text(self) -> tuple[str, str]:
        """What is known of the sources of a value here, and of its readers."""
        return "tensors of this worker", "everyone who has the worker's token"

    def __enter__(self) -> WebsocketClientWorker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WebsocketClientWorker id:{self.id} at {self.address.url}>"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(one[4][0])).is_loopback for one in found)
