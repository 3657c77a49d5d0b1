"""The rows of the models that a Node serves."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from grid_jupyter.errors import IdNotUniqueError, NotFound
from grid_jupyter.store.database import Database
from grid_jupyter.store.records import HostedModel

_NOT_FOUND = "Model ID not found!"


@dataclass(frozen=True)
class StoredModel:
    """A served model: its blob, and what others may do with it."""

    id: str
    blob: str
    nbytes: int
    allow_download: bool
    allow_remote_inference: bool
    mpc: bool
    owner: str
    created: float  # UTC seconds


class ModelTable:
    """Served models in the database; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    async def add(self, model: StoredModel) -> None:
        """Serve a model, whose blob is on the disk already. Raises IdNotUniqueError if its id is taken."""

        def insert(session: Session) -> None:
            if session.get(HostedModel, model.id) is not None:
                raise IdNotUniqueError("Model id already exists.")
            session.add(HostedModel(**asdict(model)))

        await self._run(insert)

    async def get(self, model_id: str) -> StoredModel:
        """One model. Raises NotFound."""
        return await self._run(lambda session: _stored(_find(session, model_id)))

    async def list(self) -> tuple[StoredModel, ...]:
        """All models, oldest first."""
        query = select(HostedModel).order_by(HostedModel.created, HostedModel.id)
        return await self._run(lambda session: tuple(_stored(row) for row in session.scalars(query)))

    async def delete(self, model_id: str) -> StoredModel:
        """Serve it no longer; its blob is the caller's to delete, afterwards. Raises NotFound."""

        def remove(session: Session) -> StoredModel:
            row = _find(session, model_id)
            session.delete(row)
            return _stored(row)

        return await self._run(remove)

    async def blobs(self) -> frozenset[str]:
        """The names of all blobs that a row names."""
        return await self._run(lambda session: frozenset(session.scalars(select(HostedModel.blob))))


def _find(session: Session, model_id: str) -> HostedModel:
    row = session.get(HostedModel, model_id)
    if row is None:
        raise NotFound(_NOT_FOUND)
    return row


def _stored(row: HostedModel) -> StoredModel:
    return StoredModel(
        id=row.id,
        blob=row.blob,
        nbytes=row.nbytes,
        allow_download=row.allow_download,
        allow_remote_inference=row.allow_remote_inference,
        mpc=row.mpc,
        owner=row.owner,
        created=row.created,
    )
