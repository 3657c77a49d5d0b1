"""Answers of the model-centric routes, as JSON has them; the OpenAPI document is made of these and of the bodies."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class Failed(TypedDict):
    """What went wrong, with the remedy, and a code that programs can rely on."""

    error: str
    code: str


class Done(TypedDict):
    """It happened."""

    status: Literal["success"]


class Counted(Done, total=False):
    """A report counts. `next`, where the report asked for it: what cycle-request would answer, Accepted or Rejected."""

    next: dict[str, Any]


class Told(Done):
    """It happened, in words of 0.2.9's fork."""

    message: str


class Uploaded(TypedDict):
    """All bytes are here."""

    success: Literal[True]


class Nothing(TypedDict):
    """It happened, and there is nothing to say about it."""


class Hosted(Done):
    """A model is hosted. `advice`: what the configuration does not do that one might think it does."""

    advice: list[str]


class Authenticated(Done):
    """A device is registered."""

    worker_id: str
    requires_speed_test: bool


class Accepted(TypedDict):
    """A device has a place in a cycle."""

    status: Literal["accepted"]
    request_key: str
    version: str
    model: str
    plans: dict[str, int]
    protocols: dict[str, int]
    client_config: dict[str, Any]
    diff_forms: tuple[str, ...]
    model_id: int
    cycle_id: int
    checkpoint: int
    model_sha256: str
    plan_sha256: dict[str, str]


class Welcome(TypedDict):
    """A device that asked now would get a place."""

    status: Literal["accepted"]


class _Refused(TypedDict):
    status: Literal["rejected"]
    reason: str


class Rejected(_Refused, total=False):
    """A device has no place. Without `timeout` (seconds), training is over, and nothing else is said like that."""

    timeout: int


class Standing(TypedDict):
    """How a training stands."""

    name: str
    version: str
    phase: Literal["gathering", "open", "closing", "over", "failed"]
    cycle: int
    completed: int
    num_cycles: int
    workers: int
    reports: int
    checkpoint: int
    started: bool
    timeout: int | None
    problem: str


class Ended(Done, Standing):
    """A training is over; how it stands."""


class Owned(Standing):
    """A training, as the Node's owner sees it."""

    owner: str


class Entry(TypedDict):
    """What a device measured in its place; `worker` is its number in this training, `time` UTC seconds."""

    cycle: int
    worker: int
    samples: int
    time: float
    values: dict[str, float]


class _Next(TypedDict):
    next: int
    more: bool


class MetricsPage(_Next):
    """Metrics of a training. `after=` this `next` gives what came since; `more`: there is more already."""

    name: str
    version: str
    metrics: list[Entry]


class Stats(_Next):
    """The same by the names of 0.2.9's fork: each entry has cycle_id, worker_id, num_samples, time, and its metrics."""

    status: Literal["success"]
    stats: list[dict[str, float]]


class Pushed(Done):
    """To how many devices a push goes at most."""

    devices: int


class GivenUp(TypedDict):
    """A notice that never reached its device; `at` in UTC seconds."""

    id: int
    type: str
    model: str
    version: str
    by: str
    at: float
    attempts: int
    reason: str


class Notices(TypedDict):
    """How notices to devices stand."""

    push: str
    listening: int
    waiting: int
    sent: int
    given_up: int
    newest_given_up: list[GivenUp]
