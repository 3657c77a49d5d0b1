"""What one command of a stream says, for people: its arguments as text, the ids and numbers among them."""

from __future__ import annotations

import math
from typing import Any

_MAX_TEXT = 120


class Reader:
    """Reads the slots of a command along the structure of its template, as the template does."""

    def __init__(self, command: list[Any]) -> None:
        self._command = command
        self._slots = iter(range(2, 1 << 30))

    def item(self, item: Any) -> list[str | int]:
        """Texts, and ids as numbers."""
        if item == "r":
            return [int(self._command[next(self._slots)])]
        if item == "d":
            return [_clip(self._command[next(self._slots)])]
        if item == "z":
            return [str(complex(self._command[next(self._slots)], self._command[next(self._slots)]))]
        kind, content = item
        if kind != "L":
            return [str(content)]
        found: list[str | int] = ["["]
        for number, part in enumerate(content):
            found += [", "] if number else []
            found += self.item(part)
        return [*found, "]"]


def picks(dtype: str, data: bytes) -> int | None:
    """How many rows an index of these bytes picks; None where it is none."""
    if dtype in ("bool", "uint8"):  # a mask
        return len(data) - data.count(0)
    return len(data) // 8 if dtype == "int64" else None


def indexes_first(name: str, args: Any) -> bool:
    """Whether an operation picks along the first dimension of its first argument."""
    return name == "index_select" or (len(args) > 1 and args[1] == ["L", ["r"]])


def numbers(command: list[Any], args: Any) -> list[Any]:
    """The arguments of an operation behind its first one, where each is a number or a constant."""
    slots, found = iter(range(2, 1 << 30)), []
    for item in args:
        if item in ("r", "d"):
            found.append(command[next(slots)])
        else:
            found.append(item[1] if isinstance(item, list) and item[0] == "c" else None)
    return found[1:]


def _clip(number: Any) -> str:
    if type(number) is float and math.isfinite(number):
        return f"{number:.6g}"
    text = str(number)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(number)} numbers)"


def ids(found: Any) -> list[int]:
    """The ids among slots of a command, those of lists too."""
    flat = [one for part in found for one in (part if type(part) is list else [part])]
    return [one for one in flat if type(one) is int and one > 0]


def short(name: str) -> str:
    """The name of an operation without its overload."""
    base = name.removeprefix("aten.")
    return base.split(".")[0]
