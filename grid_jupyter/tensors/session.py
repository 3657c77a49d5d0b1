"""The client's end of a session: buffers commands, chooses ids, reads values. One per place.

What carries the bytes is a `Link`: a WebSocket to a Node, or a thread of this process.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import weakref
from collections.abc import Iterable
from typing import Any, NoReturn, Protocol

import torch

from grid_jupyter.errors import GridError, NotRecordableError, ResponseSignatureError, SessionLostError
from grid_jupyter.link.attendant import attendant
from grid_jupyter.ops.raw import DTYPES, NAMES, from_bytes, to_bytes
from grid_jupyter.ops.shapes import Layout, layout
from grid_jupyter.tensors.ahead import NEVER, Ahead, Later
from grid_jupyter.tensors.sites import Sites
from grid_jupyter.tensors.stream import TEMPLATES
from grid_jupyter.wire import commands, frames
from grid_jupyter.wire.limits import MAX_INLINE_BYTES
from grid_jupyter.wire.messages import (
    AskRelease,
    Expect,
    Expected,
    Move,
    Moved,
    Read,
    Reply,
    Request,
    Requested,
    Shapes,
    Sizes,
    Value,
)

log = logging.getLogger("grid_jupyter")
_FIRST_FRAME, _BUSY_FRAME, _LARGEST_FRAME = 16, 64, 256
"""Commands in a frame: few after a read, so that the Worker begins at once, more after one that was sent ahead, since
it has work then, and more while nobody waits."""
_REST_TICKS = 10
"""How often nothing was sent, at a look of the attendant's, until a session counts as resting."""
_MAX_FRAME = 512 << 10  # several inline tensors in one buffer are sent early

NUMBERS = random.Random()  # noqa: S311 - names, not secrets
"""Draws the numbers of pointers and values; TorchHook(seed=…) makes them repeat."""

_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_sessions_lock = threading.Lock()


def sessions() -> list[Session]:
    """All sessions of this process that somebody still holds."""
    with _sessions_lock:
        return list(_sessions)


