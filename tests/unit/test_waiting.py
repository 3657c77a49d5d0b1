"""Who is woken when a training stands otherwise."""

from __future__ import annotations

import asyncio

from grid_jupyter.cycles.waiting import Waiting


def test_devices_sleep_on_while_a_cycle_ends_and_all_wake_when_the_next_one_is_there():
    async def work() -> None:
        waiting, loop = Waiting(), asyncio.get_running_loop()
        device = asyncio.create_task(waiting.changed(60, devices=True))
        watcher = asyncio.create_task(waiting.changed(60))
        await asyncio.sleep(0)
        waiting.tell(devices=False)
        await watcher
        assert not device.done()
        later = asyncio.create_task(waiting.changed(60))
        await asyncio.sleep(0)
        waiting.tell()
        await asyncio.gather(device, later)
        began = loop.time()
        await waiting.changed(0.01, devices=True)
        assert loop.time() - began >= 0.009

    asyncio.run(work())


def test_who_is_cancelled_waits_no_more_and_keeps_nobody_else_from_waking():
    async def work() -> None:
        waiting = Waiting()
        gone, stays = (asyncio.create_task(waiting.changed(60)) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        waiting.tell()
        await stays
        assert gone.cancelled()

    asyncio.run(work())
