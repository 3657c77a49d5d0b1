"""Calls of a compiled recording: closures on the list of a run's values, each by the shortest way that it allows."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch

from grid_jupyter.worker.tape import Noted, Ref
from grid_jupyter.worker.templates import show_versions

Values = list[Any]
Call = Callable[[Values], None]
Get = Callable[[Values], Any]

set_grad_mode: Callable[[bool], None] = torch._C._set_grad_enabled
"""What torch.set_grad_enabled does, without the object around it."""


class Calls:
    """Makes calls. Their constants are appended to `values`, the list that each run begins with."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def of(self, noted: Noted, written: tuple[int, ...], dead: tuple[int, ...]) -> Call:
        """The call of a kernel that writes to some values; those that are dead afterwards are let go of."""
        get = self._arguments(noted.args)
        kwargs, named = self._keywords(noted.kwargs)
        call: Call
        if named:
            call = _call_named(noted.call, get, kwargs, named, noted.outs, dead)
        elif isinstance(noted.outs, list):
            call = _call_many(noted.call, get, kwargs, noted.outs, dead)
        elif noted.outs is None or noted.outs < 0:
            call = _call_for_effect(noted.call, get, kwargs, dead)
        else:
            call = _call_one(noted.call, get, kwargs, noted.outs, dead)
        return _showing_versions(call, written) if written else call

    def _arguments(self, args: list[Any]) -> Get:
        if any(isinstance(part, list) and any(isinstance(one, (Ref, list)) for one in part) for part in args):
            parts = [self._argument(part) for part in args]
            return lambda values: [get(values) for get in parts]
        numbers = [part.number if isinstance(part, Ref) else self._constant(part) for part in args]
        return _tuple_of(numbers)

    def _argument(self, part: Any) -> Get:
        if isinstance(part, Ref):
            return itemgetter(part.number)
        if isinstance(part, list):
            get = _tuple_of([one.number if isinstance(one, Ref) else self._constant(one) for one in part])
            return lambda values: list(get(values))
        return itemgetter(self._constant(part))

    def _constant(self, value: Any) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _keywords(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Get]]:
        named = {name: part for name, part in kwargs.items() if any(True for _ in _refs_in(part))}
        constant = {name: part for name, part in kwargs.items() if name not in named}
        return constant, {name: self._argument(part) for name, part in named.items()}


def numbers_in(outs: int | list[int] | None) -> list[int]:
    return outs if isinstance(outs, list) else [] if outs is None else [outs]


def taken(noted: Noted) -> list[int]:
    return [ref.number for part in (*noted.args, *noted.kwargs.values()) for ref in _refs_in(part)]


def _refs_in(part: Any) -> list[Ref]:
    if isinstance(part, Ref):
        return [part]
    return [ref for one in part for ref in _refs_in(one)] if isinstance(part, list) else []


def _tuple_of(numbers: list[int]) -> Get:
    if len(numbers) > 1:
        return itemgetter(*numbers)
    if numbers:
        (number,) = numbers
        return lambda values: (values[number],)
    return lambda values: ()


def switch(on: bool) -> Call:
    def call(values: Values) -> None:
        set_grad_mode(on)

    return call


def _call_one(run: Callable[..., Any], get: Get, kwargs: dict[str, Any], out: int, dead: tuple[int, ...]) -> Call:
    def call(values: Values) -> None:
        values[out] = run(*get(values))
        for number in dead:
            values[number] = None

    def call_with(values: Values) -> None:
        values[out] = run(*get(values), **kwargs)
        for number in dead:
            values[number] = None

    return call_with if kwargs else call


def _call_many(
    run: Callable[..., Any], get: Get, kwargs: dict[str, Any], outs: list[int], dead: tuple[int, ...]
) -> Call:  # fmt: skip
    def call(values: Values) -> None:
        for number, result in zip(outs, run(*get(values), **kwargs), strict=False):
            if number >= 0:
                values[number] = result
        for number in dead:
            values[number] = None

    return call


def _call_for_effect(run: Callable[..., Any], get: Get, kwargs: dict[str, Any], dead: tuple[int, ...]) -> Call:
    def call(values: Values) -> None:
        run(*get(values), **kwargs)
        for number in dead:
            values[number] = None

    return call


def _call_named(
    run: Callable[..., Any], get: Get, kwargs: dict[str, Any], named: dict[str, Get], outs: int | list[int] | None,
    dead: tuple[int, ...],
) -> Call:  # fmt: skip
    """The same where tensors have keywords, too, which is rare."""

    def run_named(values: Values) -> Any:
        return run(*get(values), **kwargs, **{name: one(values) for name, one in named.items()})

    if isinstance(outs, list):
        return _call_many(run_named, lambda values: (values,), {}, outs, dead)
    if outs is None or outs < 0:
        return _call_for_effect(run_named, lambda values: (values,), {}, dead)
    return _call_one(run_named, lambda values: (values,), {}, outs, dead)


def _showing_versions(call: Call, written: tuple[int, ...]) -> Call:
    """As Template.run: what is written to shows a new version, whether or not the kernel cares."""

    def showing_one(values: Values) -> None:
        tensor = values[first]
        version = tensor._version
        try:
            call(values)
        finally:
            show_versions([tensor], [version])

    def showing(values: Values) -> None:
        tensors = [values[number] for number in written]
        versions = [tensor._version for tensor in tensors]
        try:
            call(values)
        finally:
            show_versions(tensors, versions)

    first = written[0]
    return showing_one if len(written) == 1 else showing
