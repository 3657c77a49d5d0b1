"""Asking many Nodes at once: the Network's end of a link, and what the answers come to together."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from grid_jupyter.errors import GridError, InvalidMessageError, NodeUnavailableError, from_wire
from grid_jupyter.wire.network import Answer, Datasets, FromNetwork, HostedModel, Models, Question, Tags, Unanswered

ANSWER_S = 2.0
"""Time that a Node has for an answer; one that is slower is left out."""
MAX_PENDING = 256
"""Questions that one Node has open at once."""

A = TypeVar("A", Datasets, Tags, Models)


class NodeLink:
    """The open link to one Node. `send` writes a message to it, `close` ends it with a reason."""

    def __init__(
        self,
        number: int,
        name: str,
        *,
        now: float,
        send: Callable[[FromNetwork], None],
        close: Callable[[str], None],
    ) -> None:
        self.number = number
        self.name = name
        self.send = send
        self.close = close
        self.last_message = now
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Answer]] = {}

    async def ask(self, question: Callable[[int], Question], kind: type[A]) -> A:
        """Put a question, made for an id that is free, and wait for its answer of this kind.

        Raises NodeUnavailableError if the link ends, InvalidMessageError for an answer to something
        else, and what the Node reports.
        """
        if len(self._pending) >= MAX_PENDING:
            raise NodeUnavailableError(f"the Node {self.name} is busy; try again")
        number = next(self._ids)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self.send(question(number))
            answer = await future
        finally:
            del self._pending[number]
        if isinstance(answer, Unanswered):
            raise from_wire(answer.code, answer.error)
        if not isinstance(answer, kind):
            raise InvalidMessageError(f"the Node {self.name} answered something else than it was asked")
        return answer

    def answered(self, answer: Answer) -> None:
        """Pass an answer on. One that nobody waits for any more is no fault: it was too slow."""
        future = self._pending.get(answer.id)
        if future is not None and not future.done():
            future.set_result(answer)

    def ended(self) -> None:
        """The link is closed: nobody waits for its answers any longer."""
        for future in self._pending.values():
            if not future.done():
                future.set_exception(NodeUnavailableError(f"the Node {self.name} is gone"))


async def ask_all(
    links: Iterable[NodeLink], question: Callable[[int], Question], kind: type[A], timeout_s: float = ANSWER_S
) -> dict[str, A]:
    """The answers of all these Nodes, by name, asked in parallel; who is slow or cannot answer is left out."""
    asked = {link.name: asyncio.create_task(link.ask(question, kind)) for link in links}
    if not asked:
        return {}
    try:
        await asyncio.wait(asked.values(), timeout=timeout_s)
    finally:
        for task in asked.values():
            task.cancel()
    await asyncio.gather(*asked.values(), return_exceptions=True)
    for task in asked.values():
        if not task.cancelled() and not isinstance(task.exception(), GridError | None):
            task.result()  # a fault of ours is raised, and not taken for a silent Node
    return {name: task.result() for name, task in asked.items() if not task.cancelled() and not task.exception()}


def holders(answers: Mapping[str, Datasets], query: Iterable[str]) -> list[str]:
    """The Nodes with one data set that carries *all* these tags (0.2.9 was satisfied with fewer)."""
    wanted = set(query)
    return [name for name, answer in answers.items() if any(wanted <= set(found.tags) for found in answer.datasets)]


def union(lists: Iterable[Iterable[str]]) -> list[str]:
    """Everything once, in the order in which it is first met."""
    return list(dict.fromkeys(itertools.chain.from_iterable(lists)))


def hosts_of(answers: Mapping[str, Models], model_id: str, *, mpc: bool | None = None) -> dict[str, HostedModel]:
    """The Nodes that host this model; with `mpc`, only shared ones or only whole ones."""
    return {
        name: model
        for name, answer in answers.items()
        for model in answer.models
        if model.id == model_id and (mpc is None or model.mpc == mpc)
    }
