"""PrivateTensor: values on this side of the link that keep the names of those who may read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch

_HINT = "take the tensor out with .unwrap() if you mean to; it then no longer knows who may read it"


def user_names(allowed_users: str | Iterable[str]) -> tuple[str, ...]:
    """Names in their order, each once. A plain string is one name, not its letters."""
    names = (allowed_users,) if isinstance(allowed_users, str) else tuple(allowed_users)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError("allowed_users takes names of users, such as ('Bob', 'Ana')")
    return tuple(dict.fromkeys(names))


class PrivateTensor:
    """A local tensor with `allowed_users`. Arithmetic keeps the users whom all operands allow.

    It prints its values, since they are this process's own; it is never pickled, and turns into plain
    numbers only through `unwrap()`.
    """

    _send: Any  # `send` of tensors/sending.py, which knows places

    def __init__(self, tensor: torch.Tensor, allowed_users: str | Iterable[str] = ()) -> None:
        self._tensor = tensor
        self.allowed_users = user_names(allowed_users)
        self.tags: tuple[str, ...] = ()
        self.description = ""

    def unwrap(self) -> torch.Tensor:
        """The plain tensor. From here on nobody remembers who may read it."""
        return self._tensor

    def allow(self, user: str) -> bool:
        """Whether that user may read the values."""
        return user in self.allowed_users

    def tag(self, *tags: str) -> PrivateTensor:
        """Add tags that others will search for; returns the tensor."""
        self.tags = (*self.tags, *tags)
        return self

    def describe(self, description: str) -> PrivateTensor:
        """Say what the values mean; returns the tensor."""
        self.description = description
        return self

    def register_credentials(self, users: str | Iterable[str]) -> PrivateTensor:
        """Let further users read the values; returns the tensor."""
        self.allowed_users = tuple(dict.fromkeys((*self.allowed_users, *user_names(users))))
        return self

    def send(self, *locations: Any, user: str | None = None, **options: Any) -> Any:
        """Publish on a Node, with tags, description and allowed users. Returns a pointer.

        `user` presents that user's stored credential. Raises SendNotPermittedError.
        """
        return self._send(self, *locations, user=user, **options)

    # -------------------------------------------------------------- computing keeps the users

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or "out" in (kwargs or {}):
            # other names and views of the same memory would go on with readers that no longer hold
            raise TypeError(f"PrivateTensors are not changed in place; use the form of {name} that returns a new one")
        users: list[tuple[str, ...]] = []
        plain_args = _taken(args, users)
        plain_kwargs = _taken(kwargs or {}, users)
        kept = tuple(name for name in users[0] if all(name in others for others in users[1:]))
        result = func(*plain_args, **plain_kwargs)
        return result if name in _FACTS else _wrapped(result, kept)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _REFUSED:
            raise AttributeError(f"PrivateTensor has no {name!r}: {_HINT}")
        found = getattr(self._tensor, name)
        if isinstance(found, torch.Tensor):
            return PrivateTensor(found, self.allowed_users)
        if not callable(found):
            return found
        method = getattr(torch.Tensor, name)
        return lambda *args, **kwargs: PrivateTensor.__torch_function__(method, (), (self, *args), kwargs)

    def __getitem__(self, index: Any) -> PrivateTensor:
        return PrivateTensor.__torch_function__(torch.Tensor.__getitem__, (), (self, index))  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._tensor)

    def __repr__(self) -> str:
        return f"(Wrapper)>PrivateTensor>{self._tensor!r}"

    __hash__ = object.__hash__

    # -------------------------------------------------------------- ways out are explicit

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a PrivateTensor is never pickled: {_HINT}")

    def __bool__(self) -> NoReturn:
        raise TypeError(f"a PrivateTensor does not become a bool: {_HINT}")

    def __float__(self) -> NoReturn:
        raise TypeError(f"a PrivateTensor does not become a number: {_HINT}")

    __int__ = __index__ = __complex__ = __float__

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError(f"a PrivateTensor does not become an array: {_HINT}")


_REFUSED = frozenset({"item", "tolist", "numpy", "data_ptr", "storage", "untyped_storage", "data"})
_FACTS = frozenset(
    {
        "dim", "element_size", "is_complex", "is_conj", "is_contiguous", "is_floating_point", "is_inference", "is_neg",
        "is_signed", "ndimension", "nelement", "numel", "size", "storage_offset", "stride",
    }
)  # fmt: skip
"""What tells of a tensor's form, not of its values."""
_PLAIN = (str, torch.Size, torch.dtype, torch.device, torch.layout, type(None))


def _taken(argument: Any, users: list[tuple[str, ...]]) -> Any:
    if isinstance(argument, PrivateTensor):
        users.append(argument.allowed_users)
        return argument._tensor
    if isinstance(argument, (list, tuple)):
        return type(argument)(_taken(part, users) for part in argument)
    if isinstance(argument, dict):
        return {key: _taken(value, users) for key, value in argument.items()}
    return argument


def _wrapped(result: Any, users: tuple[str, ...]) -> Any:
    if isinstance(result, torch.Tensor):
        return PrivateTensor(result, users)
    if isinstance(result, _PLAIN):
        return result
    if isinstance(result, (list, tuple)):
        return type(result)([_wrapped(part, users) for part in result])  # torch's named results are made of a list
    if isinstance(result, (int, float, complex)) and not isinstance(result, bool):
        return PrivateTensor(torch.tensor(result), users)
    raise TypeError(f"the operation gives a plain {type(result).__name__}: {_HINT}")


def _operator(name: str) -> None:
    method = getattr(torch.Tensor, name)

    def apply(self: PrivateTensor, *others: Any) -> Any:
        return PrivateTensor.__torch_function__(method, (), (self, *others))

    apply.__name__ = name
    setattr(PrivateTensor, name, apply)


_BINARY = """
add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod pow rpow matmul rmatmul
and or xor lt le gt ge eq ne
"""
for _name in _BINARY.split():
    _operator(f"__{_name}__")
for _name in ("neg", "abs", "invert", "pos"):
    _operator(f"__{_name}__")


def private_tensor(tensor: torch.Tensor, allowed_users: str | Iterable[str] = ()) -> PrivateTensor:
    """Mark a tensor as private: only `allowed_users` will read its values once it is published."""
    return PrivateTensor(tensor, allowed_users)
