"""Who has which share of a Node's devices: taken when a Worker is forked, given back when its process is gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from grid_jupyter.wire.panel import Device
from grid_jupyter.worker.devices import NODES, Asked, Found, Granted, Wait, Wish, admit, chosen, fraction


class Shares:
    """The shares of one pool. Without devices nothing is counted, and everybody is let in."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.devices, self.text = chosen(wish, Found(devices=())) if not wish.of_gpu else ((), "unknown")
        self._granted: dict[int, Granted] = {}
        self._freed: asyncio.Future[None] | None = None
        self._told: list[Callable[[], None]] = []

    def settle(self, machine: Found) -> None:
        """These GPUs are there. Raises NodeUnavailableError where one that is wished for is not."""
        self.devices, self.text = chosen(self.wish, machine)

    def look(self, asked: Asked, without: frozenset[int] = frozenset()) -> Granted | Wait | None:
        """What would be granted now, if the Workers of these numbers were gone; None: nothing is counted. Raises
        BadRequest, LimitExceededError for what can never be."""
        if not self.devices and asked in (NODES, Asked("cpu")):
            return None
        if asked == Asked("cpu") and all(one.name != "cpu" for one in self.devices):
            return None  # beside the GPUs
        taken: Counter[str] = Counter()
        for number, one in self._granted.items():
            if number not in without:
                taken[one.device.name] += one.parts
        return admit(self.devices, taken, asked, self.wish.parts)

    def ever(self, asked: Asked) -> Granted | None:
        """What would be granted if nobody had anything; None: nothing is counted. Raises as `look`."""
        decided = self.look(asked, frozenset(self._granted))
        return decided if isinstance(decided, Granted) else None

    def take(self, number: int, granted: Granted) -> None:
        """A Worker has this share, from here on."""
        self._granted[number] = granted

    def of(self, number: int) -> Granted | None:
        """What a Worker has."""
        return self._granted.get(number)

    def give_back(self, number: int) -> None:
        """A Worker's process is gone."""
        if self._granted.pop(number, None) is not None:
            if self._freed is not None and not self._freed.done():
                self._freed.set_result(None)
            for told in self._told:
                told()

    def freed(self) -> asyncio.Future[None]:
        """Done when some share is given back."""
        if self._freed is None or self._freed.done():
            self._freed = asyncio.get_running_loop().create_future()
        return self._freed

    def on_freed(self, told: Callable[[], None]) -> None:
        """Call that whenever a share is given back."""
        self._told.append(told)

    def describe(self) -> list[Device]:
        """The devices, and the share of each Worker on them, as the Node's status tells it."""
        return [
            {
                "name": one.name,
                "label": one.label,
                "memory_bytes": one.memory_bytes,
                "shares": [float(fraction(has.parts)) for has in self._granted.values() if has.device == one],
            }
            for one in self.devices
        ]
