"""An object store, through fsspec: where large bytes are kept for good, under which keys, and whether they are intact.

    <prefix>/grid-node.json           whose it is: a number that one state directory knows
    <prefix>/blobs/<name>.<sha256>    bytes of data sets, models, jobs, values that are held
    <prefix>/training/<name>.<sha256> models and checkpoints of model-centric training

All of it blocks, and is called from threads. What a library of fsspec raises is known to that library alone: here it
becomes NodeUnavailableError, and its text goes into the Node's log, without what was given as a credential.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from grid_jupyter.errors import BadRequest, DependencyError, NodeUnavailableError, ObjectNotFoundError, StorageFullError
from grid_jupyter.store.blobs import disk_full_told
from grid_jupyter.store.object_address import Debts, ObjectAddress, Reading
from grid_jupyter.wire.files import sync_directory

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger("grid_jupyter")

MARK = "grid-node.json"
"""The object that says whose prefix it is."""
_KEY = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{64})")
_DRAFT = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{64}\.part")
_PIECE = 1 << 20
_BLOCK = 8 << 20
"""Bytes of one read of the store."""
_SECRET = re.compile("KEY|SECRET|TOKEN|PASS|CREDENTIAL", re.IGNORECASE)
_IN_URL = re.compile(r"//[^/\s@]+@")
"""A user and password, as an `endpoint_url` or a proxy may have them."""
_S3_CONFIG = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}
"""A store that does not answer is told soon, in place of botocore's many minutes; s3fs tries again by itself."""


@dataclass(frozen=True)
class Stored:
    """An object: how many bytes it has, and their SHA-256 in hex."""

    nbytes: int
    sha256: str


