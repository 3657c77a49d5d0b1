"""Where a Node's object store is, and whose: the URL, its options, what a state directory remembers of it.

objects.json   the URL, the file with its options, the number that the prefix is marked with
objects.owed   keys of objects that were to be deleted, and may be there still
objects.lock   held by a backup while it reads objects: none is deleted meanwhile
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from grid_jupyter.errors import BadRequest, NodeUnavailableError
from grid_jupyter.wire.files import put_whole

VARIABLE = "GRID_JUPYTER_OBJECTS"
"""The environment variable that has the URL, where no option does."""
OPTIONS_VARIABLE = "GRID_JUPYTER_OBJECTS_OPTIONS"
"""The one that names the file with its options."""
MEMORY = "objects.json"
DEBTS = "objects.owed"
LOCK = "objects.lock"
PATIENCE_S = 60.0
"""How long a backup waits for deletions that are under way."""


@dataclass(frozen=True)
class ObjectAddress:
    """A URL of fsspec's, and the `storage_options` that go with it, from `file`."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    file: Path | None = None

    @property
    def protocol(self) -> str:
        """What stands before `://`."""
        return self.url.partition("://")[0].lower()


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """What a state directory knows of its object store; `owner` marks the prefix there, since it was `marked`."""

    url: str
    owner: str
    options: str | None = None
    marked: bool = False


class Debts:
    """What a Node owes its object store to delete, also when it is ended in between: keys below the prefix."""

    def __init__(self, state: Path) -> None:
        self._path = state / DEBTS

    def read(self) -> frozenset[str]:
        """What is owed. Raises BadRequest where that cannot be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=frozenset[str])
        except FileNotFoundError:
            return frozenset()
        except (OSError, msgspec.DecodeError) as error:
            raise BadRequest(f"{self._path} cannot be read: {error}") from None

    def write(self, keys: Collection[str]) -> None:
        """On the disk when this returns."""
        put_whole(self._path, msgspec.json.encode(sorted(keys)))


class Reading:
    """The lock between what deletes objects and a backup that reads them."""

    def __init__(self, state: Path) -> None:
        self._path = state / LOCK

    @contextmanager
    def shared(self) -> Iterator[bool]:
        """Held by what deletes. False where a backup reads just now."""
        with self._locked(fcntl.LOCK_SH | fcntl.LOCK_NB) as held:
            yield held

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held by a backup. Raises NodeUnavailableError where deleting does not end."""
        until = time.monotonic() + PATIENCE_S
        while True:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
                if held:
                    yield
                    return
            if time.monotonic() > until:
                raise NodeUnavailableError("the Node deletes objects all the time; try again, or stop it first")
            time.sleep(0.02)

    @contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, how)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)


def read_address(told: str | None, file: Path | None, environment: Mapping[str, str]) -> ObjectAddress | None:
    """The object store that options or the environment name; None where there is none.

    Raises BadRequest for what is no URL of a store that keeps things, for a credential where every user of the machine
    could see it, and for a file of options that others may read.
    """
    url = told or environment.get(VARIABLE, "").strip()
    if file is None and environment.get(OPTIONS_VARIABLE, "").strip():
        file = Path(environment[OPTIONS_VARIABLE].strip())
    if not url:
        if file is not None and told is None and VARIABLE not in environment:
            raise BadRequest("options of an object store need its URL: --objects URL")
        return None
    address = at_url(url, file)
    if address.protocol == "memory":
        raise BadRequest("memory:// keeps nothing; give a store that does, such as s3://BUCKET/PREFIX")
    return address


def at_url(url: str, file: Path | None) -> ObjectAddress:
    """The same, of any protocol. Raises BadRequest."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    place = f"{parts.netloc}{parts.path}".strip("/")
    if not parts.scheme or "://" not in url or "::" in url or not place:
        raise BadRequest("an object store is a URL of fsspec's, such as s3://BUCKET/PREFIX or file:///mnt/store/PREFIX")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise BadRequest(
            "credentials in a URL are seen by everybody on this machine: put them into the environment (for S3: "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or into a file of options that you alone may read "
            "(--objects-options FILE)"
        )
    file = None if file is None else file.expanduser().absolute()
    return ObjectAddress(url.rstrip("/"), {} if file is None else _options(file), file)


def remembered(state: Path) -> Remembered | None:
    """What a state directory knows of its object store. Raises BadRequest where that cannot be read."""
    try:
        return msgspec.json.decode((state / MEMORY).read_bytes(), type=Remembered)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise BadRequest(f"{state / MEMORY} cannot be read: {error}") from None


def remember(state: Path, known: Remembered) -> None:
    """Write it down; on the disk when this returns."""
    put_whole(state / MEMORY, msgspec.json.encode(known))


def _options(file: Path) -> dict[str, Any]:
    try:
        mode = file.stat().st_mode
        options = json.loads(file.read_text())
    except (OSError, ValueError):
        raise BadRequest(f"{file} with the options of the object store cannot be read as JSON") from None
    if stat.S_IMODE(mode) & 0o077 and os.name == "posix":
        raise BadRequest(f"others may read {file}, which has the options of the object store: chmod 600 it")
    if not isinstance(options, dict):
        raise BadRequest(f"{file} has to be a JSON object: fsspec's storage_options")
    return options
