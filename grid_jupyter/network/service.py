"""The Network itself: membership, presence and search, over its registry, its accounts and the open links."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from grid_jupyter.errors import Conflict, Forbidden, NotFound
from grid_jupyter.identity import roles
from grid_jupyter.identity.accounts import Account, Accounts
from grid_jupyter.identity.tokens import invite_code
from grid_jupyter.network import liveness
from grid_jupyter.network.liveness import Beat, Closed, Opened, Presence
from grid_jupyter.network.registry import (
    UNKNOWN,
    Admission,
    Registered,
    Registry,
    admit,
    check_address,
    check_node,
    may_forget,
    new_account_name,
)
from grid_jupyter.network.search import NodeLink, ask_all, holders, hosts_of, union
from grid_jupyter.wire.network import (
    Datasets,
    FindDatasets,
    FindNode,
    FoundNode,
    FromNetwork,
    FromNode,
    Heartbeat,
    HostedModel,
    ListModels,
    ListTags,
    Models,
    Question,
    Seen,
    Tags,
    Welcome,
)

log = logging.getLogger("grid_jupyter")

SMPC_HOST_CHUNK = 4
"""Nodes that one shared model takes: two for its shares, one that deals randomness, one host."""
PROMPT_S = 0.1
"""A Node that answers within this is online, a slower one busy (0.2.9's rule)."""


@dataclass(frozen=True)
class NodeReport:
    """What is known of one Node, for /node/<id>."""

    node: Registered
    status: str  # online, busy, offline
    heartbeat: Heartbeat | None
    datasets: Datasets | None
    models: Models | None


class GridNetwork:
    """One Network. All methods belong to one event loop."""

    def __init__(
        self,
        name: str,
        *,
        registry: Registry,
        accounts: Accounts,
        heartbeat_s: float = 5.0,
        replicas: int = 1,
    ) -> None:
        self.name = name
        self.heartbeat_s = heartbeat_s
        self._registry = registry
        self._accounts = accounts
        self._replicas = replicas
        self._presence: dict[str, Presence] = {}
        self._links: dict[str, NodeLink] = {}
        self._heartbeats: dict[str, Heartbeat] = {}
        self._numbers = itertools.count(1)

    # ------------------------------------------------------------------ membership

    async def join(
        self,
        name: str,
        address: str,
        *,
        caller: Account | None,
        invite: str | None,
        origin: str,
        node_id: str | None = None,
    ) -> str | None:
        """Let a Node in under this name, at this address. Returns its credential, None if it came with that.

        Raises Conflict for a taken name, NotAuthenticatedError, Forbidden, BadRequest.
        """
        check_node(name, address)
        code = (invite_code(invite) or "") if invite is not None else None
        known = await self._registry.find(name=name)
        reserved_for = None if code is None else await self._registry.reserved_for(code)
        admission = admit(name, known, caller, invited=code is not None, reserved_for=reserved_for)
        if admission is Admission.RETURN:
            await self._registry.seen(name, time.time(), address=address)
            return None
        account, token = await self._accounts.accept_invite(code or "", new_account_name(name), None, origin)
        try:
            if account.role != roles.NODE:
                raise Forbidden("this invite is for a person; ask the Network's owner for one with the role Node")
            if known is None:
                await self._registry.add(name, address, account.id, time.time(), node_id=node_id)
            else:
                ended = await self._registry.readmit(known, address, account.id, time.time())
                await self._accounts.revoke_tokens(ended)
        except (Forbidden, Conflict):
            await self._accounts.revoke_tokens(account.username)
            raise
        await self._registry.spent(code or "")
        log.info("the Node %s joined", name)
        return token

    async def invite_node(self, name: str | None, expires_s: float) -> tuple[str, float]:
        """An invite for one Node, and when it ends (UTC seconds).

        With a name it is good for that one only: also for a Node that is known and lost its credential,
        whose old one ends when the invite is used.
        """
        code, expires = await self._accounts.invite(roles.NODE, expires_s)
        if name is not None:
            await self._registry.reserve(code, name)
        return code, expires

    async def forget(self, name: str, caller: Account) -> None:
        """Strike a Node off; its link is closed. Raises Forbidden, Conflict if there is none of this name."""
        known = await self._registry.find(name=name)
        if not may_forget(known, caller):
            raise Forbidden("only the Node itself, or who runs this Network, may strike it off")
        if known is None:
            raise Conflict(UNKNOWN)
        await self._accounts.revoke_tokens(await self._registry.remove(known))
        link = self._links.get(name)
        if link is not None:
            link.close("the Node was struck off")
        log.info("the Node %s was struck off by %s", name, caller.username)

    async def member(self, account: Account) -> Registered:
        """The Node whose credential this is. Raises Forbidden for everybody else."""
        known = await self._registry.find(account_id=account.id)
        if known is None:
            raise Forbidden("only a Node that joined opens a link: POST /join first")
        return known

    # ------------------------------------------------------------------ links

    async def open_link(
        self, node: Registered, *, send: Callable[[FromNetwork], None], close: Callable[[str], None]
    ) -> NodeLink:
        """Take up the link of a Node; an older one is closed, for there is one process of a Node."""
        link = NodeLink(next(self._numbers), node.name, now=time.monotonic(), send=send, close=close)
        older = self._links.get(node.name)
        self._links[node.name] = link
        self._happened(node.name, Opened(link.number))
        if older is not None:
            older.close("the Node opened another link")
        link.send(Welcome(network=self.name, heartbeat_s=self.heartbeat_s))
        await self._registry.seen(node.name, time.time())
        return link

    async def received(self, link: NodeLink, message: FromNode) -> None:
        """Take in what came over a link. Raises BadRequest for a heartbeat with an unfit address,
        NodeUnavailableError where the link ends meanwhile."""
        link.last_message = time.monotonic()
        if isinstance(message, FindNode):
            alive = {node.name: node.address for node in await self.alive()}
            link.send(FoundNode(id=message.id, address=alive.get(message.name)))
            return
        if not isinstance(message, Heartbeat):
            link.answered(message)
            return
        check_address(message.address)
        before = self._heartbeats.get(link.name)
        self._happened(link.name, Beat(link.number))
        if self._links.get(link.name) is not link:
            return
        link.send(Seen())
        self._heartbeats[link.name] = message
        if before is None or before.address != message.address:
            await self._registry.seen(link.name, time.time(), address=message.address)

    def close_link(self, link: NodeLink) -> None:
        """A link has ended."""
        link.ended()
        self._happened(link.name, Closed(link.number))
        if self._links.get(link.name) is link:
            del self._links[link.name]
            self._heartbeats.pop(link.name, None)

    def is_silent(self, link: NodeLink) -> bool:
        """Whether nothing came over this link for so long that it counts as dead."""
        return liveness.is_silent(link.last_message, time.monotonic(), self.heartbeat_s)

    def close(self) -> None:
        """Close all links: the Network ends."""
        for link in list(self._links.values()):
            link.close("the Network ends")

    def _happened(self, name: str, event: liveness.Event) -> None:
        self._presence[name] = liveness.advance(self._presence.get(name, Presence()), event, time.monotonic())

    # ------------------------------------------------------------------ who is there

    async def alive(self) -> tuple[Registered, ...]:
        """The Nodes that live, in order of joining."""
        return tuple(node for node in await self._registry.all() if self._is_alive(node.name))

    def _is_alive(self, name: str) -> bool:
        return liveness.is_alive(self._presence.get(name, Presence()), time.monotonic(), self.heartbeat_s)

    async def report(self, name: str) -> NodeReport:
        """What is known of one Node. Raises NotFound."""
        node = await self._registry.find(name=name)
        if node is None:
            raise NotFound(UNKNOWN)
        link = self._links.get(name)
        if link is None or not self._is_alive(name):
            return NodeReport(node=node, status="offline", heartbeat=None, datasets=None, models=None)
        began = time.monotonic()
        datasets = (await ask_all([link], _all_datasets, Datasets)).get(name)
        status = "online" if datasets is not None and time.monotonic() - began < PROMPT_S else "busy"
        models = (await ask_all([link], _list_models, Models)).get(name)
        return NodeReport(
            node=node, status=status, heartbeat=self._heartbeats.get(name), datasets=datasets, models=models
        )

    # ------------------------------------------------------------------ search

    async def search(self, query: tuple[str, ...], *, public: bool) -> list[tuple[str, str]]:
        """Name and address of the Nodes with a data set that carries all of these tags."""
        nodes, links = await self._reachable()
        answers = await ask_all(links, lambda number: FindDatasets(id=number, query=query, public=public), Datasets)
        found = set(holders(answers, query))
        return [(node.name, node.address) for node in nodes if node.name in found]

    async def tags(self, *, public: bool) -> list[str]:
        """All tags in use on the Nodes."""
        _, links = await self._reachable()
        answers = await ask_all(links, lambda number: ListTags(id=number, public=public), Tags)
        return union(answer.tags for answer in answers.values())

    async def datasets(self) -> dict[str, Datasets]:
        """The data sets of each Node."""
        _, links = await self._reachable()
        return await ask_all(links, _all_datasets, Datasets)

    async def models(self) -> dict[str, Models]:
        """The models of each Node."""
        _, links = await self._reachable()
        return await ask_all(links, _list_models, Models)

    async def model_hosts(self, model_id: str) -> list[tuple[str, str]]:
        """Name and address of the Nodes that host this model."""
        nodes, _ = await self._reachable()
        hosts = hosts_of(await self.models(), model_id)
        return [(node.name, node.address) for node in nodes if node.name in hosts]

    async def encrypted_hosts(self, model_id: str) -> dict[str, tuple[str, HostedModel]]:
        """Address of each Node that hosts this model in shares, with who holds them."""
        nodes, _ = await self._reachable()
        hosts = hosts_of(await self.models(), model_id, mpc=True)
        return {node.name: (node.address, hosts[node.name]) for node in nodes if node.name in hosts}

    async def choose_hosts(self, model_id: str) -> list[tuple[str, str]]:
        """Where to host a model: those that host this id already, or else some at random."""
        hosts = await self.model_hosts(model_id) if model_id else []
        if hosts:
            return hosts
        nodes = await self.alive()
        return _some(nodes, min(self._replicas, len(nodes)))

    async def choose_encrypted_hosts(self) -> list[tuple[str, str]]:
        """Where to host a model in shares; none at all if there are too few Nodes."""
        nodes, wanted = await self.alive(), self._replicas * SMPC_HOST_CHUNK
        return _some(nodes, wanted) if len(nodes) >= wanted else []

    async def _reachable(self) -> tuple[tuple[Registered, ...], list[NodeLink]]:
        nodes = await self.alive()
        return nodes, [self._links[node.name] for node in nodes if node.name in self._links]


def _some(nodes: tuple[Registered, ...], count: int) -> list[tuple[str, str]]:
    return [(node.name, node.address) for node in random.sample(nodes, count)]


def _all_datasets(number: int) -> Question:
    return FindDatasets(id=number, public=False)


def _list_models(number: int) -> Question:
    return ListModels(id=number)
