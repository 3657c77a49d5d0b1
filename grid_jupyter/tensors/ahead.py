"""Reads that are sent ahead: what a loop reads at the same place of each round is asked for as soon as it is made.

`loss = …; loss.backward(); optimizer.step(); total += loss.item()` reads, in each round, what was made at the same
place after the last read. Once that was so twice, the read goes out right behind the command that makes the value,
the program goes on, and `.item()` finds the answer there. It is a read like any other: the Node decides on it. It
counts only if nothing in the stream since may have changed the value (stream.py), and only for a moment. If it is
refused, or comes to nothing, the value is read anew, and that tells.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from grid_jupyter.errors import GridError, SessionLostError
from grid_jupyter.tensors.stream import TEMPLATES, Unchanged, detached
from grid_jupyter.wire.messages import Read, Reply, Request

if TYPE_CHECKING:
    from grid_jupyter.tensors.session import Session

NEVER = 1 << 62
"""No id is as large."""
MOST_BYTES = 1024
"""Largest value that is read ahead."""
MOST_BETWEEN = 1000
"""Commands between two reads, of which the places are still remembered."""
MOST_UNUSED_S = 1.0
"""How long an answer counts: owners may change their rules meanwhile."""
_MOST_KEPT_BYTES = 1 << 20  # of commands that are remembered
_MOST_WAITING = 3  # reads ahead at once: with one more they are as many as a Node keeps for a lost connection
_MOST_PLACES = 256
_READS_KEPT = 4
_SURE, _SUREST = 2, 4

_FRESH = frozenset(
    f"aten.{name}"
    for name in (
        "_to_copy.default", "abs.default", "add.Scalar", "add.Tensor", "all.default", "amax.default", "amin.default",
        "any.default", "argmax.default", "argmin.default", "binary_cross_entropy.default",
        "binary_cross_entropy_with_logits.default", "clone.default", "div.Scalar", "div.Tensor", "dot.default",
        "eq.Scalar", "eq.Tensor", "exp.default", "huber_loss.default", "linalg_vector_norm.default", "log.default",
        "max.default", "mean.default", "mean.dim", "min.default", "mse_loss.default", "mul.Scalar", "mul.Tensor",
        "neg.default", "nll_loss2d_forward.default", "nll_loss_forward.default", "prod.default",
        "smooth_l1_loss.default", "soft_margin_loss.default", "sqrt.default", "std.correction", "sub.Scalar",
        "sub.Tensor", "sum.default", "sum.dim_IntList", "var.correction",
    )
)  # fmt: skip
"""Operations whose first result never shows the memory of an argument: what one usually reads in a loop."""


class Later(Protocol):
    """A link whose answers may be asked for before anybody waits for them."""

    def ask_later(self, message: Request) -> int:
        """Ask, without waiting; the number of the request. Raises SessionLostError."""

    def answer(self, number: int) -> tuple[Reply, memoryview] | None:
        """Wait for the answer; None if it is not to be had any more. Raises what the other side reported."""


Place = tuple[int, int]
"""Where a value is made: how many ids after a read, and by which template."""


class _Base(NamedTuple):
    """A read, from which ids are counted."""

    identity: int
    place: Place | None  # of what was read
    began: int  # how many commands had gone by


class _Sent:
    """A read that was sent ahead."""

    __slots__ = ("_bytes", "after", "began", "behind", "number", "place", "still")

    def __init__(self, value: int, place: Place, after: Place | None) -> None:
        self.place = place
        self.after = after  # the place of the read before
        self.number = 0  # of the request
        self.still = Unchanged(value)
        self.behind: list[Any] = []  # commands that went out since, and were not looked at
        self.began = time.monotonic()
        self._bytes = 0

    def note(self, batch: list[Any], length: int) -> None:
        """These commands go out behind it."""
        self._bytes += length
        if self._bytes > _MOST_KEPT_BYTES:
            self.still.holds = False
            self.behind.clear()
        else:
            self.behind += batch

    def follow(self) -> None:
        """See what went out since."""
        for command in self.behind:
            self.still.follow(command)
        self.behind.clear()


class Ahead:
    """What one session reads ahead. Its session holds the lock.

    An interrupt may come between any two steps: what is sent ahead keeps the commands behind it by itself, and
    else only the places that are learned may be wrong, for which there is no use then.
    """

    def __init__(self, session: Session, link: Later) -> None:
        self._session = session
        self._link = link
        self._keeps = False
        self._stream: list[Any] = []  # commands since some reads ago, to learn from
        self._gone = 0  # how many were before these
        self._bytes = 0
        self._bases: list[_Base] = []
        self._places: dict[Place | None, dict[Place, int]] = {}  # by the place of the read before: how sure each is
        self._due: list[Place] = []
        self._sent: list[_Sent] = []
        self.used = 0  # answers that somebody asked for later
        self.unused = 0  # reads that were for nothing

    def forget(self) -> None:
        """What was sent ahead does not count any more."""
        self._sent = []

    # -------------------------------------------------------------- the stream goes by

    def note(self, batch: list[Any], length: int) -> None:
        """These commands are about to leave, in a frame of that length."""
        for sent in self._sent:
            sent.note(batch, length)
        if self._keeps:
            self._stream += batch
            self._bytes += length
            if self._bytes > _MOST_KEPT_BYTES or len(self._stream) > _READS_KEPT * MOST_BETWEEN:
                self._rest()

    def _rest(self) -> None:
        """Reads are too far apart, for now."""
        self._keeps = False
        self._session.due = NEVER
        self._due = []
        self._gone += len(self._stream)
        self._stream = []
        self._bytes = 0

    def made(self, identity: int, command: list[Any], result: Any) -> bool:
        """The session has come to the id that was waited for: if all is as before, read it ahead; whether it did."""
        session, base, place = self._session, self._bases[-1], None
        while self._due and base.identity + self._due[0][0] <= identity:
            place = self._due.pop(0)
        session.due = base.identity + self._due[0][0] if self._due else NEVER
        if place != (identity - base.identity, command[0]) or not _is_small(result):
            return False
        session.flush(more=True)
        self._make_room(place)
        sent = _Sent(identity, place, base.place)
        self._sent.append(sent)
        sent.number = self._link.ask_later(Read(value=identity, ahead=True))
        return True

    def _make_room(self, place: Place) -> None:
        """For a further one, of that place."""
        for sent in [sent for sent in self._sent if sent.place == place] or self._sent[: 1 - _MOST_WAITING]:
            self._sent.remove(sent)
            self._missed(sent)

    def _missed(self, sent: _Sent) -> None:
        """It was for nothing: twice, and the place is forgotten."""
        self.unused += 1
        places = self._places.get(sent.after, {})
        sure = places.get(sent.place, 0) - _SURE
        if sure > 0:
            places[sent.place] = sure
        else:
            places.pop(sent.place, None)

    # -------------------------------------------------------------- reads

    def take(self, identity: int) -> tuple[Reply, memoryview] | None:
        """The answer to a read that was sent ahead, if there is one that counts for this value; waits for it.

        The stream was flushed before. Raises SessionLostError.
        """
        for sent in list(self._sent):
            sent.follow()
            if identity in sent.still.same:
                answer = self._answer(sent)
                self._sent.remove(sent)
                if answer is None:
                    self._missed(sent)
                else:
                    self.used += 1
                return answer
        return None

    def _answer(self, sent: _Sent) -> tuple[Reply, memoryview] | None:
        if not sent.still.holds or time.monotonic() - sent.began > MOST_UNUSED_S:
            return None
        try:
            return self._link.answer(sent.number)
        except SessionLostError:
            raise
        except GridError:
            return None  # reading it anew tells what is the matter

    def was_read(self, identity: int, nbytes: int) -> None:
        """A value was just read, ahead or not: learn where it was made, and wait for what is made next."""
        place = self._learn(identity) if nbytes <= MOST_BYTES else None
        now = self._session.new_id()
        steady = bool(self._bases) and now - self._bases[-1].identity <= MOST_BETWEEN
        if not steady:
            self._rest()
        self._bases = [*self._bases[1 - _READS_KEPT :], _Base(now, place, self._gone + len(self._stream))]
        self._keeps = steady
        old = self._bases[0].began - self._gone
        if old > 0:
            del self._stream[:old]
            self._gone += old
            self._bytes = 0
        known = self._places.get(place, {}) if steady else {}
        self._due = sorted(one for one, sure in known.items() if sure >= _SURE)
        self._session.due = now + self._due[0][0] if self._due else NEVER

    def _learn(self, identity: int) -> Place | None:
        """Where a value was made that was just read, if that may be of use."""
        value = identity
        for at in range(len(self._stream) - 1, -1, -1):
            command = self._stream[at]
            if command[0] < 0:
                continue
            made = command[1]
            if value != (made[0] if type(made) is list and made else made):
                continue
            shown = detached(command)
            if shown:
                value = shown
                continue
            base = next((base for base in reversed(self._bases) if base.identity < value), None)
            if base is None or TEMPLATES[command[0]][0] not in _FRESH:
                return None
            place = (value - base.identity, int(command[0]))
            if sum(map(len, self._places.values())) >= _MOST_PLACES:
                self._places.clear()
            places = self._places.setdefault(base.place, {})
            sure = places.get(place, 0)
            if sure >= _SURE or self._is_unchanged(value, identity, at + 1):
                places[place] = min(sure + 1, _SUREST)
            return place
        return None

    def _is_unchanged(self, value: int, shown: int, at: int) -> bool:
        still = Unchanged(value)
        for command in self._stream[at:]:
            still.follow(command)
        return still.holds and shown in still.same


def _is_small(result: Any) -> bool:
    """Whether a value that was made, or the first of several, is one that is read ahead."""
    one = result[0] if isinstance(result, (tuple, list)) else result
    nbytes: int = one._layout.dtype.itemsize
    for length in one._layout.shape:
        if type(length) is not int:
            return False  # nobody is to know it
        nbytes *= length
    return nbytes <= MOST_BYTES
