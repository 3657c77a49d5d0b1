"""One call of an operation as plain data: what a client may put into a template and its command."""

from __future__ import annotations

import copy
from typing import Any, Union

import msgspec


class Tensor(msgspec.Struct, tag="tensor", omit_defaults=True):
    """An operand. Strides and offset count elements; `fill` says what is in it (memory.py)."""

    dtype: str
    shape: tuple[int, ...]
    stride: Union[tuple[int, ...], None] = None
    offset: int = 0
    fill: str = "normal"
    values: tuple[Any, ...] = ()
    low: float = 0
    high: float = 1
    alias: int = -1
    """Number of the tensor of this call whose storage it shares."""


class Number(msgspec.Struct, tag="number"):
    """A number or a list of numbers; hostile calls put anything else there."""

    value: Any


class Complex(msgspec.Struct, tag="complex"):
    """Two numbers."""

    real: float
    imag: float


class Constant(msgspec.Struct, tag="constant"):
    """None, a bool or a text."""

    value: Any


class Named(msgspec.Struct, tag="named"):
    """A dtype ("t") or memory format ("m") by name."""

    kind: str
    name: str


class Items(msgspec.Struct, tag="items"):
    """A list of items."""

    parts: list[Any]


Item = Union[Tensor, Number, Complex, Constant, Named, Items]


class Call(msgspec.Struct):
    """Positional items and `[name, item]` pairs."""

    name: str
    args: list[Any]
    kwargs: list[tuple[str, Any]] = []


def copied(item: Any) -> Any:
    """An item, or a call, of its own; those without operands are replaced, never changed."""
    kind = type(item)
    if kind is Tensor:
        return copy.copy(item)
    if kind is Items:
        return Items([copied(part) for part in item.parts])
    if kind is Call:
        return Call(item.name, [copied(one) for one in item.args], [(name, copied(one)) for name, one in item.kwargs])
    return item


def tensors(call: Call) -> list[Tensor]:
    """The operands, in the order in which they fill slots."""
    found: list[Tensor] = []
    operands_of(call.args, found)
    if call.kwargs:
        operands_of([item for _, item in call.kwargs], found)
    return found


def operands_of(items: list[Any], found: list[Tensor]) -> None:
    """Add the operands among these items to those found."""
    for item in items:
        if type(item) is Tensor:
            found.append(item)
        elif type(item) is Items:
            operands_of(item.parts, found)


def encode(call: Call, ids: list[int]) -> tuple[list[Any], list[Any], list[Any]]:
    """A template's arguments and keywords, and what fills its slots, where operand i has the id ids[i]."""
    remaining = iter(ids)
    slots: list[Any] = []

    def one(item: Any) -> Any:
        if isinstance(item, Tensor):
            slots.append(next(remaining))
            return "r"
        if isinstance(item, Number):
            slots.append(item.value)
            return "d"
        if isinstance(item, Complex):
            slots.extend((item.real, item.imag))
            return "z"
        if isinstance(item, Constant):
            return ["c", item.value]
        if isinstance(item, Named):
            return [item.kind, item.name]
        return ["L", [one(part) for part in item.parts]]

    args = [one(item) for item in call.args]
    return args, [[name, one(item)] for name, item in call.kwargs], slots


def describe(call: Call) -> str:
    """The call on a line, for a person."""

    def one(item: Any) -> str:
        if isinstance(item, Items):
            shown = [one(part) for part in item.parts[:6]] + (["…"] if len(item.parts) > 6 else [])
            return "[" + ", ".join(shown) + "]"
        if isinstance(item, Tensor):
            extra = f" strides {item.stride}+{item.offset}" if item.stride is not None else ""
            extra += f" sharing {item.alias}" if item.alias >= 0 else ""
            content = f"={list(item.values)[:16]}" if item.values else f" {item.fill}"
            return f"{item.dtype}{list(item.shape)}{content}{extra}"
        if isinstance(item, Complex):
            return f"{item.real}+{item.imag}j"
        return item.name if isinstance(item, Named) else repr(item.value)[:120]

    parts = [one(item) for item in call.args] + [f"{name}={one(item)}" for name, item in call.kwargs]
    return f"{call.name}({', '.join(parts)})"
