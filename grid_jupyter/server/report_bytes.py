"""Bytes of a report on their way to the disk: from base64, or unpacked, and never more of them than its limit."""

from __future__ import annotations

import base64
import binascii
import secrets
import zlib
from typing import Any

from grid_jupyter.errors import BadRequest, InvalidDataError, LimitExceededError
from grid_jupyter.store.blobs import BlobStore, Upload


def of_text(blobs: BlobStore, diff: str) -> Upload:
    """A report in base64. Raises InvalidDataError, StorageFullError."""
    try:
        data = base64.b64decode(diff, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidDataError("'diff' is no base64 text of a safetensors file") from None
    upload = blobs.begin(secrets.token_hex(16))
    upload.write(data)
    return upload


def unzip_of(encoding: str) -> Any:
    """What unpacks a Content-Encoding; None for bytes that come as they are. Raises BadRequest."""
    if encoding == "identity":
        return None
    if encoding != "gzip":
        raise BadRequest("a report comes as it is, or with Content-Encoding: gzip")
    return zlib.decompressobj(31)


def append(upload: Upload, data: bytearray, unzip: Any, limit: int) -> None:
    """Write what came, never more than the limit and a byte. Raises InvalidDataError, LimitExceededError,
    StorageFullError."""
    if unzip is not None:
        behind = unzip.eof and data
        try:
            data = unzip.decompress(data, limit - upload.size + 1)
        except zlib.error:
            raise InvalidDataError("the report is said to be gzip'ed, and is not") from None
        if behind or unzip.unused_data:  # zlib would keep all of it in memory
            raise InvalidDataError("there is more behind the end of the gzip'ed report")
    if upload.size + len(data) > limit:
        raise LimitExceededError(f"a report of this model has at most {limit} bytes")
    upload.write(data)
