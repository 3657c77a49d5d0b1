"""Whose turn it is: fair order over users, as a pure function. A user's own jobs come in the order of submission."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A job that may run."""

    id: str
    by: str
    created: float  # UTC seconds


def next_job(queued: Sequence[Waiting], running: Sequence[str], served: Mapping[str, int], most: int) -> str | None:
    """The id of the job whose turn it is, or None.

    `running` names the user of each job that runs, `most` is how many of one user run at once. Who has the fewest
    running comes first, among these who was served (`served`: a number that grew with each turn) longest ago, then
    who asked first. So a user with a thousand jobs holds up another's first job by none of them.
    """
    busy = Counter(running)
    open_to = [job for job in queued if busy[job.by] < most]
    if not open_to:
        return None
    turn = min(open_to, key=lambda job: (busy[job.by], served.get(job.by, 0), job.created, job.id))
    return turn.id
