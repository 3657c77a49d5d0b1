"""What commands of the stream do with values: which they name, which they make, and which they may change."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from grid_jupyter.ops.kernels import kernel
from grid_jupyter.wire import commands

TEMPLATES: list[tuple[str, Any, Any]] = []
"""Operation and argument structure of every template of this process, by number."""

_DETACH = "aten.detach.default"
_HARMLESS = frozenset({
    commands.DEFINE, commands.FREE, commands.SEED, commands.GRAD_MODE, commands.REQUIRE_GRAD, commands.RETAIN_GRAD,
    commands.GRAD_OF, commands.GRADIENTS,
})  # fmt: skip
"""Verbs that write into no memory that a value has; gradients that are asked for come in memory of their own."""
_HANDS_OVER = {commands.BACKWARD: 2, commands.BACKWARD_MANY: 2, commands.SET_GRAD: 2}
"""Verbs that may make a gradient of what stands there, which is added to in place afterwards."""


class Slots(NamedTuple):
    """Where in a command of one template the ids of its arguments stand, and those of the ones that it writes to."""

    references: tuple[int, ...]
    written: frozenset[int]


@functools.lru_cache(50_000)
def slots(template: int) -> Slots:
    """The places in a command of that template."""
    name, args, kwargs = TEMPLATES[template]
    facts = kernel(name)
    found: list[int] = []
    written: list[int] = []
    at = 2

    def walk(item: Any, mutates: bool) -> None:
        nonlocal at
        if item == "r":
            found.append(at)
            if mutates:
                written.append(at)
        if item in ("r", "d", "z"):
            at += 2 if item == "z" else 1
        elif item[0] == "L":
            for part in item[1]:
                walk(part, mutates)

    for position, item in enumerate(args):
        walk(item, position in facts.mutates)
    for keyword, item in kwargs:
        walk(item, facts.parameters.index(keyword) in facts.mutates)
    return Slots(tuple(found), frozenset(written))


def references(template: int) -> tuple[int, ...]:
    """Where in a command of that template the ids of its arguments stand."""
    return slots(template).references


def detached(command: list[Any]) -> int:
    """The value that a command shows once more, whole and as it is, under another id; 0 if it does not."""
    if command[0] < 0 or TEMPLATES[command[0]][0] != _DETACH:
        return 0
    shown: int = command[2]
    return shown


class Unchanged:
    """Follows commands after a value was made in memory of its own: whether it may still be as it was.

    Whatever is made from it may show its memory, for all that is known on this side: what is written into any of
    these may change it. In doubt it was changed.
    """

    def __init__(self, value: int) -> None:
        self.holds = True
        self.same = {value}  # ids of the very value
        self._kin = {value}  # ids that may show its memory

    def follow(self, command: list[Any]) -> None:
        """The next command of the stream."""
        code = command[0]
        if code >= 0:
            self._operation(command)
        elif code in _HARMLESS:
            return
        elif code == commands.PUT:
            self.holds = self.holds and command[1] not in self._kin
        elif code in _HANDS_OVER:
            given = command[_HANDS_OVER[code]]
            if not self._kin.isdisjoint(given if type(given) is list else (given,)):
                self.holds = False
        else:
            self.holds = False

    def _operation(self, command: list[Any]) -> None:
        places, kin = slots(command[0]), self._kin
        touched = False
        for at in places.references:
            if command[at] in kin:
                touched = True
                if at in places.written:
                    self.holds = False
        if touched:
            made = command[1]
            kin.update(made if type(made) is list else (made,))
            if detached(command) in self.same:
                self.same.add(made)
