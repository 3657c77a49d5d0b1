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


def test_files_as_the_formats_own_page_describes_them_are_read_to_the_pixel(tmp_path: Path):
    """Byte by byte from the table "TRAINING SET IMAGE FILE" of MNIST's page: magic 2051 and 2049, lengths of 32 bits,
    the most significant byte first, pixels row by row. In torchvision's layout, which keeps packed files beside others.
    """
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 10)):
        images, labels = bytearray(), bytearray()
        for number in (2051, count, 28, 28):
            images += bytes([number >> 24 & 255, number >> 16 & 255, number >> 8 & 255, number & 255])
        for number in (2049, count):
            labels += bytes([number >> 24 & 255, number >> 16 & 255, number >> 8 & 255, number & 255])
        assert (images[:4].hex(), labels[:4].hex()) == ("00000803", "00000801")
        for image in range(count):
            labels.append(image % 10)
            for row in range(28):
                for column in range(28):
                    images.append((image + 7 * row + 3 * column) % 256)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    for named in (tmp_path, tmp_path / "MNIST", raw, str(tmp_path)):
        found = handwriting(named)
        assert [tuple(one.shape) for one in (*found.train, *found.test)] == [(60, 784), (60,), (10, 784), (10,)]
    image, row, column = 41, 5, 27
    assert found.train[0][image, row * 28 + column].item() == numpy.float32(
        (41 + 7 * 5 + 3 * 27) % 256
    ) / numpy.float32(255)
    assert found.train[1][image].item() == 1
    assert (found.train[0].dtype, found.train[1].dtype) == (torch.float32, torch.int64)
    assert 0 <= found.train[0].min() < found.train[0].max() <= 1


def test_a_file_that_was_unpacked_on_its_way_or_packed_without_a_name_for_it_is_read_all_the_same(tmp_path: Path):
    for name, data in (
        ("train-labels-idx1-ubyte.gz", idx(LABELS)),
        ("t10k-labels-idx1-ubyte", gzip.compress(idx(LABELS))),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_idx(tmp_path / name).tolist() == [7, 0, 9]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no IDX file"),
        (b"\x00\x00\x08", "no IDX file"),
        (b"\x03\x08\x00\x00" + bytes(12), "no IDX file"),  # its bytes the wrong way round
        (b"\x1f\x8b\x08\x00", "cannot be read"),
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
    whole = gzip.compress(idx(IMAGES))
    turned = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for data, text in ((whole[:-10], "cannot be read"), (turned, "cannot be read"), (b"no gzip", "no IDX file")):
        path.write_bytes(data)
        with pytest.raises(InvalidDataError, match=text):
            read_idx(path)


def test_a_missing_file_and_labels_of_other_images_are_named(tmp_path: Path):
    with pytest.raises(InvalidDataError, match="no train-images-idx3-ubyte"):
        handwriting(tmp_path)
    with pytest.raises(InvalidDataError, match="no train-images-idx3-ubyte"):
        handwriting(tmp_path / "nowhere")
    for name, data in {**FILES, "train-labels-idx1-ubyte": idx(LABELS[:2])}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidDataError, match="do not belong together"):
        handwriting(tmp_path)
    swapped = {"train-labels-idx1-ubyte": idx(IMAGES), "train-images-idx3-ubyte": idx(LABELS)}
    for wrong, text in (
        (swapped, r"images of train are \[3\] and its labels \[3, 4, 4\]"),
        ({"train-labels-idx1-ubyte": idx(LABELS + 1)}, "do not belong together"),
        ({"train-images-idx3-ubyte": idx(IMAGES[:0]), "train-labels-idx1-ubyte": idx(LABELS[:0])}, r"\[0, 4, 4\]"),
        ({"t10k-images-idx3-ubyte": idx(IMAGES[:2, :3, :3])}, "differ in size"),
    ):
        for name, data in {**FILES, **wrong}.items():
            (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidDataError, match=text):
            handwriting(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InvalidDataError, match=r"no t10k-labels-idx1-ubyte in .*four such files"):
        handwriting(tmp_path)
