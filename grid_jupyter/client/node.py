"""A Node as its users see it: publish, search, compute, read. `DataCentricFLClient` is 0.2.9's name for it."""

from __future__ import annotations

import atexit
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import torch

from grid_jupyter.client.credentials import Credentials
from grid_jupyter.client.listings import Datasets
from grid_jupyter.client.metrics import ReadsMetrics
from grid_jupyter.client.pointers import pointer
from grid_jupyter.client.publishing import Publishing
from grid_jupyter.client.requests import SignOff
from grid_jupyter.client.submitting import Submitting
from grid_jupyter.client.values import Values, forget_outputs, values_of
from grid_jupyter.client.virtual import VirtualWorker, local_worker
from grid_jupyter.errors import (
    BadRequest,
    GridError,
    NodeUnavailableError,
    ObjectNotFoundError,
    RemoteObjectFoundError,
    ResponseSignatureError,
    SessionLostError,
)
from grid_jupyter.link.client import WebSocketLink
from grid_jupyter.link.http import Address, call
from grid_jupyter.ops.shapes import layout_of
from grid_jupyter.tensors.device import device_of
from grid_jupyter.tensors.former import FormerPlace
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor, point, send
from grid_jupyter.tensors.session import Session
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.messages import (
    Caller,
    DatasetInfo,
    Found,
    LoggedIn,
    Login,
    Open,
    Reply,
    Request,
    Search,
    SessionStatus,
    Status,
)

_clients: weakref.WeakSet[NodeClient] = weakref.WeakSet()
RECONNECT_S = 10.0
"""How long a client that was connected waits for its Node to come back."""


