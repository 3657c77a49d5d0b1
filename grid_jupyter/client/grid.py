"""A Network as a data scientist sees it: search all its Nodes at once. `PublicGridNetwork` is 0.2.9's name for it."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grid_jupyter.client.credentials import Credentials
from grid_jupyter.client.grid_jobs import Submits
from grid_jupyter.client.listings import FoundAt
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.training import Trains
from grid_jupyter.errors import BadRequest, GridError
from grid_jupyter.link.http import Address, call
from grid_jupyter.tensors.text import plain

log = logging.getLogger("grid_jupyter")
_AT_ONCE = 16


class PublicGridNetwork(Trains, Submits):
    """The Nodes of a Network: `PublicGridNetwork(hook, "http://localhost:5000").search("#x-ray")`."""

    def __init__(
        self,
        hook: Any = None,
        address: str = "",
        *,
        user: str | None = None,
        ca_file: str | Path | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """`user` presents that user's stored credentials, to the Network and to its Nodes. Without it the caller
        is a guest."""
        if isinstance(hook, str) and not address:
            hook, address = None, hook
        if not address:
            raise BadRequest("a client needs the address of its Network, such as http://localhost:5000")
        self.address = Address(address, ca_file)
        self.credentials = credentials or Credentials()
        self._ca_file = ca_file
        self._user = user
        self._clients: dict[str, NodeClient] = {}

    def accept_invite(self, invite: str, user: str, password: str | None = None) -> None:
        """Take up a one-time invite of the Network: get an account of that name there, and store its credential.

        Raises NotAuthenticatedError, IdNotUniqueError for a taken name.
        """
        body = {"invite": invite.rpartition("#")[2], "username": user}
        answer: Any = call(
            self.address, "POST", "/invites/accept", body if password is None else {**body, "password": password}
        )
        self.credentials.store(self.address.url, user, str(answer["token"]))
        self.login(user)

    def login(self, user: str) -> None:
        """Present this user's stored credentials from here on, to the Network and to its Nodes."""
        self.close()
        self._user = user

    def nodes(self) -> list[str]:
        """Names of the Nodes that are connected now."""
        return list(call(self.address, "GET", "/connected-nodes")["grid-nodes"])

    def tags(self) -> list[str]:
        """Tags in use, as far as their owners made them public."""
        return list(call(self.address, "GET", "/search-available-tags", token=self._token()))

    def search(self, *tags: str) -> dict[str, list[Any]]:
        """Pointers to the data sets that carry all of these tags, by the name of their Node.

        A Node that does not answer, or does not let this caller search, is left out; the log says which.
        Raises NodeUnavailableError if the Network does not answer, NotAuthenticatedError.
        """
        hosts: list[Any] = call(self.address, "POST", "/search", {"query": list(tags)}, token=self._token())
        found = FoundAt[Any]()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for (name, _), pointers in zip(hosts, pool.map(lambda host: self._ask(host, tags), hosts), strict=True):
                if pointers:
                    found[str(name)] = pointers
        return found

    def _ask(self, host: Any, tags: tuple[str, ...]) -> list[Any]:
        name, address = host
        try:
            return self._client(str(address)).search(*tags)
        except GridError as error:
            log.warning("Node %s is left out of the search: %s", plain(str(name)), error)
            return []

    def _client(self, address: str) -> NodeClient:
        client = self._clients.get(address)
        if client is None:
            client = NodeClient(
                None, address, user=self._user_at(address), ca_file=self._ca_file, credentials=self.credentials
            )
            self._clients[address] = client
        return client

    def _user_at(self, address: str) -> str | None:
        """The user, where there is a credential of theirs for this address; else a guest."""
        return self._user if self._user in self.credentials.users(address) else None

    def _token(self) -> str:
        return (
            self.credentials.get(self.address.url, self._user) if self._user_at(self.address.url) and self._user else ""
        )

    def close(self) -> None:
        """End the sessions on all Nodes."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
