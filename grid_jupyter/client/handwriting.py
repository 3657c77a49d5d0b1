"""Handwritten digits to learn on: those that come with scikit-learn, or MNIST from its files. Downloads nothing."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from grid_jupyter.errors import InvalidDataError
from grid_jupyter.tensors.text import plain

Examples = tuple[torch.Tensor, torch.Tensor]
"""Inputs [n, pixels], float32 in 0…1, and classes [n], int64 in 0…9."""
_FOLDERS = ("", "raw", "MNIST/raw")
"""Where MNIST's files are, seen from the folder that is named; the others are torchvision's."""
_BYTES = 0x08
"""IDX's number for unsigned bytes, which is all that MNIST has."""
_GZIP = b"\x1f\x8b"
"""How packed files begin, whatever their names: some are unpacked on their way here, and keep theirs."""
_MAX_BYTES = 1 << 30
_HELD_OUT = 5


@dataclass(frozen=True)
class Handwriting:
    """Examples to train on, and others to try a model on."""

    train: Examples
    test: Examples


def handwriting(mnist: str | Path | None = None) -> Handwriting:
    """MNIST from the folder with its four IDX files, packed (.gz) or not; without one scikit-learn's 1,797 small
    digits, of which every fifth is in `test`.

    Raises InvalidDataError, which names the file that is missing or damaged.
    """
    if mnist is not None:
        folder = Path(mnist).expanduser()
        train, test = _examples(folder, "train"), _examples(folder, "t10k")
        if train[0].shape[1] != test[0].shape[1]:
            raise InvalidDataError("the images of train and t10k differ in size")
        return Handwriting(train, test)
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    inputs = torch.tensor(found.data / 16.0, dtype=torch.float32)
    classes = torch.tensor(found.target, dtype=torch.int64)
    held = torch.arange(len(inputs)) % _HELD_OUT == 0
    return Handwriting((inputs[~held], classes[~held]), (inputs[held], classes[held]))


def read_idx(path: Path) -> NDArray[numpy.uint8]:
    """An array of bytes from an IDX file: two zeros, the number of the dtype, that of the dimensions, each length as
    32 bits in big-endian order, the values.

    Raises InvalidDataError for what is no such file, of other values, damaged, or larger than 1 GiB.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _BYTES or not 1 <= head[3] <= 4:
                raise InvalidDataError(f"{plain(path.name)} is no IDX file of bytes, as MNIST's are")
            sizes = file.read(4 * head[3])
            shape = [int.from_bytes(sizes[at : at + 4], "big") for at in range(0, len(sizes), 4)]
            count = math.prod(shape)
            if len(shape) != head[3] or count > _MAX_BYTES:
                raise InvalidDataError(f"{plain(path.name)} is damaged, or larger than 1 GiB")
            data = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidDataError(f"{plain(path.name)} cannot be read: {plain(str(error), 200)}") from None
    if len(data) != count:
        raise InvalidDataError(f"{plain(path.name)} is damaged: it says {count} bytes and has {len(data)} or more")
    return numpy.frombuffer(data, numpy.uint8).reshape(shape)


def _examples(folder: Path, part: str) -> Examples:
    images = read_idx(_find(folder, f"{part}-images", "idx3-ubyte"))
    labels = read_idx(_find(folder, f"{part}-labels", "idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or not images.size:
        raise InvalidDataError(
            f"the images of {part} are {list(images.shape)} and its labels {list(labels.shape)}; MNIST's are "
            f"[n, 28, 28] and [n]: take care that no file has another's name"
        )
    if len(labels) != len(images) or (labels > 9).any():
        raise InvalidDataError(f"the images and labels of {part} do not belong together")
    inputs = torch.from_numpy(images.reshape(len(images), -1) / numpy.float32(255))
    return inputs, torch.from_numpy(labels.astype(numpy.int64))


def _find(folder: Path, name: str, kind: str) -> Path:
    for below in _FOLDERS:
        for dot in ("-", "."):
            for end in ("", ".gz"):
                path = folder / below / f"{name}{dot}{kind}{end}"
                if path.is_file():
                    return path
    raise InvalidDataError(f"there is no {name}-{kind} in {plain(str(folder))}; MNIST has four such files, also as .gz")
