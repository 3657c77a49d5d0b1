"""Which lengths of a function's arguments are the batch: what was said, or what the function is found to allow.

A plan of a function is first captured with the sizes of its examples. Then the first length of one argument, and of
the others that have the same, is taken for the batch size, and captured as that; it holds where the function does
the same for every size, and gives what the plan gives. Where no argument's length can be the batch size, the plan
keeps its sizes, and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from grid_jupyter.errors import NotCapturableError
from grid_jupyter.plans.capture import Example, Function, capture
from grid_jupyter.plans.document import Document, Structure
from grid_jupyter.plans.selftest import compare

Nesting = Callable[[], tuple[Structure, Structure]]
_TRIED = 8
"""Choices of arguments that are tried as those with a batch."""
_REFUSED = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotCapturableError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What a function of anybody's raises for a batch of a size that it is not for."""


@dataclass(frozen=True)
class Captured:
    """The plan of a function. `rows` is the size of the batch that it was captured with, if it has one; `fixed` says
    why it has none."""

    document: Document
    rows: int | None = None
    fixed: str | None = None


def capture_function(
    function: Function, examples: Sequence[Example], nesting: Nesting, batch: tuple[int, int] | None, *,
    functional: bool,
) -> Captured:  # fmt: skip
    """The plan of a function for batches of `batch[0]` to `batch[1]`, with None for the sizes of the examples alone.

    Examples that are batched already stay so, and no others become so. Raises NotCapturableError.
    """
    if any(one.batched for one in examples):
        if batch is None:
            raise ValueError("a length of -1 is the batch size, and batch=None says that there is none")
        return _dynamic(function, examples, nesting, batch, functional, [])
    fixed = capture(function, examples, "function", functional=functional, nesting=nesting)
    compare(fixed, function, examples, _none)
    if batch is None:
        return Captured(fixed, fixed="it was built with batch=None")
    refused = ""
    for chosen in _choices(examples):
        tried = [replace(one, batched=k in chosen) for k, one in enumerate(examples)]
        rows = examples[min(chosen)].tensor.shape[0]
        try:
            return _dynamic(function, tried, nesting, batch, functional, [rows])
        except _REFUSED as error:
            refused = refused or f"its function does not take argument {min(chosen)} with another length: {error}"
    return Captured(fixed, fixed=refused or "none of its arguments has rows")


def _dynamic(
    function: Function, examples: Sequence[Example], nesting: Nesting, batch: tuple[int, int], functional: bool,
    sizes: Sequence[int],
) -> Captured:  # fmt: skip
    """The plan with a batch, compared with the function at `sizes` as well, and at 1, where torch drops dimensions and
    statistics of a batch are none: if the function does something else there, the plan is for more than one row."""
    within = min([batch[0], *sizes]), max([batch[1], *sizes])
    document = capture(function, examples, "function", batch=within, functional=functional, nesting=nesting)
    if document.batch[0] == 1 < document.batch[1]:
        try:
            compare(document, function, examples, _none, (1,))
        except _REFUSED:
            document = replace(document, batch=(2, document.batch[1]))
    outside = [size for size in sizes if not document.batch[0] <= size <= document.batch[1]]
    if outside:
        raise NotCapturableError(f"it does something else for a batch of {outside[0]} than for larger ones")
    compare(document, function, examples, _none)
    for size in sizes:
        try:
            compare(document, function, examples, _none, (size,))
        except NotCapturableError:
            raise NotCapturableError(f"it does something else for a batch of {size} than for others") from None
    return Captured(document, sizes[0] if sizes else None)


def _choices(examples: Sequence[Example]) -> Iterator[frozenset[int]]:
    """Arguments whose first length may be the batch size, by number, the likeliest choices first.

    The first argument that has rows counts as the batch's, and with it all of the same length: but parameters, which
    need gradients, may have it by chance, and a length of 1 may be there to be broadcast.
    """
    arguments = [(k, one.tensor) for k, one in enumerate(examples) if one.role == "arg" and one.tensor.dim()]
    seen: set[frozenset[int]] = set()
    for rows in dict.fromkeys(tensor.shape[0] for _, tensor in arguments):
        alike = [(k, tensor) for k, tensor in arguments if tensor.shape[0] == rows]
        if not rows:
            continue
        choices = [
            [k for k, tensor in alike if (rows > 1 or tensor.dim() > 1) and not tensor.requires_grad],
            [k for k, tensor in alike if not tensor.requires_grad],
            [k for k, _ in alike],
            [alike[0][0]],
        ]
        for choice in map(frozenset, choices):
            if choice and choice not in seen and len(seen) < _TRIED:
                seen.add(choice)
                yield choice


def _none(role: str) -> bool:
    return False
