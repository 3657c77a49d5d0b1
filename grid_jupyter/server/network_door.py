"""The Network's doors: the routes of 0.2.9's Network, and the link for Nodes."""

from __future__ import annotations

import asyncio
import html
from typing import Annotated

import msgspec
from tornado.iostream import StreamBufferFullError
from tornado.web import Application
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from grid_jupyter.errors import Forbidden, GridError, NodeUnavailableError
from grid_jupyter.identity.accounts import Accounts
from grid_jupyter.network.registry import Registered
from grid_jupyter.network.search import NodeLink, union
from grid_jupyter.network.service import GridNetwork
from grid_jupyter.server.accounts import NETWORK_ACCOUNT_RULES
from grid_jupyter.server.door import Door, application
from grid_jupyter.server.gauge_doors import GAUGE_RULES
from grid_jupyter.server.gauges import Gauges
from grid_jupyter.wire.limits import MAX_NAME_CHARS, MAX_TAG_CHARS, MAX_TAGS
from grid_jupyter.wire.network import MAX_LINK_BYTES, FromNetwork, decode, encode, from_node_decoder

MAX_UNSENT_BYTES = 8 << 20
"""What may wait to be sent to one Node, in bytes; one that does not read is cut off."""

_Tag = Annotated[str, msgspec.Meta(max_length=MAX_TAG_CHARS)]


class _Join(msgspec.Struct, rename="kebab"):
    node_id: str
    node_address: str
    invite: str | None = None
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None


class _Leave(msgspec.Struct, rename="kebab"):
    node_id: str


class _Query(msgspec.Struct):
    query: Annotated[list[_Tag], msgspec.Meta(max_length=MAX_TAGS)]


class _ModelQuery(msgspec.Struct):
    model_id: Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]


class NetworkDoor(Door):
    """Base of the Network's routes."""

    @property
    def network(self) -> GridNetwork:
        network: GridNetwork = self.settings["network"]
        return network


# ------------------------------------------------------------------ open to anyone


class Card(NetworkDoor):
    """GET /: a card for people."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        names = [html.escape(node.name) for node in await self.network.alive()]
        listed = "".join(f"<li>{name}</li>" for name in names) or "<li>no Node is connected</li>"
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.finish(
            "<!doctype html><html lang=en><meta charset=utf-8><title>Open Grid Network</title>"
            "<style>body{font:16px system-ui;margin:4rem auto;max-width:32rem}</style>"
            f"<h1>Open Grid Network</h1><p>{html.escape(self.network.name)}: Nodes that are connected</p>"
            f"<ul>{listed}</ul></html>"
        )


class Identity(NetworkDoor):
    """GET: the Network's name."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        self.reply({"success": True, "identity": self.network.name})


class Status(NetworkDoor):
    """GET: it runs."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        self.reply({"success": True, "status": "OpenGrid"})


class ConnectedNodes(NetworkDoor):
    """GET: names of the Nodes that live, in order of joining."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        self.reply({"grid-nodes": [node.name for node in await self.network.alive()]})


class AvailableTags(NetworkDoor):
    """GET: tags; without a credential those that their owners made public."""

    open_to_all = frozenset({"GET"})

    async def get(self) -> None:
        public = await self.account() is None
        self.reply(await self.network.tags(public=public))


# ------------------------------------------------------------------ membership


class Join(NetworkDoor):
    """POST: a Node joins, by invite (in the body) or by the credential that it got at its first join."""

    open_to_all = frozenset({"POST"})
    error_key = "message"

    async def post(self) -> None:
        body = self.body(_Join)
        token = await self.network.join(
            body.node_id,
            body.node_address,
            caller=await self.account(),
            invite=body.invite,
            origin=self.origin,
            node_id=body.id,
        )
        answer = {"message": "Successfully Connected!"}
        self.reply(answer if token is None else {**answer, "token": token})


class DeleteNode(NetworkDoor):
    """DELETE: strike a Node off."""

    error_key = "message"

    async def delete(self) -> None:
        caller = await self.require()
        await self.network.forget(self.body(_Leave).node_id, caller)
        self.reply({"message": "Successfully Deleted!"})


