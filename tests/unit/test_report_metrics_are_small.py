"""A body of a stranger's is not made into objects before its length is known."""

from __future__ import annotations

import msgspec
import pytest

from grid_jupyter.errors import BadRequest
from grid_jupyter.server.door import decode
from grid_jupyter.wire.metrics import MetricsReport
from grid_jupyter.wire.training import CycleRequest, Report


def test_metrics_of_a_report_are_left_as_bytes() -> None:
    nested = b'{"a":[' + b"[]," * 1000 + b"[]]}"
    found = decode(b'{"worker_id":"","request_key":"","diff":"","metrics":' + nested + b"}", Report)
    assert isinstance(found.metrics, msgspec.Raw)
    assert bytes(found.metrics) == nested


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (MetricsReport, b'{"worker_id":"","request_key":"","metrics":{"a":[[]]}}'),
        (CycleRequest, b'{"worker_id":"","model":"m","ping":[[]]}'),
    ],
)
def test_lists_stand_for_no_number(kind: type, body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode(body, kind)


def test_whole_numbers_are_numbers() -> None:
    found = decode(b'{"worker_id":"","request_key":"","metrics":{"a":1,"b":2.5}}', MetricsReport)
    assert found.metrics == {"a": 1, "b": 2.5}
