"""A report in base64 on its way to the disk."""

from __future__ import annotations

import base64
import binascii

from grid_jupyter.errors import InvalidDataError
from grid_jupyter.store.blobs import BlobStore, Upload


def of_text(blobs: BlobStore, diff: str) -> Upload:
    """A report in base64. Raises InvalidDataError, StorageFullError."""
    try:
        data = base64.b64decode(diff, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidDataError("'diff' is no base64 text of a safetensors file") from None
    upload = blobs.begin()
    upload.write(data)
    return upload