class ObjectStore:
    """The object store of one Node. Its methods raise NodeUnavailableError where it does not answer, or refuses."""

    def __init__(self, address: ObjectAddress, reading: Reading | None = None, debts: Debts | None = None) -> None:
        """Nothing is asked of it yet. While somebody holds `reading`, a backup, nothing is deleted; what is to be
        deleted stands in `debts` until it is.

        Raises DependencyError where fsspec, or its library for this kind of store, is not installed; BadRequest.
        """
        self.url = address.url
        self._secrets = _secrets(address.options)
        self._reading = reading
        self._fs, self._root = _file_system(address)
        protocols = (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        self._local, self._s3 = "file" in protocols, "s3" in protocols
        self._debts = debts
        owed = () if debts is None else debts.read()
        # keys that are to be deleted; whether that was tried, and failed
        self._owed: dict[str, bool] = {f"{self._root}/{key}": False for key in owed}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self.busy = 0
        """Calls of the store that are under way."""

    # -------------------------------------------------------------- whose it is

    def mark(self) -> bytes | None:
        """What says whose prefix this is; None where nothing does yet."""
        with self._told("be read"):
            try:
                return cast(bytes, self._fs.cat_file(f"{self._root}/{MARK}"))
            except FileNotFoundError:
                return None

    def set_mark(self, data: bytes) -> None:
        """Say whose it is."""
        with self._told("be written to"):
            if self._local:
                Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{MARK}", data)

    # -------------------------------------------------------------- objects

    def list(self, folder: str) -> dict[str, Stored]:
        """The objects of a folder by name."""
        found = {}
        for key, nbytes in self._keys(folder):
            named = _KEY.fullmatch(key)
            if named:
                found[named[1]] = Stored(nbytes, named[2])
        return found

    def put(self, folder: str, name: str, path: Path, stored: Stored) -> None:
        """Keep the bytes of a file: when this returns they are there for good."""
        key = self._key(folder, name, stored)
        with self._told("be written to"):
            if self._local:
                self._check_mounted()
                _put_on_disk(path, Path(key))
            else:
                self._fs.put_file(str(path), key)
                there = int(self._fs.info(key)["size"])
                if there != stored.nbytes:
                    raise OSError(f"{there} bytes are there of {stored.nbytes}")

    def get(self, folder: str, name: str, stored: Stored, path: Path) -> None:
        """Write an object into a new file (mode 0600), on the disk when this returns.

        Raises as `pieces`, and StorageFullError; then there may be half a file.
        """
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file, disk_full_told():
            for piece in self.pieces(folder, name, stored):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def pieces(self, folder: str, name: str, stored: Stored) -> Iterator[bytes]:
        """The bytes of an object. Raises ObjectNotFoundError where it is gone, or at the end, where it is damaged."""
        key, digest = self._key(folder, name, stored), hashlib.sha256()
        with self._told("be read"):
            try:
                source = self._fs.open(key, "rb", block_size=_BLOCK, cache_type="readahead")
            except FileNotFoundError:
                self._check_mounted()
                raise self.lost(folder, name, stored, "gone from") from None
        with source:
            while True:
                with self._told("be read"):
                    piece = cast(bytes, source.read(_PIECE))
                if not piece:
                    break
                digest.update(piece)
                yield piece
        if digest.hexdigest() != stored.sha256:
            raise self.lost(folder, name, stored, "damaged in")

    def lost(self, folder: str, name: str, stored: Stored, how: str) -> ObjectNotFoundError:
        """What is told of an object that is "gone from" or "damaged in" the store; the log names it."""
        log.error("object store %s: %s is %s the store", self.url, self._key(folder, name, stored), how)
        return ObjectNotFoundError(
            f"these bytes are {how} this Node's object store: its owner restores the object that the Node's log names, "
            "or publishes it again"
        )

    # -------------------------------------------------------------- deleting

    def delete(self, folder: str, objects: Mapping[str, Stored]) -> None:
        """Delete these. What cannot be deleted now is owed: `settle` tries again, and the sweep of the next start."""
        self._delete({self._key(folder, name, stored) for name, stored in objects.items()})

    def owe(self, folder: str, name: str, stored: Stored) -> None:
        """Delete this one when `settle` is called next: it may be there or not."""
        with self._lock:
            self._owed.setdefault(self._key(folder, name, stored), False)
        self._write_down()

    def owes(self, folder: str) -> frozenset[str]:
        """Names of a folder's objects that are to be deleted."""
        with self._lock:
            return frozenset(_named(key) for key in self._owed if key.startswith(f"{self._root}/{folder}/"))

    def forgive(self, folder: str, names: Collection[str]) -> None:
        """Rows name these: they are not to be deleted, whoever said so."""
        with self._lock:
            within = f"{self._root}/{folder}/"
            forgiven = [key for key in self._owed if key.startswith(within) and _named(key) in names]
            for key in forgiven:
                del self._owed[key]
        if forgiven:
            self._write_down()

    def settle(self) -> None:
        """Delete what is owed, as far as that can be done."""
        with self._lock:
            owed = set(self._owed)
        if owed:
            self._delete(owed)

    def owed(self) -> int:
        """How many objects are still to be deleted."""
        return len(self._owed)

    def refused(self, names: Iterable[str]) -> bool:
        """Whether the store did not delete some of these when it was asked to."""
        with self._lock:
            keys = {_named(key) for key, failed in self._owed.items() if failed}
        return not keys.isdisjoint(names)

    def tidy(self, folder: str) -> None:
        """Remove what a process that was killed has left half written."""
        if self._local:
            with self._told("be written to"):
                for key, _ in self._keys(folder):
                    if _DRAFT.fullmatch(key):
                        self._fs.rm_file(f"{self._root}/{folder}/{key}")
        elif self._s3:
            try:
                with self._told("tell of uploads that were cut"):
                    self._end_uploads(folder)
            except NodeUnavailableError:  # it takes rights of its own
                log.warning("object store %s: give the bucket a rule that ends multipart uploads", self.url)

    def _end_uploads(self, folder: str) -> None:
        bucket, _, prefix = f"{self._root}/{folder}/".partition("/")
        for one in self._fs.list_multipart_uploads(bucket):
            if one["Key"].startswith(prefix) and _KEY.fullmatch(one["Key"][len(prefix) :]):
                self._fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])

    def _delete(self, keys: set[str]) -> None:
        with self._lock:
            more = not keys <= self._owed.keys()
            self._owed = dict.fromkeys(keys, False) | self._owed
        if more:
            self._write_down()
        try:
            self._delete_now(keys)
        finally:
            self._write_down()

    def _delete_now(self, keys: set[str]) -> None:
        with _nobody_reads(self._reading) as free:
            if not free:
                log.info("object store %s: a backup reads, %d objects are deleted afterwards", self.url, len(keys))
                return
            for key in sorted(keys):
                try:
                    with self._told("be written to"):
                        self._remove(key)
                except NodeUnavailableError:
                    log.warning("object store %s: %d objects wait to be deleted", self.url, self.owed())
                    with self._lock:
                        self._owed |= dict.fromkeys(keys & self._owed.keys(), True)
                    return
                with self._lock:
                    self._owed.pop(key, None)

    def _write_down(self) -> None:
        """A Node that is ended now deletes at its next start what is owed: of what no row names nothing else is."""
        if self._debts is not None:
            with self._writing:
                with self._lock:
                    owed = [key[len(self._root) + 1 :] for key in self._owed]
                try:
                    self._debts.write(owed)
                except OSError as error:  # what is to be deleted is deleted all the same
                    log.error("what the object store is to delete cannot be written down: %s", error)

    def _remove(self, key: str) -> None:
        try:
            self._fs.rm_file(key)
        except FileNotFoundError:
            self._check_mounted()  # else it is gone, as well

    def _check_mounted(self) -> None:
        """Raises OSError where a disk is not what it was: an empty folder takes what the disk should have."""
        if self._local and not Path(self._root, MARK).is_file():
            raise OSError(f"{MARK} is not there: is this disk mounted?")

    # -------------------------------------------------------------- within

    def _key(self, folder: str, name: str, stored: Stored) -> str:
        return f"{self._root}/{folder}/{name}.{stored.sha256}"

    def _keys(self, folder: str) -> Iterator[tuple[str, int]]:
        with self._told("be read"):
            self._check_mounted()
            found = self._fs.find(f"{self._root}/{folder}", detail=True)
        for path, about in found.items():
            above, _, key = str(path).rpartition("/")
            if above.endswith(folder):
                yield key, int(about["size"])

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever goes wrong with the store is told in its owner's log, and to others as a store that is away."""
        with self._lock:
            self.busy += 1
        try:
            yield
        except (ObjectNotFoundError, StorageFullError):
            raise
        except Exception as error:  # each library of fsspec has exceptions of its own
            log.error("object store %s cannot %s: %s", self.url, what, self._reason(error))
            raise NodeUnavailableError(
                f"the object store of this Node cannot {what} just now; try again later. Its owner finds the reason in "
                "the Node's log"
            ) from None
        finally:
            with self._lock:
                self.busy -= 1

    def _reason(self, error: BaseException) -> str:
        text = f"{type(error).__name__}: {error}"
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return _IN_URL.sub("//…@", text)[:400]


