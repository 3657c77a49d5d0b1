"""Blobs are on their way to the disk while they come, and leave memory to others when nobody reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grid_jupyter.store import blobs as stored
from grid_jupyter.store.blobs import BlobStore
from grid_jupyter.store.write_back import EACH, begin_write_back


def test_the_disk_is_given_what_came_piece_after_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun: list[tuple[int, int]] = []

    def seen(descriptor: int, start: int, nbytes: int) -> None:
        begin_write_back(descriptor, start, nbytes)
        begun.append((start, nbytes))

    monkeypatch.setattr(stored, "begin_write_back", seen)
    store, piece = BlobStore(tmp_path), os.urandom(EACH // 4)
    with store.begin("u") as upload:
        for _ in range(9):
            upload.write(piece)
        blob = upload.commit()
    assert begun == [(0, EACH), (EACH, EACH)]
    assert store.path(blob.name).read_bytes() == piece * 9


def test_what_cannot_be_begun_is_left_to_whoever_syncs(tmp_path: Path):
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        begin_write_back(descriptor, 0, EACH)
        os.close(descriptor)
    begin_write_back(writing, 0, EACH)


def test_a_blob_that_rests_is_read_as_before(tmp_path: Path):
    store = BlobStore(tmp_path)
    with store.begin("u") as upload:
        upload.write(b"abc" * EACH)
        blob = upload.commit()
    store.rest(blob.name)
    assert store.path(blob.name).read_bytes() == b"abc" * EACH
    store.delete(blob.name)
    store.rest(blob.name)
