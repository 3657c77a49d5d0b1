"""The words that come with data: what tags, descriptions and names may be. They are kept as they are, within limits."""

from __future__ import annotations

from collections.abc import Sequence

from grid_jupyter.errors import InvalidDataError, LimitExceededError
from grid_jupyter.wire.limits import MAX_DESCRIPTION_CHARS, MAX_NAME_CHARS, MAX_TAG_CHARS, MAX_TAGS, MAX_USERS
from grid_jupyter.wire.messages import JobPolicy


def check_words(name: str, tags: Sequence[str], description: str) -> None:
    """Raises LimitExceededError, which names the limit, and InvalidDataError."""
    if len(name) > MAX_NAME_CHARS:
        raise LimitExceededError(f"a name has at most {MAX_NAME_CHARS} characters")
    if len(tags) > MAX_TAGS:
        raise LimitExceededError(f"a data set has at most {MAX_TAGS} tags")
    if any(len(tag) > MAX_TAG_CHARS for tag in tags):
        raise LimitExceededError(f"a tag has at most {MAX_TAG_CHARS} characters")
    if not all(tag.strip() for tag in tags):
        raise InvalidDataError("a tag cannot be empty")
    if len(description) > MAX_DESCRIPTION_CHARS:
        raise LimitExceededError(f"a description has at most {MAX_DESCRIPTION_CHARS} characters")
    _check_unicode((name, description, *tags))


def check_users(users: Sequence[str]) -> None:
    """Raises LimitExceededError, InvalidDataError."""
    if len(users) > MAX_USERS:
        raise LimitExceededError(f"a data set names at most {MAX_USERS} users")
    if not all(0 < len(user) <= MAX_NAME_CHARS for user in users):
        raise InvalidDataError(f"a user's name has 1 to {MAX_NAME_CHARS} characters")
    _check_unicode(users)


def check_jobs(policy: JobPolicy) -> None:
    """Raises LimitExceededError, InvalidDataError."""
    check_users(policy.automatic)
    if not (0 < policy.min_rows < 2**53 and 0 < policy.min_steps < 2**53):
        raise InvalidDataError("min_rows and min_steps are numbers from 1 on")


def _check_unicode(texts: Sequence[str]) -> None:
    """Python's texts can hold lone surrogates, which nothing else can carry."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InvalidDataError("a text is not valid Unicode: it holds half of a surrogate pair") from None
