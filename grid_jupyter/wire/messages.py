"""What a client and a Node say to each other in a session: one struct a verb, each naming its reply.

A request travels as `[request_id, message]`, its reply as `[request_id, reply]` with the same id.
Operations on tensors are not here: they are streamed as commands (wire/commands.py).
"""

from __future__ import annotations

from typing import Annotated, Union

import msgspec

from grid_jupyter.wire import frames
from grid_jupyter.wire.limits import MAX_REASON_CHARS


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages: immutable, by keyword, closed to unknown fields."""


# ------------------------------------------------------------------ descriptions


class TensorInfo(Message, frozen=True):
    """What anyone who may see a data set sees of one tensor in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class ColumnInfo(Message, frozen=True):
    """What anyone who may see a table sees of one column: never a category, never a row."""

    name: str
    dtype: str  # pandas' name: int64, Int64, boolean, category, datetime64[ns], string …


class JobPolicy(Message, frozen=True):
    """What the owner of a data set says about jobs, and about single values. Without it, every job and value asks.

    `automatic` names users whose jobs need no decision, if these rest on `min_rows` rows and take `min_steps` steps
    at least, and leave it to the Worker to derive the step; other jobs ask. Nobody is shown of the names more than
    their own.
    """

    automatic: tuple[str, ...] = ()
    jobs: bool = True  # False: no jobs of others
    values: bool = True  # False: no requests for single values
    min_rows: int = 1
    min_steps: int = 1
    epoch_metrics: bool = False  # metrics of each epoch may be seen while a job runs
    full_isolation: bool = False  # no jobs of others where the Node's isolation is reduced


ASK_ALWAYS = JobPolicy()
"""Where an owner says nothing: every job and every value asks."""


class DatasetInfo(Message, frozen=True):
    """A data set as a stranger with access to the Node may see it: metadata, no values."""

    id: int
    version: int
    kind: str  # "tensor", "table" or "arrays"
    name: str
    tags: tuple[str, ...]  # in the owner's order
    description: str
    owner: str
    tensors: tuple[TensorInfo, ...]
    columns: tuple[ColumnInfo, ...] = ()
    allowed_users: tuple[str, ...] | None = None  # may read values; None: not for this caller to know
    jobs: JobPolicy = ASK_ALWAYS
    mock: bool = False  # whether its owner gave mock rows, which all who may compute may fetch


class Limits(Message, frozen=True):
    """What one session may use."""

    memory_bytes: int
    values: int
    operation_s: float


class Caller(Message, frozen=True):
    """Who the Node takes the caller for. An empty name is a guest."""

    user: str = ""
    roles: tuple[str, ...] = ()


# ------------------------------------------------------------------ client → Node


class Hello(Message, frozen=True, tag="hello"):
    """First message of every session. Reply: Welcome."""

    protocol: int
    software: str


class Login(Message, frozen=True, tag="login"):
    """Make the credential's owner the caller of this session from here on. Reply: LoggedIn."""

    credential: str


class Search(Message, frozen=True, tag="search"):
    """Data sets that carry all of these tags, and that the caller may see. Reply: Found."""

    query: tuple[str, ...] = ()


class Open(Message, frozen=True, tag="open"):
    """Map a data set into the session's Worker. Reply: Opened.

    `values` gives the id that the session uses for each tensor of the data set, by name. The words behind
    a table's codes are opened only for who may read them: `credential` presents a further account.
    """

    dataset: int
    version: int
    values: dict[str, int]
    credential: str = ""


class Read(Message, frozen=True, tag="read"):
    """Ask for a value. Reply: Value; its bytes are the payload, or wait for HTTP GET if `bulk`.

    `credential` presents a further account of the caller's, for this one call. With `remove`, the
    value leaves the session once it was released. `reason` is what the caller tells the owners: it decides
    nothing, and is written to the Node's log. `ahead` says that nobody has asked for the value yet: it is decided
    on as always, but what failed earlier is kept for a read that somebody waits for.
    """

    value: int
    credential: str = ""
    remove: bool = False
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)] = ""
    ahead: bool = False


class AskRelease(Message, frozen=True, tag="ask-release"):
    """Ask the owners of all data that a value derives from to release it. Reply: Requested.

    The Node keeps the value as it is now, and nothing of it goes to the asker before they decided. `credential`
    as for Read.
    """

    value: int
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]
    credential: str = ""


class Sizes(Message, frozen=True, tag="sizes"):
    """Ask for shapes that depend on values: a read, which passes the release gate. Reply: Shapes."""

    values: tuple[int, ...]
    credential: str = ""


class Expect(Message, frozen=True, tag="expect"):
    """Let another session hand in a tensor of this form under this id. Reply: Expected."""

    value: int
    dtype: str
    shape: tuple[int, ...]


class Move(Message, frozen=True, tag="move"):
    """Hand a value straight to the session that gave out the ticket. Reply: Moved, once the value is there.

    It passes the release gate as a read does. `node`, `address` and `ticket` are those of Expected; `credential`
    and `remove` are as for Read.
    """

    value: int
    node: str
    address: str
    ticket: str
    credential: str = ""
    remove: bool = False


class Round(Message, frozen=True, tag="round"):
    """One round of a job of many: train from the weights that are the payload, or that were uploaded where `bulk`.
    Reply: Rounded. The same round again is answered again, and computed once.
    """

    job: str
    number: int  # from 1
    bulk: bool = False


class Status(Message, frozen=True, tag="status"):
    """What the session holds. Reply: SessionStatus."""


# ------------------------------------------------------------------ Node → client


