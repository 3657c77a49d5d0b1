"""Verbs in place: a pointer that becomes a tensor or another pointer, a tensor that becomes a pointer."""

from __future__ import annotations

from typing import Any

import torch

from grid_jupyter.tensors.autograd import replace
from grid_jupyter.tensors.remote import RemoteTensor

_Tensor: Any = torch.Tensor  # torch's stubs type what these classes answer otherwise
_SLOTS: tuple[str, ...] = RemoteTensor.__slots__
_KEPT_BY_THE_OBJECT = frozenset({"_number", "description", "tags"})
_swap: Any = torch._C._swap_tensor_impl  # what torch.utils.swap_tensors does, without asking for like classes


class Fetched(_Tensor):  # type: ignore[misc]
    """An ordinary tensor that was a pointer: the same object, fetched in place."""

    __slots__ = _SLOTS  # Python changes the class of an object only to one of the same layout
    __torch_function__ = torch._C._disabled_torch_function_impl  # results are plain tensors

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return repr(self.detach().as_subclass(torch.Tensor).requires_grad_(self.requires_grad))

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        made: torch.Tensor = self.detach().as_subclass(torch.Tensor).clone().requires_grad_(self.requires_grad)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().as_subclass(torch.Tensor).requires_grad_(self.requires_grad).__reduce_ex__(protocol)


def become(pointer: Any, found: Any) -> None:
    """Let a pointer be what was found for it: another pointer, or a tensor of this process."""
    if type(found) is RemoteTensor:
        for name in _SLOTS:
            if name not in _KEPT_BY_THE_OBJECT:
                mine, other = getattr(pointer, name), getattr(found, name)
                setattr(pointer, name, other)
                setattr(found, name, mine)
        _swap(pointer, found)
        replace(found, pointer)
        return
    for name in _SLOTS:
        if name not in _KEPT_BY_THE_OBJECT:
            delattr(pointer, name)
    pointer.__class__ = Fetched
    grad = found.grad
    _swap(pointer, found)
    pointer.grad = grad


class Sent(_Tensor):  # type: ignore[misc]
    """A tensor whose values were sent away in place: the same object, which stands for its pointer now."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "__dict__", "__torch_function__"):
            return object.__getattribute__(self, name)
        return getattr(_pointer(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_pointer(self), name, value)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_plain(args), **_plain(kwargs or {}))


def _pointer(sent: Any) -> Any:
    return object.__getattribute__(sent, "__dict__")["_grid_pointer"]


def unwrapped(tensor: Any) -> Any:
    """The pointer that an object stands for, or the object itself."""
    return _pointer(tensor) if type(tensor) is Sent else tensor


def _plain(argument: Any) -> Any:
    if type(argument) is Sent:
        return _pointer(argument)
    if isinstance(argument, (list, tuple)):
        return type(argument)(_plain(part) for part in argument)
    if isinstance(argument, dict):
        return {key: _plain(value) for key, value in argument.items()}
    return argument


def stand_for(tensor: torch.Tensor, pointer: Any) -> Any:
    """Let a local tensor be the pointer to what was sent of it; its own memory is let go."""
    if isinstance(tensor, torch.nn.Parameter):
        pointer._is_param = True
    _swap(tensor, torch.empty(0, dtype=tensor.dtype))
    standing: Any = tensor
    standing.__class__ = Sent
    object.__getattribute__(standing, "__dict__")["_grid_pointer"] = pointer
    return standing


def _special(name: str) -> None:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        pointer = _pointer(self)
        return getattr(type(pointer), name)(pointer, *args, **kwargs)  # as Python looks up such methods: on the type

    method.__name__ = name
    setattr(Sent, name, method)


_SPECIAL = frozenset(
    {
        "__array__", "__bool__", "__complex__", "__contains__", "__deepcopy__", "__dlpack__", "__dlpack_device__",
        "__float__", "__format__", "__index__", "__int__", "__len__", "__reduce_ex__", "__repr__", "__str__",
    }
)  # fmt: skip
for _kind in RemoteTensor.__mro__[: RemoteTensor.__mro__.index(torch.Tensor)]:
    for _name in vars(_kind):
        if _name in _SPECIAL:
            _special(_name)

RemoteTensor._become = become
