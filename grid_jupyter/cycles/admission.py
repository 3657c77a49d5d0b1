"""Whether a device's token lets it take part: JWTs under a secret (HS256), or for a public key (RS256)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from grid_jupyter.cycles.terms import Authentication
from grid_jupyter.errors import BadRequest, NotAuthenticatedError

MISSING = "Authentication is required, please pass an 'auth_token'."
INVALID = "The 'auth_token' you sent is invalid."
MAX_TOKEN_CHARS = 16_384


def check_keys(known: Authentication) -> None:
    """Refuse keys that no token could be checked with. Raises BadRequest."""
    import jwt  # with cryptography 0.1 s, which a Node without such trainings saves

    if known.pub_key is not None:
        try:
            key = jwt.get_algorithm_by_name("RS256").prepare_key(known.pub_key)
        except (ValueError, TypeError, jwt.InvalidKeyError):
            key = None
        if not hasattr(key, "public_numbers"):  # a private key has none of its own
            raise BadRequest("authentication.pub_key is no public RSA key in PEM form")


def check_token(known: Authentication | None, token: str | None) -> str | None:
    """Whom a token is for: a digest of its `sub`, or of all of it; None where none is asked for.

    Raises NotAuthenticatedError for a token that is missing, expired or not signed as this training asks.
    """
    if known is None:
        return None
    if not token:
        raise NotAuthenticatedError(MISSING)
    if known.secret is None and known.pub_key is None and len(token) <= MAX_TOKEN_CHARS:
        return _digest(f"token {token}")  # what it says, a third party alone can judge
    if len(token) <= MAX_TOKEN_CHARS:
        # Each key with its own algorithm alone: what the token says of itself chooses nothing.
        for key, algorithm in ((known.secret, "HS256"), (known.pub_key, "RS256")):
            claims = None if key is None else _claims(token, key, algorithm)
            if claims is not None:
                subject = claims.get("sub")
                # what is signed alone: other spellings of the signature are the same token
                signed = token.strip().rpartition(".")[0]
                return _digest(f"sub {subject}" if isinstance(subject, str) and subject else f"token {signed}")
    raise NotAuthenticatedError(f"{INVALID} It may be expired, or signed with another key: get a new one")


def _digest(told: str) -> str:
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def _claims(token: str, key: str, algorithm: str) -> Mapping[str, Any] | None:
    import jwt

    try:
        claims: Mapping[str, Any] = jwt.decode(token, key, algorithms=[algorithm], options={"verify_aud": False})
    except (jwt.PyJWTError, ValueError, TypeError):  # also what is no text of a token at all
        return None
    return claims
