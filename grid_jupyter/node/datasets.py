"""The data sets of a Node: taking in what owners publish, describing it to others, letting it go."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from grid_jupyter.errors import (
    Forbidden,
    GridError,
    InvalidDataError,
    LimitExceededError,
    ObjectNotFoundError,
    OutcomeUnknownError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.identity.roles import OWNER
from grid_jupyter.node import policy
from grid_jupyter.node.audit import Audit
from grid_jupyter.node.policy import Rules
from grid_jupyter.node.uploads import Uploads, check_may_publish
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.datasets import (
    KEEP,
    DatasetTable,
    NewDataset,
    StoredColumn,
    StoredDataset,
    StoredMock,
    StoredTensor,
)
from grid_jupyter.wire.limits import MAX_COLUMNS, MAX_NAME_CHARS
from grid_jupyter.wire.messages import (
    ASK_ALWAYS,
    ColumnInfo,
    DatasetInfo,
    Edit,
    JobPolicy,
    MockUpload,
    Publish,
    TensorInfo,
    Unpublished,
)
from grid_jupyter.wire.mock import Form, check_mock, check_mock_bytes
from grid_jupyter.wire.safetensors import BlobTensor
from grid_jupyter.wire.words import check_jobs, check_users, check_words

KINDS = ("tensor", "table", "arrays")


class Datasets:
    """Publishing and describing. Values never pass through here: bytes go to a blob, blobs to Workers."""

    def __init__(
        self,
        table: DatasetTable,
        blobs: BlobStore,
        audit: Audit,
        *,
        max_upload_bytes: int,
        public_tags: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.uploads = Uploads(blobs, max_upload_bytes, clock)
        self._table = table
        self._blobs = blobs
        self._audit = audit
        self._public_tags = public_tags
        self._known: dict[tuple[int, int], StoredDataset] = {}
        self._ended: Callable[[int], int] = lambda dataset: 0
        self._naming = asyncio.Lock()  # an upload becomes the bytes of one row only
        self._gone: Callable[[int], Awaitable[None]] | None = None
        self._tell: Callable[[], None] = lambda: None

    def on_unpublish(
        self, end_sessions: Callable[[int], int], end_requests: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        """What ends the sessions that have a data set open, and says how many; what ends requests that rest on it."""
        self._ended, self._gone = end_sessions, end_requests

    def on_change(self, tell: Callable[[], None]) -> None:
        """Whom to call when a data set was published, edited or unpublished."""
        self._tell = tell

    # -------------------------------------------------------------- publishing

    async def publish(self, account: Account, request: Publish) -> DatasetInfo:
        """Make an upload a data set; durable when this returns. A retry with the same upload is harmless, and so is
        publishing the same once more: it is the same data set.

        Raises SendNotPermittedError, ObjectNotFoundError for an upload that is not here, LimitExceededError,
        InvalidDataError, StorageFullError; then nothing is kept of the upload either.
        """
        check_may_publish(account)
        async with self._naming:
            try:
                return await self._publish(account, request)
            except OutcomeUnknownError:  # rows may name them
                self.uploads.claim((account.username, request.upload))
                if request.mock is not None:
                    self.uploads.claim((account.username, request.mock.upload))
                raise
            except GridError:
                await self._refuse(account, request.upload, *([] if request.mock is None else [request.mock.upload]))
                raise

    async def _refuse(self, account: Account, *uploads: str) -> None:
        for upload in uploads:
            refused = self.uploads.claim((account.username, upload))
            if refused is not None:
                await asyncio.to_thread(self._blobs.delete, refused.blob.name)

    async def _publish(self, account: Account, request: Publish) -> DatasetInfo:
        check_words(request.name, request.tags, request.description)
        compute_users = request.compute_users
        check_users((*request.allowed_users, *(compute_users if isinstance(compute_users, tuple) else ())))
        if not isinstance(request.jobs, msgspec.UnsetType):
            check_jobs(request.jobs)
        key = (account.username, request.upload)
        arrived = self.uploads.arrived(key)
        if arrived is None:  # perhaps a retry of one that was published already
            done = await self._table.by_upload(request.upload, account.username)
            if done is None:
                raise ObjectNotFoundError("there is no such upload here, or no longer; send the bytes again")
            return self.describe(done, account.username)
        blob, tensors = arrived.blob, arrived.tensors
        _check_kind(request, tensors)
        mock = self._mock(account, request.mock, request.kind, request.columns, tensors)
        if mock is not None and mock.blob == blob.name:
            raise InvalidDataError("mock rows are an upload of their own, never that of the data")
        before = None if request.dataset is None else await self._table.get(request.dataset)
        public_tags = self._public_tags if before is None else before.public_tags
        if isinstance(compute_users, msgspec.UnsetType):
            compute_users = None if before is None else before.compute_users
        jobs = request.jobs
        if isinstance(jobs, msgspec.UnsetType):
            jobs = ASK_ALWAYS if before is None else before.jobs
        new = NewDataset(
            name=request.name or (before.name if before is not None else ""),
            owner=account.username,
            kind=request.kind,
            tags=tuple(dict.fromkeys(request.tags)) or (before.tags if before is not None else ()),
            description=request.description or (before.description if before is not None else ""),
            allowed_users=tuple(dict.fromkeys(request.allowed_users)),
            compute_users=compute_users,
            public_tags=public_tags if request.public_tags is None else request.public_tags,
            jobs=jobs,
            tensors=tuple(StoredTensor(t.name, t.dtype, t.shape, t.begin, t.end) for t in tensors),
            columns=tuple(StoredColumn(c.name, c.dtype) for c in request.columns),
            blob=blob.name,
            nbytes=blob.nbytes,
            sha256=blob.sha256,
            mock=mock,
        )
        again = None if request.dataset is not None else await self._same(new)
        if again is not None:
            await self._refuse(account, request.upload, *([] if request.mock is None else [request.mock.upload]))
            return self.describe(again, account.username)
        found = await self._table.publish(new, request.upload, request.dataset)
        self.uploads.claim(key)
        if request.mock is not None:
            self.uploads.claim((account.username, request.mock.upload))
        stored = await self._table.get(*found)
        self._audit.note(
            "published",
            account.username,
            dataset=stored.id,
            version=stored.version,
            sha256=stored.sha256,
            mock=_sha256(mock),
        )
        self._tell()
        if stored.blob != blob.name:  # the same upload id came twice, at the same time
            await asyncio.to_thread(self._blobs.delete, blob.name)
        return self.describe(stored, account.username)

    def _mock(
        self,
        account: Account,
        told: MockUpload | None,
        kind: str,
        columns: Sequence[ColumnInfo],
        tensors: Sequence[Form],
    ) -> StoredMock | None:
        """The mock rows that a request names, which must have the form of the data."""
        if told is None:
            return None
        arrived = self.uploads.arrived((account.username, told.upload))
        if arrived is None:
            raise ObjectNotFoundError("the upload of the mock rows is not here, or no longer; send the bytes again")
        check_mock_bytes(arrived.blob.nbytes)
        check_mock(kind, columns, tensors, told.columns, arrived.tensors)
        return StoredMock(arrived.blob.name, arrived.blob.nbytes, arrived.blob.sha256)

    async def _same(self, new: NewDataset) -> StoredDataset | None:
        """A data set of this owner that is the same in all that counts: a cell was run twice, or a reply lost."""

        def essence(one: NewDataset) -> tuple[object, ...]:
            return (
                one.owner, one.sha256, one.kind, one.name, one.tags, one.description, one.columns, one.public_tags,
                one.allowed_users, one.compute_users, one.jobs, _sha256(one.mock),
            )  # fmt: skip

        return next(
            (stored for stored in await self._table.with_bytes(new.sha256) if essence(stored) == essence(new)), None
        )

    async def edit(self, account: Account, dataset: int, request: Edit) -> DatasetInfo:
        """Change tags, description, rules or mock rows.

        Raises Forbidden for anyone but the owners, ObjectNotFoundError, InvalidDataError for mock rows of another
        form; then nothing is kept of their upload.
        """
        async with self._naming:
            try:
                return await self._edit(account, dataset, request)
            except OutcomeUnknownError:  # a row may name it
                if isinstance(request.mock, MockUpload):
                    self.uploads.claim((account.username, request.mock.upload))
                raise
            except GridError:
                if isinstance(request.mock, MockUpload):
                    await self._refuse(account, request.mock.upload)
                raise

    async def _edit(self, account: Account, dataset: int, request: Edit) -> DatasetInfo:
        before = await self._owned(account, dataset)
        check_words("", request.tags or (), request.description or "")
        compute = request.compute_users
        check_users((*(request.allowed_users or ()), *(compute if isinstance(compute, tuple) else ())))
        if not isinstance(request.jobs, msgspec.UnsetType):
            check_jobs(request.jobs)
        given = request.mock if isinstance(request.mock, MockUpload) else None
        mock = self._mock(account, given, before.kind, _columns(before), before.tensors)
        stored = await self._table.edit(
            dataset,
            tags=request.tags,
            description=request.description,
            allowed_users=request.allowed_users,
            compute_users=compute if compute is None or isinstance(compute, tuple) else KEEP,
            public_tags=request.public_tags,
            jobs=None if isinstance(request.jobs, msgspec.UnsetType) else request.jobs,
            mock=KEEP if isinstance(request.mock, msgspec.UnsetType) else mock,
        )
        self._forget(dataset)  # at once: what is denied now is denied from the next read on
        if given is not None:
            self.uploads.claim((account.username, given.upload))
        if before.mock is not None and before.mock != stored.mock:
            await asyncio.to_thread(self._blobs.delete, before.mock.blob)
        changed = [name for name in request.__struct_fields__ if getattr(request, name) not in (None, msgspec.UNSET)]
        said = {"allowed_users": stored.allowed_users, "compute_users": stored.compute_users}
        rules = {**said, "public_tags": stored.public_tags, "jobs": msgspec.to_builtins(stored.jobs)}
        rules["mock"] = _sha256(stored.mock)
        self._audit.note("edited", account.username, dataset=dataset, changed=changed, **rules)
        self._tell()
        return self.describe(stored, account.username)

    async def unpublish(self, account: Account, dataset: int) -> Unpublished:
        """End a data set: rows, bytes, and the sessions that have it open.

        Raises Forbidden, ObjectNotFoundError, NodeUnavailableError as `BlobStore.check_gone`.
        """
        await self._owned(account, dataset)
        await self._end_requests(dataset)
        gone = await self._table.unpublish(dataset)
        self._forget(dataset)
        ended = self._ended(dataset)  # a Worker that maps the file would keep its bytes
        for blob in gone:
            await asyncio.to_thread(self._blobs.delete, blob.name)
        self._forget(dataset)
        ended += self._ended(dataset)  # those that were just opening it
        await self._end_requests(dataset)
        versions = sum(not blob.mock for blob in gone)
        self._audit.note("unpublished", account.username, dataset=dataset, versions=versions)
        self._tell()
        self._blobs.check_gone([blob.name for blob in gone])
        return Unpublished(
            dataset=dataset, versions=versions, nbytes=sum(blob.nbytes for blob in gone), sessions_ended=ended
        )

    async def _end_requests(self, dataset: int) -> None:
        if self._gone is not None:
            await self._gone(dataset)

    async def _owned(self, account: Account, dataset: int) -> StoredDataset:
        stored = await self._table.get(dataset)
        if account.username != stored.owner and account.role != OWNER:
            if not policy.may_compute(account.username, rules_of(stored)):
                raise ObjectNotFoundError("there is no such data set or version here, or no longer; search again")
            raise Forbidden(f"only {stored.owner}, who published it, or this Node's owner may do that")
        return stored

    def _forget(self, dataset: int) -> None:
        self._known = {key: stored for key, stored in self._known.items() if key[0] != dataset}

    # -------------------------------------------------------------- finding

    async def get(self, dataset: int, version: int | None = None) -> StoredDataset:
        """One version of a data set. Raises ObjectNotFoundError."""
        known = self._known.get((dataset, version or 0))
        if known is None:
            known = await self._table.get(dataset, version)
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[known.id, known.version] = known
        return known

    async def visible(self, caller: str, query: Sequence[str] = ()) -> list[StoredDataset]:
        """Data sets with all of these tags, as far as this caller may compute on them, newest first."""
        found = await self._table.search(query)
        return [stored for stored in found if policy.may_compute(caller, rules_of(stored))]

    async def all(self) -> tuple[StoredDataset, ...]:
        """Every data set, for the Node's owner."""
        return await self._table.list()

    async def public(self, query: Sequence[str] = ()) -> list[StoredDataset]:
        """Data sets whose tags their owner made public."""
        return [stored for stored in await self._table.search(query) if stored.public_tags]

    async def open(self, stored: StoredDataset) -> int:
        """A descriptor of the bytes, to hand to a Worker. Raises ObjectNotFoundError, NodeUnavailableError."""
        return await self._blobs.open(stored.blob, stored.sha256)

    async def open_mock(self, caller: str, dataset: int, version: int) -> tuple[int, int]:
        """A descriptor of a version's mock rows, which the caller of this closes, and how many bytes they are; for
        whoever may compute on the data set. Raises ObjectNotFoundError."""
        stored = await self._table.get(dataset, version)
        if not policy.may_compute(caller, rules_of(stored)):
            raise ObjectNotFoundError("there is no such data set or version here, or no longer; search again")
        if stored.mock is None:
            raise ObjectNotFoundError(f"{stored.owner} gave no mock rows for this data set; ask for some")
        return await self._blobs.open(stored.mock.blob, stored.mock.sha256), stored.mock.nbytes

    async def used_bytes(self) -> int:
        """Bytes on the disk."""
        return await asyncio.to_thread(self._blobs.used_bytes)

    async def sweep(self, also_known: frozenset[str], passing: frozenset[str]) -> None:
        """Remove bytes that nothing names: what was left by a kill between upload and publication."""
        known = await self._table.blobs()
        await asyncio.to_thread(self._blobs.sweep, known | also_known, passing)

    def describe(self, stored: StoredDataset, caller: str) -> DatasetInfo:
        """What this caller may know: no category, no row, and the readers only for those among them."""
        reads = policy.may_read(caller, rules_of(stored))
        return DatasetInfo(
            id=stored.id,
            version=stored.version,
            kind=stored.kind,
            name=stored.name,
            tags=stored.tags,
            description=stored.description,
            owner=stored.owner,
            tensors=tuple(
                TensorInfo(name=t.name, dtype=t.dtype, shape=t.shape)
                for t in stored.tensors
                if reads or not is_vocabulary(t.name)
            ),
            columns=_columns(stored),
            allowed_users=stored.allowed_users if reads else None,
            jobs=stored.jobs if caller == stored.owner else _seen_by(caller, stored.jobs),
            mock=stored.mock is not None,
        )


