"""Served models: parameters in safetensors form that others may find, and download where the owner lets them."""

from __future__ import annotations

import asyncio
import time

from grid_jupyter.errors import (
    BadRequest,
    Forbidden,
    GridError,
    InvalidDataError,
    LimitExceededError,
    OutcomeUnknownError,
)
from grid_jupyter.identity.accounts import Account
from grid_jupyter.identity.roles import OWNER
from grid_jupyter.node.datasets import new_upload_id
from grid_jupyter.node.uploads import check_may_publish
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.models import ModelTable, StoredModel
from grid_jupyter.wire.limits import MAX_NAME_CHARS
from grid_jupyter.wire.safetensors import read_header


class Models:
    """The models that a Node serves."""

    def __init__(self, table: ModelTable, blobs: BlobStore) -> None:
        self._table = table
        self._blobs = blobs

    async def serve(
        self,
        account: Account,
        model_id: str,
        data: bytes,
        *,
        allow_download: bool,
        allow_remote_inference: bool,
        mpc: bool,
    ) -> None:
        """Store a model, durably. Raises IdNotUniqueError, InvalidDataError, SendNotPermittedError, BadRequest."""
        check_may_publish(account)
        if not 0 < len(model_id) <= MAX_NAME_CHARS:
            raise BadRequest(f"a model id has 1 to {MAX_NAME_CHARS} characters")
        if mpc:
            raise BadRequest("this Node serves no secret-shared models; send it with mpc=False")
        if allow_remote_inference:
            raise BadRequest(
                "this Node stores parameters and runs no models; send it with allow_remote_inference=False"
            )
        blob = await asyncio.to_thread(self._write, data)
        try:
            await self._table.add(
                StoredModel(
                    id=model_id,
                    blob=blob[0],
                    nbytes=blob[1],
                    allow_download=allow_download,
                    allow_remote_inference=False,
                    mpc=False,
                    owner=account.username,
                    created=time.time(),
                )
            )
        except OutcomeUnknownError:
            raise  # a row may name it
        except GridError:
            await asyncio.to_thread(self._blobs.delete, blob[0])
            raise

    def _write(self, data: bytes) -> tuple[str, int]:
        with self._blobs.begin(new_upload_id()) as upload:
            upload.write(data)
            blob = upload.commit()
        try:
            with self._blobs.reading(blob.name) as file:
                read_header(file)
        except (InvalidDataError, LimitExceededError):
            self._blobs.delete(blob.name)
            raise
        return blob.name, blob.nbytes

    async def list(self) -> tuple[StoredModel, ...]:
        """All models, oldest first."""
        return await self._table.list()

    async def blobs(self) -> frozenset[str]:
        """Names of the blobs that models use."""
        return await self._table.blobs()

    async def download(self, account: Account, model_id: str) -> bytes:
        """A model's safetensors bytes. Raises NotFound, Forbidden."""
        model = await self._table.get(model_id)
        if not model.allow_download and account.username != model.owner:
            raise Forbidden("the owner of this model does not let others download it")
        return await asyncio.to_thread(self._read, model.blob)

    def _read(self, blob: str) -> bytes:
        with self._blobs.reading(blob) as file:
            return file.read()

    async def delete(self, account: Account, model_id: str) -> None:
        """Serve a model no longer. Raises NotFound, Forbidden, NodeUnavailableError as `BlobStore.check_gone`."""
        model = await self._table.get(model_id)
        if account.username != model.owner and account.role != OWNER:
            raise Forbidden("only who served this model, or this Node's owner, deletes it")
        await self._table.delete(model_id)
        await asyncio.to_thread(self._blobs.delete, model.blob)
        self._blobs.check_gone([model.blob])
