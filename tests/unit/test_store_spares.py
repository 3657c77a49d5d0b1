"""Files of folded reports are written again, and nobody else's bytes show, get lost, or take room."""

from __future__ import annotations

import asyncio
import mmap
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
from cycle_world import world
from plan_documents import linear
from safetensors.numpy import save

from grid_jupyter.cycles import service
from grid_jupyter.cycles.room import Room
from grid_jupyter.errors import StorageFullError
from grid_jupyter.store import spares
from grid_jupyter.store.blobs import Blob, BlobStore

LENGTH = 1 << 20


@pytest.fixture(autouse=True)
def _a_disk_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "FREE", 0)


def put(blobs: BlobStore, byte: bytes, length: int = LENGTH) -> Blob:
    with blobs.begin(nbytes=length) as upload:
        upload.write(byte * (length // 2))
        upload.write(byte * (length - length // 2))
        return upload.commit(passing=True)


def test_the_file_of_a_blob_that_is_retired_is_that_of_the_next_one_of_its_length(tmp_path: Path):
    blobs = BlobStore(tmp_path)
    first = put(blobs, b"a")
    same = blobs.path(first.name).stat().st_ino
    blobs.retire([first.name])
    assert not blobs.path(first.name).exists()
    other = put(blobs, b"b", LENGTH + 1)
    second = put(blobs, b"c")
    assert blobs.path(other.name).stat().st_ino != same == blobs.path(second.name).stat().st_ino
    assert blobs.path(second.name).read_bytes() == b"c" * LENGTH
    assert {one.name for one in tmp_path.iterdir()} == {other.name, second.name}


def test_a_blob_that_is_shorter_than_was_said_has_nothing_of_the_one_before(tmp_path: Path):
    blobs = BlobStore(tmp_path)
    blobs.retire([put(blobs, b"secret!!").name])
    with blobs.begin(nbytes=8 * LENGTH) as upload:
        upload.write(b"x")
        made = upload.commit(passing=True)
    assert blobs.path(made.name).read_bytes() == b"x"


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_somebody_still_reads_is_not_written_again(tmp_path: Path, mapped: bool):
    blobs = BlobStore(tmp_path)
    first = put(blobs, b"a")
    reading = os.open(blobs.path(first.name), os.O_RDONLY)
    held = mmap.mmap(reading, LENGTH, access=mmap.ACCESS_READ) if mapped else None
    if held is not None:
        os.close(reading)
    blobs.retire([first.name])
    second = put(blobs, b"b")
    assert blobs.path(second.name).read_bytes() == b"b" * LENGTH
    assert (held[:] if held is not None else os.pread(reading, LENGTH, 0)) == b"a" * LENGTH
    assert len(list(tmp_path.iterdir())) == 1
    if held is None:
        os.close(reading)


def test_a_file_that_is_to_be_left_to_others_is_not_taken(tmp_path: Path):
    blobs = BlobStore(tmp_path)
    blobs.retire([put(blobs, b"a").name, put(blobs, b"b", LENGTH + 1).name])
    with blobs.begin(nbytes=LENGTH, leave=1) as upload:
        upload.write(b"c")
        assert blobs.spares.nbytes() == 2 * LENGTH + 1
    with blobs.begin(nbytes=LENGTH) as upload:
        upload.write(b"c")
        assert blobs.spares.nbytes() == LENGTH + 1


OPENED_MEANWHILE = """
import os, sys
from pathlib import Path
from grid_jupyter.store import spares

place, opened = Path(sys.argv[1]), []
file = place / "report"
file.write_bytes(b"a")
spares.LEAST = spares.FREE = 0
kept = spares.Spares(place, set())
assert kept.keep(file)

def look(event, told):
    if event == "fcntl.fcntl" and told[1:] == (spares.fcntl.F_SETLEASE, spares.fcntl.F_UNLCK):
        try:
            os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        except BlockingIOError:
            opened.append(file)

sys.addaudithook(look)
assert kept.take(1, file) >= 0 and opened == [file]
"""


def test_who_opens_a_file_while_it_is_seen_whether_somebody_reads_it_does_not_end_the_node(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", OPENED_MEANWHILE, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == 0


def test_an_upload_that_is_given_up_leaves_nothing_of_a_spare_file(tmp_path: Path):
    blobs = BlobStore(tmp_path)
    blobs.retire([put(blobs, b"a").name])
    with blobs.begin(nbytes=LENGTH) as upload:
        upload.write(b"b")
    assert not list(tmp_path.iterdir())


def test_spare_files_are_few_go_after_a_while_and_are_swept_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spares, "MOST", 2 * LENGTH)
    blobs = BlobStore(tmp_path)
    blobs.retire([put(blobs, b"x", 1000).name, *(put(blobs, bytes([k])).name for k in range(3))])
    assert blobs.spares.nbytes() == 2 * LENGTH == blobs.used_bytes()
    assert blobs.sweep(()) == 0
    blobs.spares.drop(60)
    assert blobs.spares.nbytes() == 2 * LENGTH
    assert BlobStore(tmp_path).sweep(()) == 2
    assert blobs.path(put(blobs, b"y").name).read_bytes() == b"y" * LENGTH
    blobs.retire([put(blobs, b"z").name])
    blobs.drop_spares()
    deadline = time.monotonic() + 10
    while len(list(tmp_path.iterdir())) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nobody_waits_for_the_disk_that_removes_spare_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blobs = BlobStore(tmp_path)
    blobs.retire([put(blobs, bytes([k])).name for k in range(3)])
    remove, seen = Path.unlink, []
    with ThreadPoolExecutor(1) as other:

        def removed(path: Path, missing_ok: bool = False) -> None:
            seen.append(other.submit(blobs.spares.take, LENGTH, tmp_path / "mine").result(10))
            remove(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", removed)
        blobs.spares.drop()
    assert seen == [-1, -1, -1], "none is given out that is removed"
    assert not list(tmp_path.iterdir())


def test_no_file_is_kept_where_the_disk_has_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spares, "FREE", 1 << 60)
    blobs = BlobStore(tmp_path)
    blobs.retire([put(blobs, b"a").name])
    assert not list(tmp_path.iterdir())


def test_spare_files_take_no_room_that_trainings_need(tmp_path: Path):
    async def work() -> None:
        blobs = BlobStore(tmp_path)
        room = Room(blobs, 3 * LENGTH, time.monotonic)
        blobs.retire([put(blobs, b"a").name, put(blobs, b"b").name])
        await room.take("Ann", LENGTH)
        assert blobs.spares.nbytes() == 2 * LENGTH
        await room.take("Ann", 2 * LENGTH)
        assert blobs.spares.nbytes() == 0
        with pytest.raises(StorageFullError):
            await room.take("Ann", 1)

    asyncio.run(work())


def test_reports_and_the_checkpoint_come_into_the_files_of_the_cycle_before_and_none_stays_when_training_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spares, "LEAST", 1)
    monkeypatch.setattr(service, "SMALL", 0)
    one = {"w": numpy.full((3, 1), 1, numpy.float32)}

    async def work() -> None:
        async with world(tmp_path) as here:
            store = here.cycles.blobs
            await here.host(plan=linear(), max_diffs=2, num_cycles=3)
            seen: list[set[int]] = []
            checkpoints: list[int] = []
            for cycle in range(3):
                inodes = set()
                for place in [await here.accepted(), await here.accepted()]:
                    arriving = await here.cycles.begin_report(*place)
                    with here.cycles.report_file(arriving.live, len(save(one))) as upload:
                        upload.write(save(one))
                        inodes.add(upload.path.stat().st_ino)
                        await here.cycles.finish_report(arriving, upload, 1)
                seen.append(inodes)
                await here.stands(after=cycle)
                descriptor, _ = await here.cycles.retrieve("m", None, "latest")
                checkpoints.append(os.fstat(descriptor).st_ino)
                os.close(descriptor)
                deadline = time.monotonic() + 10
                while cycle < 2 and store.spares.nbytes() < 2 * len(save(one)):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.01)
            for before, after, checkpoint in zip(seen, seen[1:], checkpoints[1:], strict=False):
                assert len(before & after) == 1  # the other one is left for the checkpoint, for which all wait
                assert {checkpoint} == before - after
            start = (await here.checkpoint("1"))["w"]
            numpy.testing.assert_allclose((await here.checkpoint())["w"], start - 3)
            assert store.spares.nbytes() == 0

    asyncio.run(work())
