"""The process of a Network: its doors are opened, the owner is served, and all of it ends when it is told to."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from typing import Any

from tornado.httpserver import HTTPServer

from grid_jupyter import __version__
from grid_jupyter.identity import roles
from grid_jupyter.identity.accounts import Accounts
from grid_jupyter.link.tls import tls_context
from grid_jupyter.network.registry import Registry
from grid_jupyter.network.service import GridNetwork
from grid_jupyter.server.door import http_server
from grid_jupyter.server.gauge_doors import OWNER_GAUGE_RULES
from grid_jupyter.server.gauges import Gauges
from grid_jupyter.server.network_door import network_application
from grid_jupyter.server.overview import NetworkOverview
from grid_jupyter.server.owner_door import open_unix_door, owner_application
from grid_jupyter.server.running import (
    NetworkOptions,
    Running,
    StateDir,
    address_of,
    allow_many_connections,
    listen,
    say_owner_token,
    say_ready,
    told_to_end,
    warn_if_exposed,
)
from grid_jupyter.store.accounts import AccountTable
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.settings import SettingTable


class NetworkOwner:
    """What the Network does for its owner (owner_door.OwnerService)."""

    def __init__(
        self, network: GridNetwork, accounts: Accounts, *, node_id: str, address: str, options: NetworkOptions
    ) -> None:
        self._network = network
        self._accounts = accounts
        self._id = node_id
        self._address = address
        self._options = options
        self._began = time.monotonic()

    async def status(self) -> dict[str, Any]:
        return {
            "role": "network",
            "name": self._network.name,
            "id": self._id,
            "address": self._address,
            "status": "running",
            "version": __version__,
            "network": {"address": None, "state": "none", "detail": ""},
            "isolation": "",
            "isolation_required": False,
            "sessions": 0,
            "datasets": 0,
            "storage_bytes": sum(
                file.stat().st_size for file in self._options.state_dir.glob("grid.db*") if file.is_file()
            ),
            "guests": self._options.allow_guests,
            "uptime_s": time.monotonic() - self._began,
            "nodes": [node.name for node in await self._network.alive()],
        }

    async def ensure_account(self, username: str, role: str) -> None:
        await self._accounts.ensure(username, role)

    async def issue_token(self, username: str, expires_s: float | None) -> str:
        return await self._accounts.issue_token(username, label="owner door", expires_s=expires_s)

    async def revoke_tokens(self, username: str) -> int:
        return await self._accounts.revoke_tokens(username)

    async def invite(self, role: str, expires_s: float, username: str | None) -> tuple[str, float]:
        if role == roles.NODE:
            code, expires = await self._network.invite_node(username, expires_s)
        else:
            code, expires = await self._accounts.invite(role, expires_s, username)
        return f"{self._address}/#{code}", expires


def run_network(options: NetworkOptions) -> int:
    """Run a Network until it is told to end; returns the process's exit code. Raises GridError."""
    allow_many_connections()
    with StateDir(options.state_dir, "network") as state:
        asyncio.run(_serve(options, state))
    return 0


async def _serve(options: NetworkOptions, state: StateDir) -> None:
    tls = tls_context(options.certfile, options.keyfile, options=("--certfile", "--keyfile"))
    database = Database(sqlite_url(state.path / "grid.db"))
    servers: list[HTTPServer] = []
    try:
        registry = Registry(database)
        node_id = await SettingTable(database).keep("network-id", secrets.token_hex(8))
        accounts = Accounts(AccountTable(database), node_id)
        owner_code = await accounts.first_start()
        network = GridNetwork(
            options.name,
            registry=registry,
            accounts=accounts,
            heartbeat_s=options.heartbeat_s,
            replicas=options.replicas,
        )
        overview = NetworkOverview(network, state.path)
        gauges = Gauges(overview, SettingTable(database))
        gauges.start()
        sockets = listen(options.host, options.port)
        address = address_of(sockets, options.host, tls=tls is not None, public_address=options.public_address)
        warn_if_exposed("Network", options.host, tls=tls is not None)
        async with told_to_end(supervised=options.supervised) as end:
            public = http_server(
                network_application(network, accounts, allow_guests=options.allow_guests, gauges=gauges), tls
            )
            public.add_sockets(sockets)
            owner = NetworkOwner(network, accounts, node_id=node_id, address=address, options=options)
            socket_path = state.socket_path()
            owner_doors = owner_application(owner, OWNER_GAUGE_RULES, overview=overview, gauges=gauges, door="owner")
            servers += [public, open_unix_door(owner_doors, socket_path)]
            running = Running(
                role="network",
                name=options.name,
                id=node_id,
                address=address,
                socket=str(socket_path),
                pid=os.getpid(),
            )
            state.announce(running)
            say_ready(running, supervised=options.supervised, json=options.json)
            if owner_code is not None:
                say_owner_token(owner_code, address, supervised=options.supervised, json=options.json)
            await end.wait()
            network.close()
            await gauges.stop()
    finally:
        for server in servers:
            server.stop()
        for server in servers:
            await server.close_all_connections()
        database.close()
