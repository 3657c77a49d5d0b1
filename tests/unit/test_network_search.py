"""Asking many Nodes at once: who is slow is left out, and all tags must be there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from grid_jupyter.errors import InvalidMessageError, NodeUnavailableError, ObjectNotFoundError
from grid_jupyter.network.search import MAX_PENDING, NodeLink, ask_all, holders, hosts_of, union
from grid_jupyter.wire.network import (
    Answer,
    Datasets,
    DatasetTags,
    FindDatasets,
    HostedModel,
    Models,
    Question,
    Tags,
    Unanswered,
    decode,
    encode,
    from_network_decoder,
    from_node_decoder,
)


class Silent:
    """The link to a Node that never answers; `asked` holds what it was asked."""

    def __init__(self, name: str) -> None:
        self.asked: asyncio.Queue[Question] = asyncio.Queue()
        self.link = NodeLink(1, name, now=0.0, send=self.asked.put_nowait, close=lambda _reason: None)


def answering(name: str, answer: Callable[[int], Answer]) -> NodeLink:
    """The link to a Node that answers at once."""

    def send(asked: Question) -> None:
        link.answered(answer(asked.id))

    link = NodeLink(1, name, now=0.0, send=send, close=lambda _reason: None)
    return link


def question(number: int) -> Question:
    return FindDatasets(id=number)


def test_an_answer_finds_its_question_whatever_the_order():
    async def flow() -> None:
        bob = Silent("Bob")
        waiting = [asyncio.create_task(bob.link.ask(question, Datasets)) for _ in range(2)]
        asked = [await bob.asked.get() for _ in waiting]
        for one in reversed(asked):
            bob.link.answered(Datasets(id=one.id, datasets=(DatasetTags(id=one.id, tags=()),)))
        assert [(await one).datasets[0].id for one in waiting] == [one.id for one in asked]

    asyncio.run(flow())


def test_a_slow_node_is_left_out_and_does_not_keep_the_others_waiting():
    async def flow() -> None:
        alice, bob = Silent("Alice"), answering("Bob", lambda number: Tags(id=number, tags=("#x",)))
        began = time.monotonic()
        answers = await ask_all([alice.link, bob], question, Tags, timeout_s=0.05)
        assert list(answers) == ["Bob"]
        assert not alice.asked.empty()
        assert time.monotonic() - began < 1.0

    asyncio.run(flow())


def test_a_node_that_reports_an_error_or_answers_something_else_is_left_out_of_a_fan_out():
    async def flow() -> None:
        wrong = answering("Bob", lambda number: Tags(id=number, tags=()))
        failing = answering("Alice", lambda number: Unanswered(id=number, code="object-not-found", error="gone"))
        assert await ask_all([wrong, failing], question, Datasets) == {}
        with pytest.raises(InvalidMessageError, match="Bob"):
            await wrong.ask(question, Datasets)
        with pytest.raises(ObjectNotFoundError, match="gone"):
            await failing.ask(question, Datasets)

    asyncio.run(flow())


def test_who_waits_for_a_node_that_goes_is_told():
    async def flow() -> None:
        bob = Silent("Bob")
        waiting = asyncio.create_task(bob.link.ask(question, Datasets))
        await bob.asked.get()
        bob.link.ended()
        with pytest.raises(NodeUnavailableError, match="Bob"):
            await waiting

    asyncio.run(flow())


def test_late_and_unasked_answers_are_no_fault():
    async def flow() -> None:
        Silent("Bob").link.answered(Tags(id=99, tags=()))

    asyncio.run(flow())


def test_questions_in_the_air_are_bounded():
    async def flow() -> None:
        bob = Silent("Bob")
        waiting = [asyncio.create_task(bob.link.ask(question, Datasets)) for _ in range(MAX_PENDING)]
        for _ in waiting:
            await bob.asked.get()
        with pytest.raises(NodeUnavailableError, match="busy"):
            await bob.link.ask(question, Datasets)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(flow())


def test_a_search_is_a_true_and_over_one_data_set():
    answers = {
        "Bob": Datasets(id=1, datasets=(DatasetTags(id=1, tags=("#mnist", "#x")), DatasetTags(id=2, tags=("#y",)))),
        "Alice": Datasets(id=1, datasets=(DatasetTags(id=3, tags=("#x", "#y")),)),
        "Bill": Datasets(id=1, datasets=()),
    }
    assert holders(answers, ["#x"]) == ["Bob", "Alice"]
    assert holders(answers, ["#x", "#y"]) == ["Alice"]
    assert holders(answers, ["#nope", "#mnist"]) == []
    assert holders(answers, []) == ["Bob", "Alice"]


def test_models_are_found_by_id_and_kind():
    answers = {"Bob": Models(id=1, models=(HostedModel(id="a"), HostedModel(id="b", mpc=True)))}
    assert list(hosts_of(answers, "a")) == ["Bob"]
    assert hosts_of(answers, "a", mpc=True) == {}
    assert list(hosts_of(answers, "b", mpc=True)) == ["Bob"]


def test_a_union_keeps_the_order_and_each_thing_once():
    assert union([["b", "a"], ["a", "c"]]) == ["b", "a", "c"]


def test_messages_survive_the_link():
    asked = FindDatasets(id=3, query=("#x",), public=False)
    assert decode(encode(asked), from_network_decoder) == asked
    answer = Datasets(id=3, datasets=(DatasetTags(id=2**62, tags=("<b>", "é")),))
    assert decode(encode(answer), from_node_decoder) == answer


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"type":"seen","x":1}', "[" * 200_000, '"\\ud800"', b"\xff"])
def test_what_is_no_message_is_refused(text: str | bytes):
    with pytest.raises(InvalidMessageError):
        decode(text, from_network_decoder)
