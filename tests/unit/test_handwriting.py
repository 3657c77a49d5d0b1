"""Digits for the tutorials: scikit-learn's, and MNIST's files, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy
import pytest
import torch

from grid_jupyter.client.handwriting import handwriting, read_idx
from grid_jupyter.errors import InvalidDataError


def idx(array: numpy.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


IMAGES = numpy.arange(3 * 4 * 4, dtype=numpy.uint8).reshape(3, 4, 4)
LABELS = numpy.array([7, 0, 9], numpy.uint8)
FILES = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(IMAGES[:2]),
    "t10k-labels-idx1-ubyte": idx(LABELS[:2]),
}


def test_scikit_learns_digits_are_parted_into_some_to_train_and_others_to_try():
    found = handwriting()
    assert [tuple(one.shape) for one in (*found.train, *found.test)] == [(1437, 64), (1437,), (360, 64), (360,)]
    assert (found.train[0].dtype, found.train[1].dtype) == (torch.float32, torch.int64)
    assert (found.train[0].min().item(), found.train[0].max().item()) == (0.0, 1.0)
    assert set(found.test[1].tolist()) == set(range(10))


@pytest.mark.parametrize("below", ["", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_from_its_files_as_they_are_or_packed(tmp_path: Path, below: str, packed: bool):
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    for name, data in FILES.items():
        path = tmp_path / below / name
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(data)) if packed else path.write_bytes(data)
    found = handwriting(tmp_path)
    assert found.train[0].equal(torch.arange(48.0).reshape(3, 16) / 255)
    assert found.train[1].tolist() == [7, 0, 9]
    assert len(found.test[0]) == 2


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no IDX file"),
        (b"\x1f\x8b\x08\x00", "no IDX file"),
        (struct.pack(">HBBI", 0, 0x0D, 1, 3) + bytes(12), "no IDX file"),
        (idx(LABELS)[:-1], "says 3 bytes and has 2"),
        (idx(LABELS) + b"x", "says 3 bytes and has 4"),
        (idx(IMAGES)[:9], "damaged"),
        (struct.pack(">HBBII", 0, 8, 2, 1 << 31, 1 << 31), "larger than 1 GiB"),
    ],
)
def test_what_is_no_whole_idx_file_is_refused(tmp_path: Path, data: bytes, text: str):
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(data)
    with pytest.raises(InvalidDataError, match=text):
        read_idx(path)


def test_a_packed_file_that_is_cut_off_or_is_none_is_refused(tmp_path: Path):
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    for data in (gzip.compress(idx(IMAGES))[:-10], b"no gzip"):
        path.write_bytes(data)
        with pytest.raises(InvalidDataError, match="cannot be read"):
            read_idx(path)


def test_a_missing_file_and_labels_of_other_images_are_named(tmp_path: Path):
    with pytest.raises(InvalidDataError, match="no train-images-idx3-ubyte"):
        handwriting(tmp_path)
    for name, data in {**FILES, "train-labels-idx1-ubyte": idx(LABELS[:2])}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidDataError, match="do not belong together"):
        handwriting(tmp_path)
