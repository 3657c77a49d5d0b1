"""TorchHook: puts the 0.2.9 verbs on torch, only when asked to; each also exists without the hook."""

from __future__ import annotations

import logging
import random
from typing import Any

import torch

from grid_jupyter.tensors.autograd import RETURNS_POINTER_FROM_BACKWARD
from grid_jupyter.tensors.modules import get_module, send_module
from grid_jupyter.tensors.multi import MultiPointerTensor
from grid_jupyter.tensors.private import private_tensor

_log = logging.getLogger("grid_jupyter")


def send(tensor: Any, *locations: Any, user: str | None = None, **options: Any) -> Any:
    """Send a tensor to one place (a pointer) or to several (a multi-pointer).

    A tensor with tags or a description, or a PrivateTensor, is published on the Node: that needs the right
    to publish. A bare one lives in the sender's session and dies with its pointer.
    """
    if not locations:
        raise TypeError("send() needs a place: a VirtualWorker or a DataCentricFLClient")
    sent = [place.receive(tensor, user=user, **options) for place in locations]
    return sent[0] if len(sent) == 1 else MultiPointerTensor(sent)


def install(torch_module: Any = torch) -> None:
    """Put the verbs on torch.Tensor and torch.nn.Module. Doing it twice is harmless."""
    if torch_module is not torch:
        raise TypeError("TorchHook takes the torch module: TorchHook(torch)")
    if RETURNS_POINTER_FROM_BACKWARD.get("on"):
        _log.warning("Torch was already hooked... skipping hooking process")
        return
    RETURNS_POINTER_FROM_BACKWARD["on"] = True
    tensor: Any = torch.Tensor
    tensor.send = send
    tensor.private_tensor = private_tensor
    tensor.tag = _tag
    tensor.describe = _describe
    tensor.copy = torch.Tensor.clone
    tensor.id = property(_identity)
    module: Any = torch.nn.Module
    module.send = lambda self, place: send_module(self, place.session)
    module.get = get_module


def _tag(tensor: Any, *tags: str) -> Any:
    """Add tags that others will search for; returns the tensor."""
    tensor.tags = (*getattr(tensor, "tags", ()), *tags)
    return tensor


def _describe(tensor: Any, description: str) -> Any:
    """Say what the values mean; returns the tensor."""
    tensor.description = description
    return tensor


def _identity(tensor: Any) -> int:
    found = tensor.__dict__.get("_grid_id")
    if found is None:
        found = tensor.__dict__["_grid_id"] = random.randrange(10**9, 10**11)  # noqa: S311 - a name, not a secret
    return int(found)
