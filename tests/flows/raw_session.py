"""A session by hand: whatever a hostile client may put on the WebSocket, without our own client's manners."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from node_world import PATIENCE_S, GridProcess
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from grid_jupyter.errors import GridError, SessionLostError, from_wire
from grid_jupyter.ops.raw import NAMES, from_bytes, to_bytes
from grid_jupyter.wire import commands, frames, messages
from grid_jupyter.wire.limits import PROTOCOL
from grid_jupyter.wire.messages import Failed


class RawSession:
    """One connection; `greet=False` says nothing on it yet."""

    def __init__(self, node: GridProcess, token: str = "", *, greet: bool = True, headers: Any = None) -> None:
        sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        self._until_closed = ExitStack()
        self.socket = self._until_closed.enter_context(
            connect(
                f"{node.address.replace('http', 'ws')}/data-centric/session",
                additional_headers=sent, compression=None, max_size=None, proxy=None, open_timeout=PATIENCE_S,
            )
        )  # fmt: skip
        self._numbers = itertools.count(1)
        self._ids = itertools.count(1000)
        self._templates: dict[str, int] = {}
        self.secret = ""
        if greet:
            welcome = self.ask(messages.Hello(protocol=PROTOCOL, software="a stranger"))
            assert isinstance(welcome, messages.Welcome)
            self.secret = welcome.session

    def __enter__(self) -> RawSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._until_closed.close()

    # ------------------------------------------------------------------ frames

    def send(self, frame: bytes | str) -> None:
        self.socket.send(frame)

    def operations(self, *batch: Sequence[Any]) -> None:
        self.send(frames.pack(frames.OPERATIONS, frames.encode(list(batch))))

    def receive(self) -> tuple[int, messages.Reply, bytes]:
        data = self.socket.recv(PATIENCE_S)
        assert isinstance(data, bytes)
        cut = frames.unpack(data)
        number, reply = frames.decode(cut.header, messages.reply_decoder)
        return number, reply, bytes(cut.payload)

    def exchange(self, message: messages.Request) -> tuple[messages.Reply, bytes]:
        """Ask and wait for the reply, or for the last words of the session. Raises what was reported."""
        asked = next(self._numbers)
        try:
            self.send(messages.request_frame(asked, message))
        except ConnectionClosed:  # the session was ended just now
            raise self.last_words() or SessionLostError("closed without a word") from None
        while True:
            number, reply, payload = self.receive()
            if isinstance(reply, Failed) and number in (0, asked):
                raise from_wire(reply.code, reply.error)
            if number == asked:
                return reply, payload

    def ask(self, message: messages.Request) -> messages.Reply:
        return self.exchange(message)[0]

    def last_words(self) -> GridError | None:
        """Read until the connection is closed; what the Node said at the end, if it said why."""
        said: GridError | None = None
        try:
            while True:
                number, reply, _ = self.receive()
                if number == 0 and isinstance(reply, Failed):
                    said = from_wire(reply.code, reply.error)
        except ConnectionClosed:
            return said

    # ------------------------------------------------------------------ values

    def new_id(self) -> int:
        return next(self._ids)

    def put(self, tensor: torch.Tensor) -> int:
        identity = self.new_id()
        data = bytes(to_bytes(tensor))
        self.operations([commands.PUT, identity, NAMES[tensor.dtype], tuple(tensor.shape), data])
        return identity

    def open(self, dataset: messages.DatasetInfo, tensor: str = "data") -> int:
        identity = self.new_id()
        self.ask(messages.Open(dataset=dataset.id, version=dataset.version, values={tensor: identity}))
        return identity

    def op(self, name: str, args: list[Any], *operands: Any, out: Any = None, kwargs: Any = ()) -> Any:
        """Run one operation; its arguments' structure is `args` (wire/commands.py), its operands follow."""
        key = repr((name, args, kwargs))
        if key not in self._templates:
            self._templates[key] = len(self._templates)
            self.operations([commands.DEFINE, self._templates[key], name, args, list(kwargs)])
        result = self.new_id() if out is None else out
        self.operations([self._templates[key], result, *operands])
        return result

    def read(self, identity: int, credential: str = "") -> torch.Tensor:
        """A value. Raises what the Node says instead."""
        reply, payload = self.exchange(messages.Read(value=identity, credential=credential))
        assert isinstance(reply, messages.Value)
        return from_bytes(payload, reply.dtype, reply.shape)
