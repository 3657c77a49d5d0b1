"""Blobs: there as a whole or not at all, under names of ours, gone when they are deleted; wherever they are kept."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grid_jupyter.errors import Conflict, ObjectNotFoundError, StorageFullError
from grid_jupyter.store import held
from grid_jupyter.store.blobs import Blob, BlobStore, commit_together
from grid_jupyter.store.cache import Cache
from grid_jupyter.store.cached_blobs import CachedBlobStore
from grid_jupyter.store.objects import ObjectStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def make(directory: Path, objects: ObjectStore | None) -> Callable[[], BlobStore]:
    """A store as a process of its own has it: the contract is that of all kinds of them."""

    def made() -> BlobStore:
        return (
            BlobStore(directory)
            if objects is None
            else CachedBlobStore(directory, objects, Cache(1 << 20), sweeps=True)
        )

    return made


@pytest.fixture
def store(make: Callable[[], BlobStore]) -> BlobStore:
    return make()


def put(store: BlobStore, data: bytes, upload_id: str = "upload") -> Blob:
    with store.begin(upload_id) as upload:
        upload.write(data)
        return upload.commit()


def read(store: BlobStore, name: str) -> bytes:
    with store.reading(name) as file:
        return file.read()


def test_what_was_committed_is_read_back_with_its_size_and_digest(store: BlobStore) -> None:
    with store.begin("u") as upload:
        upload.write(b"abc")
        upload.write(memoryview(bytearray(b"defg")))
        assert upload.size == 7
        blob = upload.commit()
    assert (blob.nbytes, blob.sha256) == (7, hashlib.sha256(b"abcdefg").hexdigest())
    assert read(store, blob.name) == b"abcdefg"
    assert store.path(blob.name).read_bytes() == b"abcdefg"
    assert store.used_bytes() == 7


def test_blobs_are_readable_by_their_owner_alone(store: BlobStore, directory: Path) -> None:
    blob = put(store, b"secret")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path(blob.name).stat().st_mode) == 0o600


def test_an_upload_that_is_left_without_commit_leaves_nothing(store: BlobStore, directory: Path) -> None:
    with store.begin("u") as upload:
        upload.write(b"half")
    assert list(directory.iterdir()) == []
    upload.abort()  # a second time does nothing


def test_an_upload_is_not_a_blob_before_its_commit(store: BlobStore, directory: Path) -> None:
    with store.begin("u") as upload:
        upload.write(b"half")
        (only,) = directory.iterdir()
        with pytest.raises(ObjectNotFoundError):
            store.reading(only.name)
        assert store.used_bytes() == 4


def test_the_callers_upload_id_never_becomes_a_file_name(store: BlobStore, directory: Path) -> None:
    for upload_id in ("../../evil", "/etc/passwd", "a\0b", "", "\ud800", "x" * 10_000):
        put(store, b"x", upload_id)
    assert len(list(directory.iterdir())) == 6
    assert [path.name for path in directory.parent.iterdir()] == ["blobs"]


@pytest.mark.parametrize("name", ["../outside", "", ".", "/etc/passwd", "A" * 32, "0" * 31, "0" * 32 + "\n"])
def test_what_is_not_a_name_of_ours_is_not_found(store: BlobStore, name: str) -> None:
    for attempt in (store.reading, store.path, store.delete):
        with pytest.raises(ObjectNotFoundError):
            attempt(name)


def test_an_upload_begun_again_gives_up_the_older_one(store: BlobStore, directory: Path) -> None:
    older = store.begin("u")
    older.write(b"older, half")
    with store.begin("other") as bystander, store.begin("u") as newer:
        newer.write(b"newer")
        with pytest.raises(Conflict):
            older.commit()
        assert read(store, newer.commit().name) == b"newer"
        bystander.commit()
    assert len(list(directory.iterdir())) == 2


def test_a_deleted_blob_is_gone_and_whoever_reads_it_reads_to_the_end(store: BlobStore, directory: Path) -> None:
    blob = put(store, b"secret")
    with store.reading(blob.name) as reader:
        store.delete(blob.name)
        assert list(directory.iterdir()) == []
        assert reader.read() == b"secret"
    with pytest.raises(ObjectNotFoundError):
        store.reading(blob.name)
    store.delete(blob.name)


def test_a_sweep_removes_what_an_earlier_process_left_and_no_row_names(
    store: BlobStore, directory: Path, make: Callable[[], BlobStore], objects: ObjectStore | None
) -> None:
    named, orphan = put(store, b"named"), put(store, b"orphan")
    store.begin("interrupted").write(b"half")
    foreign = directory / "README"
    foreign.write_text("not a blob")
    later = make()  # the next process
    assert later.sweep({named.name}) == (2 if objects is None else 3)
    assert {path.name for path in directory.iterdir()} == {named.name, "README"}
    assert not (directory / orphan.name).exists()
    assert objects is None or objects.list("blobs").keys() == {named.name}


def test_a_sweep_spares_what_this_process_is_making(store: BlobStore) -> None:
    blob = put(store, b"its row is about to be written")
    with store.begin("u") as upload:
        assert store.sweep(set()) == 0
        upload.write(b"x")
        upload.commit()
    assert read(store, blob.name)


def test_a_sweep_takes_uploads_that_have_rested_for_a_day(store: BlobStore, directory: Path) -> None:
    upload = store.begin("u")
    (file,) = directory.iterdir()
    yesterday = time.time() - 90_000
    os.utime(file, (yesterday, yesterday))
    assert store.sweep(set()) == 1
    with pytest.raises(Conflict):
        upload.commit()


def test_the_room_that_is_used_is_told_while_blobs_come_and_go(store: BlobStore) -> None:
    def come_and_go() -> None:
        while not told:
            for _ in range(50):
                with store.begin() as upload:
                    upload.write(b"x")

    told: list[int] = []
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        found = [store.used_bytes() for _ in range(2000)]
    finally:
        told.append(1)
        thread.join()
    assert 0 <= max(found) <= 1
    assert store.used_bytes() == 0


def test_an_upload_without_an_id_is_on_the_disk_from_its_first_byte_on(store: BlobStore, directory: Path) -> None:
    with store.begin() as upload:
        assert list(directory.iterdir()) == []
        upload.write(b"abc")
        assert [file.stat().st_size for file in directory.iterdir()] == [3]
    assert list(directory.iterdir()) == []
    with store.begin() as upload:
        blob = upload.commit()
    assert (blob.nbytes, store.size(blob.name)) == (0, 0)
    store.begin().abandon()
    assert [file.name for file in directory.iterdir()] == [blob.name]


def test_a_full_disk_is_told_as_such_and_keeps_nothing(directory: Path) -> None:
    script = """
