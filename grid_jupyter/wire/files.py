"""Files that are replaced whole: whatever happens meanwhile, the old one is there or the new one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def put_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file beside the old one, and put it in its place; it is on the disk when this returns.

    `mode` is that of a new file from its first moment, before the process's umask. Raises OSError; then the old one is
    there.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """What was made, renamed or removed in it is so on the disk when this returns. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
