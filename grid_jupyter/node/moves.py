"""Moves: a value goes from a session here straight into a session elsewhere, if both Nodes agree.

A session that expects a value gives out a ticket for it, good once and for a minute. The session that holds the value
is told the ticket; its Node asks its release gate, and hands the bytes to the Node that gave out the ticket. What may
be read by some people only keeps their names there.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from grid_jupyter.errors import (
    Forbidden,
    InvalidMessageError,
    LimitExceededError,
    NotAuthenticatedError,
    ObjectNotFoundError,
    SessionLostError,
)
from grid_jupyter.link.moves import hand_over, proof, split
from grid_jupyter.node import policy
from grid_jupyter.node.bulk import Incoming
from grid_jupyter.node.gate import Source
from grid_jupyter.node.policy import Rules
from grid_jupyter.wire.dtypes import nbytes
from grid_jupyter.wire.messages import Expect, Expected, Move

TICKET_S = 60.0
"""How long a ticket is good for beginning with a move."""
MAX_EXPECTED = 64
"""Tickets of one session that were not used yet."""


class Receiver(Protocol):
    """A session, as far as values come into it."""

    async def begin_receive(self, value: int, dtype: str, shape: tuple[int, ...], size: int) -> Incoming:
        """Make room for a tensor."""

    async def receive(self, value: int, incoming: Incoming, sources: Sequence[Source] = ()) -> None:
        """Hand it to the Worker."""


@dataclass
class Expectation:
    """What a ticket is good for: one tensor of this form, under this id, in this session."""

    session: Receiver
    value: int
    dtype: str
    shape: tuple[int, ...]
    secret: str
    until: float

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return nbytes(self.dtype, self.shape)


@dataclass(frozen=True)
class Value:
    """A value on its way out: its form, who may read it, and its bytes in a file or as they are."""

    dtype: str
    shape: tuple[int, ...]
    sources: Sequence[Source]
    rules: Sequence[Rules]
    descriptor: int  # -1 for a small one
    payload: memoryview

    def read(self, offset: int, length: int) -> bytes:
        """A part of the bytes."""
        if self.descriptor >= 0:
            return os.pread(self.descriptor, length, offset)
        return bytes(self.payload[offset : offset + length])


class Moves:
    """The tickets of a Node, and the way to other Nodes.

    `find_node` gives the address of a Node of the same Network, or None; `peers` are addresses that the Node's owner
    allows besides. A caller names a Node and never has this one call an address of the caller's own choice.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = ""
        self.peers: tuple[str, ...] = ()
        self.find_node: Callable[[str], Awaitable[str | None]] | None = None
        self._name = name
        self._clock = clock
        self._expected: dict[str, Expectation] = {}

    # -------------------------------------------------------------- values that come

    def expect(self, session: Receiver, message: Expect) -> Expected:
        """A ticket for a value that another session is to hand over. Raises LimitExceededError."""
        self._sweep()
        if sum(one.session is session for one in self._expected.values()) >= MAX_EXPECTED:
            raise LimitExceededError(f"a session expects at most {MAX_EXPECTED} values at once")
        number, secret = secrets.token_urlsafe(9), secrets.token_urlsafe(32)
        self._expected[number] = Expectation(
            session, message.value, message.dtype, message.shape, secret, self._clock() + TICKET_S
        )
        return Expected(ticket=f"{number}.{secret}", node=self._name, address=self.address)

    def proof(self, number: str, challenge: str) -> str:
        """Show that a ticket is from here. Raises NotAuthenticatedError."""
        self._sweep()
        found = self._expected.get(number)
        if found is None:
            raise _no_ticket()
        return proof(found.secret, challenge)

    def claim(self, number: str, secret: str) -> Expectation:
        """Use up a ticket. Raises NotAuthenticatedError."""
        self._sweep()
        found = self._expected.get(number)
        if found is None or not hmac.compare_digest(found.secret.encode(), secret.encode()):
            raise _no_ticket()
        del self._expected[number]
        return found

    def forget(self, session: Receiver) -> None:
        """A session has ended, and its tickets with it."""
        self._expected = {number: one for number, one in self._expected.items() if one.session is not session}

    def _sweep(self) -> None:
        now = self._clock()
        self._expected = {number: one for number, one in self._expected.items() if one.until > now}

    # -------------------------------------------------------------- values that go

    async def where(self, message: Move) -> str:
        """The address to which a value may go; empty for a session of this Node.

        Raises Forbidden for any Node that is neither of the same Network nor allowed by the owner.
        """
        self._sweep()
        if split(message.ticket)[0] in self._expected:
            return ""
        if message.address in self.peers:
            return message.address
        found = None if self.find_node is None else await self.find_node(message.node)
        if found is None:
            raise Forbidden(
                "this Node hands values to Nodes of its own Network, and to those that its owner named with --peer; "
                "fetch the value and send it, if you may read it"
            )
        return found

    async def send(self, where: str, message: Move, value: Value) -> None:
        """Hand a value over that has passed the release gate. Raises what the other Node reports."""
        try:
            await self._send(where, message, value)
        except SessionLostError:  # the other session's: this one goes on
            raise ObjectNotFoundError("the session to which the value was to go has ended") from None

    async def _send(self, where: str, message: Move, value: Value) -> None:
        if not where:
            await self._send_here(message, value)
            return
        readers = policy.readers(value.rules) if value.rules else None
        size = nbytes(value.dtype, value.shape)
        await hand_over(where, message.ticket, value.dtype, value.shape, readers, self._name, size, value.read)

    async def _send_here(self, message: Move, value: Value) -> None:
        """From one session of this Node to another: what the value derives from is known here by itself."""
        expected = self.claim(*split(message.ticket))
        incoming = await begin(expected, value.dtype, value.shape)
        turn = incoming.begin_turn()
        while incoming.offset < incoming.size:
            incoming.write(turn, memoryview(value.read(incoming.offset, 1 << 20)))
        incoming.end_turn(turn, self._clock())
        await expected.session.receive(expected.value, incoming, value.sources)


async def begin(expected: Expectation, dtype: str, shape: tuple[int, ...]) -> Incoming:
    """Make room for what a ticket is good for. Raises InvalidMessageError for a value of another form."""
    if (dtype, shape) != (expected.dtype, expected.shape):
        raise InvalidMessageError(f"the ticket is for a tensor of {expected.dtype} {expected.shape}, and another came")
    return await expected.session.begin_receive(expected.value, dtype, shape, expected.size)


def foreign(readers: tuple[str, ...] | None, origin: str) -> tuple[Source, ...]:
    """What a value from another Node derives from, as far as this one is to know."""
    if readers is None:
        return ()
    return (Rules(dataset=0, owner=policy.GUEST, allowed_users=readers, compute_users=(), origin=origin),)


def _no_ticket() -> NotAuthenticatedError:
    return NotAuthenticatedError("no value is expected under this ticket, or no longer: it is good once, for a minute")
