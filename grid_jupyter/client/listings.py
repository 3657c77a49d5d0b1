"""What searches, data sets, jobs and trainings look like in a notebook: lists and dictionaries that are also tables.

They are what they were, a list and a dict; only a notebook sees more of them, and everything that others wrote as text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.messages import DatasetInfo

T = TypeVar("T")
SHOWN = 100
"""Rows of a table; what is left is counted."""
NAME_CHARS = 80
TEXT_CHARS = 200

Row = tuple[str, ...]


class Datasets(list[T]):
    """Pointers that a search gave, or descriptions of data sets."""

    def _repr_html_(self) -> str:
        return table(_HEAD, (_of_dataset(one) for one in self), len(self), "data set")


class FoundAt(dict[str, list[T]]):
    """What the Nodes of a grid have, by their names."""

    def _repr_html_(self) -> str:
        rows = ((node, *_of_dataset(one)) for node, found in sorted(self.items()) for one in found)
        return table(("Node", *_HEAD), rows, sum(map(len, self.values())), "data set")


class JobList(list[T]):
    """Jobs of a Node."""

    def _repr_html_(self) -> str:
        return table(("Job", "State", "By", "Reason", "Progress"), map(_of_job, self), len(self), "job")


class Stands(dict[str, Any]):
    """How a model-centric training stands."""

    def _repr_html_(self) -> str:
        rows = ((str(key), str(value)) for key, value in self.items())
        return table(("Training", ""), rows, len(self), "entry")


def table(head: Row, rows: Iterable[Row], count: int, what: str) -> str:
    """A table of texts, none of which is read as HTML."""
    if not count:
        return f"<i>no {what}</i>"
    left = "style='text-align:left'"

    def line(cells: Row, kind: str) -> Iterator[str]:
        yield "<tr>"
        for cell in cells:
            yield f"<{kind} {left}><bdi>{html.escape(plain(cell, TEXT_CHARS))}</bdi></{kind}>"
        yield "</tr>"

    shown = [part for cells, _ in zip(rows, range(SHOWN), strict=False) for part in line(cells, "td")]
    more = f"<i>and {count - SHOWN} more</i>" if count > SHOWN else ""
    return f"<table>{''.join(line(head, 'th'))}{''.join(shown)}</table>{more}"


_HEAD = ("Data set", "Name", "Form", "Tags", "Description", "Owner")


def _of_dataset(one: Any) -> Row:
    info: Any = one if isinstance(one, DatasetInfo) else getattr(getattr(one, "_ref", one), "dataset", None)
    if not isinstance(info, DatasetInfo):
        return ("", "", repr(one), "", "", "")
    return (
        f"data set {info.id}",
        plain(info.name, NAME_CHARS),
        _form(info),
        " ".join(plain(tag, NAME_CHARS) for tag in info.tags),
        info.description,
        plain(info.owner, NAME_CHARS),
    )


def _form(info: DatasetInfo) -> str:
    if info.kind == "table":
        rows = next((one.shape[0] for one in info.tensors if one.name == "col/0" and one.shape), 0)
        return f"table {rows:,} × {len(info.columns)}"
    if info.kind == "tensor" and info.tensors:
        return f"{info.tensors[0].dtype} {' × '.join(f'{length:,}' for length in info.tensors[0].shape)}"
    return f"{len(info.tensors)} arrays"


def _of_job(job: Any) -> Row:
    info = job.info
    progress = "not released" if info.progress is None else f"{info.progress:.0%}"
    return info.id, info.state + (f": {info.said}" if info.said else ""), info.by, info.reason, progress