class NodeClient(Publishing, SignOff, Submitting, ReadsMetrics, FormerPlace):
    """A connection to one Node: `DataCentricFLClient(hook, "http://localhost:3000")`.

    Without a credential the caller is a guest. A stored credential is presented only where it is named:
    `user="Bob"` presents Bob's for one call, `login(user="Bob")` makes him the caller of the session. A
    connection that was lost is made again by the next call; values computed before are gone then, and say so.
    """

    def __init__(
        self,
        hook: Any = None,
        address: str = "",
        *,
        user: str | None = None,
        ca_file: str | Path | None = None,
        credentials: Credentials | None = None,
        reads_ahead: bool = True,
    ) -> None:
        """`reads_ahead` lets what a loop reads in each round be asked for as soon as it is made there.

        Raises NodeUnavailableError, NotAuthenticatedError, VersionMismatchError."""
        if isinstance(hook, str) and not address:
            hook, address = None, hook
        if not address:
            raise BadRequest("a client needs the address of its Node, such as http://localhost:3000")
        self.address = Address(address, ca_file)
        self.credentials = credentials or Credentials()
        self._token = "" if user is None else self.credentials.get(self.address.url, user)
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._link: WebSocketLink | None = None
        self._opened: dict[tuple[int, int, str], int] = {}
        self._took_private = False
        self._reads_ahead = reads_ahead
        self._closed = False
        link = self._connect()
        self.id: str = link.welcome.node
        self.node_id: str = link.welcome.node_id
        _clients.add(self)
        _flush_after_cells()

    def __repr__(self) -> str:
        return f"<Federated Worker id:{plain(self.id)}>"

    # -------------------------------------------------------------- the session

    @property
    def device(self) -> torch.device:
        """`grid:0` and so on, for `x.to(device)` and `torch.zeros(3, device=device)`. Raises BadRequest."""
        return device_of(self)

    @property
    def local_worker(self) -> VirtualWorker:
        """The worker that stands for this process."""
        return local_worker()

    @property
    def connected(self) -> bool:
        """Whether the session is open, as far as is known without asking."""
        return self._link is not None and self._link.lost is None

    @property
    def caller(self) -> Caller:
        """Who the Node takes this session's caller for; an empty name is a guest."""
        return self._live().welcome.caller

    @property
    def session(self) -> Session:
        """The session of the moment; a lost one is replaced."""
        with self._lock:
            self._live()
            if self._session is None:
                raise SessionLostError("the client was closed; make a new one")
            return self._session

    def _live(self) -> WebSocketLink:
        with self._lock:
            link = self._link
            if self._closed:
                raise SessionLostError("the client was closed; make a new one")
            if link is not None and link.lost is None and link.is_open():
                return link
            if link is not None and self._session is not None:
                self._session.lose(
                    f"{link.reason()}. Values computed on {self.id} before are gone; published data can be used again"
                )
            return self._connect() if link is None else self._reconnect()

    def _connect(self) -> WebSocketLink:
        link = WebSocketLink(self.address, self._token, lambda user: self.credentials.get(self.address.url, user))
        if self._link is not None and link.welcome.node_id != self.node_id:
            link.close()
            raise GridError(f"another Node answers at {self.address.url} now; make a new client if that is right")
        self._link = link
        self._opened = {}
        self._session = Session(self, link, link if self._reads_ahead else None)
        return link

    def _ask(self, message: Request) -> Reply:
        """Ask what rests on no value of the session: where the session was just lost, a new one answers as well."""
        try:
            return self._live().request(message)[0]
        except SessionLostError:
            return self._live().request(message)[0]

    def _reconnect(self) -> WebSocketLink:
        """Connect again; a Node that was ended is given some time to come back."""
        lost_at = None if self._link is None else self._link.lost_at
        patience = (time.monotonic() if lost_at is None else lost_at) + RECONNECT_S
        while True:
            try:
                return self._connect()
            except NodeUnavailableError:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.2)

    def flush_quietly(self) -> None:
        """Send what is buffered, if the session is open."""
        if self._session is not None and self.connected:
            self._session.flush_quietly()

    # -------------------------------------------------------------- what the session holds

    def values(self) -> Values:
        """The remote values of this session that this process has pointers to, and which names hold them."""
        return values_of(self.session)

    def sources_text(self) -> tuple[str, str]:
        """What is known of the sources of a value of this session, and of its readers, without asking the Node."""
        opened = sorted({dataset for dataset, _, _ in self._opened})
        if self._took_private:
            return "what the session has open, and what was moved here", "whom the owners of all its sources named"
        if not opened:
            return "tensors of yours: the session has no data set open", "this session"
        named = ", ".join(str(one) for one in opened)
        return f"at most data sets {named}, which the session has open", "whom the owners of all its sources named"

    def count(self) -> int:
        """How many values the session holds at the Node, opened data sets included. One round trip."""
        self.session.flush()
        reply = self._ask(Status())
        if not isinstance(reply, SessionStatus):
            raise ResponseSignatureError(
                "the Node answered a question for its status otherwise; its version may differ"
            )
        return reply.values

    def clear(self) -> None:
        """Forget every value of this session at the Node, and the pointers that notebook outputs keep.

        What still points to one of them raises ObjectNotFoundError when it is used; published data stays.
        """
        with self._lock:
            session = self.session
            forget_outputs()
            session.clear()
            self._opened = {}

    def close(self) -> None:
        """End the session; its values are gone, published data stays."""
        with self._lock:
            self._closed = True
            if self._session is not None:
                self._session.lose("the client was closed")
            if self._link is not None:
                self._link.close()

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -------------------------------------------------------------- who I am

    def login(
        self, user: str | None = None, *, password: str | None = None, token: str | None = None, store: bool = False
    ) -> Caller:
        """Become the caller of this session: by a stored credential, a password, or a token.

        `store` keeps the credential for later. Raises NotAuthenticatedError, TooManyAttemptsError.
        """
        if token is None and user is None:
            raise BadRequest("login takes user=, user= and password=, or token=")
        if token is None and password is not None:
            body = {"email": user, "password": password}
            token = str(call(self.address, "POST", "/users/login", body)["token"])
        if token is None:
            token = self.credentials.get(self.address.url, user or "")
        reply = self._ask(Login(credential=token))
        if not isinstance(reply, LoggedIn):
            raise ResponseSignatureError("the Node answered a login with something else; its version may differ")
        self._token = token
        link = self._live()
        link.become(reply.caller, token)
        self.session.forget_ahead()
        if store:
            self.credentials.store(self.address.url, reply.caller.user, token)
        return reply.caller

    def accept_invite(self, invite: str, user: str, password: str | None = None) -> Caller:
        """Take up a one-time invite: get an account of that name, store its credential, and log in.

        `invite` is what the owner gave: the whole `address/#code`, or the code. Raises NotAuthenticatedError.
        """
        code = invite.rpartition("#")[2]
        body = {"invite": code, "username": user, **({} if password is None else {"password": password})}
        answer: Any = call(self.address, "POST", "/invites/accept", body)
        self.credentials.store(self.address.url, user, str(answer["token"]))
        return self.login(user)

    def _connection(self) -> WebSocketLink:
        return WebSocketLink(self.address, self._token, lambda user: self.credentials.get(self.address.url, user))

    def _token_of(self, user: str | None) -> str:
        return self._token if user is None else self.credentials.get(self.address.url, user)

    # -------------------------------------------------------------- finding

    def search(self, *tags: str) -> list[Any]:
        """Pointers to the data sets that carry all of these tags, newest first; all there are without tags."""
        reply = self._ask(Search(query=tuple(tags)))
        if not isinstance(reply, Found):
            raise ResponseSignatureError("the Node answered a search with something else; its version may differ")
        return Datasets(pointer(self, dataset) for dataset in reply.datasets)

    def datasets(self) -> list[DatasetInfo]:
        """Descriptions of the data sets that the caller may compute on."""
        reply = self._ask(Search())
        return Datasets(reply.datasets) if isinstance(reply, Found) else Datasets()

    def pointer(self, dataset: int) -> Any:
        """A pointer to the data set of this number, as `datasets()` and the panel tell it. Raises
        ObjectNotFoundError where the caller may not compute on it, or there is none."""
        found = next((info for info in self.datasets() if info.id == dataset), None)
        if found is None:
            raise ObjectNotFoundError(f"{plain(self.id)} has no data set {dataset} for you, or no longer; search again")
        return pointer(self, found)

    def value_of(self, dataset: DatasetInfo, tensor: str, user: str | None = None) -> int:
        """The session's id for a tensor of a data set, which is mapped into the session at first use."""
        key = (dataset.id, dataset.version, tensor)
        with self._lock:
            session = self.session
            found = self._opened.get(key)
            if found is None:
                found = session.new_id()
                session.flush_quietly()
                credential = "" if user is None else self._token_of(user)
                self._ask(
                    Open(dataset=dataset.id, version=dataset.version, values={tensor: found}, credential=credential)
                )
                self._opened[key] = found
            return found

    # -------------------------------------------------------------- publishing

    def receive(self, tensor: Any, user: str | None = None, **options: Any) -> RemoteTensor:
        """What `tensor.send(node, user=…)` calls: publish what is private, tagged or described; else keep it
        in the session."""
        if isinstance(tensor, RemoteTensor):
            raise RemoteObjectFoundError(
                f"the values are on {tensor.location}; .get() them if you may, or send on the "
                f"pointer with pointer.send(node)"
            )
        tags, description = getattr(tensor, "tags", ()), getattr(tensor, "description", "")
        if isinstance(tensor, PrivateTensor) or tags or description:
            return self.publish(tensor, user=user, **options)  # type: ignore[no-any-return]
        if options:
            raise BadRequest(f"only published data takes {', '.join(options)}; tag or describe the tensor first")
        if user is not None:
            self._token_of(user)
        return send(tensor, self.session)

    def take(self, pointer: RemoteTensor, user: str | None = None) -> RemoteTensor:
        """A copy of the value behind a pointer; what `pointer.move(node)` calls.

        Between Nodes it goes directly, if the release gate of the one lets this caller, or `user`, read it and the
        one hands values to the other; who may read it goes along. From a worker of this process it is sent.

        Raises GetNotPermittedError, Forbidden, NodeUnavailableError.
        """
        reference: Any = pointer._ref
        if not isinstance(pointer.location, NodeClient):
            return send(reference.session.read(reference.id, user)[0], self.session)
        shape = tuple(int(length) for length in pointer.shape)
        moved, readers = reference.session.move_to(reference.id, self.session, pointer.dtype, shape, user=user)
        self._took_private = self._took_private or readers is not None
        form = torch.empty(shape, dtype=pointer.dtype, device="meta")
        return point(layout_of(form), moved)


_hooked: set[int] = set()


@atexit.register
def _say_goodbye() -> None:
    """Nodes keep the sessions of clients that vanish for a while: those of this process end with it."""
    for client in list(_clients):
        client.close()


def _flush_after_cells() -> None:
    """In a notebook, send what a cell left in the buffers when the cell ends."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and id(shell) not in _hooked:
        _hooked.add(id(shell))
        shell.events.register("post_run_cell", lambda result: _flush_all())


def _flush_all() -> None:
    for client in list(_clients):
        client.flush_quietly()


DataCentricFLClient = NodeClient