class Link(Protocol):
    """Carries frames to one Worker and replies back."""

    def send(self, header: bytes, number: int, more: bool = False) -> None:
        """Send one OPERATIONS header; back-pressure blocks here. Raises SessionLostError.

        An interrupt may come between any two steps, and the same header then comes again under the same number:
        it must not be sent twice. With `more`, a request follows at once, and may take the header along.
        """

    def request(self, message: Request) -> tuple[Reply, memoryview]:
        """Ask and wait for the reply and its payload. Raises what the other side reported."""

    def upload(self, identity: int, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        """Hand over a large tensor beside the stream."""

    def download(self, ticket: str) -> bytearray | memoryview:
        """Fetch the bytes of a large released value."""

    def credential(self, user: str) -> str:
        """The token that presents `user` for one call. Raises NotAuthenticatedError."""


class Lost(list[Any]):
    """Takes the place of a lost session's buffer: whoever appends to it learns what happened."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def append(self, command: Any) -> NoReturn:
        raise SessionLostError(self.reason)


class Ref:
    """Owns one remote value: when the last holder lets go, the value is freed with the next frame."""

    __slots__ = ("__weakref__", "id", "session")

    def __init__(self, identity: int, session: Session) -> None:
        self.id = identity
        self.session = session

    @property
    def place(self) -> Any:
        """Where the value is."""
        return self.session.place

    @property
    def label(self) -> int:
        """The number that reprs show for the value."""
        return self.id

    def __del__(self) -> None:
        try:
            self.session.dropped.append(self.id)
        except AttributeError:  # the interpreter is going down, or __init__ did not finish
            pass


class Session:
    """Streams commands to one Worker without waiting; only reads wait.

    Appending to `buffer` and taking ids are atomic, so several threads may compute at once; `flush`
    sends what is there in order. What stays in the buffer for some milliseconds is sent by the attendant's
    thread, so that the Worker computes while this side does something else. A session that rests (`limit` is 1)
    sends its next command at once, which wakes the attendant.
    """

    def __init__(self, place: Any, link: Link, later: Later | None = None, attended: bool = True) -> None:
        """With `later`, which is the same link, reads of loops are sent ahead (ahead.py). Not `attended`, commands
        leave in the threads that use the session alone: for a Worker of this process.
        """
        self.place = place  # what pointers name as their location
        self.link = link
        self.buffer: list[Any] = []
        self.dropped: list[int] = []
        self.known: set[int] = set()
        self.grad_mode = True
        self.lock = threading.RLock()
        self._ids = itertools.count(NUMBERS.randrange(commands.FIRST_ID, 2 * commands.FIRST_ID))
        self.new_id = self._ids.__next__
        self.limit = 1
        self.cleared = 0  # how often all values were forgotten
        self._pending_bytes = 0
        self._frames = 0  # the number of the last frame
        self._moving: tuple[list[Any], bytes, int] | None = None  # commands that are leaving the buffer, in a frame
        self._seen = 0  # the attendant's: the last frame that it saw, and how long ago that was
        self._ticks = 0
        self.sites = Sites()
        self.due = NEVER  # the id whose value is to be read ahead
        self.ahead = None if later is None else Ahead(self, later)
        self.asked: dict[int, Any] = {}  # by value: the request that its owners decide on
        self.leaves: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # that have gradients, by id
        self.traced: dict[int, set[int]] = {}  # by thread that tracing.py follows: leaves that backward() reached
        with _sessions_lock:
            _sessions.add(self)
        from grid_jupyter.tensors.engine import prepare  # it is above this module

        prepare()
        if attended:
            attendant.add(self)

    # -------------------------------------------------------------- out

    def flush(self, more: bool = False) -> None:
        """Send what is buffered; with `more`, it may go together with a request that follows at once.

        Raises SessionLostError if the session is gone.
        """
        with self.lock:
            if self._moving is not None:  # an interrupt came in between
                self._move(*self._moving, more=True)
            count = len(self.dropped)
            if count:
                self.buffer.append([commands.FREE, *self.dropped[:count]])
                del self.dropped[:count]
            count = len(self.buffer)
            if count:
                batch = self.buffer[:count]
                self._pending_bytes = 0
                header = frames.encode(batch)
                if self.ahead is not None:  # before they leave, so that an interrupt cannot come between
                    self.ahead.note(batch, len(header))
                self._moving = (batch, header, self._frames + 1)
                self._move(*self._moving, more=more)
                self.limit = _FIRST_FRAME if more else min(max(2 * self.limit, _FIRST_FRAME), _LARGEST_FRAME)
                attendant.wake()

    def _move(self, batch: list[Any], header: bytes, number: int, *, more: bool) -> None:
        """Hand commands over to the link and then forget them, in steps that may be repeated after an interrupt."""
        self._frames = number
        try:
            self.link.send(header, number, more)
        except GridError:
            self._forget(batch)
            raise
        self._forget(batch)

    def _forget(self, batch: list[Any]) -> None:
        if self.buffer and self.buffer[0] is batch[0]:
            del self.buffer[: len(batch)]  # never swap the list: another thread may be appending to it
        self._moving = None

    def attend(self) -> bool:
        """Send what nobody has sent for a moment (link/attendant.py); whether somebody is at work here."""
        moved, self._seen = self._seen != self._frames, self._frames
        if self.buffer or moved:
            self._ticks = 0
            if not moved and self.lock.acquire(blocking=False):
                try:
                    self.flush_quietly()
                finally:
                    self.lock.release()
            return True
        self._ticks += 1
        if self._ticks < _REST_TICKS:
            return True
        self.limit = 1  # the next command is sent at once, and wakes the attendant
        return bool(self.buffer)  # unless it was appended just before that

    def flush_quietly(self) -> None:
        """Send what is buffered; if that fails, the next use of a value says why."""
        try:
            self.flush()
        except GridError as error:
            log.debug("%s", error)

    def define(self, template: int) -> None:
        """Tell the Worker what a template number means, once."""
        with self.lock:
            if template not in self.known:
                self.buffer.append([commands.DEFINE, template, *TEMPLATES[template]])
                self.known.add(template)

    def clear(self) -> None:
        """Forget every value at the other side; templates stay."""
        with self.lock:
            self.cleared += 1
            self.buffer.append([commands.CLEAR])
            self.flush()

    def keep_plan(self, plan: Any) -> None:
        """What `plan.send(place)` calls: its tensors travel now."""
        from grid_jupyter.tensors.planned import keep  # it is above this module

        keep(plan, self)

    def set_grad_mode(self, on: bool) -> None:
        """Follow torch.is_grad_enabled() of this side."""
        self.buffer.append([commands.GRAD_MODE, on])
        self.grad_mode = on

    def put(self, tensor: torch.Tensor) -> Ref:
        """Copy a local tensor's values over; small ones travel in the stream."""
        made = Ref(self.new_id(), self)  # first, so that an interrupt leaves nothing behind at the other side
        identity = made.id
        data, dtype, shape = to_bytes(tensor), NAMES.get(tensor.dtype), tuple(tensor.shape)
        if dtype is None:
            raise TypeError(f"tensors of {tensor.dtype} cannot be sent; convert it with .to(torch.float32) or the like")
        if len(data) <= MAX_INLINE_BYTES:
            self.buffer.append([commands.PUT, identity, dtype, shape, bytes(data)])
            self._pending_bytes += len(data)
            if self._pending_bytes > _MAX_FRAME or len(self.buffer) >= self.limit:
                self.flush()
        else:
            self._refuse_while_recorded("a tensor of more than 64 KiB cannot be sent", "send it before, or pass it in")
            with self.lock:
                self.flush()
                self.link.upload(identity, dtype, shape, data)
        return made

    # -------------------------------------------------------------- in

    def read(
        self, identity: int, user: str | None = None, remove: bool = False, reason: str = ""
    ) -> tuple[torch.Tensor, tuple[str, ...] | None]:
        """A released value, and who may read it (None: it derives from no data set). `reason` is for its owners.

        Raises GetNotPermittedError, what its computation failed with, or SessionLostError.
        """
        self._refuse_while_recorded("values cannot be read", "return the tensor, such as the loss, and read that")
        credential = self.link.credential(user) if user else ""
        with self.lock:
            self.flush(more=True)
            ahead = None if remove or user or reason else self.ahead
            early = None if ahead is None else ahead.take(identity)
            if early is None:
                if remove:
                    self.forget_ahead()
                early = self._ask(Read(value=identity, credential=credential, remove=remove, reason=reason))
            else:
                self.limit = _BUSY_FRAME
            reply, payload = early
            if ahead is not None:
                ahead.was_read(identity, len(payload))
        if not isinstance(reply, Value):
            raise ResponseSignatureError("the Node answered a read with something else; its version may differ")
        data = self.link.download(reply.bulk) if reply.bulk else bytearray(payload)
        return from_bytes(data, reply.dtype, reply.shape), reply.readers

    def ask_release(self, identity: int, reason: str, user: str | None = None) -> tuple[int, str]:
        """Ask the owners of all that a value derives from to release it, as it is now: the number of the request and
        its state; number 0 where it may be read without. Raises GetNotPermittedError where owners take no requests,
        LimitExceededError."""
        self._refuse_while_recorded("nothing can be asked of owners", "do that outside of it")
        credential = self.link.credential(user) if user else ""
        with self.lock:
            self.flush(more=True)
            reply, _ = self._ask(AskRelease(value=identity, reason=reason, credential=credential))
        if not isinstance(reply, Requested):
            raise ResponseSignatureError("the Node answered a request with something else; its version may differ")
        return reply.request, reply.state

    def _ask(self, message: Request) -> tuple[Reply, memoryview]:
        """Ask; where an operation failed that was issued long before, the error names the line that issued it."""
        try:
            return self.link.request(message)
        except GridError as error:
            site = self.sites.text(error.value) if error.value else ""
            if not site:
                raise
            raise type(error)(f"{error}\n  issued at {site}") from None

    def move_to(
        self,
        identity: int,
        target: Session,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        *,
        user: str | None = None,
        remove: bool = False,
    ) -> tuple[Ref, tuple[str, ...] | None]:
        """Hand a value straight to another Node's session, which gets it under an id of its own; and who may read it
        (None: it derives from no data set), as its new Node remembers.

        It passes this Node's release gate as a read does; with `remove` it is gone here afterwards. Raises
        GetNotPermittedError, Forbidden where this Node does not hand values to that one, NodeUnavailableError, what
        its computation failed with, or SessionLostError. Nothing has changed then.
        """
        credential = self.link.credential(user) if user else ""
        moved = target.new_id()
        with target.lock:
            target.flush()
            expected, _ = target.link.request(Expect(value=moved, dtype=NAMES[dtype], shape=shape))
        if not isinstance(expected, Expected):
            raise ResponseSignatureError("the Node answered with something else than a ticket; its version may differ")
        with self.lock:
            self.flush()
            self.forget_ahead()
            reply, _ = self._ask(
                Move(
                    value=identity,
                    node=expected.node,
                    address=expected.address,
                    ticket=expected.ticket,
                    credential=credential,
                    remove=remove,
                )
            )
        if not isinstance(reply, Moved):
            raise ResponseSignatureError("the Node answered a move with something else; its version may differ")
        return Ref(moved, target), reply.readers

    def made(self, identity: int, command: list[Any], result: Any) -> None:
        """The value with the id `due`, or a later one, was made by this command, which is in the buffer."""
        if self.ahead is not None:
            with self.lock:
                if self.ahead.made(identity, command, result):
                    self.limit = _BUSY_FRAME

    def forget_ahead(self) -> None:
        """Answers to reads that were sent ahead do not count any more: something changed beside the stream."""
        if self.ahead is not None:
            self.ahead.forget()

    def sizes(self, identities: Iterable[int]) -> list[tuple[Layout, int]]:
        """Layouts that depend on values: a read, which passes the release gate."""
        self._refuse_while_recorded("sizes that depend on values cannot be read", "do that outside of it")
        with self.lock:
            self.flush(more=True)
            reply, _ = self._ask(Sizes(values=tuple(identities)))
        if not isinstance(reply, Shapes):
            raise ResponseSignatureError(
                "the Node answered a question for sizes with something else; its version may differ"
            )
        return [(layout(found.shape, found.stride, DTYPES[found.dtype]), found.offset) for found in reply.layouts]

    def _refuse_while_recorded(self, what: str, remedy: str) -> None:
        if self.traced and threading.get_ident() in self.traced:
            raise NotRecordableError(f"{what} inside a recording, which runs without waiting: {remedy}")

    def lose(self, reason: str) -> None:
        """The Worker is gone: every further use of this session's values says so."""
        with self.lock:
            self.buffer = Lost(reason)
            self.dropped = []
            self._moving = None
            self.forget_ahead()
