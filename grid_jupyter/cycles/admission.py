"""Whether a device's token lets it take part: JWTs under a secret (HS256), or for a public key (RS256)."""

from __future__ import annotations

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


def check_token(known: Authentication | None, token: str | None) -> None:
    """Raises NotAuthenticatedError for a token that is missing, expired or not signed as this training asks."""
    if known is None:
        return
    if not token:
        raise NotAuthenticatedError(MISSING)
    if len(token) <= MAX_TOKEN_CHARS:
        # Each key with its own algorithm alone: what the token says of itself chooses nothing.
        for key, algorithm in ((known.secret, "HS256"), (known.pub_key, "RS256")):
            if key is not None and _holds(token, key, algorithm):
                return
    raise NotAuthenticatedError(f"{INVALID} It may be expired, or signed with another key: get a new one")


def _holds(token: str, key: str, algorithm: str) -> bool:
    import jwt

    try:
        jwt.decode(token, key, algorithms=[algorithm], options={"verify_aud": False})
    except (jwt.PyJWTError, ValueError, TypeError):  # also what is no text of a token at all
        return False
    return True
