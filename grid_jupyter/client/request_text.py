"""A request as a person reads it, before a decision: every text of others on one line, without control characters."""

from __future__ import annotations

import base64
import html
import json
import time
from collections.abc import Iterator
from typing import Any

from grid_jupyter.tensors.text import plain
from grid_jupyter.wire.requests import RequestInfo

_OPEN = ("waiting", "question")


def lines(info: RequestInfo) -> Iterator[str]:
    """All that is known of a request, line by line."""
    if not info.id:
        yield "no request was needed: .get() fetches the value"
        return
    yield f"Request {info.id}: {plain(info.asker)} asks for a {plain(info.kind)}; {plain(info.state)}"
    yield f"  why: {plain(info.reason, 1000) or '(no reason)'}"
    for part in info.data:
        yield f"  rests on data set {part.dataset} version {part.version} of {plain(part.owner)}"
    for one in info.decisions:
        by = f" by {plain(one.by)}" if one.by and one.by != one.owner else ""
        yield f"  {plain(one.owner)}: {plain(one.state)}{by}"
    for remark in info.dialogue:
        if remark.text:
            yield f"  {plain(remark.by) or 'the Node'}, {plain(remark.what)}: {plain(remark.text, 1000)}"
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.expires))
    if info.state in (*_OPEN, "approved"):
        yield f"  until {until}"
    yield from _shown(info.shown)


def markup(info: RequestInfo) -> str:
    """The same as HTML, with the graph of a plan as a picture, in which no script runs."""
    text = f"<pre>{html.escape(chr(10).join(lines(info)))}</pre>"
    graph = info.shown.get("graph")
    if not isinstance(graph, str) or not graph:
        return text
    data = base64.b64encode(graph.encode()).decode()
    return f'{text}<img alt="the graph of the plan" src="data:image/svg+xml;base64,{data}">'


def _shown(shown: dict[str, Any]) -> Iterator[str]:
    value = shown.get("value")
    if isinstance(value, dict):
        if "error" in value:
            yield f"  there is no value: {plain(str(value['error']), 400)}"
        else:
            yield f"  value: {plain(str(value.get('dtype')))} {plain(str(value.get('shape')))}"
        for bound in _list(shown.get("rows")):
            dataset, most, total = (plain(str(bound.get(key)), 200) for key in ("dataset", "at_most", "of"))
            yield f"  rests on at most {most} of {total} rows of {dataset}"
        yield f"  computed as {plain(str(shown.get('result', '')))}:"
        for line in _list(shown.get("computed")):
            yield f"    {plain(str(line), 500)}"
        if shown.get("left_out"):
            yield f"    and {plain(str(shown['left_out']))} steps before that are not shown"
        if shown.get("cut"):
            yield "    what the session did before is no longer known: the log of its commands was cut"
        return
    for key, item in shown.items():
        if key == "graph":  # a picture
            continue
        text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
        first, *rest = text.split("\n")
        yield f"  {plain(str(key))}: {plain(first, 500)}"
        yield from (f"    {plain(line, 500)}" for line in rest)


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []
