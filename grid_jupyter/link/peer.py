"""A Node's membership of a Network, from the Node's side: join, keep a link open, beat, answer questions.

    none ──start──▶ connecting ──joined, link open──▶ joined
                      ▲   │  ▲                          │
                      │   │  └───────link lost──────────┘
                      │   └─the Network says no─▶ refused
                      └────────a later attempt──────┘

It knows nothing of what a Node is: what to say is asked of the callables that it is given.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

from grid_jupyter.errors import BadRequest, GridError, InvalidMessageError
from grid_jupyter.wire.limits import MAX_NAME_CHARS
from grid_jupyter.wire.network import (
    MAX_LINK_BYTES,
    Answer,
    FindNode,
    FoundNode,
    Heartbeat,
    Question,
    Seen,
    Unanswered,
    Welcome,
    decode,
    encode,
    from_network_decoder,
)

log = logging.getLogger("grid_jupyter")

NONE, CONNECTING, JOINED, REFUSED = "none", "connecting", "joined", "refused"

CONNECT_S = 10.0
"""Time for joining and for opening the link."""
CLOSE_S = 1.0
"""Time for the Network to confirm that the link is closed."""
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
"""Back-off between attempts while the Network does not answer."""
REFUSED_DELAY_S = 120.0
"""Back-off after a refusal: only a person can change the Network's mind."""
SILENT_HEARTBEATS = 3.0
"""The link counts as dead after so many heartbeats without a message."""
FIND_S = 5.0
"""Time that the Network has to say where another Node is."""
MAX_ANSWERING = 64
"""Questions answered at once; further ones wait."""


class _Refused(Exception):
    """The Network answered, and the answer is no. `lasting`: asking again soon would not help."""

    def __init__(self, detail: str, *, status: int) -> None:
        super().__init__(detail)
        self.status = status
        self.lasting = status not in (429, 500, 502, 503, 504, 507)


class _Lost(Exception):
    """The Network does not answer, or no longer."""


