"""What a server_config says: every key that it may have, what contradicts what, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec

from grid_jupyter.cycles import strategy as strategies
from grid_jupyter.cycles.strategy import Chosen
from grid_jupyter.errors import BadRequest

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Speed = Annotated[float, msgspec.Meta(ge=0)]

DiffForm = Literal["float32", "float16", "int8", "topk"]
"""What a diff may come as (aggregation/diffs.py)."""

MIN_SECRET_BYTES = 32
"""Length of an HS256 secret (RFC 7518, 3.2)."""
MAX_KEY_CHARS = 10_000


class Authentication(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How devices show that they may take part: by a JWT under `secret` (HS256) or for `pub_key` (PEM, RS256), and by
    a third party that says so, at the URL `endpoint`."""

    type: Literal["jwt"] = "jwt"
    secret: Annotated[str, msgspec.Meta(max_length=MAX_KEY_CHARS)] | None = None
    pub_key: Annotated[str, msgspec.Meta(max_length=MAX_KEY_CHARS)] | None = None
    endpoint: Annotated[str, msgspec.Meta(max_length=2048)] | None = None


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A server_config. What each key means, docs/protocol-model-centric.md tells in a table."""

    num_cycles: Amount = 0  # 0: unlimited
    cycle_length: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None  # seconds
    min_diffs: Amount | None = None
    max_diffs: Count | None = None
    min_workers: Amount | None = None
    max_workers: Count | None = None
    require_min_workers: bool = False
    pool_selection: Literal["random", "iterate"] = "iterate"
    do_not_reuse_workers_until_cycle: Amount = 0
    minimum_upload_speed: Speed | None = None  # KiB/s
    minimum_download_speed: Speed | None = None
    goal_count: Count | None = None
    worker_participation_mode: Literal[0, 1] = 1
    drop_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    max_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    diff_forms: Annotated[tuple[DiffForm, ...], msgspec.Meta(min_length=1)] = get_args(DiffForm)
    max_samples: Count = 1_000_000
    max_devices: Count = 2_000_000
    max_devices_per_token: Count | None = None
    keep_checkpoints: Count = 20
    strategy: str | dict[str, Any] | None = None
    iterative_plan: bool = False
    authentication: Authentication | None = None
    chosen: Chosen | None = None  # what `strategy` comes to; no key of a server_config

    @property
    def least(self) -> int:
        """Reports that a cycle needs before it can be completed."""
        return max(1, self.min_diffs or 0, 1 if self.chosen is None else self.chosen.least)

    @property
    def asynchronous(self) -> bool:
        """Whether a report counts in whatever cycle is open when it comes."""
        return self.chosen is not None and self.chosen.asynchronous

    def staleness(self, sequence: int, now: int) -> int | None:
        """Cycles that a report of cycle `sequence` is late in cycle `now`; None where it is too late."""
        late = now - sequence
        most = 0 if self.chosen is None else self.chosen.max_staleness
        return late if 0 <= late <= most else None

    @property
    def pool(self) -> int:
        """Workers that must be there before invitations go out."""
        needed = self.goal_count if self.min_workers is None else self.min_workers
        return max(needed or 1, self.least)

    @property
    def places(self) -> int | None:
        """How many may be in one cycle; None: any number."""
        return self.max_workers if self.max_workers is not None else self.goal_count

    @property
    def measures_speed(self) -> bool:
        """Whether devices must say how fast their connection is."""
        return self.minimum_upload_speed is not None or self.minimum_download_speed is not None


KNOWN = tuple(sorted(set(Terms.__struct_fields__) - {"chosen"}))
"""Keys of a server_config."""


def read_terms(config: Mapping[str, Any]) -> Terms:
    """A server_config from outside. Raises BadRequest for unknown keys, wrong values and contradictions."""
    unknown = sorted(str(key)[:80] for key in config.keys() - set(KNOWN))
    if unknown:
        raise BadRequest(f"server_config has no key {', '.join(unknown[:10])}; known are {', '.join(KNOWN)}")
    given = {key: value for key, value in config.items() if value is not None}
    try:
        terms = msgspec.convert(given, Terms)
    except msgspec.ValidationError as error:
        raise BadRequest(f"server_config: {error}") from None
    _check_numbers(terms)
    if terms.strategy is not None:
        terms = msgspec.structs.replace(terms, chosen=strategies.choose(terms.strategy))
    _check_together(terms)
    if terms.chosen is not None:
        strategies.check_together(terms.chosen, given, terms)
    return terms


def advice(terms: Terms) -> list[str]:
    """What somebody who hosts with these terms may not expect."""
    if terms.min_workers and terms.goal_count is None and not terms.require_min_workers:
        return [
            f"min_workers={terms.min_workers} keeps nobody waiting: a lone device trains too. "
            "With require_min_workers, or goal_count, a cycle waits for them",
            *strategies.advice(terms.chosen),
        ]
    return strategies.advice(terms.chosen)


def read_speed(name: str, value: object, *, required: bool) -> float | None:
    """One of ping, download and upload as a device says it. Raises BadRequest with 0.2.9's texts."""
    if value is None:
        if required:
            raise BadRequest(f"'{name}' is required")
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadRequest(f"'{name}' needs to be a positive number")
    return float(value)


def _check_numbers(terms: Terms) -> None:
    for name in KNOWN:
        value = getattr(terms, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRequest(f"server_config: {name} is no finite number")
    known = terms.authentication
    if known is not None and known.secret is None and known.pub_key is None and known.endpoint is None:
        raise BadRequest(
            "authentication needs a 'secret' (HS256), a 'pub_key' (RS256) or an 'endpoint', or leave it out"
        )
    if known is not None and known.secret is not None and len(known.secret.encode()) < MIN_SECRET_BYTES:
        raise BadRequest(f"authentication.secret has at least {MIN_SECRET_BYTES} bytes; shorter ones can be guessed")


def _check_together(terms: Terms) -> None:
    """Refuse keys that contradict one another, or under which no cycle could ever end."""
    places, bounded = terms.places, terms.cycle_length is not None
    wrong: list[tuple[bool, str]] = [
        (_over(terms.min_diffs, terms.max_diffs), "min_diffs is more than max_diffs"),
        (_over(terms.min_workers, terms.max_workers), "min_workers is more than max_workers"),
        (_over(terms.goal_count, terms.max_workers), "goal_count is more than max_workers"),
        (
            _over(terms.min_diffs, places),
            "min_diffs is more than there are places in a cycle (max_workers, goal_count)",
        ),
        (
            _over(terms.max_diffs, places) and not bounded,
            "max_diffs is more than there are places in a cycle, and no cycle_length ends it",
        ),
        (
            places is not None and not bounded,
            "max_workers and goal_count need a cycle_length: a device that left would keep its place for ever",
        ),
        (
            not terms.worker_participation_mode and not bounded and not terms.asynchronous,
            "worker_participation_mode 0 needs a cycle_length: if those who came in time leave, nobody else may come",
        ),
        (
            terms.drop_rate is not None and terms.goal_count is None,
            "drop_rate is a part of goal_count, which is missing",
        ),
        (
            terms.max_devices_per_token is not None and terms.authentication is None,
            "max_devices_per_token needs authentication: without it there are no tokens",
        ),
        (
            _over(terms.pool, terms.max_devices),
            "max_devices is fewer than a cycle needs (min_diffs, min_workers, goal_count)",
        ),
        (
            terms.require_min_workers and (not terms.min_workers or terms.goal_count is not None),
            "require_min_workers needs min_workers, and no goal_count (which waits for min_workers anyway)",
        ),
    ]
    for contradicts, text in wrong:
        if contradicts:
            raise BadRequest(f"server_config contradicts itself: {text}")


def _over(low: int | None, high: int | None) -> bool:
    return low is not None and high is not None and low > high