class Link(NetworkDoor, WebSocketHandler):
    """GET, upgraded: the link of a Node that joined. wire/network.py says what goes over it."""

    max_message_size = MAX_LINK_BYTES
    _node: Registered
    _link: NodeLink | None = None
    _timer: asyncio.TimerHandle | None = None

    async def prepare(self) -> None:
        if "Origin" in self.request.headers:
            raise Forbidden("a link is for Nodes, not for browsers")
        await super().prepare()
        self._node = await self.network.member(await self.require())

    async def open(self, *_args: str, **_kwargs: str) -> None:
        stream = None if self.ws_connection is None else self.ws_connection.stream
        if stream is not None:
            stream.max_write_buffer_size = MAX_UNSENT_BYTES
        self.set_nodelay(True)
        self._link = await self.network.open_link(self._node, send=self._send, close=self._end)
        self._watch(self._link)

    async def on_message(self, message: str | bytes) -> None:
        if self._link is None:
            return
        try:
            await self.network.received(self._link, decode(message, from_node_decoder))
        except GridError as error:
            self._end(str(error), code=1002)

    def on_close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._link is not None:
            self.network.close_link(self._link)

    def _watch(self, link: NodeLink) -> None:
        if self.network.is_silent(link):
            self._end("no heartbeat came")
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.network.heartbeat_s, self._watch, link)

    def _send(self, message: FromNetwork) -> None:
        try:
            sent = self.write_message(encode(message))
        except WebSocketClosedError:
            raise NodeUnavailableError(f"the Node {self._node.name} is gone") from None
        except StreamBufferFullError:
            self._end("the Node does not read")
            raise NodeUnavailableError(f"the Node {self._node.name} does not read") from None
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())  # on_close knows of it, too

    def _end(self, reason: str, code: int = 1000) -> None:
        self.close(code, reason.encode()[:120].decode(errors="ignore"))  # the protocol's limit is 123 bytes


# ------------------------------------------------------------------ search


class Search(NetworkDoor):
    """POST: Nodes with a data set that carries all the tags. Open to guests where the Network's owner allows it."""

    def is_open(self) -> bool:
        return bool(self.settings["allow_guests"])

    async def post(self) -> None:
        public = await self.account() is None
        self.reply(await self.network.search(tuple(self.body(_Query).query), public=public))


class AvailableModels(NetworkDoor):
    """GET: ids of all hosted models."""

    async def get(self) -> None:
        answers = await self.network.models()
        self.reply(union([model.id for model in answer.models] for answer in answers.values()))


class SearchModel(NetworkDoor):
    """POST: Nodes that host a model."""

    async def post(self) -> None:
        self.reply(await self.network.model_hosts(self.body(_ModelQuery).model_id))


class SearchEncryptedModel(NetworkDoor):
    """POST: Nodes that host a model in shares, and who holds the shares."""

    async def post(self) -> None:
        hosts = await self.network.encrypted_hosts(self.body(_ModelQuery).model_id)
        self.reply(
            {
                name: {
                    "address": address,
                    "nodes": {"workers": model.workers, "crypto_provider": model.crypto_provider or []},
                }
                for name, (address, model) in hosts.items()
            }
        )


class ChooseModelHost(NetworkDoor):
    """GET: where to host a model."""

    async def get(self) -> None:
        self.reply(await self.network.choose_hosts(self.get_query_argument("model_id", "")))


class ChooseEncryptedModelHost(NetworkDoor):
    """GET: where to host a model in shares."""

    async def get(self) -> None:
        self.reply(await self.network.choose_encrypted_hosts())


class NodeInfo(NetworkDoor):
    """GET: how one Node is."""

    async def get(self, name: str) -> None:
        report = await self.network.report(name)
        beat = report.heartbeat
        self.reply(
            {
                "id": report.node.name,
                "status": report.status,
                "address": report.node.address,
                "nodes": [],  # no Node keeps connections to others, it makes one for each value that moves
                "datasets": report.datasets.datasets if report.datasets else [],
                "models": [model.id for model in report.models.models] if report.models else [],
                "cpu": beat.cpu if beat else None,
                "memory": beat.memory if beat else None,
            }
        )


class Datasets(NetworkDoor):
    """GET: the data sets of each Node, ids with tags."""

    async def get(self) -> None:
        self.reply({name: answer.datasets for name, answer in (await self.network.datasets()).items()})


class Models(NetworkDoor):
    """GET: the models of each Node."""

    async def get(self) -> None:
        answers = await self.network.models()
        self.reply({name: [model.id for model in answer.models] for name, answer in answers.items()})


NETWORK_RULES: list[tuple[str, type[Door]]] = [
    (r"/", Card),
    (r"/identity/?", Identity),
    (r"/status/?", Status),
    (r"/connected-nodes/?", ConnectedNodes),
    (r"/search-available-tags/?", AvailableTags),
    (r"/join/?", Join),
    (r"/delete-node/?", DeleteNode),
    (r"/link", Link),
    (r"/search/?", Search),
    (r"/search-available-models/?", AvailableModels),
    (r"/search-model/?", SearchModel),
    (r"/search-encrypted-model/?", SearchEncryptedModel),
    (r"/choose-model-host/?", ChooseModelHost),
    (r"/choose-encrypted-model-host/?", ChooseEncryptedModelHost),
    (r"/node/([^/]+)/?", NodeInfo),
    (r"/datasets/?", Datasets),
    (r"/models/?", Models),
    *NETWORK_ACCOUNT_RULES,
]


def network_application(
    network: GridNetwork, accounts: Accounts, *, allow_guests: bool, gauges: Gauges | None = None
) -> Application:
    """All public routes of a Network."""
    rules = NETWORK_RULES if gauges is None else [*NETWORK_RULES, *GAUGE_RULES]
    return application(rules, accounts, network=network, allow_guests=allow_guests, gauges=gauges, door="public")
