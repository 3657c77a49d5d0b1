"""Random calls: typed by the operation's schema, bent from calls that torch makes, and hostile in a few places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from grid_jupyter.ops.allowed import STRINGS
from grid_jupyter.ops.kernels import overload
from grid_jupyter.ops.raw import DTYPES

from .calls import Call, Complex, Constant, Items, Named, Number, Tensor, copied, tensors
from .dice import Dice

_DTYPES = tuple(DTYPES)
_FLOATS = ("float32", "float32", "float32", "float64", "float16", "bfloat16")
_WHOLE = ("int64", "int64", "int64", "int32", "int16", "int8", "uint8", "bool")
_SMALL = (0, 1, 1, 1, 2, 2, 3, 4, 5, 7, -1, -2)
_HOSTILE = (
    -3, 8, 16, 31, 63, 64, 65, 255, 1000, -1000, 1 << 15, 1 << 20, -(1 << 20), (1 << 31) - 1, 1 << 31, -(1 << 31),
    1 << 33, -(1 << 33), 1 << 45, 1 << 62, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1,
)  # fmt: skip
_REALS = (0.0, 0.5, 1.0, 2.0, -1.0, 0.1, 1e-5, 3.7, 1e30, -1e30, 1e-300, float("nan"), float("inf"), -float("inf"))
_INDEX_LIKE = ("ind", "target", "offset", "length", "batch_sizes", "sorter", "mask", "repeats", "lenght", "pivots")
_DIM_LIKE = ("dim", "axis")
_SIZE_LIKE = ("size", "output_size", "shape", "sizes", "hidden", "num_classes", "repeats")
_TEXTS = tuple(sorted(STRINGS))
_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_FILLS = (
    "normal", "normal", "normal", "normal", "mixed", "mixed", "zero", "one", "minus one", "nan", "inf", "-inf", "huge",
    "-huge", "large", "-large", "rising", "extreme", "extreme",
)  # fmt: skip


class _Argument(NamedTuple):
    """What the schema says of one argument, and what its name tells; asking torch takes longer than a call does."""

    name: str
    kind: str
    optional: bool
    kwarg_only: bool
    like_index: bool
    like_dim: bool
    like_size: bool


class Calls:
    """The calls of one operation, by number: always the same ones for the same seed."""

    def __init__(self, name: str, seed: int, recorded: Sequence[Call]) -> None:
        self._name = name
        self._recorded = recorded
        self._r = self.dice = Dice(f"{seed}:{name}")
        self._arguments = [_argument(argument) for argument in overload(name)._schema.arguments]
        self._shape: tuple[int, ...] = ()
        self._dtype = "float32"

    def make(self, index: int) -> Call:
        """The call of that number."""
        r = self._r
        r.throw(index)
        if index < len(self._recorded):
            return copied(self._recorded[index])  # type: ignore[no-any-return]
        rank = r.choice((0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5))
        self._shape = tuple([r.choice((1, 2, 2, 3, 3, 4, 5, 8)) for _ in range(rank)])
        if r.random() < 0.08:
            self._shape = tuple([r.choice((0, 1, 3, 33, 64)) for _ in range(rank)])
        self._dtype = r.choice(_FLOATS) if r.random() < 0.7 else r.choice(_DTYPES)
        if self._recorded and r.random() < 0.7:
            call: Call = copied(r.choice(self._recorded))
            for _ in range(r.choice((1, 1, 1, 2, 2, 3, 5))):
                self.bend(call)
            return call
        return self.call()

    # -------------------------------------------------------------- from the schema

    def call(self) -> Call:
        """Arguments of the types that the schema names, most of which fit each other."""
        made = Call(self._name, [], [])
        skipped = False
        for argument in self._arguments:
            if argument.optional and self._r.random() < 0.35:
                skipped = True
                continue
            item = self.item(argument)
            if argument.kwarg_only or skipped:
                made.kwargs.append((argument.name, item))
            else:
                made.args.append(item)
        if self._r.random() < 0.06:
            self.bend(made)
        self._share(made)
        return made

    def item(self, argument: _Argument) -> Any:
        """One item for an argument of the schema; seldom of another type."""
        r, kind = self._r, argument.kind
        if r.random() < 0.02:
            return self.anything()
        if kind.startswith("Optional["):
            if r.random() < 0.4:
                return Constant(None)
            kind = kind[len("Optional[") : -1]
        if kind == "Tensor":
            return self.tensor(argument.like_index)
        if kind.startswith(("List[Tensor", "List[Optional[Tensor")):
            like = [self.tensor(argument.like_index) for _ in range(self._length())]
            if like and r.random() < 0.6:
                like = [copied(like[0]) for _ in like]
            if "Optional" in kind:
                return Items([Constant(None) if r.random() < 0.3 else part for part in like])
            return Items(like)
        if kind == "List[int]":
            return Number(self.integers(argument))
        if kind.startswith("List[bool"):
            return Items([Constant(r.random() < 0.5) for _ in range(self._length())])
        if kind.startswith("List["):
            return Number([r.choice(_REALS) for _ in range(self._length())])
        if kind == "int":
            return Number(self.integer(argument.like_dim))
        if kind == "float":
            return Number(r.choice(_REALS) if r.random() < 0.6 else r.choice(_REALS[:8]))
        if kind == "number":
            return self.scalar()
        if kind == "bool":
            return Constant(r.random() < 0.5)
        if kind == "str":
            return Constant(r.choice(_TEXTS))
        if kind == "ScalarType":
            return Named("t", r.choice(_DTYPES)) if r.random() < 0.97 else Number(r.randrange(-2, 50))
        if kind == "MemoryFormat":
            return Named("m", r.choice(_FORMATS)) if r.random() < 0.95 else Number(r.randrange(-2, 9))
        if kind in ("Layout", "Device", "Generator"):
            return Constant(None) if r.random() < 0.8 else self.anything()
        return self.anything()

    def tensor(self, like_index: bool = False) -> Tensor:
        """An operand that often goes with the others."""
        r = self._r
        shape = self._shape
        which = r.random()
        if which < 0.15:
            shape = tuple([1 if r.random() < 0.5 else n for n in shape])[r.randrange(len(shape) + 1) :]
        elif which < 0.3:
            shape = shape[: r.randrange(len(shape) + 1)]
        elif which < 0.5:
            shape = tuple([r.choice((0, 1, 2, 3, 4, 5, 9)) for _ in range(r.choice((0, 1, 1, 2, 2, 3, 4, 5)))])
        dtype = self._dtype
        if like_index and r.random() < 0.85:
            dtype = r.choice(_WHOLE)
        elif r.random() < 0.12:
            dtype = r.choice(_DTYPES)
        made = Tensor(dtype, shape, fill=r.choice(_FILLS))
        if r.random() < 0.25:
            self._lay_out(made)
        return made

    def integer(self, like_dim: bool = False) -> int:
        """Mostly one that fits."""
        r = self._r
        if like_dim and self._shape and r.random() < 0.8:
            return r.randrange(-len(self._shape), len(self._shape))
        return r.choice(_SMALL) if r.random() < 0.88 else r.choice(_HOSTILE)

    def integers(self, argument: _Argument) -> list[int]:
        """Mostly as many as there are dimensions."""
        r = self._r
        if argument.like_size and r.random() < 0.5:
            return list(self._shape) if r.random() < 0.5 else [*self._shape[:1], -1]
        if argument.like_dim and r.random() < 0.7:
            rank = len(self._shape)
            return r.sample(range(-rank, rank), r.randrange(rank + 1)) if rank else []
        if r.random() < 0.01:
            return [r.choice(_SMALL)] * r.choice((64, 65, 200, 20_000))
        return [self.integer() for _ in range(self._length())]

    def scalar(self) -> Any:
        """Any scalar of torch's."""
        r, which = self._r, self._r.random()
        if which < 0.45:
            return Number(r.choice(_REALS))
        if which < 0.85:
            return Number(self.integer())
        return Complex(r.choice(_REALS), r.choice(_REALS)) if which < 0.93 else Constant(r.random() < 0.5)

    def anything(self) -> Any:
        """An item of a type that nobody asked for."""
        r = self._r
        return r.choice(
            (
                lambda: Constant(None),
                lambda: Constant(r.random() < 0.5),
                lambda: Constant(r.choice(_TEXTS)),
                lambda: Number(r.choice(_HOSTILE)),
                lambda: Number(r.choice(_SMALL)),
                lambda: Number(r.choice(_REALS)),
                lambda: Number([r.choice(_SMALL) for _ in range(self._length())]),
                lambda: Number([]),
                lambda: Complex(1.0, float("nan")),
                lambda: Named("t", r.choice(_DTYPES)),
                lambda: Named("m", r.choice(_FORMATS)),
                lambda: self.tensor(True),
                lambda: Items([self.tensor() for _ in range(self._length())]),
                lambda: Items([Items([self.tensor()])]) if r.random() < 0.2 else Items([]),
                lambda: Items([Constant(None), Number(r.choice(_SMALL)), self.tensor()]),
            )
        )()

    def _length(self) -> int:
        r = self._r
        return r.choice((0, 1, 1, 2, 2, 2, 3, 4, 5)) if r.random() < 0.985 else r.choice((64, 65, 150))

    # -------------------------------------------------------------- strides

    def _lay_out(self, of: Tensor) -> None:
        """Strides that no ordinary tensor has: all of them can be had from expand, unfold, slice and the like."""
        r, shape = self._r, of.shape
        which = r.random()
        dense: list[int] = []
        step = 1
        for length in reversed(shape):
            dense.insert(0, step)
            step *= max(length, 1)
        if which < 0.25 and len(shape) > 1:
            order = r.sample(range(len(shape)), len(shape))
            of.shape = tuple(shape[i] for i in order)
            of.stride = tuple(dense[i] for i in order)
        elif which < 0.45:
            of.stride = tuple(n * 2 for n in dense)
            of.offset = r.choice((0, 1, 3))
        elif which < 0.7:
            of.stride = tuple(0 if r.random() < 0.6 else n for n in dense)
            if 0 in of.stride and r.random() < 0.02:
                wide = [
                    r.choice((1 << 12, 1 << 20, 1 << 31, 1 << 40)) if s == 0 else n
                    for n, s in zip(shape, of.stride, strict=True)
                ]
                of.shape = tuple(wide)
        elif which < 0.85:
            of.stride = tuple(r.choice((0, 1, 1, 2, n)) for n in dense)  # overlaps itself
        else:
            of.stride, of.offset = tuple(dense), r.choice((1, 2, 5))

    def _share(self, call: Call) -> None:
        operands = tensors(call)
        if len(operands) > 1 and self._r.random() < 0.12:
            one = self._r.randrange(1, len(operands))
            operands[one].alias = self._r.randrange(one)

    # -------------------------------------------------------------- from a recorded call

    def bend(self, call: Call) -> None:
        """Change one thing in a call."""
        r = self._r
        operands = tensors(call)
        if operands and r.random() < 0.45:
            self._bend_tensor(r.choice(operands))
            return
        which = r.random()
        if which < 0.1:
            self._share(call)
        elif which < 0.2 and len(call.args) > 1:
            a, b = r.sample(range(len(call.args)), 2)
            call.args[a], call.args[b] = call.args[b], call.args[a]
        elif which < 0.25 and call.args:
            call.args.pop()
        elif which < 0.3 and call.kwargs:
            call.kwargs.pop(r.randrange(len(call.kwargs)))
        elif which < 0.4:
            given = {name for name, _ in call.kwargs}
            left = [a for a in self._arguments[len(call.args) :] if a.name not in given]
            if left:
                argument = r.choice(left)
                call.kwargs.append((argument.name, self.item(argument)))
        else:
            self._bend_item(call)

    def _bend_item(self, call: Call) -> None:
        r = self._r
        places = [(call.args, i) for i in range(len(call.args))]
        named = r.random() < len(call.kwargs) / max(1, len(call.kwargs) + len(places))
        if named:
            at = r.randrange(len(call.kwargs))
            name, old = call.kwargs[at]
            argument = next((a for a in self._arguments if a.name == name), None)
            call.kwargs[at] = (name, self._bent(old, argument))
        elif places:
            at = r.randrange(len(places))
            call.args[at] = self._bent(call.args[at], self._arguments[min(at, len(self._arguments) - 1)])

    def _bent(self, old: Any, argument: _Argument | None) -> Any:
        r = self._r
        if isinstance(old, Number) and r.random() < 0.7:
            value = old.value
            if isinstance(value, list):
                value = list(value)
                change = r.random()
                if value and change < 0.5:
                    at = r.randrange(len(value))
                    value[at] = self._bent_number(value[at])
                elif value and change < 0.7:
                    value.pop(r.randrange(len(value)))
                elif change < 0.9:
                    value.insert(r.randrange(len(value) + 1), self.integer())
                else:
                    value = [self._bent_number(v) for v in value]
                return Number(value)
            return Number(self._bent_number(value))
        if isinstance(old, Constant) and isinstance(old.value, bool) and r.random() < 0.8:
            return Constant(not old.value)
        if isinstance(old, Items) and old.parts and r.random() < 0.8:
            at = r.randrange(len(old.parts))
            if r.random() < 0.5:
                old.parts.pop(at)
            elif r.random() < 0.1:
                old.parts = old.parts * r.choice((2, 10, 40))
            else:
                old.parts.insert(at, copied(r.choice(old.parts)))
            return old
        return self.item(argument) if argument is not None and r.random() < 0.8 else self.anything()

    def _bent_number(self, value: Any) -> Any:
        r = self._r
        if isinstance(value, float):
            return r.choice((r.choice(_REALS), -value, value * 2))
        bent = r.choice((value + 1, value - 1, -value, r.choice(_SMALL), r.choice(_SMALL), r.choice(_HOSTILE)))
        return max(-(1 << 63), min(bent, (1 << 64) - 1))  # what a frame can carry

    def _bend_tensor(self, of: Tensor) -> None:
        r, shape, which = self._r, list(of.shape), self._r.random()
        of.stride, of.offset = (of.stride, of.offset) if which >= 0.5 else (None, 0)
        if which < 0.2 and shape:
            at = r.randrange(len(shape))
            shape[at] = max(0, r.choice((0, 1, shape[at] - 1, shape[at] + 1, shape[at] * 2, 17)))
        elif which < 0.3 and shape:
            shape.pop(r.randrange(len(shape)))
        elif which < 0.4:
            shape.insert(r.randrange(len(shape) + 1), r.choice((0, 1, 1, 2, 3)))
        elif which < 0.5:
            shape = list(self._shape)
        elif which < 0.65:
            of.dtype = r.choice(_DTYPES)
        elif which < 0.85:
            of.fill, of.values = r.choice(_FILLS), ()
        else:
            of.stride, of.offset = None, 0
            self._lay_out(of)
            return
        if of.stride is None:
            of.shape = tuple(shape)


def _argument(of: Any) -> _Argument:
    return _Argument(
        of.name,
        str(of.real_type),
        of.has_default_value(),
        of.kwarg_only,
        *(any(part in of.name for part in parts) for parts in (_INDEX_LIKE, _DIM_LIKE, _SIZE_LIKE)),
    )
