"""Sending: what `send` takes and does for tensors, private tensors and pointers, to one place or several."""

from __future__ import annotations

import weakref
from typing import Any

from grid_jupyter.errors import BadRequest, PureFrameworkTensorFoundError, WorkerNotFoundException
from grid_jupyter.tensors.inplace import stand_for, unwrapped
from grid_jupyter.tensors.multi import MultiPointerTensor
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.tensors.text import plain

WORKERS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Workers of this process by their ids, as far as they still live."""

_REFUSED = {
    "local_autograd": "gradients are always computed where the values are",
    "requires_grad": "gradients stay where the values are, and come along with .get(); use tensor.requires_grad_()",
    "preinitialize_grad": "it belongs to local_autograd, and gradients are always computed where the values are",
    "no_wrap": "a pointer has no wrapper here that could be left off",
}


def send(
    tensor: Any,
    *locations: Any,
    inplace: bool = False,
    user: str | None = None,
    local_autograd: bool = False,
    requires_grad: bool = False,
    preinitialize_grad: bool = False,
    no_wrap: bool = False,
    garbage_collect_data: bool = True,
    **options: Any,
) -> Any:
    """Send a tensor to one place (a pointer) or to several (a multi-pointer). A place may be a worker's id.

    A tensor with tags or a description, or a PrivateTensor, is published on the Node: that needs the right
    to publish, takes the options of `publish`, and stays. A bare one lives in the sender's session and dies with
    its pointer, unless `garbage_collect_data` is False. A pointer is not moved: the place then holds it (a chain).
    `inplace` makes this very object the pointer. `user` presents that user's stored credential.

    0.2.9's local_autograd, requires_grad, preinitialize_grad and no_wrap are refused: they mean nothing here.
    Raises BadRequest, WorkerNotFoundException, SendNotPermittedError, NotAuthenticatedError.
    """
    asked = {
        "local_autograd": local_autograd,
        "requires_grad": requires_grad,
        "preinitialize_grad": preinitialize_grad,
        "no_wrap": no_wrap,
    }
    for name, given in asked.items():
        if given:
            raise BadRequest(f"send({name}=True) has no meaning here: {_REFUSED[name]}")
    if not locations:
        raise TypeError("send() needs a place: a VirtualWorker or a DataCentricFLClient")
    if inplace and len(locations) > 1:
        raise BadRequest("one object cannot become several pointers; use x = x.send(bob, alice)")
    sent = [_send_to(place_named(place), tensor, user, options) for place in locations]
    for pointer in sent:
        if not garbage_collect_data and pointer.garbage_collection:
            pointer.garbage_collection = False
    if not inplace:
        return sent[0] if len(sent) == 1 else MultiPointerTensor(sent)
    if isinstance(tensor, PrivateTensor):
        raise BadRequest("a PrivateTensor does not become a pointer in place; use x = x.send(node)")
    held = unwrapped(tensor)
    if isinstance(held, RemoteTensor):
        held._become(sent[0])
        return tensor
    return stand_for(tensor, sent[0])


def send_(tensor: Any, *locations: Any, **options: Any) -> Any:
    """As `send` to one place, in place: the tensor itself becomes the pointer, and is returned."""
    return send(tensor, *locations, inplace=True, **options)


def _send_to(place: Any, tensor: Any, user: str | None, options: dict[str, Any]) -> Any:
    tensor = unwrapped(tensor)
    if not isinstance(tensor, RemoteTensor):
        return place.receive(tensor, user=user, **options)
    if user or options:
        raise BadRequest("sending a pointer sends no values: it takes neither user= nor options of publish")
    return tensor.through(place)


def place_named(place: Any) -> Any:
    """The worker of that id, or the place itself. Raises WorkerNotFoundException."""
    if not isinstance(place, str):
        return place
    found = WORKERS.get(place)
    if found is None:
        known = ", ".join(sorted(WORKERS)) or "none"
        raise WorkerNotFoundException(f"no worker {plain(place)!r} is known in this process (known: {known})")
    return found


def tag(tensor: Any, *tags: str) -> Any:
    """Add tags that others will search for; returns the tensor."""
    tensor.tags = (*getattr(tensor, "tags", ()), *tags)
    return tensor


def describe(tensor: Any, description: str) -> Any:
    """Say what the values mean; returns the tensor."""
    tensor.description = description
    return tensor


def is_here(tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Raises PureFrameworkTensorFoundError: what the verbs of pointers say on a tensor of this process."""
    raise PureFrameworkTensorFoundError("this tensor is here already: there is nothing to fetch or to move")


def combine(pointer: Any, *others: Any) -> MultiPointerTensor:
    """One multi-pointer of several pointers, in this order. Raises PureFrameworkTensorFoundError for what is here."""
    for one in (pointer, *others):
        if not isinstance(one, RemoteTensor):
            is_here(one)
    return MultiPointerTensor([pointer, *others])


RemoteTensor._send = staticmethod(send)
PrivateTensor._send = staticmethod(send)
