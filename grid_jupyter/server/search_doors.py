"""`<base_url>/grid/api/network`: what the Nodes of a Network have to offer to whoever uses this notebook server."""

from __future__ import annotations

import asyncio

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from grid_jupyter.client.catalogue import network_view, search
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.errors import NotFound
from grid_jupyter.server.panel_doors import PanelDoor
from grid_jupyter.wire.owner import NetworkSearch, NetworkView


class NetworkDoor(PanelDoor):
    """Base of what is asked of a Network."""

    async def network(self, named: str) -> str:
        """The Network that was named, or that the Node joined or is to join; empty if there is none."""
        if named:
            return named
        node = (await self.extension.status())["node"] or {}
        return str(node.get("network", {}).get("address") or self.extension.network_url)


class PanelNetwork(NetworkDoor):
    """GET <base_url>/grid/api/network?network=: who is there, which tags are public, as whom one can search."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        network = await self.network(self.get_query_argument("network", ""))
        found = await asyncio.to_thread(network_view, network, Credentials()) if network else NetworkView(address="")
        self.tell(found)


class PanelSearch(NetworkDoor):
    """POST <base_url>/grid/api/network/search: data sets by tags, Node by Node."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        asked = self.body(NetworkSearch)
        network = await self.network(asked.network)
        if not network:
            raise NotFound("no Network is joined here, and none was named")
        self.tell({"nodes": await asyncio.to_thread(search, network, asked.user, asked.tags, Credentials())})


SEARCH_RULES: list[tuple[str, type[JupyterHandler]]] = [
    (r"grid/api/network", PanelNetwork),
    (r"grid/api/network/search", PanelSearch),
]