def rules_of(stored: StoredDataset) -> Rules:
    """What the owner said, as the gates take it."""
    return Rules(stored.id, stored.owner, stored.allowed_users, stored.compute_users, jobs=stored.jobs)


def _columns(stored: StoredDataset) -> tuple[ColumnInfo, ...]:
    return tuple(ColumnInfo(name=c.name, dtype=c.dtype) for c in stored.columns)


def _sha256(mock: StoredMock | None) -> str | None:
    return None if mock is None else mock.sha256


def _seen_by(caller: str, jobs: JobPolicy) -> JobPolicy:
    """What the owner says about jobs, without the names of others."""
    return msgspec.structs.replace(jobs, automatic=(caller,) if caller in jobs.automatic else ())


def is_vocabulary(tensor: str) -> bool:
    """Whether a tensor of a table holds the words behind a column's codes: values, down to their number."""
    return tensor.startswith("vocab/")


def new_upload_id() -> str:
    """An id for an upload that the Node makes itself."""
    return secrets.token_hex(16)


def _check_kind(request: Publish, tensors: Sequence[BlobTensor]) -> None:
    if request.kind not in KINDS:
        raise InvalidDataError(f"a data set is one of {', '.join(KINDS)}")
    if request.kind == "tensor" and [t.name for t in tensors] != ["data"]:
        raise InvalidDataError("a data set of kind tensor holds one tensor, named data")
    if request.kind != "table":
        if request.columns:
            raise InvalidDataError("only a table has columns")
        return
    if len(request.columns) > MAX_COLUMNS:
        raise LimitExceededError(f"a table has at most {MAX_COLUMNS} columns")
    if any(not 0 < len(c.name) <= MAX_NAME_CHARS or len(c.dtype) > MAX_NAME_CHARS for c in request.columns):
        raise InvalidDataError(f"names and dtypes of columns have 1 to {MAX_NAME_CHARS} characters")
    values = {t.name for t in tensors if t.name.startswith("col/")}
    if values != {f"col/{index}" for index in range(len(request.columns))}:
        raise InvalidDataError("a table holds one tensor col/<i> for each of its columns")
