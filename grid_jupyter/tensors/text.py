"""How remote things print: the forms that 0.2.9 users know, with foreign text made harmless."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_MAX_CHARS = 400
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def plain(text: str, limit: int = _MAX_CHARS) -> str:
    """Text of somebody else's as one harmless line: control and direction characters become escapes."""
    shown = "".join(
        c if unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode("ascii")
        for c in text[: limit + 1]
    )
    return shown if len(text) <= limit else shown[:limit] + "…"


def pointer_text(
    identity: int, place: str, label: int, tags: Sequence[str], description: str, shape: Sequence[int]
) -> str:
    """`(Wrapper)>[PointerTensor | me:… -> Bob:…]`, and what it is tagged with. Costs no traffic."""
    text = f"(Wrapper)>[PointerTensor | me:{identity} -> {plain(place)}:{label}]"
    if tags:
        text += f"\n\tTags: {' '.join(plain(tag) for tag in tags)} \n\tShape: {shape}"
    if description:
        text += f"\n\tDescription: {plain(description.split(chr(10))[0])}..."
    return text