import pathlib, resource, sys
from grid_jupyter.errors import StorageFullError
from grid_jupyter.store.blobs import BlobStore
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the only full disk that a test can make
store = BlobStore(pathlib.Path(sys.argv[1]))
upload = store.begin("u")
try:
    for _ in range(100):
        upload.write(b"x" * 10_001)
except StorageFullError as error:
    print("full:", error)
print(store.used_bytes())
with store.begin("u") as small:
    small.write(b"x" * 1000)
    small.commit()
print(store.used_bytes())
"""
    done = subprocess.run([sys.executable, "-c", script, str(directory)], capture_output=True, text=True, check=True)
    told, after, small = done.stdout.splitlines()
    assert told.startswith("full: the disk of this Node is full")
    assert (after, small) == ("0", "1000")


def test_what_is_small_is_in_memory_until_it_is_committed(store: BlobStore, directory: Path) -> None:
    upload = store.begin(held=8)
    for piece in (b"abc", b"defgh"):
        assert upload.holds(len(piece))
        upload.write(piece)
    assert not upload.holds(1)
    assert list(directory.iterdir()) == []
    with os.fdopen(upload.reading(os.O_RDONLY), "rb") as file:
        assert file.read() == b"abcdefgh"
    (blob,) = commit_together([upload])
    assert isinstance(blob, Blob)
    assert (blob.nbytes, blob.sha256) == (8, hashlib.sha256(b"abcdefgh").hexdigest())
    assert store.path(blob.name).read_bytes() == b"abcdefgh"
    assert [path.name for path in directory.iterdir()] == [blob.name]


def test_what_grows_beyond_what_is_held_goes_to_its_file_in_order(store: BlobStore, directory: Path) -> None:
    upload = store.begin(held=4)
    for piece in (b"abc", b"def", b"g"):
        upload.write(piece)
    (only,) = directory.iterdir()
    assert only.read_bytes() == b"abcdefg"
    with os.fdopen(upload.reading(os.O_RDONLY), "rb") as file:
        assert file.read() == b"abcdefg"
    assert store.path(upload.commit().name).read_bytes() == b"abcdefg"


def test_what_is_held_and_given_up_leaves_nothing(store: BlobStore, directory: Path) -> None:
    upload = store.begin(held=4)
    upload.write(b"abc")
    upload.abort()
    assert upload.ended
    assert list(directory.iterdir()) == []


def test_of_uploads_that_are_kept_together_one_that_fails_takes_no_other_along(
    store: BlobStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = [store.begin(held=8) for _ in range(3)]
    for number, upload in enumerate(uploads):
        upload.write(b"%d" % number * 4)

    def write_all(descriptor: int, data: memoryview) -> None:
        if bytes(data) == b"1111":
            raise OSError(errno.ENOSPC, "no space left")
        os.write(descriptor, data)

    monkeypatch.setattr(held, "write_all", write_all)
    first, second, third = commit_together(uploads)
    assert isinstance(second, StorageFullError)
    assert isinstance(first, Blob)
    assert isinstance(third, Blob)
    assert {path.read_bytes() for path in directory.iterdir()} == {b"0000", b"2222"}
