"""The rows of jobs: what was submitted, how it stands, which blobs belong to it. What that means is known elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from grid_jupyter.errors import Conflict, ObjectNotFoundError
from grid_jupyter.store.database import Database
from grid_jupyter.store.records import JobRow

_FIXED = ("id", "submitter", "upload", "created", "document")
_CHANGES = ("state", "change", "began", "ended", "machine", "log", "history", "work", "checkpoint", "result")


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """One job. `document` is what was submitted, `machine` how it stands; times are UTC seconds."""

    id: str
    submitter: str
    upload: str  # with the submitter it names the submission
    state: str
    change: int = 0
    created: float
    began: float | None = None
    ended: float | None = None
    document: dict[str, Any]
    machine: dict[str, Any]
    log: list[Any] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)
    work: str | None = None
    checkpoint: str | None = None
    result: str | None = None


class JobTable:
    """Jobs in the database; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def add(self, job: StoredJob, most: int) -> StoredJob:
        """Store a job; asked again with the same submission, the one that is there already.

        Raises Conflict where its submitter has `most` jobs that have not ended (`ended` is None).
        """

        def insert(session: Session) -> StoredJob:
            found = session.scalars(
                select(JobRow).where(JobRow.submitter == job.submitter, JobRow.upload == job.upload)
            ).first()
            if found is not None:
                return _stored(found)
            open_jobs = select(JobRow.id).where(JobRow.submitter == job.submitter, JobRow.ended.is_(None))
            if len(session.scalars(open_jobs).all()) >= most:
                raise Conflict(f"you have {most} jobs here that have not ended; cancel one, or wait for it")
            session.add(JobRow(**{name: getattr(job, name) for name in (*_FIXED, *_CHANGES)}))
            return job

        return await self._run(insert)

    async def by_upload(self, submitter: str, upload: str) -> StoredJob | None:
        """The job of a submission, if it is here."""
        query = select(JobRow).where(JobRow.submitter == submitter, JobRow.upload == upload)

        def find(session: Session) -> StoredJob | None:
            found = session.scalars(query).first()
            return None if found is None else _stored(found)

        return await self._run(find)

    async def get(self, job: str) -> StoredJob:
        """Raises ObjectNotFoundError."""

        def find(session: Session) -> StoredJob:
            return _stored(_row(session, job))

        return await self._run(find)

    async def all(self) -> tuple[StoredJob, ...]:
        """All jobs, newest first."""
        query = select(JobRow).order_by(JobRow.created.desc(), JobRow.id)
        return await self._run(lambda session: tuple(_stored(row) for row in session.scalars(query)))

    async def save(self, job: StoredJob) -> StoredJob:
        """Store how a job stands now, as the change after the one it was read at.

        Raises ObjectNotFoundError, Conflict where somebody else changed it since.
        """
        after = replace(job, change=job.change + 1)

        def store(session: Session) -> StoredJob:
            row = _row(session, job.id)
            if row.change != job.change:
                raise Conflict("the job has changed since")
            for name in _CHANGES:
                setattr(row, name, getattr(after, name))
            return after

        return await self._run(store)

    async def forget(self, before: float) -> list[StoredJob]:
        """Delete jobs that ended before then; those that there were, whose blobs are the caller's to delete."""

        def remove(session: Session) -> list[StoredJob]:
            gone = [_stored(row) for row in session.scalars(select(JobRow).where(JobRow.ended < before))]
            session.execute(delete(JobRow).where(JobRow.id.in_([job.id for job in gone])))
            return gone

        return await self._run(remove)

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        query = select(JobRow.state, func.count()).group_by(JobRow.state)
        return await self._run(lambda session: dict(session.execute(query).tuples().all()))

    async def blobs(self, submitter: str | None = None) -> frozenset[str]:
        """The names of all blobs that a row names; of one submitter's, if named."""
        query = select(JobRow.work, JobRow.checkpoint, JobRow.result)
        if submitter is not None:
            query = query.where(JobRow.submitter == submitter)

        def names(session: Session) -> frozenset[str]:
            found = session.execute(query)
            return frozenset(name for row in found for name in row if name)

        return await self._run(names)

    async def checkpoints(self) -> frozenset[str]:
        """Those among them that are checkpoints, of use until the next one."""
        return await self._run(lambda session: frozenset(filter(None, session.scalars(select(JobRow.checkpoint)))))


def _row(session: Session, job: str) -> JobRow:
    row = session.get(JobRow, job)
    if row is None:
        raise ObjectNotFoundError("there is no such job here, or no longer")
    return row


def _stored(row: JobRow) -> StoredJob:
    return StoredJob(**{name: getattr(row, name) for name in (*_FIXED, *_CHANGES)})
