"""The verbs of a pointer: fetch it, copy it, name it. 0.2.9's users know them."""

from __future__ import annotations

from typing import Any

from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.session import Ref


class Verbs:
    """What a pointer does besides being a tensor."""

    _ref: Any
    tags: tuple[str, ...]
    description: str

    def get(self: Any, user: str | None = None, deregister_ptr: bool = True) -> Any:
        """Fetch the value; the remote one is removed (published data stays). Its gradient comes along.

        `user` presents the stored credential of that user for this one call. What derives from published
        data comes as a PrivateTensor that keeps the users who may read it.

        Raises GetNotPermittedError, ObjectNotFoundError, SessionLostError, RemoteOperationError.
        """
        reference = self._ref
        grad = self.grad if self.requires_grad and self.is_leaf else None
        removable = deregister_ptr and isinstance(reference, Ref)
        fetched_grad = None if grad is None else grad._ref.session.read(grad._ref.id, user)[0]
        identity = reference.id
        tensor, readers = reference.session.read(identity, user, remove=removable)
        if self.requires_grad:
            tensor.requires_grad_(True)
            tensor.grad = fetched_grad
        return tensor if readers is None else PrivateTensor(tensor, readers)

    def copy(self: Any) -> Any:
        """A new remote value with the same elements."""
        made: Any = self.clone()
        return made

    def tag(self, *tags: str) -> Any:
        """Name this pointer on this side; what is published keeps its own tags."""
        self.tags = (*self.tags, *tags)
        return self

    def describe(self, description: str) -> Any:
        """Describe this pointer on this side."""
        self.description = description
        return self
