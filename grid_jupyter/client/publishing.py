"""Publishing on a Node, and changing or ending what was published: the data owner's half of a Node's client."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch

from grid_jupyter.client.mock import mock_file
from grid_jupyter.client.pointers import DatasetRef, RemoteArrays, pointer
from grid_jupyter.client.prepared import Prepared, prepared
from grid_jupyter.errors import BadRequest, InvalidDataError, ObjectNotFoundError
from grid_jupyter.link.bulk import Pieces, of_memory, upload
from grid_jupyter.link.http import Address, call, transfer
from grid_jupyter.ops.raw import NAMES, to_bytes
from grid_jupyter.tensors.private import PrivateTensor, user_names
from grid_jupyter.tensors.remote import RemoteTensor
from grid_jupyter.wire.messages import (
    ColumnInfo,
    DatasetInfo,
    Edit,
    JobPolicy,
    MockUpload,
    Publish,
    TensorInfo,
    Unpublished,
)
from grid_jupyter.wire.mock import check_mock
from grid_jupyter.wire.safetensors import build_header, read_header
from grid_jupyter.wire.words import check_jobs, check_users, check_words

_KEEP: Any = object()


class Publishing:
    """What a Node's client does for the owner of data."""

    address: Address
    _token: str

    _token_of: Callable[[str | None], str]

    def publish(
        self,
        data: Any,
        *,
        name: str = "",
        tags: tuple[str, ...] | list[str] | str = (),
        description: str = "",
        allowed_users: str | tuple[str, ...] | list[str] = (),
        compute_users: str | tuple[str, ...] | list[str] | None = _KEEP,
        public_tags: bool | None = None,
        jobs: JobPolicy | str | None = None,
        replaces: Any = None,
        mock: Any = None,
        user: str | None = None,
    ) -> Any:
        """Publish a tensor, a pandas DataFrame, or a file (CSV, Parquet, NPZ, safetensors). Returns a pointer.

        `allowed_users` may read values, besides the publisher: nobody else by default. `compute_users` may
        compute: by default everybody whom the Node lets in. `jobs` says whose jobs run without a decision of yours:
        a JobPolicy, "ask" (every job asks, the default) or "denied". `replaces`, a pointer to a data set of yours,
        makes this its next version, which keeps name, tags, description, compute_users and jobs if none are given.
        `mock` gives mock rows: rows of the same columns, dtypes and trailing shape, which are not private (everybody
        who may compute may fetch them, `pointer.mock()`), or the number of random rows to make of the form alone.
        They belong to this version. `user` presents that user's stored credential. Publishing the same once more is
        harmless: it is the same data set.

        Durable when it returns. Raises SendNotPermittedError, InvalidDataError, LimitExceededError,
        StorageFullError; then nothing is published.
        """
        token = self._token_of(user)
        upload = secrets.token_hex(16)
        where = f"/data-centric/uploads/{upload}"
        if isinstance(data, PrivateTensor):
            allowed_users = (*data.allowed_users, *user_names(allowed_users))
        words = (tags,) if isinstance(tags, str) else tuple(tags)
        if isinstance(data, (torch.Tensor, PrivateTensor)):
            words = (*getattr(data, "tags", ()), *words)
            description = description or getattr(data, "description", "")
        readers, computers, said = user_names(allowed_users), _computers(compute_users), _policy(jobs)
        check_words(name, words, description)  # before what may be a long upload
        check_users((*readers, *(computers if isinstance(computers, tuple) else ())))
        with _prepared(data) as ready:
            rows = None if mock is None else mock_file(mock, ready.kind, ready.columns, ready.tensors)
            if rows is not None:
                mocked = read_header(io.BytesIO(rows[0]))[0]
                check_mock(ready.kind, ready.columns, ready.tensors, rows[1], mocked)
            self._upload(where, ready.pieces, ready.length, token)
        request = Publish(
            upload=upload,
            kind=ready.kind,
            name=name,
            tags=words,
            description=description,
            allowed_users=readers,
            public_tags=public_tags,
            columns=ready.columns,
            dataset=None if replaces is None else _dataset_id(replaces),
            compute_users=computers,
            jobs=said,
            mock=None if rows is None else self._send_mock(*rows, token),
        )
        made: DatasetInfo = call(self.address, "POST", "/data-centric/datasets", request, token=token, kind=DatasetInfo)
        holder: Any = self
        return pointer(holder, made)

    def _send_mock(self, data: bytes, columns: tuple[ColumnInfo, ...], token: str) -> MockUpload:
        number = secrets.token_hex(16)
        self._upload(f"/data-centric/uploads/{number}", of_memory(b"", memoryview(data)), len(data), token)
        return MockUpload(upload=number, columns=columns)

    def _upload(self, where: str, pieces: Pieces, length: int, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        upload(self.address, where, "", pieces, length, headers, "publishing")

    def edit(
        self,
        dataset: Any,
        *,
        tags: tuple[str, ...] | list[str] | None = None,
        description: str | None = None,
        allowed_users: Any = None,
        compute_users: Any = _KEEP,
        public_tags: bool | None = None,
        jobs: JobPolicy | str | None = None,
        mock: Any = _KEEP,
        user: str | None = None,
    ) -> DatasetInfo:
        """Change what is given of a data set of yours; it holds from the next read on. `mock` as in `publish`, for its
        newest version; None takes its mock rows away. Raises Forbidden, InvalidDataError."""
        token = self._token_of(user)
        request = Edit(
            tags=None if tags is None else tuple(tags),
            description=description,
            allowed_users=None if allowed_users is None else user_names(allowed_users),
            public_tags=public_tags,
            compute_users=_computers(compute_users),
            jobs=_policy(jobs),
            mock=msgspec.UNSET if mock is _KEEP else self._mock_of(mock, _dataset_id(dataset), token),
        )
        where = f"/data-centric/datasets/{_dataset_id(dataset)}"
        return call(self.address, "PATCH", where, request, token=token, kind=DatasetInfo)

    def _mock_of(self, mock: Any, dataset: int, token: str) -> MockUpload | None:
        if mock is None:
            return None
        listed: list[DatasetInfo] = call(
            self.address, "GET", "/data-centric/datasets", token=token, kind=list[DatasetInfo]
        )
        found = next((one for one in listed if one.id == dataset), None)
        if found is None:
            raise ObjectNotFoundError("there is no such data set here, or no longer; search again")
        return self._send_mock(*mock_file(mock, found.kind, found.columns, found.tensors), token)

    def unpublish(self, dataset: Any, user: str | None = None) -> Unpublished:
        """End a data set of yours with all its versions. The bytes are gone when this returns; it says which
        sessions ended with it. Raises Forbidden, ObjectNotFoundError."""
        where = f"/data-centric/datasets/{_dataset_id(dataset)}"
        return call(self.address, "DELETE", where, token=self._token_of(user), kind=Unpublished)

    # -------------------------------------------------------------- models that the Node stores

    @property
    def models(self) -> list[str]:
        """Ids of the models that the Node serves."""
        return list(call(self.address, "GET", "/data-centric/models/", token=self._token)["models"])

    def serve_model(self, model: torch.nn.Module, model_id: str, *, allow_download: bool = False) -> None:
        """Store a model's parameters on the Node, as safetensors. Raises IdNotUniqueError, SendNotPermittedError."""
        from safetensors.torch import save

        state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
        form, boundary = _form(save(state), {"model_id": model_id, "allow_download": str(allow_download)})
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        transfer(self.address, "POST", "/data-centric/serve-model/", form, headers=headers, token=self._token)


@contextmanager
def _prepared(data: Any) -> Iterator[Prepared]:
    """Data as it is uploaded; what is no tensor goes by a file, which is gone afterwards."""
    if isinstance(data, (torch.Tensor, PrivateTensor)):
        yield _prepared_tensor(data.unwrap() if isinstance(data, PrivateTensor) else data)
        return
    with prepared(data) as ready:
        yield ready


def _prepared_tensor(tensor: torch.Tensor) -> Prepared:
    dtype = NAMES.get(tensor.dtype, str(tensor.dtype))
    if tensor.is_complex() or tensor.dtype not in NAMES:
        raise InvalidDataError(f"a tensor of {tensor.dtype} cannot be published; convert it, or publish its parts")
    data = to_bytes(tensor.cpu())
    of = TensorInfo(name="data", dtype=dtype, shape=tuple(tensor.shape))
    header = build_header([(of.name, of.dtype, of.shape)], {})
    return Prepared("tensor", (), (of,), of_memory(header, data), len(header) + len(data))


def _form(model: bytes, fields: dict[str, str]) -> tuple[bytes, str]:
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="model"; filename="model.safetensors"\r\n\r\n'
    return b"".join([*parts, head.encode(), model, f"\r\n--{boundary}--\r\n".encode()]), boundary


def _computers(users: Any) -> tuple[str, ...] | msgspec.UnsetType | None:
    if users is _KEEP:
        return msgspec.UNSET
    return None if users is None else user_names(users)


def _policy(jobs: JobPolicy | str | None) -> JobPolicy | msgspec.UnsetType:
    if jobs is None:
        return msgspec.UNSET
    if isinstance(jobs, str):
        if jobs not in ("ask", "denied"):
            raise BadRequest('jobs is a JobPolicy, "ask" or "denied"; JobPolicy(automatic=[…]) names users')
        return JobPolicy(jobs=jobs == "ask")
    made = msgspec.structs.replace(jobs, automatic=user_names(jobs.automatic))
    check_jobs(made)
    return made


def _dataset_id(dataset: Any) -> int:
    if isinstance(dataset, RemoteTensor) and isinstance(dataset._ref, DatasetRef):
        return dataset._ref.dataset.id
    if isinstance(dataset, (RemoteArrays,)):
        return dataset.dataset.id
    if isinstance(dataset, DatasetInfo):
        return dataset.id
    if isinstance(dataset, int):
        return dataset
    raise BadRequest("name a data set by its pointer, its description or its number")
