"""How values of one session leave it: fetched from its Worker, decided on by its gate, sent to whoever may have them.

Sizes of values are values too, and leave in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable

from grid_jupyter.errors import GetNotPermittedError, GridError, SessionLostError
from grid_jupyter.node import policy, verdicts
from grid_jupyter.node.answers import Answers, Spawn
from grid_jupyter.node.bulk import Bulk, wait_until_filled
from grid_jupyter.node.gate import Gate
from grid_jupyter.node.held import Held, HeldValues
from grid_jupyter.node.line import Line
from grid_jupyter.node.moves import Moves
from grid_jupyter.node.moves import Value as Moving
from grid_jupyter.wire import commands, frames, messages, worker
from grid_jupyter.worker.channel import close_all
from grid_jupyter.worker.process import Answer, WorkerProcess

log = logging.getLogger("grid_jupyter")

Waiting = asyncio.Future[Answer]
"""An answer of the Worker that will come."""


class Releases:
    """Gate 4 at work. `reader` is always the user that the Node identified, `gone` is done when the session is."""

    def __init__(
        self,
        gate: Gate,
        line: Line,
        answers: Answers,
        bulk: Bulk,
        moves: Moves,
        held: HeldValues,
        gone: asyncio.Future[None],
        spawn: Spawn,
    ) -> None:
        self._gate = gate
        self._line = line
        self._answers = answers
        self._bulk = bulk
        self._moves = moves
        self._held = held
        self._gone = gone
        self._spawn = spawn

    # -------------------------------------------------------------- to the reader

    def read(
        self, request_id: int, message: messages.Read, reader: str, running: WorkerProcess
    ) -> Awaitable[None] | None:
        """Fetch a value and decide on its release when the Worker has answered. It takes a place for an answer.

        Returns as `WorkerProcess.operations` does.
        """
        if message.reason:  # somebody else's text: escaped
            log.info("%s asks for value %d, saying %s", ascii(reader), message.value, ascii(message.reason))

        def answered(answer: Answer | GridError) -> None:
            if isinstance(answer, GridError):
                self._answers.fail(request_id, answer)
                return
            reply, payload, descriptors = answer
            if isinstance(reply, worker.Fetched) and not descriptors and self._gate.is_open(reader, reply):
                if message.remove:
                    self._free(message.value, running)
                value = messages.Value(dtype=reply.dtype, shape=reply.shape)
                self._answers.sent(self._line.send(messages.reply_frame(request_id, value, payload)))
                return
            self._answers.answer(request_id, self._release(request_id, message, reader, running, answer))

        self._answers.take()
        return running.ask(worker.Fetch(value=message.value), answered)

    async def _release(
        self, request_id: int, message: messages.Read, reader: str, running: WorkerProcess, answer: Answer
    ) -> None:
        reply, payload, descriptors = answer
        try:
            rules = await self._gate.check(reader, reply, ahead=message.ahead)
            fetched = _fetched(reply)
            readers = policy.readers(rules) if rules else None
            ticket = self._bulk.keep(descriptors.pop(), fetched.nbytes) if descriptors else ""
            value = messages.Value(dtype=fetched.dtype, shape=fetched.shape, readers=readers, bulk=ticket)
        finally:
            close_all(descriptors)
        if message.remove:
            self._free(message.value, running)
        await self._line.send(messages.reply_frame(request_id, value, payload))

    async def measure(self, request_id: int, message: messages.Sizes, reader: str, running: WorkerProcess) -> None:
        """Ask the Worker for sizes of values, when there is room for a further answer."""
        waiting = await self._ask(worker.Measure(values=message.values), running)
        self._answers.answer(request_id, self._measured(request_id, reader, waiting))

    async def _measured(self, request_id: int, reader: str, waiting: Waiting) -> None:
        reply, _, _ = await waiting
        await self._gate.check(reader, reply, "sizes")
        if not isinstance(reply, worker.Measured):
            raise GridError("the Worker answered a question for sizes with something else")
        await self._line.reply(request_id, messages.Shapes(layouts=reply.layouts))

    # -------------------------------------------------------------- to whoever the owners let have it

    async def ask(self, request_id: int, message: messages.AskRelease, reader: str, running: WorkerProcess) -> None:
        """Keep a value, as it is now, for its owners to decide on; when there is room for a further answer."""
        await self._answers.place()
        fetching = await running.send(worker.Fetch(value=message.value))
        explaining = await running.send(worker.Explain(value=message.value))
        self._answers.take()
        self._answers.answer(request_id, self._asked(request_id, message, reader, fetching, explaining))

    async def _asked(
        self, request_id: int, message: messages.AskRelease, reader: str, fetching: Waiting, explaining: Waiting
    ) -> None:
        answers = await asyncio.gather(fetching, explaining, return_exceptions=True)
        fetched, explained = answers
        if isinstance(fetched, BaseException):
            raise fetched
        reply, payload, descriptors = fetched
        try:
            rules = await self._gate.sources(reader, reply)
            if policy.may_read_all(reader, rules):
                await self._gate.check(reader, reply)  # it may be a failure, which they may know of
                await self._line.reply(request_id, messages.Requested(request=0, state=verdicts.GRANTED))
                return
            told = explained[0] if isinstance(explained, tuple) else None
            verdict = await self._held.ask(
                reader,
                message.reason,
                Held(reply, payload, descriptors[0] if descriptors else -1, self._gone),
                list(zip(self._gate.named(_sources(reply)), rules, strict=True)),
                told if isinstance(told, worker.Explained) else None,
                self._gate.all(),
            )
        finally:
            close_all(descriptors)
        if verdict.state == verdicts.DENIED and not verdict.request:
            raise GetNotPermittedError(f"this value cannot be asked for: {verdict.reason}")
        await self._line.reply(request_id, messages.Requested(request=verdict.request, state=verdict.state))

    # -------------------------------------------------------------- to another session

    async def move(
        self, request_id: int, message: messages.Move, where: str, reader: str, running: WorkerProcess
    ) -> None:
        """Fetch a value, when there is room for a further answer, for the session that waits for it at `where`."""
        waiting = await self._ask(worker.Fetch(value=message.value), running)
        self._answers.answer(request_id, self._moved(request_id, message, where, reader, running, waiting))

    async def _moved(
        self,
        request_id: int,
        message: messages.Move,
        where: str,
        reader: str,
        running: WorkerProcess,
        waiting: Waiting,
    ) -> None:
        """A value that leaves for another session is released to the caller, whatever becomes of it there."""
        reply, payload, descriptors = await waiting
        try:
            rules = await self._gate.check(reader, reply)
            fetched = _fetched(reply)
            moving = Moving(
                dtype=fetched.dtype,
                shape=fetched.shape,
                sources=self._gate.named(fetched.sources),
                rules=rules,
                descriptor=descriptors[0] if descriptors else -1,
                payload=payload,
            )
            if descriptors:
                await wait_until_filled(descriptors[0], fetched.nbytes, self._gone)
            await self._moves.send(where, message, moving)
        finally:
            close_all(descriptors)
        if message.remove:
            self._free(message.value, running)
        await self._line.reply(request_id, messages.Moved(readers=policy.readers(rules) if rules else None))

    # -------------------------------------------------------------- the Worker

    async def _ask(self, question: worker.Fetch | worker.Measure, running: WorkerProcess) -> Waiting:
        await self._answers.place()
        waiting = await running.send(question)
        self._answers.take()
        return waiting

    def _free(self, value: int, running: WorkerProcess) -> None:
        """Forget a value that its reader does not want to keep here."""
        if not running.lost.done():
            forget = frames.pack(frames.OPERATIONS, frames.encode([[commands.FREE, value]]))
            behind = running.operations(forget)
            if behind is not None:
                self._spawn(_in_any_case(behind))


async def _in_any_case(behind: Awaitable[None]) -> None:
    with contextlib.suppress(SessionLostError):
        await behind


def _sources(reply: worker.Reply) -> tuple[int, ...]:
    if isinstance(reply, worker.Broken):
        return reply.fault.sources
    return _fetched(reply).sources


def _fetched(reply: worker.Reply) -> worker.Fetched:
    if not isinstance(reply, worker.Fetched):
        raise GridError("the Worker answered a read with something else")
    return reply
