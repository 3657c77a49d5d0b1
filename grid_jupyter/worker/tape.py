"""What a backward pass comes to: the calls that torch's autograd makes, noted while it makes them.

Tensors are told apart by what they show of which storage: autograd keeps and hands on objects of its own, and what
a kernel computes depends on nothing else of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from grid_jupyter.worker.templates import storage_of

Shown = tuple[int, Any, torch.Size, tuple[int, ...], torch.dtype]


class Ref(NamedTuple):
    """In place of a tensor among arguments: the number of a value."""

    number: int


class Noted(NamedTuple):
    """One call: what is called with what, and the numbers of its results. `outs` is None where nobody uses them."""

    call: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    outs: int | list[int] | None
    grad_mode: bool
    overload: Any = None  # the operation of torch's that the call is, if it is one


class Numbers:
    """Numbers of the tensors of a trace. Weak references keep a storage's address from being that of another one."""

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0  # of all storages that were seen
        self._known: dict[Shown, int] = {}
        self._unbound: dict[Shown, int] = {}  # the same, without those that are views to autograd
        self._seen: set[int] = set()
        self._storages: list[StorageWeakRef] = []

    def of(self, tensor: torch.Tensor, *, unbound: bool = False) -> int | None:
        """The number of a tensor that shows what one that was added did; None if there is none."""
        return (self._unbound if unbound else self._known).get(_shown(tensor)) if is_plain(tensor) else None

    def fresh(self) -> int:
        """A number that nothing had."""
        self.count += 1
        return self.count - 1

    def add(self, tensor: torch.Tensor, *, unbound: bool = False) -> int:
        """A number of its own for a tensor that is plain; `unbound` if autograd does not take it for a view."""
        number, shown = self.fresh(), _shown(tensor)
        if shown[0] not in self._seen:
            self._seen.add(shown[0])
            self.nbytes += tensor.untyped_storage().nbytes()
        self._known.setdefault(shown, number)
        if unbound:
            self._unbound.setdefault(shown, number)
        self._storages.append(StorageWeakRef(tensor.untyped_storage()))
        return number


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is what its storage, shape, strides and dtype say."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_complex()
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and not tensor.is_quantized
    )


def _shown(tensor: torch.Tensor) -> Shown:
    return storage_of(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


class Tape(TorchDispatchMode):
    """Notes what runs within the block, and the gradients of `leaves` that are there at its end, by number."""

    def __init__(self, numbers: Numbers, leaves: dict[int, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Noted] = []
        self.gradients: dict[int, int] = {}  # by slot
        self.handed: dict[int, int] = {}  # the same gradients: id of the object, by slot
        self.whole = True  # whether all of it was understood
        self._numbers = numbers
        self._leaves = leaves

    def __enter__(self) -> Tape:
        if any(leaf.grad is not None for leaf in self._leaves.values()):
            self.whole = False  # it is added to, in place
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for slot, leaf in self._leaves.items():
            gradient = leaf.grad
            if gradient is None:
                continue
            number = self._numbers.of(gradient, unbound=True)
            if number is None or gradient.requires_grad or gradient._is_view():
                self.whole = False
            else:
                self.gradients[slot], self.handed[slot] = number, id(gradient)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        grad_mode = torch.is_grad_enabled()
        result = func(*args, **keywords)
        if self.whole:
            self._note(func, args, keywords, result, grad_mode)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, grad_mode: bool) -> None:
        given = [self._placed(part) for part in args]
        named = {name: self._placed(part) for name, part in kwargs.items()}
        if func._schema.is_mutable or not _BY_VALUES.isdisjoint(func.tags):
            self.whole = False
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        unbound = func in _UNBOUND or all(one.alias_info is None for one in func._schema.returns)
        numbers = [self._result(part, unbound) for part in results]
        if self.whole:
            outs = numbers if isinstance(result, (tuple, list)) else numbers[0]
            self.calls.append(Noted(func._op, given, named, outs, grad_mode, func))

    def _placed(self, part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            number = self._numbers.of(part)
            if number is None:
                self.whole = False
                return None
            return Ref(number)
        if isinstance(part, (list, tuple)):
            return [self._placed(one) for one in part]
        if part is not None and not isinstance(part, _CONSTANTS):
            self.whole = False
        return part

    def _result(self, part: Any, unbound: bool) -> int:
        if part is None:
            return self._numbers.fresh()
        if not isinstance(part, torch.Tensor) or not is_plain(part):  # a number that was read, for one
            self.whole = False
            return -1
        return self._numbers.add(part, unbound=unbound)


_UNBOUND = frozenset({torch.ops.aten.detach.default})
_BY_VALUES = frozenset(
    {torch.Tag.nondeterministic_seeded, torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
)
_CONSTANTS = (bool, int, float, torch.dtype, torch.layout, torch.device, torch.memory_format)