class Welcome(Message, frozen=True, tag="welcome"):
    """The session is open. `session` is its secret for bulk transfers over HTTP."""

    protocol: int
    node: str  # the Node's name
    node_id: str
    caller: Caller
    session: str
    limits: Limits


class Resumed(Message, frozen=True, tag="resumed"):
    """First on a connection that goes on with a session: how many of its frames, in order, the Node has taken.

    Answers that may not have arrived are sent once more behind it.
    """

    taken: int


class LoggedIn(Message, frozen=True, tag="logged-in"):
    """The session's caller is now this one."""

    caller: Caller


class Found(Message, frozen=True, tag="found"):
    """The data sets that answer a search, newest first."""

    datasets: tuple[DatasetInfo, ...]


class Opened(Message, frozen=True, tag="opened"):
    """The data set is mapped, read-only."""


class Value(Message, frozen=True, tag="value"):
    """A released value. `readers` is None where it derives from no data set."""

    dtype: str
    shape: tuple[int, ...]
    readers: tuple[str, ...] | None = None
    bulk: str = ""  # a ticket: fetch the bytes by HTTP GET


class Requested(Message, frozen=True, tag="requested"):
    """The number of the request, and how it stands (RequestInfo); 0: the asker may read the value without."""

    request: int
    state: str


class Expected(Message, frozen=True, tag="expected"):
    """The value may come: whoever shows the ticket may hand it in, once and within a minute, to this Node."""

    ticket: str
    node: str  # this Node's name
    address: str  # and where it is


class Moved(Message, frozen=True, tag="moved"):
    """The value is where it should go. `readers` as in Value."""

    readers: tuple[str, ...] | None = None


class Layout(Message, frozen=True):
    """Shape, strides (in elements), storage offset (in elements) and dtype of one value."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: str


class Shapes(Message, frozen=True, tag="shapes"):
    """Released shapes, in the order of the request."""

    layouts: tuple[Layout, ...]


class Rounded(Message, frozen=True, tag="rounded"):
    """What a round gave: new weights as the payload, or by HTTP GET of the ticket `bulk`; the last epoch's loss and
    metrics; how many rows and steps that were."""

    metrics: dict[str, float]
    rows: int
    steps: int
    bulk: str = ""


class SessionStatus(Message, frozen=True, tag="session-status"):
    """Live values of the session, and whether its Worker runs."""

    values: int
    worker: bool


class Failed(Message, frozen=True, tag="failed"):
    """The request, or the whole session where `request_id` is 0, failed. Codes: errors.py.

    `value` is the id that the failed operation was to give its (first) result, or its negative number where it
    gives none; 0: it was no operation that failed.
    """

    code: str
    error: str
    value: int = 0


Request = Union[Hello, Login, Search, Open, Read, AskRelease, Sizes, Expect, Move, Round, Status]
Reply = Union[
    Welcome,
    Resumed,
    LoggedIn,
    Found,
    Opened,
    Value,
    Requested,
    Shapes,
    Expected,
    Moved,
    Rounded,
    SessionStatus,
    Failed,
]

request_decoder: msgspec.msgpack.Decoder[tuple[int, Request]] = msgspec.msgpack.Decoder(tuple[int, Request])
reply_decoder: msgspec.msgpack.Decoder[tuple[int, Reply]] = msgspec.msgpack.Decoder(tuple[int, Reply])


def request_frame(request_id: int, message: Request, payload: bytes | memoryview = b"") -> bytes:
    """A request as one frame, the weights of a round behind it."""
    return frames.pack(frames.REQUEST, frames.encode((request_id, message)), payload)


def reply_frame(request_id: int, reply: Reply, payload: bytes | memoryview = b"") -> bytes:
    """A reply as one frame, a released value's bytes behind it."""
    return frames.pack(frames.REPLY, frames.encode((request_id, reply)), payload)


# ------------------------------------------------------------------ HTTP bodies of the Node


class MockUpload(Message, frozen=True):
    """Mock rows for a data set: an upload of their own, of the same columns, dtypes and trailing shapes."""

    upload: str
    columns: tuple[ColumnInfo, ...] = ()


class Publish(Message, frozen=True):
    """POST /data-centric/datasets: make an uploaded safetensors file a data set. Reply: DatasetInfo.

    `upload` is the id under which the bytes were PUT, and makes a retry harmless. A next version keeps what is
    not given of name, tags, description, compute_users, public_tags and jobs; its readers are named anew, and so are
    its mock rows.
    """

    upload: str
    kind: str
    name: str = ""
    tags: tuple[str, ...] = ()  # in the owner's order
    description: str = ""
    allowed_users: tuple[str, ...] = ()  # may read values, besides the owner
    compute_users: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET  # may compute; None: all who are let in
    public_tags: bool | None = None  # None: as the Node's setting says
    columns: tuple[ColumnInfo, ...] = ()
    dataset: int | None = None  # publish the next version of this one
    jobs: JobPolicy | msgspec.UnsetType = msgspec.UNSET
    mock: MockUpload | None = None


class Edit(Message, frozen=True):
    """PATCH /data-centric/datasets/<id>: change what is given. Reply: DatasetInfo."""

    tags: tuple[str, ...] | None = None
    description: str | None = None
    allowed_users: tuple[str, ...] | None = None
    compute_users: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    public_tags: bool | None = None
    jobs: JobPolicy | msgspec.UnsetType = msgspec.UNSET
    mock: MockUpload | msgspec.UnsetType | None = msgspec.UNSET  # of the newest version; None: it has none any more


class Unpublished(Message, frozen=True):
    """Reply to DELETE /data-centric/datasets/<id>: what ended with it."""

    dataset: int
    versions: int
    nbytes: int
    sessions_ended: int
