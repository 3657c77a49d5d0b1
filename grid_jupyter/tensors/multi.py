"""MultiPointerTensor: one tensor sent to several places; what is done to it is done at each."""

from __future__ import annotations

from typing import Any

import torch

from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.tensors.text import as_html


class MultiPointerTensor:
    """One pointer a place, in the order of sending."""

    def __init__(self, children: list[RemoteTensor]) -> None:
        self.children = children

    def get(self, sum_results: bool = False, user: str | None = None, reason: str = "") -> Any:
        """Fetch from every place: a list of tensors, or with `sum_results` their sum."""
        for child in self.children:
            child._ref.session.flush()  # all places compute at the same time
        found = [child.get(user=user, reason=reason) for child in self.children]
        return sum(found[1:], found[0]) if sum_results else found

    @property
    def location(self) -> list[Any]:
        """The places, in the order of sending."""
        return [child.location for child in self.children]

    @property
    def shape(self) -> torch.Size:
        """The shape of each of the values. Raises ValueError where they differ."""
        shapes = {child.shape for child in self.children}
        if len(shapes) != 1:
            raise ValueError(f"the values have different shapes: {[tuple(child.shape) for child in self.children]}")
        found: torch.Size = shapes.pop()
        return found

    @property
    def grad(self) -> Any:
        """The gradients, as a multi-pointer; None before backward()."""
        found = [child.grad for child in self.children]
        return None if any(one is None for one in found) else MultiPointerTensor(found)

    @property
    def requires_grad(self) -> bool:
        """Whether gradients reach any of the values."""
        return any(child.requires_grad for child in self.children)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _each(lambda own, named: func(*own, **named), args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not callable(getattr(RemoteTensor, name, None)):
            raise AttributeError(f"a MultiPointerTensor has no {name!r}; its pointers are in .children")
        return lambda *args, **kwargs: _each(
            lambda own, named: getattr(own[0], name)(*own[1:], **named), (self, *args), kwargs
        )

    def __getitem__(self, index: Any) -> Any:
        return _each(lambda own, named: own[0][own[1]], (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        _each(lambda own, named: own[0].__setitem__(own[1], own[2]), (self, index, value), {})

    def __len__(self) -> int:
        return len(self.children[0])

    def __repr__(self) -> str:
        return "(Wrapper)>[MultiPointerTensor]" + "".join(f"\n\t-> {child!r}" for child in self.children)

    def _repr_html_(self) -> str:
        return "".join(as_html(child) for child in self.children)

    __hash__ = object.__hash__


def _each(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call at each place: a multi-pointer of the results, the first operand where it was changed in place,
    or a list of what is no tensor."""
    several = [a for a in (*args, *kwargs.values()) if isinstance(a, MultiPointerTensor)]
    if len({len(one.children) for one in several}) != 1:
        raise ValueError("multi-pointers in one operation must have the same number of places")
    found = [
        call(tuple(_part(a, i) for a in args), {k: _part(v, i) for k, v in kwargs.items()})
        for i in range(len(several[0].children))
    ]
    for operand in several:
        if all(one is child for one, child in zip(found, operand.children, strict=True)):
            return operand
    if all(one is None for one in found):
        return None
    if all(isinstance(one, tuple) for one in found):
        return tuple(_gathered(list(parts)) for parts in zip(*found, strict=True))
    return _gathered(found)


def _gathered(found: list[Any]) -> Any:
    return MultiPointerTensor(found) if all(type(one) is RemoteTensor for one in found) else found


def _part(argument: Any, index: int) -> Any:
    return argument.children[index] if isinstance(argument, MultiPointerTensor) else argument


def _operator(name: str) -> None:
    method = getattr(torch.Tensor, name)

    def apply(self: MultiPointerTensor, *others: Any) -> Any:
        return MultiPointerTensor.__torch_function__(method, (), (self, *others))

    apply.__name__ = name
    setattr(MultiPointerTensor, name, apply)


_OPERATORS = """
add radd sub rsub mul rmul truediv rtruediv floordiv mod matmul rmatmul pow rpow
iadd isub imul itruediv neg abs invert and or xor lt le gt ge eq ne
"""
for _name in _OPERATORS.split():
    _operator(f"__{_name}__")
