"""Lengths that depend on values: this side computes with a symbol in their place, and asks for the number last.

`x[mask]` has as many elements as the mask has ones, which only the values tell. Its pointer gets a symbol as
its length (an unbacked SymInt of torch's), and operations go on with it. Where one cannot do without the number,
the number is read through the release gate of the Node, and the pointers with that symbol become ordinary ones.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv, _constrain_range_for_size
from torch.utils._mode_utils import no_dispatch

from grid_jupyter.errors import GetNotPermittedError, RemoteOperationError
from grid_jupyter.ops.kernels import kernel
from grid_jupyter.ops.shapes import DYNAMIC, Layout, layout, layout_of
from grid_jupyter.tensors.remote import RemoteTensor, point
from grid_jupyter.tensors.session import Ref, Session

aten = torch.ops.aten
_MOST_SYMBOLS = 1_000
_BY_MASK = frozenset({aten.index.Tensor, aten.masked_select.default})
_VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})
_UNIQUE = {aten._unique2.default: (2, 3), aten.unique_consecutive.default: (1, 2, 3)}
_state = threading.local()
_lock = threading.RLock()  # torch's books of symbols are not for several threads at once


class Birth:
    """The value and the dimension from which the number behind a symbol can be read, and what made it.

    `dim` is None where the number is that value's storage offset.
    """

    __slots__ = ("__weakref__", "dim", "ref", "step")

    def __init__(self, ref: Ref, dim: int | None, step: str) -> None:
        self.ref = ref
        self.dim = dim
        self.step = step


class OpenLayout(Layout):
    """The layout of a value in whose lengths, or offset, there are symbols; `fake`: a tensor without values, with them.

    The births of its symbols live as long as it does: so the numbers can be read while a pointer needs them.
    """

    __slots__ = ("births", "book", "fake")

    def __init__(self, book: Lengths, fake: torch.Tensor, births: tuple[Birth, ...]) -> None:
        super().__init__(fake.shape, fake.stride(), fake.dtype)
        self.book = book
        self.fake = fake
        self.births = births


class Lengths(ShapeEnv):
    """torch's book of symbols, which reads a number where torch would give up for want of it."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[sympy.Symbol, sympy.Integer] = {}
        self.births: weakref.WeakValueDictionary[sympy.Symbol, Birth] = weakref.WeakValueDictionary()
        self.born = 0
        self.mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=self)
        self.mode.cache_enabled = False  # it would keep every symbol for ever

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        """What an expression over symbols comes to; read, where no rule about it is enough."""
        with _lock:
            found = self.known(orig_expr)
            if not found.free_symbols:
                return found
            try:
                return super().evaluate_expr(found, *args, **kwargs)
            except GuardOnDataDependentSymNode:
                self.read(found.free_symbols)
            return self.known(orig_expr)

    def guard_or_defer_runtime_assert(  # type: ignore[override]  # torch's is cached, which asking is not
        self, orig_expr: Any, msg: str, fx_node: Any = None
    ) -> bool:
        """Whether what an operation needs of its arguments holds. What cannot be told here, the Worker checks.

        That two lengths are equal is never taken for granted: one of them may be 1, which torch broadcasts.
        """
        found = self.known(orig_expr)
        if found.free_symbols:
            static = self._maybe_evaluate_static(found)
            if static is None and not isinstance(found, sympy.Eq):
                return True
            found = self.evaluate_expr(found) if static is None else static
        return bool(found)

    def known(self, expression: Any) -> Any:
        """The expression with the numbers that were read so far."""
        return expression.xreplace(self.numbers)

    def read(self, symbols: set[sympy.Symbol]) -> None:
        """Ask for the numbers behind symbols. Raises GetNotPermittedError, which says what needed them."""
        asked: dict[Session, list[tuple[sympy.Symbol, Birth]]] = {}
        for symbol in sorted(symbols, key=str):
            birth = self.births.get(symbol)
            if birth is None:
                raise RemoteOperationError(
                    "this length is that of a value that was dropped before anybody asked for it; keep its pointer"
                )
            asked.setdefault(birth.ref.session, []).append((symbol, birth))
        for session, wanted in asked.items():
            try:
                found = session.sizes([birth.ref.id for _, birth in wanted])
            except GetNotPermittedError as error:
                raise GetNotPermittedError(
                    f"{getattr(_state, 'step', 'this step')} needs the length of what {wanted[0][1].step} gave, which "
                    f"depends on private values: {error}. Steps that take any length, such as mean, sum, sort and cat, "
                    f"need no permission"
                ) from None
            for (symbol, birth), (of, offset) in zip(wanted, found, strict=True):
                self.numbers[symbol] = sympy.Integer(offset if birth.dim is None else of.shape[birth.dim])


