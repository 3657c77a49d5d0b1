"""How remote things print: the forms that 0.2.9 users know, with foreign text made harmless."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import Any

_MAX_CHARS = 400
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def plain(text: str, limit: int = _MAX_CHARS) -> str:
    """Text of somebody else's as one harmless line: control and direction characters become escapes."""
    shown = "".join(
        c if unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode("ascii")
        for c in text[: limit + 1]
    )
    return shown if len(text) <= limit else shown[:limit] + "…"


def pointer_line(holder: str, identity: int, place: str, label: object) -> str:
    """`(Wrapper)>[PointerTensor | me:… -> Bob:…]`."""
    return f"(Wrapper)>[PointerTensor | {plain(holder)}:{identity} -> {plain(place)}:{label}]"


def pointer_text(
    identity: int,
    place: str,
    label: int,
    tags: Sequence[str],
    description: str,
    shape: Sequence[int],
    attribute: str = "",
) -> str:
    """`(Wrapper)>[PointerTensor | me:… -> Bob:…]`, and what it is tagged with. Costs no traffic."""
    text = pointer_line("me", identity, place, f"{label}::{attribute}" if attribute else label)
    if tags:
        text += f"\n\tTags: {' '.join(plain(tag) for tag in tags)} \n\tShape: {shape}"
    if description:
        text += f"\n\tDescription: {plain(description.split(chr(10))[0])}..."
    return text


def facts(pointer: Any) -> list[tuple[str, str]]:
    """What this side knows of a pointer, without asking anybody."""
    reference = pointer._ref
    dataset = getattr(reference, "dataset", None)
    if dataset is not None:
        source = f"data set {dataset.id}, version {dataset.version}, of {plain(dataset.owner)}"
        readers = "its owner, and whom the owner named"
        if dataset.allowed_users is not None:
            readers = ", ".join(plain(name) for name in dict.fromkeys((dataset.owner, *dataset.allowed_users)))
    else:
        source, readers = reference.place.sources_text()
    found = [
        ("Shape", str(tuple(pointer.shape))),
        ("Dtype", str(pointer.dtype)),
        ("Where", plain(str(reference.place.id))),
        ("Tags", " ".join(plain(tag) for tag in pointer.tags)),
        ("Description", plain(pointer.description.split("\n")[0])),
        ("Source data", source),
        ("May be read by", readers),
    ]
    return [(name, text) for name, text in found if text]


def printed(pointer: Any) -> str:
    """What print() shows: the pointer's line, and what this side knows of it."""
    line = repr(pointer).partition("\n")[0]
    return line + "".join(f"\n\t{name}: {text}" for name, text in facts(pointer))


def as_html(pointer: Any) -> str:
    """What a notebook shows: the same as a table, every foreign character escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in facts(pointer)
    )
    line = html.escape(repr(pointer).partition("\n")[0])
    return f"<div><code>{line}</code><table>{rows}</table></div>"