def _named(key: str) -> str:
    return key.rpartition("/")[2][:32]


def _file_system(address: ObjectAddress) -> tuple[AbstractFileSystem, str]:
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise DependencyError(
            "fsspec is not installed, and --objects needs it; pip install 'grid-jupyter[objects]'"
        ) from None
    options = dict(address.options)
    if address.protocol in ("s3", "s3a"):
        options["config_kwargs"] = {**_S3_CONFIG, **options.get("config_kwargs", {})}
    try:
        fs, root = url_to_fs(address.url, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as error:
        wanted = "'grid-jupyter[s3]'" if address.protocol in ("s3", "s3a") else "the package that fsspec names"
        raise DependencyError(
            f"{address.protocol}:// needs a package that is not here: pip install {wanted}"
        ) from error
    except (TypeError, ValueError) as error:
        raise BadRequest(
            f"fsspec takes neither {address.url} nor its options ({type(error).__name__}): see its documentation"
        ) from None
    if address.protocol in ("s3", "s3a"):
        fs.retries = 2  # s3fs's own, over those of botocore
    return fs, str(root).rstrip("/")


def _put_on_disk(path: Path, target: Path) -> None:
    """A copy on a disk, whole and for good: of all stores, this one leaves that to who writes."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.part")
    with (
        path.open("rb") as source,
        os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out,
    ):
        while piece := source.read(_PIECE):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(target)
    sync_directory(target.parent)


def _secrets(options: Mapping[str, object]) -> tuple[str, ...]:
    """What no log may say: texts of the options, and what the environment has as credentials."""

    def texts(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for name, one in value.items():
                yield from () if name == "endpoint_url" else texts(one)

    found = list(texts(options))
    found += [value for name, value in os.environ.items() if _SECRET.search(name)]
    return tuple(sorted((one for one in found if len(one) > 3), key=len, reverse=True))


@contextmanager
def _nobody_reads(reading: Reading | None) -> Iterator[bool]:
    if reading is None:
        yield True
    else:
        with reading.shared() as free:
            yield free
