"""Who looks at a Node live is told of each change, of several at once together, and of nothing twice."""

from __future__ import annotations

import asyncio

import pytest

from grid_jupyter.node.changes import TOPICS, Changes


def test_what_changed_before_is_told_at_once_and_what_did_not_is_waited_for():
    async def look() -> None:
        changes = Changes()
        seen = changes.numbers
        assert await changes.since(seen, 0.01) == []
        changes.tell("jobs")
        assert await changes.since(seen, 60.0) == ["jobs"]
        assert await changes.since(changes.numbers, 0.01) == []

    asyncio.run(look())


def test_all_who_look_are_woken_by_one_change_and_changes_close_together_are_one():
    async def look() -> None:
        changes = Changes()
        seen = changes.numbers
        lookers = [asyncio.create_task(changes.since(seen, 60.0)) for _ in range(3)]
        await asyncio.sleep(0)
        for topic in ("requests", "datasets", "requests"):
            changes.tell(topic)
        assert await asyncio.gather(*lookers) == [["datasets", "requests"]] * 3

    asyncio.run(look())


def test_a_topic_that_there_is_not_is_an_error():
    changes = Changes()
    with pytest.raises(KeyError):
        changes.tell("values")
    assert set(changes.numbers) == set(TOPICS)
