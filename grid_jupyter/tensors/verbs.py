"""The verbs of a pointer: fetch it, copy it, send it on, move it, name it. 0.2.9's users know them."""

from __future__ import annotations

from typing import Any

from grid_jupyter.errors import BadRequest, InvalidTensorForRemoteGet
from grid_jupyter.tensors.autograd import follow
from grid_jupyter.tensors.chain import AttributeRef, Kept, Shared, Spent, Through, is_chain, step
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.session import Ref
from grid_jupyter.wire.limits import MAX_REASON_CHARS


class Verbs:
    """What a pointer does besides being a tensor."""

    _ref: Any
    tags: tuple[str, ...]
    description: str

    @staticmethod
    def _run_plan(plan: Any, given: Any, batch: int) -> list[Any]:
        """What a plan calls that is given remote tensors."""
        from grid_jupyter.tensors.planned import run  # it is above this module

        return run(plan, given, batch)

    # -------------------------------------------------------------- fetching

    def get(
        self: Any, user: str | None = None, reason: str = "", deregister_ptr: bool = True, inplace: bool = False
    ) -> Any:
        """Fetch the value; the remote one is removed (published data stays). Its gradient comes along.

        `user` presents the stored credential of that user for this one call; `reason` tells the owners why, in
        their Node's log, and decides nothing; without `deregister_ptr` the remote value stays. What derives from
        published data comes as a PrivateTensor that keeps the users who may read it. A pointer to a pointer
        gives the inner one. After `request`, it gives what was approved, as it was when it was asked for.

        Raises GetNotPermittedError, ObjectNotFoundError, SessionLostError, RemoteOperationError,
        CannotRequestObjectAttribute.
        """
        if inplace:
            return self.get_(user=user, reason=reason)
        reference = self._ref
        if isinstance(reference, AttributeRef):
            reference.refuse()
        if len(reason) > MAX_REASON_CHARS:
            raise BadRequest(f"a reason has at most {MAX_REASON_CHARS} characters")
        if is_chain(reference):
            if user or reason:
                raise BadRequest("this fetches a pointer, not a value: give user= and reason= to the .get() after it")
            return self._one_nearer()
        if user is None and reference.session.asked:
            asked = reference.session.asked.get(reference.id)
            if asked is not None:
                return asked.get()
        grad = self.grad if self.requires_grad and self.is_leaf else None
        if grad is not None and isinstance(grad._ref, Spent):  # somebody fetched that pointer; the gradient is there
            self._grad_pointer = True
            grad = self.grad
        removable = deregister_ptr and isinstance(reference, Ref)
        fetched_grad = None if grad is None else grad._ref.session.read(grad._ref.id, user, reason=reason)[0]
        identity = reference.id
        tensor, readers = reference.session.read(identity, user, remove=removable, reason=reason)
        if self.requires_grad:
            tensor.requires_grad_(True)
            tensor.grad = fetched_grad
        if removable:
            self._grad_pointer = None
            self._ref = Spent(
                reference, f"there is no value {identity} on {reference.place.id} any more: it was fetched"
            )
        return tensor if readers is None else PrivateTensor(tensor, readers)

    def request(self: Any, reason: str, user: str | None = None) -> Any:
        """Ask the owners of all data that this value derives from to release it, and say why.

        The Node keeps the value as it is now; its owners see who asks, why, how it was computed and how many rows it
        rests on. Returns the request: `.wait()`, then `.get()` of it or of this pointer. `user` presents the stored
        credential of that user.

        Raises GetNotPermittedError where an owner takes no requests, LimitExceededError for too many open ones.
        """
        reference = self._ref
        if isinstance(reference, AttributeRef):
            reference.refuse()
        if is_chain(reference):
            raise BadRequest("this is a pointer to a pointer, not to a value: ask for the value with the inner one")
        if not reason.strip() or len(reason) > MAX_REASON_CHARS:
            raise BadRequest(f"a reason is a text of 1 to {MAX_REASON_CHARS} characters")
        identity, session = reference.id, reference.session
        number, state = session.ask_release(identity, reason, user)
        asked = reference.place.asked(number, state, self, user)
        if number:
            session.asked[identity] = asked
        return asked

    def mock(self: Any, user: str | None = None) -> Any:
        """The mock rows that the owner of this published tensor gave: an ordinary tensor of its dtype and trailing
        shape, to try things on. `user` presents the stored credential of that user.

        Raises ObjectNotFoundError where there are none, BadRequest for a pointer to anything else.
        """
        fetch = getattr(self._ref, "mock", None)
        if fetch is None:
            raise BadRequest("only published data has mock rows; compute on those as you did to get this pointer")
        return fetch(user)

    def get_(self: Any, user: str | None = None, reason: str = "") -> Any:
        """As `get`, in place: this very object becomes the tensor, or the pointer that it pointed to."""
        found = self.get(user=user, reason=reason)
        if isinstance(found, PrivateTensor):
            raise BadRequest("a private value does not become a plain tensor in place; use x = x.get()")
        self._become(found)
        return self

    def mid_get(self: Any) -> None:
        """`get_` without credential or reason; 0.2.9 fetched through chains with it."""
        self.get_()

    def _one_nearer(self: Any) -> Any:
        """The pointer that the nearest place of a chain holds; the place lets go of it."""
        reference = self._ref
        found = self._pointing(step(reference))
        self._ref = Spent(reference, f"{reference.place.id} no longer holds this pointer: it was fetched back")
        return found

    def _pointing(self: Any, reference: Any) -> Any:
        """A pointer with this one's form and words, and another reference."""
        made = self._point(self._layout, reference, self._offset, self._leaves)
        made.tags, made.description = self.tags, self.description
        follow(self, made)
        return made

    # -------------------------------------------------------------- sending on

    def send(self: Any, *locations: Any, **options: Any) -> Any:
        """Let another place hold this pointer: the result is a pointer to it, a chain. See `send` of the package."""
        return self._send(self, *locations, **options)

    def send_(self: Any, *locations: Any, **options: Any) -> Any:
        """As `send` to one place, in place: this object becomes the chain."""
        return self._send(self, *locations, inplace=True, **options)

    def through(self: Any, place: Any) -> Any:
        """A pointer to this pointer, which `place` then holds. Nothing is told to the place.

        The value lives as long as either of the two pointers.
        """
        reference = self._ref
        if isinstance(reference, AttributeRef):
            reference.refuse()
        if type(reference) is Ref and not is_chain(reference):
            reference.__class__ = Shared
        return self._pointing(Through(reference, place))

    def move(self: Any, location: Any, requires_grad: bool | None = None, user: str | None = None) -> Any:
        """Take the value to another place, in place: the source is removed. Returns this pointer.

        A chain is held by another place from then on; its value stays. To this process' own worker it is
        `get()`. Published data is not moved: copy() it. `requires_grad` says whether the moved value requires a
        gradient; by default as before, where it is a leaf.

        Raises BadRequest, GetNotPermittedError, and what sending to that place raises.
        """
        if location is self.owner:
            return self.get(user=user)
        if location is self.location:
            return self
        reference = self._ref
        if isinstance(reference, AttributeRef):
            reference.refuse()
        if is_chain(reference):
            self._become(self._one_nearer().through(location))
            return self
        self._become(self._taken_to(location, requires_grad, user))
        return self

    move_ = move

    def _taken_to(self: Any, location: Any, requires_grad: bool | None, user: str | None) -> Any:
        reference = self._ref
        if not isinstance(reference, Ref):
            raise BadRequest("published data stays where it is; .copy() it, and move the copy")
        taken = location.take(self, user)
        if (self.requires_grad and self.is_leaf) if requires_grad is None else requires_grad:
            taken.requires_grad_()
        taken.tags, taken.description = self.tags, self.description
        reference.session.dropped.append(reference.id)
        reference.__class__ = Kept  # it is removed now, not once more when the pointer goes
        self._ref = Spent(reference, f"the value was moved from {reference.place.id} to {location.id}")
        return taken

    def remote_send(self: Any, location: Any, requires_grad: bool | None = None, user: str | None = None) -> Any:
        """Let the place that has the value send it on: this pointer becomes a chain, in place, and is returned."""
        here = self.location
        inner = self._one_nearer().through(location) if is_chain(self._ref) else None
        if inner is None:
            inner = self._taken_to(location, requires_grad, user)
        self._become(inner.through(here))
        return self

    def remote_get(self: Any, user: str | None = None) -> Any:
        """Let the place that holds the inner pointer of this chain fetch what it points to; in place.

        Raises InvalidTensorForRemoteGet for a pointer that is no chain.
        """
        if not is_chain(self._ref):
            raise InvalidTensorForRemoteGet(
                f"this points to a value on {self.location.id}, not to a pointer: there is nothing to fetch there"
            )
        here, inner = self.location, self._one_nearer()
        if is_chain(inner._ref):
            inner = inner._one_nearer().through(here)
        else:
            inner.move(here, user=user)
        self._become(inner)
        return self

    # -------------------------------------------------------------- what it is

    def copy(self: Any) -> Any:
        """A new remote value with the same elements; a copy of a chain is a chain."""
        made: Any = self.clone()
        return made

    def attr(self: Any, name: str) -> Any:
        """A pointer to an attribute, "grad" or "data": it computes, and is not fetched."""
        if name not in ("grad", "data"):
            raise AttributeError(f"a pointer has the attributes 'grad' and 'data', not {name!r}")
        return self._point(self._layout, AttributeRef(self, name), self._offset, None)

    def is_none(self) -> bool:
        """Whether there is nothing there, as far as this side knows: a gradient before backward()."""
        return isinstance(self._ref, AttributeRef) and self._ref.is_none()

    def allow(self, user: str) -> bool | None:
        """Whether that user may read the values; None: this side does not know."""
        dataset = getattr(self._ref, "dataset", None)
        if dataset is None or dataset.allowed_users is None:
            return None
        return user == dataset.owner or user in dataset.allowed_users

    @property
    def garbage_collection(self) -> bool:
        """Whether the remote value is removed when this pointer goes. Published data never is."""
        return isinstance(self._ref, (Ref, Through)) and not isinstance(self._ref, (Kept, Shared))

    @garbage_collection.setter
    def garbage_collection(self, on: bool) -> None:
        if isinstance(self._ref, Ref):
            self._ref.__class__ = Ref if on else Kept
        elif on:
            raise BadRequest("this pointer does not own what it points to")
        elif isinstance(self._ref, Through) and isinstance(self._ref.inner, Ref):
            self._ref.inner.__class__ = Kept

    @property
    def disable_gc(self) -> Any:
        """Keep the remote value when this pointer goes; returns the pointer."""
        self.garbage_collection = False
        return self

    def tag(self, *tags: str) -> Any:
        """Name this pointer on this side; what is published keeps its own tags."""
        self.tags = (*self.tags, *tags)
        return self

    def describe(self, description: str) -> Any:
        """Describe this pointer on this side."""
        self.description = description
        return self
