"""`python -m grid_jupyter.client.file_publishing`: previews or publishes one file of the owner's, and ends.

The Jupyter server runs it for the panel, so that reading a file, however large or odd, costs it neither its event loop
nor its memory. A task comes in as JSON, an answer goes out as JSON. It publishes as `node.publish(path, …)` does; only
random mock rows take torch.
"""

from __future__ import annotations

import io
import secrets
import sys
from pathlib import Path

import msgspec

from grid_jupyter.client.prepared import Prepared, prepared
from grid_jupyter.client.previews import Preview, of_file
from grid_jupyter.errors import BadRequest, GridError, InvalidDataError, NotFound
from grid_jupyter.link.bulk import Pieces, of_memory, upload
from grid_jupyter.link.http import SocketAddress, call
from grid_jupyter.wire.messages import ColumnInfo, MockUpload, Publish
from grid_jupyter.wire.mock import check_mock
from grid_jupyter.wire.owner import FileTask, OwnedDataset
from grid_jupyter.wire.safetensors import read_header
from grid_jupyter.wire.words import check_jobs, check_users, check_words


def do(task: FileTask) -> Preview | OwnedDataset:
    """Preview the file, or publish it by the owner's door of a Node. Raises GridError."""
    try:
        return of_file(Path(task.file)) if task.publish is None else _publish(task)
    except FileNotFoundError:
        raise NotFound("the file is no longer there; was it moved?") from None
    except PermissionError:
        raise BadRequest("this file may not be read by the user that runs Jupyter") from None
    except MemoryError:
        raise InvalidDataError("the file takes more memory to read than there is; publish it in parts") from None


def _publish(task: FileTask) -> OwnedDataset:
    said = task.publish
    if said is None:
        raise BadRequest("nothing was said about what to publish")
    check_words(said.name, said.tags, said.description)  # before the work
    check_users((*said.allowed_users, *(said.compute_users or ())))
    check_jobs(said.jobs)
    door = SocketAddress(task.socket)
    with prepared(task.file) as ready:
        mock = _mock(said.mock, ready, door) if said.mock else None
        name = _send(door, ready.pieces, ready.length)
    request = Publish(
        upload=name,
        kind=ready.kind,
        name=said.name,
        tags=said.tags,
        description=said.description,
        allowed_users=said.allowed_users,
        compute_users=said.compute_users,
        public_tags=said.public_tags,
        columns=ready.columns,
        jobs=said.jobs,
        mock=mock,
    )
    return call(door, "POST", "/owner/datasets", request, kind=OwnedDataset)


def _mock(rows: int, ready: Prepared, door: SocketAddress) -> MockUpload:
    from grid_jupyter.client.mock import mock_file  # torch: only for who asks for mock rows

    columns: tuple[ColumnInfo, ...]
    data, columns = mock_file(rows, ready.kind, ready.columns, ready.tensors)
    check_mock(ready.kind, ready.columns, ready.tensors, columns, read_header(io.BytesIO(data))[0])
    return MockUpload(upload=_send(door, of_memory(b"", memoryview(data)), len(data)), columns=columns)


def _send(door: SocketAddress, pieces: Pieces, length: int) -> str:
    name = secrets.token_hex(16)
    upload(door, f"/owner/uploads/{name}", "", pieces, length, {}, "publishing")
    return name


def main() -> None:
    """One task from standard input, its answer to standard output."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=FileTask)
    try:
        told = msgspec.json.encode({"answer": do(task)})
    except GridError as error:
        told = msgspec.json.encode(error.to_wire())
    sys.stdout.buffer.write(told)


if __name__ == "__main__":
    main()
