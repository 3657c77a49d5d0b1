"""A Node as its users see it: publish, search, compute, read. `DataCentricFLClient` is 0.2.9's name for it."""

from __future__ import annotations

import secrets
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import msgspec
import torch

from grid_jupyter.client.credentials import Credentials
from grid_jupyter.client.pointers import DatasetRef, RemoteArrays, pointer
from grid_jupyter.client.virtual import VirtualWorker, local_worker
from grid_jupyter.errors import BadRequest, GridError, InvalidDataError, NodeUnavailableError, SessionLostError
from grid_jupyter.link.client import WebSocketLink
from grid_jupyter.link.http import Address, call, transfer
from grid_jupyter.ops.raw import NAMES, to_bytes
from grid_jupyter.tensors.private import PrivateTensor, user_names
from grid_jupyter.tensors.remote import RemoteTensor, send
from grid_jupyter.tensors.session import Session
from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.messages import (
    Caller,
    ColumnInfo,
    DatasetInfo,
    Edit,
    Found,
    LoggedIn,
    Login,
    Open,
    Publish,
    Reply,
    Request,
    Search,
    Unpublished,
)
from grid_jupyter.wire.safetensors import build_header
from grid_jupyter.wire.words import check_users, check_words

_clients: weakref.WeakSet[NodeClient] = weakref.WeakSet()
_KEEP: Any = object()
RECONNECT_S = 10.0
"""How long a client that was connected waits for its Node to come back."""


