"""What credentials look like: tokens `gjt1_<node id>_<secret>`, invites `gji1_<secret>`, and their digests."""

from __future__ import annotations

import hashlib
import re
import secrets

_SECRET_BYTES = 32
_TOKEN = re.compile(r"gjt1_([A-Za-z0-9._-]{1,64})_[A-Za-z0-9_-]{43}")
_INVITE = re.compile(r"gji1_[A-Za-z0-9_-]{43}")
_JUPYTER = re.compile(r"[0-9a-f]{32}|[0-9a-f]{48}|[0-9a-f]{64}")


def new_token(node_id: str) -> str:
    """A fresh token of this Node; 256 random bits behind the Node's id. Raises ValueError for an unfit id."""
    token = f"gjt1_{node_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    if node_of(token) != node_id:
        raise ValueError("a node id has 1 to 64 letters, digits, dots, dashes or underscores")
    return token


def node_of(token: str) -> str | None:
    """The id of the Node that gave out this token; None for what is not a token of ours."""
    found = _TOKEN.fullmatch(token)
    return found[1] if found else None


def looks_like_jupyter(token: str) -> bool:
    """Whether this has the form of a token of Jupyter or JupyterHub."""
    return _JUPYTER.fullmatch(token) is not None


def new_invite() -> str:
    """A fresh invite code; 256 random bits."""
    return f"gji1_{secrets.token_urlsafe(_SECRET_BYTES)}"


def invite_code(text: str) -> str | None:
    """The code in what a person pastes: the bare code, or the invite `<address>/#<code>`. None if there is none."""
    code = text.strip().rpartition("#")[2]
    return code if _INVITE.fullmatch(code) else None


def digest(credential: str) -> str:
    """What is kept of a token or invite: its SHA-256, in hex. Without salt, for 256 random bits need none."""
    return hashlib.sha256(credential.encode()).hexdigest()
