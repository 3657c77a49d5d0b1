"""Whether a job or a value may be had: what the owners of all its data sets said, as pure functions. What is not
allowed by everybody concerned is not allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grid_jupyter.node.policy import GUEST, Rules, may_read

JOB, VALUE = "job", "value"
GRANTED, WAITING, QUESTION, APPROVED = "granted", "waiting", "question", "approved"
DENIED, EXPIRED, REVOKED, WITHDRAWN, USED = "denied", "expired", "revoked", "withdrawn", "used"
OPEN = (WAITING, QUESTION)
"""States of a request in which somebody is to say something."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A job, or the release of one value, that somebody asks for.

    `key` names it: the same key and binding are the same question. `binding` is the SHA-256 of all that a decision
    is about (`binding_of`). `sources` are all data sets that it rests on, with what their owners say now; `versions`
    are theirs, in the same order. `shown` is what the owners are shown: a document of JSON.
    """

    kind: str
    key: str
    asker: str
    binding: str
    sources: tuple[Rules, ...]
    versions: tuple[int, ...] = ()
    reason: str = ""
    shown: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 0  # of the smallest data set
    steps: int = 0
    whole_step: bool = False  # its author wrote the whole step: it can copy rows into its result
    reduced_isolation: bool = False


@dataclass(frozen=True)
class Verdict:
    """What holds for something that was asked: `granted`, or a state of its request and why.

    `request` is the number of the request; 0 where nobody had to be asked. With `review`, a job may run and its
    result waits for another decision: ask again under another key. `epoch_metrics`: every owner lets metrics of each
    epoch be seen while a job runs.
    """

    state: str
    request: int = 0
    reason: str = ""
    review: bool = False
    epoch_metrics: bool = False

    @property
    def granted(self) -> bool:
        """Whether it may go on."""
        return self.state == GRANTED


@dataclass(frozen=True)
class Demand:
    """What policies alone say: denied for a reason, or the owners who have to be asked (nobody: granted)."""

    denied: str = ""
    owners: tuple[str, ...] = ()


def demand(asked: Asked) -> Demand:
    """Ask the policies of all data sets that something rests on; the strictest one counts."""
    if asked.asker == GUEST:
        return Demand("guests cannot ask for anything: log in with client.login(user=…)")
    owners: dict[str, None] = {}
    for rules in asked.sources:
        if rules.origin:
            return Demand(f"it derives from data of the Node {rules.origin}, whose owners cannot be asked here")
        denied = _denied(asked, rules)
        if denied:
            return Demand(denied)
        if not (may_read(asked.asker, rules) or _is_automatic(asked, rules)):
            owners[rules.owner] = None
    return Demand(owners=tuple(owners))


def _denied(asked: Asked, rules: Rules) -> str:
    if asked.asker == rules.owner:
        return ""
    named = f"data set {rules.dataset} of {rules.owner}"
    if asked.kind == JOB and not rules.jobs.jobs:
        return f"{named} takes no jobs"
    if asked.kind == JOB and rules.jobs.full_isolation and asked.reduced_isolation:
        return f"{named} takes jobs only under full isolation, and this Node's is reduced: its owner can install bwrap"
    if asked.kind == VALUE and not (rules.jobs.values or may_read(asked.asker, rules)):
        return f"{named} takes no requests for single values"
    return ""


def _is_automatic(asked: Asked, rules: Rules) -> bool:
    said = rules.jobs
    return (
        asked.kind == JOB
        and not asked.whole_step
        and asked.asker in said.automatic
        and asked.rows >= said.min_rows
        and asked.steps >= said.min_steps
    )


def shows_epochs(asked: Asked) -> bool:
    """Whether every owner lets the asker see metrics of each epoch while a job runs."""
    return all(may_read(asked.asker, rules) or rules.jobs.epoch_metrics for rules in asked.sources)


def overall(owners: Iterable[str], decisions: Mapping[str, str]) -> str:
    """The state of a request, from the state of each owner's decision: approved only if all of them approved."""
    states = [decisions.get(owner, WAITING) for owner in owners]
    for state in (REVOKED, DENIED, QUESTION):
        if state in states:
            return state
    return APPROVED if states and all(state == APPROVED for state in states) else WAITING


def binding_of(document: Mapping[str, Any]) -> str:
    """The SHA-256, in hex, of a document of JSON in canonical form: one changed byte is another one.

    Raises ValueError for what JSON does not have.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
