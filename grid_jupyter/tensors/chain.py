"""Pointers to pointers: `x.send(bob).send(alice)` is a pointer that alice holds to a value at bob.

A pointer is no more than a name for a value, and the names of a session are its client's. So the client keeps
what alice "holds" for her: she is told nothing of bob, neither ids nor values pass through her, and what is
done to a chain is done at its end (docs/decisions/0010-pointer-chains-live-in-the-client.md).
"""

from __future__ import annotations

import gc
import weakref
from typing import Any, NoReturn

from grid_jupyter.errors import CannotRequestObjectAttribute, ObjectNotFoundError
from grid_jupyter.tensors.session import NUMBERS, Ref
from grid_jupyter.tensors.text import pointer_line

_OWN = frozenset({"gone", "place", "under"})


class Cleared(list[Any]):
    """Takes the place of the buffer of pointers that were cleared."""

    def __init__(self, place: Any) -> None:
        super().__init__()
        self._place = place

    def append(self, command: Any) -> NoReturn:
        raise ObjectNotFoundError(f"{self._place.id} no longer holds this pointer: its objects were cleared")


class Relay:
    """A session as it is reached through the pointers that another place holds.

    It is the session below in all but three things: results of its operations are held by `place` as well,
    reading them gives pointers, and operands from the session below are elsewhere.
    """

    def __init__(self, place: Any, under: Any) -> None:
        self.place = place
        self.under = under
        self.gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.under, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.under, name, value)

    @property
    def buffer(self) -> list[Any]:
        """Where commands go: to the session below, unless the place was cleared."""
        found: list[Any] = Cleared(self.place) if self.gone else self.under.buffer
        return found


_relays: weakref.WeakValueDictionary[tuple[int, int], Relay] = weakref.WeakValueDictionary()


def relay(place: Any, under: Any) -> Relay:
    """The one relay of a place into a session, for as long as a pointer needs it."""
    key = (id(place), id(under))
    found = _relays.get(key)
    if found is None or found.gone:
        found = _relays[key] = Relay(place, under)
    return found


class Kept(Ref):
    """A reference that does not own: the value stays when its pointer goes."""

    __slots__ = ()

    def __del__(self) -> None:
        pass


class Shared(Ref):
    """A reference of a pointer that was sent on: the value lives as long as the pointer or the chain."""

    __slots__ = ()


class Through:
    """The reference of a chain: one place further away than `inner`, the reference that the place holds."""

    __slots__ = ("__weakref__", "_relay", "inner", "label", "place")

    def __init__(self, inner: Any, place: Any) -> None:
        self.inner = inner
        self.place = place
        self.label = NUMBERS.randrange(10**9, 10**11)
        self._relay: Any = relay(place, inner.session)

    @property
    def id(self) -> int:
        """The session's number for the value at the end."""
        return int(self.inner.id)

    @property
    def session(self) -> Any:
        """The session at the end, by way of this place."""
        if self._relay.under is not self.inner.session:  # published data outlives sessions
            self._relay = relay(self.place, self.inner.session)
        return self._relay


class Spent:
    """The reference of a pointer whose value was fetched or moved away."""

    __slots__ = ("_text", "label", "place")

    def __init__(self, reference: Any, text: str) -> None:
        self.place = reference.place
        self.label = reference.label
        self._text = text

    @property
    def id(self) -> int:
        """Raises ObjectNotFoundError."""
        raise ObjectNotFoundError(self._text)

    @property
    def session(self) -> Any:
        """Raises ObjectNotFoundError."""
        raise ObjectNotFoundError(self._text)


class AttributeRef:
    """Names an attribute of a value, its gradient or its data, as 0.2.9's `attr` did."""

    __slots__ = ("_of", "attribute")

    def __init__(self, of: Any, attribute: str) -> None:
        self._of = of
        self.attribute = attribute

    def _found(self) -> Any:
        if self.attribute == "data":
            return self._of
        found = self._of.grad
        if found is None:
            raise ObjectNotFoundError("there is no gradient: call backward() first")
        return found

    @property
    def id(self) -> int:
        """The session's number of the attribute. Raises ObjectNotFoundError where there is none."""
        return int(self._found()._ref.id)

    @property
    def session(self) -> Any:
        """Where the value is computed on."""
        return self._of._ref.session

    @property
    def place(self) -> Any:
        """Where the value is."""
        return self._of._ref.place

    @property
    def label(self) -> int:
        """The number of the value that has the attribute."""
        return int(self._of._ref.label)

    def is_none(self) -> bool:
        """Whether there is no such attribute yet, as far as this side knows."""
        return self.attribute == "grad" and self._of.grad is None

    def refuse(self) -> NoReturn:
        """Raises CannotRequestObjectAttribute."""
        raise CannotRequestObjectAttribute(
            f"this pointer names the attribute {self.attribute!r} of a value and cannot be fetched; "
            f"use .clone().get(), or fetch the value itself, whose gradient comes along"
        )


def is_chain(reference: Any) -> bool:
    """Whether a reference is a pointer to a pointer."""
    return isinstance(reference, Through) or (isinstance(reference, Ref) and isinstance(reference.session, Relay))


def step(reference: Any) -> Any:
    """The reference that the place of a chain holds, which it then no longer does.

    Raises ObjectNotFoundError if the place was cleared.
    """
    session = reference.session
    if session.gone:
        raise ObjectNotFoundError(f"{session.place.id} no longer holds this pointer: its objects were cleared")
    if isinstance(reference, Through):
        inner: Any = reference.inner
        if isinstance(inner, Shared):
            owned: Any = inner
            owned.__class__ = Ref  # the pointer that comes back owns the value again
        return inner
    reference.__class__ = Kept  # the pointer that comes back owns the value from here on
    return Ref(reference.id, session.under)


class Held:
    """What the list of a place's objects shows for a pointer that it holds."""

    def __init__(self, reference: Any) -> None:
        inner = reference.inner if isinstance(reference, Through) else Ref(reference.id, reference.session.under)
        self._text = pointer_line(reference.place.id, reference.label, inner.place.id, inner.label)
        if not isinstance(reference, Through):
            inner.__class__ = Kept

    def __repr__(self) -> str:
        return self._text


def held_by(place: Any) -> dict[int, Held]:
    """The pointers that a place holds, by their numbers there. They are found by the garbage collector's lists, so
    that chains cost nothing for it."""
    if not any(one.place is place and not one.gone for one in list(_relays.values())):
        return {}
    pointers = [one for one in gc.get_objects() if type(one).__name__ == "RemoteTensor"]  # it is above this module
    references = [getattr(one, "_ref", None) for one in pointers]
    return {
        one.label: Held(one)
        for one in references
        if one is not None and is_chain(one) and one.place is place and not one.session.gone
    }


def clear_held(place: Any) -> None:
    """Let a place forget the pointers that it holds; chains through it then raise ObjectNotFoundError."""
    for one in list(_relays.values()):
        if one.place is place:
            one.gone = True
