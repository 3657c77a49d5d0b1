"""Bytes in an object store: there before they are told of, checked when they are fetched, gone when deleted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
from s3_server import KEY, SECRET, file_system, line_to, options_file
from safetensors.numpy import save

from grid_jupyter.cli.main import main
from grid_jupyter.cycles.small_models import SmallModels
from grid_jupyter.errors import BadRequest, Conflict, NodeUnavailableError, ObjectNotFoundError
from grid_jupyter.identity.accounts import Account
from grid_jupyter.node.uploads import PUBLISH, Uploads
from grid_jupyter.server.backups import backup, restore
from grid_jupyter.store.blobs import Blob, BlobStore
from grid_jupyter.store.database import Database, sqlite_url
from grid_jupyter.store.node_blobs import NodeBlobs
from grid_jupyter.store.object_address import ObjectAddress, Reading, at_url, read_address
from grid_jupyter.store.object_claim import claim
from grid_jupyter.store.objects import ObjectStore
from grid_jupyter.store.trainings import StoredCheckpoint


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


@pytest.fixture
def on_disk(tmp_path: Path) -> ObjectAddress:
    return at_url((tmp_path / "store").as_uri(), None)


def opened(
    state: Path,
    address: ObjectAddress,
    known: frozenset[str] = frozenset(),
    cache: int = 1 << 20,
    *,
    sweeps: bool = False,
) -> NodeBlobs:
    """The blobs of a Node, as its start has them."""
    made = NodeBlobs(state, claim(state, address, "ward7"), cache, sweeps=sweeps)
    made.blobs.sweep(known)
    made.training.sweep(())
    return made


def put(store: BlobStore, data: bytes, *, passing: bool = False) -> Blob:
    with store.begin() as upload:
        upload.write(data)
        return upload.commit(passing=passing)


def read(store: BlobStore, name: str) -> bytes:
    with store.reading(name) as file:
        return file.read()


def copies(state: Path) -> set[str]:
    return {file.name for file in (state / "blobs").iterdir()}


@contextmanager
def away(tmp_path: Path) -> Iterator[None]:
    """A store on a disk that is not mounted just now: something else is in its place."""
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    store.rename(elsewhere)
    store.write_text("")
    try:
        yield
    finally:
        store.unlink()
        elsewhere.rename(store)


# ---------------------------------------------------------------- bytes


def test_what_is_committed_is_in_the_store_and_comes_back_when_its_copy_is_gone(
    state: Path, place: ObjectAddress
) -> None:
    kept = opened(state, place)
    blob = put(kept.blobs, b"rows" * 1000)
    assert ObjectStore(place).list("blobs")[blob.name].sha256 == blob.sha256
    (state / "blobs" / blob.name).unlink()
    assert read(kept.blobs, blob.name) == b"rows" * 1000
    (state / "blobs" / blob.name).unlink()
    again = opened(state, place, frozenset({blob.name}))
    descriptor = asyncio.run(again.blobs.open(blob.name))
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == b"rows" * 1000
    assert (again.blobs.size(blob.name), again.blobs.used_bytes()) == (4000, 4000)
    assert (state / "blobs" / blob.name).stat().st_mode & 0o777 == 0o600
    again.blobs.delete(blob.name)
    assert (ObjectStore(place).list("blobs"), copies(state), again.blobs.used_bytes()) == ({}, set(), 0)
    with pytest.raises(ObjectNotFoundError):
        read(again.blobs, blob.name)


def test_damaged_and_lost_objects_are_told_and_never_used(state: Path, on_disk: ObjectAddress, tmp_path: Path) -> None:
    kept = opened(state, on_disk)
    blob = put(kept.blobs, b"a" * 5000)
    (state / "blobs" / blob.name).unlink()
    (file,) = (tmp_path / "store" / "blobs").iterdir()
    whole = file.read_bytes()
    for damaged in (b"b" + whole[1:], whole[:-1], b""):
        file.write_bytes(damaged)
        with pytest.raises(ObjectNotFoundError, match="damaged in this Node's object store"):
            read(kept.blobs, blob.name)
        assert copies(state) == set()
    file.unlink()
    with pytest.raises(ObjectNotFoundError, match="gone from this Node's object store"):
        read(kept.blobs, blob.name)
    file.write_bytes(whole)
    assert read(kept.blobs, blob.name) == whole, "it was restored"


def test_an_object_that_was_put_in_the_place_of_another_is_not_taken_for_it(
    state: Path, on_disk: ObjectAddress, tmp_path: Path
) -> None:
    blob, forged = put(opened(state, on_disk).blobs, b"rows"), b"forged rows"
    (state / "blobs" / blob.name).unlink()
    (file,) = (tmp_path / "store" / "blobs").iterdir()
    file.unlink()
    file.with_name(f"{blob.name}.{hashlib.sha256(forged).hexdigest()}").write_bytes(forged)
    kept = opened(state, on_disk, frozenset({blob.name}))
    with pytest.raises(ObjectNotFoundError, match="damaged"):
        asyncio.run(kept.blobs.open(blob.name, blob.sha256))
    model = StoredCheckpoint(id=1, number=1, blob=blob.name, nbytes=len(forged), sha256=blob.sha256)
    assert asyncio.run(SmallModels(kept.blobs).get(model, len(forged))) is None, "nor does it go with a place"


def test_a_store_that_is_away_keeps_nothing_and_a_retry_does(
    state: Path, on_disk: ObjectAddress, tmp_path: Path
) -> None:
    kept = opened(state, on_disk)
    before = put(kept.blobs, b"before")
    with away(tmp_path):
        with pytest.raises(NodeUnavailableError, match="try again later"):
            put(kept.blobs, b"rows")
        assert copies(state) == {before.name}
        assert read(kept.blobs, before.name) == b"before", "of what is here the store is not asked"
        (state / "blobs" / before.name).unlink()
        with pytest.raises(NodeUnavailableError):
            read(kept.blobs, before.name)
        with pytest.raises(NodeUnavailableError):
            opened(state, on_disk)
        assert (kept.describe() or {})["to_delete"] == 1, "it might be there all the same"
    kept.settle()
    assert (kept.describe() or {})["to_delete"] == 0
    assert read(kept.blobs, before.name) == b"before"
    assert read(kept.blobs, put(kept.blobs, b"rows").name) == b"rows"


def test_an_s3_server_that_is_gone_is_told_within_seconds_and_no_log_has_its_credentials(
    state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    address = at_url("s3://ward7/p", options_file(f"http://127.0.0.1:{port}", tmp_path / "options.json"))
    pytest.importorskip("s3fs")
    began = time.monotonic()
    with pytest.raises(NodeUnavailableError):
        claim(state, address, "ward7")
    assert time.monotonic() - began < 30
    assert "EndpointConnectionError" in caplog.text
    assert not any(secret in f"{caplog.text}{address}" for secret in (KEY, SECRET))
    assert claim(state, at_url((tmp_path / "store").as_uri(), None), "ward7"), "nothing was settled"


def test_credentials_are_left_out_of_what_a_library_says(
    state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    options = tmp_path / "options.json"
    with os.fdopen(os.open(options, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
        json.dump({"nested": {"password": "Not a directory"}}, out)
    with pytest.raises(NodeUnavailableError):
        claim(state, at_url((tmp_path / "file" / "below").as_uri(), options), "ward7")
    assert "NotADirectoryError" in caplog.text
    assert "Not a directory" not in caplog.text


def test_a_password_in_the_address_of_an_endpoint_is_in_no_log(
    state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # nobody listens there when it is closed
    options = tmp_path / "options.json"
    with os.fdopen(os.open(options, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
        json.dump({"endpoint_url": f"http://ward7:hunter22@127.0.0.1:{port}", "key": KEY, "secret": SECRET}, out)
    with pytest.raises(NodeUnavailableError):
        claim(state, at_url("s3://ward7/x", options), "ward7")
    assert "object store s3://ward7/x cannot be read" in caplog.text
    assert "hunter22" not in caplog.text


# ---------------------------------------------------------------- copies


def test_copies_make_room_for_others_but_never_what_is_held_or_only_here(state: Path, on_disk: ObjectAddress) -> None:
    async def scenario() -> None:
        kept = opened(state, on_disk, cache=3500)
        passing = put(kept.blobs, b"p" * 1000, passing=True)
        first, second, third = (put(kept.blobs, bytes([n]) * 1000) for n in range(3))
        os.close(await kept.blobs.open(first.name))  # used later than the second
        fourth = put(kept.blobs, b"4" * 1000)
        assert copies(state) == {passing.name, first.name, third.name, fourth.name}
        async with kept.blobs.at_hand(first.name, second.name):
            large = put(kept.blobs, b"l" * 10_000)
            assert copies(state) == {passing.name, first.name, second.name, large.name}
        put(kept.blobs, b"5" * 1000)
        await kept.blobs.hold(third.name)
        put(kept.blobs, b"6" * 3500)
        assert third.name in copies(state)
        assert passing.name in copies(state)
        assert kept.describe() | {"url": ""} == {
            "url": "", "objects": 7, "bytes": 18_500, "cached": 4500, "cache": 3500, "to_delete": 0, "to_copy": 0,
            "unnamed": 0, "unnamed_bytes": 0,
        }  # fmt: skip
        for blob in (first, second, third, fourth, large):
            assert len(read(kept.blobs, blob.name)) == blob.nbytes

    asyncio.run(scenario())


def test_the_event_loop_runs_on_while_something_is_fetched(state: Path, s3: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        with line_to(s3) as (address, may_pass):
            kept = opened(state, at_url(f"s3://ward7/{tmp_path.name}", options_file(address, tmp_path / "o.json")))
            blob = put(kept.blobs, b"x" * 100_000)
            (state / "blobs" / blob.name).unlink()
            may_pass.clear()
            opening = [asyncio.create_task(kept.blobs.open(blob.name)) for _ in range(3)]
            given_up = asyncio.create_task(kept.blobs.open(blob.name))
            turns = 0
            for _ in range(100):
                await asyncio.sleep(0)
                turns += 1
            given_up.cancel()
            assert not any(one.done() for one in opening)
            may_pass.set()
            descriptors = await asyncio.gather(*opening)
            for descriptor in descriptors:
                with os.fdopen(descriptor, "rb") as file:
                    assert len(file.read()) == 100_000
            assert turns == 100

    asyncio.run(scenario())


def test_an_upload_that_the_store_takes_its_time_for_is_waited_for_and_not_sent_again(
    state: Path, s3: str, tmp_path: Path
) -> None:
    bob = Account(id=1, username="Bob", role="Publisher", flags=frozenset({PUBLISH}), groups=())
    data = save({"x": numpy.arange(10.0)})

    async def scenario() -> None:
        with line_to(s3) as (address, may_pass):
            kept = opened(state, at_url(f"s3://ward7/{tmp_path.name}", options_file(address, tmp_path / "o.json")))
            uploads = Uploads(kept.blobs, 1 << 20)
            uploads.keeping_s = 0.05
            coming = await uploads.begin(bob, "u", len(data))
            await coming.write(coming.begin_turn(), data)
            may_pass.clear()
            keeping = asyncio.create_task(uploads.finish(bob, "u", coming))
            for _ in range(2):
                assert await uploads.progress(bob, "u") == (len(data), False)
            again = uploads.resume(bob, "u", len(data))
            finishing = asyncio.create_task(uploads.finish(bob, "u", again))
            uploads.keeping_s = 30
            asking = asyncio.create_task(uploads.progress(bob, "u"))
            await asyncio.sleep(0)
            may_pass.set()
            await asyncio.gather(keeping, finishing)
            assert await asking == await uploads.progress(bob, "u") == (len(data), True)
            assert len(ObjectStore(at_url(f"s3://ward7/{tmp_path.name}", tmp_path / "o.json")).list("blobs")) == 1

    asyncio.run(scenario())


# ---------------------------------------------------------------- what is left over


def test_what_cannot_be_deleted_now_is_told_and_deleted_later(
    state: Path, on_disk: ObjectAddress, tmp_path: Path
) -> None:
    kept = opened(state, on_disk)
    blob = put(kept.blobs, b"rows")
    with away(tmp_path):
        kept.blobs.delete(blob.name)
        with pytest.raises(NodeUnavailableError, match="deleted, and nobody uses it any more"):
            kept.blobs.check_gone([blob.name])
        kept.settle()
        assert (kept.describe() or {})["to_delete"] == 1
    kept.settle()
    kept.blobs.check_gone([blob.name])
    assert (kept.describe() or {})["to_delete"] == 0
    assert ObjectStore(on_disk).list("blobs") == {}


def test_what_was_to_be_deleted_is_deleted_by_the_next_process_and_nothing_that_a_row_names(
    state: Path, on_disk: ObjectAddress, tmp_path: Path
) -> None:
    kept = opened(state, on_disk)
    doomed, named, other = put(kept.blobs, b"doomed"), put(kept.blobs, b"named"), put(kept.blobs, b"other")
    with away(tmp_path):
        kept.blobs.delete_all([doomed.name, named.name])
    again = opened(state, on_disk, frozenset({named.name}))  # of an older database, which still names one
    again.settle()
    assert ObjectStore(on_disk).list("blobs").keys() == {named.name, other.name}
    assert (state / "objects.owed").read_bytes() == b"[]"
    (state / "blobs" / named.name).unlink(missing_ok=True)
    assert read(again.blobs, named.name) == b"named"


def test_an_older_database_costs_nothing_of_what_is_newer(
    state: Path, place: ObjectAddress, caplog: pytest.LogCaptureFixture
) -> None:
    kept = opened(state, place)
    old, newer = put(kept.blobs, b"old"), put(kept.blobs, b"newer")
    for times in (1, 2):
        restored = opened(state, place, frozenset({old.name}))
        assert f"no row of this Node names {times} objects in blobs, and they stay" in caplog.text
        told = restored.describe() or {}
        assert (told["objects"], told["unnamed"], told["unnamed_bytes"]) == (1, times, 5 * times)
        put(restored.blobs, b"other")
    right = opened(state, place, frozenset({old.name, newer.name}))
    assert read(right.blobs, newer.name) == b"newer"


def test_a_start_that_is_told_to_removes_what_no_row_names_and_what_a_kill_left_half_written(
    state: Path, place: ObjectAddress, tmp_path: Path
) -> None:
    kept = opened(state, place)
    named, orphan = put(kept.blobs, b"named"), put(kept.blobs, b"orphan")
    if place.protocol == "file":
        (tmp_path / "store" / "blobs" / f"{orphan.name}.{orphan.sha256}.part").write_text("half")
        (tmp_path / "store" / "blobs" / "README").write_text("somebody else's")
    opened(state, place, frozenset({named.name}))
    assert ObjectStore(place).list("blobs").keys() == {named.name, orphan.name}
    assert copies(state) == {named.name}
    again = opened(state, place, frozenset({named.name}), sweeps=True)
    assert ObjectStore(place).list("blobs").keys() == {named.name}
    assert copies(state) == {named.name}
    assert read(again.blobs, named.name) == b"named"
    if place.protocol == "file":
        assert len(list((tmp_path / "store" / "blobs").iterdir())) == 2


def test_a_start_ends_uploads_to_s3_that_a_kill_cut_and_no_others(state: Path, s3: str, tmp_path: Path) -> None:
    address = at_url(f"s3://ward7/{tmp_path.name}", options_file(s3, tmp_path / "options.json"))
    opened(state, address)
    bucket, prefix = file_system(s3), tmp_path.name
    ours = f"{prefix}/blobs/{'0' * 32}.{'a' * 64}"
    others = {f"{prefix}/blobs/photo.jpg", f"{prefix}-2/blobs/{'0' * 32}.{'a' * 64}"}
    for key in (ours, *others):
        bucket.call_s3("create_multipart_upload", Bucket="ward7", Key=key)
    opened(state, address)
    assert {one["Key"] for one in bucket.list_multipart_uploads("ward7")} == others


def test_a_start_tells_what_rows_name_and_nobody_has(
    state: Path, on_disk: ObjectAddress, caplog: pytest.LogCaptureFixture
) -> None:
    kept = opened(state, on_disk)
    blob = put(kept.blobs, b"rows")
    kept.blobs.delete(blob.name)
    opened(state, on_disk, frozenset({blob.name}))
    assert f"1 blobs that rows name are gone ({blob.name}" in caplog.text


def test_what_was_here_before_the_store_was_is_copied_there_but_not_what_is_passing(
    state: Path, on_disk: ObjectAddress, tmp_path: Path
) -> None:
    before = BlobStore(state / "blobs")
    old, report, doomed = put(before, b"old"), put(before, b"report", passing=True), put(before, b"doomed")
    kept = NodeBlobs(state, claim(state, on_disk, "ward7"), 1)
    kept.blobs.sweep({old.name, report.name, doomed.name}, {report.name})
    assert (kept.describe() or {})["to_copy"] == 2
    kept.blobs.delete(doomed.name)
    with away(tmp_path), pytest.raises(NodeUnavailableError):
        kept.settle()
    assert read(kept.blobs, old.name) == b"old"
    kept.settle()
    assert (kept.describe() or {})["to_copy"] == 0
    assert ObjectStore(on_disk).list("blobs").keys() == {old.name}
    put(kept.blobs, b"another, for which copies make room")
    assert old.name not in copies(state)
    assert report.name in copies(state)
    assert read(kept.blobs, old.name) == b"old"


# ---------------------------------------------------------------- whose it is


def test_a_prefix_belongs_to_one_state_directory_and_is_remembered_there(
    state: Path, place: ObjectAddress, tmp_path: Path
) -> None:
    opened(state, place)
    opened(state, place)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(Conflict, match="belongs to a Node with another state directory"):
        claim(other, place, "ward8")
    assert list(other.iterdir()) == []
    with pytest.raises(BadRequest, match="start it with --objects"):
        claim(state, None, "ward7")
    assert claim(other, None, "ward8") is None
    elsewhere = ObjectAddress(f"{place.url}-moved", place.options)
    with pytest.raises(BadRequest, match="copy all that is there"):
        claim(state, elsewhere, "ward7")
    moved = ObjectStore(elsewhere)
    moved.set_mark(ObjectStore(place).mark() or b"")
    assert claim(state, elsewhere, "ward7")
    assert claim(state, elsewhere, "ward7"), "it is remembered"


def test_an_empty_folder_where_a_disk_was_is_not_taken_for_it(
    state: Path, on_disk: ObjectAddress, tmp_path: Path
) -> None:
    kept = opened(state, on_disk)
    blob, other = put(kept.blobs, b"rows"), put(kept.blobs, b"other rows")
    (state / "blobs" / blob.name).unlink()
    disk, mounted = tmp_path / "disk", tmp_path / "store"
    mounted.rename(disk)
    (mounted / "blobs").mkdir(parents=True)
    with pytest.raises(NodeUnavailableError):
        put(kept.blobs, b"would be gone when the disk is back")
    with pytest.raises(NodeUnavailableError):
        read(kept.blobs, blob.name)
    kept.blobs.delete(other.name)
    with pytest.raises(NodeUnavailableError, match="still in this Node's object store"):
        kept.blobs.check_gone([other.name])
    with pytest.raises(BadRequest, match="is the disk mounted"):
        claim(state, on_disk, "ward7")
    assert [file.name for file in mounted.rglob("*")] == ["blobs"]
    (mounted / "blobs").rmdir()
    mounted.rmdir()
    disk.rename(mounted)
    kept.settle()
    assert ObjectStore(on_disk).list("blobs").keys() == {blob.name}
    assert read(opened(state, on_disk, frozenset({blob.name})).blobs, blob.name) == b"rows"


def test_a_start_with_a_prefix_whose_mark_is_gone_is_refused_until_the_owner_gives_it_up(
    state: Path, place: ObjectAddress
) -> None:
    store = opened(state, place).objects
    assert store is not None
    store._fs.rm_file(f"{store._root}/grid-node.json")
    with pytest.raises(BadRequest, match="is it the right bucket"):
        claim(state, place, "ward7")
    (state / "objects.json").unlink()
    assert claim(state, place, "ward7")


def test_objects_of_which_rows_name_none_stay_where_they_are_many(
    state: Path, on_disk: ObjectAddress, caplog: pytest.LogCaptureFixture
) -> None:
    kept = opened(state, on_disk)
    blobs = [put(kept.blobs, b"%d" % number) for number in range(17)]
    opened(state, on_disk, sweeps=True)  # by the rows of another database, or of an empty one
    assert "is this its database?" in caplog.text
    assert len(ObjectStore(on_disk).list("blobs")) == 17
    again = opened(state, on_disk, frozenset({blobs[0].name}), sweeps=True)
    assert read(again.blobs, blobs[0].name) == b"0"
    assert ObjectStore(on_disk).list("blobs").keys() == {blobs[0].name}


@pytest.mark.parametrize("url", ["ward7", "s3://", "s3:ward7", "simplecache::s3://ward7", "http://[::1/x"])
def test_what_is_no_place_of_an_object_store_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="URL of fsspec's"):
        read_address(url, None, {})


def test_credentials_on_the_command_line_and_in_files_of_others_are_refused(tmp_path: Path) -> None:
    for url in ("s3://key:secret@ward7/p", "abfs://ward7/p?sas=secret"):
        with pytest.raises(BadRequest, match="credentials in a URL"):
            read_address(url, None, {})
    file = options_file("http://127.0.0.1:1", tmp_path / "options.json")
    environment = {"GRID_JUPYTER_OBJECTS": "s3://ward7/p/", "GRID_JUPYTER_OBJECTS_OPTIONS": str(file)}
    address = read_address(None, None, environment)
    assert address is not None
    assert (address.url, address.options["key"], address.file) == ("s3://ward7/p", KEY, file)
    file.chmod(0o640)
    with pytest.raises(BadRequest, match="chmod 600"):
        read_address("s3://ward7/p", file, {})
    file.chmod(0o600)
    file.write_text("[]")
    with pytest.raises(BadRequest, match="JSON object"):
        read_address("s3://ward7/p", file, {})
    with pytest.raises(BadRequest, match="--objects URL"):
        read_address(None, file, {})
    with pytest.raises(BadRequest, match="keeps nothing"):
        read_address("memory://ward7", None, {})
    assert read_address(None, None, {}) is None


def test_the_command_line_tells_what_is_wrong_with_an_object_store(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["node", "--name", "ward7", "--port", "0", "--state", str(state), "--objects"]
    assert main([*command, "s3://key:hush@ward7/p"]) == 1
    told = capsys.readouterr().err
    assert "credentials in a URL" in told
    assert "hush" not in told
    assert main([*command, "nosuch://ward7/p"]) == 1
    assert "fsspec" in capsys.readouterr().err


# ---------------------------------------------------------------- backups


@pytest.fixture
def running(state: Path, place: ObjectAddress) -> NodeBlobs:
    Database(sqlite_url(state / "grid.db")).close()
    return opened(state, place, cache=1)


def test_a_backup_has_what_the_object_store_has_and_a_restore_needs_none(
    state: Path, place: ObjectAddress, running: NodeBlobs, tmp_path: Path
) -> None:
    large, small = put(running.blobs, b"l" * 3_000_000), put(running.blobs, b"s" * 10)
    report = put(running.training, b"report", passing=True)
    assert copies(state) == {small.name}
    made = backup(state, tmp_path / "ward7.tar", role="node", name="ward7")
    assert made.files == 4
    assert put(running.blobs, b"after")
    restore(tmp_path / "ward7.tar", tmp_path / "restored")
    restored = NodeBlobs(tmp_path / "restored")
    assert [len(read(restored.blobs, blob.name)) for blob in (large, small)] == [3_000_000, 10]
    assert read(restored.training, report.name) == b"report"
    assert claim(tmp_path / "restored", None, "ward7") is None
    with pytest.raises(Conflict, match="prefix of its own"):
        claim(tmp_path / "restored", place, "ward7")


def test_nothing_is_deleted_while_a_backup_reads_and_all_of_it_afterwards(state: Path, on_disk: ObjectAddress) -> None:
    kept = opened(state, on_disk)
    blob = put(kept.blobs, b"rows")
    with Reading(state).alone():
        kept.blobs.delete(blob.name)
        kept.blobs.check_gone([blob.name])
        kept.settle()
        assert ObjectStore(on_disk).list("blobs").keys() == {blob.name}
    kept.settle()
    assert ObjectStore(on_disk).list("blobs") == {}


def test_a_backup_of_a_damaged_object_fails_and_leaves_no_file(
    state: Path, on_disk: ObjectAddress, tmp_path: Path
) -> None:
    Database(sqlite_url(state / "grid.db")).close()
    kept = opened(state, on_disk, cache=1)
    put(kept.blobs, b"a" * 100)
    put(kept.blobs, b"b" * 100)
    for file in (tmp_path / "store" / "blobs").iterdir():
        file.write_bytes(b"c" * 100)
    with pytest.raises(ObjectNotFoundError, match="damaged"):
        backup(state, tmp_path / "ward7.tar", role="node", name="ward7")
    assert not (tmp_path / "ward7.tar").exists()