class NodeClient:
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
    ) -> None:
        """Raises NodeUnavailableError, NotAuthenticatedError, VersionMismatchError."""
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
        self._session = Session(self, link)
        return link

    def _ask(self, message: Request) -> Reply:
        """Ask what rests on no value of the session: where the session was just lost, a new one answers as well."""
        try:
            return self._live().request(message)[0]
        except SessionLostError:
            return self._live().request(message)[0]

    def _reconnect(self) -> WebSocketLink:
        """Connect again; a Node that was ended is given some time to come back."""
        patience = time.monotonic() + RECONNECT_S
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
            raise GridError("the Node answered a login with something else; its version may differ")
        self._token = token
        link = self._live()
        link.become(reply.caller)
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

    def _token_of(self, user: str | None) -> str:
        return self._token if user is None else self.credentials.get(self.address.url, user)

    # -------------------------------------------------------------- finding

    def search(self, *tags: str) -> list[Any]:
        """Pointers to the data sets that carry all of these tags, newest first; all there are without tags."""
        reply = self._ask(Search(query=tuple(tags)))
        if not isinstance(reply, Found):
            raise GridError("the Node answered a search with something else; its version may differ")
        return [pointer(self, dataset) for dataset in reply.datasets]

    def datasets(self) -> list[DatasetInfo]:
        """Descriptions of the data sets that the caller may compute on."""
        reply = self._ask(Search())
        return list(reply.datasets) if isinstance(reply, Found) else []

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
            raise BadRequest(f"the tensor is on {tensor.location}; .get() it first to send it elsewhere")
        tags, description = getattr(tensor, "tags", ()), getattr(tensor, "description", "")
        if isinstance(tensor, PrivateTensor) or tags or description:
            return self.publish(tensor, user=user, **options)  # type: ignore[no-any-return]
        if options:
            raise BadRequest(f"only published data takes {', '.join(options)}; tag or describe the tensor first")
        if user is not None:
            self._token_of(user)
        return send(tensor, self.session)

    def publish(
        self,
        data: Any,
        *,
        name: str = "",
        tags: tuple[str, ...] | list[str] | str = (),
        description: str = "",
        allowed_users: str | tuple[str, ...] | list[str] = (),
        compute_users: str | tuple[str, ...] | list[str] | None = _KEEP,
        public_tags: bool | None = None,
        replaces: Any = None,
        user: str | None = None,
    ) -> Any:
        """Publish a tensor, a pandas DataFrame, or a file (CSV, Parquet, NPZ, safetensors). Returns a pointer.

        `allowed_users` may read values, besides the publisher: nobody else by default. `compute_users` may
        compute: by default everybody whom the Node lets in. `replaces`, a pointer to a data set of yours, makes
        this its next version, which keeps name, tags, description and compute_users if none are given. `user`
        presents that user's stored credential. Publishing the same once more is harmless: it is the same data set.

        Durable when it returns. Raises SendNotPermittedError, InvalidDataError, LimitExceededError,
        StorageFullError; then nothing is published.
        """
        token = self._token_of(user)
        upload = secrets.token_hex(16)
        where = f"/data-centric/uploads/{upload}"
        columns: tuple[ColumnInfo, ...] = ()
        if isinstance(data, PrivateTensor):
            allowed_users = (*data.allowed_users, *user_names(allowed_users))
        words = (tags,) if isinstance(tags, str) else tuple(tags)
        if isinstance(data, (torch.Tensor, PrivateTensor)):
            words = (*getattr(data, "tags", ()), *words)
            description = description or getattr(data, "description", "")
        readers, computers = user_names(allowed_users), _computers(compute_users)
        check_words(name, words, description)  # before what may be a long upload
        check_users((*readers, *(computers if isinstance(computers, tuple) else ())))
        if isinstance(data, (torch.Tensor, PrivateTensor)):
            kind = "tensor"
            self._send_tensor(where, data.unwrap() if isinstance(data, PrivateTensor) else data, token)
        else:
            kind, columns = self._send_file(where, data, token)
        request = Publish(
            upload=upload,
            kind=kind,
            name=name,
            tags=words,
            description=description,
            allowed_users=readers,
            public_tags=public_tags,
            columns=columns,
            dataset=None if replaces is None else _dataset_id(replaces),
            compute_users=computers,
        )
        made: DatasetInfo = call(self.address, "POST", "/data-centric/datasets", request, token=token, kind=DatasetInfo)
        return pointer(self, made)

    def _send_tensor(self, where: str, tensor: torch.Tensor, token: str) -> None:
        dtype = NAMES.get(tensor.dtype, str(tensor.dtype))
        if tensor.is_complex() or tensor.dtype not in NAMES:
            raise InvalidDataError(f"a tensor of {tensor.dtype} cannot be published; convert it, or publish its parts")
        data = to_bytes(tensor.cpu())
        header = build_header([("data", dtype, tuple(tensor.shape))], {})
        transfer(self.address, "PUT", where, _body(header, data), length=len(header) + len(data), token=token)

    def _send_file(self, where: str, data: Any, token: str) -> tuple[str, tuple[ColumnInfo, ...]]:
        import pandas

        from grid_jupyter.client.tables import TableSpec, write_file, write_frame

        with tempfile.TemporaryDirectory(prefix="grid-publish-") as folder:
            path = Path(folder) / "data.safetensors"
            if isinstance(data, pandas.DataFrame):
                spec: Any = write_frame(data, path)
            elif isinstance(data, (str, Path)):
                spec = write_file(Path(data), path)
            else:
                raise InvalidDataError(
                    f"a {type(data).__name__} cannot be published: give a tensor, a pandas DataFrame, or the path of "
                    f"a CSV, Parquet, NPZ or safetensors file"
                )
            with path.open("rb") as file:
                transfer(self.address, "PUT", where, file, length=path.stat().st_size, token=token)
            return ("table", spec.columns) if isinstance(spec, TableSpec) else ("arrays", ())

    def edit(
        self,
        dataset: Any,
        *,
        tags: tuple[str, ...] | list[str] | None = None,
        description: str | None = None,
        allowed_users: Any = None,
        compute_users: Any = _KEEP,
        public_tags: bool | None = None,
        user: str | None = None,
    ) -> DatasetInfo:
        """Change what is given of a data set of yours; it holds from the next read on. Raises Forbidden."""
        request = Edit(
            tags=None if tags is None else tuple(tags),
            description=description,
            allowed_users=None if allowed_users is None else user_names(allowed_users),
            public_tags=public_tags,
            compute_users=_computers(compute_users),
        )
        where = f"/data-centric/datasets/{_dataset_id(dataset)}"
        return call(self.address, "PATCH", where, request, token=self._token_of(user), kind=DatasetInfo)

    def unpublish(self, dataset: Any, user: str | None = None) -> Unpublished:
        """End a data set of yours with all its versions. The bytes are gone when this returns; it says which
        sessions ended with it. Raises Forbidden, ObjectNotFoundError."""
        where = f"/data-centric/datasets/{_dataset_id(dataset)}"
        return call(self.address, "DELETE", where, token=self._token_of(user), kind=Unpublished)

    # -------------------------------------------------------------- models that the Node stores

    @property
    def models(self) -> list[str]:
        """Ids of the models that the Node serves."""
        return list(call(self.address, "GET", "/data-centric/models/", token=self._token)["models"])

    def serve_model(self, model: torch.nn.Module, model_id: str, *, allow_download: bool = False) -> None:
        """Store a model's parameters on the Node, as safetensors. Raises IdNotUniqueError, SendNotPermittedError."""
        from safetensors.torch import save

        state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
        form, boundary = _form(save(state), {"model_id": model_id, "allow_download": str(allow_download)})
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        transfer(self.address, "POST", "/data-centric/serve-model/", form, headers=headers, token=self._token)


def _body(header: bytes, data: memoryview) -> Any:
    yield header
    for begin in range(0, len(data), 4 << 20):
        yield data[begin : begin + (4 << 20)]


def _form(model: bytes, fields: dict[str, str]) -> tuple[bytes, str]:
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="model"; filename="model.safetensors"\r\n\r\n'
    return b"".join([*parts, head.encode(), model, f"\r\n--{boundary}--\r\n".encode()]), boundary


def _computers(users: Any) -> tuple[str, ...] | msgspec.UnsetType | None:
    if users is _KEEP:
        return msgspec.UNSET
    return None if users is None else user_names(users)


def _dataset_id(dataset: Any) -> int:
    if isinstance(dataset, RemoteTensor) and isinstance(dataset._ref, DatasetRef):
        return dataset._ref.dataset.id
    if isinstance(dataset, (RemoteArrays,)):
        return dataset.dataset.id
    if isinstance(dataset, DatasetInfo):
        return dataset.id
    if isinstance(dataset, int):
        return dataset
    raise BadRequest("name a data set by its pointer, its description or its number")


_hooked: set[int] = set()


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
