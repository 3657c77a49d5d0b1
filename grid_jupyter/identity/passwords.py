"""Passwords as argon2id hashes, with equal work whether or not there is a hash to compare with."""

from __future__ import annotations

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from grid_jupyter.errors import BadRequest

MAX_PASSWORD_CHARS = 1024

# OWASP's recommendation for argon2id with the least memory; the Node's control process must stay small.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


def check_password(password: str) -> None:
    """Raises BadRequest for a password that is empty, too long or not text."""
    if not password or len(password) > MAX_PASSWORD_CHARS or not _is_text(password):
        raise BadRequest(f"a password is text of 1 to {MAX_PASSWORD_CHARS} characters")


def hash_password(password: str) -> str:
    """The hash to keep: algorithm, parameters and salt included. Takes some 30 ms. Raises BadRequest."""
    check_password(password)
    return _hasher.hash(password)


def verify(password_hash: str | None, password: str) -> bool:
    """Whether this is the password. Without a hash (no such user, or one without password) the same work is done.

    Raises BadRequest for a password that cannot be one.
    """
    check_password(password)
    if password_hash is None:
        _hasher.hash(password)
        return False
    try:
        return _hasher.verify(password_hash, password)
    except VerifyMismatchError:
        return False


def is_outdated(password_hash: str) -> bool:
    """Whether the hash was made with other parameters than those of today."""
    return _hasher.check_needs_rehash(password_hash)


def _is_text(password: str) -> bool:
    try:
        password.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry
        return False
    return True
