"""Random numbers that are the same for the same call, from a generator that is made once."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice(random.Random):
    """What makes up the calls of one operation: `throw` says which call's turn it is."""

    def __init__(self, name: str) -> None:
        super().__init__(0)
        self._name = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") << 64

    def throw(self, index: int) -> None:
        """From here on the numbers of this call."""
        self.seed(self._name + index)

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]  # mypy: a protocol of typeshed's own
        """One of several. The standard one is several times slower, for the sake of long sequences."""
        return seq[int(self.random() * len(seq))]

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        """A whole number from `start` up to `stop`, or from 0 up to `start`, as the standard one; steps are of 1."""
        if stop is None:
            start, stop = 0, start
        if stop <= start or step != 1:
            raise ValueError("an empty range")
        return start + int(self.random() * (stop - start))
