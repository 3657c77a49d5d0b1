"""The Inbox in a notebook: what people ask of the data, all that is known of it, and the owner's decision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import msgspec

from grid_jupyter.client.requests import Request
from grid_jupyter.client.texts import block, changes, line, name, number
from grid_jupyter.errors import ObjectNotFoundError
from grid_jupyter.link.http import call
from grid_jupyter.widgets.view import Action, NodeView, Text, script, style
from grid_jupyter.wire.messages import DatasetInfo
from grid_jupyter.wire.requests import RequestInfo

SHOWN = 100
"""Requests that are shown; the others follow when these are decided."""
GRAPH_CHARS = 400_000
"""Of a picture of a plan that is shown."""

Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]


class Approve(Action, frozen=True, tag="approve"):
    """Let a request go; of a job, `review` asks again before its result goes."""

    request: Number
    review: bool = False


class Deny(Action, frozen=True, tag="deny"):
    """Refuse a request, with the reason that its asker reads."""

    request: Number
    text: Text


class Ask(Action, frozen=True, tag="ask"):
    """Ask the asker something before deciding."""

    request: Number
    text: Text


class Revoke(Action, frozen=True, tag="revoke"):
    """Take an approval back."""

    request: Number


class Compare(Action, frozen=True, tag="compare"):
    """Show what a plan has that the last one that was approved had not."""

    request: Number


class Inbox(NodeView):
    """`widgets.inbox()`. What it shows is what `node.requests()` and `node.approvals()` say."""

    _esm = script("inbox")
    _css = style()

    def __init__(self, node: Any = None) -> None:
        self._names: dict[int, str] = {}
        self._compared: dict[int, dict[str, str]] = {}
        super().__init__(node)

    def look(self) -> dict[str, Any]:
        """Open requests, and approvals that can still be taken back."""
        waiting, approved = self.node.requests(), self.node.approvals()
        self._learn_names(waiting[:SHOWN])
        open_now = {one.id for one in waiting}
        self._compared = {key: found for key, found in self._compared.items() if key in open_now}
        return {
            "node": name(self.node.id),
            "requests": [self._told(one._info) for one in waiting[:SHOWN]],
            "more": max(0, len(waiting) - SHOWN),
            "approved": [self._told(one._info) for one in approved[:SHOWN]],
        }

    def _learn_names(self, requests: Any) -> None:
        wanted = {part.dataset for one in requests for part in one._info.data}
        if wanted <= self._names.keys():
            return
        node = self.node
        listed: list[DatasetInfo] = call(
            node.address, "GET", "/data-centric/datasets", token=node.token_of(None), kind=list[DatasetInfo]
        )
        self._names = dict.fromkeys(wanted, "") | {one.id: one.name for one in listed}

    def _told(self, info: RequestInfo) -> dict[str, Any]:
        shown = info.shown
        graph, computed = shown.get("graph"), _list(shown.get("computed"))
        return {
            "id": info.id,
            "asker": name(info.asker),
            "kind": name(info.kind),
            "state": name(info.state),
            "reason": block(info.reason),
            "until": number(info.expires),
            "owners": ", ".join(dict.fromkeys(name(part.owner) for part in info.data)),
            "facts": list(_facts(info, self._names)),
            "plan": block(shown["plan"]) if isinstance(shown.get("plan"), str) else "",
            "operations": number(shown.get("operations")),
            "arguments": block(json.dumps(shown.get("arguments"), indent=1, ensure_ascii=False))
            if "arguments" in shown
            else "",
            "graph": graph if isinstance(graph, str) and len(graph) <= GRAPH_CHARS else "",
            "computed": "\n".join(map(line, [*computed, f"→ {shown.get('result', '')}"])) if computed else "",
            "compared": self._compared.get(info.id, {}),
            "warnings": list(_warnings(shown)),
            "dialogue": [
                {"by": _speaker(remark.by), "at": number(remark.at), "text": block(remark.text)}
                for remark in info.dialogue
                if remark.text
            ],
        }

    # -------------------------------------------------------------- what its buttons do

    def _request(self, number: int) -> Request:
        return self.node.request(number)

    def _approve(self, action: Approve) -> str:
        self._request(action.request).approve(review=action.review)
        return f"node.request({action.request}).approve({'review=True' if action.review else ''})"

    def _deny(self, action: Deny) -> str:
        self._request(action.request).deny(action.text)
        return f"node.request({action.request}).deny({action.text!r})"

    def _question(self, action: Ask) -> str:
        self._request(action.request).ask(action.text)
        return f"node.request({action.request}).ask({action.text!r})"

    def _revoke(self, action: Revoke) -> str:
        self._request(action.request).revoke()
        return f"node.request({action.request}).revoke()"

    def _compare(self, action: Compare) -> str:
        info = self._request(action.request).info
        if not isinstance(info.shown.get("plan"), str):
            raise ObjectNotFoundError(f"request {action.request} has no plan")
        before = _approved_before(
            info, [one._info for state in ("approved", "used") for one in self.node.requests(state)]
        )
        if before is None:
            text = f"No job of {name(info.asker)} on this data was approved before: all of it is new."
            self._compared[info.id] = {"text": text, "lines": ""}
        else:
            self._compared[info.id] = _difference(before, info)
        return "node.requests('approved'), node.requests('used')"

    does: ClassVar[Any] = {Approve: _approve, Deny: _deny, Ask: _question, Revoke: _revoke, Compare: _compare}


def _facts(info: RequestInfo, names: dict[int, str]) -> Iterator[tuple[str, str]]:
    """What an owner has to know, line by line."""
    shown = info.shown
    value = shown.get("value")
    data = (name(names.get(part.dataset) or f"data set {part.dataset} of {part.owner}") for part in info.data)
    yield "Data", ", ".join(dict.fromkeys(data))
    if isinstance(shown.get("released"), str):
        yield "Releases", line(shown["released"])
    if isinstance(value, dict):
        form = f"{value.get('dtype')}, {' × '.join(map(str, _list(value.get('shape')))) or 'one number'}"
        yield "Value", line(value.get("error", form))
    rows = shown.get("rows")
    for bound in _list(rows):
        if isinstance(bound, dict):
            yield (
                "Rests on",
                line(f"at most {bound.get('at_most')} of {bound.get('of')} rows of {bound.get('dataset')}"),
            )
    if isinstance(rows, int):
        yield "Rows", f"{rows:,}"
    for label, key in (("Steps", "steps"), ("Model", "model_bytes"), ("Starts from", "starting_weights")):
        if key in shown:
            told = shown[key]
            yield label, f"{told:,}{' bytes' if key == 'model_bytes' else ''}" if isinstance(told, int) else line(told)
    if isinstance(shown.get("result"), str) and not shown.get("computed"):
        yield "Result", line(shown["result"])
    if isinstance(shown.get("plan_sha256"), str):
        yield "SHA-256", line(shown["plan_sha256"])


def _warnings(shown: dict[str, Any]) -> Iterator[str]:
    if shown.get("whole_step") is True:
        yield 'The training step was written by hand. Such a step can copy rows into its "weights": read all its code.'
    if shown.get("left_out"):
        yield f"{line(shown['left_out'])} steps before those are not shown."
    if shown.get("cut") is True:
        yield "What the session did before is no longer known: the log of its commands was cut."


def _speaker(by: str) -> str:
    """The owner's door speaks under a name that no account can have: it begins with a blank."""
    return "The Node" if not by else "You" if by.startswith(" ") else name(by)


def _approved_before(info: RequestInfo, others: list[RequestInfo]) -> RequestInfo | None:
    """The newest job of the same asker on the same data sets."""
    data = sorted(part.dataset for part in info.data)
    alike = [
        one
        for one in others
        if one.id != info.id
        and one.kind == "job"
        and one.asker == info.asker
        and isinstance(one.shown.get("plan"), str)
        and sorted(part.dataset for part in one.data) == data
    ]
    return max(alike, key=lambda one: one.id, default=None)


def _difference(before: RequestInfo, now: RequestInfo) -> dict[str, str]:
    old, new = block(before.shown["plan"]).split("\n"), block(now.shown["plan"]).split("\n")
    lines = list(changes(old, new))
    changed = sum(not one.startswith("  ") for one in lines)
    if not changed:
        return {"text": f"The same plan as in request {before.id}, which was approved.", "lines": ""}
    verb = "line differs" if changed == 1 else "lines differ"
    return {"text": f"{changed} {verb} from request {before.id}, which was approved.", "lines": "\n".join(lines)}


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []
