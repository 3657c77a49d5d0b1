"""The life of a job, as a pure machine: (job, event, now) → (job, actions). It knows no clock, no disk, no Worker.

    waiting ──granted──▶ queued ──begin──▶ running ──finished, failed──▶ held ──released──▶ done | failed
       │ ▲                 │ ▲                │ └──────────────released at once─────────▶ done | failed
       │ └─────asked again─┘ └──Node or Worker ended─┘
       └──▶ denied    every state that is no end ──▶ cancelled | expired;  done ──▶ expired, its result gone
    a job of many rounds: running ──each round done, or no more needed──▶ done

What a run of private data came to is a value, and so is that it failed: both are held until their release is decided.
Only what does not depend on the data (a Worker that was killed beside it, an expiry) is told at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, Union

State = Literal["waiting", "queued", "running", "held", "done", "denied", "cancelled", "failed", "expired"]

ENDS: Final = frozenset({"done", "denied", "cancelled", "failed", "expired"})
"""States that nothing but an expiry leads out of."""
MAX_TRIES: Final = 3
"""Runs without a further checkpoint, after which a job whose Worker keeps ending fails."""
PAUSES_S: Final = (0.5, 5.0)
"""How long a job rests after each of them but the last: what its Worker ended of may pass, such as want of memory."""
DAY_S: Final = 86_400.0


@dataclass(frozen=True)
class Terms:
    """How long what is kept, in seconds."""

    undecided_s: float = 14 * DAY_S  # a request that no owner answers, and a result that nobody releases
    result_s: float = 14 * DAY_S
    idle_s: float = DAY_S  # a job of many rounds between two of them


TERMS: Final = Terms()


@dataclass(frozen=True)
class Job:
    """What the machine knows of a job. Times are UTC seconds."""

    id: str
    by: str
    rounds: int = 1
    epochs: int = 1
    state: State = "waiting"
    said: str = ""  # why it is in this state, and what to do: for everybody who may see the job
    outcome: str = ""  # what a run failed of, while its release is not decided; empty: it did not fail
    look: bool = False  # the owner looks at what it came to before that is released
    epoch: int = 0  # that is checkpointed
    rounds_done: int = 0
    tries: int = 0  # runs since the last checkpoint
    expires: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ENDS

    @property
    def settled(self) -> bool:
        """Whether it is over, and nothing that it came to is kept any longer."""
        return self.ended and (self.state != "done" or self.expires is None)


# ------------------------------------------------------------------ events


@dataclass(frozen=True)
class Granted:
    """The job may run. `look`: somebody looks at what it came to before that is released."""

    look: bool = False


@dataclass(frozen=True)
class Asked:
    """It waits for somebody's decision: the text says whose."""

    text: str


@dataclass(frozen=True)
class Denied:
    """It may not run, or may no longer, or what it came to is not released."""

    text: str


@dataclass(frozen=True)
class Queued:
    """It is its turn, and it waits for this."""

    text: str


@dataclass(frozen=True)
class Begun:
    """There is a Worker for it."""


@dataclass(frozen=True)
class Checkpointed:
    """So many epochs are durable."""

    epoch: int


@dataclass(frozen=True)
class RoundDone:
    """A round was computed, and is answered."""


@dataclass(frozen=True)
class Finished:
    """All of it was computed, and is durable."""


@dataclass(frozen=True)
class Broke:
    """The run failed of something that may depend on the data: to try again would be the same."""

    text: str


@dataclass(frozen=True)
class Stopped:
    """The run ended for a reason of the machine's, and can go on from its last checkpoint."""

    text: str


@dataclass(frozen=True)
class Lapsed:
    """The time of what it was asked by, or approved by, is over."""

    text: str


@dataclass(frozen=True)
class Refused:
    """It cannot run at all, for a reason that does not depend on the data's values."""

    text: str


@dataclass(frozen=True)
class Released:
    """What it came to may leave."""


@dataclass(frozen=True)
class Cancelled:
    """Somebody who may do that ended it."""

    who: str


@dataclass(frozen=True)
class Enough:
    """Who submitted it needs no more rounds."""


@dataclass(frozen=True)
class Restarted:
    """The Node was started again."""


@dataclass(frozen=True)
class Tick:
    """Time went by."""


Event = Union[
    Granted, Asked, Denied, Queued, Begun, Checkpointed, RoundDone, Finished, Broke, Stopped, Lapsed, Refused, Released,
    Cancelled, Enough, Restarted, Tick,
]  # fmt: skip

# ------------------------------------------------------------------ actions


@dataclass(frozen=True)
class EndRun:
    """Kill its Worker, if it has one."""


@dataclass(frozen=True)
class Rest:
    """Do not start it again for so many seconds. It keeps its turn, but holds up nobody."""

    seconds: float


@dataclass(frozen=True)
class AskRelease:
    """Find out whether what it came to may leave."""


@dataclass(frozen=True)
class DropWork:
    """Delete the weights and checkpoints that it ran from."""


@dataclass(frozen=True)
class DropResult:
    """Delete what it came to."""


@dataclass(frozen=True)
class CloseRequest:
    """What was asked of its owners is over with it: `state` is what becomes of what waits still, or is approved."""

    state: Literal["withdrawn", "expired", "used"]
    by: str = ""  # who ended the job; empty: nobody did
    why: str = ""


Action = Union[EndRun, Rest, AskRelease, DropWork, DropResult, CloseRequest]
Step = tuple[Job, tuple[Action, ...]]

# ------------------------------------------------------------------ the machine


