"""What gzip packed is unpacked a piece at a time, and comes out as it went in."""

from __future__ import annotations

import gzip
import os
from typing import Any, cast

import pytest

from grid_jupyter.cycles.arriving import append, unzip_of


class _Sink:
    def __init__(self) -> None:
        self.found, self.largest = bytearray(), 0

    @property
    def size(self) -> int:
        return len(self.found)

    def write(self, data: bytes) -> None:
        self.found += data
        self.largest = max(self.largest, len(data))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("zeros", [True, False])
def test_pieces(size: int, zeros: bool) -> None:
    raw = bytes(size) if zeros else os.urandom(size)
    packed, unzip, sink = gzip.compress(raw), unzip_of("gzip"), _Sink()
    for start in range(0, len(packed), 9_999):
        append(cast(Any, sink), bytearray(packed[start : start + 9_999]), unzip, 4 << 20)
    assert sink.found == raw
    assert unzip.eof
    assert sink.largest <= 1 << 20
