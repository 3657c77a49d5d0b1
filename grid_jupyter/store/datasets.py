"""The rows of data sets and their versions. Who may see, compute or read is stored here and decided elsewhere."""

from __future__ import annotations

import enum
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from grid_jupyter.errors import Conflict, ObjectNotFoundError, SendNotPermittedError
from grid_jupyter.store.database import Database, is_id
from grid_jupyter.store.records import Dataset, DatasetVersion
from grid_jupyter.wire.messages import ASK_ALWAYS, JobPolicy

_LOWEST_ID = 10**10
_HIGHEST_ID = 10**11 - 1


class Keep(enum.Enum):
    """Says that an edit leaves a field as it is, where None means something."""

    KEEP = enum.auto()


KEEP: Final = Keep.KEEP


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a blob: bytes `begin` to `end`, little-endian, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class StoredColumn:
    """One column of a table, with pandas' name of its dtype."""

    name: str
    dtype: str


@dataclass(frozen=True)
class StoredMock:
    """The blob of a version's mock rows, which its row names besides that of its data."""

    blob: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class NewDataset:
    """What is published: a blob that is on the disk already, and what its owner says about it."""

    name: str
    owner: str
    kind: str
    tags: tuple[str, ...]  # in the owner's order
    description: str
    allowed_users: tuple[str, ...]  # may read values
    compute_users: tuple[str, ...] | None = None  # may compute; None: everybody whom the Node lets
    public_tags: bool = False
    jobs: JobPolicy = ASK_ALWAYS
    tensors: tuple[StoredTensor, ...]
    columns: tuple[StoredColumn, ...] = ()
    blob: str
    nbytes: int
    sha256: str
    mock: StoredMock | None = None


@dataclass(frozen=True, kw_only=True)
class StoredDataset(NewDataset):
    """One version of a data set. `created` is when this version was, in UTC seconds."""

    id: int
    version: int
    created: float


@dataclass(frozen=True)
class StoredBlob:
    """A blob that no row names any more."""

    name: str
    nbytes: int
    mock: bool = False  # of mock rows, no version's data


class DatasetTable:
    """Data sets in the database; each method is one transaction.

    The methods raise ObjectNotFoundError for a data set or version that does not exist.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._run = database.run
        self._clock = clock

    async def publish(self, dataset: NewDataset, upload_id: str, dataset_id: int | None = None) -> tuple[int, int]:
        """Store a data set, or with `dataset_id` its next version; its id and version.

        Asked again with the same upload id, it answers as before and stores nothing: then the row keeps the first
        blob, and one that was made since is for `BlobStore.sweep` (or the caller, who sees it by `get`).
        A new version takes its name, compute_users, public_tags and jobs for all versions.

        Raises SendNotPermittedError unless the owner of the new version is the data set's, Conflict for an upload id
        that another owner used.
        """

        def insert(session: Session) -> tuple[int, int]:
            done = session.scalars(select(DatasetVersion).where(DatasetVersion.upload_id == upload_id)).first()
            if done is not None:
                if done.dataset.owner != dataset.owner or dataset_id not in (None, done.dataset_id):
                    raise Conflict("this upload id was used for something else; upload again under a fresh one")
                return done.dataset_id, done.version
            now = self._clock()
            row = self._next_version(session, dataset, dataset_id, now)
            session.add(
                DatasetVersion(
                    dataset_id=row.id,
                    version=row.current_version,
                    blob=dataset.blob,
                    nbytes=dataset.nbytes,
                    sha256=dataset.sha256,
                    tags=list(dataset.tags),
                    description=dataset.description,
                    allowed_users=list(dataset.allowed_users),
                    tensors=[asdict(tensor) for tensor in dataset.tensors],
                    columns=[asdict(column) for column in dataset.columns],
                    created=now,
                    upload_id=upload_id,
                    mock=None if dataset.mock is None else asdict(dataset.mock),
                )
            )
            return row.id, row.current_version

        return await self._run(insert)

    async def get(self, dataset_id: int, version: int | None = None) -> StoredDataset:
        """One version of a data set; the current one unless told."""
        return await self._run(lambda session: _stored(_find_version(session, dataset_id, version)))

    async def by_upload(self, upload_id: str, owner: str) -> StoredDataset | None:
        """What this owner published under an upload id, if anything."""

        def find(session: Session) -> StoredDataset | None:
            row = session.scalars(select(DatasetVersion).where(DatasetVersion.upload_id == upload_id)).first()
            return _stored(row) if row is not None and row.dataset.owner == owner else None

        return await self._run(find)

    async def with_bytes(self, sha256: str) -> tuple[StoredDataset, ...]:
        """The data sets whose current version has exactly these bytes."""

        def find(session: Session) -> tuple[StoredDataset, ...]:
            current = (DatasetVersion.dataset_id == Dataset.id) & (DatasetVersion.version == Dataset.current_version)
            query = select(DatasetVersion).join(Dataset, current).where(DatasetVersion.sha256 == sha256)
            return tuple(_stored(row) for row in session.scalars(query))

        return await self._run(find)

    async def list(self) -> tuple[StoredDataset, ...]:
        """The current versions of all data sets, newest first."""
        return await self.search(())

    async def search(self, tags: Sequence[str]) -> tuple[StoredDataset, ...]:
        """The data sets whose current version carries every one of these tags, newest first."""
        wanted = frozenset(tags)

        def find(session: Session) -> tuple[StoredDataset, ...]:
            current = (DatasetVersion.dataset_id == Dataset.id) & (DatasetVersion.version == Dataset.current_version)
            # Tags first: descriptions of wide tables are only read where they are wanted.
            candidates = session.execute(
                select(DatasetVersion.id, DatasetVersion.tags).join(Dataset, current).order_by(DatasetVersion.id.desc())
            ).all()
            found = (session.get_one(DatasetVersion, id_) for id_, carried in candidates if wanted.issubset(carried))
            return tuple(_stored(row) for row in found)

        return await self._run(find)

    async def edit(
        self,
        dataset_id: int,
        *,
        tags: Sequence[str] | None = None,
        description: str | None = None,
        allowed_users: Sequence[str] | None = None,
        compute_users: Sequence[str] | Keep | None = KEEP,
        public_tags: bool | None = None,
        jobs: JobPolicy | None = None,
        mock: StoredMock | Keep | None = KEEP,
    ) -> StoredDataset:
        """Change what is given. Tags, description and mock rows are the current version's; who may read or compute,
        whether tags are public, and what is said about jobs goes for all versions, so that nobody reads in an old one
        what the new one denies."""

        def change(session: Session) -> StoredDataset:
            row = _find_version(session, dataset_id, None)
            if tags is not None:
                row.tags = list(tags)
            if description is not None:
                row.description = description
            if allowed_users is not None:
                for version in _versions(session, dataset_id):
                    version.allowed_users = list(allowed_users)
            if not isinstance(compute_users, Keep):
                row.dataset.compute_users = None if compute_users is None else list(compute_users)
            if public_tags is not None:
                row.dataset.public_tags = public_tags
            if jobs is not None:
                row.dataset.jobs = msgspec.to_builtins(jobs)
            if not isinstance(mock, Keep):
                row.mock = None if mock is None else asdict(mock)
            return _stored(row)

        return await self._run(change)

    async def unpublish(self, dataset_id: int) -> tuple[StoredBlob, ...]:
        """Forget a data set with all its versions; the blobs that are the caller's to delete, now that no row names
        them."""

        def remove(session: Session) -> tuple[StoredBlob, ...]:
            row = _find(session, dataset_id)
            versions = _versions(session, dataset_id)
            blobs = [StoredBlob(version.blob, version.nbytes) for version in versions]
            blobs += [StoredBlob(one.mock["blob"], one.mock["nbytes"], mock=True) for one in versions if one.mock]
            session.delete(row)  # its versions go with it
            return tuple(blobs)

        return await self._run(remove)

    async def blobs(self) -> frozenset[str]:
        """The names of all blobs that a row names."""

        def find(session: Session) -> frozenset[str]:
            mocks = session.scalars(select(DatasetVersion.mock).where(DatasetVersion.mock.is_not(None)))
            return frozenset(session.scalars(select(DatasetVersion.blob))) | {mock["blob"] for mock in mocks if mock}

        return await self._run(find)

    def _next_version(self, session: Session, dataset: NewDataset, dataset_id: int | None, now: float) -> Dataset:
        if dataset_id is None:
            row = Dataset(id=_free_id(session), owner=dataset.owner, created=now, current_version=1)
            session.add(row)
        else:
            found = _find(session, dataset_id)
            if found.owner != dataset.owner:
                raise SendNotPermittedError("only the owner of a data set publishes versions of it; publish a new one")
            row = found
            row.current_version += 1
        row.name, row.kind, row.public_tags = dataset.name, dataset.kind, dataset.public_tags
        row.compute_users = None if dataset.compute_users is None else list(dataset.compute_users)
        row.jobs = msgspec.to_builtins(dataset.jobs)
        session.flush()
        return row


def _not_found() -> ObjectNotFoundError:
    return ObjectNotFoundError("there is no such data set or version here, or no longer; search again")


def _free_id(session: Session) -> int:
    while True:
        id_ = _LOWEST_ID + secrets.randbelow(_HIGHEST_ID - _LOWEST_ID + 1)
        if session.get(Dataset, id_) is None:
            return id_


def _versions(session: Session, dataset_id: int) -> Sequence[DatasetVersion]:
    query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id).order_by(DatasetVersion.version)
    return session.scalars(query).all()


def _find(session: Session, dataset_id: int) -> Dataset:
    row = session.get(Dataset, dataset_id) if is_id(dataset_id) else None
    if row is None:
        raise _not_found()
    return row


def _find_version(session: Session, dataset_id: int, version: int | None) -> DatasetVersion:
    query = select(DatasetVersion).join(DatasetVersion.dataset).where(Dataset.id == dataset_id)
    if not is_id(dataset_id) or not is_id(1 if version is None else version):
        raise _not_found()
    wanted = Dataset.current_version if version is None else version
    row = session.scalars(query.where(DatasetVersion.version == wanted)).first()
    if row is None:
        raise _not_found()
    return row


def _stored(row: DatasetVersion) -> StoredDataset:
    compute_users = row.dataset.compute_users
    return StoredDataset(
        id=row.dataset_id,
        version=row.version,
        name=row.dataset.name,
        owner=row.dataset.owner,
        kind=row.dataset.kind,
        tags=tuple(row.tags),
        description=row.description,
        allowed_users=tuple(row.allowed_users),
        compute_users=None if compute_users is None else tuple(compute_users),
        public_tags=row.dataset.public_tags,
        jobs=ASK_ALWAYS if row.dataset.jobs is None else msgspec.convert(row.dataset.jobs, JobPolicy),
        tensors=tuple(
            StoredTensor(tensor["name"], tensor["dtype"], tuple(tensor["shape"]), tensor["begin"], tensor["end"])
            for tensor in row.tensors
        ),
        columns=tuple(StoredColumn(column["name"], column["dtype"]) for column in row.columns),
        blob=row.blob,
        nbytes=row.nbytes,
        sha256=row.sha256,
        created=row.created,
        mock=None if row.mock is None else StoredMock(**row.mock),
    )
