"""Devices that listen and never acknowledge keep no notice of others waiting."""

from __future__ import annotations

import asyncio

import msgspec

from grid_jupyter.push.notifier import SENT, Outcome, Outgoing
from grid_jupyter.push.sockets import DOUBTED, MISSES, Listeners
from grid_jupyter.wire.push import Notice

SILENT = [f"silent {k}" for k in range(3 * DOUBTED)]


def outgoing(number: int, worker_id: str) -> Outgoing:
    notice = Notice(id=number, type="message", worker_id=worker_id, model="m", version="1")
    return Outgoing(notice=notice, device=number, token=None, listens=True, attempts=0, expires=1e9)


async def listening(listeners: Listeners) -> None:
    """Devices that never answer, and one that does."""

    async def silent(text: bytes) -> None:
        pass

    async def answers(text: bytes) -> None:
        listeners.received({"good"}, msgspec.json.decode(text)["data"]["id"])

    for worker_id in SILENT:
        listeners.add(worker_id, silent)
    listeners.add("good", answers)


async def to_all(listeners: Listeners, first: int) -> list[Outcome]:
    return await asyncio.gather(
        *(listeners.send(outgoing(first + k, worker_id)) for k, worker_id in enumerate([*SILENT, "good"]))
    )


def test_those_that_left_a_notice_without_an_answer_share_a_few_places():
    async def work() -> None:
        listeners = Listeners(acknowledged_s=0.05)
        await listening(listeners)
        told = await to_all(listeners, 0)
        assert [one.state for one in told] == ["again"] * len(SILENT) + ["sent"]
        told = await to_all(listeners, 1000)
        assert [one.state for one in told[:-1]].count("again") == DOUBTED
        assert [one.state for one in told[:-1]].count("later") == len(SILENT) - DOUBTED
        assert told[-1] is SENT

    asyncio.run(work())


def test_one_that_never_answers_is_away_until_it_listens_again_and_is_doubted_still():
    async def work() -> None:
        listeners = Listeners(acknowledged_s=0.02)
        await listening(listeners)
        for number in range(MISSES):
            assert listeners.reaches(outgoing(0, SILENT[0]))
            assert (await listeners.send(outgoing(number, SILENT[0]))).state == "again"
        assert not listeners.reaches(outgoing(0, SILENT[0]))
        assert listeners.reaches(outgoing(0, "good"))
        await listening(listeners)
        await to_all(listeners, 1000)
        assert SILENT[0] in listeners._misses

    asyncio.run(work())
