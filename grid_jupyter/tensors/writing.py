"""Operations off the list that write, in place or to `out=`, as ones on it that give a new tensor, and a copy of that.

So `x.scatter_(…)`, `x %= 2` and `torch.add(a, b, out=x)` run wherever `scatter`, `remainder` and `add` do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten
_LIST = "List[Tensor]"
_IN_DTYPE_OF_OUT = frozenset({"aten::sum", "aten::nansum", "aten::prod", "aten::mean", "aten::cumsum", "aten::cumprod"})
"""What torch computes in the dtype of `out`, where no other is asked for: halves that are added up to a float."""
_OPTIONS = ["dtype", "layout", "device", "pin_memory"]
"""What factories take, and their forms with `out=` do not."""


@functools.cache
def plain_form(op: Any) -> Any:
    """The operation that gives in a new tensor what `op` writes to one; None if torch has none."""
    arguments = op._schema.arguments
    name = op._schema.name.removeprefix("aten::")
    if op.namespace != "aten" or torch.Tag.inplace_view in op.tags or not arguments:
        return None
    if _outs(op):
        return _overload(name, [one for one in arguments if not one.is_out])
    first = arguments[0]
    if str(first.type) not in ("Tensor", _LIST) or first.alias_info is None or not first.alias_info.is_write:
        return None
    if name.startswith("__i") and name.endswith("__"):
        return _overload(f"__{name[3:]}", arguments)
    return _overload(name.removesuffix("_"), arguments) if name.endswith("_") else None


def _overload(name: str, arguments: Sequence[Any]) -> Any:
    packet = getattr(aten, name, None)
    wanted = [(one.name, str(one.type)) for one in arguments]
    for overload in () if packet is None else packet.overloads():
        found = getattr(packet, overload)
        has = [(one.name, str(one.type)) for one in found._schema.arguments]
        if has == wanted or (has[: len(wanted)] == wanted and [name for name, _ in has[len(wanted) :]] == _OPTIONS):
            return found
    return None


def _outs(op: Any) -> list[Any]:
    return [one for one in op._schema.arguments if one.is_out]


def writing(op: Any, plain: Any) -> Callable[..., Any]:
    """A function of the arguments of `op` that runs `plain` and writes what that gives to where `op` does."""
    outs = [one.name for one in _outs(op)]
    if not outs:
        each = str(op._schema.arguments[0].type) == _LIST
        return functools.partial(_each_in_place if each else _in_place, op, plain)
    return functools.partial(_into, op, plain, outs)


def _in_place(op: Any, plain: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
    _write(op, target, plain(_before(op, target, [*args, *kwargs.values()]), *args, **kwargs))
    return target


def _each_in_place(op: Any, plain: Any, targets: list[Any], *args: Any, **kwargs: Any) -> None:
    if len({id(_whole(target)) for target in targets}) < len(targets):  # what is written to one changes another
        for index, target in enumerate(targets):
            own = [[one[index]] if isinstance(one, (list, tuple)) else one for one in args]
            _in_place_of_one(op, plain, target, own, kwargs)
        return
    found = plain([_before(op, target, [*args, *kwargs.values()]) for target in targets], *args, **kwargs)
    for target, made in zip(targets, found, strict=True):
        _write(op, target, made)


def _in_place_of_one(op: Any, plain: Any, target: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    (made,) = plain([_before(op, target, [*args, *kwargs.values()])], *args, **kwargs)
    _write(op, target, made)


def _whole(target: Any) -> Any:
    """What a tensor is a view of, as far as this side knows."""
    root = getattr(target, "_root", None)
    return target if root is None else root


def _before(op: Any, target: Any, others: list[Any]) -> Any:
    """What backward() needs of a tensor that is written to: what was there before."""
    if not torch.is_grad_enabled():
        return target
    if not target.requires_grad:
        reached = any(isinstance(one, torch.Tensor) and one.requires_grad for one in _flat(others))
        return aten.clone.default(target) if reached else target
    if target.is_leaf:
        raise RuntimeError(f"{op}: a leaf that requires grad cannot be changed in place; use torch.no_grad()")
    return aten.clone.default(target)


def _into(op: Any, plain: Any, names: list[str], *args: Any, **kwargs: Any) -> Any:
    outs = [kwargs.pop(name) for name in names]
    targets = _flat(outs)
    tensors = [one for one in _flat([*args, *kwargs.values()]) if isinstance(one, torch.Tensor)]
    if torch.is_grad_enabled() and any(one.requires_grad for one in [*tensors, *targets]):
        raise RuntimeError(f"{op}: no gradient goes through out=, and one of the tensors requires grad")
    if not tensors and any(one.name == "dtype" for one in plain._schema.arguments):
        kwargs["dtype"] = targets[0].dtype  # a factory: its result is made on this side
    elif op._schema.name in _IN_DTYPE_OF_OUT and kwargs.get("dtype") is None:
        given, wanted = tensors[0].dtype, targets[0].dtype
        if op._schema.name != "aten::mean" or given.is_floating_point or given.is_complex:
            kwargs["dtype"] = wanted
    for target, found in zip(targets, _flat([plain(*args, **kwargs)]), strict=True):
        _write(op, target, found)
    if not op._schema.returns:
        return None
    return outs[0] if len(outs) == 1 else tuple(outs)


def _flat(parts: Sequence[Any]) -> list[Any]:
    return [one for part in parts for one in (_flat(part) if isinstance(part, (list, tuple)) else [part])]


def _write(op: Any, target: Any, found: Any) -> None:
    if found.shape != target.shape:
        raise RuntimeError(
            f"{op}: the output has shape {tuple(target.shape)} but the result needs {tuple(found.shape)}; "
            f"remote tensors are not resized"
        )
    if not torch.can_cast(found.dtype, target.dtype):
        raise RuntimeError(f"{op}: a result of {found.dtype} can't be cast to the {target.dtype} that it is written to")
    aten.copy_.default(target, found)
