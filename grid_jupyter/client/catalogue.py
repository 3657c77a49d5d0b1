"""What the Nodes of a Network have for one user, as a list to look through: no sessions, no pointers, no torch.

`PublicGridNetwork.search` finds the same, as pointers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grid_jupyter.client.credentials import Credentials
from grid_jupyter.errors import GridError
from grid_jupyter.link.http import Address, call
from grid_jupyter.wire.messages import DatasetInfo
from grid_jupyter.wire.owner import NetworkView, NodeOffers, Offer

AT_ONCE = 16
"""Nodes that are asked at the same time."""
ANSWER_S = 10.0
"""How long a Node or Network may take for its answer, in seconds."""
TEXT_CHARS = 400
"""Characters of a description that are shown."""
PARTS = 12
"""Columns, or tensors, that are shown."""


def network_view(network: str, credentials: Credentials) -> NetworkView:
    """Who is there, and which tags are public. Waits: off the event loop."""
    try:
        address = Address(network, timeout_s=ANSWER_S)
        users = tuple(credentials.users(address.url))
        nodes: Any = call(address, "GET", "/connected-nodes")["grid-nodes"]
        tags: list[str] = call(address, "GET", "/search-available-tags", kind=list[str])
    except (GridError, KeyError, TypeError) as error:
        return NetworkView(address=network, error=_said(error))
    return NetworkView(address=network, users=users, nodes=tuple(map(str, nodes)), tags=tuple(tags))


def search(network: str, user: str, tags: Sequence[str], credentials: Credentials) -> tuple[NodeOffers, ...]:
    """The data sets with all of these tags, by Node; all there are without tags. A Node that does not answer says why.

    Waits: off the event loop. Raises NotAuthenticatedError, NodeUnavailableError where the Network does not answer.
    """
    address = Address(network, timeout_s=ANSWER_S)
    token = _token(credentials, address.url, user)
    hosts: list[tuple[str, str]] = call(
        address, "POST", "/search", {"query": list(tags)}, token=token, kind=list[tuple[str, str]]
    )

    def ask(host: tuple[str, str]) -> NodeOffers:
        return _ask(*host, user, frozenset(tags), credentials)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(pool.map(ask, hosts))


def _ask(name: str, where: str, user: str, tags: frozenset[str], credentials: Credentials) -> NodeOffers:
    try:
        address = Address(where, timeout_s=ANSWER_S)
        token = _token(credentials, address.url, user)
        found: list[DatasetInfo] = call(address, "GET", "/data-centric/datasets", token=token, kind=list[DatasetInfo])
    except GridError as error:
        return NodeOffers(name=name, address=where, user="", error=_said(error))
    offers = tuple(_offer(one) for one in found if tags <= set(one.tags))
    return NodeOffers(name=name, address=address.url, user=user if token else "", offers=offers)


def _offer(info: DatasetInfo) -> Offer:
    if info.kind == "table":
        shapes = {tensor.name: tensor.shape for tensor in info.tensors}
        parts = [(column.name, column.dtype, shapes.get(f"col/{at}", ())) for at, column in enumerate(info.columns)]
    else:
        parts = [(tensor.name, tensor.dtype, tensor.shape) for tensor in info.tensors]
    return Offer(
        id=info.id,
        kind=info.kind,
        name=info.name,
        tags=info.tags,
        description=info.description[:TEXT_CHARS],
        owner=info.owner,
        count=len(parts),
        parts=tuple(parts[:PARTS]),
        mock=info.mock,
        jobs=info.jobs.jobs,
    )


def _token(credentials: Credentials, address: str, user: str) -> str:
    """The user's credential for this address, where there is one; else they are a guest."""
    return credentials.get(address, user) if user and user in credentials.users(address) else ""


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, GridError) else "it answers otherwise than a Network does; is it one?"
