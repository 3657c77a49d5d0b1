"""TorchHook's work: puts the 0.2.9 verbs on torch, only when asked to; each also exists without the hook."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from grid_jupyter.errors import BadRequest, InvalidTensorForRemoteGet
from grid_jupyter.tensors.autograd import RETURNS_POINTER_FROM_BACKWARD
from grid_jupyter.tensors.former import OF_MODULES, OF_OPTIMISERS, OF_TENSORS, OfModules, refusing
from grid_jupyter.tensors.modules import copy_module, get_module, move_module, send_module
from grid_jupyter.tensors.private import private_tensor
from grid_jupyter.tensors.sending import combine, describe, is_here, send, send_, tag
from grid_jupyter.tensors.session import NUMBERS

_log = logging.getLogger("grid_jupyter")
_owner: list[Callable[[], Any]] = []


def install(torch_module: Any, local_worker: Callable[[], Any], verbose: bool = True) -> None:
    """Put the verbs on torch.Tensor and torch.nn.Module. Doing it twice is harmless.

    `local_worker` gives the worker that stands for this process. `verbose` logs that it was done before.
    """
    if torch_module is not torch:
        raise TypeError("TorchHook takes the torch module: TorchHook(torch)")
    _owner[:] = [local_worker]
    if RETURNS_POINTER_FROM_BACKWARD.get("on"):
        if verbose:
            _log.warning("Torch was already hooked... skipping hooking process")
        return
    RETURNS_POINTER_FROM_BACKWARD["on"] = True
    tensor: Any = torch.Tensor
    for name, verb in {
        "send": send,
        "send_": send_,
        "tag": tag,
        "describe": describe,
        "private_tensor": private_tensor,
        "copy": torch.Tensor.clone,
        "get": is_here,
        "get_": is_here,
        "move": is_here,
        "move_": is_here,
        "remote_send": is_here,
        "remote_get": _no_chain,
        "mid_get": _no_chain,
        "allow": lambda self, user: True,
        "is_none": lambda self: False,
        "id": property(_identity),
        "owner": property(lambda self: _owner[0]()),
        "location": property(lambda self: _owner[0]()),
        "tags": (),
        "description": "",
        "attr": _attribute,
        "combine": combine,
        "garbage_collection": property(lambda self: True, _stays_here),
        **refusing(OF_TENSORS),
    }.items():
        setattr(tensor, name, verb)
    module: Any = torch.nn.Module
    module.send = lambda self, place: send_module(self, place.session)
    module.get = get_module
    module.move = move_module
    module.copy = copy_module
    module.location = property(_module_location)
    module.owner = property(lambda self: _owner[0]())
    for name, why in OF_MODULES.items():
        setattr(module, name, OfModules(name, why))
    for name, refusal in refusing(OF_OPTIMISERS).items():
        setattr(torch.optim.Optimizer, name, refusal)


def _no_chain(tensor: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise InvalidTensorForRemoteGet("this tensor is here, in this process: there is no chain of pointers to fetch")


def _attribute(tensor: Any, name: str) -> Any:
    """What `attr` gives of a pointer, of a tensor that is here."""
    if name not in ("grad", "data"):
        raise AttributeError(f"attr gives 'grad' and 'data', not {name!r}")
    return tensor.grad if name == "grad" else tensor.data


def _stays_here(tensor: Any, on: bool) -> None:
    if not on:
        raise BadRequest("this tensor is here, and lives as long as you hold it: garbage_collection is for pointers")


def _identity(tensor: Any) -> int:
    found = tensor.__dict__.get("_grid_id")
    if found is None:
        found = tensor.__dict__["_grid_id"] = NUMBERS.randrange(10**9, 10**11)
    return int(found)


def _module_location(module: torch.nn.Module) -> Any:
    """Where the parameters and buffers are: a place, this process, or a list of places."""
    found = list(dict.fromkeys(getattr(one, "location", None) for one in (*module.parameters(), *module.buffers())))
    return found[0] if len(found) == 1 else found