def on(job: Job, event: Event, now: float, terms: Terms = TERMS) -> Step:
    """The job after an event, and what is to be done. An event that comes too late changes nothing."""
    if job.ended:
        return _ended(job, event, now)
    if isinstance(event, Cancelled):
        return _over(job, "cancelled", f"cancelled by {event.who}", CloseRequest("withdrawn", event.who))
    if isinstance(event, Enough):
        if job.rounds_done and job.state in ("queued", "running"):
            return _enough(job, now, terms)
        return _over(job, "cancelled", f"cancelled by {job.by}", CloseRequest("withdrawn", job.by))
    if isinstance(event, Tick):
        return _tick(job, now)
    if job.state == "held":
        return _held(job, event, now, terms)
    if isinstance(event, Denied):
        return _over(job, "denied", event.text)
    if isinstance(event, Lapsed):
        return _over(job, "expired", event.text)
    if isinstance(event, Asked):
        is_new = job.state != "waiting" or job.said != event.text  # a restart of the Node is no new question
        until = job.expires if job.expires is not None and not is_new else now + terms.undecided_s
        after = replace(job, state="waiting", said=event.text, expires=until)
        return after, (EndRun(),) if job.state == "running" else ()
    if isinstance(event, Refused):
        return _over(job, "failed", event.text)
    if isinstance(event, Granted) and job.state == "waiting":
        return replace(job, state="queued", said="", look=event.look, expires=None), ()
    if isinstance(event, Granted):
        return replace(job, look=event.look), ()
    if isinstance(event, Queued):
        return (replace(job, said=event.text), ()) if job.state == "queued" else (job, ())
    if isinstance(event, Begun) and job.state == "queued":
        expires = now + terms.idle_s if job.rounds > 1 else None
        return replace(job, state="running", said="", tries=job.tries + 1, expires=expires), ()
    return _running(job, event, now, terms) if job.state == "running" else (job, ())


def _running(job: Job, event: Event, now: float, terms: Terms) -> Step:
    if isinstance(event, Checkpointed):
        return (replace(job, epoch=event.epoch, tries=0), ()) if event.epoch > job.epoch else (job, ())
    if isinstance(event, RoundDone):
        after = replace(job, rounds_done=job.rounds_done + 1, tries=0, expires=now + terms.idle_s)
        if after.rounds_done < job.rounds:
            return after, ()
        return _enough(after, now, terms)
    if isinstance(event, Finished | Broke):
        outcome = event.text if isinstance(event, Broke) else ""
        said = "what it came to waits for its release" + (", which its owner decides" if job.look else "")
        after = replace(job, state="held", said=said, outcome=outcome, expires=now + terms.undecided_s)
        return after, (EndRun(), AskRelease())
    if isinstance(event, Restarted):
        return replace(job, state="queued", said="the Node was started again", tries=0), ()
    if isinstance(event, Stopped):
        if job.tries >= MAX_TRIES:
            text = (
                f"it was begun {job.tries} times and got no further: {event.text}. If for want of memory, try a "
                f"smaller batch or model"
            )
            return _running(job, Broke(text), now, terms)
        return replace(job, state="queued", said=event.text), (Rest(PAUSES_S[max(job.tries, 1) - 1]), EndRun())
    return job, ()


def _held(job: Job, event: Event, now: float, terms: Terms) -> Step:
    if isinstance(event, Released) and job.outcome:
        return _over(job, "failed", job.outcome, CloseRequest("used"))
    if isinstance(event, Released):
        after = replace(job, state="done", said="", expires=now + terms.result_s)
        return after, (DropWork(), CloseRequest("used"))
    if isinstance(event, Denied | Refused | Lapsed):
        after, actions = _over(job, "expired" if isinstance(event, Lapsed) else "denied", event.text)
        return replace(after, outcome=""), actions
    if isinstance(event, Asked):
        return replace(job, said=event.text, look=True), ()
    if isinstance(event, Restarted):
        return job, (AskRelease(),)
    return job, ()


def _tick(job: Job, now: float) -> Step:
    if job.expires is None or now < job.expires:
        return job, ()
    text = {
        "waiting": "nobody decided about it in time; ask the owners of its data, then submit it again",
        "held": "nobody decided about its release in time; ask the owners of its data, then submit it again",
    }.get(job.state, "its next round did not come in time; submit it again")
    return _over(job, "expired", text)


def _enough(job: Job, now: float, terms: Terms) -> Step:
    count = "1 round" if job.rounds_done == 1 else f"{job.rounds_done} rounds"
    return _over(replace(job, expires=now + terms.result_s), "done", f"finished after {count}")


def _ended(job: Job, event: Event, now: float) -> Step:
    if job.rounds > 1:  # each round gave its result: there is none to delete
        is_late = job.expires is not None and isinstance(event, Tick) and now >= job.expires
        return (replace(job, expires=None), ()) if is_late else (job, ())
    if job.state == "done" and isinstance(event, Tick) and job.expires is not None and now >= job.expires:
        said = "its result was kept for some time, and is gone; submit it again"
        return replace(job, state="expired", said=said, expires=None), (DropResult(),)
    if job.state == "done" and isinstance(event, Cancelled):
        return replace(job, state="expired", said=f"its result was deleted by {event.who}", expires=None), (
            DropResult(),
        )
    return job, ()


def _over(job: Job, state: State, said: str, closed: CloseRequest | None = None) -> Step:
    if state == "done":
        return replace(job, state=state, said=said), (EndRun(), DropWork(), CloseRequest("used"))
    if closed is None:
        closed = CloseRequest("expired" if state == "expired" else "withdrawn")
    after = replace(job, state=state, said=said, expires=None)
    return after, (EndRun(), DropWork(), DropResult(), replace(closed, why=f"the job is {state}: {said}"))
