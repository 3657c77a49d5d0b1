"""Jobs in a notebook: what runs and what ran, how far it is, what was measured, and an end to it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from grid_jupyter.client.grid_jobs import GridJobs
from grid_jupyter.client.jobs import WAITING, Job
from grid_jupyter.client.node import NodeClient
from grid_jupyter.client.texts import block, line, name, number
from grid_jupyter.errors import BadRequest, ObjectNotFoundError
from grid_jupyter.widgets.view import Action, NodeView, script, style
from grid_jupyter.wire.jobs import JobInfo

SHOWN = 100
LOG_LINES = 200
"""Newest lines of a log that are shown."""


class Cancel(Action, frozen=True, tag="cancel"):
    """End a job at once."""

    job: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Jobs(NodeView):
    """`widgets.jobs()`. What it shows is what `node.jobs()` says, or the jobs that it was given."""

    _esm = script("jobs")
    _css = style()

    def __init__(self, of: Any = None) -> None:
        if isinstance(of, GridJobs) and not len(of):
            raise BadRequest("no Node took one of these jobs: print(jobs) has the reasons")
        if not isinstance(of, (NodeClient, Job, GridJobs, type(None))):
            raise BadRequest("widgets.jobs() takes a Node's client, a Job, or the GridJobs of grid.submit")
        self._given = of if isinstance(of, (Job, GridJobs)) else None
        self._jobs: dict[str, tuple[Job, str]] = {}
        job = next(iter(of)) if isinstance(of, GridJobs) else of
        node: Any = job.node if isinstance(job, Job) else job
        super().__init__(node)

    def look(self) -> dict[str, Any]:
        """The newest jobs."""
        said, states = dict[str, str](), dict[str, str]()
        if isinstance(self._given, GridJobs):
            states, said = self._given.state, self._given.said
            found = [(self._given[one], f"jobs[{one!r}]") for one in self._given.nodes if states[one] != "no job"]
        elif isinstance(self._given, Job):
            self._given.refresh()
            found = [(self._given, "job")]
        else:
            found = [(job, f"node.job({job.id!r})") for job in self.node.jobs()]
        self._jobs = {job.id: (job, python) for job, python in found[:SHOWN]}
        where = "Jobs at several Nodes" if isinstance(self._given, GridJobs) else name(self.node.id)
        shown = [_told(job.info, python) for job, python in found[:SHOWN]]
        for one in shown:
            if states.get(one["node"]) == "lost":
                one |= {"state": "lost", "said": line(said[one["node"]]), "over": True}
        return {"node": where, "jobs": shown, "more": max(0, len(found) - SHOWN)}

    def _cancel(self, action: Cancel) -> str:
        job, python = self._jobs.get(action.job, (None, ""))
        if job is None:
            raise ObjectNotFoundError("there is no such job here, or no longer")
        job.cancel()
        return f"{python}.cancel()"

    does: ClassVar[Any] = {Cancel: _cancel}


def _turn(info: JobInfo) -> str:
    if info.arguments.rounds > 1 and info.state in WAITING:
        return f"round {info.rounds_done}, {info.arguments.rounds} at most"
    count, what = (info.rounds_done, "round") if info.arguments.rounds > 1 else (info.arguments.epochs, "epoch")
    return f"{count} {what}{'' if count == 1 else 's'}"


def _told(info: JobInfo, python: str) -> dict[str, Any]:
    arguments = info.arguments
    many = arguments.rounds > 1
    progress = info.rounds_done / arguments.rounds if info.progress is None and many else info.progress
    return {
        "id": name(info.id),
        "node": name(info.node),
        "by": name(info.by),
        "state": name(info.state),
        "over": info.state not in WAITING,
        "said": line(info.said),
        "reason": block(info.reason),
        "rows": info.rows,
        "owners": ", ".join(name(one) for one in info.owners),
        "turn": _turn(info),
        "created": number(info.created),
        "progress": number(progress),
        "newest": [[name(metric), number(value)] for metric, value in (info.history or ({},))[-1].items()],
        "log": [[number(one.at), line(one.text)] for one in info.log[-LOG_LINES:]],
        "python": python,
    }
