"""Searching a grid in a notebook: by tags, with results by Node, and what opens them in Python."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from grid_jupyter.client.grid import PublicGridNetwork
from grid_jupyter.client.local import local
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.pointers import RemoteArrays
from grid_jupyter.client.texts import block, line, name
from grid_jupyter.errors import BadRequest, GridError, NodeUnavailableError, ObjectNotFoundError
from grid_jupyter.widgets.view import Action, Text, View, script, style
from grid_jupyter.wire.messages import DatasetInfo

SHOWN = 200
"""Data sets that are shown; another tag makes them fewer."""
PARTS = 12
TAGS = 500

_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Search(Action, frozen=True, tag="search"):
    """Find what carries all of these tags; everything there is without tags."""

    tags: Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)]


class Take(Action, frozen=True, tag="take"):
    """Make one of what was found the `pointer` of the view."""

    node: Text
    dataset: _Number


class Browse(View):
    """`widgets.browse()`. `found` is what the last search gave, `pointer` what was taken of it."""

    _esm = script("browse")
    _css = style()
    look_s = 5.0

    def __init__(self, grid: Any = None) -> None:
        self._own = grid is None
        self.grid = PublicGridNetwork(None, local().network) if grid is None else grid
        if not isinstance(self.grid, (PublicGridNetwork, NodeClient)):
            raise BadRequest("widgets.browse() takes a PublicGridNetwork, or a Node's client")
        self.found: dict[str, list[Any]] = {}
        self.pointer: Any = None
        self._query: tuple[str, ...] | None = None
        super().__init__()

    def look(self) -> dict[str, Any]:
        """Who is there, which tags are public, and what was found last."""
        grid = self.grid
        nodes = [grid.id] if isinstance(grid, NodeClient) else grid.nodes()
        tags = _tags(grid) if isinstance(grid, NodeClient) else grid.tags()
        if self._query is None:
            self._find(())
        results = [(node, pointer) for node, pointers in self.found.items() for pointer in pointers]
        return {
            "node": line(grid.address.url),
            "nodes": [name(one) for one in nodes[:SHOWN]],
            "tags": [tag for tag in tags[:TAGS] if name(tag) == tag],
            "query": [name(tag) for tag in self._query or ()],
            "found": [self._told(node, pointer) for node, pointer in results[:SHOWN]],
            "more": max(0, len(results) - SHOWN),
        }

    def remedy(self, error: GridError) -> str:
        """How a Network that does not answer is started."""
        if not isinstance(error, NodeUnavailableError):
            return ""
        return "'make lab' or 'jupyter grid up' starts one here. This view goes on by itself when it answers."

    def _told(self, node: str, pointer: Any) -> dict[str, Any]:
        info = info_of(pointer)
        at = pointer.location
        columns = [(one.name, one.dtype) for one in info.columns]
        parts = columns or [(one.name, f"{one.dtype} {' × '.join(map(str, one.shape))}") for one in info.tensors]
        shape = " × ".join(f"{length:,}" for length in getattr(pointer, "shape", ()))
        user = f", user={at.caller.user!r}" if at.caller.user else ""
        return {
            "node": name(node),
            "id": info.id,
            "name": name(info.name),
            "kind": name(info.kind),
            "shape": shape,
            "tags": [name(tag) for tag in info.tags],
            "description": block(info.description),
            "owner": name(info.owner),
            "parts": [[name(one) for one in part] for part in parts[:PARTS]],
            "count": len(parts),
            "mock": info.mock,
            "jobs": info.jobs.jobs,
            "code": f"import grid_jupyter as sy\n\nnode = sy.NodeClient({at.address.url!r}{user})\n"
            f"pointer = node.pointer({info.id})"
            + ("\n# train on it: node.submit(model, loss=…, data={'x': pointer, 'y': …})" if info.jobs.jobs else ""),
        }

    # -------------------------------------------------------------- what its buttons do

    def _find(self, tags: tuple[str, ...]) -> None:
        grid = self.grid
        self.found = {grid.id: grid.search(*tags)} if isinstance(grid, NodeClient) else grid.search(*tags)
        self._query = tags

    def _search(self, action: Search) -> str:
        self._find(action.tags)
        what = "node" if isinstance(self.grid, NodeClient) else "grid"
        return f"{what}.search({', '.join(map(repr, action.tags))})"

    def _take_one(self, action: Take) -> str:
        for node, pointers in self.found.items():
            for pointer in pointers:
                if name(node) == action.node and info_of(pointer).id == action.dataset:
                    self.pointer = pointer
                    return f"node.pointer({action.dataset})"
        raise ObjectNotFoundError("that is not among what was found; search again")

    does: ClassVar[Any] = {Search: _search, Take: _take_one}

    def close(self) -> None:
        """End the view; and the sessions, where it made them for itself and nothing of it was taken."""
        super().close()
        if self._made and self._own and self.pointer is None and not isinstance(self.grid, NodeClient):
            self.grid.close()


def _tags(node: NodeClient) -> list[str]:
    return sorted({tag for one in node.datasets() for tag in one.tags})


def info_of(pointer: Any) -> DatasetInfo:
    """What the Node says of the data set behind a pointer that a search gave."""
    found: DatasetInfo = pointer.dataset if isinstance(pointer, RemoteArrays) else pointer._ref.dataset
    return found