_books: list[Lengths] = []


def close(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without symbols of their own, and pointers whose lengths were read by now as ordinary ones.

    Where a shape among the arguments has symbols, torch can often find them again: -1 stands for them then.
    Else they are read. Raises GetNotPermittedError.
    """
    with _lock, _named(op):
        taken = list(args)
        if op in _VIEWS:
            taken[1] = _inferred(args[1])
        elif op is aten.expand.default:
            own = (None,) * (len(args[1]) - args[0].dim()) + tuple(args[0].shape)
            taken[1] = [-1 if n is not None and _same(n, m) else m for n, m in zip(own, args[1], strict=True)]
        needed = torch.Tag.inplace_view in op.tags
        return tuple(_closed(part, needed) for part in taken), {k: _closed(v, needed) for k, v in kwargs.items()}


def run(slow: Any, op: Any, number: int, call: Any, args: Sequence[Any], kwargs: dict[str, Any], leaves: Any) -> Any:
    """Send an operation whose arguments or results have lengths without a number. `slow` is the SlowPath.

    Raises what torch raises for shapes that cannot fit, and GetNotPermittedError where it needs a number.
    """
    session: Session = call.session
    with _lock, _named(op):
        book = _book(call.operands)
        told = len(book.numbers)
        try:
            with book.mode:
                if _mistaken(op, args):
                    raise DynamicOutputShapeException(op)
                given = [_fake(book, part) for part in args]
                options = {name: _fake(book, value) for name, value in kwargs.items() if name != "generator"}
                result = _chosen(book, op, given) if op in _BY_MASK else None
                result = op(*given, **options) if result is None else result
        except (*DYNAMIC, UnsupportedOperatorException):
            open_ones = [one for one in call.operands if isinstance(one, RemoteTensor) and is_open(one)]
            if not open_ones:
                return slow.measured(op, number, call, session, leaves)
            for pointer in open_ones:
                settle(pointer)
        except (RuntimeError, ValueError, IndexError):
            if len(book.numbers) == told:
                raise
        if len(book.numbers) > told:  # it is judged anew, by the numbers that it asked for
            return slow(op, tuple(args), kwargs)
        return _send(slow, book, op, number, call, {**dict(enumerate(args)), **kwargs}, result, leaves)


def _send(
    slow: Any, book: Lengths, op: Any, number: int, call: Any, given: dict[Any, Any], result: Any, leaves: Any
) -> Any:
    session: Session = call.session
    facts = kernel(str(op))
    made: list[Any] = []
    identities: list[int] = []
    alone = facts.results == 1 and not facts.returns_list
    for position, part in enumerate([result] if alone else result if facts.results else ()):
        target = None if facts.returns_list else facts.writes.get(position)
        if target is not None:
            made.append(slow.changed(op, given[target if target in given else facts.parameters[target]], leaves))
            continue
        identities.append(session.new_id())
        if part is None:
            made.append(None)
            continue
        reference = Ref(identities[-1], session)
        of = _layout(book, part, reference, str(op))
        kept = leaves if of.dtype.is_floating_point or of.dtype.is_complex else None
        at = part.storage_offset()
        pointer: Any = point(of, reference, at if isinstance(of, OpenLayout) else int(at), kept)
        viewed = given.get(facts.views.get(0 if facts.returns_list else position, -1))
        if type(viewed) is RemoteTensor and op is not aten.detach.default:
            pointer._root = viewed if viewed._root is None else viewed._root
        made.append(pointer)
    slow.append(number, call, identities if not alone else identities[0] if identities else 0, facts.seeded)
    if alone:
        return made[0]
    return made if facts.returns_list else tuple(made) if made else None


def _mistaken(op: Any, args: Sequence[Any]) -> bool:
    """Whether torch's rule for the layout of an operation's results is not what its kernel does.

    It is not for unique values along a dimension, and nobody has shown it for their counts but of rows of numbers.
    """
    if op is aten._unique2.default and len(args[0].shape) <= 1:
        return False
    if op in (aten.unique_dim.default, aten.unique_dim_consecutive.default):
        return True
    return any(args[at] not in (None, False) for at in _UNIQUE.get(op, ()) if at < len(args))


def is_open(pointer: RemoteTensor) -> bool:
    """Whether a pointer's lengths have symbols, as far as this side knows."""
    return isinstance(pointer._layout, OpenLayout)


def settle(pointer: RemoteTensor) -> None:
    """Make an ordinary pointer of one with symbols, by reading them. Raises GetNotPermittedError."""
    of = pointer._layout
    shape = torch.Size([int(n) for n in of.shape])
    if 0 in shape:  # no rule says what strides a kernel gives what is empty
        ((pointer._layout, pointer._offset),) = pointer._ref.session.sizes([pointer._ref.id])
    else:
        pointer._layout = layout(shape, tuple(int(n) for n in of.stride), of.dtype)
        pointer._offset = int(pointer._offset)
    with no_dispatch():
        _DATA.__set__(pointer, point(pointer._layout, pointer._ref, pointer._offset))


_DATA: Any = torch.Tensor.__dict__.get("data") or torch._C.TensorBase.data


# ------------------------------------------------------------------ arguments


def _closed(argument: Any, needed: bool) -> Any:
    if isinstance(argument, torch.SymInt):
        return int(argument)
    if type(argument) is RemoteTensor:
        of = argument._layout
        if isinstance(of, OpenLayout) and (needed or not _symbols(of.book, _lengths(of.fake))):
            settle(argument)
        return argument
    if isinstance(argument, (list, tuple)):
        return [_closed(part, needed) for part in argument]
    return argument


def _inferred(shape: Sequence[Any]) -> list[Any]:
    """A shape to view something in, with -1 for its one length that is a symbol."""
    symbolic = [at for at, n in enumerate(shape) if isinstance(n, torch.SymInt)]
    if len(symbolic) != 1 or -1 in [n for n in shape if type(n) is int] or 0 in [n for n in shape if type(n) is int]:
        return list(shape)
    return [-1 if at == symbolic[0] else n for at, n in enumerate(shape)]


def _same(one: Any, other: Any) -> bool:
    """Whether two lengths are one and the same symbol."""
    open_ones = isinstance(one, torch.SymInt) and isinstance(other, torch.SymInt)
    return bool(open_ones and _expression(one) == _expression(other))


def _fake(book: Lengths, argument: Any) -> Any:
    """An argument as this side computes with it: tensors without values."""
    if isinstance(argument, (list, tuple)):
        return [_fake(book, part) for part in argument]
    if not isinstance(argument, torch.Tensor):
        return argument
    if type(argument) is not RemoteTensor:
        return _empty(layout_of(argument), 0)
    of, state = argument._layout, _values_of(argument)
    if isinstance(of, OpenLayout):
        if state is None or of.fake.__dict__.get("_told") != state:
            # how many of its elements are not zero, or are unique, was another number before it was changed
            kept: Any = of.fake
            kept.nonzero_memo = kept.unique_memo = kept.unique_consecutive_memo = None
            kept.__dict__["_told"] = state
        return of.fake
    if of.dtype not in (torch.bool, torch.uint8):
        return _empty(of, argument._offset)
    drawn = argument.__dict__.get("_fake")
    if drawn is None or drawn[0] is not book or state is None or drawn[1] != state:
        drawn = argument.__dict__["_fake"] = (book, state, _empty(of, argument._offset))
    return drawn[2]


def _values_of(pointer: RemoteTensor) -> tuple[int, int, int] | None:
    """What changes whenever the values may have changed; None where torch does not count that."""
    if pointer.is_inference():
        return None
    return id(pointer._ref.session), pointer._ref.id, pointer._version


def _chosen(book: Lengths, op: Any, args: Sequence[Any]) -> torch.Tensor | None:
    """`x[mask]` for one mask over leading dimensions: torch's own rule takes ten times as long. None: leave it to that.

    One mask chooses as many elements of this as of that, until it is changed.
    """
    source, masks = args[0], args[1] if op is aten.index.Tensor else [args[1]]
    if op is aten.masked_select.default and source.shape != masks[0].shape:
        # torch's rule takes it that there are no more chosen than the source has, which a mask of more dims repeats
        source, mask = torch.broadcast_tensors(source, masks[0])
        made: torch.Tensor = op(source, mask)
        return made
    mask = masks[0]
    rest = 0 if mask is None else mask.dim()
    if mask is None or mask.dtype is not torch.bool or any(one is not None for one in masks[1:]) or not rest:
        return None
    lengths = (*mask.shape, *source.shape)
    if any(type(n) is not int for n in lengths) or mask.shape != source.shape[:rest]:
        return None
    if source.dim() - rest > 1 and not source.is_contiguous():  # what is chosen is strided as this is
        return None
    drawn = mask.__dict__.get("_chosen")
    if drawn is None:
        drawn = mask.__dict__["_chosen"] = book.create_unbacked_symint()
        _constrain_range_for_size(drawn, max=mask.numel())
    return torch.empty((drawn, *source.shape[rest:]), dtype=source.dtype)


def _empty(of: Layout, offset: int) -> torch.Tensor:
    if not offset:
        return torch.empty_strided(of.shape, of.stride, dtype=of.dtype)
    length = 1 + sum((n - 1) * step for n, step in zip(of.shape, of.stride, strict=True)) if 0 not in of.shape else 0
    return torch.empty(offset + length, dtype=of.dtype).as_strided(of.shape, of.stride, offset)


# ------------------------------------------------------------------ results


def _layout(book: Lengths, made: torch.Tensor, ref: Ref, step: str) -> Layout:
    """The layout of a result. Symbols that are new in it are born here."""
    shape = [book.known(_expression(n)) for n in made.shape]
    stride = [book.known(_expression(n)) for n in made.stride()]
    symbols = _symbols(book, _lengths(made))
    if not symbols:
        return layout(torch.Size([int(n) for n in shape]), tuple(int(n) for n in stride), made.dtype)
    births = []
    for symbol in symbols:
        birth = book.births.get(symbol)
        if birth is None:
            at = shape.index(symbol) if symbol in shape else None
            if at is None and book.known(_expression(made.storage_offset())) != symbol:
                raise RemoteOperationError(f"{step} gives lengths of which nothing is known; use its operands' lengths")
            birth = book.births[symbol] = Birth(ref, at, step)
            book.born += 1
        births.append(birth)
    for length, found in zip(made.shape, shape, strict=True):
        if isinstance(length, torch.SymInt) and found in symbols:
            length.node.birth = book.births[found]  # `x[mask].shape[0]` outlives its pointer
    return OpenLayout(book, made, tuple(births))


def _lengths(made: torch.Tensor) -> tuple[Any, ...]:
    return (*made.shape, *made.stride(), made.storage_offset())


def _symbols(book: Lengths, lengths: Sequence[Any]) -> list[sympy.Symbol]:
    found: set[sympy.Symbol] = set()
    for length in lengths:
        found |= book.known(_expression(length)).free_symbols
    return sorted(found, key=str)


def _expression(length: Any) -> Any:
    return length.node.expr if isinstance(length, torch.SymInt) else sympy.Integer(length)


def _book(operands: Sequence[Any]) -> Lengths:
    """The book of the operands' symbols; for new ones that in use, or a fresh one, as none is closed ever."""
    found = [one._layout.book for one in operands if type(one) is RemoteTensor and isinstance(one._layout, OpenLayout)]
    if not found:
        if not _books or _books[0].born > _MOST_SYMBOLS:
            _books[:] = [Lengths()]
        return _books[0]
    for one in operands:
        if type(one) is RemoteTensor and isinstance(one._layout, OpenLayout) and one._layout.book is not found[-1]:
            settle(one)
    return found[-1]


@contextmanager
def _named(op: Any) -> Iterator[None]:
    """What happens inside is done for this operation: errors name it."""
    before = getattr(_state, "step", None)
    _state.step = before or str(op)
    try:
        yield
    finally:
        if before is None:
            del _state.step
