"""nn.Module elsewhere: its parameters and buffers become pointers, and come back as tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from grid_jupyter.errors import BadRequest
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor, send
from grid_jupyter.tensors.session import Session

M = TypeVar("M", bound=torch.nn.Module)


def send_module(module: M, session: Session) -> M:
    """Move a module's parameters, their gradients and its buffers into a session, in place.

    Shared parameters stay shared. Raises BadRequest for a lazy module that was never run.
    """

    def over(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, RemoteTensor) else send(tensor.detach(), session)

    return _replace(module, over)


def get_module(module: M, user: str | None = None) -> M:
    """Fetch a module's parameters and buffers, in place; its gradients are dropped.

    Where they derive from published data, `module.allowed_users` names who may read them.
    Raises GetNotPermittedError.
    """
    readers: list[tuple[str, ...]] = []

    def back(tensor: Any) -> Any:
        if not isinstance(tensor, RemoteTensor):
            return tensor
        found = tensor.detach().get(user=user)
        if isinstance(found, PrivateTensor):
            readers.append(found.allowed_users)
            return found.unwrap()
        return found

    _replace(module, back, gradients=False)
    if readers:
        allowed = tuple(name for name in readers[0] if all(name in others for others in readers))
        module.allowed_users = allowed  # type: ignore[assignment]  # modules take any attribute
    return module


def move_module(module: M, location: Any, user: str | None = None) -> M:
    """Take a module's parameters and buffers from their place to another, in place.

    From Node to Node the values do not pass through here. The parameters stay the objects that they are, so an
    optimiser goes on with them. Raises BadRequest for tensors of this process, GetNotPermittedError.
    """
    for one in (*module.parameters(), *module.buffers()):
        if not isinstance(one, RemoteTensor):
            raise BadRequest("the module is here, in this process: send it")
        one.move(location, user=user)
    return module


def copy_module(module: M) -> M:
    """Another module of the same class whose parameters and buffers are copies, where they are."""
    return copy.deepcopy(module)


def is_remote(module: torch.nn.Module) -> bool:
    """Whether some of a module's parameters and buffers are pointers."""
    return any(isinstance(tensor, RemoteTensor) for tensor in (*module.parameters(), *module.buffers()))


def _replace(module: M, convert: Callable[[torch.Tensor], Any], gradients: bool = True) -> M:
    converted: dict[int, Any] = {}

    def once(tensor: torch.Tensor | None) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in converted:
            if torch.nn.parameter.is_lazy(tensor):
                raise BadRequest("a lazy module has no shapes yet: run it once on local data, then send it")
            made = convert(tensor)
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, tensor.requires_grad)
                if gradients and tensor.grad is not None:
                    made.grad = convert(tensor.grad)
            converted[id(tensor)] = made
        return converted[id(tensor)]

    for part in module.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = once(parameter)
        for name, buffer in part._buffers.items():
            part._buffers[name] = once(buffer)
        if isinstance(part, torch.nn.RNNBase):
            part._init_flat_weights()
    return module
