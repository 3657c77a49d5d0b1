"""Where the parts of a file lie changes nothing about the work that they make."""

from __future__ import annotations

import time

import numpy

from grid_jupyter.aggregation.diffs import unpacked
from grid_jupyter.aggregation.form import CHUNK, Form, chunks


def _seconds(offset: int) -> float:
    size = 64 * CHUNK
    form = Form((("w", numpy.dtype("float32"), (size,)),))
    places = numpy.arange(size * 3 // 4, dtype=numpy.int32)
    raw = numpy.empty(places.nbytes + 8, numpy.uint8)[offset : offset + places.nbytes]
    raw[:] = places.view(numpy.uint8)
    index = numpy.frombuffer(raw.data, numpy.int32)
    assert index.flags.aligned == (offset % 4 == 0)
    tensor = unpacked({"w": numpy.ones(places.size, numpy.int8), "w.index": index}, form)["w"]
    begun = time.process_time()
    assert sum(float(part.sum()) for part, _ in chunks(tensor)) == places.size
    return time.process_time() - begun


def test_an_index_that_is_not_aligned_is_not_copied_for_each_chunk() -> None:
    assert _seconds(1) < 4 * _seconds(0) + 0.2
