"""What the gradients of a session derive from. A gradient belongs to a tensor object, whichever ids name that."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator

import torch

from grid_jupyter.worker.templates import Box, storage_of

_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


class Held:
    """The gradient last seen in one tensor: the object, its version, its lineage."""

    __slots__ = ("box", "gradient", "tensor", "version")

    def __init__(self, tensor: weakref.ref[torch.Tensor]) -> None:
        self.tensor = tensor
        self.gradient: torch.Tensor | None = None
        self.version = 0
        self.box = Box()


class Gradients:
    """Lineage of `.grad` of the tensors that can have one: those watched, and those assigned to."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}  # by the address of a tensor's object, which goes when that does

    def watch(self, tensor: torch.Tensor) -> Held:
        """A backward pass may leave a gradient in this tensor from here on."""
        found = self.held(tensor)
        if found is None:
            key, everything = id(tensor), self._held

            def gone(reference: weakref.ref[torch.Tensor]) -> None:
                held = everything.get(key)
                if held is not None and held.tensor is reference:
                    del everything[key]

            found = everything[key] = Held(weakref.ref(tensor, gone))
        return found

    def held(self, tensor: torch.Tensor) -> Held | None:
        """What is known of the gradient of a tensor that can have one."""
        found = self._held.get(id(tensor))
        return found if found is not None and found.tensor() is tensor else None

    def assign(self, tensor: torch.Tensor, gradient: torch.Tensor | None, box: Box) -> None:
        """`tensor.grad = gradient`, whose lineage is `box`. Raises what torch raises for one that does not fit."""
        tensor.grad = gradient
        held = self.watch(tensor)
        held.gradient, held.version, held.box = gradient, 0 if gradient is None else gradient._version, box

    def receive(self, tensor: torch.Tensor, gradient: torch.Tensor, sources: int) -> None:
        """A backward pass of that lineage leaves a gradient, in memory of its own, where there was none."""
        tensor.grad = gradient
        held = self.watch(tensor)
        held.gradient, held.version = gradient, gradient._version
        held.box = Box(held.box.sources | sources, storage=storage_of(gradient))

    def settle(self, sources: int) -> None:
        """After a backward pass, also one that failed half way: what it changed derives from `sources` too."""
        for tensor, held in self._living():
            gradient = tensor.grad
            if gradient is None or (gradient is held.gradient and gradient._version == held.version):
                continue
            if gradient is held.gradient:
                held.box.sources |= sources
            else:
                if gradient._is_zerotensor() or _is_shared(gradient):
                    # autograd hands on what it was given where it can: one storage must not have two lineages;
                    # and where a gradient is nowhere but zero it has no memory at all
                    gradient = tensor.grad = gradient.clone()
                held.box = Box(held.box.sources | sources, storage=storage_of(gradient))
                held.gradient = gradient
            held.version = gradient._version

    def tell_nothing(self, sources: int) -> None:
        """After a backward pass that may have failed for what is in `sources`: no gradient of the session, there or
        missing, may tell whether it did. What it would have reached is not known then, so all derive from it."""
        if sources:
            for held in list(self._held.values()):
                held.box.sources |= sources

    def holds_none(self, boxes: Iterable[Box]) -> bool:
        """Whether none of these is the lineage of a gradient, which a backward pass may add to."""
        held = {id(one.box) for one in self._held.values()}
        return all(id(box) not in held for box in boxes)

    def sources(self, tensor: torch.Tensor) -> int:
        """What a tensor's gradient, or that there is none, derives from."""
        held = self.held(tensor)
        return 0 if held is None else held.box.sources

    def of(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Box] | None:
        """The gradient of a tensor with its lineage, if there is one."""
        held = self.held(tensor)
        return None if held is None or held.gradient is None else (held.gradient, held.box)

    def _living(self) -> Iterator[tuple[torch.Tensor, Held]]:
        for held in list(self._held.values()):
            tensor = held.tensor()
            if tensor is not None:
                tensor._fix_weakref()  # type: ignore[attr-defined]  # torch's own: see torch.utils.weak
                yield tensor, held


def _owners(tensor: torch.Tensor) -> int:
    storage = tensor.untyped_storage()  # held while it is counted
    return 0 if _use_count is None else _use_count(storage._cdata)


_ALONE = _owners(torch.zeros(1))


def _is_shared(tensor: torch.Tensor) -> bool:
    return _use_count is None or _owners(tensor) > _ALONE
