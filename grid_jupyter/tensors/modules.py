"""nn.Module elsewhere: its parameters and buffers become pointers, and come back as tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor, send
from grid_jupyter.tensors.session import Session

M = TypeVar("M", bound=torch.nn.Module)


def send_module(module: M, session: Session) -> M:
    """Move a module's parameters and buffers into a session, in place. Shared parameters stay shared."""

    def over(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, RemoteTensor) else send(tensor.detach(), session)

    return _replace(module, over)


def get_module(module: M, user: str | None = None) -> M:
    """Fetch a module's parameters and buffers, in place.

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

    _replace(module, back)
    if readers:
        allowed = tuple(name for name in readers[0] if all(name in others for others in readers))
        module.allowed_users = allowed  # type: ignore[assignment]  # modules take any attribute
    return module


def _replace(module: M, convert: Callable[[torch.Tensor], Any]) -> M:
    converted: dict[int, Any] = {}

    def once(tensor: torch.Tensor | None) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in converted:
            made = convert(tensor)
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, tensor.requires_grad)
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
