"""The gates' decisions, as pure functions of who asks and what the owners said. Everything not allowed is denied.

A caller is a user's name; the empty name is a guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grid_jupyter.errors import GetNotPermittedError, NotAuthenticatedError
from grid_jupyter.wire.messages import ASK_ALWAYS, JobPolicy

GUEST = ""


@dataclass(frozen=True)
class Rules:
    """What the owner of one data set said."""

    dataset: int
    owner: str
    allowed_users: tuple[str, ...]  # may read, besides the owner
    compute_users: tuple[str, ...] | None  # may compute, besides the owner; None: everybody
    origin: str = ""  # the Node that a value came from, where the data set is not this Node's
    jobs: JobPolicy = ASK_ALWAYS


def check_session(caller: str, guests_allowed: bool) -> None:
    """Gate 1: may this caller use a session at all. Raises NotAuthenticatedError."""
    if caller == GUEST and not guests_allowed:
        raise NotAuthenticatedError(
            "this Node does not let guests search or compute: log in with client.login(user=…), or ask its owner "
            "for an invite ('jupyter grid invite')"
        )


def may_compute(caller: str, rules: Rules) -> bool:
    """Gate 2: may this caller, who has a session, compute on the data set, and see that it is there."""
    return rules.compute_users is None or (caller != GUEST and (caller == rules.owner or caller in rules.compute_users))


def may_read(caller: str, rules: Rules) -> bool:
    """May this caller read values of one data set: its owner and those whom the owner named."""
    return caller != GUEST and (caller == rules.owner or caller in rules.allowed_users)


def may_read_all(caller: str, sources: Sequence[Rules]) -> bool:
    """May this caller read what derives from all of these data sets; anyone may where there are none."""
    return all(may_read(caller, rules) for rules in sources)


def readers(sources: Sequence[Rules]) -> tuple[str, ...]:
    """Those who may read what derives from all of these data sets, in the first one's order."""
    if not sources:
        return ()
    first = dict.fromkeys((*sources[0].allowed_users, sources[0].owner))
    return tuple(user for user in first if all(may_read(user, rules) for rules in sources))


def check_release(caller: str, sources: Sequence[Rules]) -> None:
    """Gate 4: a value leaves only if every data set that it derives from lets this caller read.

    How the value was computed plays no part: one row can be dressed as a mean.
    Raises GetNotPermittedError, which names data sets and owners, never a value or a shape.
    """
    closed = [rules for rules in sources if not may_read(caller, rules)]
    if not closed:
        return
    who = f"user {caller!r}" if caller != GUEST else "a guest"
    named = ", ".join(
        f"the Node {rules.origin}" if rules.origin else f"data set {rules.dataset} of {rules.owner}"
        for rules in closed[:5]
    )
    raise GetNotPermittedError(
        f"{who} may compute on this value but may not read it: it derives from {named}. Present the "
        f"credential of somebody who may, with .get(user=…), or ask {_remedy(caller)}"
    )


def _remedy(caller: str) -> str:
    remedy = "the owner to be among the allowed users"
    return remedy if caller == GUEST else f"for this value with .request(reason), or {remedy}"
