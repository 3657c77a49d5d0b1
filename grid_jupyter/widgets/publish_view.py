"""Publishing in a notebook: a variable or a file is looked at by its owner, gets its rules, and is published.

A page names variables of this notebook alone; a file is one that the cell names. The preview goes to the page by
itself and is no part of what a view keeps: rows that are private are not saved with the notebook.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from grid_jupyter.client.previews import Preview, of_file, of_value, variables
from grid_jupyter.client.texts import block, name
from grid_jupyter.errors import BadRequest, InvalidDataError, ObjectNotFoundError
from grid_jupyter.link.http import call
from grid_jupyter.widgets.view import Action, NodeView, Text, script, style
from grid_jupyter.wire.messages import DatasetInfo, JobPolicy

SHOWN = 100
MAX_MOCK = 100_000

_Words = Annotated[tuple[Text, ...], msgspec.Meta(max_length=1_000)]


class Look(Action, frozen=True, tag="look"):
    """Show the form and the first rows of a variable, or of what the cell named."""

    variable: Text = ""


class Publication(Action, frozen=True, kw_only=True, tag="publish"):
    """Publish it. `computing` is None for everybody whom the Node lets in; `jobs` is as in `node.publish`."""

    variable: Text
    name: Text
    tags: _Words
    description: Text
    computing: _Words | None
    reading: _Words
    public_tags: bool
    jobs: Literal["ask", "denied", "automatic"]
    automatic: _Words
    mock: Annotated[int, msgspec.Meta(ge=0, le=MAX_MOCK)]


class Publish(NodeView):
    """`widgets.publish()`. Its button is `node.publish(…)`; `pointer` is what that gave last."""

    _esm = script("publish")
    _css = style()

    def __init__(self, data: Any = None, node: Any = None) -> None:
        self._data = data
        self.pointer: Any = None
        super().__init__(node)

    def look(self) -> dict[str, Any]:
        """What can be published, and what the caller has published here."""
        node = self.node
        listed: list[DatasetInfo] = call(
            node.address, "GET", "/data-centric/datasets", token=node.token_of(None), kind=list[DatasetInfo]
        )
        mine = [one for one in listed if one.owner == node.caller.user]
        return {
            "node": name(node.id),
            "given": "" if self._data is None else name(self._given()),
            "variables": [] if self._data is not None else variables(_namespace())._repr_json_(),
            "published": [_told(one) for one in mine[:SHOWN]],
            "more": max(0, len(mine) - SHOWN),
        }

    def _given(self) -> str:
        return repr(str(self._data)) if isinstance(self._data, (str, Path)) else "data"

    def _named(self, variable: str) -> Any:
        """What is meant. Raises ObjectNotFoundError for what is no variable that can be published."""
        if self._data is not None:
            return self._data
        namespace = _namespace()
        if variable not in {one["name"] for one in variables(namespace)._repr_json_()}:
            raise ObjectNotFoundError("this notebook has no such variable that can be published, or no longer")
        return namespace[variable]

    # -------------------------------------------------------------- what its buttons do

    def _look_at(self, action: Look) -> str:
        data = self._named(action.variable)
        try:
            preview = of_file(Path(data)) if isinstance(data, (str, Path)) else of_value(data)
        except OSError as error:
            raise InvalidDataError(f"{data} cannot be read ({error.strerror})") from None
        self.send({"preview": _shown(preview), "variable": action.variable})
        return ""

    def _publish(self, action: Publication) -> str:
        data = self._named(action.variable)
        said: dict[str, Any] = {"name": action.name, "tags": list(action.tags), "description": action.description}
        said |= {"allowed_users": list(action.reading), "public_tags": action.public_tags, "mock": action.mock or None}
        if action.computing is not None:
            said["compute_users"] = list(action.computing)
        python = {key: repr(value) for key, value in said.items() if value or key == "compute_users"}
        if action.jobs == "automatic":
            if not action.automatic:
                raise BadRequest("name whose jobs run without a decision of yours, or let every job ask")
            said["jobs"] = JobPolicy(automatic=action.automatic)
            python["jobs"] = f"sy.JobPolicy(automatic={list(action.automatic)!r})"
        elif action.jobs == "denied":
            said["jobs"] = "denied"
            python["jobs"] = "'denied'"
        try:
            self.pointer = self.node.publish(data, **said)
        except OSError as error:
            raise InvalidDataError(f"{data} cannot be read ({error.strerror})") from None
        what = self._given() if self._data is not None else action.variable
        return f"node.publish({', '.join([what, *(f'{key}={value}' for key, value in python.items())])})"

    does: ClassVar[Any] = {Look: _look_at, Publication: _publish}


def _namespace() -> Mapping[str, Any]:
    """The variables of this notebook, as they are now."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return {} if shell is None else dict(shell.user_ns)


def _told(info: DatasetInfo) -> dict[str, Any]:
    return {"id": info.id, "name": name(info.name), "tags": [name(tag) for tag in info.tags], "kind": name(info.kind)}


def _shown(preview: Preview) -> dict[str, Any]:
    return {
        "kind": preview.kind,
        "rows": preview.rows,
        "count": preview.count,
        "parts": [[name(one) for one in part] for part in preview.parts],
        "first": [[None if cell is None else block(cell) for cell in row] for row in preview.first],
    }
