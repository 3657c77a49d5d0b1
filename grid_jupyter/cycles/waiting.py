"""Those who wait until a training stands otherwise: thousands of devices, each for its next place."""

from __future__ import annotations

import asyncio


class Waiting:
    """Those of one training."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], bool] = {}
        """Whether it is a device."""

    async def changed(self, timeout_s: float, *, devices: bool = False) -> None:
        """Wait until something changes, but no longer; `devices` sleep on when a cycle begins to end, which brings them
        nothing."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting[woken] = devices
        timer = loop.call_later(timeout_s, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()
            self._waiting.pop(woken, None)

    def tell(self, *, devices: bool = True, others: bool = True) -> None:
        """Something changed, for these."""
        waiting, self._waiting = self._waiting, {}
        for woken, is_device in waiting.items():
            if devices if is_device else others:
                _wake(woken)
            else:
                self._waiting[woken] = is_device


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
