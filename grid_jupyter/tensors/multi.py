"""MultiPointerTensor: one tensor sent to several places; what is done to it is done at each."""

from __future__ import annotations

from typing import Any

import torch

from grid_jupyter.tensors.remote import RemoteTensor


class MultiPointerTensor:
    """One pointer a place, in the order of sending."""

    def __init__(self, children: list[RemoteTensor]) -> None:
        self.children = children

    def get(self, sum_results: bool = False, user: str | None = None) -> Any:
        """Fetch from every place: a list of tensors, or with `sum_results` their sum."""
        for child in self.children:
            child._ref.session.flush()  # all places compute at the same time
        found = [child.get(user=user) for child in self.children]
        return sum(found[1:], found[0]) if sum_results else found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        counts = {len(a.children) for a in (*args, *kwargs.values()) if isinstance(a, MultiPointerTensor)}
        if len(counts) != 1:
            raise ValueError("multi-pointers in one operation must have the same number of places")
        return MultiPointerTensor(
            [
                func(*(_part(a, i) for a in args), **{k: _part(v, i) for k, v in kwargs.items()})
                for i in range(counts.pop())
            ]
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not callable(getattr(torch.Tensor, name, None)):
            raise AttributeError(f"a MultiPointerTensor has no {name!r}; its pointers are in .children")
        method = getattr(torch.Tensor, name)
        return lambda *args, **kwargs: MultiPointerTensor.__torch_function__(method, (), (self, *args), kwargs)

    def __getitem__(self, index: Any) -> Any:
        return MultiPointerTensor.__torch_function__(torch.Tensor.__getitem__, (), (self, index))

    def __repr__(self) -> str:
        return "(Wrapper)>[MultiPointerTensor]" + "".join(f"\n\t-> {child!r}" for child in self.children)


def _part(argument: Any, index: int) -> Any:
    return argument.children[index] if isinstance(argument, MultiPointerTensor) else argument


def _operator(name: str) -> None:
    method = getattr(torch.Tensor, name)

    def apply(self: MultiPointerTensor, *others: Any) -> Any:
        return MultiPointerTensor.__torch_function__(method, (), (self, *others))

    apply.__name__ = name
    setattr(MultiPointerTensor, name, apply)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "rmatmul", "pow", "neg"):
    _operator(f"__{_name}__")