class Membership:
    """One Node's membership of one Network. `start` returns at once; `state` and `detail` say how it goes.

    `address` gives the Node's address of the moment; `load` and `save` keep the credential that the
    Network gives out at the first join; `answer` answers a question, `beat` says how the Node is.
    """

    def __init__(
        self,
        network_url: str,
        *,
        name: str,
        node_id: str,
        address: Callable[[], str],
        load: Callable[[], Awaitable[str | None]],
        save: Callable[[str], Awaitable[None]],
        answer: Callable[[Question], Awaitable[Answer]],
        beat: Callable[[], Awaitable[Heartbeat]],
        invite: str | None = None,
        heartbeat_s: float = 5.0,
    ) -> None:
        """Raises BadRequest for a Network address that is not http:// or https://."""
        parts = urlsplit(network_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadRequest(f"{network_url!r} is not an address of a Network: it begins with http:// or https://")
        self.network_url = network_url.rstrip("/")
        self.links = 0  # opened since the start
        self.state = NONE
        self.detail = ""
        self._name = name
        self._node_id = node_id
        self._address = address
        self._load = load
        self._save = save
        self._answer = answer
        self._beat = beat
        self._invite = invite
        self._heartbeat_s = heartbeat_s
        self._task: asyncio.Task[None] | None = None
        self._link: WebSocketClientConnection | None = None  # while it is open
        self._asked: dict[int, asyncio.Future[str | None]] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Join, and go on trying until `stop`."""
        if self._task is None:
            self._become(CONNECTING, f"to {self.network_url}")
            self._task = asyncio.create_task(self._run(), name=f"membership of {self._name}")

    async def stop(self) -> None:
        """Close the link, so that the Network knows at once."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # again, should whatever it waits for have swallowed it
            await asyncio.wait([task], timeout=2 * CLOSE_S)
        self._become(NONE, "")

    async def reached(self, *states: str, timeout_s: float) -> str:
        """Wait until the state is one of these; returns it. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while self.state not in states:
            self._changed.clear()
            if not await _done_within(self._changed.wait(), deadline - time.monotonic()):
                raise TimeoutError(f"{self._name} is still {self.state} ({self.detail})")
        return self.state

    async def find_node(self, name: str) -> str | None:
        """The address of a Node that lives in this Network; None where there is none, or the Network is away."""
        link = self._link
        if link is None or len(name) > MAX_NAME_CHARS:
            return None
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(link, encode(FindNode(id=number, name=name)))
            return answer.result() if await _done_within(asyncio.shield(answer), FIND_S) else None
        except _Lost:
            return None
        finally:
            del self._asked[number]

    def _become(self, state: str, detail: str) -> None:
        if state != self.state:
            log.info("%s and the Network %s: %s %s", self._name, self.network_url, state, detail)
        self.state, self.detail = state, detail
        self._changed.set()

    # -------------------------------------------------------------- the loop of attempts

    async def _run(self) -> None:
        delay = FIRST_DELAY_S
        while True:
            try:
                credential = await self._join()
                await self._keep_link(credential)
            except _Refused as refusal:
                if refusal.lasting:
                    self._become(REFUSED, str(refusal))
                    delay = REFUSED_DELAY_S
                else:
                    self._become(CONNECTING, str(refusal))
            except _Lost as loss:
                if self.state == JOINED:
                    delay = FIRST_DELAY_S
                self._become(CONNECTING, str(loss))
            # without the jitter, all Nodes of a Network that came back would knock at once
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            delay = FIRST_DELAY_S if delay > LONGEST_DELAY_S else min(2 * delay, LONGEST_DELAY_S)

    async def _join(self) -> str:
        """Join with the stored credential, or else with the invite; returns the credential."""
        credential = await self._load()
        if credential is not None:
            try:
                await self._post_join(credential=credential)
            except _Refused as refusal:
                if refusal.status != 401 or self._invite is None:
                    raise
            else:
                return credential
        if self._invite is None:
            raise _Refused(
                "this Node is not a member of the Network; ask its owner for an invite "
                "('jupyter grid invite --network --role Node')",
                status=401,
            )
        answer = await self._post_join(invite=self._invite)
        token = answer.get("token")
        if not isinstance(token, str):
            raise _Refused("the Network gave out no credential; it runs another version", status=400)
        await self._save(token)
        self._invite = None  # it works once
        return token

    async def _post_join(self, *, credential: str | None = None, invite: str | None = None) -> dict[str, object]:
        body = {"node-id": self._name, "node-address": self._address(), "id": self._node_id}
        if invite is not None:
            body["invite"] = invite
        request = HTTPRequest(
            f"{self.network_url}/join",
            method="POST",
            headers={"Content-Type": "application/json", **_bearer(credential)},
            body=json.dumps(body),
            connect_timeout=CONNECT_S,
            request_timeout=CONNECT_S,
            follow_redirects=False,  # a credential goes where the owner sent it, nowhere else
        )
        client = SimpleAsyncHTTPClient(force_instance=True, max_body_size=MAX_LINK_BYTES)
        try:
            response = await client.fetch(request, raise_error=False)
        except (OSError, HTTPClientError) as error:
            raise _Lost(f"the Network does not answer: {error}") from None
        finally:
            client.close()
        if response.code == 599:
            raise _Lost(f"the Network does not answer: {response.error}")
        try:
            answer = msgspec.json.decode(response.body or b"{}", type=dict[str, object])
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            raise _Refused(f"{self.network_url} is not a Network (it answers {response.code})", status=400) from None
        if response.code != 200:
            detail = answer.get("error") or answer.get("message") or f"the Network answers {response.code}"
            raise _Refused(str(detail), status=response.code)
        return answer

    # -------------------------------------------------------------- the link

    async def _keep_link(self, credential: str) -> None:
        """Open the link and serve it until it is lost."""
        scheme, _, rest = self.network_url.partition("://")
        request = HTTPRequest(
            f"{'wss' if scheme == 'https' else 'ws'}://{rest}/link",
            headers=_bearer(credential),
            connect_timeout=CONNECT_S,
            request_timeout=CONNECT_S,
        )
        opening = asyncio.ensure_future(websocket_connect(request, max_message_size=MAX_LINK_BYTES))
        try:
            link = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_unwanted)  # tornado goes on opening it
            raise
        except HTTPClientError as error:
            if error.code == 599:
                raise _Lost(f"the Network does not answer: {error.message}") from None
            raise _Refused(f"the Network does not open a link: {error.message}", status=error.code) from None
        except (OSError, WebSocketError) as error:
            raise _Lost(f"the Network does not answer: {error}") from None
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._serve_link(link, tasks)
        finally:
            self._link = None
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            link.close(1001, "the Node leaves")
            await _done_within(_drained(link), CLOSE_S)  # or else tornado drops the connection, soon

    async def _serve_link(self, link: WebSocketClientConnection, tasks: set[asyncio.Task[None]]) -> None:
        interval = self._heartbeat_s
        answering = asyncio.Semaphore(MAX_ANSWERING)
        beating: asyncio.Task[None] | None = None
        while True:
            reading = asyncio.ensure_future(link.read_message())
            if not await _done_within(reading, SILENT_HEARTBEATS * interval):
                raise _Lost("the Network fell silent")
            text = reading.result()
            if beating is not None and beating.done():
                beating.result()  # _Lost, or a bug in what was given for `beat`
            if text is None:
                raise _Lost(f"the Network closed the link{f': {link.close_reason}' if link.close_reason else ''}")
            try:
                message = decode(text, from_network_decoder)
            except InvalidMessageError as error:
                raise _Refused(f"the Network speaks another protocol: {error}", status=400) from None
            if isinstance(message, Welcome):
                interval = min(interval, message.heartbeat_s)
                if beating is None:
                    beating = asyncio.create_task(self._send_beats(link, interval))
                    tasks.add(beating)
                self.links += 1
                self._link = link
                self._become(JOINED, f"{message.network} at {self.network_url}")
            elif isinstance(message, FoundNode):
                asked = self._asked.get(message.id)
                if asked is not None and not asked.done():
                    asked.set_result(message.address)
            elif not isinstance(message, Seen):
                task = asyncio.create_task(self._reply(link, message, answering))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def _send_beats(self, link: WebSocketClientConnection, interval: float) -> None:
        while True:
            await self._send(link, encode(await self._beat()))
            await asyncio.sleep(interval)

    async def _reply(self, link: WebSocketClientConnection, question: Question, answering: asyncio.Semaphore) -> None:
        async with answering:
            try:
                text = encode(await self._answer(question))
            except GridError as error:
                text = encode(Unanswered(id=question.id, **error.to_wire()))
        try:
            await self._send(link, text)
        except _Lost:
            return  # whoever asked is gone; the reader of the link knows

    async def _send(self, link: WebSocketClientConnection, text: str) -> None:
        try:
            await link.write_message(text)
        except WebSocketError:
            raise _Lost("the link is closed") from None


def _unwanted(opening: asyncio.Future[WebSocketClientConnection]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def _done_within(work: Awaitable[object], timeout_s: float) -> bool:
    """Whether the work was done in time; it is given up if not.

    Not asyncio.wait_for, which until Python 3.12 loses a cancellation that comes with the result.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=max(0.0, timeout_s))
        return task.done()
    finally:
        task.cancel()


async def _drained(link: WebSocketClientConnection) -> None:
    while await link.read_message() is not None:
        pass


def _bearer(credential: str | None) -> dict[str, str]:
    return {} if credential is None else {"Authorization": f"Bearer {credential}"}
