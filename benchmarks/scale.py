"""How much of it a benchmark runs: as the page has it, or as little as shows that everything works."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


class Scale:
    """`scale(full, quick)` is the one or the other."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick

    def __call__(self, full: T, quick: T) -> T:
        return quick if self.quick else full
