"""The grid of this machine, wherever its ports ended up: `grid_jupyter.local()`. Knows no torch."""

from __future__ import annotations

from typing import Annotated

import msgspec

from grid_jupyter.errors import NodeUnavailableError
from grid_jupyter.wire.home import data_home


class LocalGrid(msgspec.Struct, frozen=True):
    """Addresses of the Network and the Nodes that `jupyter grid up` or `make lab` started here."""

    network: str
    nodes: Annotated[dict[str, str], msgspec.Meta(max_length=10_000)]


def local() -> LocalGrid:
    """The grid that this user started on this machine.

    Raises NodeUnavailableError if none was started.
    """
    path = data_home() / "local.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=LocalGrid)
    except FileNotFoundError:
        raise NodeUnavailableError(
            "no grid of yours runs on this machine; start one with 'make lab' or 'jupyter grid up'"
        ) from None
    except msgspec.DecodeError:
        raise NodeUnavailableError(f"{path} is damaged; 'jupyter grid up' writes it anew") from None
